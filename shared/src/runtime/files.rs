//! The sender's side of a transfer's files. Everything here blocks: call it where blocking is allowed.
//!
//! * [`Source`]: what to send: a folder, some files, the entries of a zip, or several of these together
//! * [`Source::scan`]: cut and hash it all, on several cores → the [`Manifest`](crate::domain::manifest::Manifest); a [`ScanCache`] spares unchanged files
//! * [`Source::reader`]: the bytes of one chunk after the other, of a file that is still what the scan saw
//!
//! No file is ever held in memory. A source is opened below its folder (module `root`), so that whoever can write there (a job's
//! trainer) cannot make us read anything else.

mod archive;
mod cache;
mod cut;
mod reader;
pub(crate) mod root;
mod scan;
mod walk;

use std::{
    fmt::Display,
    fs::{self, File, Metadata},
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

pub use cache::ScanCache;
#[cfg(test)]
pub(crate) use cut::tests::noise;
pub use reader::ChunkReader;
pub(crate) use walk::WORK_FOLDER;

use self::{archive::Archive, root::Root};
use super::listing::Listing;
use crate::domain::{
    error::{Code, Failure},
    manifest::Hash,
    path::RelPath,
};

/// What to send: files, each with its name in the package, sorted by it.
#[derive(Debug)]
pub struct Source {
    items: Vec<Item>,
    /// What the user named, for the cache.
    named: Vec<PathBuf>,
    cache: Option<ScanCache>,
}

#[derive(Debug)]
struct Item {
    path: RelPath,
    size: u64,
    executable: bool,
    origin: Origin,
    stamp: Stamp,
}

#[derive(Debug)]
enum Origin {
    /// A file that the user named.
    Named(PathBuf),
    /// A file below a folder.
    Below(Arc<Root>, PathBuf),
    /// An entry of a zip.
    Zipped(Arc<Archive>, usize),
}

/// What tells that a file is still the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
    /// Of a zip's entry: its index and checksum.
    entry: Option<(u32, u32)>,
}

impl Stamp {
    fn of(metadata: &Metadata) -> Stamp {
        Stamp {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            entry: None,
        }
    }
}

impl Source {
    /// All files below a folder, under their paths in it. Links are followed where they stay below it.
    ///
    /// # Errors
    /// [`Code::BadFile`] with the file and what to do about it.
    pub fn folder(path: &Path) -> Result<Source, Failure> {
        let opened = |error: io::Error| failed("open the folder", path.display(), &error);
        let real = fs::canonicalize(path).map_err(opened)?;
        let root = Arc::new(Root::open(&real).map_err(opened)?);
        let items = walk::walk(&real)?.into_iter().map(|found| Item {
            path: found.path,
            size: found.metadata.len(),
            executable: found.metadata.mode() & 0o100 != 0,
            stamp: Stamp::of(&found.metadata),
            origin: Origin::Below(root.clone(), found.real),
        });
        Source::of(items.collect(), vec![real])
    }

    /// Files that the user named, each with the path that it gets in the package. Links are followed.
    ///
    /// # Errors
    /// [`Code::BadFile`] when one cannot be read, [`Code::BadPackage`] when two want the same path.
    pub fn files(files: Vec<(PathBuf, RelPath)>) -> Result<Source, Failure> {
        let mut items = Vec::with_capacity(files.len());
        let mut named = Vec::with_capacity(files.len());
        for (at, path) in files {
            let metadata = fs::metadata(&at).map_err(|error| failed("open", at.display(), &error))?;
            items.push(Item::new(path, &metadata, Origin::Named(at.clone()))?);
            named.push(at);
        }
        Source::of(items, named)
    }

    /// Some files below a folder, under their paths in it; no links at all. For folders that others can write to.
    ///
    /// # Errors
    /// As [`Source::files`].
    pub fn files_below(folder: &Path, paths: Vec<RelPath>) -> Result<Source, Failure> {
        let root = Arc::new(Root::open(folder).map_err(|error| failed("open the folder", folder.display(), &error))?);
        let mut items = Vec::with_capacity(paths.len());
        for path in paths {
            let opened = |error: io::Error| failed("open", folder.join(path.as_str()).display(), &error);
            let metadata = root.open_file(path.as_str()).and_then(|file| file.metadata()).map_err(opened)?;
            let origin = Origin::Below(root.clone(), PathBuf::from(path.as_str()));
            items.push(Item::new(path, &metadata, origin)?);
        }
        Source::of(items, vec![folder.to_owned()])
    }

    /// The entries of a zip, under their paths in it (a common top folder stays).
    ///
    /// # Errors
    /// [`Code::BadFile`] when it cannot be read, [`Code::BadPackage`] with the entry that cannot be sent and why.
    pub fn zip(path: &Path) -> Result<Source, Failure> {
        let archive = Arc::new(Archive::open(path)?);
        let items = archive.entries.iter().enumerate().map(|(index, entry)| Item {
            path: entry.path.clone(),
            size: entry.size,
            executable: entry.executable,
            stamp: Stamp { entry: Some((index as u32, entry.crc)), size: entry.size, ..archive.stamp },
            origin: Origin::Zipped(archive.clone(), index),
        });
        Source::of(items.collect(), vec![path.to_owned()])
    }

