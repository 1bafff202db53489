//! What is in a store, who uses it, and making room in it: the least recently used goes first, what is in use never.
//!
//! * in use is what is open (its folder is locked: a transfer, a job that is just being queued) and what a live job needs
//!   ([`Holds`], read from the disk each time: it is as true after a restart, and in another process, as before)
//! * all decisions are made, and packages taken out of sight, within the store's gate; the deleting happens outside
//! * a crash leaves a package either where it was or in the trash, which is emptied at the next start

use std::{
    fs, io,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::{Duration, SystemTime},
};

use super::{
    PACKAGES, PARTIAL, Store, TRASH,
    gate::Entered,
    log, names,
    packages::parse_id,
    slot::{LOG, SUMMARY, read_file, read_summary},
    space::{cost, human},
};
use crate::{
    domain::{
        error::{Code, Failure},
        id::hex,
        manifest::{Hash, ManifestSummary},
        transfer::ChunkSet,
    },
    runtime::files::{failed, root::Root},
};

/// A package that is arriving for a job stays so long after its last byte, whether its client is there or not.
const ARRIVING: Duration = Duration::from_secs(3600);
/// What packages may take unless a limit is set: so much of what they take already and what is free beside them.
const DEFAULT_SHARE: (u64, u64) = (4, 5);

/// Who needs packages though nobody has them open: jobs that wait or run.
pub trait Holds: Send + Sync + std::fmt::Debug {
    /// All that is needed now. It must not rest on memory alone: it is asked by other processes, too, and after a crash.
    ///
    /// # Errors
    /// Whatever keeps it from knowing; then nothing is removed.
    fn held(&self) -> Result<Vec<Held>, Failure>;
}

/// A package that a job needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// Whose package, as in [`Stored::owner`].
    pub owner: String,
    /// Which.
    pub package: Hash,
    /// The job, for people.
    pub by: String,
    /// The job still waits for it; otherwise it is there, and the job waits or runs.
    pub arriving: bool,
}

/// A package in a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Whose it is: the hash of the owner, not the name.
    pub owner: String,
    /// What it is.
    pub summary: ManifestSummary,
    /// Whether it is whole; otherwise it is arriving, or was interrupted.
    pub whole: bool,
    /// How many of its bytes are here, about.
    pub present: u64,
    /// When it was last opened, or a part of it arrived.
    pub last_used: SystemTime,
    /// Whether somebody has it open: a transfer, or a job that is just being queued.
    pub open: bool,
    /// The live jobs that need it.
    pub used_by: Vec<String>,
    /// Whether one of them needs it so that it may not be removed.
    held: bool,
}

impl Stored {
    /// Whether it must stay.
    pub fn in_use(&self) -> bool {
        self.open || self.held
    }

    /// How many bytes it takes, about; one that is arriving counts as if it were whole.
    pub fn size(&self) -> u64 {
        let whole = cost(&self.summary);
        if self.open { whole } else { whole - self.summary.bytes + self.present.min(self.summary.bytes) }
    }

    fn is(&self, owner: &str, id: &Hash) -> bool {
        self.owner == owner && self.summary.id == *id
    }
}

/// A store as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overview {
    /// Its packages, the longest unused first.
    pub packages: Vec<Stored>,
    /// The bytes that they take, about.
    pub used: u64,
    /// The bytes that they may take.
    pub limit: u64,
    /// The free bytes of its disk.
    pub free: u64,
}

/// Which packages to remove; several wishes add up. What is in use stays in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Prune {
    /// All that nobody uses.
    pub all: bool,
    /// What was not used for so long.
    pub older_than: Option<Duration>,
    /// Until the rest takes at most so many bytes, the longest unused first.
    pub to: Option<u64>,
}

impl Prune {
    /// The packages of a list, the longest unused first, that this removes.
    fn choose(&self, packages: &[Stored], now: SystemTime) -> Vec<Stored> {
        let mut left: u64 = packages.iter().fold(0, |sum, package| sum.saturating_add(package.size()));
        let mut chosen = Vec::new();
        for package in packages.iter().filter(|package| !package.in_use()) {
            let age = now.duration_since(package.last_used).unwrap_or_default();
            if self.all || self.older_than.is_some_and(|limit| age >= limit) || self.to.is_some_and(|to| left > to) {
                left = left.saturating_sub(package.size());
                chosen.push(package.clone());
            }
        }
        chosen
    }
}

