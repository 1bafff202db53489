//! The receiver's side of a transfer.
//!
//! ```text
//!   missing ──pieces, verified──► handed out ──stored──► stored
//!      ▲                                                   │
//!      └──────────────── damaged on disk ──────────────────┘
//! ```

use std::{collections::HashMap, mem, sync::Arc};

use bytes::{Bytes, BytesMut};

use super::{BULK_CONNECTIONS, ChunkSet, Layout, Progress};
use crate::domain::{
    error::{Code, Failure},
    frame::{FrameHeader, FrameKind},
    manifest::{ChunkPlace, Hash},
};

/// After this many damaged chunks the sender is not believed any more.
const STRIKES: u32 = 3;
/// So many good chunks in a row make one damaged chunk forgotten: on 20 GB a rare bit flip is no reason to give up.
const FORGIVEN_AFTER: u32 = 1000;
/// At most so many connections may be within a chunk at once; each holds up to one chunk in memory. One more ends the transfer, so there is room for
/// lost ones that this side has not noticed yet.
pub const MAX_CONNECTIONS: usize = BULK_CONNECTIONS as usize + 32;

/// A chunk's bytes, all of them.
#[derive(Clone, PartialEq, Eq)]
pub struct WholeChunk {
    /// Its index.
    pub index: u32,
    /// Where it belongs.
    pub place: ChunkPlace,
    /// It.
    pub bytes: Bytes,
}

impl std::fmt::Debug for WholeChunk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WholeChunk").field("index", &self.index).field("place", &self.place).finish_non_exhaustive()
    }
}

/// What a piece led to.
#[derive(Debug, PartialEq, Eq)]
pub enum Accepted {
    /// The chunk is not whole yet.
    More,
    /// The chunk is whole: see whether it is what it should be with [`Receiving::verify`].
    Whole(WholeChunk),
    /// The chunk is whole and compressed: decompress it, and verify it then. What cannot be decompressed is as good as empty.
    Compressed(WholeChunk),
    /// The chunk has its hash: write it, and say [`Receiving::stored`] once it is durable.
    Verified(WholeChunk),
    /// The chunk arrived damaged: ask for it again.
    Corrupt(u32),
    /// The chunk was here already (its connection was lost after it arrived): nothing to do. It may be acked again only if
    /// [`Receiving::is_stored`]; otherwise its ack comes with its group.
    Known(u32),
}

#[derive(Debug)]
struct Assembly {
    index: u32,
    place: ChunkPlace,
    /// How long it is on its way: less than the chunk when it is compressed.
    len: u32,
    received: u32,
    /// Empty for a chunk that is here already.
    bytes: Content,
}

/// The pieces of a chunk so far.
#[derive(Debug)]
enum Content {
    /// As it came: nothing is copied where it is all.
    One(Bytes),
    Several(BytesMut),
}

impl Content {
    fn push(&mut self, piece: Bytes, len: usize) {
        match self {
            Content::One(none) if none.is_empty() => *none = piece,
            Content::One(first) => {
                let mut several = BytesMut::with_capacity(len);
                several.extend_from_slice(first);
                several.extend_from_slice(&piece);
                *self = Content::Several(several);
            }
            Content::Several(several) => several.extend_from_slice(&piece),
        }
    }

    fn whole(&mut self) -> Bytes {
        match mem::replace(self, Content::One(Bytes::new())) {
            Content::One(bytes) => bytes,
            Content::Several(bytes) => bytes.freeze(),
        }
    }
}

/// Which chunks are missing, and the chunks that are just arriving.
#[derive(Debug)]
pub struct Receiving {
    layout: Arc<Layout>,
    missing: ChunkSet,
    handed: ChunkSet,
    /// Every chunk that was ever asked for: what may arrive.
    asked: ChunkSet,
    assemblies: HashMap<u32, Assembly>,
    strikes: u32,
    good_in_a_row: u32,
    progress: Progress,
}

impl Receiving {
    /// Receives what is not `present` (a set over the same manifest).
    pub fn new(layout: Arc<Layout>, present: &ChunkSet) -> Self {
        debug_assert_eq!(layout.len(), present.len(), "the set belongs to the manifest");
        let missing = present.complement();
        let progress = Progress { total_bytes: layout.bytes(), needed_bytes: layout.bytes_of(&missing), ..Progress::default() };
        Receiving {
            asked: missing.clone(),
            handed: ChunkSet::new(missing.len()),
            missing,
            assemblies: HashMap::new(),
            strikes: 0,
            good_in_a_row: 0,
            progress,
            layout,
        }
    }

    /// What to ask for: the chunks that have not arrived.
    pub fn needed(&self) -> &ChunkSet {
        &self.missing
    }

