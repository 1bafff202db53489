//! The sending side of a transfer.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::{BufMut, Bytes, BytesMut};
use tokio::{
    sync::{Notify, watch},
    task::JoinSet,
    time::{Instant, sleep_until},
};

use super::{
    StepPort, control_lost,
    flow::BUDGET,
    pool::{Connection, Pool},
};
use crate::{
    domain::{
        error::{Code, Failure},
        frame::{FrameHeader, FrameKind, HEADER, MAX_PIECE},
        id::JobId,
        manifest::{ChunkPlace, Hash, ManifestSummary},
        message::{FileEnd, FileMeta, FileReady, FileRefused, Step, TransferId},
        transfer::{ChunkSet, ChunkSetAssembly, Next, Places, Progress, Sending},
    },
    runtime::files::ChunkReader,
};

/// Without an acknowledgement for so long while chunks are under way, the bulk connections are given up: whatever swallowed the
/// chunks, others will bring them. A line of 70 kbit/s still brings a chunk in this time.
const STALL: Duration = if cfg!(test) { Duration::from_secs(3) } else { Duration::from_secs(30) };

/// Reads the chunks of a package; blocking, and called from one thread at a time.
pub trait ReadChunk: Send + 'static {
    /// Replaces the buffer's content by the chunk, whose hash has been checked.
    ///
    /// # Errors
    /// [`Code::BadFile`] when it cannot be read or is no longer what was announced.
    fn read(&mut self, place: ChunkPlace, buffer: &mut Vec<u8>) -> Result<(), Failure>;
}

impl ReadChunk for ChunkReader {
    fn read(&mut self, place: ChunkPlace, buffer: &mut Vec<u8>) -> Result<(), Failure> {
        ChunkReader::read(self, place, buffer)
    }
}

/// What is to be sent.
pub struct Outgoing {
    /// Our number for it.
    pub transfer: TransferId,
    /// Whose package or results.
    pub job: JobId,
    /// What it is.
    pub summary: ManifestSummary,
    /// The manifest's bytes.
    pub encoded: Bytes,
    /// Its chunks.
    pub places: Arc<Places>,
    /// Where their bytes come from.
    pub reader: Box<dyn ReadChunk>,
}

/// Sends what the receiver lacks, until it has everything in place.
///
/// # Errors
/// What the receiver refuses, what cannot be read, or [`Code::NoConnection`] when the control connection ends.
pub async fn send(outgoing: Outgoing, pool: &Pool, mut steps: StepPort, progress: &watch::Sender<Progress>) -> Result<(), Failure> {
    let result = send_inner(outgoing, pool, &mut steps, progress).await;
    if let Err((transfer, failure)) = &result
        && failure.code != Code::NoConnection
    {
        let _ = steps.tx.send(Step::Refused(FileRefused { transfer: *transfer, failure: failure.clone() })).await;
    }
    result.map_err(|(_, failure)| failure)
}

async fn send_inner(
    outgoing: Outgoing,
    pool: &Pool,
    steps: &mut StepPort,
    progress: &watch::Sender<Progress>,
) -> Result<(), (TransferId, Failure)> {
    let Outgoing { transfer, job, summary, encoded, places, reader } = outgoing;
    let tag = |failure| (transfer, failure);
    tell(steps, Step::Meta(FileMeta { transfer, job, manifest: summary })).await.map_err(tag)?;
    let ready = match next(steps).await.map_err(tag)? {
        Step::Ready(ready) => ready,
        _ => return Err(tag(out_of_order())),
    };
    if ready.manifest_wanted {
        send_manifest(pool, transfer, &encoded).await.map_err(tag)?;
    }
    let needed = needed(steps, &places).await.map_err(tag)?;
    let pump = Arc::new(Pump::new(transfer, places, needed, ready, reader).map_err(tag)?);
    progress.send_replace(pump.progress());
    pump.run(pool, steps, summary.id, progress).await.map_err(tag)
}

async fn tell(steps: &StepPort, step: Step) -> Result<(), Failure> {
    steps.tx.send(step).await.map_err(|_| control_lost())
}

