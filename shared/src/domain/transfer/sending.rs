//! The sender's side of a transfer.
//!
//! ```text
//!   queued ──take, given──► in flight ──acked──► acked
//!      ▲                         │                  │
//!      └───── connection lost, asked again ─────────┘
//! ```

use std::{collections::BTreeMap, sync::Arc};

use super::{ChunkSet, Layout, Progress};
use crate::domain::{
    error::{Code, Failure},
    manifest::{ChunkPlace, MAX_CHUNK},
};

/// How many chunks may be under way, however small they are.
const MAX_IN_FLIGHT: usize = 4096;

/// What may be un-acked for each connection, in bytes: a chunk on its way and one that is being written.
const EACH: u64 = MAX_CHUNK as u64;

/// How many bytes may be un-acked: at `least` what the receiver allows; more on a fat path; and enough for all connections, since where many share a
/// slow path, each takes seconds for a chunk and the others would wait. Never more than `most`.
pub fn unacked(least: u64, bandwidth_delay: u64, connections: usize, most: u64) -> u64 {
    least.max(3 * bandwidth_delay).max(EACH * connections as u64).min(most)
}

/// What a connection should do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Send this chunk: its index and where it lies.
    Chunk(u32, ChunkPlace),
    /// The window is full: ask again after an ack.
    Wait,
    /// Nothing is left to send; chunks may still be under way, and come back if their connection is lost.
    AllSent,
}

/// Which chunks to send, on which connection, and when.
#[derive(Debug)]
pub struct Sending {
    layout: Arc<Layout>,
    needed: ChunkSet,
    queued: ChunkSet,
    /// No queued chunk lies before it.
    cursor: u32,
    /// Chunks under way and the connection each was given to; `None`: being read.
    flight: BTreeMap<u32, Option<u32>>,
    /// Every chunk that was ever given out: what may be acked.
    sent: ChunkSet,
    acked: ChunkSet,
    /// What arrived damaged, or was damaged on the receiver's disk.
    asked_again: ChunkSet,
    window: u64,
    progress: Progress,
}

impl Sending {
    /// Sends the chunks that are `needed`, at most `window` bytes of them un-acked (and at least one chunk's worth).
    ///
    /// # Errors
    /// [`Code::InvalidRequest`] when the set belongs to another manifest.
    pub fn new(layout: Arc<Layout>, needed: ChunkSet, window: u64) -> Result<Self, Failure> {
        check_len(&layout, &needed)?;
        let empty = ChunkSet::new(layout.len());
        let progress = Progress { total_bytes: layout.bytes(), needed_bytes: layout.bytes_of(&needed), ..Progress::default() };
        Ok(Sending {
            queued: needed.clone(),
            needed,
            cursor: 0,
            flight: BTreeMap::new(),
            sent: empty.clone(),
            asked_again: empty.clone(),
            acked: empty,
            window: window.max(u64::from(MAX_CHUNK)),
            progress,
            layout,
        })
    }

    /// What to send next, on a connection that is found once it has been read. Chunks go out in order, so that files are read from
    /// front to back.
    pub fn take(&mut self) -> Next {
        let Some((index, place)) = self.queued.next(self.cursor).and_then(|index| Some((index, self.layout.get(index)?))) else {
            return Next::AllSent;
        };
        self.cursor = index;
        let len = u64::from(place.len);
        if self.progress.in_flight + len > self.window || self.flight.len() >= MAX_IN_FLIGHT {
            return Next::Wait;
        }
        self.queued.remove(index);
        self.sent.insert(index);
        self.flight.insert(index, None);
        self.progress.in_flight += len;
        Next::Chunk(index, place)
    }

    /// A chunk that was taken goes out on this connection; `false`: it need not go any more.
    pub fn given(&mut self, index: u32, connection: u32) -> bool {
        let len = self.len_of(index);
        match self.flight.get_mut(&index) {
            Some(on @ None) => {
                *on = Some(connection);
                self.progress.sent_bytes += len;
                true
            }
            _ => false,
        }
    }

