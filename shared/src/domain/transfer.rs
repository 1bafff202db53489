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

pub use assembly::{ManifestAssembly, WholeManifest};
pub use chunk_set::{ChunkSet, ChunkSetAssembly, PIECE_CHUNKS, ranges_of};
pub use compression::Compression;
pub use possession::{Challenge, ProofAssembly, ProofKey, TAG, Tag};
pub use receiving::{Accepted, Receiving, WholeChunk};
pub use sending::{Next, Sending};
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

/// Where each chunk of a manifest lies: [`Manifest::places`] with an index, at 8 bytes a chunk.
#[derive(Debug, Clone)]
pub struct Places {
    manifest: Arc<Manifest>,
    /// The index of each entry's first chunk.
    firsts: Vec<u32>,
    /// Each chunk's offset in its file.
    offsets: Vec<u64>,
}

impl Places {
    /// The places of this manifest's chunks.
    pub fn new(manifest: Arc<Manifest>) -> Self {
        let mut firsts = Vec::with_capacity(manifest.entries.len());
        let mut offsets = Vec::with_capacity(manifest.chunk_count() as usize);
        for entry in &manifest.entries {
            firsts.push(offsets.len() as u32);
            let mut offset = 0;
            for chunk in &entry.chunks {
                offsets.push(offset);
                offset += u64::from(chunk.len);
            }
        }
        Places { manifest, firsts, offsets }
    }

    /// The manifest.
    pub fn manifest(&self) -> &Arc<Manifest> {
        &self.manifest
    }

    /// Number of chunks.
    pub fn len(&self) -> u32 {
        self.offsets.len() as u32
    }

    /// Whether there is no chunk at all: an empty manifest, or only empty files.
    pub fn is_empty(&self) -> bool {
        self.offsets.is_empty()
    }

    /// The place of a chunk; `None`: there is no such chunk.
    pub fn get(&self, index: u32) -> Option<ChunkPlace> {
        let offset = *self.offsets.get(index as usize)?;
        let entry = self.firsts.partition_point(|&first| first <= index) - 1;
        let chunk = self.manifest.entries[entry].chunks[(index - self.firsts[entry]) as usize];
        Some(ChunkPlace { entry, offset, chunk })
    }

    /// The indices of an entry's chunks; empty for an empty file.
    pub fn of_entry(&self, entry: usize) -> Range<u32> {
        let end = self.firsts.get(entry + 1).copied().unwrap_or(self.len());
        self.firsts.get(entry).copied().unwrap_or(end)..end
    }

    /// The total length of these chunks in bytes.
    pub fn bytes_of(&self, set: &ChunkSet) -> u64 {
        set.iter().filter_map(|index| self.get(index)).map(|place| u64::from(place.chunk.len)).sum()
    }
}

#[cfg(test)]
mod tests;
