//! Which chunks of a partial package are durable: an append-only log of fixed records.
//!
//! ```text
//!   bytes 0-3    kind: 1 = present, 2 = lost (found damaged later)
//!   bytes 4-7    first chunk, little endian
//!   bytes 8-11   last chunk, included
//!   bytes 12-15  the beginning of BLAKE3(package id, bytes 0-11)
//! ```
//! A record counts only with its check, so that a torn or lost write is no record.

use crate::domain::{
    manifest::Hash,
    transfer::{ChunkSet, ranges_of},
};

const PRESENT: u32 = 1;
const LOST: u32 = 2;
/// The length of a record.
pub(super) const RECORD: usize = 16;

/// Records that these chunks (ascending) are present.
pub(super) fn present(id: &Hash, indices: impl IntoIterator<Item = u32>) -> Vec<u8> {
    ranges_of(indices).into_iter().flat_map(|(first, last)| record(id, PRESENT, first, last)).collect()
}

/// Records that these chunks (ascending) are lost.
pub(super) fn lost(id: &Hash, indices: impl IntoIterator<Item = u32>) -> Vec<u8> {
    ranges_of(indices).into_iter().flat_map(|(first, last)| record(id, LOST, first, last)).collect()
}

/// What a log says of a package with `len` chunks.
pub(super) fn replay(id: &Hash, len: u32, log: &[u8]) -> ChunkSet {
    let mut set = ChunkSet::new(len);
    for bytes in log.as_chunks::<RECORD>().0 {
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        let (kind, first, last) = (word(0), word(4), word(8));
        if record(id, kind, first, last) != *bytes || first > last || last >= len {
            continue;
        }
        for index in first..=last {
            match kind {
                PRESENT => set.insert(index),
                LOST => set.remove(index),
                _ => false,
            };
        }
    }
    set
}

fn record(id: &Hash, kind: u32, first: u32, last: u32) -> [u8; RECORD] {
    let mut bytes = [0; RECORD];
    for (at, word) in [kind, first, last].into_iter().enumerate() {
        bytes[at * 4..at * 4 + 4].copy_from_slice(&word.to_le_bytes());
    }
    let mut hasher = blake3::Hasher::new();
    hasher.update(&id.0).update(&bytes[..12]);
    bytes[12..].copy_from_slice(&hasher.finalize().as_bytes()[..4]);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_says_what_was_written_and_nothing_that_was_torn() {
        let id = Hash([7; 32]);
        let mut log = present(&id, [0, 1, 2, 5]);
        log.extend(lost(&id, [1]));
        log.extend(present(&id, [9]));
        let set = |log: &[u8]| replay(&id, 10, log).iter().collect::<Vec<_>>();
        assert_eq!((log.len(), set(&log)), (4 * RECORD, vec![0, 2, 5, 9]));
        assert_eq!(set(&log[..log.len() - 1]), [0, 2, 5]);
        log[4] = 1;
        assert_eq!(set(&log), [5, 9]);
        assert!(replay(&id, 9, &log).iter().eq([5]));
        assert!(replay(&Hash([8; 32]), 10, &log).is_empty());
    }
}