async fn next(steps: &mut StepPort) -> Result<Step, Failure> {
    match steps.rx.recv().await.ok_or_else(control_lost)? {
        Step::Refused(FileRefused { failure, .. }) => Err(failure),
        step => Ok(step),
    }
}

fn out_of_order() -> Failure {
    Failure::new(Code::InvalidRequest, "the other side sent a step of the transfer out of order")
}

async fn needed(steps: &mut StepPort, places: &Places) -> Result<ChunkSet, Failure> {
    let mut assembly = ChunkSetAssembly::new(places.len());
    loop {
        let Step::Need(need) = next(steps).await? else { return Err(out_of_order()) };
        if let Some(set) = assembly.absorb(need.first, &need.bits, need.last)? {
            return Ok(set);
        }
    }
}

async fn first_connection(pool: &Pool) -> Connection {
    let mut connections = pool.connections();
    let found = connections.wait_for(|connections| !connections.is_empty()).await;
    found.expect("the pool is borrowed, so its sender lives")[0].clone()
}

/// Sends the manifest's bytes, once more from the start on another connection when one is lost.
async fn send_manifest(pool: &Pool, transfer: TransferId, encoded: &[u8]) -> Result<(), Failure> {
    loop {
        let connection = first_connection(pool).await;
        if send_pieces(&connection, transfer, FrameKind::Manifest, encoded).await.is_ok() {
            return Ok(());
        }
        connection.lost.cancelled().await;
    }
}

async fn send_pieces(connection: &Connection, transfer: TransferId, kind: FrameKind, bytes: &[u8]) -> Result<(), Failure> {
    let mut offset = 0;
    while offset < bytes.len() {
        let credit = connection.credit().await?.min(MAX_PIECE);
        let piece = &bytes[offset..bytes.len().min(offset + credit)];
        let header = FrameHeader { transfer, kind, offset: offset as u32 };
        let mut frame = BytesMut::with_capacity(HEADER + piece.len());
        frame.put_slice(&header.encode());
        frame.put_slice(piece);
        connection.send(frame).await?;
        offset += piece.len();
    }
    Ok(())
}

/// The state that all pumps of a transfer share: decided under the lock, done outside it.
struct Pump {
    transfer: TransferId,
    /// Number of chunks of the package.
    chunks: u32,
    /// Bytes that may be un-acked, where the path does not need more: what a crash can cost.
    window: u64,
    sending: Mutex<Sending>,
    /// Woken when an acknowledgement, a loss or a new wish may let a waiting pump go on.
    more: Notify,
    reader: Arc<Mutex<Box<dyn ReadChunk>>>,
}

impl Pump {
    fn new(
        transfer: TransferId,
        places: Arc<Places>,
        needed: ChunkSet,
        ready: FileReady,
        reader: Box<dyn ReadChunk>,
    ) -> Result<Self, Failure> {
        let chunks = places.len();
        let sending = Mutex::new(Sending::new(places, needed, ready.window)?);
        Ok(Pump { transfer, chunks, window: ready.window, sending, more: Notify::new(), reader: Arc::new(Mutex::new(reader)) })
    }

    fn decide<T>(&self, decision: impl FnOnce(&mut Sending) -> T) -> T {
        decision(&mut self.sending.lock().expect("no panic happens under this lock"))
    }

    fn progress(&self) -> Progress {
        self.decide(|sending| sending.progress())
    }

