//! What a partial package does to the disk: two operations, so that a test can be a disk that loses what was not synced.

use std::{
    collections::VecDeque,
    fs::File,
    io,
    os::unix::fs::FileExt,
    sync::{Arc, Mutex, PoisonError},
};

use crate::runtime::{files::root::Root, listing::Listing};

use super::slot::{FILES, LOG};

/// So many files are kept open.
const OPEN_FILES: usize = 64;
/// More files than these are synced together, with their file system.
pub(super) const SYNC_ONE_BY_ONE: usize = 32;

/// A file of a partial package.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum FileId {
    /// The log of durable chunks.
    Log,
    /// The file of this entry.
    Entry(usize),
}

/// Where a partial package is written.
pub(super) trait Medium: Send + Sync {
    /// Writes bytes into a file; durable only after [`Medium::sync`].
    fn write_at(&self, file: FileId, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Makes what was written into these files durable.
    fn sync(&self, files: &[FileId]) -> io::Result<()>;
}

/// The real disk.
#[derive(Debug)]
pub(super) struct Disk {
    listing: Arc<Listing>,
    home: Root,
    /// The latest last.
    open: Mutex<VecDeque<(FileId, Arc<File>)>>,
}

impl Disk {
    pub(super) fn new(home: Root, listing: Arc<Listing>) -> Disk {
        Disk { listing, home, open: Mutex::default() }
    }

    fn file(&self, id: FileId) -> io::Result<Arc<File>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        // Chunks come in order: the wanted file is nearly always the last.
        if let Some(at) = open.iter().rposition(|(other, _)| *other == id) {
            return Ok(open[at].1.clone());
        }
        let file = Arc::new(match id {
            FileId::Log => self.home.open_to_write(LOG, false)?,
            FileId::Entry(entry) => {
                let head = &self.listing.heads()[entry];
                self.home.open_to_write(format!("{FILES}/{}", head.path), head.executable)?
            }
        });
        if open.len() >= OPEN_FILES {
            open.pop_front();
        }
        open.push_back((id, file.clone()));
        Ok(file)
    }
}

impl Medium for Disk {
    fn write_at(&self, file: FileId, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file(file)?.write_all_at(bytes, offset)
    }

    fn sync(&self, files: &[FileId]) -> io::Result<()> {
        if files.len() > SYNC_ONE_BY_ONE && self.home.sync_file_system()? {
            return Ok(());
        }
        files.iter().try_for_each(|&file| self.file(file)?.sync_data())
    }
}
