//! The sending side of a transfer.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::{BufMut, BytesMut};
use tokio::{
    runtime::Handle,
    sync::{Notify, mpsc, watch},
    task::JoinSet,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{
    StepPort, control_lost,
    feed::{Content, Feeder, Ready, frames_of},
    flow::BUDGET,
    pool::{Connection, Pool},
    proof::Prover,
};
use crate::{
    domain::{
        error::{Code, Failure},
        frame::{FrameKind, HEADER, MAX_PIECE, PIECE},
        id::{JobId, Secret},
        manifest::{ChunkPlace, Hash},
        message::{FileEnd, FileMeta, FileReady, FileRefused, Step, TransferId},
        transfer::{ChunkSet, ChunkSetAssembly, Layout, Next, Progress, Sending, unacked},
    },
    runtime::{files::ChunkReader, listing::Listing},
};

/// Without an acknowledgement for so long while chunks are under way, the bulk connections are given up: whatever swallowed the
/// chunks, others will bring them. A line of 70 kbit/s still brings a chunk in this time.
const STALL: Duration = if cfg!(test) { Duration::from_secs(3) } else { Duration::from_secs(30) };
/// Chunks that are read ahead of the connections: 2 MiB on average.
const READ_AHEAD: usize = 16;

/// Reads the chunks of a package; blocking, and called from one thread at a time.
pub trait ReadChunk: Send + 'static {
    /// Appends the bytes of a chunk of this index, at this place. With `check`, its hash has been checked.
    ///
    /// # Errors
    /// [`Code::BadFile`] when it cannot be read or is no longer what was announced.
    fn read(&mut self, index: u32, place: ChunkPlace, into: &mut Vec<u8>, check: bool) -> Result<(), Failure>;

    /// Another reader of the same, for another thread.
    ///
    /// # Errors
    /// As [`ReadChunk::read`].
    fn fork(&self) -> Result<Box<dyn ReadChunk>, Failure>;
}

impl ReadChunk for ChunkReader {
    fn read(&mut self, index: u32, place: ChunkPlace, into: &mut Vec<u8>, check: bool) -> Result<(), Failure> {
        ChunkReader::read(self, index, place, into, check)
    }

    fn fork(&self) -> Result<Box<dyn ReadChunk>, Failure> {
        Ok(Box::new(ChunkReader::fork(self)))
    }
}

/// What is to be sent.
pub struct Outgoing {
    /// Our number for it.
    pub transfer: TransferId,
    /// Whose package or results.
    pub job: JobId,
    /// What it is.
    pub listing: Arc<Listing>,
    /// Where their bytes come from.
    pub reader: Box<dyn ReadChunk>,
    /// The session's secret, for a sender that proves that it has what others have sent before; none: it does not.
    pub session: Option<Secret<[u8; 32]>>,
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
    let Outgoing { transfer, job, listing, mut reader, session } = outgoing;
    let (summary, layout) = (listing.summary(), listing.layout());
    let tag = |failure| (transfer, failure);
    tell(steps, Step::Meta(FileMeta { transfer, job, manifest: summary, can_prove: session.is_some() })).await.map_err(tag)?;
    let ready = match next(steps).await.map_err(tag)? {
        Step::Ready(ready) => ready,
        _ => return Err(tag(out_of_order())),
    };
    let prover = Prover { transfer, package: summary.id, layout, session };
    let answer = prover.needed(&mut reader, pool, steps);
    let needed = if ready.manifest_wanted { send_manifest(pool, transfer, &listing, answer).await } else { answer.await };
    let needed = needed.map_err(tag)?;
    let (pump, ready_tx) = Pump::new(transfer, layout.clone(), needed, &ready).map_err(tag)?;
    let pump = Arc::new(pump);
    progress.send_replace(pump.progress());
    // However this ends, the reading thread ends with it.
    let _stop = pump.stop.clone().drop_guard();
    let feeder = Feeder::new(transfer, pump.clone(), reader, ready.zstd, ready_tx);
    let feeding = tokio::task::spawn_blocking(move || feeder.run(&Handle::current()));
    let result = pump.clone().run(pool, steps, summary.id, feeding, progress).await;
    progress.send_replace(pump.progress());
    result.map_err(tag)
}

