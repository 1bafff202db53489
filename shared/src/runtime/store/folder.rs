//! Where a download goes: a folder of the user.
//!
//! Its parts are kept in `<out>/.webrtc-connect/<package id>/` until it is whole; then each file is moved to `<out>/<path>`.
//! A file that is there already and has the same content is left as it is, and its bytes need not even be sent; a different
//! one is an error unless overwriting was asked for.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use tokio_util::sync::CancellationToken;

use super::{
    Begun,
    packages::{Announced, check_summary},
    slot::{FILES, Goal, Slot},
    space::{Outstanding, cost},
    verify::{ChunkFiles, open_regular},
};
use crate::{
    domain::{
        error::{Code, Failure},
        manifest::{Entry, Head, Manifest, ManifestSummary},
    },
    runtime::{
        files::{WORK_FOLDER, failed, root::Root},
        listing::Listing,
    },
};

/// A folder to download into.
#[derive(Debug, Clone)]
pub struct Destination {
    out: PathBuf,
    overwrite: bool,
    nearby: Vec<PathBuf>,
}

impl Destination {
    /// Downloads into `out`, which is made where it is missing. `overwrite`: different files of the same names are replaced.
    pub fn new(out: impl Into<PathBuf>, overwrite: bool) -> Destination {
        Destination { out: out.into(), overwrite, nearby: Vec::new() }
    }

    /// Takes chunks that files in these folders have from there, so that they need not be sent. A folder that is not there is no error.
    pub fn with_nearby(mut self, folders: Vec<PathBuf>) -> Destination {
        self.nearby = folders;
        self
    }

    /// The files of downloads into this folder that are not whole: what is there of them lies at its place.
    pub fn unfinished(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.out.join(WORK_FOLDER)).into_iter().flatten().flatten();
        entries.map(|entry| entry.path().join(FILES)).collect()
    }

    /// Takes up a download, or begins it. (It is never `Present`: what is in place already is found by [`super::Partial::prepare`].)
    ///
    /// # Errors
    /// [`Code::NoSpace`] before anything is written; [`Code::PeerBusy`] when the same download is running; [`Code::BadFile`].
    pub fn begin(&self, summary: &ManifestSummary) -> Result<Begun, Failure> {
        check_summary(summary)?;
        let unusable = |error: io::Error| failed("use the folder", self.out.display(), &error);
        fs::create_dir_all(&self.out).map_err(unusable)?;
        let out = Root::open(&fs::canonicalize(&self.out).map_err(unusable)?).map_err(unusable)?;
        let work = out.make_dirs(WORK_FOLDER).map_err(unusable)?;
        let space = out.subdir("").map_err(unusable)?;
        let slot = Slot::claim(work, *summary, Goal::Folder(Folder { out, overwrite: self.overwrite, nearby: self.nearby.clone() }))?;
        Announced::begin(slot, &Outstanding::default(), &space, cost(summary))
    }
}

/// The open folder, while something is arriving in it.
#[derive(Debug)]
pub(super) struct Folder {
    out: Root,
    overwrite: bool,
    nearby: Vec<PathBuf>,
}

impl Folder {
    pub(super) fn path(&self) -> &Path {
        self.out.path()
    }

    /// Folders whose files may have chunks of what is coming.
    pub(super) fn nearby(&self) -> &[PathBuf] {
        &self.nearby
    }

    /// Refuses names that would meddle with unfinished downloads.
    pub(super) fn check(&self, manifest: &Manifest) -> Result<(), Failure> {
        let meddles = |entry: &&Entry| entry.path.names().next().is_some_and(|name| name.eq_ignore_ascii_case(WORK_FOLDER));
        match manifest.entries.iter().find(meddles) {
            Some(entry) => Err(Failure::new(Code::BadPackage, format!("the other side wants to write {:?}, which is ours", entry.path))),
            None => Ok(()),
        }
    }

    /// The entries whose file is already where it belongs.
    ///
    /// # Errors
    /// [`Code::BadFile`] when a different file has the name of one, and overwriting was not asked for.
    pub(super) fn find_in_place(
        &self,
        listing: &Listing,
        progress: &mut dyn FnMut(u64),
        cancel: &CancellationToken,
    ) -> Result<BTreeSet<usize>, Failure> {
        let mut in_place = BTreeSet::new();
        let mut looked = 0;
        for (at, head) in listing.heads().iter().enumerate() {
            if cancel.is_cancelled() {
                return Err(Failure::new(Code::JobCancelled, "interrupted while the folder was being searched"));
            }
            if self.holds(listing, at)? {
                in_place.insert(at);
                looked += head.size;
                progress(looked);
            } else if !self.overwrite {
                self.check_free(head)?;
            }
        }
        Ok(in_place)
    }

