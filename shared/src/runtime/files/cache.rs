//! What earlier scans found, so that the same command run again does not read 5 GB again.
//!
//! One file a source: the chunks of each of its files, under the file's stamp (device, inode, size, times in
//! nanoseconds). A cache that cannot be read or written costs time and nothing else.

use std::{
    collections::HashMap,
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

use super::Stamp;
use crate::domain::{
    id::hex,
    manifest::{Chunk, Hash, MAX_CHUNK, PART},
};

/// Changes with the format and with the parameters of the chunks.
const MAGIC: &[u8] = b"webrtc-connect scan 3\n";
/// So many sources are remembered; the longest unused goes first.
const MAX_SOURCES: usize = 64;
/// The longest cache file that is read.
const MAX_LEN: u64 = 512 * 1024 * 1024;

/// A directory with the results of earlier scans.
#[derive(Debug, Clone)]
pub struct ScanCache {
    dir: PathBuf,
    /// A file that changed so short before a scan might change again within the clock's same tick, unnoticed.
    settle: Duration,
}

#[derive(Deserialize)]
struct Record {
    stamp: Stamp,
    chunks: Vec<Chunk>,
}

/// A [`Record`] to be written.
#[derive(Serialize)]
struct Described<'a> {
    stamp: Stamp,
    chunks: &'a [Chunk],
}

impl ScanCache {
    /// The cache in this directory, which is made when it is first needed.
    pub fn new(dir: impl Into<PathBuf>) -> ScanCache {
        ScanCache { dir: dir.into(), settle: Duration::from_secs(2) }
    }

    /// A cache that trusts files however young they are.
    #[cfg(test)]
    pub(super) fn trusting(dir: impl Into<PathBuf>) -> ScanCache {
        ScanCache { settle: Duration::ZERO, ..ScanCache::new(dir) }
    }

    pub(super) fn load(&self, key: &Hash) -> HashMap<Stamp, Vec<Chunk>> {
        let path = self.path(key);
        match read(&path) {
            Ok(records) => {
                // So that it counts as used. Failing that, it goes a little earlier.
                let _ = fs::File::open(&path).and_then(|file| file.set_modified(SystemTime::now()));
                records
            }
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::debug!(%error, path = %path.display(), "a cached scan is not usable");
                }
                HashMap::new()
            }
        }
    }

    /// Keeps what a scan found that began at `begun`, but for files that were changed just before.
    pub(super) fn save<'a>(&self, key: &Hash, described: impl Iterator<Item = (Stamp, &'a [Chunk])>, begun: SystemTime) {
        let begun = begun.checked_sub(self.settle).and_then(|time| time.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
        let settled = (begun.as_secs() as i64, i64::from(begun.subsec_nanos()));
        let trusted = |stamp: &Stamp| self.settle.is_zero() || (stamp.modified < settled && stamp.changed < settled);
        let records: Vec<_> = described.filter(|(stamp, _)| trusted(stamp)).map(|(stamp, chunks)| Described { stamp, chunks }).collect();
        if let Err(error) = self.write(key, &records) {
            tracing::debug!(%error, dir = %self.dir.display(), "the scan is not cached");
        }
    }

    /// Forgets a source: what it says has turned out wrong.
    pub(super) fn forget(&self, key: &Hash) {
        if let Err(error) = fs::remove_file(self.path(key)) {
            tracing::debug!(%error, "no cached scan to forget");
        }
    }

    fn write(&self, key: &Hash, records: &[Described]) -> io::Result<()> {
        fs::create_dir_all(&self.dir)?;
        let path = self.path(key);
        // Two programs may scan at once; each writes its own file, and the last one stays.
        let fresh = path.with_extension(format!("{}.new", std::process::id()));
        let out = Checked::new(fs::File::create(&fresh)?);
        postcard::to_extend(records, out).map_err(io::Error::other)?.finish()?;
        fs::rename(&fresh, &path)?;
        self.prune()
    }

    fn prune(&self) -> io::Result<()> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            files.push((entry.metadata()?.modified()?, entry.path()));
        }
        files.sort();
        for (_, path) in files.iter().take(files.len().saturating_sub(MAX_SOURCES)) {
            fs::remove_file(path)?;
        }
        Ok(())
    }

    fn path(&self, key: &Hash) -> PathBuf {
        self.dir.join(format!("{}.scan", hex(&key.0[..16])))
    }
}

/// A file that begins with [`MAGIC`] and ends with the hash of all that is in it, written in parts: with many chunks it is long.
struct Checked {
    file: fs::File,
    hasher: blake3::Hasher,
    part: Vec<u8>,
    written: io::Result<()>,
}

impl Checked {
    fn new(file: fs::File) -> Checked {
        Checked { file, hasher: blake3::Hasher::new(), part: MAGIC.to_vec(), written: Ok(()) }
    }

    fn flush(&mut self) {
        self.hasher.update(&self.part);
        if self.written.is_ok() {
            self.written = self.file.write_all(&self.part);
        }
        self.part.clear();
    }

    fn finish(mut self) -> io::Result<()> {
        self.flush();
        self.written?;
        self.file.write_all(self.hasher.finalize().as_bytes())
    }
}

impl Extend<u8> for Checked {
    fn extend<T: IntoIterator<Item = u8>>(&mut self, bytes: T) {
        self.part.extend(bytes);
        if self.part.len() >= PART {
            self.flush();
        }
    }
}

fn read(path: &Path) -> io::Result<HashMap<Stamp, Vec<Chunk>>> {
    let damaged = || io::Error::new(io::ErrorKind::InvalidData, "it is damaged or of another version");
    if fs::metadata(path)?.len() > MAX_LEN {
        return Err(damaged());
    }
    let bytes = fs::read(path)?;
    let (body, check) = bytes.split_last_chunk::<32>().ok_or_else(damaged)?;
    if Hash::of(body).0 != *check {
        return Err(damaged());
    }
    let body = body.strip_prefix(MAGIC).ok_or_else(damaged)?;
    let records: Vec<Record> = postcard::from_bytes(body).map_err(|_| damaged())?;
    let mut known = HashMap::with_capacity(records.len());
    for Record { stamp, chunks } in records {
        let size: u64 = chunks.iter().map(|chunk| u64::from(chunk.len)).sum();
        if size != stamp.size || chunks.iter().any(|chunk| chunk.len == 0 || chunk.len > MAX_CHUNK) {
            return Err(damaged());
        }
        known.insert(stamp, chunks);
    }
    Ok(known)
}