/// Packages that were announced and have no files yet: they count against the limit.
#[derive(Debug, Default)]
pub(super) struct Announcements(Mutex<Vec<Announcement>>);

#[derive(Debug)]
struct Announcement {
    counted: Weak<()>,
    owner: String,
    id: Hash,
    bytes: u64,
}

/// Counts as long as it lives.
pub(super) type Counted = Arc<()>;

impl Announcements {
    fn add(&self, owner: &str, summary: &ManifestSummary) -> Counted {
        let counted = Counted::default();
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|announcement| announcement.counted.strong_count() > 0);
        let (owner, bytes) = (owner.to_owned(), cost(summary));
        all.push(Announcement { counted: Arc::downgrade(&counted), owner, id: summary.id, bytes });
        counted
    }

    /// The bytes of those that are neither listed nor this one.
    fn bytes_beside(&self, listed: &[Stored], own: (&str, &Hash)) -> u64 {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let unlisted = all.iter().filter(|Announcement { counted, owner, id, .. }| {
            counted.strong_count() > 0 && (owner.as_str(), id) != own && !listed.iter().any(|package| package.is(owner, id))
        });
        unlisted.fold(0, |sum, announcement| sum.saturating_add(announcement.bytes))
    }
}

/// Whether an announced package fits.
pub(super) struct Decision {
    /// The packages that go for it, or why it does not fit into the store all the same.
    pub(super) going: Result<Vec<Stored>, Failure>,
    /// The bytes that there is room for, with all that nobody uses gone.
    pub(super) room: u64,
}

/// By how many bytes something does not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Short {
    of_limit: u64,
    of_disk: u64,
}

impl Short {
    /// How many of these candidates, from the first, make up for it; `None`: not even all.
    fn covered_by(self, candidates: &[&Stored]) -> Option<usize> {
        let Short { mut of_limit, mut of_disk } = self;
        for (count, package) in candidates.iter().enumerate() {
            if (of_limit, of_disk) == (0, 0) {
                return Some(count);
            }
            of_limit = of_limit.saturating_sub(package.size());
            of_disk = of_disk.saturating_sub(package.present);
        }
        ((of_limit, of_disk) == (0, 0)).then_some(candidates.len())
    }
}

impl Store {
    /// What is in the store, who uses it, and how much room there is.
    ///
    /// # Errors
    /// [`Code::BadFile`] when the store cannot be listed, or what [`Holds`] says.
    pub fn overview(&self) -> Result<Overview, Failure> {
        let _gate = self.enter()?;
        let packages = self.list_held()?;
        let free = self.free()?;
        Ok(Overview { used: size_of(&packages), limit: self.limit(&packages, free), free, packages })
    }

    /// All packages, whole and partial, the longest unused first.
    ///
    /// # Errors
    /// As [`Store::overview`].
    pub fn packages(&self) -> Result<Vec<Stored>, Failure> {
        self.overview().map(|overview| overview.packages)
    }

    /// Removes packages, and says which; `dry_run`: only says it.
    ///
    /// # Errors
    /// As [`Store::overview`]; what was removed before stays removed.
    pub fn prune(&self, wish: &Prune, dry_run: bool) -> Result<Vec<Stored>, Failure> {
        let chosen = {
            let gate = self.enter()?;
            let chosen = wish.choose(&self.list_held()?, SystemTime::now());
            if dry_run {
                return Ok(chosen);
            }
            chosen.iter().try_for_each(|package| self.put_in_trash(&gate, package))?;
            chosen
        };
        self.empty_trash();
        Ok(chosen)
    }

    /// Removes a package.
    ///
    /// # Errors
    /// [`Code::WrongState`] when it is in use: open, arriving, or needed by a job.
    pub fn remove(&self, package: &Stored) -> Result<(), Failure> {
        {
            let gate = self.enter()?;
            let now = self.list_held()?.into_iter().find(|now| now.is(&package.owner, &package.summary.id) && now.whole == package.whole);
            match now {
                Some(now) if now.in_use() => return Err(in_use()),
                Some(now) => self.put_in_trash(&gate, &now)?,
                None => {}
            }
        }
        self.empty_trash();
        Ok(())
    }