    /// Moves the files from `home` to their places.
    pub(super) fn take(
        &self,
        home: &Root,
        listing: &Listing,
        in_place: &BTreeSet<usize>,
        cancel: &CancellationToken,
    ) -> Result<(), Failure> {
        let coming = || listing.heads().iter().enumerate().filter(|(at, _)| !in_place.contains(at));
        // First look whether all can be moved, so that not half of them are.
        if !self.overwrite {
            for (at, head) in coming() {
                if !self.holds(listing, at)? {
                    self.check_free(head)?;
                }
            }
        }
        let mut folders = BTreeSet::from([""]);
        for (at, head) in coming() {
            if cancel.is_cancelled() {
                return Err(Failure::new(Code::JobCancelled, "interrupted while the files were being moved to their places"));
            }
            let unmovable = |error: io::Error| failed("write", self.path().join(head.path.as_str()).display(), &error);
            if let Some(parent) = head.path.parent() {
                self.out.make_dirs(parent).map_err(unmovable)?;
                folders.extend(parent.match_indices('/').map(|(end, _)| &parent[..end]));
                folders.insert(parent);
            }
            let from = format!("{FILES}/{}", head.path);
            match home.rename(&from, &self.out, head.path.as_str(), self.overwrite) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    if !self.holds(listing, at)? {
                        return Err(self.taken(head));
                    }
                    home.remove_file(&from).map_err(unmovable)?;
                }
                // An attempt before this one has moved it.
                Err(error) if error.kind() == io::ErrorKind::NotFound && self.holds(listing, at)? => {}
                other => other.map_err(unmovable)?,
            }
        }
        let sync = |folder: &str| self.out.subdir(folder)?.sync();
        folders.into_iter().try_for_each(sync).map_err(|error| failed("write", self.path().display(), &error))
    }

    /// Whether the file of this entry is in its place, with the entry's content.
    fn holds(&self, listing: &Listing, at: usize) -> Result<bool, Failure> {
        let head = &listing.heads()[at];
        let unreadable = |error: io::Error| failed("look at", self.path().join(head.path.as_str()).display(), &error);
        let file = match open_regular(&self.out, &head.path) {
            // A file where the path has a folder: not there, then.
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => return Ok(false),
            other => other.map_err(unreadable)?,
        };
        if file.is_none_or(|file| file.metadata().is_ok_and(|metadata| metadata.len() != head.size)) {
            return Ok(false);
        }
        let mut files = ChunkFiles::new(self.out.subdir("").map_err(unreadable)?);
        for index in listing.layout().of_entry(at) {
            let Some(place) = listing.layout().get(index) else { return Ok(false) };
            if files.read(&head.path, &place, &listing.hash(index)?).map_err(unreadable)?.is_none() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn check_free(&self, head: &Head) -> Result<(), Failure> {
        match self.out.stat(head.path.as_str()) {
            Ok(None) => Ok(()),
            Ok(Some(_)) => Err(self.taken(head)),
            Err(error) => Err(failed("look at", self.path().join(head.path.as_str()).display(), &error)),
        }
    }

    fn taken(&self, head: &Head) -> Failure {
        let path = self.path().join(head.path.as_str());
        let message =
            format!("{} is there already and is different; move it away, choose another folder, or allow overwriting", path.display());
        Failure::new(Code::BadFile, message)
    }
}

/// Removes what a finished download leaves in its slot, and the work folder when nothing else is in it.
pub(super) fn clean_up(slot: &Slot) {
    if let Err(error) = fs::remove_dir_all(slot.home.path()) {
        tracing::warn!(%error, path = %slot.home.path().display(), "cannot remove what is left of a finished download");
    }
    if let Goal::Folder(folder) = &slot.goal {
        // Fails as it should while another download has its parts there.
        let _ = folder.out.remove_dir(WORK_FOLDER);
    }
}

/// What [`Destination`]'s `Announced` accepts is checked here, beside what else a folder refuses.
pub(super) fn check_goal(goal: &Goal, manifest: &Manifest) -> Result<(), Failure> {
    match goal {
        Goal::Folder(folder) => folder.check(manifest),
        Goal::Package { .. } => Ok(()),
    }
}
