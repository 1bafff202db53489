//! The proof of possession in a transfer: the sender's answer, and the receiver's question.
//!
//! * the sender reads what it is asked about once more, with several threads, and sends a frame of tags for each half gigabyte or
//!   so while it reads on; when their connection is lost they go out again on another
//! * the receiver compares each frame's tags with what others have sent while the next are on their way
//!
//! What is proved and why is said in the domain's `possession`, and what it may tell somebody in the store's `share`.

use std::{sync::Arc, thread};

use bytes::{BufMut, Bytes, BytesMut};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{
    StepPort,
    pool::{Connection, Pool},
    send::{ReadChunk, next, out_of_order},
};
use crate::{
    domain::{
        error::{Code, Failure},
        frame::{FrameHeader, FrameKind, HEADER, PIECE},
        id::Secret,
        manifest::Hash,
        message::{FileMeta, FileProve, Step, TransferId},
        transfer::{Challenge, ChunkSet, ChunkSetAssembly, Layout, PIECE_CHUNKS, ProofAssembly, ProofKey, TAG},
    },
    runtime::{
        seal,
        store::{Partial, Shared},
    },
};

/// Tags in a frame.
const GROUP: usize = PIECE / TAG;
/// The most threads that read and hash.
const MAX_THREADS: usize = 8;

/// The sender's side, until it knows what to send.
pub(super) struct Prover<'a> {
    pub(super) transfer: TransferId,
    pub(super) package: Hash,
    pub(super) layout: &'a Arc<Layout>,
    /// What proofs are bound to; none: we cannot prove.
    pub(super) session: Option<Secret<[u8; 32]>>,
}

impl Prover<'_> {
    /// What the receiver lacks; first it is given the proofs that it asks for.
    pub(super) async fn needed(&self, reader: &mut Box<dyn ReadChunk>, pool: &Pool, steps: &mut StepPort) -> Result<ChunkSet, Failure> {
        let mut needed = ChunkSetAssembly::new(self.layout.len());
        // A receiver asks for proofs once, and before it says what it needs.
        let mut asked = self.session.as_ref().map(|session| (session, ChunkSetAssembly::new(self.layout.len())));
        let mut step = next(steps).await?;
        loop {
            step = match (step, &mut asked) {
                (Step::Need(need), _) => {
                    asked = None;
                    match needed.absorb(need.first, &need.bits, need.last)? {
                        Some(set) => return Ok(set),
                        None => next(steps).await?,
                    }
                }
                (Step::Prove(prove), Some((session, assembly))) => match assembly.absorb(prove.first, &prove.bits, prove.last)? {
                    Some(set) => {
                        let key = ProofKey::new(&prove.challenge, session, &self.package, self.transfer);
                        asked = None;
                        self.answer(&set, key, reader, pool, steps).await?
                    }
                    None => next(steps).await?,
                },
                _ => return Err(out_of_order()),
            };
        }
    }

    /// Sends the tags of these chunks; the step that comes then.
    async fn answer(
        &self,
        set: &ChunkSet,
        key: ProofKey,
        reader: &mut Box<dyn ReadChunk>,
        pool: &Pool,
        steps: &mut StepPort,
    ) -> Result<Step, Failure> {
        let indices: Vec<u32> = set.iter().collect();
        tracing::debug!(transfer = self.transfer, chunks = indices.len(), "the receiver wants a proof that we have these chunks");
        let threads = thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS).min(indices.len().max(1));
        let readers = (0..threads).map(|_| reader.fork()).collect::<Result<Vec<_>, Failure>>()?;
        let (out, mut made) = mpsc::channel(2);
        let stop = CancellationToken::new();
        let _stop_with_us = stop.clone().drop_guard();
        let maker = Maker { readers, layout: self.layout.clone(), key, stop };
        tokio::task::spawn_blocking(move || maker.run(&indices, &out));
        let mut frames: Vec<Bytes> = Vec::new();
        let mut all = false;
        loop {
            let connection = pool.first_connection().await;
            let mut sent = 0;
            loop {
                if let Some(tags) = frames.get(sent) {
                    if send_tags(&connection, self.transfer, sent, tags).await.is_err() {
                        break;
                    }
                    sent += 1;
                    continue;
                }
                tokio::select! {
                    () = connection.lost.cancelled() => break,
                    frame = made.recv(), if !all => match frame {
                        Some(tags) => frames.push(tags?),
                        None => all = true,
                    },
                    step = next(steps) => return step,
                }
            }
            connection.lost.cancel();
        }
    }
}

