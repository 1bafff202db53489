//! The reading side of a sender: one blocking thread that reads chunks ahead of the connections, and compresses them where that pays.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use tokio::{runtime::Handle, sync::mpsc};

use super::{ReadChunk, send::Pump};
use crate::domain::{
    error::{Code, Failure},
    frame::{FrameHeader, FrameKind, HEADER, PIECE},
    manifest::{ChunkPlace, MAX_CHUNK},
    message::TransferId,
    transfer::Compression,
};

/// Zstandard's fastest ordinary level: what is compressed here has to keep up with networks.
const LEVEL: i32 = 1;
/// So often the goodput is measured.
const MEASURE: Duration = Duration::from_millis(500);

/// A chunk that has been read.
pub(super) struct Ready {
    pub(super) index: u32,
    pub(super) content: Content,
}

/// What belongs together, behind the header of its first piece.
pub(super) struct Content {
    pub(super) header: FrameHeader,
    pub(super) frame: BytesMut,
}

impl Content {
    /// With what is filled in, so many bytes.
    fn with(
        transfer: TransferId,
        kind: FrameKind,
        len: usize,
        fill: impl FnOnce(&mut Vec<u8>) -> Result<(), Failure>,
    ) -> Result<Self, Failure> {
        let header = FrameHeader { transfer, kind, offset: 0 };
        let mut frame = Vec::with_capacity(HEADER + len);
        frame.extend_from_slice(&header.encode());
        fill(&mut frame)?;
        // By way of `Bytes`, nothing is copied.
        Ok(Content { header, frame: Bytes::from(frame).into() })
    }

    /// These bytes.
    fn of(header: FrameHeader, bytes: &[u8]) -> Self {
        let mut frame = BytesMut::with_capacity(HEADER + bytes.len());
        frame.extend_from_slice(&header.encode());
        frame.extend_from_slice(bytes);
        Content { header, frame }
    }
}

/// Reads the chunks of one transfer, in the order in which they are to go.
pub(super) struct Feeder {
    transfer: TransferId,
    pump: Arc<Pump>,
    reader: Box<dyn ReadChunk>,
    compressor: Option<Compressor>,
    ready: mpsc::Sender<Ready>,
}

struct Compressor {
    decision: Compression,
    context: zstd::bulk::Compressor<'static>,
    plain: Vec<u8>,
    compressed: Vec<u8>,
    /// When the goodput was last measured, and what had been acknowledged then.
    measured: (Instant, u64),
}

impl Feeder {
    pub(super) fn new(
        transfer: TransferId,
        pump: Arc<Pump>,
        reader: Box<dyn ReadChunk>,
        compress: bool,
        ready: mpsc::Sender<Ready>,
    ) -> Self {
        let compressor = compress.then(Compressor::new).flatten();
        Feeder { transfer, pump, reader, compressor, ready }
    }

    /// Reads until the transfer ends.
    pub(super) fn run(mut self, runtime: &Handle) -> Result<(), Failure> {
        while let Some((index, place, check)) = self.pump.take(runtime) {
            let compressed = match &mut self.compressor {
                Some(compressor) => compressor.read(self.transfer, index, place, check, &mut *self.reader, self.pump.acked())?,
                None => None,
            };
            let content = match compressed {
                Some(content) => content,
                None => read_plain(self.transfer, index, place, check, &mut *self.reader)?,
            };
            let handed_on = self.pump.stop.run_until_cancelled(self.ready.send(Ready { index, content }));
            if !matches!(runtime.block_on(handed_on), Some(Ok(()))) {
                break;
            }
        }
        Ok(())
    }
}

/// Reads a chunk straight into its frame.
fn read_plain(transfer: TransferId, index: u32, place: ChunkPlace, check: bool, reader: &mut dyn ReadChunk) -> Result<Content, Failure> {
    Content::with(transfer, FrameKind::Chunk(index), place.len as usize, |frame| reader.read(index, place, frame, check))
}

/// The frames that carry these bytes, which begin at this offset, to any receiver.
pub(super) fn frames_of(transfer: TransferId, kind: FrameKind, offset: u32, bytes: &[u8]) -> impl Iterator<Item = Content> {
    let header = move |at: usize| FrameHeader { transfer, kind, offset: offset + (at * PIECE) as u32 };
    bytes.chunks(PIECE).enumerate().map(move |(at, piece)| Content::of(header(at), piece))
}

impl Compressor {
    fn new() -> Option<Self> {
        let context = zstd::bulk::Compressor::new(LEVEL);
        let context = context.inspect_err(|error| tracing::warn!(%error, "chunks are not compressed")).ok()?;
        let (decision, plain) = Default::default();
        let compressed = vec![0; MAX_CHUNK as usize];
        Some(Compressor { decision, context, plain, compressed, measured: (Instant::now(), 0) })
    }

