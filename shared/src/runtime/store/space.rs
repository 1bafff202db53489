//! Whether something fits, before its first byte.

use std::sync::{
    Arc, Mutex, PoisonError, Weak,
    atomic::{AtomicU64, Ordering},
};

use crate::{
    domain::{
        error::{Code, Failure},
        manifest::ManifestSummary,
    },
    runtime::files::{failed, root::Root},
};

/// What a file costs beside its bytes, about.
const PER_FILE: u64 = 4096;

/// What a package will take on the disk, in bytes, about.
pub(super) fn cost(summary: &ManifestSummary) -> u64 {
    let overhead = u64::from(summary.files).saturating_mul(PER_FILE).saturating_add(summary.encoded_len);
    summary.bytes.saturating_add(overhead)
}

/// What running transfers still have to write, so that two do not count on the same free space.
#[derive(Debug, Clone, Default)]
pub(super) struct Outstanding(Arc<Mutex<Vec<Weak<AtomicU64>>>>);

/// One transfer's share; gone when dropped.
#[derive(Debug, Default)]
pub(super) struct Share(Arc<AtomicU64>);

impl Outstanding {
    /// Takes a share of the disk below `root`.
    ///
    /// # Errors
    /// [`Code::NoSpace`] when there is no room for `needed` bytes and `files` files beside what others still have to write.
    pub(super) fn take(&self, root: &Root, needed: u64, files: u32) -> Result<Share, Failure> {
        let mut shares = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        check_room(root, &mut shares, needed, files)?;
        let share = Arc::new(AtomicU64::new(needed));
        shares.push(Arc::downgrade(&share));
        Ok(Share(share))
    }

    /// What they still have to write, in bytes.
    pub(super) fn pending(&self) -> u64 {
        sum(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether [`Outstanding::take`] would succeed now.
    pub(super) fn would_take(&self, root: &Root, needed: u64, files: u32) -> Result<(), Failure> {
        check_room(root, &mut self.0.lock().unwrap_or_else(PoisonError::into_inner), needed, files)
    }
}

/// What is free below `root` beside what others still have to write: bytes, and files where that is limited.
fn free_of(root: &Root, shares: &mut Vec<Weak<AtomicU64>>) -> Result<(u64, Option<u64>), Failure> {
    let space = root.space().map_err(|error| failed("look at the free space of", root.path().display(), &error))?;
    shares.retain(|share| share.strong_count() > 0);
    let taken: u64 = sum(shares);
    let free = space.f_bavail.saturating_mul(space.f_frsize).saturating_sub(taken);
    // Some file systems make inodes as they need them and say 0 of 0.
    Ok((free, (space.f_files > 0).then_some(space.f_favail)))
}

fn check_room(root: &Root, shares: &mut Vec<Weak<AtomicU64>>, needed: u64, files: u32) -> Result<(), Failure> {
    let (free, free_files) = free_of(root, shares)?;
    if needed > free {
        let message = format!(
            "there is not enough disk space at the receiver: {} are needed, {} are free; free some space there and try again",
            human(needed),
            human(free)
        );
        return Err(Failure::new(Code::NoSpace, message));
    }
    if let Some(left) = free_files.filter(|left| u64::from(files) > *left) {
        let message = format!("the receiver's disk has room for {left} more files; {files} are needed");
        return Err(Failure::new(Code::NoSpace, message));
    }
    Ok(())
}

fn sum(shares: &[Weak<AtomicU64>]) -> u64 {
    shares.iter().filter_map(Weak::upgrade).map(|share| share.load(Ordering::Relaxed)).sum()
}

impl Share {
    /// Only so many bytes of it are needed.
    pub(super) fn keep(&self, bytes: u64) {
        self.0.fetch_min(bytes, Ordering::Relaxed);
    }

    /// So many bytes of it are on the disk now.
    pub(super) fn used(&self, bytes: u64) {
        // One that writes the same chunk twice must not take from others.
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| Some(left.saturating_sub(bytes)));
    }
}

/// A number of bytes for people.
pub fn human(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["bytes", "kB", "MB", "GB", "TB"];
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= 999.95 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} bytes") } else { format!("{value:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_transfers_do_not_count_on_the_same_space() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        let outstanding = Outstanding::default();
        let space = root.space().unwrap();
        let most = space.f_bavail * space.f_frsize * 2 / 3;
        let first = outstanding.take(&root, most, 1).unwrap();
        let failure = outstanding.take(&root, most, 1).unwrap_err();
        assert!(failure.code == Code::NoSpace && failure.message.contains(&human(most)), "{failure}");
        first.used(most - 1);
        let second = outstanding.take(&root, most, 1).unwrap();
        drop((first, second));
        assert_eq!(outstanding.take(&root, u64::MAX, 1).unwrap_err().code, Code::NoSpace);
    }

    #[test]
    fn bytes_are_said_in_a_readable_unit() {
        assert_eq!([0, 999, 1500, 999_950, 5_000_000_000].map(human), ["0 bytes", "999 bytes", "1.5 kB", "1.0 MB", "5.0 GB"]);
    }
}
