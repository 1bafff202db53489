//! What a package or a job's results consist of: files, their chunks, and the hash that names the whole.
//!
//! A manifest is encoded with `postcard` (a stable, documented wire format); its BLAKE3 is the package's identity.
//! Chunk boundaries come from FastCDC (`shared::runtime::files`), so that an edit changes only the chunks around it.

use std::{collections::HashSet, fmt};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{SeqAccess, Visitor},
};

use super::{
    error::{Code, Failure},
    id::hex,
    path::RelPath,
};

/// The longest chunk, in bytes.
pub const MAX_CHUNK: u32 = 256 * 1024;
/// The longest encoded manifest accepted, in bytes (about 300 GB of chunks).
pub const MAX_MANIFEST: u64 = 128 * 1024 * 1024;

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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Where it belongs.
    pub path: RelPath,
    /// Its length in bytes: the sum of its chunks'.
    pub size: u64,
    /// Whether it is executable; no other mode bit travels.
    pub executable: bool,
    /// Its chunks, in order; none for an empty file.
    #[serde(deserialize_with = "read_chunks")]
    pub chunks: Vec<Chunk>,
}

/// All files of a package, sorted by path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The files.
    pub entries: Vec<Entry>,
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
    /// The chunk.
    pub chunk: Chunk,
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
        let (manifest, rest) =
            postcard::take_from_bytes::<Manifest>(bytes).map_err(|error| bad(&format!("it cannot be decoded ({error})")))?;
        if !rest.is_empty() || !manifest.entries.is_sorted_by(|a, b| a.path < b.path) {
            return Err(bad("it has trailing bytes or is out of order"));
        }
        manifest.check()?;
        Ok(manifest)
    }

    /// The summary, given the encoded bytes.
    pub fn summary(&self, encoded: &[u8]) -> ManifestSummary {
        ManifestSummary {
            id: Hash::of(encoded),
            encoded_len: encoded.len() as u64,
            files: self.entries.len() as u32,
            chunks: self.chunk_count(),
            bytes: self.bytes(),
        }
    }

    /// Number of chunks of all files.
    pub fn chunk_count(&self) -> u32 {
        self.entries.iter().map(|entry| entry.chunks.len() as u32).sum()
    }

    /// Total length of all files in bytes.
    pub fn bytes(&self) -> u64 {
        self.entries.iter().map(|entry| entry.size).sum()
    }

    /// All chunks in order: the position in this sequence is the chunk index of the wire.
    pub fn places(&self) -> impl Iterator<Item = ChunkPlace> + '_ {
        self.entries.iter().enumerate().flat_map(|(entry, file)| {
            file.chunks.iter().scan(0u64, move |offset, &chunk| {
                let place = ChunkPlace { entry, offset: *offset, chunk };
                *offset += u64::from(chunk.len);
                Some(place)
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

/// A file's chunks, with their place taken at once: to move them as they grow would take twice the memory.
fn read_chunks<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Chunk>, D::Error> {
    struct Chunks;

    impl<'de> Visitor<'de> for Chunks {
        type Value = Vec<Chunk>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a file's chunks")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Vec<Chunk>, A::Error> {
            // What is said may be false, but there are not more chunks than fit; and memory is taken only for those that come.
            let said = sequence.size_hint().unwrap_or(0).min(MAX_MANIFEST as usize / size_of::<Hash>());
            let mut chunks = Vec::with_capacity(said);
            while let Some(chunk) = sequence.next_element()? {
                chunks.push(chunk);
            }
            Ok(chunks)
        }
    }

    deserializer.deserialize_seq(Chunks)
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
        let places: Vec<_> = manifest.places().map(|p| (p.entry, p.offset, p.chunk.len)).collect();
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

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Manifest::decode(&bytes);
        }
    }
}