async fn send_tags(connection: &Connection, transfer: TransferId, number: usize, tags: &[u8]) -> Result<(), Failure> {
    let header = FrameHeader { transfer, kind: FrameKind::Proof, offset: (number * GROUP * TAG) as u32 };
    let mut frame = BytesMut::with_capacity(HEADER + tags.len());
    frame.put_slice(&header.encode());
    frame.put_slice(tags);
    connection.credit().await?;
    connection.send(frame).await
}

/// Reads chunks and makes their tags, about 1.1 GB/s for each core; a blocking thread, and more below it.
struct Maker {
    readers: Vec<Box<dyn ReadChunk>>,
    layout: Arc<Layout>,
    key: ProofKey,
    stop: CancellationToken,
}

impl Maker {
    fn run(mut self, indices: &[u32], out: &mpsc::Sender<Result<Bytes, Failure>>) {
        for group in indices.chunks(GROUP) {
            let tags = self.tags(group);
            let failed = tags.is_err();
            if out.blocking_send(tags).is_err() || failed {
                return;
            }
        }
    }

    fn tags(&mut self, group: &[u32]) -> Result<Bytes, Failure> {
        let share = group.len().div_ceil(self.readers.len());
        let (layout, key, stop) = (&self.layout, &self.key, &self.stop);
        let parts = thread::scope(|scope| {
            let work = self.readers.iter_mut().zip(group.chunks(share));
            let threads: Vec<_> = work.map(|(reader, part)| scope.spawn(move || tags_of(part, reader, layout, key, stop))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| Err(ended()))).collect::<Result<Vec<_>, Failure>>()
        })?;
        Ok(parts.concat().into())
    }
}

fn tags_of(
    part: &[u32],
    reader: &mut Box<dyn ReadChunk>,
    layout: &Layout,
    key: &ProofKey,
    stop: &CancellationToken,
) -> Result<Vec<u8>, Failure> {
    let (mut tags, mut buffer) = (Vec::with_capacity(part.len() * TAG), Vec::new());
    for &index in part {
        if stop.is_cancelled() {
            return Err(Failure::new(Code::NoConnection, "the proof is no longer wanted"));
        }
        let place = layout.get(index).ok_or_else(out_of_order)?;
        buffer.clear();
        reader.read(index, place, &mut buffer, false)?;
        tags.extend(key.tag(&buffer).0);
    }
    Ok(tags)
}

fn ended() -> Failure {
    Failure::new(Code::Internal, "a reading thread ended unexpectedly")
}

/// The receiver's side: the question, and the tags as they come.
pub(super) struct Question<'a> {
    transfer: TransferId,
    challenge: Challenge,
    key: ProofKey,
    asked: ChunkSet,
    assembly: ProofAssembly,
    partial: &'a Partial,
    shared: Shared,
    stop: &'a CancellationToken,
}

impl<'a> Question<'a> {
    /// What to ask the sender before it is told what is needed; `None`: nothing. It asks for all chunks that are missing, whatever
    /// others have sent, so that the question tells nothing.
    pub(super) fn new(meta: &FileMeta, partial: &'a Partial, stop: &'a CancellationToken) -> Result<Option<Question<'a>>, Failure> {
        let asked = partial.present().complement();
        if !meta.can_prove || asked.is_empty() {
            return Ok(None);
        }
        let Some(shared) = partial.shared()? else { return Ok(None) };
        let challenge = Challenge(seal::random()?);
        let key = ProofKey::new(&challenge, shared.session(), &meta.manifest.id, meta.transfer);
        let assembly = ProofAssembly::new(&asked);
        Ok(Some(Question { transfer: meta.transfer, challenge, key, asked, assembly, partial, shared, stop }))
    }

    /// It, as steps for the sender.
    pub(super) fn steps(&self) -> impl Iterator<Item = Step> + '_ {
        let pieces = self.asked.encode_pieces(PIECE_CHUNKS).into_iter();
        pieces.map(|(first, bits, last)| Step::Prove(FileProve { transfer: self.transfer, challenge: self.challenge, first, bits, last }))
    }

    /// Takes a frame of tags: chunks of others that are proved are present afterwards.
    pub(super) fn absorb(&mut self, frame: &[u8]) -> Result<(), Failure> {
        let (header, piece) = FrameHeader::decode(frame)?;
        if header.kind != FrameKind::Proof {
            // Of an attempt before this one.
            return Ok(());
        }
        let tags = self.assembly.accept_piece(header, piece)?;
        self.shared.take(self.partial, &self.key, &tags, self.stop)
    }

    /// Whether everything was answered.
    pub(super) fn is_answered(&self) -> bool {
        self.assembly.is_complete()
    }
}