    /// [`Sending::take`] and [`Sending::given`] in one.
    pub fn next(&mut self, connection: u32) -> Next {
        let next = self.take();
        if let Next::Chunk(index, _) = next {
            self.given(index, connection);
        }
        next
    }

    /// Whether the receiver has said of this chunk that it arrived damaged: then it is worth a second look before it goes again.
    pub fn is_asked_again(&self, index: u32) -> bool {
        self.asked_again.contains(index)
    }

    /// Chunks are verified and on the receiver's disk; they are not sent again.
    ///
    /// # Errors
    /// [`Code::InvalidRequest`] for ranges that are out of order or name a chunk that was never sent. Nothing has changed then.
    pub fn acked(&mut self, ranges: &[(u32, u32)]) -> Result<(), Failure> {
        let refused = |why: &str| Err(Failure::new(Code::InvalidRequest, format!("an acknowledgement is not acceptable: {why}")));
        let ordered = ranges.iter().all(|(first, last)| first <= last) && ranges.windows(2).all(|pair| pair[0].1 < pair[1].0);
        if !ordered || ranges.last().is_some_and(|&(_, last)| last >= self.layout.len()) {
            return refused("its ranges are out of order or out of bounds");
        }
        if ranges.iter().flat_map(|&(first, last)| first..=last).any(|index| !self.sent.contains(index)) {
            return refused("it names a chunk that was never sent");
        }
        for index in ranges.iter().flat_map(|&(first, last)| first..=last) {
            self.land(index);
            // It may have been put back when its connection was lost; it had arrived all the same.
            self.queued.remove(index);
            if self.acked.insert(index) {
                self.progress.acked_bytes += self.len_of(index);
            }
        }
        Ok(())
    }

    /// The receiver lacks these (too): they arrived damaged, or were damaged on its disk. They are sent (again).
    ///
    /// # Errors
    /// [`Code::InvalidRequest`] when the set belongs to another manifest.
    pub fn asked_again(&mut self, set: &ChunkSet) -> Result<(), Failure> {
        check_len(&self.layout, set)?;
        for index in set.iter() {
            self.land(index);
            self.asked_again.insert(index);
            let len = self.len_of(index);
            if self.acked.remove(index) {
                self.progress.acked_bytes -= len;
            }
            if self.needed.insert(index) {
                self.progress.needed_bytes += len;
            }
            self.queue(index);
        }
        Ok(())
    }

    /// A connection is gone: what it carried un-acked is sent again, on another.
    pub fn connection_lost(&mut self, connection: u32) {
        let lost: Vec<u32> = self.flight.iter().filter(|(_, on)| **on == Some(connection)).map(|(&index, _)| index).collect();
        for index in lost {
            self.land(index);
            self.queue(index);
        }
    }

    /// Whether chunks that were given to this connection are under way.
    pub fn is_carrying(&self, connection: u32) -> bool {
        self.flight.values().any(|&on| on == Some(connection))
    }

    /// How many bytes may be un-acked from now on.
    pub fn set_window(&mut self, window: u64) {
        self.window = window.max(u64::from(MAX_CHUNK));
    }

    /// How far it is.
    pub fn progress(&self) -> Progress {
        self.progress
    }

    /// Whether everything needed is on the receiver's disk.
    pub fn is_complete(&self) -> bool {
        self.queued.is_empty() && self.flight.is_empty() && self.acked.count() == self.needed.count()
    }

    fn len_of(&self, index: u32) -> u64 {
        self.layout.len_of(index)
    }

    /// The chunk is no longer under way.
    fn land(&mut self, index: u32) {
        if self.flight.remove(&index).is_some() {
            self.progress.in_flight -= self.len_of(index);
        }
    }

    fn queue(&mut self, index: u32) {
        self.queued.insert(index);
        self.cursor = self.cursor.min(index);
    }
}

fn check_len(layout: &Layout, set: &ChunkSet) -> Result<(), Failure> {
    if set.len() == layout.len() {
        return Ok(());
    }
    Err(Failure::new(Code::InvalidRequest, "the list of missing chunks belongs to another package"))
}
