//! The receiver's side of a transfer's files: what is here, what is missing, and what is durable. Everything here blocks.
//!
//! ```text
//!   <root>/packages/<owner>/<id>/   whole packages, each under its files' own names
//!   <root>/partial/<owner>/<id>/    packages that are arriving ([`Partial`])
//!   <root>/trash/                   what is just being removed
//! ```
//! * [`Store`]: a worker's packages; [`Destination`]: a client's folder to download into. Both begin a transfer by its
//!   summary and answer with [`Begun`].
//! * [`Partial`]: write → sync → finish; resumes after any crash
//! * [`Stock`], [`Missing`]: what would come of a package, looked up without a trace
//! * [`PackageDir`]: a whole package; while one is open its package cannot be removed
//!
//! Owners share nothing, not even the knowledge of what the other has sent. Names come from peers only as checked relative
//! paths and are resolved below an open directory.

mod folder;
mod log;
mod medium;
mod outlook;
mod packages;
mod partial;
mod reuse;
mod slot;
mod space;
mod verify;

use std::{fs, io, path::Path, time::SystemTime};

pub use folder::Destination;
pub use outlook::{Missing, Stock};
pub use packages::{Announced, Begun, PackageDir};
pub use partial::{Finished, Partial};

use self::{
    packages::{check_summary, parse_id},
    slot::{Goal, SUMMARY, Slot, read_summary},
    space::{Outstanding, cost, human},
};
use super::files::{failed, root::Root};
use crate::domain::{
    error::{Code, Failure},
    id::hex,
    manifest::{Hash, ManifestSummary},
};

const PACKAGES: &str = "packages";
const PARTIAL: &str = "partial";
const TRASH: &str = "trash";

/// A directory of packages.
#[derive(Debug)]
pub struct Store {
    root: Root,
    quota: Option<u64>,
    outstanding: Outstanding,
}

/// A package in a store, for lists and for clean-up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Whose it is: the hash of the owner, not the name.
    pub owner: String,
    /// What it is.
    pub summary: ManifestSummary,
    /// Whether it is whole; otherwise it is arriving, or was interrupted.
    pub whole: bool,
    /// When it was last opened, or begun.
    pub last_used: SystemTime,
}

impl Store {
    /// Opens the store in this directory, which is made where it is missing. `quota`: the most bytes that all packages, whole
    /// and partial, may take.
    ///
    /// # Errors
    /// [`Code::BadFile`] when the directory cannot be used.
    pub fn open(path: &Path, quota: Option<u64>) -> Result<Store, Failure> {
        let unusable = |error: io::Error| failed("use the store in", path.display(), &error);
        fs::create_dir_all(path).map_err(unusable)?;
        let root = Root::open(&fs::canonicalize(path).map_err(unusable)?).map_err(unusable)?;
        for folder in [PACKAGES, PARTIAL, TRASH] {
            root.make_dirs(folder).map_err(unusable)?;
        }
        root.sync().map_err(unusable)?;
        let store = Store { root, quota, outstanding: Outstanding::default() };
        store.empty_trash();
        Ok(store)
    }

    /// What the store has of an announced package of this owner.
    ///
    /// # Errors
    /// [`Code::NoSpace`] when it does not fit into the quota or onto the disk: nothing was written. [`Code::PeerBusy`] when
    /// another session is sending it. [`Code::TooLarge`], [`Code::BadFile`].
    pub fn begin(&self, owner: &str, summary: &ManifestSummary) -> Result<Begun, Failure> {
        check_summary(summary)?;
        let unusable = |error: io::Error| failed("use the store in", self.root.path().display(), &error);
        let (owner, name) = (owner_key(owner), hex(&summary.id.0));
        let make = |folder: &str| -> io::Result<Root> {
            let made = self.root.make_dirs(format!("{folder}/{owner}"))?;
            self.root.subdir(folder)?.sync()?;
            Ok(made)
        };
        let (packages, partials) = (make(PACKAGES).map_err(unusable)?, make(PARTIAL).map_err(unusable)?);
        if let Some(dir) = PackageDir::open(&packages, &summary.id)? {
            return Ok(Begun::Present(dir));
        }
        let parent = partials.subdir("").map_err(unusable)?;
        let slot = Slot::claim(parent, *summary, Goal::Package { partials, packages: packages.subdir("").map_err(unusable)? })?;
        // Another session may have finished it between the two; and one whose manifest is damaged is no package.
        if let Some(dir) = PackageDir::open(&packages, &summary.id)? {
            slot.give_up();
            return Ok(Begun::Present(dir));
        }
        if packages.stat(&name).map_err(unusable)?.is_some() {
            self.discard(PACKAGES, &owner, &name)?;
        }
        if let Err(failure) = self.check_quota(&owner, summary) {
            slot.give_up();
            return Err(failure);
        }
        Announced::begin(slot, &self.outstanding, &self.root, cost(summary))
    }

