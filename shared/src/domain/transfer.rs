//! A transfer without its I/O: what to send next, what has arrived, what is still missing.
//!
//! * [`ChunkSet`]: some of a manifest's chunks, as a bitmap; what `FILE_NEED` and `FILE_ACK` carry
//! * [`Sending`]: the sender's side: chunks in order, over as many bulk connections as there are, within a window
//! * [`Compression`]: whether compressing the chunks pays
//! * [`Receiving`]: the receiver's side: pieces → verified chunks, and what to ask for again
//! * [`ManifestAssembly`]: pieces → a verified manifest
//! * [`Windows`]: how many bytes each bulk connection may have under way
//! * [`Challenge`], [`ProofKey`]: the proof that a sender has a chunk's bytes and not only its hash
//! * [`Places`]: where each chunk of a manifest lies, by its index
//!
//! Both sides are driven: they hold no socket, no file and no clock. What a connection loses is sent again; what is durable
//! at the receiver never is.

mod assembly;
mod chunk_set;
mod compression;
mod possession;
mod receiving;
mod sending;
mod window;

use std::{ops::Range, sync::Arc};

pub use assembly::ManifestAssembly;
pub use chunk_set::{ChunkSet, ChunkSetAssembly, PIECE_CHUNKS, ranges_of};
pub use compression::Compression;
pub use possession::{Challenge, ProofAssembly, ProofKey, TAG, Tag};
pub use receiving::{Accepted, MAX_CONNECTIONS, Receiving, WholeChunk};
pub use sending::{Next, Sending, unacked};
pub use window::Windows;

use super::manifest::{Chunk, ChunkPlace, Manifest};

/// How far a transfer has come, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// All files of the manifest.
    pub total_bytes: u64,
    /// What had to travel, the rest was there already.
    pub needed_bytes: u64,
    /// What of that is verified and on the receiver's disk.
    pub acked_bytes: u64,
    /// What is under way: sent and not acked, or verified and not yet on disk.
    pub in_flight: u64,
    /// What was given to a connection, each time it was; always 0 at the receiver.
    pub sent_bytes: u64,
}

/// The most bulk connections that a sender uses.
pub const BULK_CONNECTIONS: u32 = 96;

/// Of a file's chunks, every so many have their offset noted; from there it is counted on.
const NOTED: usize = 64;

/// Where each chunk of a manifest lies: [`Manifest::places`] with an index, which takes a few bytes a file and next to nothing a chunk.
#[derive(Debug, Clone)]
pub struct Places {
    manifest: Arc<Manifest>,
    len: u32,
    /// Of each entry: the index of its first chunk, and the number of offsets that are noted before it.
    firsts: Vec<(u32, u32)>,
    /// The offsets of each file's chunks [`NOTED`], 2 × [`NOTED`], …
    noted: Vec<u64>,
}

impl Places {
    /// The places of this manifest's chunks.
    pub fn new(manifest: Arc<Manifest>) -> Self {
        let mut firsts = Vec::with_capacity(manifest.entries.len());
        let (mut len, mut noted) = (0, Vec::new());
        for entry in &manifest.entries {
            firsts.push((len, noted.len() as u32));
            len += entry.chunks.len() as u32;
            let mut offset = 0;
            for run in entry.chunks.chunks_exact(NOTED) {
                offset += length_of(run);
                noted.push(offset);
            }
        }
        Places { manifest, len, firsts, noted }
    }

    /// The manifest.
    pub fn manifest(&self) -> &Arc<Manifest> {
        &self.manifest
    }

    /// Number of chunks.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether there is no chunk at all: an empty manifest, or only empty files.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The place of a chunk; `None`: there is no such chunk.
    pub fn get(&self, index: u32) -> Option<ChunkPlace> {
        let (entry, at) = self.find(index)?;
        let chunks = &self.manifest.entries[entry].chunks;
        let run = at / NOTED;
        let noted = if run > 0 { self.noted[self.firsts[entry].1 as usize + run - 1] } else { 0 };
        Some(ChunkPlace { entry, offset: noted + length_of(&chunks[run * NOTED..at]), chunk: chunks[at] })
    }

    /// The length of a chunk in bytes; 0: there is no such chunk.
    pub fn len_of(&self, index: u32) -> u64 {
        self.find(index).map_or(0, |(entry, at)| u64::from(self.manifest.entries[entry].chunks[at].len))
    }

    /// The indices of an entry's chunks; empty for an empty file.
    pub fn of_entry(&self, entry: usize) -> Range<u32> {
        let end = self.firsts.get(entry + 1).map_or(self.len, |&(first, _)| first);
        self.firsts.get(entry).map_or(end, |&(first, _)| first)..end
    }

    /// The total length of these chunks in bytes.
    pub fn bytes_of(&self, set: &ChunkSet) -> u64 {
        set.iter().map(|index| self.len_of(index)).sum()
    }

    /// A chunk's entry, and which chunk of it it is.
    fn find(&self, index: u32) -> Option<(usize, usize)> {
        if index >= self.len {
            return None;
        }
        let entry = self.firsts.partition_point(|&(first, _)| first <= index) - 1;
        Some((entry, (index - self.firsts[entry].0) as usize))
    }
}

fn length_of(chunks: &[Chunk]) -> u64 {
    chunks.iter().map(|chunk| u64::from(chunk.len)).sum()
}

#[cfg(test)]
mod tests;