    async fn run(
        self: Arc<Self>,
        pool: &Pool,
        steps: &mut StepPort,
        manifest: Hash,
        progress: &watch::Sender<Progress>,
    ) -> Result<(), Failure> {
        let end = FileEnd { transfer: self.transfer, manifest };
        let mut connections = pool.connections();
        connections.mark_changed();
        let mut pumps: JoinSet<Result<(), Failure>> = JoinSet::new();
        let mut pumped: Vec<u32> = Vec::new();
        let mut ended = false;
        let mut again: Option<ChunkSetAssembly> = None;
        let mut moved = Instant::now();
        loop {
            if self.decide(|sending| sending.is_complete()) && !ended {
                ended = true;
                tell(steps, Step::End(end.clone())).await?;
            }
            tokio::select! {
                () = sleep_until(moved + STALL) => {
                    moved = Instant::now();
                    self.give_up_stalled(&connections.borrow());
                }
                changed = connections.changed() => {
                    moved = Instant::now();
                    changed.map_err(|_| control_lost())?;
                    let present = connections.borrow_and_update().clone();
                    for connection in present {
                        if !pumped.contains(&connection.number) {
                            pumped.push(connection.number);
                            pumps.spawn(self.clone().pump(connection));
                        }
                    }
                }
                Some(pump) = pumps.join_next() => match pump {
                    Ok(result) => result?,
                    Err(error) => return Err(Failure::new(Code::Internal, format!("a sending task ended unexpectedly: {error}"))),
                },
                step = next(steps) => match step? {
                    Step::Ack(ack) => {
                        moved = Instant::now();
                        let window = self.window.max(3 * pool.bandwidth_delay()).min(BUDGET);
                        self.decide(|sending| {
                            sending.set_window(window);
                            sending.acked(&ack.ranges)
                        })?;
                        progress.send_replace(self.progress());
                        self.more.notify_waiters();
                    }
                    Step::Need(need) => {
                        let assembly = again.get_or_insert_with(|| ChunkSetAssembly::new(self.chunks));
                        if let Some(set) = assembly.absorb(need.first, &need.bits, need.last)? {
                            again = None;
                            ended = false;
                            self.decide(|sending| sending.asked_again(&set))?;
                            self.more.notify_waiters();
                        }
                    }
                    Step::Done(done) if done == end => return Ok(()),
                    _ => return Err(out_of_order()),
                },
            }
        }
    }

    /// Nothing was acknowledged for a while: where chunks are under way, their connections carry nothing any more.
    fn give_up_stalled(&self, connections: &[Connection]) {
        if self.progress().in_flight == 0 {
            return;
        }
        tracing::warn!(transfer = self.transfer, "nothing was acknowledged for {STALL:?}; the bulk connections are given up");
        for connection in connections {
            connection.lost.cancel();
        }
    }

    /// Feeds one connection until it is lost. The end of the whole transfer drops the task.
    async fn pump(self: Arc<Self>, connection: Connection) -> Result<(), Failure> {
        let mut buffer = Vec::new();
        let _in_use = connection.in_use();
        while connection.ready().await {
            // Registered before the decision, so that no wake-up falls between the two.
            let mut more = std::pin::pin!(self.more.notified());
            more.as_mut().enable();
            match self.decide(|sending| sending.next(connection.number)) {
                Next::Chunk(index, place) => {
                    buffer = self.read(place, buffer).await?;
                    if send_pieces(&connection, self.transfer, FrameKind::Chunk(index), &buffer).await.is_err() {
                        connection.lost.cancelled().await;
                    }
                }
                Next::Wait | Next::AllSent => tokio::select! {
                    () = more => {}
                    () = connection.gone() => {}
                },
            }
        }
        self.drain(&connection).await;
        self.decide(|sending| sending.connection_lost(connection.number));
        self.more.notify_waiters();
        Ok(())
    }

    /// Waits until what the connection carries has been acknowledged, or it is lost.
    async fn drain(&self, connection: &Connection) {
        loop {
            let mut more = std::pin::pin!(self.more.notified());
            more.as_mut().enable();
            if connection.lost.is_cancelled() || !self.decide(|sending| sending.is_carrying(connection.number)) {
                return;
            }
            tokio::select! {
                () = more => {}
                () = connection.lost.cancelled() => {}
            }
        }
    }

    async fn read(&self, place: ChunkPlace, mut buffer: Vec<u8>) -> Result<Vec<u8>, Failure> {
        let reader = self.reader.clone();
        let reading = tokio::task::spawn_blocking(move || {
            let mut reader = reader.lock().map_err(|_| Failure::new(Code::Internal, "reading failed before"))?;
            reader.read(place, &mut buffer).map(|()| buffer)
        });
        reading.await.map_err(|error| Failure::new(Code::Internal, format!("a reading thread ended unexpectedly: {error}")))?
    }
}
