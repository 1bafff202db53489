//! Some of a manifest's chunks: a bitmap, its form on the wire, and its ranges.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};

use crate::domain::error::{Code, Failure};

/// How many chunks one `FILE_NEED` piece should describe: 32 KiB of bits, 44 kB of text, within a message's limit.
pub const PIECE_CHUNKS: u32 = 256 * 1024;

/// A set of chunk indices below a fixed length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkSet {
    words: Vec<u64>,
    len: u32,
    count: u32,
}

impl ChunkSet {
    /// The empty set over `len` chunks.
    pub fn new(len: u32) -> Self {
        ChunkSet { words: vec![0; (len as usize).div_ceil(64)], len, count: 0 }
    }

    /// The set of all `len` chunks.
    pub fn full(len: u32) -> Self {
        let mut set = ChunkSet { words: vec![u64::MAX; (len as usize).div_ceil(64)], len, count: len };
        set.trim();
        set
    }

    /// Number of chunks it could hold.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Number of chunks in it.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Whether it holds all.
    pub fn is_full(&self) -> bool {
        self.count == self.len
    }

    /// Whether the chunk is in it; `false` also beyond its length.
    pub fn contains(&self, index: u32) -> bool {
        index < self.len && self.words[index as usize / 64] >> (index % 64) & 1 == 1
    }

    /// Puts a chunk in; `false`: it was there, or is beyond the length.
    pub fn insert(&mut self, index: u32) -> bool {
        if index >= self.len || self.contains(index) {
            return false;
        }
        self.words[index as usize / 64] |= 1 << (index % 64);
        self.count += 1;
        true
    }

    /// Takes a chunk out; `false`: it was not there.
    pub fn remove(&mut self, index: u32) -> bool {
        if !self.contains(index) {
            return false;
        }
        self.words[index as usize / 64] &= !(1 << (index % 64));
        self.count -= 1;
        true
    }

    /// The first chunk in it at or after `from`.
    pub fn next(&self, from: u32) -> Option<u32> {
        if from >= self.len {
            return None;
        }
        let mut at = from as usize / 64;
        let mut word = self.words[at] & (u64::MAX << (from % 64));
        while word == 0 {
            at += 1;
            word = *self.words.get(at)?;
        }
        Some(at as u32 * 64 + word.trailing_zeros())
    }

    /// The chunks in it, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        std::iter::successors(self.next(0), |&index| self.next(index + 1))
    }

    /// The chunks not in it, ascending.
    pub fn iter_missing(&self) -> impl Iterator<Item = u32> + '_ {
        (0..self.len).filter(|&index| !self.contains(index))
    }

    /// All chunks that are not in it.
    pub fn complement(&self) -> ChunkSet {
        let words = self.words.iter().map(|word| !word).collect();
        let mut set = ChunkSet { words, len: self.len, count: self.len - self.count };
        set.trim();
        set
    }

    /// The set's ranges, first and last included.
    pub fn ranges(&self) -> Vec<(u32, u32)> {
        ranges_of(self.iter())
    }

    /// The set as pieces of at most `max_chunks` chunks (rounded down to whole bytes): first index, bits (least significant
    /// first, base64url), and whether it is the last. At least one piece, also for the empty length.
    pub fn encode_pieces(&self, max_chunks: u32) -> Vec<(u32, String, bool)> {
        let bytes: Vec<u8> = self.words.iter().flat_map(|word| word.to_le_bytes()).take((self.len as usize).div_ceil(8)).collect();
        let step = (max_chunks as usize / 8).max(1);
        let pieces = bytes.len().div_ceil(step).max(1);
        (0..pieces)
            .map(|piece| {
                let part = &bytes[piece * step..bytes.len().min((piece + 1) * step)];
                ((piece * step * 8) as u32, URL_SAFE_NO_PAD.encode(part), piece + 1 == pieces)
            })
            .collect()
    }

    /// Adds the chunks of one piece; returns where the next piece begins.
    ///
    /// # Errors
    /// [`Code::InvalidRequest`] when the text is not base64url or the piece reaches beyond the set.
    pub fn absorb_piece(&mut self, first: u32, bits: &str) -> Result<u32, Failure> {
        let refused = |why: &str| Failure::new(Code::InvalidRequest, format!("the list of missing chunks is not usable: {why}"));
        let bytes = URL_SAFE_NO_PAD.decode(bits).map_err(|_| refused("not base64url"))?;
        let end = u64::from(first) + bytes.len() as u64 * 8;
        if !first.is_multiple_of(8) || end > u64::from(self.len).next_multiple_of(8) {
            return Err(refused("a piece lies outside it"));
        }
        for (at, byte) in bytes.into_iter().enumerate() {
            for bit in (0..8).filter(|bit| byte >> bit & 1 == 1) {
                let index = first + at as u32 * 8 + bit;
                if index >= self.len {
                    return Err(refused("it names a chunk that does not exist"));
                }
                self.insert(index);
            }
        }
        Ok(end.min(u64::from(self.len)) as u32)
    }

    /// Clears the bits beyond the length.
    fn trim(&mut self) {
        if let (Some(last), 1..) = (self.words.last_mut(), self.len % 64) {
            *last &= (1 << (self.len % 64)) - 1;
        }
    }
}

