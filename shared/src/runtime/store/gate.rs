//! The store's one lock across processes: whoever looks which packages are in use and acts on that holds it.
//!
//! Held for moments only (a listing, some renames), never while bytes are read, written or deleted. The kernel frees it however
//! its holder ends. A package's own lock says that somebody uses it; this one keeps that from changing while it is looked at.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

/// The way to the lock, which is on the store's directory itself. Each [`Gate::enter`] opens it anew, so that threads exclude
/// each other as processes do.
#[derive(Debug, Clone)]
pub(super) struct Gate(PathBuf);

/// Holds the lock until dropped.
#[derive(Debug)]
pub(super) struct Entered(#[expect(dead_code, reason = "held, not used: closing it frees the lock")] File);

impl Gate {
    /// The gate of the store in this directory.
    pub(super) fn of(root: &Path) -> Gate {
        Gate(root.to_owned())
    }

    /// Waits until nobody else is within.
    pub(super) fn enter(&self) -> io::Result<Entered> {
        let file = File::open(&self.0)?;
        loop {
            match file.lock() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => return other.map(|()| Entered(file)),
            }
        }
    }
}
