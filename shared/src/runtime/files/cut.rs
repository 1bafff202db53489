//! Bytes → chunks and their hashes.
//!
//! The parameters are part of what makes a package's identity, so they never change: FastCDC 2020, minimum 32 KiB, average
//! 128 KiB, maximum 256 KiB, normalisation level 2, no seed. Level 2 because with a maximum of only twice the average, level 1
//! would cut one chunk in eight at the maximum, which does not find its way back after an insertion.

use std::io::{self, Read};

use fastcdc::v2020::{Normalization, cut, select_masks};

use crate::domain::manifest::{Chunk, Hash, MAX_CHUNK};

const MIN: usize = 32 * 1024;
const AVERAGE: usize = 128 * 1024;
const MAX: usize = MAX_CHUNK as usize;
/// What is read at once.
const BUFFER: usize = 1024 * 1024;

/// A file's content, described.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Described {
    pub(super) size: u64,
    pub(super) root: Hash,
    pub(super) chunks: Vec<Chunk>,
}

/// Cuts contents into chunks; keeps its buffer from one to the next.
#[derive(Debug, Default)]
pub(super) struct Cutter {
    buffer: Vec<u8>,
}

impl Cutter {
    /// Describes everything that the reader has. `each` hears the length of each chunk and may end it.
    pub(super) fn describe(&mut self, reader: &mut dyn Read, each: &mut dyn FnMut(u32) -> io::Result<()>) -> io::Result<Described> {
        let (mask_s, mask_l) = select_masks(AVERAGE, Normalization::Level2);
        self.buffer.resize(BUFFER, 0);
        let (mut start, mut end, mut ended) = (0, 0, false);
        let mut whole = blake3::Hasher::new();
        let mut described = Described { size: 0, root: Hash::of(b""), chunks: Vec::new() };
        loop {
            while !ended && end - start < MAX {
                if start > 0 {
                    self.buffer.copy_within(start..end, 0);
                    (start, end) = (0, end - start);
                }
                (end, ended) = fill(reader, &mut self.buffer, end)?;
            }
            if start == end {
                break;
            }
            let window = &self.buffer[start..end.min(start + MAX)];
            let (_, len) = cut(window, MIN, AVERAGE, MAX, mask_s, mask_l, mask_s << 1, mask_l << 1);
            let bytes = &window[..len.max(1)];
            let chunk = Chunk { hash: Hash::of(bytes), len: bytes.len() as u32 };
            start += bytes.len();
            described.size += bytes.len() as u64;
            described.chunks.push(chunk);
            // A file of one chunk need not be hashed twice.
            if !(ended && start == end && described.chunks.len() == 1) {
                whole.update(bytes);
            }
            each(chunk.len)?;
        }
        described.root = match &described.chunks[..] {
            [only] => only.hash,
            _ => Hash(*whole.finalize().as_bytes()),
        };
        Ok(described)
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

    fn describe(bytes: &[u8]) -> Described {
        Cutter::default().describe(&mut Dribble(bytes, 1), &mut |_| Ok(())).unwrap()
    }

    #[test]
    fn chunks_are_those_of_the_crates_own_iterator() {
        let bytes = noise(1, 5_000_000);
        let expected: Vec<Chunk> = fastcdc::v2020::FastCDC::with_level(&bytes, MIN, AVERAGE, MAX, Normalization::Level2)
            .map(|chunk| Chunk { hash: Hash::of(&bytes[chunk.offset..chunk.offset + chunk.length]), len: chunk.length as u32 })
            .collect();
        let described = describe(&bytes);
        assert_eq!(described.chunks, expected);
        assert_eq!((described.size, described.root), (5_000_000, Hash::of(&bytes)));
        assert!((20..80).contains(&described.chunks.len()), "{}", described.chunks.len());
    }

    #[test]
    fn sizes_around_the_limits_are_described_whole() {
        for len in [0, 1, MIN - 1, MIN, MIN + 1, MAX - 1, MAX, MAX + 1, BUFFER, BUFFER + 1] {
            for bytes in [noise(2, len), vec![0; len]] {
                let described = describe(&bytes);
                assert_eq!((described.size, described.root), (len as u64, Hash::of(&bytes)), "{len}");
                assert_eq!(described.chunks.iter().map(|chunk| chunk.len as usize).sum::<usize>(), len);
                assert!(described.chunks.iter().all(|chunk| chunk.len > 0 && chunk.len <= MAX_CHUNK));
            }
        }
    }

    #[test]
    fn an_insertion_in_front_changes_only_the_chunks_around_it() {
        let bytes = noise(3, 8_000_000);
        let before = describe(&bytes);
        let after = describe(&[&noise(4, 10_000)[..], &bytes].concat());
        let known: std::collections::HashSet<Hash> = before.chunks.iter().map(|chunk| chunk.hash).collect();
        let fresh: u64 = after.chunks.iter().filter(|chunk| !known.contains(&chunk.hash)).map(|chunk| u64::from(chunk.len)).sum();
        assert!(fresh < 10_000 + 3 * u64::from(MAX_CHUNK), "{fresh} bytes would travel again");
    }
}
