//! The binary frames of a bulk channel: pieces of chunks, of manifests and of proofs, and what only measures the path.
//!
//! ```text
//!   byte 0      kind: 1 = piece of a chunk, 2 = piece of the manifest, 3 = piece of a compressed chunk (Zstandard, RFC 8878),
//!               4 = probe: thrown away, once counted where a plan was asked for, 5 = piece of a proof of possession
//!   bytes 1-3   length of the compressed chunk (kind 3), big endian; else zero
//!   bytes 4-7   transfer id, big endian
//!   bytes 8-11  chunk index (kinds 1 and 3) or 0
//!   bytes 12-15 offset of the piece in its chunk, compressed chunk, manifest or proof
//!   bytes 16-   the piece, 1 to 65 520 bytes; of a chunk, to a receiver that says so, up to 262 128
//! ```

use super::error::{Code, Failure};

/// Length of the header.
pub const HEADER: usize = 16;
/// The longest piece that every receiver takes; with the header exactly 64 KiB.
pub const PIECE: usize = 64 * 1024 - HEADER;
/// The longest piece of all; with the header exactly as long as a message may be. Nearly every chunk is one such piece, which costs the
/// transport and both ends less than several.
pub const MAX_PIECE: usize = 256 * 1024 - HEADER;

/// What a piece belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameKind {
    /// To this chunk (index into the manifest's chunk sequence).
    Chunk(u32),
    /// To the manifest itself.
    Manifest,
    /// To this chunk, compressed.
    Compressed {
        /// The chunk.
        index: u32,
        /// Its length when compressed, in bytes; below 2²⁴.
        len: u32,
    },
    /// To nothing: it measures the path.
    Probe,
    /// To the proof that the sender has the chunks it was asked about.
    Proof,
}

/// The header of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// Which transfer of the session.
    pub transfer: u32,
    /// What the piece belongs to.
    pub kind: FrameKind,
    /// Where in that it begins, in bytes.
    pub offset: u32,
}

impl FrameHeader {
    /// The header's bytes.
    pub fn encode(&self) -> [u8; HEADER] {
        let (kind, index, len) = match self.kind {
            FrameKind::Chunk(index) => (1, index, 0),
            FrameKind::Manifest => (2, 0, 0),
            FrameKind::Compressed { index, len } => (3, index, len),
            FrameKind::Probe => (4, 0, 0),
            FrameKind::Proof => (5, 0, 0),
        };
        let mut bytes = [0; HEADER];
        bytes[..4].copy_from_slice(&len.to_be_bytes());
        bytes[0] = kind;
        bytes[4..8].copy_from_slice(&self.transfer.to_be_bytes());
        bytes[8..12].copy_from_slice(&index.to_be_bytes());
        bytes[12..16].copy_from_slice(&self.offset.to_be_bytes());
        bytes
    }

    /// Splits a frame into header and piece.
    ///
    /// # Errors
    /// [`Code::InvalidRequest`] when it is too short, too long, or of an unknown kind.
    pub fn decode(frame: &[u8]) -> Result<(FrameHeader, &[u8]), Failure> {
        let refused = |why: &str| Failure::new(Code::InvalidRequest, format!("not a bulk frame: {why}"));
        let (header, piece) = frame.split_at_checked(HEADER).ok_or_else(|| refused("shorter than its header"))?;
        if piece.is_empty() || piece.len() > MAX_PIECE {
            return Err(refused("an empty or oversized piece"));
        }
        let word = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().expect("four bytes"));
        let kind = match header[0] {
            1 => FrameKind::Chunk(word(8)),
            2 => FrameKind::Manifest,
            3 => FrameKind::Compressed { index: word(8), len: word(0) & 0x00ff_ffff },
            4 => FrameKind::Probe,
            5 => FrameKind::Proof,
            _ => return Err(refused("unknown kind")),
        };
        Ok((FrameHeader { transfer: word(4), kind, offset: word(12) }, piece))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_frame_looks_like_its_description() {
        let header = FrameHeader { transfer: 7, kind: FrameKind::Chunk(258), offset: 65_520 };
        let bytes = header.encode();
        assert_eq!(bytes, [1, 0, 0, 0, 0, 0, 0, 7, 0, 0, 1, 2, 0, 0, 0xff, 0xf0]);
        let frame = [&bytes[..], b"data"].concat();
        assert_eq!(FrameHeader::decode(&frame).unwrap(), (header, &b"data"[..]));
        let probe = FrameHeader { transfer: 0, kind: FrameKind::Probe, offset: 0 };
        assert_eq!(probe.encode()[0], 4);
        assert_eq!(FrameHeader::decode(&[&probe.encode()[..], b"x"].concat()).unwrap().0, probe);
    }

    #[test]
    fn a_compressed_chunk_says_how_long_it_is() {
        let header = FrameHeader { transfer: 7, kind: FrameKind::Compressed { index: 258, len: 0x01_02_03 }, offset: 5 };
        assert_eq!(header.encode(), [3, 1, 2, 3, 0, 0, 0, 7, 0, 0, 1, 2, 0, 0, 0, 5]);
        assert_eq!(FrameHeader::decode(&[&header.encode()[..], b"x"].concat()).unwrap().0, header);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            if let Ok((header, piece)) = FrameHeader::decode(&bytes) {
                prop_assert_eq!(FrameHeader::decode(&[&header.encode()[..], piece].concat()).unwrap().0, header);
            }
        }
    }
}