    /// A whole package of this owner; `None`: there is none.
    ///
    /// # Errors
    /// [`Code::BadFile`] when it cannot be read.
    pub fn package(&self, owner: &str, id: &Hash) -> Result<Option<PackageDir>, Failure> {
        match self.root.subdir(format!("{PACKAGES}/{}", owner_key(owner))) {
            Ok(packages) => PackageDir::open(&packages, id),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("use the store in", self.root.path().display(), &error)),
        }
    }

    /// All packages, whole and partial, the longest unused first.
    ///
    /// # Errors
    /// [`Code::BadFile`] when the store cannot be listed.
    pub fn packages(&self) -> Result<Vec<Stored>, Failure> {
        let mut stored = Vec::new();
        for (folder, whole) in [(PACKAGES, true), (PARTIAL, false)] {
            self.list(folder, whole, &mut stored).map_err(|error| failed("list the store in", self.root.path().display(), &error))?;
        }
        stored.sort_by_key(|package| package.last_used);
        Ok(stored)
    }

    /// How many bytes all packages take, about; a partial one counts as if it were whole.
    ///
    /// # Errors
    /// As [`Store::packages`].
    pub fn used(&self) -> Result<u64, Failure> {
        Ok(self.packages()?.iter().fold(0, |sum, package| sum.saturating_add(cost(&package.summary))))
    }

    /// Removes a package.
    ///
    /// # Errors
    /// [`Code::WrongState`] when it is in use: open, or arriving.
    pub fn remove(&self, package: &Stored) -> Result<(), Failure> {
        let folder = if package.whole { PACKAGES } else { PARTIAL };
        self.discard(folder, &package.owner, &hex(&package.summary.id.0))
    }

    fn list(&self, folder: &str, whole: bool, stored: &mut Vec<Stored>) -> io::Result<()> {
        for owner in names(&self.root.path().join(folder))? {
            let folder = self.root.subdir(format!("{folder}/{owner}"))?;
            for id in names(folder.path())?.into_iter().filter_map(|name| parse_id(&name)) {
                // One that was announced and never came has no summary; one that is just being removed has nothing.
                let Ok(home) = folder.subdir(hex(&id.0)) else { continue };
                let Some(summary) = read_summary(&home).filter(|summary| summary.id == id) else { continue };
                let last_used = home.open_file(SUMMARY).and_then(|file| file.metadata()?.modified())?;
                stored.push(Stored { owner: owner.clone(), summary, whole, last_used });
            }
        }
        Ok(())
    }

    fn check_quota(&self, owner: &str, summary: &ManifestSummary) -> Result<(), Failure> {
        let Some(quota) = self.quota else { return Ok(()) };
        let others = self.packages()?.into_iter().filter(|other| (other.owner.as_str(), other.summary.id) != (owner, summary.id));
        let used = others.fold(0u64, |sum, other| sum.saturating_add(cost(&other.summary)));
        let (needed, free) = (cost(summary), quota.saturating_sub(used));
        if needed <= free {
            return Ok(());
        }
        let message = format!(
            "the package does not fit into the worker's store: {} are needed, {} of its {} are free; remove packages there, or give it a larger quota",
            human(needed),
            human(free),
            human(quota)
        );
        Err(Failure::new(Code::NoSpace, message))
    }

    /// Takes a package's folder out of sight, then deletes it.
    fn discard(&self, folder: &str, owner: &str, name: &str) -> Result<(), Failure> {
        let unusable = |error: io::Error| failed("remove", format!("{folder}/{owner}/{name}"), &error);
        let path = format!("{folder}/{owner}/{name}");
        let home = match self.root.subdir(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other.map_err(unusable)?,
        };
        if !home.try_lock(false).map_err(unusable)? {
            return Err(Failure::new(Code::WrongState, "the package is in use; remove it when its job has ended"));
        }
        let trash = format!("{TRASH}/{folder}-{owner}-{name}");
        let old = self.root.path().join(&trash);
        if old.exists() {
            fs::remove_dir_all(&old).map_err(unusable)?;
        }
        self.root.rename(&path, &self.root, &trash, true).map_err(unusable)?;
        fs::remove_dir_all(&old).map_err(unusable)
    }

    /// Deletes what an interrupted removal left.
    fn empty_trash(&self) {
        let trash = self.root.path().join(TRASH);
        for name in names(&trash).unwrap_or_default() {
            if let Err(error) = fs::remove_dir_all(trash.join(&name)) {
                tracing::warn!(%error, name, "cannot empty the store's trash");
            }
        }
    }
}

/// The names in a directory of ours.
fn names(path: &Path) -> io::Result<Vec<String>> {
    let names = fs::read_dir(path)?.map(|entry| Ok(entry?.file_name().into_string().ok()));
    Ok(names.collect::<io::Result<Vec<_>>>()?.into_iter().flatten().collect())
}

/// The folder of an owner: a hash, because a name may hold anything.
fn owner_key(owner: &str) -> String {
    hex(&Hash::of(owner.as_bytes()).0[..16])
}

#[cfg(test)]
mod tests;