    /// Makes sure that an announced package fits, of which `present` bytes are here already: where it does not, removes what
    /// has not been used for the longest time. When even that would not suffice, nothing is removed. The caller empties the
    /// trash once it has left the gate.
    pub(super) fn make_room(&self, gate: &Entered, owner: &str, summary: &ManifestSummary, present: u64) -> Result<Counted, Failure> {
        let decision = self.decide_room(owner, summary, present)?;
        for package in decision.going? {
            tracing::info!(package = ?package.summary.id, bytes = package.size(), "a package makes room for a new one");
            self.put_in_trash(gate, &package)?;
        }
        Ok(self.announced.add(owner, summary))
    }

    /// What would go for an announced package, of which `present` bytes are here already. Changes nothing.
    pub(super) fn decide_room(&self, owner: &str, summary: &ManifestSummary, present: u64) -> Result<Decision, Failure> {
        let own = (owner, &summary.id);
        let mut others = self.list()?;
        others.retain(|other| !other.is(owner, &summary.id));
        let free = self.free()?;
        let (limit, needed) = (self.limit(&others, free.saturating_add(present)), cost(summary));
        let used = size_of(&others).saturating_add(self.announced.bytes_beside(&others, own));
        let pending = self.outstanding.pending();
        let short = Short {
            of_limit: used.saturating_add(needed).saturating_sub(limit),
            of_disk: needed.saturating_sub(present).saturating_add(pending).saturating_sub(free),
        };
        self.mark_held(&mut others).unwrap_or_else(|failure| {
            tracing::error!(%failure, "it cannot be told which packages the jobs need; none is removed");
            others.iter_mut().for_each(|other| other.held = true);
        });
        let unused: Vec<&Stored> = if self.holds.is_some() { others.iter().filter(|other| !other.in_use()).collect() } else { vec![] };
        let sum = |bytes: fn(&Stored) -> u64| unused.iter().fold(0u64, |sum, package| sum.saturating_add(bytes(package)));
        let of_limit = limit.saturating_sub(used).saturating_add(sum(Stored::size)).min(limit);
        let of_disk = free.saturating_sub(pending).saturating_add(sum(|package| package.present));
        let going = match short.covered_by(&unused) {
            Some(count) => Ok(unused[..count].iter().map(|&package| package.clone()).collect()),
            None if (Short { of_limit: 0, ..short }).covered_by(&unused).is_some() => Err(no_room(needed, of_limit, limit)),
            // What the disk lacks is said when its share is taken.
            None => Ok(Vec::new()),
        };
        Ok(Decision { going, room: of_limit.min(of_disk) })
    }

    /// Takes a package's folder out of sight, durably, so that no part of it comes back under its name.
    fn put_in_trash(&self, gate: &Entered, package: &Stored) -> Result<(), Failure> {
        let folder = if package.whole { PACKAGES } else { PARTIAL };
        self.discard(gate, folder, &package.owner, &hex(&package.summary.id.0))
    }

    pub(super) fn discard(&self, _gate: &Entered, folder: &str, owner: &str, name: &str) -> Result<(), Failure> {
        let path = format!("{folder}/{owner}/{name}");
        let unusable = |error: io::Error| failed("remove", &path, &error);
        let home = match self.root.subdir(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other.map_err(unusable)?,
        };
        if !home.try_lock(false).map_err(unusable)? {
            return Err(in_use());
        }
        let trash = self.root.subdir(TRASH).map_err(unusable)?;
        let place = (0u32..).map(|n| format!("{folder}-{owner}-{name}-{n}")).find(|place| matches!(trash.stat(place), Ok(None)));
        let place = place.expect("there are more numbers than names in a folder");
        self.root.rename(&path, &trash, &place, true).map_err(unusable)?;
        let synced = self.root.subdir(format!("{folder}/{owner}")).and_then(|parent| parent.sync());
        synced.and_then(|()| trash.sync()).map_err(unusable)
    }

