//! A package that is not whole yet.
//!
//! ```text
//!   <home>/manifest      the list of files; here only once everything below `files` has its name
//!   <home>/summary       what was announced
//!   <home>/chunks.log    which chunks are durable
//!   <home>/files/…       the files, written at their final offsets
//! ```
//! * a chunk is *written* after [`Partial::write`], *durable* (and may be acked) after the [`Partial::sync`] that returns it
//! * after a restart the log is trusted, so that a transfer goes on at once; what it names is read back once, in
//!   [`Partial::finish`], before the files get their names. What was damaged on the disk meanwhile is fetched again, alone.
//! * the chunks of this run were verified in memory and synced, and are not read back. A file's root hash follows from its
//!   chunks' hashes, which cover every byte of it.

use std::{
    collections::BTreeSet,
    io, mem,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio_util::sync::CancellationToken;

use super::{
    PackageDir, folder,
    gate::Gate,
    log,
    medium::{Disk, FileId, Medium},
    nearby, reuse,
    share::Others,
    slot::{FILES, Goal, LOG, Slot, read_file},
    space::Share,
    verify::find_damaged,
};
use crate::{
    domain::{
        error::{Code, Failure},
        id::hex,
        manifest::{Hash, Manifest},
        transfer::{ChunkSet, Layout, WholeChunk},
    },
    runtime::{
        files::{failed, root::Root},
        listing::Listing,
    },
};

/// How [`Partial::finish`] ended.
#[derive(Debug)]
pub enum Finished {
    /// The package is whole, under its final name.
    Whole(PackageDir),
    /// These chunks were damaged on the disk since they were written. They are no longer present: ask for them again.
    Damaged(ChunkSet),
}

/// A package that is arriving. All methods block; they may be called from several threads at once.
pub struct Partial {
    listing: Arc<Listing>,
    slot: Slot,
    medium: Box<dyn Medium>,
    state: Mutex<State>,
    /// Where the log ends; held throughout a group commit.
    log_end: Mutex<u64>,
    share: Share,
}

struct State {
    written: ChunkSet,
    durable: ChunkSet,
    unsynced: Vec<u32>,
    unsynced_bytes: u64,
    /// Durable since before this run: to be read back before the end.
    unverified: ChunkSet,
    /// Entries of a [`Goal::Folder`] whose file is already where it belongs.
    in_place: BTreeSet<usize>,
    finished: bool,
}

impl Partial {
    /// Opens a slot whose files are prepared, and reads what its log says. `share` gets the disk space that is still needed.
    pub(super) fn open(slot: Slot, manifest: &Manifest, share: impl FnOnce(u64) -> Result<Share, Failure>) -> Result<Partial, Failure> {
        let unusable = |error: io::Error| failed("use", slot.home.path().display(), &error);
        let listing = Arc::new(Listing::new(manifest, slot.home.path()));
        let log = read_file(&slot.home, LOG, u64::MAX).map_err(unusable)?.unwrap_or_default();
        let mut durable = log::replay(&slot.summary.id, listing.layout().len(), &log);
        let files = slot.home.subdir(FILES).map_err(unusable)?;
        for (at, head) in listing.heads().iter().enumerate() {
            // A download that was interrupted while its files were being moved has some of them in place, and not here. And
            // what a file has lost at its end since then can be asked for now.
            let size = match files.stat(head.path.as_str()).map_err(unusable)? {
                Some(stat) => stat.st_size as u64,
                None => files.open_to_write(head.path.as_str(), head.executable).map(|_| 0).map_err(unusable)?,
            };
            if size > head.size {
                let cut = |file: std::fs::File| file.set_len(head.size).and_then(|()| file.sync_all());
                files.open_to_write(head.path.as_str(), head.executable).and_then(cut).map_err(unusable)?;
            }
            if size < head.size {
                let beyond = |index: &u32| listing.layout().get(*index).is_some_and(|place| place.offset + u64::from(place.len) > size);
                for index in listing.layout().of_entry(at).filter(beyond) {
                    durable.remove(index);
                }
            }
        }
        let home = slot.home.subdir("").map_err(unusable)?;
        let medium = Box::new(Disk::new(home, listing.clone()));
        let missing = listing.layout().bytes_of(&durable.complement());
        let share = share(missing)?;
        share.keep(missing);
        let state = State {
            written: durable.clone(),
            unverified: durable.clone(),
            durable,
            unsynced: Vec::new(),
            unsynced_bytes: 0,
            in_place: BTreeSet::new(),
            finished: false,
        };
        let log_end = (log.len() - log.len() % log::RECORD) as u64;
        Ok(Partial { listing, slot, medium, state: Mutex::new(state), log_end: Mutex::new(log_end), share })
    }

    /// What it consists of.
    pub fn listing(&self) -> &Arc<Listing> {
        &self.listing
    }

    /// Where its chunks lie.
    pub fn layout(&self) -> &Arc<Layout> {
        self.listing.layout()
    }

    /// Where temporary files may be made.
    pub(super) fn scratch(&self) -> &Path {
        self.slot.home.path()
    }

    /// The package's id.
    pub fn id(&self) -> Hash {
        self.slot.summary.id
    }

    /// The chunks that need not be sent: the durable ones.
    pub fn present(&self) -> ChunkSet {
        self.lock().durable.clone()
    }

    /// Takes what is here already: chunks of the owner's other packages, each verified, or a download's files that are in place
    /// from before. `progress` hears how many bytes were looked at. May take long; does nothing that a second call would undo.
    ///
    /// # Errors
    /// [`Code::NoSpace`], [`Code::BadFile`] (among others when a download would overwrite a different file), or
    /// [`Code::JobCancelled`].
    pub fn prepare(&self, progress: &mut dyn FnMut(u64), cancel: &CancellationToken) -> Result<(), Failure> {
        match &self.slot.goal {
            Goal::Package { partials, packages, .. } => reuse::from_others(self, [packages, partials], progress, cancel),
            Goal::Folder(folder) => {
                for at in folder.find_in_place(&self.listing, progress, cancel)? {
                    let mut state = self.lock();
                    state.in_place.insert(at);
                    for index in self.layout().of_entry(at) {
                        state.written.insert(index);
                        state.durable.insert(index);
                        state.unverified.remove(index);
                    }
                }
                nearby::from_folders(self, folder.nearby(), cancel)
            }
        }
    }

    /// Writes a verified chunk into its file. It is durable once [`Partial::sync`] has returned its index.
    ///
    /// # Errors
    /// [`Code::NoSpace`] or [`Code::BadFile`]; what is durable stays so. [`Code::InvalidRequest`] for a chunk that is not of
    /// this package.
    pub fn write(&self, chunk: &WholeChunk) -> Result<(), Failure> {
        let place = self.layout().get(chunk.index).filter(|place| place.len as usize == chunk.bytes.len());
        let place = place.ok_or_else(|| Failure::new(Code::InvalidRequest, "the chunk is not one of this package"))?;
        {
            let state = self.lock();
            if state.finished {
                return Err(Failure::new(Code::WrongState, "the package is whole; nothing more can be written to it"));
            }
            if state.written.contains(chunk.index) {
                return Ok(());
            }
        }
        let path = &self.listing.heads()[place.entry].path;
        let written = self.medium.write_at(FileId::Entry(place.entry), place.offset, &chunk.bytes);
        written.map_err(|error| failed("write", path, &error))?;
        self.share.used(chunk.bytes.len() as u64);
        let mut state = self.lock();
        if state.written.insert(chunk.index) {
            state.unsynced.push(chunk.index);
            state.unsynced_bytes += chunk.bytes.len() as u64;
        }
        Ok(())
    }

    /// How many bytes are written and not yet durable.
    pub fn unsynced_bytes(&self) -> u64 {
        self.lock().unsynced_bytes
    }

    /// Group commit: makes everything that was written durable, then says so in the log, durably. Returns the chunks that are
    /// durable now and were not before, ascending: they may be acked.
    ///
    /// # Errors
    /// [`Code::NoSpace`] or [`Code::BadFile`]: none of the group counts as written any more, because after a failed sync nobody
    /// knows what is on the disk.
    pub fn sync(&self) -> Result<Vec<u32>, Failure> {
        let mut log_end = self.log_end.lock().unwrap_or_else(PoisonError::into_inner);
        let mut group = {
            let mut state = self.lock();
            state.unsynced_bytes = 0;
            mem::take(&mut state.unsynced)
        };
        if group.is_empty() {
            return Ok(group);
        }
        group.sort_unstable();
        let mut files: Vec<FileId> =
            group.iter().filter_map(|&index| self.layout().get(index)).map(|place| FileId::Entry(place.entry)).collect();
        files.dedup();
        let records = log::present(&self.id(), group.iter().copied());
        let committed = self.medium.sync(&files).and_then(|()| self.append(&mut log_end, &records));
        let mut state = self.lock();
        match committed {
            Ok(()) => {
                group.retain(|&index| state.durable.insert(index));
                Ok(group)
            }
            Err(error) => {
                for index in group {
                    state.written.remove(index);
                }
                Err(failed("write", "the package", &error))
            }
        }
    }

    /// The end: reads back what was there before this run, gives the files their names, durably, and lets go of the slot.
    ///
    /// # Errors
    /// [`Code::WrongState`] when chunks are missing, [`Code::BadFile`] when a file cannot get its name (in a download also
    /// because a different one has it), [`Code::NoSpace`], [`Code::JobCancelled`]. Everything is kept; it may be tried again.
    pub fn finish(&self, cancel: &CancellationToken) -> Result<Finished, Failure> {
        self.sync()?;
        let unverified = {
            let state = self.lock();
            if state.finished || !state.durable.is_full() {
                return Err(Failure::new(Code::WrongState, "the package is not whole, or was finished before"));
            }
            state.unverified.clone()
        };
        let damaged = find_damaged(&self.slot.home, &self.listing, &unverified, cancel)?;
        if !damaged.is_empty() {
            self.lose(&damaged)?;
            return Ok(Finished::Damaged(damaged));
        }
        self.lock().unverified = ChunkSet::new(self.layout().len());
        let dir = match &self.slot.goal {
            Goal::Package { packages, gate, .. } => self.take_its_name(packages, gate)?,
            Goal::Folder(folder) => {
                let in_place = self.lock().in_place.clone();
                folder.take(&self.slot.home, &self.listing, &in_place, cancel)?;
                folder::clean_up(&self.slot);
                PackageDir::of_folder(folder.path().to_owned(), self.listing.clone())
            }
        };
        self.lock().finished = true;
        Ok(Finished::Whole(dir))
    }

    fn take_its_name(&self, packages: &Root, gate: &Gate) -> Result<PackageDir, Failure> {
        let name = hex(&self.id().0);
        let unusable = |error: io::Error| failed("finish the package in", packages.path().display(), &error);
        // The lock becomes a shared one, so that the package can be opened as soon as it has its name, and not be removed. The
        // change is not atomic: the gate keeps others from taking the moment between for the end of its use.
        let _gate = gate.enter().map_err(unusable)?;
        self.slot.home.try_lock(true).map_err(unusable)?;
        self.slot.home.sync().map_err(unusable)?;
        self.slot.parent.rename(&name, packages, &name, true).map_err(unusable)?;
        packages.sync().and_then(|()| self.slot.parent.sync()).map_err(unusable)?;
        // Whoever has the manifest need not read it once more.
        PackageDir::open_with(packages, &self.id(), |_| Some(self.listing.clone()))?
            .ok_or_else(|| Failure::new(Code::BadFile, "the package was removed just when it was whole; send it again"))
    }

    /// Chunks turned out to be damaged: they are no longer present, now and after a restart. The others were read and are fine.
    fn lose(&self, damaged: &ChunkSet) -> Result<(), Failure> {
        let mut log_end = self.log_end.lock().unwrap_or_else(PoisonError::into_inner);
        let records = log::lost(&self.id(), damaged.iter());
        self.append(&mut log_end, &records).map_err(|error| failed("write", "the package", &error))?;
        let mut state = self.lock();
        for index in damaged.iter() {
            state.durable.remove(index);
            state.written.remove(index);
        }
        state.unverified = ChunkSet::new(self.layout().len());
        Ok(())
    }

    /// Appends durable records. A failed attempt is overwritten by the next.
    fn append(&self, log_end: &mut u64, records: &[u8]) -> io::Result<()> {
        self.medium.write_at(FileId::Log, *log_end, records)?;
        self.medium.sync(&[FileId::Log])?;
        *log_end += records.len() as u64;
        Ok(())
    }

    /// The other owners that it may be completed from.
    pub(super) fn others(&self) -> Option<&Others> {
        match &self.slot.goal {
            Goal::Package { others, .. } => others.as_ref(),
            Goal::Folder(_) => None,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The same partial package on another medium.
    #[cfg(test)]
    pub(super) fn on(mut self, medium: impl FnOnce(Box<dyn Medium>) -> Box<dyn Medium>) -> Partial {
        self.medium = medium(self.medium);
        self
    }

    /// Where its parts are.
    #[cfg(test)]
    pub(super) fn home(&self) -> &std::path::Path {
        self.slot.home.path()
    }
}

impl std::fmt::Debug for Partial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = self.lock();
        f.debug_struct("Partial")
            .field("id", &self.id())
            .field("chunks", &self.layout().len())
            .field("durable", &state.durable.count())
            .finish_non_exhaustive()
    }
}
