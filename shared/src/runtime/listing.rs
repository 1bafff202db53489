//! What a transfer's files consist of: their manifest, encoded, and the hash of each chunk.
//!
//! Of a large package that is long, and all else that a transfer has in memory is bounded. Hardly any of it is needed at once: a sender
//! gives it away at the beginning, and each chunk's hash is looked at when it is that chunk's turn. So a long one waits in a temporary
//! file without a name, and only lengths stay in memory.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    os::unix::fs::FileExt,
    path::Path,
    sync::Arc,
};

use super::files::failed;
use crate::domain::{
    error::Failure,
    manifest::{Hash, Head, Manifest, ManifestReader, ManifestSummary, PART},
    transfer::Layout,
};

/// What is longer goes to the disk, in bytes: the list of 8 GB or so.
const IN_MEMORY: u64 = 1024 * 1024;

/// A manifest as a transfer needs it.
#[derive(Debug)]
pub struct Listing {
    summary: ManifestSummary,
    layout: Arc<Layout>,
    heads: Vec<Head>,
    /// The manifest's encoding, and behind it the hashes of all chunks in order.
    content: Content,
}

#[derive(Debug)]
enum Content {
    Memory(Vec<u8>),
    File(File),
}

impl Listing {
    /// Of this manifest. A long one goes to a temporary file in `dir`, which is made when it is missing; where that is not possible, it
    /// stays in memory.
    pub fn new(manifest: &Manifest, dir: &Path) -> Listing {
        Listing::with(manifest, dir, IN_MEMORY)
    }

    /// Of a manifest that is not long.
    #[cfg(test)]
    pub(crate) fn in_memory(manifest: &Manifest) -> Arc<Listing> {
        Arc::new(Listing::with(manifest, Path::new(""), u64::MAX))
    }

    fn with(manifest: &Manifest, dir: &Path, in_memory: u64) -> Listing {
        let most = manifest.encoded_most() + u64::from(manifest.chunk_count()) * size_of::<Hash>() as u64;
        let on_disk = if most > in_memory { write_file(manifest, dir).inspect_err(|error| stays_in_memory(dir, error)).ok() } else { None };
        let (summary, content) = on_disk.unwrap_or_else(|| {
            let mut bytes = Vec::with_capacity(most as usize);
            let summary = write(manifest, &mut bytes).expect("memory takes everything");
            (summary, Content::Memory(bytes))
        });
        let heads = manifest.entries.iter().map(Head::from).collect();
        Listing { summary, layout: Arc::new(Layout::new(manifest)), heads, content }
    }

    /// What is said of it beforehand.
    pub fn summary(&self) -> ManifestSummary {
        self.summary
    }

    /// Where its chunks lie.
    pub fn layout(&self) -> &Arc<Layout> {
        &self.layout
    }

    /// Its files, as in [`Manifest::entries`].
    pub fn heads(&self) -> &[Head] {
        &self.heads
    }

    /// The whole manifest, in memory. Blocks where it is on the disk.
    ///
    /// # Errors
    /// As [`Listing::encoded`].
    pub fn manifest(&self) -> Result<Manifest, Failure> {
        let mut reader = ManifestReader::default();
        for from in (0..self.summary.encoded_len).step_by(PART) {
            reader.push(&self.encoded(from, PART)?)?;
        }
        reader.finish()
    }

    /// So much of the manifest's encoding from there on, in bytes; less at its end, and nothing behind it. Blocks where it is on the disk.
    ///
    /// # Errors
    /// [`Code::BadFile`](crate::domain::error::Code::BadFile) when it cannot be read back.
    pub fn encoded(&self, from: u64, len: usize) -> Result<Vec<u8>, Failure> {
        let len = self.summary.encoded_len.saturating_sub(from).min(len as u64);
        let mut bytes = vec![0; len as usize];
        self.read(&mut bytes, from)?;
        Ok(bytes)
    }

    /// The hash of a chunk of the layout. Blocks where it is on the disk.
    ///
    /// # Errors
    /// As [`Listing::encoded`].
    pub fn hash(&self, index: u32) -> Result<Hash, Failure> {
        let mut hash = Hash([0; 32]);
        self.read(&mut hash.0, self.summary.encoded_len + u64::from(index) * size_of::<Hash>() as u64)?;
        Ok(hash)
    }

