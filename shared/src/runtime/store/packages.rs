//! How a transfer begins, and what it ends in.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use super::{
    clean::Counted,
    folder::check_goal,
    partial::Partial,
    slot::{FILES, SUMMARY, Slot, read_manifest, read_summary},
    space::{Outstanding, Share},
};
use crate::{
    domain::{
        error::{Code, Failure},
        id::hex,
        manifest::{Hash, MAX_MANIFEST, Manifest, ManifestSummary},
    },
    runtime::{
        files::{failed, root::Root},
        listing::Listing,
    },
};

/// What is here of an announced package.
#[derive(Debug)]
pub enum Begun {
    /// All of it: nothing need be sent.
    Present(PackageDir),
    /// Its manifest and perhaps some chunks: it goes on.
    Known(Arc<Partial>),
    /// Nothing: its manifest is wanted.
    New(Box<Announced>),
}

/// A package that was announced and fits; its manifest is still to come. It can be begun only once at a time.
#[derive(Debug)]
pub struct Announced {
    slot: Slot,
    share: Share,
    /// Against the store's limit, until its summary is there to be counted.
    counted: Option<Counted>,
}

impl Begun {
    /// Counts against the store's limit as long as no list shows it.
    pub(super) fn counted(self, counted: Counted) -> Begun {
        match self {
            Begun::New(announced) => Begun::New(Box::new(Announced { counted: Some(counted), ..*announced })),
            other => other,
        }
    }
}

impl Announced {
    /// Looks what a slot holds, and whether the rest has room on the disk of `space`.
    pub(super) fn begin(slot: Slot, outstanding: &Outstanding, space: &Root, cost: u64) -> Result<Begun, Failure> {
        if let Some(manifest) = slot.manifest() {
            return Partial::open(slot, &manifest, |missing| outstanding.take(space, missing, 0))
                .map(|partial| Begun::Known(Arc::new(partial)));
        }
        match outstanding.take(space, cost, slot.summary.files) {
            Ok(share) => Ok(Begun::New(Box::new(Announced { slot, share, counted: None }))),
            Err(failure) => {
                slot.give_up();
                Err(failure)
            }
        }
    }

    /// Takes the manifest: makes the files, empty, and is ready for their chunks.
    ///
    /// # Errors
    /// [`Code::BadPackage`] when it is not the announced one, or has names that cannot be received here; [`Code::NoSpace`],
    /// [`Code::BadFile`].
    pub fn accept(self, manifest: Manifest) -> Result<Arc<Partial>, Failure> {
        if manifest.summarize() != self.slot.summary {
            return Err(Failure::new(Code::BadPackage, "the list of files is not the one announced"));
        }
        check_goal(&self.slot.goal, &manifest)?;
        self.slot.prepare(&manifest)?;
        drop(self.counted);
        Partial::open(self.slot, &manifest, |_| Ok(self.share)).map(Arc::new)
    }
}

/// A whole package. As long as it exists, the store does not remove it.
#[derive(Debug)]
pub struct PackageDir {
    path: PathBuf,
    listing: Arc<Listing>,
    /// Locked, shared; none for a folder of the user.
    _home: Option<Root>,
}

impl PackageDir {
    /// The package of this id in an owner's folder; `None`: it is not there, damaged, or just being removed.
    pub(super) fn open(packages: &Root, id: &Hash) -> Result<Option<PackageDir>, Failure> {
        PackageDir::open_with(packages, id, |home| Some(Arc::new(Listing::new(&read_manifest(home, id)?, home.path()))))
    }

    /// As [`PackageDir::open`], with the listing that `listing` has for its folder.
    pub(super) fn open_with(
        packages: &Root,
        id: &Hash,
        listing: impl FnOnce(&Root) -> Option<Arc<Listing>>,
    ) -> Result<Option<PackageDir>, Failure> {
        let name = hex(&id.0);
        let unusable = |error: io::Error| failed("open the package", packages.path().join(&name).display(), &error);
        let home = match packages.subdir(&name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(unusable)?,
        };
        let linked = |home: &Root| packages.subdir(&name).is_ok_and(|now| now.is(home).unwrap_or(false));
        if !home.try_lock(true).map_err(unusable)? || !linked(&home) {
            return Ok(None);
        }
        let (Some(listing), Some(_)) = (listing(&home), read_summary(&home)) else {
            tracing::warn!(path = %home.path().display(), "a package's list of files is damaged; it does not count as present");
            return Ok(None);
        };
        if let Err(error) = home.open_to_write(SUMMARY, false).and_then(|file| file.set_modified(SystemTime::now())) {
            tracing::debug!(%error, "cannot note that a package was used");
        }
        Ok(Some(PackageDir { path: home.path().join(FILES), listing, _home: Some(home) }))
    }

    /// What a download made of a user's folder.
    pub(super) fn of_folder(path: PathBuf, listing: Arc<Listing>) -> PackageDir {
        PackageDir { path, listing, _home: None }
    }

    /// The directory with its files.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it is.
    pub fn summary(&self) -> ManifestSummary {
        self.listing.summary()
    }

    /// What it consists of.
    pub fn listing(&self) -> &Arc<Listing> {
        &self.listing
    }
}

/// Refuses a summary that no manifest can have.
pub(super) fn check_summary(summary: &ManifestSummary) -> Result<(), Failure> {
    if summary.encoded_len > MAX_MANIFEST {
        return Err(Failure::new(
            Code::TooLarge,
            "the package has too many files or bytes for one transfer; split it into several packages",
        ));
    }
    Ok(())
}

/// An id from the name of its folder.
pub(super) fn parse_id(name: &str) -> Option<Hash> {
    serde_json::from_value::<Hash>(name.into()).ok().filter(|id| hex(&id.0) == name)
}
