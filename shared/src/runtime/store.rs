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
//! * a limit: what does not fit makes the least recently used go, never what is in use ([`Stored::in_use`])
//!
//! Owners share nothing, not even the knowledge of what the other has sent, but with a proof that they have it, too (`share`). Names come from peers only as checked relative
//! paths and are resolved below an open directory.

mod clean;
mod folder;
mod gate;
mod log;
mod medium;
mod nearby;
mod outlook;
mod packages;
mod partial;
mod reuse;
mod share;
mod slot;
mod space;
mod verify;

use std::{fs, io, path::Path, sync::Arc, time::SystemTime};

pub use clean::{Held, Holds, Overview, Prune, Stored};
pub use folder::Destination;
pub use outlook::{Missing, Stock};
pub use packages::{Announced, Begun, PackageDir};
pub use partial::{Finished, Partial};
pub use share::Shared;
pub use space::human;

use self::{
    clean::{Announcements, present},
    gate::{Entered, Gate},
    packages::{check_summary, parse_id},
    share::Others,
    slot::{Goal, SUMMARY, Slot},
    space::{Outstanding, cost},
};
use super::files::{failed, root::Root};
use crate::domain::{
    error::Failure,
    id::{Secret, hex},
    manifest::{Hash, ManifestSummary},
};

const PACKAGES: &str = "packages";
const PARTIAL: &str = "partial";
const TRASH: &str = "trash";

/// A directory of packages.
#[derive(Debug)]
pub struct Store {
    root: Root,
    gate: Gate,
    quota: Option<u64>,
    holds: Option<Arc<dyn Holds>>,
    sharing: bool,
    outstanding: Outstanding,
    announced: Announcements,
}

impl Store {
    /// Opens the store in this directory, which is made where it is missing. `quota`: the most bytes that all packages, whole
    /// and partial, may take; without one it is four fifths of what they take and what is free beside them on their disk.
    ///
    /// # Errors
    /// [`Code::BadFile`](crate::domain::error::Code::BadFile) when the directory cannot be used.
    pub fn open(path: &Path, quota: Option<u64>) -> Result<Store, Failure> {
        let unusable = |error: io::Error| failed("use the store in", path.display(), &error);
        fs::create_dir_all(path).map_err(unusable)?;
        let store = Store::at(path, quota).map_err(unusable)?;
        for folder in [PACKAGES, PARTIAL, TRASH] {
            store.root.make_dirs(folder).map_err(unusable)?;
        }
        store.root.sync().map_err(unusable)?;
        store.clear_remains().map_err(unusable)?;
        store.empty_trash();
        Ok(store)
    }

    /// The store in this directory, to look at and to prune; `None`: there is none.
    ///
    /// # Errors
    /// [`Code::BadFile`](crate::domain::error::Code::BadFile) when the directory cannot be read.
    pub fn existing(path: &Path, quota: Option<u64>) -> Result<Option<Store>, Failure> {
        let unusable = |error: io::Error| failed("use the store in", path.display(), &error);
        match path.join(TRASH).try_exists() {
            Ok(true) => Store::at(path, quota).map(Some).map_err(unusable),
            Ok(false) => Ok(None),
            Err(error) => Err(unusable(error)),
        }
    }

    fn at(path: &Path, quota: Option<u64>) -> io::Result<Store> {
        let root = Root::open(&fs::canonicalize(path)?)?;
        let gate = Gate::of(root.path());
        Ok(Store {
            root,
            gate,
            quota,
            holds: None,
            sharing: false,
            outstanding: Outstanding::default(),
            announced: Announcements::default(),
        })
    }

    /// With those who need packages. From now on it makes room by itself: without them it could not know what to keep.
    pub fn with_holds(mut self, holds: Arc<dyn Holds>) -> Store {
        self.holds = Some(holds);
        self
    }

    /// Whether a chunk that one owner has sent serves another who proves that he has it, too.
    pub fn with_sharing(mut self, sharing: bool) -> Store {
        self.sharing = sharing;
        self
    }

    /// What the store has of an announced package of this owner. Where it does not fit, packages that nobody uses are removed.
    ///
    /// # Errors
    /// [`Code::NoSpace`] when it does not fit all the same: nothing was written or removed. [`Code::PeerBusy`] when another
    /// session is sending it. [`Code::TooLarge`], [`Code::BadFile`].
    ///
    /// [`Code::NoSpace`]: crate::domain::error::Code::NoSpace
    /// [`Code::PeerBusy`]: crate::domain::error::Code::PeerBusy
    /// [`Code::TooLarge`]: crate::domain::error::Code::TooLarge
    /// [`Code::BadFile`]: crate::domain::error::Code::BadFile
    pub fn begin(&self, owner: &str, summary: &ManifestSummary) -> Result<Begun, Failure> {
        self.begin_with(owner, summary, None)
    }