async fn tell(steps: &StepPort, step: Step) -> Result<(), Failure> {
    steps.tx.send(step).await.map_err(|_| control_lost())
}

pub(super) async fn next(steps: &mut StepPort) -> Result<Step, Failure> {
    match steps.rx.recv().await.ok_or_else(control_lost)? {
        Step::Refused(FileRefused { failure, .. }) => Err(failure),
        step => Ok(step),
    }
}

pub(super) fn out_of_order() -> Failure {
    Failure::new(Code::InvalidRequest, "the other side sent a step of the transfer out of order")
}

/// Sends the manifest's bytes, and waits for the answer. Once more from the start on another connection when the one is lost, or has brought
/// no answer for a while: the other side takes what it has already for nothing.
async fn send_manifest(
    pool: &Pool,
    transfer: TransferId,
    listing: &Arc<Listing>,
    answer: impl Future<Output = Result<ChunkSet, Failure>>,
) -> Result<ChunkSet, Failure> {
    let mut answer = std::pin::pin!(answer);
    loop {
        let connection = tokio::select! {
            answer = &mut answer => return answer,
            connection = pool.first_connection() => connection,
        };
        if send_listing(&connection, transfer, listing).await? {
            tokio::select! {
                answer = &mut answer => return answer,
                () = connection.lost.cancelled() => {}
                () = tokio::time::sleep(STALL) => {
                    tracing::info!(transfer, "nothing was heard of the list of files in {STALL:?}; it goes over another bulk connection");
                }
            }
        }
        connection.lost.cancel();
    }
}

