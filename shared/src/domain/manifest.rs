//! What a package or a job's results consist of: files, their chunks, and the hash that names the whole.
//!
//! A manifest is encoded with `postcard` (a stable, documented wire format); its BLAKE3 is the package's identity.
//! Chunk boundaries come from FastCDC (`shared::runtime::files`), so that an edit changes only the chunks around it.

use std::{collections::HashSet, fmt, mem, slice};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{
    error::{Code, Failure},
    id::hex,
    path::RelPath,
};

/// The longest chunk, in bytes.
pub const MAX_CHUNK: u32 = 256 * 1024;
/// The longest encoded manifest accepted, in bytes (about 300 GB of chunks).
pub const MAX_MANIFEST: u64 = 128 * 1024 * 1024;

/// So much of an encoded manifest is handled at once, in bytes.
pub const PART: usize = 64 * 1024;

/// A BLAKE3 hash. As JSON: 64 hexadecimal digits; in a manifest: 32 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Hash(pub [u8; 32]);

impl Hash {
    /// The hash of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Hash(*blake3::hash(bytes).as_bytes())
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0[..8]))
    }
}

impl Serialize for Hash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() { serializer.serialize_str(&hex(&self.0)) } else { self.0.serialize(serializer) }
    }
}

impl<'de> Deserialize<'de> for Hash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if !deserializer.is_human_readable() {
            return Ok(Hash(<[u8; 32]>::deserialize(deserializer)?));
        }
        let text = String::deserialize(deserializer)?;
        let byte = |at: usize| text.get(at..at + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok());
        let mut hash = [0; 32];
        for (index, slot) in hash.iter_mut().enumerate() {
            *slot = byte(index * 2)
                .filter(|_| text.len() == 64)
                .ok_or_else(|| serde::de::Error::custom("not a hash: 64 hexadecimal digits"))?;
        }
        Ok(Hash(hash))
    }
}

/// One chunk of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunk {
    /// Of its bytes.
    pub hash: Hash,
    /// Its length in bytes, 1 to [`MAX_CHUNK`].
    pub len: u32,
}

/// One file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// Where it belongs.
    pub path: RelPath,
    /// Its length in bytes: the sum of its chunks'.
    pub size: u64,
    /// Whether it is executable; no other mode bit travels.
    pub executable: bool,
    /// Its chunks, in order; none for an empty file.
    pub chunks: Vec<Chunk>,
}

/// What a manifest says of a file besides its chunks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Where it belongs.
    pub path: RelPath,
    /// Its length in bytes.
    pub size: u64,
    /// Whether it is executable.
    pub executable: bool,
}

impl From<&Entry> for Head {
    fn from(entry: &Entry) -> Self {
        Head { path: entry.path.clone(), size: entry.size, executable: entry.executable }
    }
}

/// All files of a package, sorted by path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Manifest {
    /// The files.
    pub entries: Vec<Entry>,
}

/// A manifest's bytes in parts; see [`Manifest::encoded_parts`].
struct EncodedParts<'a> {
    entries: slice::Iter<'a, Entry>,
    /// Of the file under way.
    chunks: slice::Iter<'a, Chunk>,
    len: usize,
    /// What comes next; seldom longer than a part.
    buffer: Vec<u8>,
}

impl EncodedParts<'_> {
    fn append(&mut self, value: impl Serialize) {
        self.buffer = postcard::to_extend(&value, mem::take(&mut self.buffer)).expect("a manifest always serialises to memory");
    }
}

impl Iterator for EncodedParts<'_> {
    type Item = Vec<u8>;

    fn next(&mut self) -> Option<Vec<u8>> {
        while self.buffer.len() < self.len {
            if let Some(chunk) = self.chunks.next() {
                self.append(chunk);
            } else if let Some(Entry { path, size, executable, chunks }) = self.entries.next() {
                self.append((path, size, executable, chunks.len()));
                self.chunks = chunks.iter();
            } else {
                break;
            }
        }
        let rest = self.buffer.split_off(self.len.min(self.buffer.len()));
        Some(mem::replace(&mut self.buffer, rest)).filter(|part| !part.is_empty())
    }
}

/// The longest head of an entry: its path, and three short values.
const MAX_HEAD: usize = 2048;

