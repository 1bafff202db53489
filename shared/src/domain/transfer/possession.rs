//! Proof that a sender has the bytes of chunks and not only their hashes.
//!
//! Who knows a manifest knows hashes; that must not be enough to get at chunks that somebody else has sent, nor to learn that
//! they are there. So the receiver sends a fresh [`Challenge`] and the chunks that it asks about: all that it lacks, whether
//! others have sent them or not. The sender answers with a [`Tag`] for each: a keyed BLAKE3 of the chunk's bytes, cut to 16
//! bytes. The key is derived from the challenge, the session's secret, the package and the transfer, so that no tag is good
//! anywhere else.
//!
//! ```text
//!   receiver                                   sender
//!     FILE_PROVE (challenge, chunks)  ──────►
//!                                     ◄──────  proof frames: the tags, in the order of the chunks
//!     FILE_NEED                       ──────►
//! ```

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::ChunkSet;
use crate::domain::{
    error::{Code, Failure},
    frame::{FrameHeader, FrameKind},
    id::Secret,
    manifest::Hash,
    message::TransferId,
};

/// The length of a tag in bytes.
pub const TAG: usize = 16;
/// What [`ProofKey`] is derived for; of this protocol and nothing else (BLAKE3, section 2.3).
const CONTEXT: &str = "webrtc-connect 1 proof of possession of chunks";

/// What a proof answers: random, and new each time.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Challenge(pub [u8; 32]);

impl fmt::Debug for Challenge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Hash(self.0).fmt(f)
    }
}

impl Serialize for Challenge {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Hash(self.0).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Challenge {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Hash::deserialize(deserializer).map(|hash| Challenge(hash.0))
    }
}

/// The proof for one chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tag(pub [u8; TAG]);

/// Makes and checks the tags of one transfer.
#[derive(Clone)]
pub struct ProofKey(Secret<[u8; 32]>);

impl ProofKey {
    /// The key for this challenge. `session`: the secret that both sides of the session have and nobody else.
    pub fn new(challenge: &Challenge, session: &Secret<[u8; 32]>, package: &Hash, transfer: TransferId) -> ProofKey {
        let material = [&challenge.0[..], session.expose(), &package.0, &transfer.to_be_bytes()].concat();
        ProofKey(Secret::new(blake3::derive_key(CONTEXT, &material)))
    }

    /// The tag of a chunk with these bytes.
    pub fn tag(&self, bytes: &[u8]) -> Tag {
        let hash = blake3::keyed_hash(self.0.expose(), bytes);
        Tag(*hash.as_bytes().first_chunk().expect("a hash is longer than a tag"))
    }

    /// Whether a tag is that of these bytes; takes the same time whichever bytes of it are wrong.
    pub fn proves(&self, tag: &Tag, bytes: &[u8]) -> bool {
        let wide = |Tag(tag): &Tag| {
            let mut wide = [0; 32];
            wide[..TAG].copy_from_slice(tag);
            blake3::Hash::from_bytes(wide)
        };
        // `blake3::Hash` compares in constant time.
        wide(tag) == wide(&self.tag(bytes))
    }
}

impl fmt::Debug for ProofKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ProofKey")
    }
}

/// Proof frames → the tag of each chunk that was asked about.
#[derive(Debug)]
pub struct ProofAssembly {
    asked: Vec<u32>,
    done: usize,
}

impl ProofAssembly {
    /// Waits for the tags of these chunks.
    pub fn new(asked: &ChunkSet) -> ProofAssembly {
        ProofAssembly { asked: asked.iter().collect(), done: 0 }
    }

    /// Takes a frame; the tags in it that are new. A sender that has lost its connection starts over on another, so what is
    /// known already may come again.
    ///
    /// # Errors
    /// [`Code::InvalidRequest`] for a frame with parts of tags, beyond the last one, or after a gap.
    pub fn accept_piece(&mut self, header: FrameHeader, piece: &[u8]) -> Result<Vec<(u32, Tag)>, Failure> {
        let refused = |why: &str| Err(Failure::new(Code::InvalidRequest, format!("a proof is not acceptable: {why}")));
        if header.kind != FrameKind::Proof {
            return refused("it is something else");
        }
        let (tags, rest) = piece.as_chunks::<TAG>();
        let first = header.offset as usize / TAG;
        if !rest.is_empty() || !(header.offset as usize).is_multiple_of(TAG) {
            return refused("it has a part of a tag");
        }
        if first > self.done || first + tags.len() > self.asked.len() {
            return refused("it is out of order or out of bounds");
        }
        let news = tags.iter().enumerate().skip(self.done - first).map(|(at, tag)| (self.asked[first + at], Tag(*tag))).collect();
        self.done = self.done.max(first + tags.len());
        Ok(news)
    }

