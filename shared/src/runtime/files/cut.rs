//! Bytes → chunks and their hashes.
//!
//! The parameters are part of what makes a package's identity, so they never change: FastCDC 2020, minimum 64 KiB, average
//! 128 KiB, maximum 256 KiB, normalisation level 2, no seed. Level 2 because with a maximum of only twice the average, level 1
//! would cut one chunk in eight at the maximum, which does not find its way back after an insertion. A minimum of half the
//! average, because no byte before it is looked at: with a quarter, cutting and hashing together are a fifth slower.

use std::io::{self, Read};

use fastcdc::v2020::{Normalization, get_gear_with_seed, select_masks};
use gearhash::{Hasher, Table};

use crate::domain::manifest::{Chunk, Hash, MAX_CHUNK};

const MIN: usize = 64 * 1024;
/// About how long a chunk is.
pub(super) const AVERAGE: usize = 128 * 1024;
const MAX: usize = MAX_CHUNK as usize;
/// What is read at once.
const BLOCK: usize = 1024 * 1024;

/// Where FastCDC 2020 cuts: the tables of one crate, searched by the vectors of another.
struct Cutter {
    gear: Table,
    /// Before the average length, and after it.
    masks: (u64, u64),
}

impl Cutter {
    fn new() -> Cutter {
        let (gear, _) = get_gear_with_seed(0);
        let gear = (*gear).try_into().expect("a byte has 256 values");
        Cutter { gear, masks: select_masks(AVERAGE, Normalization::Level2) }
    }

    /// The length of the first chunk of these bytes, of which there are [`MAX`] or all that follow.
    fn cut(&self, bytes: &[u8]) -> usize {
        // The published algorithm looks at pairs: an odd last byte is never a place to cut.
        let tested = bytes.len().min(MAX) & !1;
        let middle = tested.clamp(MIN, AVERAGE);
        let mut hasher = Hasher::new(&self.gear);
        for (from, to, mask) in [(MIN, middle, self.masks.0), (middle, tested, self.masks.1)] {
            if from < to
                && let Some(end) = hasher.next_match(&bytes[from..to], mask)
            {
                // The byte that says so belongs to the next chunk.
                return from + end - 1;
            }
        }
        bytes.len().min(MAX)
    }
}

/// Cuts and hashes; its buffer serves one reader after the other.
pub(super) struct Describer {
    cutter: Cutter,
    buffer: Vec<u8>,
}

impl Describer {
    pub(super) fn new() -> Describer {
        Describer { cutter: Cutter::new(), buffer: vec![0; BLOCK] }
    }

    /// Describes what the reader has, which begins where a chunk does, up to the first chunk that begins `until` bytes later or still
    /// later; `each` takes the chunks. Returns the length of them all.
    pub(super) fn describe(&mut self, reader: &mut dyn Read, until: u64, each: &mut dyn FnMut(Chunk) -> io::Result<()>) -> io::Result<u64> {
        let (mut size, mut filled) = (0, 0);
        loop {
            let most = (until - size).saturating_add(MAX as u64).min(BLOCK as u64) as usize;
            let (end, ended) = fill(reader, &mut self.buffer[..most], filled)?;
            let mut start = 0;
            while size < until && (end - start >= MAX || (ended && start < end)) {
                let len = self.cutter.cut(&self.buffer[start..end]);
                // At once, while the processor has the bytes at hand.
                each(Chunk { hash: Hash::of(&self.buffer[start..start + len]), len: len as u32 })?;
                start += len;
                size += len as u64;
            }
            if ended || size >= until {
                return Ok(size);
            }
            // What is left may be the beginning of a chunk that goes on.
            self.buffer.copy_within(start..end, 0);
            filled = end - start;
        }
    }
}