/// Reads a manifest whose bytes come in parts, and keeps none that it has read.
#[derive(Debug, Default)]
pub struct ManifestReader {
    /// What the beginning of something is that has not come whole.
    pending: Vec<u8>,
    /// Files that are still to come; `None`: their number is.
    files: Option<usize>,
    /// Chunks of the last file that are still to come.
    chunks: usize,
    entries: Vec<Entry>,
}

impl ManifestReader {
    /// Takes the next bytes.
    ///
    /// # Errors
    /// [`Code::BadPackage`] when they belong to no manifest.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let mut pending = mem::take(&mut self.pending);
        pending.extend_from_slice(bytes);
        let mut rest = &pending[..];
        while let Some(after) = self.read_one(rest)? {
            rest = after;
        }
        if rest.len() > MAX_HEAD {
            return Err(bad("it has trailing bytes, or a name that is too long"));
        }
        let read = pending.len() - rest.len();
        pending.drain(..read);
        self.pending = pending;
        Ok(())
    }

    /// Reads what comes next; what follows it. `None`: it is not whole, or there is nothing more to come.
    fn read_one<'a>(&mut self, bytes: &'a [u8]) -> Result<Option<&'a [u8]>, Failure> {
        let after = match (self.files, self.entries.last_mut()) {
            (None, _) => take(bytes)?.map(|(files, after)| {
                self.files = Some(files);
                after
            }),
            (_, Some(entry)) if self.chunks > 0 => take(bytes)?.map(|(chunk, after)| {
                entry.chunks.push(chunk);
                self.chunks -= 1;
                after
            }),
            (Some(files @ 1..), _) => take::<(RelPath, u64, bool, usize)>(bytes)?.map(|((path, size, executable, chunks), after)| {
                self.files = Some(files - 1);
                self.chunks = chunks;
                // What is said may be false, but there are not more chunks than fit; and memory is taken only for those that come. It is
                // taken at once: to move them as they grow would take twice of it.
                let chunks = Vec::with_capacity(chunks.min(MAX_MANIFEST as usize / size_of::<Hash>()));
                self.entries.push(Entry { path, size, executable, chunks });
                after
            }),
            _ => None,
        };
        Ok(after)
    }

    /// The manifest, after its last bytes.
    ///
    /// # Errors
    /// [`Code::BadPackage`] when it is not whole, or not consistent.
    pub fn finish(self) -> Result<Manifest, Failure> {
        if self.files != Some(0) || self.chunks > 0 || !self.pending.is_empty() {
            return Err(bad("it ends too early or has trailing bytes"));
        }
        let manifest = Manifest { entries: self.entries };
        if !manifest.entries.is_sorted_by(|a, b| a.path < b.path) {
            return Err(bad("it is out of order"));
        }
        manifest.check()?;
        Ok(manifest)
    }
}

/// A value from the beginning of these bytes, and what follows it; `None`: it is not whole.
fn take<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<Option<(T, &'a [u8])>, Failure> {
    match postcard::take_from_bytes(bytes) {
        Ok(taken) => Ok(Some(taken)),
        Err(postcard::Error::DeserializeUnexpectedEnd) => Ok(None),
        Err(error) => Err(bad(&format!("it cannot be decoded ({error})"))),
    }
}

/// What is said about a manifest before its bytes travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestSummary {
    /// BLAKE3 of the encoded manifest: the package's identity.
    pub id: Hash,
    /// Length of the encoded manifest in bytes.
    pub encoded_len: u64,
    /// Number of files.
    pub files: u32,
    /// Number of chunks.
    pub chunks: u32,
    /// Total length of the files in bytes.
    pub bytes: u64,
}

/// Where a chunk lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkPlace {
    /// Index into [`Manifest::entries`].
    pub entry: usize,
    /// Offset in that file, in bytes.
    pub offset: u64,
    /// Its length in bytes.
    pub len: u32,
}

impl Manifest {
    /// A manifest of these files.
    ///
    /// # Errors
    /// [`Code::BadPackage`] when two paths collide (also where only case differs, or where one is a folder of the other) or
    /// sizes do not add up.
    pub fn new(mut entries: Vec<Entry>) -> Result<Self, Failure> {
        entries.sort_by(|a, b| a.path.cmp(&b.path));
        let manifest = Manifest { entries };
        manifest.check()?;
        Ok(manifest)
    }