/// Ascending indices as ranges, first and last included.
pub fn ranges_of(indices: impl IntoIterator<Item = u32>) -> Vec<(u32, u32)> {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for index in indices {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == index => *last = index,
            _ => ranges.push((index, index)),
        }
    }
    ranges
}

/// A set that arrives in pieces: each once, in order, to the last.
#[derive(Debug)]
pub struct ChunkSetAssembly {
    set: ChunkSet,
    next: u32,
}

impl ChunkSetAssembly {
    /// Waits for a set over `len` chunks.
    pub fn new(len: u32) -> Self {
        ChunkSetAssembly { set: ChunkSet::new(len), next: 0 }
    }

    /// Takes one piece; the set, once the last one is in. Then it is ready for the next set.
    ///
    /// # Errors
    /// [`Code::InvalidRequest`] for a piece out of order, a gap, or a piece that is none.
    pub fn absorb(&mut self, first: u32, bits: &str, last: bool) -> Result<Option<ChunkSet>, Failure> {
        let refused = |why: &str| Failure::new(Code::InvalidRequest, format!("the list of missing chunks is not usable: {why}"));
        if first != self.next {
            return Err(refused("its pieces are out of order"));
        }
        self.next = self.set.absorb_piece(first, bits)?;
        if !last {
            return Ok(None);
        }
        if self.next != self.set.len() {
            return Err(refused("it ends too early"));
        }
        self.next = 0;
        let empty = ChunkSet::new(self.set.len());
        Ok(Some(std::mem::replace(&mut self.set, empty)))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn bits_are_least_significant_first() {
        let mut set = ChunkSet::new(12);
        for index in [0, 3, 11] {
            assert!(set.insert(index));
        }
        assert!(!set.insert(3) && !set.insert(12));
        assert_eq!(set.encode_pieces(PIECE_CHUNKS), [(0, URL_SAFE_NO_PAD.encode([0b1001, 0b1000]), true)]);
        assert_eq!(set.ranges(), [(0, 0), (3, 3), (11, 11)]);
    }

    #[test]
    fn a_piece_that_lies_is_refused() {
        let mut assembly = ChunkSetAssembly::new(12);
        let bits = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        for (first, text, last) in [
            (8, bits(&[0]), true),
            (0, bits(&[0]), true),
            (0, bits(&[0, 0, 0]), true),
            (0, bits(&[0, 0b1_0000]), true),
            (0, "!".to_owned(), true),
            (u32::MAX, bits(&[0]), true),
        ] {
            let mut fresh = ChunkSetAssembly::new(12);
            assert_eq!(fresh.absorb(first, &text, last).unwrap_err().code, Code::InvalidRequest, "{first} {text}");
        }
        assert_eq!(assembly.absorb(0, &bits(&[1]), false).unwrap(), None);
        assert!(assembly.absorb(0, &bits(&[1]), false).is_err());
    }

    #[test]
    fn the_empty_length_has_one_piece() {
        let pieces = ChunkSet::new(0).encode_pieces(PIECE_CHUNKS);
        assert_eq!(pieces, [(0, String::new(), true)]);
        assert_eq!(ChunkSetAssembly::new(0).absorb(0, "", true).unwrap(), Some(ChunkSet::new(0)));
    }

    proptest! {
        #[test]
        fn a_set_behaves_like_a_set(len in 1u32..400, inserts in proptest::collection::vec(0u32..400, 0..200), removes in proptest::collection::vec(0u32..400, 0..100), step in 1u32..90) {
            let mut set = ChunkSet::new(len);
            let mut model = BTreeSet::new();
            for &index in &inserts {
                prop_assert_eq!(set.insert(index), index < len && model.insert(index));
            }
            for &index in &removes {
                prop_assert_eq!(set.remove(index), model.remove(&index));
            }
            prop_assert!(set.iter().eq(model.iter().copied()));
            prop_assert_eq!(set.count() as usize, model.len());
            prop_assert!(set.complement().iter().eq(set.iter_missing()));
            prop_assert_eq!(set.complement().complement(), set.clone());
            let ranges = set.ranges();
            prop_assert!(ranges.iter().flat_map(|&(first, last)| first..=last).eq(model.iter().copied()));

            let mut assembly = ChunkSetAssembly::new(len);
            let mut whole = None;
            for (first, bits, last) in set.encode_pieces(step) {
                prop_assert!(whole.is_none());
                whole = assembly.absorb(first, &bits, last).unwrap();
            }
            prop_assert_eq!(whole, Some(set));
        }

        #[test]
        fn any_piece_is_read_or_refused(first in any::<u32>(), bits in "[A-Za-z0-9_=-]{0,20}", last in any::<bool>()) {
            let _ = ChunkSetAssembly::new(100).absorb(first, &bits, last);
        }
    }
}
