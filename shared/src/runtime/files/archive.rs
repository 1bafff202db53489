//! A zip that the user gave: opened on the sender's side, its entries sent as files, never extracted to disk.
//!
//! The central directory is read once (with the `zip` crate) and checked; entries are then read straight from their place in
//! the file, with a decompressor that can be kept at a position. A zip from a stranger can do no harm: names are
//! [`RelPath`]s, an entry ends at its declared size, entries may not share bytes, links and encrypted entries are refused.

use std::{
    fs::File,
    io::{self, BufReader, Read},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use flate2::{Crc, read::DeflateDecoder};
use zip::{CompressionMethod, ZipArchive, read::ZipFile, result::ZipError};

use super::{Stamp, failed};
use crate::domain::{
    error::{Code, Failure},
    path::RelPath,
};

/// The most entries that a zip may have.
const MAX_ENTRIES: usize = 200_000;

/// An open zip.
#[derive(Debug)]
pub(super) struct Archive {
    path: PathBuf,
    file: Arc<File>,
    pub(super) stamp: Stamp,
    pub(super) entries: Vec<ArchiveEntry>,
}

/// One file in it.
#[derive(Debug)]
pub(super) struct ArchiveEntry {
    pub(super) path: RelPath,
    pub(super) size: u64,
    pub(super) executable: bool,
    pub(super) crc: u32,
    start: u64,
    compressed: u64,
    deflated: bool,
}

impl Archive {
    pub(super) fn open(path: &Path) -> Result<Archive, Failure> {
        let file = File::open(path).map_err(|error| failed("open", path.display(), &error))?;
        let metadata = file.metadata().map_err(|error| failed("read", path.display(), &error))?;
        if !metadata.is_file() {
            return Err(Failure::new(Code::BadFile, format!("{} is not a file", path.display())));
        }
        let file = Arc::new(file);
        let section = Section { file: file.clone(), at: 0, start: 0, end: metadata.len() };
        let mut zip = ZipArchive::new(BufReader::new(section)).map_err(|error| unreadable(path, &error))?;
        let mut archive = Archive { path: path.to_owned(), file, stamp: Stamp::of(&metadata), entries: Vec::new() };
        archive.check_whole(&mut zip)?;
        for index in 0..zip.len() {
            let entry = zip.by_index_raw(index).map_err(|error| unreadable(path, &error))?;
            if let Some(entry) = archive.read_entry(&entry)? {
                archive.entries.push(entry);
            }
        }
        Ok(archive)
    }

    fn check_whole(&self, zip: &mut ZipArchive<BufReader<Section>>) -> Result<(), Failure> {
        if zip.len() > MAX_ENTRIES {
            return Err(self.refused(&format!("it has {} entries; at most {MAX_ENTRIES} are possible", zip.len())));
        }
        if zip.has_duplicate_names() {
            return Err(self.refused("two entries have the same name"));
        }
        if zip.has_overlapping_files().map_err(|error| unreadable(&self.path, &error))? {
            return Err(self.refused("its entries share bytes, as only a zip bomb's do"));
        }
        Ok(())
    }

    /// `None`: nothing to send (a folder, or what macOS adds).
    fn read_entry<R: Read>(&self, entry: &ZipFile<'_, R>) -> Result<Option<ArchiveEntry>, Failure> {
        let name = entry.name().map_err(|error| unreadable(&self.path, &error))?;
        let about = |why: &str| self.refused(&format!("its entry {name:?} {why}"));
        if entry.is_symlink() {
            return Err(about("is a symbolic link; pack the file itself (zip without -y)"));
        }
        if entry.encrypted() {
            return Err(about("is encrypted; pack it without a password"));
        }
        if entry.is_dir() || name.starts_with("__MACOSX/") {
            return Ok(None);
        }
        let deflated = match entry.compression() {
            CompressionMethod::Stored => false,
            CompressionMethod::Deflated => true,
            other => {
                return Err(about(&format!("is compressed with {other}; only \"deflate\" and \"store\" can be read, so pack it again")));
            }
        };
        let path = name.parse::<RelPath>().map_err(|failure| about(&format!("cannot be sent: {}", failure.message)))?;
        if !deflated && entry.size() != entry.compressed_size() {
            return Err(about("is not as long as it says"));
        }
        Ok(Some(ArchiveEntry {
            path,
            size: entry.size(),
            executable: entry.unix_mode().is_some_and(|mode| mode & 0o100 != 0),
            crc: entry.crc32(),
            start: entry.data_start().ok_or_else(|| about("has no data"))?,
            compressed: entry.compressed_size(),
            deflated,
        }))
    }

    /// An entry's content, from its beginning.
    pub(super) fn read(&self, index: usize) -> EntryReader {
        let entry = &self.entries[index];
        let end = entry.start.saturating_add(entry.compressed);
        let section = Section { file: self.file.clone(), at: entry.start, start: entry.start, end };
        let source = if entry.deflated { Content::Deflated(DeflateDecoder::new(section)) } else { Content::Stored(section) };
        EntryReader { source, left: entry.size, crc: Crc::new(), expected: entry.crc }
    }

    fn refused(&self, why: &str) -> Failure {
        Failure::new(Code::BadPackage, format!("{} cannot be sent: {why}", self.path.display()))
    }
}

fn unreadable(path: &Path, error: &ZipError) -> Failure {
    let code = if matches!(error, ZipError::Io(_)) { Code::BadFile } else { Code::BadPackage };
    Failure::new(code, format!("{} is not a zip that can be read ({error}); pack it again", path.display()))
}

/// A stretch of a file with a position of its own.
#[derive(Debug)]
struct Section {
    file: Arc<File>,
    at: u64,
    start: u64,
    end: u64,
}

impl Read for Section {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let len = usize::try_from(self.end.saturating_sub(self.at)).unwrap_or(usize::MAX).min(buf.len());
        let read = self.file.read_at(&mut buf[..len], self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

impl io::Seek for Section {
    fn seek(&mut self, to: io::SeekFrom) -> io::Result<u64> {
        let at = match to {
            io::SeekFrom::Start(at) => self.start.checked_add(at),
            io::SeekFrom::End(by) => self.end.checked_add_signed(by),
            io::SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = at.filter(|&at| at >= self.start).ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at - self.start)
    }
}

enum Content {
    Stored(Section),
    Deflated(DeflateDecoder<Section>),
}

/// An entry's content; ends with an error unless it has exactly the declared size and checksum.
pub(super) struct EntryReader {
    source: Content,
    left: u64,
    crc: Crc,
    expected: u32,
}

impl Read for EntryReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let damaged = |why: &str| io::Error::new(io::ErrorKind::InvalidData, format!("the zip is damaged: an entry {why}"));
        if buf.is_empty() {
            return Ok(0);
        }
        // One byte beyond the declared end is asked for, to see that there is none.
        let len = usize::try_from(self.left).unwrap_or(usize::MAX).min(buf.len()).max(1);
        let read = match &mut self.source {
            Content::Stored(section) => section.read(&mut buf[..len])?,
            Content::Deflated(decoder) => decoder.read(&mut buf[..len]).map_err(|error| match error.kind() {
                io::ErrorKind::InvalidInput => damaged("cannot be decompressed"),
                _ => error,
            })?,
        };
        match (read, self.left) {
            (0, 0) if self.crc.sum() == self.expected => {}
            (0, 0) => return Err(damaged("has another checksum than it says")),
            (0, _) => return Err(damaged("is shorter than it says")),
            (_, 0) => return Err(damaged("is longer than it says")),
            _ => {}
        }
        self.crc.update(&buf[..read]);
        self.left -= read as u64;
        Ok(read)
    }
}