    /// As [`Store::begin`], for a sender whose proofs are bound to the secret of its session: he may get at what others have sent.
    ///
    /// # Errors
    /// As [`Store::begin`].
    pub fn begin_proving(&self, owner: &str, summary: &ManifestSummary, session: Secret<[u8; 32]>) -> Result<Begun, Failure> {
        self.begin_with(owner, summary, Some(session).filter(|_| self.sharing))
    }

    fn begin_with(&self, owner: &str, summary: &ManifestSummary, session: Option<Secret<[u8; 32]>>) -> Result<Begun, Failure> {
        check_summary(summary)?;
        let unusable = |error: io::Error| failed("use the store in", self.root.path().display(), &error);
        let (owner, name) = (owner_key(owner), hex(&summary.id.0));
        let make = |folder: &str| -> io::Result<Root> {
            let made = self.root.make_dirs(format!("{folder}/{owner}"))?;
            self.root.subdir(folder)?.sync()?;
            Ok(made)
        };
        let gate = self.enter()?;
        let (packages, partials) = (make(PACKAGES).map_err(unusable)?, make(PARTIAL).map_err(unusable)?);
        if let Some(dir) = PackageDir::open(&packages, &summary.id)? {
            return Ok(Begun::Present(dir));
        }
        let parent = partials.subdir("").map_err(unusable)?;
        let others = match session {
            Some(session) => Some(Others { store: self.root.subdir("").map_err(unusable)?, owner: owner.clone(), session }),
            None => None,
        };
        let goal = Goal::Package { partials, packages: packages.subdir("").map_err(unusable)?, gate: self.gate.clone(), others };
        let slot = Slot::claim(parent, *summary, goal)?;
        // One whose manifest is damaged is no package.
        if packages.stat(&name).map_err(unusable)?.is_some() {
            self.discard(&gate, PACKAGES, &owner, &name)?;
        }
        let counted = match self.fit(&gate, &owner, &slot) {
            Ok(counted) => counted,
            Err(failure) => {
                slot.give_up();
                return Err(failure);
            }
        };
        drop(gate);
        self.empty_trash();
        Announced::begin(slot, &self.outstanding, &self.root, cost(summary)).map(|begun| begun.counted(counted))
    }

    fn fit(&self, gate: &Entered, owner: &str, slot: &Slot) -> Result<clean::Counted, Failure> {
        let present = present(&slot.summary, &slot.home).map_err(|error| failed("use", slot.home.path().display(), &error))?;
        if present > 0
            && let Err(error) = slot.home.open_to_write(SUMMARY, false).and_then(|file| file.set_modified(SystemTime::now()))
        {
            tracing::debug!(%error, "cannot note that a package was used");
        }
        self.make_room(gate, owner, &slot.summary, present)
    }

    /// A whole package of this owner; `None`: there is none.
    ///
    /// # Errors
    /// [`Code::BadFile`](crate::domain::error::Code::BadFile) when it cannot be read.
    pub fn package(&self, owner: &str, id: &Hash) -> Result<Option<PackageDir>, Failure> {
        let _gate = self.enter()?;
        match self.root.subdir(format!("{PACKAGES}/{}", owner_key(owner))) {
            Ok(packages) => PackageDir::open(&packages, id),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("use the store in", self.root.path().display(), &error)),
        }
    }
}

/// The names in a directory of ours.
fn names(path: &Path) -> io::Result<Vec<String>> {
    let names = fs::read_dir(path)?.map(|entry| Ok(entry?.file_name().into_string().ok()));
    Ok(names.collect::<io::Result<Vec<_>>>()?.into_iter().flatten().collect())
}

/// The owner and the id of the package whose files are in this folder; `None`: it is no folder of a whole package.
pub fn package_at(files: &Path) -> Option<(String, Hash)> {
    let home = files.parent().filter(|_| files.file_name().is_some_and(|name| name == slot::FILES))?;
    let owner = home.parent()?;
    let id = parse_id(home.file_name()?.to_str()?)?;
    (owner.parent()?.file_name()? == PACKAGES).then(|| Some((owner.file_name()?.to_str()?.to_owned(), id)))?
}

/// The folder of an owner, and its name in [`Stored`] and [`Held`]: a hash, because a name may hold anything.
pub fn owner_key(owner: &str) -> String {
    hex(&Hash::of(owner.as_bytes()).0[..16])
}

#[cfg(test)]
mod clean_tests;
#[cfg(test)]
mod tests;