    /// This and another, together.
    ///
    /// # Errors
    /// [`Code::BadPackage`] when both have a file of the same path.
    pub fn and(self, other: Source) -> Result<Source, Failure> {
        let (mut items, mut named) = (self.items, self.named);
        items.extend(other.items);
        named.extend(other.named);
        Ok(Source { cache: self.cache.or(other.cache), ..Source::of(items, named)? })
    }

    /// With a cache of earlier scans.
    pub fn with_cache(mut self, cache: ScanCache) -> Source {
        self.cache = Some(cache);
        self
    }

    /// The files, sorted by path, with their lengths in bytes.
    pub fn items(&self) -> impl Iterator<Item = (&RelPath, u64)> {
        self.items.iter().map(|item| (&item.path, item.size))
    }

    /// Total length in bytes.
    pub fn bytes(&self) -> u64 {
        self.items.iter().fold(0, |sum, item| sum.saturating_add(item.size))
    }

    /// The content of a small file of it, a configuration for instance; `None`: there is none of this path.
    ///
    /// # Errors
    /// [`Code::TooLarge`] when it has more than `limit` bytes, [`Code::BadFile`] when it cannot be read.
    pub fn read_small(&self, path: &RelPath, limit: u64) -> Result<Option<Vec<u8>>, Failure> {
        let Ok(at) = self.items.binary_search_by(|item| item.path.cmp(path)) else { return Ok(None) };
        let item = &self.items[at];
        if item.size > limit {
            return Err(Failure::new(
                Code::TooLarge,
                format!("{path} has {} bytes; at most {limit} are expected of such a file", item.size),
            ));
        }
        let mut bytes = Vec::with_capacity(item.size as usize);
        let read = item.open().and_then(|reader| reader.take(limit + 1).read_to_end(&mut bytes));
        read.map_err(|error| failed("read", path, &error))?;
        if bytes.len() as u64 != item.size {
            return Err(item.changed());
        }
        Ok(Some(bytes))
    }

    /// Reads chunks of it by their places in the manifest that [`Source::scan`] made.
    ///
    /// # Errors
    /// [`Code::Internal`] when the listing is of another source.
    pub fn reader(self: &Arc<Self>, listing: Arc<Listing>) -> Result<ChunkReader, Failure> {
        ChunkReader::new(self.clone(), listing)
    }

    fn of(mut items: Vec<Item>, named: Vec<PathBuf>) -> Result<Source, Failure> {
        items.sort_by(|a, b| a.path.cmp(&b.path));
        if let Some(pair) = items.windows(2).find(|pair| pair[0].path == pair[1].path) {
            return Err(Failure::new(Code::BadPackage, format!("two files want the name {} in the package", pair[0].path)));
        }
        Ok(Source { items, named, cache: None })
    }

    /// What its cached scan is kept under.
    fn cache_key(&self) -> Hash {
        let mut named: Vec<&[u8]> = self.named.iter().map(|path| path.as_os_str().as_encoded_bytes()).collect();
        named.sort_unstable();
        Hash::of(&named.join(&b"\0"[..]))
    }
}

impl Item {
    fn new(path: RelPath, metadata: &Metadata, origin: Origin) -> Result<Item, Failure> {
        if !metadata.is_file() {
            return Err(Failure::new(Code::BadFile, format!("{path} is not a file; give a file, or the whole folder")));
        }
        let (size, executable) = (metadata.len(), metadata.mode() & 0o100 != 0);
        Ok(Item { path, size, executable, stamp: Stamp::of(metadata), origin })
    }

    /// Its content, from the beginning.
    fn open(&self) -> io::Result<Box<dyn Read + '_>> {
        match &self.origin {
            Origin::Zipped(archive, index) => Ok(Box::new(archive.read(*index))),
            _ => Ok(Box::new(self.open_file()?)),
        }
    }

    /// The file that it is; for a zip's entry there is none.
    fn open_file(&self) -> io::Result<File> {
        let file = match &self.origin {
            Origin::Named(path) => File::open(path)?,
            Origin::Below(root, rel) => root.open_file(rel)?,
            Origin::Zipped(..) => return Err(io::ErrorKind::Unsupported.into()),
        };
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no longer a file"));
        }
        Ok(file)
    }

    fn changed(&self) -> Failure {
        Failure::new(Code::BadFile, format!("{} changed while it was being sent; run the command again", self.path))
    }
}

/// A failed operation on a local file as a [`Failure`]: [`Code::NoSpace`] for a full disk, [`Code::BadFile`] otherwise.
pub(crate) fn failed(doing: &str, what: impl Display, error: &io::Error) -> Failure {
    use rustix::io::Errno;
    let errno = Errno::from_io_error(error);
    let message = match errno {
        Some(Errno::NOSPC | Errno::DQUOT | Errno::FBIG) => {
            let message =
                format!("cannot {doing} {what}: the disk is full ({error}); what has arrived is kept, so free space and try again");
            return Failure::new(Code::NoSpace, message);
        }
        Some(Errno::LOOP | Errno::NOTDIR | Errno::XDEV) => {
            format!("cannot {doing} {what}: there is a symbolic link, or a file in place of a folder, on the way ({error})")
        }
        _ => format!("cannot {doing} {what}: {error}"),
    };
    Failure::new(Code::BadFile, message)
}

#[cfg(test)]
mod tests;