    /// The manifest's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let bytes = Vec::with_capacity(self.encoded_most() as usize);
        postcard::to_extend(self, bytes).expect("a manifest always serialises to memory")
    }

    /// The manifest's bytes in parts of this length, the last one shorter: of a large package, they are never all in memory.
    pub fn encoded_parts(&self, len: usize) -> impl Iterator<Item = Vec<u8>> + '_ {
        let mut parts = EncodedParts { entries: self.entries.iter(), chunks: [].iter(), len: len.max(1), buffer: Vec::new() };
        parts.append(self.entries.len());
        parts
    }

    /// The most bytes that its encoding can have.
    pub fn encoded_most(&self) -> u64 {
        let names: usize = self.entries.iter().map(|entry| entry.path.as_str().len() + 64).sum();
        u64::from(self.chunk_count()) * 36 + names as u64
    }

    /// Reads a manifest and checks it.
    ///
    /// # Errors
    /// [`Code::BadPackage`].
    pub fn decode(bytes: &[u8]) -> Result<Self, Failure> {
        let mut reader = ManifestReader::default();
        bytes.chunks(PART).try_for_each(|part| reader.push(part))?;
        reader.finish()
    }

    /// The summary; encodes it in parts, and keeps none.
    pub fn summarize(&self) -> ManifestSummary {
        let (mut hasher, mut encoded_len) = (blake3::Hasher::new(), 0);
        for part in self.encoded_parts(PART) {
            hasher.update(&part);
            encoded_len += part.len() as u64;
        }
        self.summary_as(Hash(*hasher.finalize().as_bytes()), encoded_len)
    }

    /// The summary, given the encoded bytes.
    pub fn summary(&self, encoded: &[u8]) -> ManifestSummary {
        self.summary_as(Hash::of(encoded), encoded.len() as u64)
    }

    /// The summary, given the hash and the length of the encoded bytes.
    pub fn summary_as(&self, id: Hash, encoded_len: u64) -> ManifestSummary {
        ManifestSummary { id, encoded_len, files: self.entries.len() as u32, chunks: self.chunk_count(), bytes: self.bytes() }
    }

    /// Number of chunks of all files.
    pub fn chunk_count(&self) -> u32 {
        self.entries.iter().map(|entry| entry.chunks.len() as u32).sum()
    }

    /// Total length of all files in bytes.
    pub fn bytes(&self) -> u64 {
        self.entries.iter().map(|entry| entry.size).sum()
    }

    /// All chunks in order, each one's place and hash: the position in this sequence is the chunk index of the wire.
    pub fn places(&self) -> impl Iterator<Item = (ChunkPlace, Hash)> + '_ {
        self.entries.iter().enumerate().flat_map(|(entry, file)| {
            file.chunks.iter().scan(0u64, move |offset, &Chunk { hash, len }| {
                let place = ChunkPlace { entry, offset: *offset, len };
                *offset += u64::from(len);
                Some((place, hash))
            })
        })
    }

    fn check(&self) -> Result<(), Failure> {
        let mut files = HashSet::new();
        let mut folders = HashSet::new();
        let mut chunks = 0u64;
        for entry in &self.entries {
            let path = entry.path.as_str().to_lowercase();
            for (end, _) in path.match_indices('/') {
                folders.insert(path[..end].to_owned());
            }
            if !files.insert(path) {
                return Err(bad(&format!("two files want the name {}", entry.path)));
            }
            let sum: u64 = entry.chunks.iter().map(|chunk| u64::from(chunk.len)).sum();
            if sum != entry.size || entry.chunks.iter().any(|chunk| chunk.len == 0 || chunk.len > MAX_CHUNK) {
                return Err(bad(&format!("the chunks of {} do not add up to it", entry.path)));
            }
            chunks += entry.chunks.len() as u64;
        }
        if let Some(path) = self.entries.iter().find(|entry| folders.contains(&entry.path.as_str().to_lowercase())) {
            return Err(bad(&format!("{} is a file and a folder", path.path)));
        }
        if chunks > u64::from(u32::MAX) {
            return Err(bad("it has too many chunks"));
        }
        Ok(())
    }
}