    /// Deletes what was taken out of sight, also what an interrupted removal left.
    pub(super) fn empty_trash(&self) {
        let trash = self.root.path().join(TRASH);
        for name in names(&trash).unwrap_or_default() {
            let path = trash.join(&name);
            // Another process may delete the same: then each finds gone what the other has removed.
            let deleted = (0..10).map(|_| fs::remove_dir_all(&path)).find(|deleted| deleted.is_ok() || !path.exists());
            if deleted.is_none() {
                tracing::warn!(name, "the store's trash cannot be emptied");
            }
        }
    }

    /// Puts away what a crash left of packages that never came: they have no summary and no list shows them.
    pub(super) fn clear_remains(&self) -> io::Result<()> {
        let gate = self.gate.enter()?;
        let mut remains = Vec::new();
        self.each_home(PARTIAL, &mut |owner, name, home| {
            if matches!(home.stat(SUMMARY), Ok(None)) {
                remains.push((owner.to_owned(), name.to_owned()));
            }
        })?;
        for (owner, name) in remains {
            if let Err(failure) = self.discard(&gate, PARTIAL, &owner, &name) {
                tracing::debug!(%failure, name, "what is left of a package stays");
            }
        }
        Ok(())
    }

    pub(super) fn enter(&self) -> Result<Entered, Failure> {
        self.gate.enter().map_err(|error| failed("lock the store in", self.root.path().display(), &error))
    }

    /// All packages and who needs them. Only within the gate.
    fn list_held(&self) -> Result<Vec<Stored>, Failure> {
        let mut stored = self.list()?;
        self.mark_held(&mut stored)?;
        Ok(stored)
    }

    fn mark_held(&self, stored: &mut [Stored]) -> Result<(), Failure> {
        let Some(holds) = &self.holds else { return Ok(()) };
        let now = SystemTime::now();
        for held in holds.held()? {
            for package in stored.iter_mut().filter(|package| package.is(&held.owner, &held.package)) {
                let fresh = now.duration_since(package.last_used).unwrap_or_default() < ARRIVING;
                package.held |= !held.arriving || fresh;
                package.used_by.push(held.by.clone());
            }
        }
        Ok(())
    }

    /// All packages, the longest unused first; who needs them is not known yet. Only within the gate: their locks are tried.
    fn list(&self) -> Result<Vec<Stored>, Failure> {
        let mut stored = Vec::new();
        for (folder, whole) in [(PACKAGES, true), (PARTIAL, false)] {
            let listed = self.each_home(folder, &mut |owner, name, home| {
                // What cannot be read counts as not there.
                stored.extend(parse_id(name).and_then(|id| look(owner, &id, home, whole).ok()?));
            });
            listed.map_err(|error| failed("list the store in", self.root.path().display(), &error))?;
        }
        stored.sort_by_key(|package| package.last_used);
        Ok(stored)
    }

    /// Shows owner, name and folder of every package below `folder`.
    fn each_home(&self, folder: &str, show: &mut dyn FnMut(&str, &str, &Root)) -> io::Result<()> {
        for owner in names(&self.root.path().join(folder))? {
            let Ok(packages) = self.root.subdir(format!("{folder}/{owner}")) else { continue };
            for name in names(packages.path())?.into_iter().filter(|name| parse_id(name).is_some()) {
                if let Ok(home) = packages.subdir(&name) {
                    show(&owner, &name, &home);
                }
            }
        }
        Ok(())
    }

    fn limit(&self, packages: &[Stored], free: u64) -> u64 {
        let (numerator, denominator) = DEFAULT_SHARE;
        self.quota.unwrap_or_else(|| {
            let here = packages.iter().fold(free, |sum, package| sum.saturating_add(package.present));
            here / denominator * numerator
        })
    }

    fn free(&self) -> Result<u64, Failure> {
        let space = self.root.space().map_err(|error| failed("look at the free space of", self.root.path().display(), &error))?;
        Ok(space.f_bavail.saturating_mul(space.f_frsize))
    }
}

