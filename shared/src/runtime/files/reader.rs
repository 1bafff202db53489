//! A source's bytes, chunk by chunk, as a transfer asks for them.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::FileExt,
    sync::Arc,
};

use rustix::{buffer::spare_capacity, io::Errno};

use super::{Origin, Source, Stamp, archive::EntryReader, failed};
use crate::{
    domain::{
        error::{Code, Failure},
        manifest::{ChunkPlace, Hash},
    },
    runtime::listing::Listing,
};

/// Reads chunks. Cheapest in order: a zip's entry is decompressed from its beginning when asked for what lies before.
pub struct ChunkReader {
    source: Arc<Source>,
    listing: Arc<Listing>,
    /// The entry that was read last, open.
    open: Option<(usize, Open)>,
}

enum Open {
    File(File),
    /// A zip's entry and where in it the reader is.
    Zipped(Box<EntryReader>, u64),
}

impl ChunkReader {
    pub(super) fn new(source: Arc<Source>, listing: Arc<Listing>) -> Result<ChunkReader, Failure> {
        let heads = listing.heads().iter().map(|head| (&head.path, head.size));
        let same = source.items.iter().map(|item| (&item.path, item.size)).eq(heads);
        if !same {
            return Err(Failure::new(Code::Internal, "the list of files belongs to another source"));
        }
        Ok(ChunkReader { source, listing, open: None })
    }

    /// Another reader of the same.
    pub fn fork(&self) -> ChunkReader {
        ChunkReader { source: self.source.clone(), listing: self.listing.clone(), open: None }
    }

    /// Appends the bytes of a chunk of this index, at this place.
    ///
    /// A file whose stamp is still that of the scan is taken at its word, for the receiver checks each chunk's hash anyway; with
    /// `check`, or where the stamp says nothing, the hash is checked here.
    ///
    /// # Errors
    /// [`Code::BadFile`] when the file cannot be read, or is no longer what the scan saw.
    pub fn read(&mut self, index: u32, place: ChunkPlace, into: &mut Vec<u8>, check: bool) -> Result<(), Failure> {
        let start = into.len();
        let source = self.source.clone();
        let Some(item) = source.items.get(place.entry) else {
            return Err(Failure::new(Code::Internal, "the list of files belongs to another source"));
        };
        match self.read_at(place, into) {
            Ok(unchanged) if (unchanged && !check) || Hash::of(&into[start..]) == self.listing.hash(index)? => Ok(()),
            // Damage in a zip was excluded by the scan, so it is a change as well.
            Err(error) if !matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData) => {
                self.open = None;
                Err(failed("read", &item.path, &error))
            }
            Ok(_) | Err(_) => {
                self.open = None;
                if let Some(cache) = &source.cache {
                    cache.forget(&source.cache_key());
                }
                Err(item.changed())
            }
        }
    }

    /// Whether the file is certainly what it was.
    fn read_at(&mut self, place: ChunkPlace, into: &mut Vec<u8>) -> io::Result<bool> {
        let item = &self.source.items[place.entry];
        let open = match self.open.take() {
            Some((entry, Open::File(file))) if entry == place.entry => Open::File(file),
            Some((entry, Open::Zipped(reader, at))) if entry == place.entry && at <= place.offset => Open::Zipped(reader, at),
            _ => match &item.origin {
                Origin::Zipped(archive, index) => Open::Zipped(Box::new(archive.read(*index)), 0),
                _ => Open::File(item.open_file()?),
            },
        };
        let len = place.len as usize;
        let (open, unchanged) = match open {
            Open::File(file) => {
                append(&file, place.offset, len, into)?;
                let unchanged = Stamp::of(&file.metadata()?) == item.stamp;
                (Open::File(file), unchanged)
            }
            Open::Zipped(mut reader, at) => {
                let gap = place.offset - at;
                if io::copy(&mut reader.by_ref().take(gap), &mut io::sink())? != gap {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                if reader.by_ref().take(len as u64).read_to_end(into)? != len {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                (Open::Zipped(reader, place.offset + len as u64), false)
            }
        };
        self.open = Some((place.entry, open));
        Ok(unchanged)
    }
}

/// Appends so many bytes of a file. A buffer that has room for just these is not cleared first.
fn append(file: &File, mut offset: u64, len: usize, into: &mut Vec<u8>) -> io::Result<()> {
    let end = into.len() + len;
    into.reserve_exact(len);
    if into.capacity() != end {
        let start = into.len();
        into.resize(end, 0);
        return file.read_exact_at(&mut into[start..], offset);
    }
    while into.len() < end {
        match rustix::io::pread(file, spare_capacity(into), offset) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => offset += read as u64,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

impl std::fmt::Debug for ChunkReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChunkReader").field("open", &self.open.as_ref().map(|(entry, _)| entry)).finish_non_exhaustive()
    }
}
