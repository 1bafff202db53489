//! Reading chunks back from the disk.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use tokio_util::sync::CancellationToken;

use super::slot::FILES;
use crate::{
    domain::{
        error::{Code, Failure},
        manifest::{ChunkPlace, Hash},
        path::RelPath,
        transfer::ChunkSet,
    },
    runtime::{
        files::{failed, root::Root},
        listing::Listing,
    },
};

/// The most threads that read back.
const MAX_THREADS: usize = 8;
/// Chunks that a thread takes at once: near one another, so that it reads a file from front to back.
const BATCH: usize = 64;

/// Reads chunks of a manifest's files, with the last file kept open.
pub(super) struct ChunkFiles {
    files: Root,
    open: Option<(usize, File)>,
    buf: Vec<u8>,
}

impl ChunkFiles {
    /// Reads below `files`.
    pub(super) fn new(files: Root) -> ChunkFiles {
        ChunkFiles { files, open: None, buf: Vec::new() }
    }

    /// The bytes of a chunk of the file at this path, if the file has them and they have this hash; `None`: it is missing or damaged.
    pub(super) fn read(&mut self, path: &RelPath, place: &ChunkPlace, hash: &Hash) -> io::Result<Option<&[u8]>> {
        let file = match self.open.take() {
            Some((entry, file)) if entry == place.entry => file,
            _ => match open_regular(&self.files, path)? {
                Some(file) => file,
                None => return Ok(None),
            },
        };
        self.buf.resize(place.len as usize, 0);
        let read = file.read_exact_at(&mut self.buf, place.offset);
        self.open = Some((place.entry, file));
        match read {
            Ok(()) => Ok((Hash::of(&self.buf) == *hash).then_some(&self.buf[..])),
            // Also a sector that cannot be read any more.
            Err(error)
                if error.kind() == io::ErrorKind::UnexpectedEof || error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

/// A regular file; `None`: there is none of this name.
pub(super) fn open_regular(root: &Root, path: &RelPath) -> io::Result<Option<File>> {
    match root.open_file(path.as_str()) {
        Ok(file) if file.metadata()?.is_file() => Ok(Some(file)),
        Ok(_) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Which of these chunks are not what they should be, on the disk below `home`; read by several threads.
pub(super) fn find_damaged(home: &Root, listing: &Listing, set: &ChunkSet, cancel: &CancellationToken) -> Result<ChunkSet, Failure> {
    let todo: Vec<u32> = set.iter().collect();
    let next = AtomicUsize::new(0);
    let result = Mutex::new((ChunkSet::new(listing.layout().len()), None::<Failure>));
    let check = || -> Result<(), Failure> {
        let unreadable = |error: io::Error| failed("read back", "the package", &error);
        let mut files = ChunkFiles::new(home.subdir(FILES).map_err(unreadable)?);
        loop {
            let start = next.fetch_add(BATCH, Ordering::Relaxed);
            let Some(batch) = todo.get(start..).filter(|rest| !rest.is_empty() && !cancel.is_cancelled()) else { return Ok(()) };
            for &index in &batch[..batch.len().min(BATCH)] {
                let place = listing.layout().get(index).expect("the set is over the manifest's chunks");
                let (path, hash) = (&listing.heads()[place.entry].path, listing.hash(index)?);
                if files.read(path, &place, &hash).map_err(unreadable)?.is_none() {
                    result.lock().unwrap_or_else(PoisonError::into_inner).0.insert(index);
                }
            }
        }
    };
    let threads = thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS).min(todo.len().div_ceil(BATCH));
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                if let Err(failure) = check() {
                    result.lock().unwrap_or_else(PoisonError::into_inner).1 = Some(failure);
                }
            });
        }
    });
    if cancel.is_cancelled() {
        return Err(Failure::new(Code::JobCancelled, "interrupted while the package was being verified"));
    }
    match result.into_inner().unwrap_or_else(PoisonError::into_inner) {
        (_, Some(failure)) => Err(failure),
        (damaged, None) => Ok(damaged),
    }
}