/// A package as its folder tells of it; `None`: it was announced and never came.
fn look(owner: &str, id: &Hash, home: &Root, whole: bool) -> io::Result<Option<Stored>> {
    let Some(summary) = read_summary(home).filter(|summary| summary.id == *id) else { return Ok(None) };
    let modified = |name| home.open_file(name).and_then(|file| file.metadata()?.modified());
    let mut last_used = modified(SUMMARY)?;
    if let Ok(arrived) = modified(LOG) {
        last_used = last_used.max(arrived);
    }
    let open = !home.try_lock(false)?;
    let present = if whole { summary.bytes } else { present(&summary, home)? };
    Ok(Some(Stored { owner: owner.to_owned(), summary, whole, present, last_used, open, used_by: Vec::new(), held: false }))
}

/// How many bytes of a partial package are here, about: by the number of its chunks.
pub(super) fn present(summary: &ManifestSummary, home: &Root) -> io::Result<u64> {
    let log = read_file(home, LOG, u64::MAX)?.unwrap_or_default();
    let durable: ChunkSet = log::replay(&summary.id, summary.chunks, &log);
    let bytes = u128::from(summary.bytes) * u128::from(durable.count()) / u128::from(summary.chunks.max(1));
    Ok(bytes.min(u128::from(summary.bytes)) as u64)
}

fn size_of(packages: &[Stored]) -> u64 {
    packages.iter().fold(0, |sum, package| sum.saturating_add(package.size()))
}

fn in_use() -> Failure {
    Failure::new(Code::WrongState, "the package is in use; remove it when its job has ended")
}

fn no_room(needed: u64, free: u64, limit: u64) -> Failure {
    let message = format!(
        "the package does not fit into the worker's store: {} are needed, {} of the {} that packages may take are free or can be freed, \
         the rest is needed by jobs; wait until they have ended, or give the worker a larger --quota",
        human(needed),
        human(free),
        human(limit)
    );
    Failure::new(Code::NoSpace, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A package of so many bytes that was used `age` seconds before 1000.
    fn stored(bytes: u64, age: u64, open: bool, held: bool) -> Stored {
        let summary = ManifestSummary { id: Hash([age as u8; 32]), encoded_len: 0, files: 0, chunks: 1, bytes };
        let last_used = SystemTime::UNIX_EPOCH + Duration::from_secs(1000 - age);
        Stored { owner: "ann".into(), summary, whole: true, present: bytes, last_used, open, used_by: Vec::new(), held }
    }

    #[test]
    fn what_prune_removes() {
        let packages =
            [stored(10, 90, false, false), stored(20, 80, true, false), stored(30, 70, false, true), stored(40, 60, false, false)];
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        let older = |secs| Prune { older_than: Some(Duration::from_secs(secs)), ..Prune::default() };
        let to = |bytes| Prune { to: Some(bytes), ..Prune::default() };
        for (wish, ages) in [
            (Prune::default(), &[][..]),
            (Prune { all: true, ..Prune::default() }, &[90, 60]),
            (older(60), &[90, 60]),
            (older(61), &[90]),
            (older(91), &[]),
            (to(100), &[]),
            (to(99), &[90]),
            (to(90), &[90]),
            (to(0), &[90, 60]),
            (Prune { to: Some(89), ..older(90) }, &[90, 60]),
        ] {
            let chosen: Vec<u8> = wish.choose(&packages, now).iter().map(|package| package.summary.id.0[0]).collect();
            assert_eq!(chosen, ages, "{wish:?}");
        }
    }

    #[test]
    fn as_few_as_suffice_go_and_none_in_vain() {
        let packages = [stored(10, 90, false, false), stored(20, 80, false, false), stored(30, 70, false, false)];
        let candidates: Vec<&Stored> = packages.iter().collect();
        for (of_limit, of_disk, count) in
            [(0, 0, Some(0)), (1, 0, Some(1)), (10, 10, Some(1)), (10, 11, Some(2)), (60, 60, Some(3)), (61, 0, None), (0, 61, None)]
        {
            assert_eq!(Short { of_limit, of_disk }.covered_by(&candidates), count, "{of_limit} {of_disk}");
        }
    }
}
