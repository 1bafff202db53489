//! The best checkpoints of a running job: copied while training goes on, so that a worker that dies has cost at most one
//! validation interval.
//!
//! ```text
//! <job dir>/checkpoints/<step>/
//!   3/                    the newest copy, whole; it gets its name when everything below is there
//!     files/<run>/…       the model and its configurations, under their paths in the results
//!     manifest            of files/
//!     about.json          what is said of it in the journal
//!   2/                    one before it: only as long as somebody is being sent it
//!   .new/                 one that is being made
//! ```
//! * the **runner** owns trainer and journal, so it looks, copies and hashes ([`watch`]: a thread of its own, of the lowest priority) and
//!   journals [`JobEvent::Checkpoint`](shared::domain::job::JobEvent::Checkpoint); when to do so is decided in
//!   [`crate::domain::checkpoint`]
//! * the **agent** owns the sessions: it sends the newest copy to a client that asks for it ([`send`]), and holds it by a lock
//!   meanwhile; after the end it puts copies in the place of models that the trainer left half-written, and removes them ([`settle`])
//! * clients read the journal and ask; nothing is pushed, and so nothing queues

mod copy;
mod send;
mod settle;
mod watch;

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};
use shared::domain::job::Checkpoint;

pub(super) use send::send;
pub(super) use settle::{remove_if_settled, restore};
pub(super) use watch::Checkpoints;

use super::workspace::read_json;

const FILES: &str = "files";
const MANIFEST: &str = "manifest";
const ABOUT: &str = "about.json";
const NEW: &str = ".new";

/// A copy that is held: it stays as long as this lives.
struct Held {
    about: Checkpoint,
    /// The folder of its files.
    files: PathBuf,
    /// The bytes of their manifest.
    manifest: Vec<u8>,
    _lock: File,
}

/// The newest copy in a step's folder; `None`: there is none.
fn hold_newest(home: &Path) -> io::Result<Option<Held>> {
    // The runner may replace the newest one just when we reach for it; not again and again, since a copy takes its time.
    for _ in 0..3 {
        let mut numbers = match numbers(home) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        numbers.sort_unstable();
        match numbers.pop().map(|newest| hold(&home.join(newest.to_string()))) {
            None => return Ok(None),
            Some(Some(held)) => return Ok(Some(held)),
            Some(None) => {}
        }
    }
    Ok(None)
}

/// Holds a copy; `None`: it is gone, or just being removed.
fn hold(folder: &Path) -> Option<Held> {
    let lock = File::open(folder).ok()?;
    flock(&lock, FlockOperation::NonBlockingLockShared).ok()?;
    // It may have been removed before we had the lock.
    if fs::metadata(folder).ok()?.ino() != lock.metadata().ok()?.ino() {
        return None;
    }
    let about = read_json(&folder.join(ABOUT)).ok()??;
    let manifest = fs::read(folder.join(MANIFEST)).ok()?;
    Some(Held { about, files: folder.join(FILES), manifest, _lock: lock })
}

/// Removes the copies in a step's folder, but for one, and for those that are held.
fn remove_copies(home: &Path, keep: Option<u64>) {
    for number in numbers(home).unwrap_or_default().into_iter().filter(|number| Some(*number) != keep) {
        let folder = home.join(number.to_string());
        let Ok(lock) = File::open(&folder) else { continue };
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok()
            && let Err(error) = fs::remove_dir_all(&folder)
        {
            tracing::warn!(%error, "a checkpoint's copy could not be removed");
        }
    }
}

/// The copies in a step's folder, in no order.
fn numbers(home: &Path) -> io::Result<Vec<u64>> {
    let names = fs::read_dir(home)?.map(|entry| Ok(entry?.file_name()));
    let names = names.collect::<io::Result<Vec<_>>>()?;
    Ok(names.iter().filter_map(|name| name.to_str()?.parse().ok()).collect())
}

#[cfg(test)]
mod tests;