    /// Takes a piece that arrived on a connection. Within a connection the pieces of a chunk follow one another.
    ///
    /// # Errors
    /// [`Code::InvalidRequest`] for a piece that was not asked for, is out of order or out of bounds; [`Code::NotAuthentic`]
    /// when too many chunks were damaged. The transfer is over then.
    pub fn accept_piece(&mut self, connection: u32, header: FrameHeader, piece: Bytes) -> Result<Accepted, Failure> {
        let (index, compressed) = match header.kind {
            FrameKind::Chunk(index) => (index, None),
            FrameKind::Compressed { index, len } => (index, Some(len)),
            FrameKind::Manifest | FrameKind::Probe | FrameKind::Proof => return Err(refused("it belongs to no chunk")),
        };
        let mut assembly = match self.assemblies.remove(&connection) {
            Some(assembly) if assembly.index == index && compressed.unwrap_or(assembly.place.len) == assembly.len => assembly,
            Some(_) => return Err(refused("it begins a chunk before the last one ended")),
            None => self.begin(index, compressed)?,
        };
        let received = assembly.received as usize + piece.len();
        if header.offset != assembly.received || piece.is_empty() || received > assembly.len as usize {
            return Err(refused("it is out of order or out of bounds"));
        }
        if self.missing.contains(index) {
            assembly.bytes.push(piece, assembly.len as usize);
        }
        assembly.received = received as u32;
        if assembly.received < assembly.len {
            self.assemblies.insert(connection, assembly);
            return Ok(Accepted::More);
        }
        self.complete(assembly)
    }

    /// A connection is gone, and the chunk it was bringing.
    pub fn connection_lost(&mut self, connection: u32) {
        self.assemblies.remove(&connection);
    }

    /// A chunk that was handed out is durable; `false`: it was not handed out.
    pub fn stored(&mut self, index: u32) -> bool {
        let was = self.handed.remove(index);
        if was {
            self.progress.in_flight -= self.len_of(index);
            self.progress.acked_bytes += self.len_of(index);
        }
        was
    }

    /// Whether a chunk is durable.
    pub fn is_stored(&self, index: u32) -> bool {
        index < self.missing.len() && !self.missing.contains(index) && !self.handed.contains(index)
    }

    /// Chunks that were thought present turned out to be damaged on disk: they are missing again.
    pub fn damaged(&mut self, set: &ChunkSet) {
        for index in set.iter().filter(|&index| !self.handed.contains(index)) {
            if !self.missing.insert(index) {
                continue;
            }
            if self.asked.insert(index) {
                self.progress.needed_bytes += self.len_of(index);
            } else {
                self.progress.acked_bytes -= self.len_of(index);
            }
        }
    }

    /// Whether every chunk of the manifest is durable.
    pub fn is_complete(&self) -> bool {
        self.missing.is_empty() && self.handed.is_empty()
    }

    /// How far it is.
    pub fn progress(&self) -> Progress {
        self.progress
    }

    fn begin(&self, index: u32, compressed: Option<u32>) -> Result<Assembly, Failure> {
        let place = self.layout.get(index).filter(|_| self.asked.contains(index)).ok_or_else(|| refused("nobody asked for its chunk"))?;
        if self.assemblies.len() >= MAX_CONNECTIONS {
            return Err(refused("too many connections bring chunks at once"));
        }
        let len = compressed.unwrap_or(place.len);
        if compressed.is_some_and(|len| len == 0 || len >= place.len) {
            return Err(refused("compressed, it would not be shorter"));
        }
        Ok(Assembly { index, place, len, received: 0, bytes: Content::One(Bytes::new()) })
    }

    fn complete(&self, assembly: Assembly) -> Result<Accepted, Failure> {
        let Assembly { index, place, len, mut bytes, .. } = assembly;
        let bytes = bytes.whole();
        // It may have arrived on another connection while this one was bringing it, or been lost while this copy was skipped.
        if !self.missing.contains(index) || bytes.len() != len as usize {
            return Ok(if self.missing.contains(index) { Accepted::Corrupt(index) } else { Accepted::Known(index) });
        }
        let chunk = WholeChunk { index, place, bytes };
        Ok(if len < place.len { Accepted::Compressed(chunk) } else { Accepted::Whole(chunk) })
    }

    /// Compares a whole chunk with the hash that it should have.
    ///
    /// # Errors
    /// [`Code::NotAuthentic`] when too many chunks were damaged. The transfer is over then.
    pub fn verify(&mut self, chunk: WholeChunk, hash: &Hash) -> Result<Accepted, Failure> {
        let WholeChunk { index, place, bytes } = chunk;
        if !self.missing.contains(index) {
            return Ok(Accepted::Known(index));
        }
        if Hash::of(&bytes) != *hash {
            return self.strike(index);
        }
        self.good_in_a_row += 1;
        if self.good_in_a_row == FORGIVEN_AFTER {
            self.good_in_a_row = 0;
            self.strikes = self.strikes.saturating_sub(1);
        }
        self.missing.remove(index);
        self.handed.insert(index);
        self.progress.in_flight += u64::from(place.len);
        Ok(Accepted::Verified(WholeChunk { index, place, bytes }))
    }

    fn strike(&mut self, index: u32) -> Result<Accepted, Failure> {
        self.strikes += 1;
        self.good_in_a_row = 0;
        if self.strikes < STRIKES {
            return Ok(Accepted::Corrupt(index));
        }
        let message = format!(
            "{STRIKES} chunks arrived damaged although the connection is encrypted: the sender's memory, disk or program is at fault; \
             run the command again, and check that machine if it happens again"
        );
        Err(Failure::new(Code::NotAuthentic, message))
    }

    fn len_of(&self, index: u32) -> u64 {
        self.layout.len_of(index)
    }
}

fn refused(why: &str) -> Failure {
    Failure::new(Code::InvalidRequest, format!("a piece of a chunk is not acceptable: {why}"))
}