/// Sends a manifest in frames that any receiver takes; `false`: the connection was lost meanwhile.
///
/// # Errors
/// [`Code::BadFile`] when it cannot be read back from the disk.
pub(super) async fn send_listing(connection: &Connection, transfer: TransferId, listing: &Arc<Listing>) -> Result<bool, Failure> {
    let len = listing.summary().encoded_len;
    for from in (0..len).step_by(PIECE) {
        let listing = listing.clone();
        let reading = tokio::task::spawn_blocking(move || listing.encoded(from, PIECE));
        let ended = |error| Failure::new(Code::Internal, format!("reading the list of files ended unexpectedly: {error}"));
        let bytes = reading.await.map_err(ended)??;
        if send_frames(connection, frames_of(transfer, FrameKind::Manifest, from as u32, &bytes)).await.is_err() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Sends what any receiver takes.
pub(super) async fn send_frames(connection: &Connection, frames: impl IntoIterator<Item = Content>) -> Result<(), Failure> {
    for content in frames {
        send_content(connection, content, PIECE).await?;
    }
    Ok(())
}

/// Sends what belongs together: in one message where that may be so long, else in pieces that are as long as the connection wants them,
/// so that control messages need not wait behind long ones on a narrow one.
async fn send_content(connection: &Connection, content: Content, longest: usize) -> Result<(), Failure> {
    let Content { mut header, mut frame } = content;
    let room = connection.credit().await?.min(longest);
    let mut rest = if frame.len() > HEADER + room { frame.split_off(HEADER + room) } else { BytesMut::new() };
    connection.send(frame).await?;
    header.offset += room as u32;
    while !rest.is_empty() {
        let room = connection.credit().await?.min(longest);
        let piece = rest.split_to(room.min(rest.len()));
        let mut frame = BytesMut::with_capacity(HEADER + piece.len());
        frame.put_slice(&header.encode());
        frame.put_slice(&piece);
        header.offset += piece.len() as u32;
        connection.send(frame).await?;
    }
    Ok(())
}

/// The state that the pumps and the feeder of a transfer share: decided under the lock, done outside it.
pub(super) struct Pump {
    transfer: TransferId,
    /// Number of chunks of the package.
    chunks: u32,
    /// Bytes that may be un-acked, where the path does not need more: what a crash can cost.
    window: u64,
    /// How long the pieces of chunks may be, in bytes.
    piece: usize,
    sending: Mutex<Sending>,
    /// Woken when an acknowledgement, a loss or a new wish may let the waiting feeder go on, or a connection that drains.
    more: Notify,
    /// Chunks that have been read and wait for a connection.
    ready: tokio::sync::Mutex<mpsc::Receiver<Ready>>,
    /// The transfer has ended.
    pub(super) stop: CancellationToken,
}

impl Pump {
    fn new(transfer: TransferId, layout: Arc<Layout>, needed: ChunkSet, ready: &FileReady) -> Result<(Self, mpsc::Sender<Ready>), Failure> {
        let chunks = layout.len();
        let sending = Mutex::new(Sending::new(layout, needed, ready.window)?);
        let (window, piece) = (ready.window, (ready.piece as usize).clamp(PIECE, MAX_PIECE));
        let (ready_tx, ready) = mpsc::channel(READ_AHEAD);
        let (more, stop) = Default::default();
        let ready = tokio::sync::Mutex::new(ready);
        Ok((Pump { transfer, chunks, window, piece, sending, more, ready, stop }, ready_tx))
    }

    /// The next chunk to read, and whether to check its hash; waits until there is one. `None`: the transfer has ended.
    pub(super) fn take(&self, runtime: &Handle) -> Option<(u32, ChunkPlace, bool)> {
        loop {
            // Registered before the decision, so that no wake-up falls between the two.
            let mut more = std::pin::pin!(self.more.notified());
            more.as_mut().enable();
            if self.stop.is_cancelled() {
                return None;
            }
            let next = self.decide(|sending| match sending.take() {
                Next::Chunk(index, place) => Some((index, place, sending.is_asked_again(index))),
                Next::Wait | Next::AllSent => None,
            });
            if next.is_some() {
                return next;
            }
            runtime.block_on(async {
                tokio::select! {
                    () = more => {}
                    () = self.stop.cancelled() => {}
                }
            });
        }
    }

    /// Bytes of content that are acknowledged.
    pub(super) fn acked(&self) -> u64 {
        self.progress().acked_bytes
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
        mut feeding: tokio::task::JoinHandle<Result<(), Failure>>,
        progress: &watch::Sender<Progress>,
    ) -> Result<(), Failure> {
        let end = FileEnd { transfer: self.transfer, manifest };
        let mut connections = pool.connections();
        connections.mark_changed();
        let mut pumps: JoinSet<()> = JoinSet::new();
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
                fed = &mut feeding => {
                    let ended = |error| Failure::new(Code::Internal, format!("the reading thread ended unexpectedly: {error}"));
                    return fed.map_err(ended)?.and(Err(control_lost()));
                }
                Some(pump) = pumps.join_next() => {
                    pump.map_err(|error| Failure::new(Code::Internal, format!("a sending task ended unexpectedly: {error}")))?;
                }
                step = next(steps) => match step? {
                    Step::Ack(ack) => {
                        moved = Instant::now();
                        let window = unacked(self.window, pool.bandwidth_delay(), connections.borrow().len(), BUDGET);
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

    /// Feeds one connection until it is lost or retired. The end of the whole transfer drops the task.
    async fn pump(self: Arc<Self>, connection: Connection) {
        let _in_use = connection.in_use();
        while connection.ready().await {
            let chunk = tokio::select! {
                () = connection.gone() => break,
                chunk = async { self.ready.lock().await.recv().await } => chunk,
            };
            let Some(Ready { index, content }) = chunk else { return };
            if self.decide(|sending| sending.given(index, connection.number))
                && send_content(&connection, content, self.piece).await.is_err()
            {
                connection.lost.cancelled().await;
            }
        }
        self.drain(&connection).await;
        self.decide(|sending| sending.connection_lost(connection.number));
        self.more.notify_waiters();
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
}