fn bad(why: &str) -> Failure {
    Failure::new(Code::BadPackage, format!("the list of files is not usable: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entry(path: &str, lens: &[u32]) -> Entry {
        let chunks: Vec<Chunk> = lens.iter().map(|&len| Chunk { hash: Hash::of(path.as_bytes()), len }).collect();
        Entry { path: path.parse().unwrap(), size: lens.iter().map(|&l| u64::from(l)).sum(), executable: false, chunks }
    }

    #[test]
    fn a_manifest_survives_its_encoding() {
        let manifest = Manifest::new(vec![entry("b", &[5, 6]), entry("a/x", &[]), entry("a/y", &[1])]).unwrap();
        assert_eq!(Manifest::decode(&manifest.encode()).unwrap(), manifest);
        let places: Vec<_> = manifest.places().map(|(place, _)| (place.entry, place.offset, place.len)).collect();
        assert_eq!(places, [(1, 0, 1), (2, 0, 5), (2, 5, 6)]);
    }

    #[test]
    fn collisions_and_false_sums_are_refused() {
        for entries in [
            vec![entry("a", &[1]), entry("A", &[1])],
            vec![entry("a", &[1]), entry("a/b", &[1])],
            vec![Entry { size: 9, ..entry("a", &[1]) }],
        ] {
            assert_eq!(Manifest::new(entries).unwrap_err().code, Code::BadPackage);
        }
    }

    #[test]
    fn a_hash_is_hexadecimal_in_json() {
        let json = serde_json::to_string(&Hash([0xab; 32])).unwrap();
        assert_eq!(json, format!("\"{}\"", "ab".repeat(32)));
        assert_eq!(serde_json::from_str::<Hash>(&json).unwrap(), Hash([0xab; 32]));
        assert!(serde_json::from_str::<Hash>("\"éab\"").is_err());
    }

    #[test]
    fn parts_are_what_the_whole_is_however_long_they_are() {
        let lens: Vec<u32> = (1..200).map(|n| n * 1000).collect();
        let manifest = Manifest::new(vec![entry("a", &lens), entry("b/empty", &[]), entry("b/x", &[1, MAX_CHUNK])]).unwrap();
        let encoded = manifest.encode();
        assert_eq!(manifest.summarize(), manifest.summary(&encoded));
        for len in [1, 7, 36, 1000, encoded.len(), PART] {
            let parts: Vec<Vec<u8>> = manifest.encoded_parts(len).collect();
            assert!(parts.concat() == encoded && parts.iter().rev().skip(1).all(|part| part.len() == len), "{len}");
            let mut reader = ManifestReader::default();
            parts.iter().for_each(|part| reader.push(part).unwrap());
            assert!(reader.pending.is_empty() && reader.finish().unwrap() == manifest, "{len}");
        }
        assert_eq!(Manifest::decode(&Manifest::new(Vec::new()).unwrap().encode()).unwrap().entries, []);
    }

    #[test]
    fn what_is_no_whole_manifest_is_refused_and_what_was_read_is_not_kept() {
        let manifest = Manifest::new(vec![entry("a", &[5; 5000]), entry("b", &[1])]).unwrap();
        let encoded = manifest.encode();
        for bytes in
            [&encoded[..encoded.len() - 1], &encoded[..1], &[], &[&encoded[..], b"x"].concat(), &[&encoded[..], &encoded[..]].concat()]
        {
            assert_eq!(Manifest::decode(bytes).unwrap_err().code, Code::BadPackage, "{}", bytes.len());
        }
        let mut reader = ManifestReader::default();
        for part in encoded.chunks(1000) {
            reader.push(part).unwrap();
            assert!(reader.pending.len() < 40, "a part of a chunk at most");
        }
        // A name that never ends: the file's head says that its path has 2⁶³ bytes.
        let mut reader = ManifestReader::default();
        reader.push(&[1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]).unwrap();
        assert_eq!(reader.push(&[b'a'; MAX_HEAD]).unwrap_err().code, Code::BadPackage);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Manifest::decode(&bytes);
        }
    }
}
