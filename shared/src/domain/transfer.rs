//! A transfer without its I/O: what to send next, what has arrived, what is still missing.
//!
//! * [`ChunkSet`]: some of a manifest's chunks, as a bitmap; what `FILE_NEED` and `FILE_ACK` carry
//! * [`Sending`]: the sender's side: chunks in order, over as many bulk connections as there are, within a window
//! * [`Compression`]: whether compressing the chunks pays
//! * [`Receiving`]: the receiver's side: pieces → verified chunks, and what to ask for again
//! * [`ManifestAssembly`]: pieces → a verified manifest
//! * [`Windows`]: how many bytes each bulk connection may have under way
//! * [`Challenge`], [`ProofKey`]: the proof that a sender has a chunk's bytes and not only its hash
//! * [`Layout`]: where each chunk of a manifest lies, by its index
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

use std::ops::Range;

pub use assembly::ManifestAssembly;
pub use chunk_set::{ChunkSet, ChunkSetAssembly, PIECE_CHUNKS, ranges_of};
pub use compression::Compression;
pub use possession::{Challenge, ProofAssembly, ProofKey, TAG, Tag};
pub use receiving::{Accepted, MAX_CONNECTIONS, Receiving, WholeChunk};
pub use sending::{Next, Sending, unacked};
pub use window::Windows;

use super::manifest::{ChunkPlace, Manifest};

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

/// How long each chunk of a manifest is, and so where it lies: a ninth of what the manifest takes, and enough for most of a transfer.
#[derive(Debug, Clone)]
pub struct Layout {
    /// Of each chunk, in bytes.
    lens: Vec<u32>,
    /// Of each entry: the index of its first chunk, and the number of offsets that are noted before it.
    firsts: Vec<(u32, u32)>,
    /// The offsets of each file's chunks [`NOTED`], 2 × [`NOTED`], …
    noted: Vec<u64>,
    bytes: u64,
}

impl Layout {
    /// That of this manifest's chunks.
    pub fn new(manifest: &Manifest) -> Self {
        let mut lens = Vec::with_capacity(manifest.chunk_count() as usize);
        let mut firsts = Vec::with_capacity(manifest.entries.len());
        let mut noted = Vec::new();
        for entry in &manifest.entries {
            firsts.push((lens.len() as u32, noted.len() as u32));
            let first = lens.len();
            lens.extend(entry.chunks.iter().map(|chunk| chunk.len));
            let mut offset = 0;
            for run in lens[first..].chunks_exact(NOTED) {
                offset += sum(run);
                noted.push(offset);
            }
        }
        Layout { lens, firsts, noted, bytes: manifest.bytes() }
    }

    /// Number of chunks.
    pub fn len(&self) -> u32 {
        self.lens.len() as u32
    }

    /// Whether there is no chunk at all: an empty manifest, or only empty files.
    pub fn is_empty(&self) -> bool {
        self.lens.is_empty()
    }

    /// Total length of all files in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The place of a chunk; `None`: there is no such chunk.
    pub fn get(&self, index: u32) -> Option<ChunkPlace> {
        let len = *self.lens.get(index as usize)?;
        let entry = self.firsts.partition_point(|&(first, _)| first <= index) - 1;
        let (first, noted) = self.firsts[entry];
        let (run, after) = ((index - first) as usize / NOTED, (index - first) as usize % NOTED);
        let before = if run > 0 { self.noted[noted as usize + run - 1] } else { 0 };
        let index = index as usize;
        Some(ChunkPlace { entry, offset: before + sum(&self.lens[index - after..index]), len })
    }

    /// The length of a chunk in bytes; 0: there is no such chunk.
    pub fn len_of(&self, index: u32) -> u64 {
        self.lens.get(index as usize).map_or(0, |&len| u64::from(len))
    }

    /// The indices of an entry's chunks; empty for an empty file.
    pub fn of_entry(&self, entry: usize) -> Range<u32> {
        let end = self.firsts.get(entry + 1).map_or(self.len(), |&(first, _)| first);
        self.firsts.get(entry).map_or(end, |&(first, _)| first)..end
    }

    /// The total length of these chunks in bytes.
    pub fn bytes_of(&self, set: &ChunkSet) -> u64 {
        set.iter().map(|index| self.len_of(index)).sum()
    }
}

fn sum(lens: &[u32]) -> u64 {
    lens.iter().map(|&len| u64::from(len)).sum()
}

#[cfg(test)]
mod tests;