/// Reads until the buffer is full or the reader ends; returns where the data ends, and whether the reader did.
fn fill(reader: &mut dyn Read, buffer: &mut [u8], mut end: usize) -> io::Result<(usize, bool)> {
    while end < buffer.len() {
        match reader.read(&mut buffer[end..]) {
            Ok(0) => return Ok((end, true)),
            Ok(len) => end += len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok((end, false))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Bytes that look random and are the same each time.
    pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
        bytes
    }

    /// A reader that gives what it has in small, uneven portions.
    struct Dribble<'a>(&'a [u8], usize);

    impl Read for Dribble<'_> {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            self.1 = self.1 * 31 % 7919 + 1;
            let len = self.1.min(buf.len()).min(self.0.len());
            buf[..len].copy_from_slice(&self.0[..len]);
            self.0 = &self.0[len..];
            Ok(len)
        }
    }

    fn describe(bytes: &[u8]) -> Vec<Chunk> {
        let mut chunks = Vec::new();
        let mut each = |chunk| {
            chunks.push(chunk);
            Ok(())
        };
        assert_eq!(Describer::new().describe(&mut Dribble(bytes, 1), u64::MAX, &mut each).unwrap(), bytes.len() as u64);
        chunks
    }

    #[test]
    fn chunks_are_those_of_the_crates_own_iterator() {
        let mut count = 0;
        for (seed, len) in [(1, 5_000_000), (5, 777_777), (6, MIN + 1), (7, AVERAGE - 1), (8, AVERAGE + 1), (9, MAX + 1)] {
            let bytes = noise(seed, len);
            let expected: Vec<Chunk> = fastcdc::v2020::FastCDC::with_level(&bytes, MIN, AVERAGE, MAX, Normalization::Level2)
                .map(|chunk| Chunk { hash: Hash::of(&bytes[chunk.offset..chunk.offset + chunk.length]), len: chunk.length as u32 })
                .collect();
            let chunks = describe(&bytes);
            assert_eq!(chunks, expected, "{len} bytes");
            count += chunks.len();
        }
        assert!((30..90).contains(&count), "{count}");
    }

    proptest::proptest! {
        #[test]
        fn cuts_are_the_crates_own(seed: u64, len in 1..MAX + 9, period in 1..5000usize) {
            // Bytes that repeat, and so cut in other places than noise does.
            let noise = noise(seed, period);
            let bytes: Vec<u8> = noise.iter().copied().cycle().take(len).collect();
            let (mask_s, mask_l) = select_masks(AVERAGE, Normalization::Level2);
            let (_, expected) = fastcdc::v2020::cut(&bytes, MIN, AVERAGE, MAX, mask_s, mask_l, mask_s << 1, mask_l << 1);
            proptest::prop_assert_eq!(Cutter::new().cut(&bytes), expected);
        }
    }

    #[test]
    fn sizes_around_the_limits_are_described_whole() {
        for len in [0, 1, MIN - 1, MIN, MIN + 1, MAX - 1, MAX, MAX + 1, BLOCK, BLOCK + 1] {
            for bytes in [noise(2, len), vec![0; len]] {
                let chunks = describe(&bytes);
                assert_eq!(chunks.iter().map(|chunk| chunk.len as usize).sum::<usize>(), len);
                assert!(chunks.iter().all(|chunk| chunk.len > 0 && chunk.len <= MAX_CHUNK));
            }
        }
    }

    #[test]
    fn a_part_ends_with_the_chunk_that_reaches_its_end() {
        let bytes = noise(6, 3_000_000);
        let all = describe(&bytes);
        let mut describer = Describer::new();
        let mut end = 0;
        for (number, chunk) in all.iter().enumerate() {
            for until in [end + 1, end + u64::from(chunk.len)] {
                let mut chunks = Vec::new();
                let mut each = |chunk| {
                    chunks.push(chunk);
                    Ok(())
                };
                let length = describer.describe(&mut Dribble(&bytes, 1), until, &mut each).unwrap();
                assert_eq!((length, &chunks[..]), (end + u64::from(chunk.len), &all[..=number]), "until {until}");
            }
            end += u64::from(chunk.len);
        }
    }

    #[test]
    fn an_insertion_in_front_changes_only_the_chunks_around_it() {
        let bytes = noise(3, 8_000_000);
        let before = describe(&bytes);
        let after = describe(&[&noise(4, 10_000)[..], &bytes].concat());
        let known: std::collections::HashSet<Hash> = before.iter().map(|chunk| chunk.hash).collect();
        let fresh: u64 = after.iter().filter(|chunk| !known.contains(&chunk.hash)).map(|chunk| u64::from(chunk.len)).sum();
        assert!(fresh < 10_000 + 3 * u64::from(MAX_CHUNK), "{fresh} bytes would travel again");
    }
}
