//! The receiving side of a transfer: one blocking thread from frame to disk, and one that syncs while the first goes on.

use std::{
    sync::mpsc::SyncSender,
    thread,
    time::{Duration, Instant},
};

use tokio::{
    runtime::Handle,
    sync::{mpsc, watch},
};
use tokio_util::sync::CancellationToken;

use super::{
    StepPort, control_lost,
    feed::Decompressor,
    pool::{Inbound, Pool},
    proof::Question,
};
use crate::{
    domain::{
        error::{Code, Failure},
        frame::{FrameHeader, FrameKind, HEADER, MAX_PIECE},
        manifest::Manifest,
        message::{FileAck, FileEnd, FileMeta, FileNeed, FileReady, FileRefused, Step, TransferId},
        transfer::{Accepted, ChunkSet, ManifestAssembly, PIECE_CHUNKS, Progress, Receiving, WholeChunk, ranges_of},
    },
    runtime::store::{Begun, Finished, PackageDir, Partial},
};

/// Bytes that a sender may have under way unacknowledged: what a crash can cost, and what waits in memory where the disk is slower than the path.
pub const WINDOW: u64 = 10 << 20;
/// Group commit: chunks are synced together when this much has been written …
const SYNC_BYTES: u64 = 3 << 20;
/// … or the oldest of them has waited this long.
const SYNC_AFTER: Duration = Duration::from_millis(50);
/// Ranges in one acknowledgement; far below the message limit.
const ACK_RANGES: usize = 2000;

/// Receives one announced transfer into the place that was begun for it (blocking preflight and all: see
/// [`Store::begin`](crate::runtime::store::Store::begin)).
///
/// # Errors
/// What the place refuses, what the sender refuses, or [`Code::NoConnection`] when the control connection ends. Everything that was
/// acknowledged stays.
pub async fn receive(
    meta: FileMeta,
    begun: Begun,
    pool: &Pool,
    steps: StepPort,
    progress: watch::Sender<Progress>,
) -> Result<PackageDir, Failure> {
    let StepPort { tx, mut rx } = steps;
    let transfer = meta.transfer;
    let inbound = pool.route(transfer);
    let (end_tx, ends) = mpsc::channel(4);
    let ready =
        FileReady { transfer, manifest_wanted: matches!(begun, Begun::New(_)), window: WINDOW, zstd: true, piece: MAX_PIECE as u32 };
    tx.send(Step::Ready(ready)).await.map_err(|_| control_lost())?;
    let stop = CancellationToken::new();
    let _stop_with_us = stop.clone().drop_guard();
    let writer = Writer { meta, steps: tx.clone(), inbound, ends, synced: mpsc::channel(1).1, progress, stop, runtime: Handle::current() };
    let mut writing = tokio::task::spawn_blocking(move || writer.run(begun));
    let result = loop {
        tokio::select! {
            done = &mut writing => {
                break done.unwrap_or_else(|error| Err(Failure::new(Code::Internal, format!("the writing thread ended unexpectedly: {error}"))));
            }
            step = rx.recv() => {
                let input = match step {
                    Some(Step::End(end)) => Input::End(end),
                    Some(Step::Refused(FileRefused { failure, .. })) => Input::Failed(failure),
                    Some(_) => Input::Failed(Failure::new(Code::InvalidRequest, "the other side sent a step of the transfer out of order")),
                    None => {
                        // The thread sees the closed queue, keeps what it has, and ends.
                        drop(end_tx);
                        break writing.await.unwrap_or_else(|_| Err(control_lost()));
                    }
                };
                let _ = end_tx.try_send(input);
            }
        }
    };
    if let Err(failure) = &result
        && failure.code != Code::NoConnection
    {
        let _ = tx.send(Step::Refused(FileRefused { transfer, failure: failure.clone() })).await;
    }
    result
}

enum Input {
    Inbound(Inbound),
    End(FileEnd),
    Failed(Failure),
    /// Time to sync.
    Due,
    /// A group is durable.
    Synced(Result<Vec<u32>, Failure>),
}

struct Writer {
    meta: FileMeta,
    steps: mpsc::Sender<Step>,
    inbound: mpsc::Receiver<Inbound>,
    ends: mpsc::Receiver<Input>,
    /// What the syncing thread says; closed while there is none.
    synced: mpsc::Receiver<Result<Vec<u32>, Failure>>,
    progress: watch::Sender<Progress>,
    stop: CancellationToken,
    runtime: Handle,
}

