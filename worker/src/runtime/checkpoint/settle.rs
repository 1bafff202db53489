//! What becomes of the copies when their job has ended. Everything here blocks.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use shared::domain::manifest::Manifest;

use super::{NEW, copy, hold_newest, remove_copies};
use crate::runtime::workspace::JobDir;

/// Puts the newest copies in the place of models that are missing or half-written: their trainer was ended while it saved.
pub(crate) fn restore(dir: &JobDir) {
    for step in steps(dir) {
        let Ok(Some(held)) = hold_newest(&step) else { continue };
        let Ok(manifest) = Manifest::decode(&held.manifest) else { continue };
        for entry in &manifest.entries {
            let (from, to) = (held.files.join(entry.path.as_str()), dir.results().join(entry.path.as_str()));
            let wanted = match copy::is_half(&to) {
                Ok(half) => half,
                Err(error) => error.kind() == io::ErrorKind::NotFound,
            };
            if !wanted {
                continue;
            }
            match put(&from, &to) {
                Ok(()) => tracing::info!(path = %to.display(), "a half-written model was replaced by the best checkpoint before it"),
                Err(error) => tracing::warn!(%error, path = %to.display(), "a half-written model could not be replaced"),
            }
        }
    }
}

fn put(from: &Path, to: &Path) -> io::Result<()> {
    let mut fresh = to.as_os_str().to_owned();
    fresh.push(".restored");
    let fresh = PathBuf::from(fresh);
    // What an agent that was killed here has left.
    let _ = fs::remove_file(&fresh);
    if !copy::copy_unchanged(from, &fresh, None)? {
        return Err(io::Error::other("the copy changed"));
    }
    fs::rename(fresh, to)
}

/// Removes all copies once the results are listed: they have everything that is in them. One that is being sent goes when it is sent.
pub(crate) fn remove_if_settled(dir: &JobDir) {
    if !dir.results_manifest().exists() {
        return;
    }
    for step in steps(dir) {
        remove_copies(&step, None);
        let _ = fs::remove_dir_all(step.join(NEW));
        // Each goes only when nothing is in it.
        let _ = fs::remove_dir(step);
    }
    let _ = fs::remove_dir(dir.checkpoints());
}

fn steps(dir: &JobDir) -> Vec<PathBuf> {
    fs::read_dir(dir.checkpoints()).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}