    fn read(&self, into: &mut [u8], from: u64) -> Result<(), Failure> {
        let read = match &self.content {
            Content::Memory(bytes) => usize::try_from(from)
                .ok()
                .and_then(|from| bytes.get(from..)?.get(..into.len()))
                .map(|bytes| into.copy_from_slice(bytes))
                .ok_or_else(|| io::ErrorKind::UnexpectedEof.into()),
            Content::File(file) => file.read_exact_at(into, from),
        };
        read.map_err(|error| failed("read back", "the list of files", &error))
    }
}

fn write_file(manifest: &Manifest, dir: &Path) -> io::Result<(ManifestSummary, Content)> {
    fs::create_dir_all(dir)?;
    let mut file = BufWriter::with_capacity(PART, tempfile::tempfile_in(dir)?);
    let summary = write(manifest, &mut file)?;
    Ok((summary, Content::File(file.into_inner().map_err(io::IntoInnerError::into_error)?)))
}

fn write(manifest: &Manifest, out: &mut impl Write) -> io::Result<ManifestSummary> {
    let (mut hasher, mut encoded_len) = (blake3::Hasher::new(), 0);
    for part in manifest.encoded_parts(PART) {
        hasher.update(&part);
        encoded_len += part.len() as u64;
        out.write_all(&part)?;
    }
    for (_, hash) in manifest.places() {
        out.write_all(&hash.0)?;
    }
    Ok(manifest.summary_as(Hash(*hasher.finalize().as_bytes()), encoded_len))
}

fn stays_in_memory(dir: &Path, error: &io::Error) {
    tracing::debug!(%error, dir = %dir.display(), "the list of files stays in memory");
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{
        domain::{
            error::Code,
            manifest::{Chunk, Entry},
        },
        runtime::files::noise,
    };

    fn manifest() -> Manifest {
        let entry = |path: &str, lens: &[u32]| Entry {
            path: path.parse().unwrap(),
            size: lens.iter().map(|&len| u64::from(len)).sum(),
            executable: false,
            chunks: lens.iter().map(|&len| Chunk { hash: Hash::of(&noise(u64::from(len), 9)), len }).collect(),
        };
        let lens: Vec<u32> = (1..5000).collect();
        Manifest::new(vec![entry("a", &lens), entry("b", &[]), entry("c", &[7, 8])]).unwrap()
    }

    #[test]
    fn a_listing_says_what_its_manifest_does_in_memory_and_on_the_disk() {
        let (manifest, dir) = (manifest(), tempfile::tempdir().unwrap());
        let folder = dir.path().join("made");
        let not_a_folder = dir.path().join("file");
        fs::write(&not_a_folder, "").unwrap();
        for (dir, in_memory, on_disk) in [(&folder, u64::MAX, false), (&folder, 0, true), (&not_a_folder, 0, false)] {
            let listing = Listing::with(&manifest, dir, in_memory);
            assert_eq!(matches!(listing.content, Content::File(_)), on_disk);
            assert_eq!((listing.summary(), listing.manifest().unwrap()), (manifest.summarize(), manifest.clone()));
            assert!(listing.heads().iter().eq(&manifest.entries.iter().map(Head::from).collect::<Vec<_>>()));
            assert_eq!(listing.layout().len(), manifest.chunk_count());
            assert!(manifest.places().enumerate().all(|(index, (place, hash))| {
                listing.layout().get(index as u32) == Some(place) && listing.hash(index as u32).unwrap() == hash
            }));
            for len in [1000, PART, usize::MAX] {
                let mut encoded = Vec::new();
                while let part @ [_, ..] = &listing.encoded(encoded.len() as u64, len).unwrap()[..] {
                    encoded.extend_from_slice(part);
                }
                assert!(encoded == manifest.encode(), "{len}");
            }
            assert_eq!(listing.hash(manifest.chunk_count()).unwrap_err().code, Code::BadFile);
        }
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0, "what is on the disk has no name");
    }
}
