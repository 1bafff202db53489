//! A source's bytes, chunk by chunk, as a transfer asks for them.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::FileExt,
    sync::Arc,
};

use super::{Origin, Source, Stamp, archive::EntryReader, failed};
use crate::domain::{
    error::{Code, Failure},
    manifest::{ChunkPlace, Hash, Manifest},
};

/// Reads chunks. Cheapest in order: a zip's entry is decompressed from its beginning when asked for what lies before.
pub struct ChunkReader {
    source: Arc<Source>,
    manifest: Arc<Manifest>,
    /// The entry that was read last, open.
    open: Option<(usize, Open)>,
}

enum Open {
    File(File),
    /// A zip's entry and where in it the reader is.
    Zipped(Box<EntryReader>, u64),
}

impl ChunkReader {
    pub(super) fn new(source: Arc<Source>, manifest: Arc<Manifest>) -> Result<ChunkReader, Failure> {
        let same = source.items.len() == manifest.entries.len()
            && source.items.iter().zip(&manifest.entries).all(|(item, entry)| item.path == entry.path && item.size == entry.size);
        if !same {
            return Err(Failure::new(Code::Internal, "the list of files belongs to another source"));
        }
        Ok(ChunkReader { source, manifest, open: None })
    }

    /// Another reader of the same.
    pub fn fork(&self) -> ChunkReader {
        ChunkReader { source: self.source.clone(), manifest: self.manifest.clone(), open: None }
    }

    /// The manifest whose chunks it reads.
    pub fn manifest(&self) -> &Arc<Manifest> {
        &self.manifest
    }

    /// Fills the pieces, one after the other, with a chunk's bytes; together they are as long as the chunk.
    ///
    /// A file whose stamp is still that of the scan is taken at its word, for the receiver checks each chunk's hash anyway; with
    /// `check`, or where the stamp says nothing, the hash is checked here.
    ///
    /// # Errors
    /// [`Code::BadFile`] when the file cannot be read, or is no longer what the scan saw.
    pub fn read(&mut self, place: ChunkPlace, pieces: &mut [&mut [u8]], check: bool) -> Result<(), Failure> {
        debug_assert_eq!(pieces.iter().map(|piece| piece.len()).sum::<usize>(), place.chunk.len as usize);
        let source = self.source.clone();
        let Some(item) = source.items.get(place.entry) else {
            return Err(Failure::new(Code::Internal, "the list of files belongs to another source"));
        };
        match self.read_at(place, pieces) {
            Ok(unchanged) if (unchanged && !check) || hash_of(pieces) == place.chunk.hash => Ok(()),
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
    fn read_at(&mut self, place: ChunkPlace, pieces: &mut [&mut [u8]]) -> io::Result<bool> {
        let item = &self.source.items[place.entry];
        let open = match self.open.take() {
            Some((entry, Open::File(file))) if entry == place.entry => Open::File(file),
            Some((entry, Open::Zipped(reader, at))) if entry == place.entry && at <= place.offset => Open::Zipped(reader, at),
            _ => match &item.origin {
                Origin::Zipped(archive, index) => Open::Zipped(Box::new(archive.read(*index)), 0),
                _ => Open::File(item.open_file()?),
            },
        };
        let mut offset = place.offset;
        let (open, unchanged) = match open {
            Open::File(file) => {
                for piece in pieces {
                    file.read_exact_at(piece, offset)?;
                    offset += piece.len() as u64;
                }
                let unchanged = Stamp::of(&file.metadata()?) == item.stamp;
                (Open::File(file), unchanged)
            }
            Open::Zipped(mut reader, at) => {
                let gap = place.offset - at;
                if io::copy(&mut reader.by_ref().take(gap), &mut io::sink())? != gap {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                for piece in pieces {
                    reader.read_exact(piece)?;
                    offset += piece.len() as u64;
                }
                (Open::Zipped(reader, offset), false)
            }
        };
        self.open = Some((place.entry, open));
        Ok(unchanged)
    }
}

fn hash_of(pieces: &[&mut [u8]]) -> Hash {
    let mut hasher = blake3::Hasher::new();
    for piece in pieces {
        hasher.update(piece);
    }
    Hash(*hasher.finalize().as_bytes())
}

impl std::fmt::Debug for ChunkReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChunkReader").field("open", &self.open.as_ref().map(|(entry, _)| entry)).finish_non_exhaustive()
    }
}