    /// Whether the tags of all chunks are here.
    pub fn is_complete(&self) -> bool {
        self.done == self.asked.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(challenge: u8, session: u8, package: u8, transfer: u32) -> ProofKey {
        ProofKey::new(&Challenge([challenge; 32]), &Secret::new([session; 32]), &Hash([package; 32]), transfer)
    }

    #[test]
    fn a_tag_is_good_for_its_bytes_in_its_transfer_only() {
        let tag = key(1, 2, 3, 4).tag(b"chunk");
        assert!(key(1, 2, 3, 4).proves(&tag, b"chunk"));
        assert!(!key(1, 2, 3, 4).proves(&tag, b"chunk "));
        for other in [key(9, 2, 3, 4), key(1, 9, 3, 4), key(1, 2, 9, 4), key(1, 2, 3, 9)] {
            assert!(!other.proves(&tag, b"chunk"));
        }
        let mut almost = tag;
        almost.0[15] ^= 1;
        assert!(!key(1, 2, 3, 4).proves(&almost, b"chunk"));
        assert!(!format!("{:?}", key(1, 2, 3, 4)).contains('['), "the key is not shown");
    }

    /// Another implementation must come to the same.
    #[test]
    fn a_tag_is_the_beginning_of_a_keyed_hash() {
        let material = [[1; 32], [2; 32], [3; 32]].concat();
        let key_bytes = blake3::derive_key("webrtc-connect 1 proof of possession of chunks", &[&material[..], &[0, 0, 0, 4]].concat());
        assert_eq!(key(1, 2, 3, 4).tag(b"chunk").0, blake3::keyed_hash(&key_bytes, b"chunk").as_bytes()[..16]);
    }

    #[test]
    fn tags_arrive_in_order_and_once() {
        let mut asked = ChunkSet::new(20);
        [3, 5, 8, 13].into_iter().for_each(|index| assert!(asked.insert(index)));
        let mut assembly = ProofAssembly::new(&asked);
        let frame = |first: u32| FrameHeader { transfer: 1, kind: FrameKind::Proof, offset: first * 16 };
        let tags = |values: &[u8]| values.iter().flat_map(|&value| [value; 16]).collect::<Vec<u8>>();
        let mut accept = |first, values: &[u8]| {
            let news = assembly.accept_piece(frame(first), &tags(values)).map_err(|failure| failure.code);
            (news.map(|news| news.into_iter().map(|(index, tag)| (index, tag.0[0])).collect::<Vec<_>>()), assembly.is_complete())
        };
        let refused = (Err(Code::InvalidRequest), false);
        assert_eq!(accept(1, &[5]), refused, "a gap");
        assert_eq!(accept(0, &[3, 5]), (Ok(vec![(3, 3), (5, 5)]), false));
        assert_eq!(accept(0, &[3]), (Ok(vec![]), false));
        assert_eq!(accept(3, &[13]), refused);
        assert_eq!(accept(0, &[1, 2, 3, 4, 5]), refused);
        assert_eq!(accept(1, &[5, 8, 13]), (Ok(vec![(8, 8), (13, 13)]), true));
        assert_eq!(accept(0, &[9]), (Ok(vec![]), true), "what is known stays as it was");
        for (offset, piece) in [(8, vec![0; 16]), (0, vec![0; 15]), (u32::MAX, vec![0; 16])] {
            let header = FrameHeader { offset, ..frame(0) };
            assert_eq!(assembly.accept_piece(header, &piece).unwrap_err().code, Code::InvalidRequest, "{offset}");
        }
        let other = FrameHeader { kind: FrameKind::Manifest, ..frame(0) };
        assert_eq!(assembly.accept_piece(other, &tags(&[1])).unwrap_err().code, Code::InvalidRequest);
    }
}