impl Writer {
    fn run(mut self, begun: Begun) -> Result<PackageDir, Failure> {
        let partial = match begun {
            Begun::Present(package) => return self.nothing_missing(package),
            Begun::Known(partial) => partial,
            Begun::New(announced) => announced.accept(self.manifest()?)?,
        };
        partial.prepare(&mut |_| {}, &self.stop)?;
        self.take_proofs(&partial)?;
        let mut receiving = Receiving::new(partial.layout().clone(), &partial.present());
        self.ask_for(receiving.needed())?;
        self.progress.send_replace(receiving.progress());
        loop {
            self.fill(&partial, &mut receiving)?;
            match partial.finish(&self.stop)? {
                Finished::Whole(package) => {
                    self.tell(Step::Done(self.end()))?;
                    return Ok(package);
                }
                Finished::Damaged(damaged) => {
                    tracing::warn!(chunks = damaged.count(), "chunks were damaged on disk and are fetched again");
                    receiving.damaged(&damaged);
                    self.ask_for(&damaged)?;
                }
            }
        }
    }

    /// Takes what others have sent before, where the sender proves that it has it, too.
    fn take_proofs(&mut self, partial: &Partial) -> Result<(), Failure> {
        let stop = self.stop.clone();
        let Some(mut question) = Question::new(&self.meta, partial, &stop)? else { return Ok(()) };
        question.steps().try_for_each(|step| self.tell(step))?;
        while !question.is_answered() {
            match self.next(None) {
                Input::Inbound(Inbound::Frame { frame, .. }) => question.absorb(&frame)?,
                Input::Inbound(Inbound::Lost(_)) | Input::Due | Input::Synced(_) => {}
                Input::Failed(failure) => return Err(failure),
                Input::End(_) => return Err(Failure::new(Code::InvalidRequest, "the sender ended before its proof was whole")),
            }
        }
        Ok(())
    }

    /// The package is here already: nothing is asked for.
    fn nothing_missing(mut self, package: PackageDir) -> Result<PackageDir, Failure> {
        self.ask_for(&ChunkSet::new(self.meta.manifest.chunks))?;
        loop {
            match self.next(None) {
                Input::End(_) => break,
                Input::Failed(failure) => return Err(failure),
                Input::Inbound(_) | Input::Due | Input::Synced(_) => {}
            }
        }
        self.tell(Step::Done(self.end()))?;
        Ok(package)
    }

    fn end(&self) -> FileEnd {
        FileEnd { transfer: self.meta.transfer, manifest: self.meta.manifest.id }
    }

    /// Takes frames until everything is durable and the sender has said that it is done.
    fn fill(&mut self, partial: &Partial, receiving: &mut Receiving) -> Result<(), Failure> {
        // One group at a time: what is written meanwhile is the next.
        let (sync_tx, sync_rx) = std::sync::mpsc::sync_channel::<()>(1);
        let (synced_tx, synced) = mpsc::channel(1);
        self.synced = synced;
        thread::scope(|scope| {
            scope.spawn(move || while sync_rx.recv().is_ok() && synced_tx.blocking_send(partial.sync()).is_ok() {});
            let filled = self.fill_syncing(partial, receiving, &sync_tx);
            // The thread ends, also when it is about to tell of a group.
            drop(sync_tx);
            self.synced.close();
            filled
        })
    }

    fn fill_syncing(&mut self, partial: &Partial, receiving: &mut Receiving, sync: &SyncSender<()>) -> Result<(), Failure> {
        let mut unsynced = Unsynced::default();
        let mut decompressor = Decompressor::new()?;
        let mut ended = false;
        while !(receiving.is_complete() && ended) {
            match self.next(unsynced.due()) {
                Input::Inbound(Inbound::Frame { connection, frame }) => {
                    let (header, _) = FrameHeader::decode(&frame)?;
                    // It came again because its connection was lost, and had arrived all the same.
                    if matches!(header.kind, FrameKind::Manifest | FrameKind::Proof) {
                        continue;
                    }
                    let mut accepted = receiving.accept_piece(connection, header, frame.slice(HEADER..))?;
                    if let Accepted::Compressed(chunk) = accepted {
                        let bytes = decompressor.decompress(&chunk.bytes, chunk.place.len).into();
                        accepted = Accepted::Whole(WholeChunk { bytes, ..chunk });
                    }
                    if let Accepted::Whole(chunk) = accepted {
                        let hash = partial.listing().hash(chunk.index)?;
                        accepted = receiving.verify(chunk, &hash)?;
                    }
                    self.handle_accepted(accepted, partial, receiving, &mut unsynced)?;
                }
                Input::Inbound(Inbound::Lost(connection)) => receiving.connection_lost(connection),
                Input::End(end) if end.manifest == self.meta.manifest.id => ended = true,
                Input::End(_) => return Err(Failure::new(Code::InvalidRequest, "the sender ended another package than it announced")),
                Input::Failed(failure) => {
                    // What is written is kept: make it count before the transfer ends.
                    for index in partial.sync()? {
                        receiving.stored(index);
                    }
                    return Err(failure);
                }
                Input::Synced(durable) => {
                    unsynced.syncing = false;
                    self.handle_durable(&durable?, receiving)?;
                }
                Input::Due => {}
            }
            let Progress { needed_bytes, acked_bytes, in_flight, .. } = receiving.progress();
            let last = in_flight > 0 && acked_bytes + in_flight >= needed_bytes;
            if !unsynced.syncing && unsynced.since.is_some() && (last || unsynced.is_due()) {
                unsynced = Unsynced { syncing: true, ..Unsynced::default() };
                sync.send(()).map_err(|_| Failure::new(Code::Internal, "the syncing thread ended unexpectedly"))?;
            }
        }
        Ok(())
    }