    /// The frames of a chunk; `None`: it is to be read plain.
    fn read(
        &mut self,
        transfer: TransferId,
        index: u32,
        place: ChunkPlace,
        check: bool,
        reader: &mut dyn ReadChunk,
        acked: u64,
    ) -> Result<Option<Content>, Failure> {
        self.measure(acked);
        if !self.decision.compress_next() {
            return Ok(None);
        }
        self.plain.clear();
        reader.read(index, place, &mut self.plain, check)?;
        let begun = Instant::now();
        // What does not become shorter does not fit, and that is an error.
        let room = self.plain.len() - 1;
        let compressed = self.context.compress_to_buffer(&self.plain, &mut self.compressed[..room]);
        let len = compressed.as_ref().map_or(self.plain.len(), |&len| len);
        self.decision.handle_compressed(place.len, len as u32, begun.elapsed());
        Ok(Some(match compressed {
            Ok(len) => {
                let kind = FrameKind::Compressed { index, len: len as u32 };
                Content::of(FrameHeader { transfer, kind, offset: 0 }, &self.compressed[..len])
            }
            Err(_) => Content::of(FrameHeader { transfer, kind: FrameKind::Chunk(index), offset: 0 }, &self.plain),
        }))
    }

    fn measure(&mut self, acked: u64) {
        let (since, before) = self.measured;
        let took = since.elapsed();
        if took < MEASURE {
            return;
        }
        let goodput = acked.saturating_sub(before) as f64 / took.as_secs_f64();
        if goodput > 0.0 && self.decision.handle_goodput(goodput) {
            tracing::debug!(goodput, "compression was switched");
        }
        self.measured = (Instant::now(), acked);
    }
}

/// Decompresses chunks, each to its known length and never beyond.
pub(super) struct Decompressor(zstd::bulk::Decompressor<'static>);

impl Decompressor {
    pub(super) fn new() -> Result<Self, Failure> {
        let context = zstd::bulk::Decompressor::new();
        context.map(Decompressor).map_err(|error| Failure::new(Code::Internal, format!("nothing can be decompressed: {error}")))
    }

    /// The bytes; none when they are not what they should be.
    pub(super) fn decompress(&mut self, bytes: &[u8], len: u32) -> Vec<u8> {
        self.0.decompress(bytes, len as usize).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Same(Vec<u8>);

    impl ReadChunk for Same {
        fn read(&mut self, _: u32, _: ChunkPlace, into: &mut Vec<u8>, _: bool) -> Result<(), Failure> {
            into.extend_from_slice(&self.0);
            Ok(())
        }

        fn fork(&self) -> Result<Box<dyn ReadChunk>, Failure> {
            Ok(Box::new(Same(self.0.clone())))
        }
    }

    fn place(bytes: &[u8]) -> ChunkPlace {
        ChunkPlace { entry: 0, offset: 0, len: bytes.len() as u32 }
    }

    fn unframed(content: Content) -> (FrameKind, Vec<u8>) {
        let (header, bytes) = content.frame.split_at(HEADER);
        assert_eq!((header, content.header.offset), (&content.header.encode()[..], 0));
        (content.header.kind, bytes.to_vec())
    }

    #[test]
    fn a_plain_chunk_is_read_behind_its_header() {
        let bytes: Vec<u8> = (0..MAX_CHUNK).map(|n| (n / 7) as u8).collect();
        let content = read_plain(5, 3, place(&bytes), false, &mut Same(bytes.clone())).unwrap();
        assert!(unframed(content) == (FrameKind::Chunk(3), bytes));
    }

    #[test]
    fn a_compressed_chunk_comes_back_and_one_that_does_not_shrink_goes_plain() {
        let text = b"frame 17, node nose, ".repeat(5000);
        let noise: Vec<u8> = crate::runtime::files::noise(1, 100_000);
        for (bytes, shrinks) in [(text, true), (noise, false), (vec![7], false)] {
            let mut compressor = Compressor::new().unwrap();
            let content = compressor.read(5, 3, place(&bytes), false, &mut Same(bytes.clone()), 0).unwrap().unwrap();
            let (kind, carried) = unframed(content);
            if shrinks {
                assert_eq!(kind, FrameKind::Compressed { index: 3, len: carried.len() as u32 });
                let mut decompressor = Decompressor::new().unwrap();
                assert!(decompressor.decompress(&carried, bytes.len() as u32) == bytes);
                assert!(decompressor.decompress(&carried, bytes.len() as u32 - 1).is_empty(), "longer than it may be");
                assert!(decompressor.decompress(&carried[..carried.len() - 1], bytes.len() as u32).is_empty());
            } else {
                assert!((kind, carried) == (FrameKind::Chunk(3), bytes));
            }
        }
    }
}
