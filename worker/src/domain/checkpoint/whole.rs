//! Whether a file is whole, by what its format says of its own length.
//!
//! * `.ckpt` (torch), `.keras`, `.npz` are zip archives: the last thing written is the record that says where the directory is
//! * `.h5` is HDF5: its superblock says how long the file is
//! * of anything else nothing is known

/// So much of a file's beginning is needed.
pub const HEAD: usize = 64;
/// So much of a file's end is needed: the end record with the longest comment, and what stands before it in a large archive.
pub const TAIL: usize = END + 65_535 + LOCATOR;

const END: usize = 22;
const LOCATOR: usize = 20;
const HDF5: &[u8] = b"\x89HDF\r\n\x1a\n";

/// What a format says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wholeness {
    /// It is whole.
    Whole,
    /// It is not, or not yet.
    Half,
    /// The format says nothing about it.
    Unknown,
}

/// Whether a file of this name, beginning, end and length is whole.
pub fn wholeness(name: &str, head: &[u8], tail: &[u8], size: u64) -> Wholeness {
    let extension = name.rsplit_once('.').map(|(_, extension)| extension.to_ascii_lowercase());
    let whole = match extension.as_deref() {
        _ if size == 0 => false,
        Some("ckpt" | "keras" | "npz") => zip_is_whole(head, tail, size),
        Some("h5" | "hdf5") => hdf5_is_whole(head, size),
        _ if head.starts_with(b"PK\x03\x04") => zip_is_whole(head, tail, size),
        _ if head.starts_with(HDF5) => hdf5_is_whole(head, size),
        _ => return Wholeness::Unknown,
    };
    if whole { Wholeness::Whole } else { Wholeness::Half }
}

fn zip_is_whole(head: &[u8], tail: &[u8], size: u64) -> bool {
    if !head.starts_with(b"PK\x03\x04") {
        return false;
    }
    let end_record = |at: &usize| {
        let record = &tail[*at..];
        record.starts_with(b"PK\x05\x06") && END + usize::from(u16_at(record, 20)) == record.len()
    };
    let Some(at) = tail.len().checked_sub(END).and_then(|last| (0..=last).rev().find(end_record)) else { return false };
    let (record, position) = (&tail[at..], size - (tail.len() - at) as u64);
    let (length, offset) = (u32_at(record, 12), u32_at(record, 16));
    if length != u32::MAX && offset != u32::MAX {
        return u64::from(length) + u64::from(offset) <= position;
    }
    // A large archive: the real numbers stand in a record whose place is said just before the end record.
    let locator = at.checked_sub(LOCATOR).map(|at| &tail[at..at + LOCATOR]).filter(|locator| locator.starts_with(b"PK\x06\x07"));
    locator.is_some_and(|locator| u64_at(locator, 8) < position)
}

fn hdf5_is_whole(head: &[u8], size: u64) -> bool {
    if !head.starts_with(HDF5) || head.len() < HEAD {
        return false;
    }
    // Where the base address stands; the end of the file stands two addresses further.
    let (width, base) = match head[8] {
        0 => (head[13], 24),
        1 => (head[13], 28),
        2 | 3 => (head[9], 12),
        _ => return false,
    };
    let end = match width {
        8 => u64_at(head, base + 16),
        4 => u64::from(u32_at(head, base + 8)),
        _ => return false,
    };
    0 < end && end <= size
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|n| bytes[at + n]))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|n| bytes[at + n]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// An archive of one stored entry, as far as its frame goes.
    fn zip(content: &[u8], comment: &[u8]) -> Vec<u8> {
        let mut file = [b"PK\x03\x04".as_slice(), content].concat();
        let offset = file.len() as u32;
        file.extend(b"PK\x01\x02directory");
        let length = file.len() as u32 - offset;
        file.extend(b"PK\x05\x06");
        file.extend([0, 0, 0, 0, 1, 0, 1, 0]);
        file.extend(length.to_le_bytes());
        file.extend(offset.to_le_bytes());
        file.extend((comment.len() as u16).to_le_bytes());
        file.extend(comment);
        file
    }

    fn judge(name: &str, file: &[u8]) -> Wholeness {
        wholeness(name, &file[..file.len().min(HEAD)], &file[file.len().saturating_sub(TAIL)..], file.len() as u64)
    }

    #[test]
    fn no_part_of_an_archive_is_whole() {
        for comment in [b"".as_slice(), b"a comment"] {
            let file = zip(&[7; 300], comment);
            assert_eq!(judge("best.ckpt", &file), Wholeness::Whole);
            assert_eq!(judge("model.pt", &file), Wholeness::Whole, "by its first bytes");
            for length in 0..file.len() {
                assert_eq!(judge("best.ckpt", &file[..length]), Wholeness::Half, "{length} of {}", file.len());
            }
        }
    }

    #[test]
    fn an_archive_that_points_beyond_its_end_is_not_whole() {
        let mut file = zip(&[7; 30], b"");
        let at = file.len() - 6;
        file[at..at + 4].copy_from_slice(&1000u32.to_le_bytes());
        assert_eq!(judge("best.ckpt", &file), Wholeness::Half);
        // A large archive without the place of its real numbers.
        file[at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(judge("best.ckpt", &file), Wholeness::Half);
        let mut locator = b"PK\x06\x07\0\0\0\0".to_vec();
        locator.extend(9u64.to_le_bytes());
        locator.extend(1u32.to_le_bytes());
        file.splice(file.len() - END..file.len() - END, locator);
        assert_eq!(judge("best.ckpt", &file), Wholeness::Whole);
    }

    #[test]
    fn what_is_no_archive_is_no_checkpoint_of_torch() {
        assert_eq!(judge("best.ckpt", &[0; 500]), Wholeness::Half);
        assert_eq!(judge("model.bin", &[0; 500]), Wholeness::Unknown);
        assert_eq!(judge("model.bin", &[]), Wholeness::Half);
    }

    #[test]
    fn hdf5_says_how_long_it_is() {
        for (version, base) in [(0u8, 24usize), (1, 28), (2, 12), (3, 12)] {
            let mut file = vec![0; 200];
            file[..8].copy_from_slice(HDF5);
            file[8] = version;
            file[if version < 2 { 13 } else { 9 }] = 8;
            file[base + 16..base + 24].copy_from_slice(&200u64.to_le_bytes());
            assert_eq!(judge("best_model.h5", &file), Wholeness::Whole, "version {version}");
            assert_eq!(judge("best_model.h5", &file[..199]), Wholeness::Half);
            file[base + 16..base + 24].fill(0xff);
            assert_eq!(judge("best_model.h5", &file), Wholeness::Half, "its end is not known yet");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_judged(name in "[a-z]{1,3}\\.(ckpt|h5|pt)", start in 0..3usize, bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let file = [[b"PK\x03\x04".as_slice(), HDF5, b""][start], &bytes].concat();
            judge(&name, &file);
            judge(&name, &[&file[..], b"PK\x05\x06", &bytes].concat());
        }
    }
}