    fn handle_accepted(
        &self,
        accepted: Accepted,
        partial: &Partial,
        receiving: &Receiving,
        unsynced: &mut Unsynced,
    ) -> Result<(), Failure> {
        match accepted {
            Accepted::Verified(chunk) => {
                unsynced.add(u64::from(chunk.place.len));
                partial.write(&chunk)
            }
            // Written but not yet synced: its acknowledgement comes with its own group.
            Accepted::Known(index) if receiving.is_stored(index) => self.acknowledge(&[index]),
            Accepted::Corrupt(index) => {
                let mut set = ChunkSet::new(receiving.needed().len());
                set.insert(index);
                self.ask_for(&set)
            }
            Accepted::More | Accepted::Known(_) | Accepted::Whole(_) | Accepted::Compressed(_) => Ok(()),
        }
    }

    fn handle_durable(&self, durable: &[u32], receiving: &mut Receiving) -> Result<(), Failure> {
        for &index in durable {
            receiving.stored(index);
        }
        self.acknowledge(durable)?;
        self.progress.send_replace(receiving.progress());
        Ok(())
    }

    fn manifest(&mut self) -> Result<Manifest, Failure> {
        let mut assembly = ManifestAssembly::new(self.meta.manifest)?;
        loop {
            match self.next(None) {
                Input::Inbound(Inbound::Frame { frame, .. }) => {
                    let (header, piece) = FrameHeader::decode(&frame)?;
                    if header.kind != FrameKind::Manifest {
                        continue;
                    }
                    if let Some(whole) = assembly.accept_piece(header, piece)? {
                        return Ok(whole);
                    }
                }
                // The sender starts over on another connection.
                Input::Inbound(Inbound::Lost(_)) => assembly = ManifestAssembly::new(self.meta.manifest)?,
                Input::Failed(failure) => return Err(failure),
                Input::End(_) => return Err(Failure::new(Code::InvalidRequest, "the sender ended before its list of files was whole")),
                Input::Due | Input::Synced(_) => {}
            }
        }
    }

    /// The next input, or [`Input::Due`] when it is time to sync.
    fn next(&mut self, due: Option<Instant>) -> Input {
        if let Ok(durable) = self.synced.try_recv() {
            return Input::Synced(durable);
        }
        if due.is_none_or(|due| due > Instant::now())
            && let Ok(inbound) = self.inbound.try_recv()
        {
            return Input::Inbound(inbound);
        }
        let (inbound, ends, synced) = (&mut self.inbound, &mut self.ends, &mut self.synced);
        self.runtime.block_on(async {
            let wait = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = wait => Input::Due,
                inbound = inbound.recv() => inbound.map_or_else(|| Input::Failed(control_lost()), Input::Inbound),
                Some(durable) = synced.recv() => Input::Synced(durable),
                end = ends.recv() => end.unwrap_or_else(|| Input::Failed(control_lost())),
            }
        })
    }

    fn tell(&self, step: Step) -> Result<(), Failure> {
        self.steps.blocking_send(step).map_err(|_| control_lost())
    }

    fn transfer(&self) -> TransferId {
        self.meta.transfer
    }

    fn ask_for(&self, set: &ChunkSet) -> Result<(), Failure> {
        for (first, bits, last) in set.encode_pieces(PIECE_CHUNKS) {
            self.tell(Step::Need(FileNeed { transfer: self.transfer(), first, bits, last }))?;
        }
        Ok(())
    }

    fn acknowledge(&self, durable: &[u32]) -> Result<(), Failure> {
        let mut indices = durable.to_vec();
        indices.sort_unstable();
        for ranges in ranges_of(indices).chunks(ACK_RANGES) {
            self.tell(Step::Ack(FileAck { transfer: self.transfer(), ranges: ranges.to_vec() }))?;
        }
        Ok(())
    }
}

/// What has been written since the last sync.
#[derive(Default)]
struct Unsynced {
    bytes: u64,
    since: Option<Instant>,
    /// A group before it is just being synced.
    syncing: bool,
}

impl Unsynced {
    fn add(&mut self, bytes: u64) {
        self.bytes += bytes;
        self.since.get_or_insert_with(Instant::now);
    }

    /// When it is to be synced; the end of the group before is heard of anyway.
    fn due(&self) -> Option<Instant> {
        self.since.filter(|_| !self.syncing).map(|since| since + SYNC_AFTER)
    }

    fn is_due(&self) -> bool {
        self.bytes >= SYNC_BYTES || self.due().is_some_and(|due| due <= Instant::now())
    }
}
