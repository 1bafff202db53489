//! Room is made by what nobody uses, and by nothing else.

use std::{
    sync::{Mutex, atomic::AtomicBool, atomic::Ordering},
    thread,
    time::Duration,
};

use super::{
    tests::{Package, check, fill, frames, partial, tree, whole},
    *,
};
use crate::domain::error::Code;

/// The jobs of a test.
#[derive(Debug, Default)]
struct Needs(Mutex<Vec<Held>>);

impl Holds for Needs {
    fn held(&self) -> Result<Vec<Held>, Failure> {
        Ok(self.0.lock().unwrap().clone())
    }
}

/// One that does not know.
#[derive(Debug)]
struct Unknown;

impl Holds for Unknown {
    fn held(&self) -> Result<Vec<Held>, Failure> {
        Err(Failure::new(Code::BadFile, "the jobs cannot be read"))
    }
}

/// A store with room for two packages of [`frames`] and no third.
fn store(needs: &Arc<Needs>) -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), Some(3_200_000)).unwrap().with_holds(needs.clone());
    (dir, store)
}

/// Stores a package and says that it was used so many hours ago.
fn put(store: &Store, owner: &str, package: &Package, hours: u64) {
    let arriving = partial(store.begin(owner, &package.summary), package);
    fill(&arriving, package);
    let dir = whole(&arriving);
    age(dir.path().parent().unwrap(), hours);
}

fn age(home: &Path, hours: u64) {
    let then = SystemTime::now() - Duration::from_secs(hours * 3600);
    for name in ["summary", "chunks.log"] {
        let file = fs::File::options().write(true).open(home.join(name));
        file.and_then(|file| file.set_modified(then)).unwrap();
    }
}

fn need(owner: &str, package: &Package, arriving: bool) -> Held {
    Held { owner: owner_key(owner), package: package.summary.id, by: "flies".into(), arriving }
}

fn has(store: &Store, owner: &str, package: &Package) -> bool {
    store.package(owner, &package.summary.id).unwrap().is_some()
}

#[test]
fn the_longest_unused_package_of_any_owner_makes_room() {
    let needs = Arc::default();
    let (dir, store) = store(&needs);
    let [old, older, new] = [40, 41, 42].map(frames);
    put(&store, "ann", &old, 3);
    put(&store, "bob", &older, 5);
    put(&store, "ann", &new, 0);
    assert!(has(&store, "ann", &old) && !has(&store, "bob", &older) && has(&store, "ann", &new));
    // To use one is to keep it: `has` has opened both, the old one first.
    let next = frames(43);
    put(&store, "cyd", &next, 0);
    assert!(!has(&store, "ann", &old) && has(&store, "ann", &new) && has(&store, "cyd", &next));
    assert!(fs::read_dir(dir.path().join("trash")).unwrap().next().is_none());
}

#[test]
fn what_a_live_job_needs_stays_and_the_newcomer_is_refused_before_anything_is_removed() {
    let needs = Arc::<Needs>::default();
    let (dir, store) = store(&needs);
    let [queued, idle, new] = [44, 45, 46].map(frames);
    put(&store, "ann", &queued, 9);
    put(&store, "bob", &idle, 1);
    *needs.0.lock().unwrap() = vec![need("ann", &queued, false)];
    let huge = ManifestSummary { bytes: 2_000_000, ..new.summary };
    let before = tree(dir.path());
    let failure = store.begin("ann", &huge).unwrap_err();
    assert!(failure.code == Code::NoSpace && failure.message.contains("needed by jobs"), "{failure}");
    assert_eq!(tree(dir.path()), before, "what would not suffice is not removed");
    // Only what the job itself has counts: the same package of another owner is another.
    *needs.0.lock().unwrap() = vec![need("ann", &queued, false), need("ann", &idle, false)];
    put(&store, "cyd", &new, 0);
    assert!(has(&store, "ann", &queued) && !has(&store, "bob", &idle));
    let stored = store.overview().unwrap().packages.into_iter().find(|package| package.summary == queued.summary).unwrap();
    assert_eq!((stored.in_use(), &stored.used_by[..]), (true, &["flies".to_owned()][..]));
    assert_eq!(store.remove(&stored).unwrap_err().code, Code::WrongState);
    assert!(store.prune(&Prune { all: true, ..Prune::default() }, false).unwrap().iter().all(|package| package.summary == new.summary));
    assert!(has(&store, "ann", &queued) && !has(&store, "cyd", &new));
}

#[test]
fn whoever_cannot_tell_what_is_needed_removes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let [first, second, new] = [47, 48, 49].map(frames);
    let store = Store::open(dir.path(), Some(3_200_000)).unwrap();
    put(&store, "ann", &first, 9);
    put(&store, "ann", &second, 9);
    assert_eq!(store.begin("ann", &new.summary).unwrap_err().code, Code::NoSpace, "it knows of no jobs at all");
    let store = store.with_holds(Arc::new(Unknown));
    assert_eq!(store.begin("ann", &new.summary).unwrap_err().code, Code::NoSpace);
    assert!(store.prune(&Prune { all: true, ..Prune::default() }, false).is_err());
    assert!(has(&store, "ann", &first) && has(&store, "ann", &second));
}

#[test]
fn parts_of_an_upload_stay_while_it_lives_and_for_an_hour() {
    let needs = Arc::<Needs>::default();
    let (_dir, store) = store(&needs);
    let [upload, other, new] = [50, 51, 52].map(frames);
    put(&store, "bob", &other, 0);
    let live = partial(store.begin("ann", &upload.summary), &upload);
    live.write(&upload.chunk(0)).unwrap();
    live.sync().unwrap();
    age(live.home(), 5);
    *needs.0.lock().unwrap() = vec![need("ann", &upload, true), need("bob", &other, false)];
    let refused = || assert_eq!(store.begin("cyd", &new.summary).unwrap_err().code, Code::NoSpace);
    refused();
    let home = live.home().to_owned();
    drop(live);
    age(&home, 0);
    let mut stored = store.packages().unwrap();
    stored.retain(|package| !package.whole);
    assert!(stored[0].in_use() && stored[0].present > 0 && stored[0].present < upload.summary.bytes);
    // Its job waits for it no longer than that, though the job itself does.
    age(&home, 5);
    assert!(!store.packages().unwrap().iter().any(|package| !package.whole && package.in_use()));
    let huge = Package::of(&[("x", &crate::runtime::files::noise(53, 1_750_000))]);
    put(&store, "cyd", &huge, 0);
    assert!(!home.exists() && has(&store, "bob", &other));
}

#[test]
fn packages_that_are_only_announced_count() {
    let needs = Arc::<Needs>::default();
    let (_dir, store) = store(&needs);
    let [first, second, third] = [54, 55, 56].map(frames);
    let announced = store.begin("ann", &first.summary).unwrap();
    let Begun::New(other) = store.begin("bob", &second.summary).unwrap() else { panic!("it is new") };
    assert_eq!(store.begin("cyd", &third.summary).unwrap_err().code, Code::NoSpace);
    let arriving = other.accept(second.manifest.clone()).unwrap();
    assert_eq!(store.begin("cyd", &third.summary).unwrap_err().code, Code::NoSpace);
    drop(announced);
    assert!(matches!(store.begin("cyd", &third.summary).unwrap(), Begun::New(_)));
    drop(arriving);
}

#[test]
fn a_crash_in_a_removal_leaves_a_package_whole_or_gone() {
    let needs = Arc::default();
    let (dir, store) = store(&needs);
    let package = frames(57);
    put(&store, "ann", &package, 1);
    // After the move, with half of it deleted; and a package that crashed before it had a summary.
    let home = dir.path().join(format!("packages/{}/{}", owner_key("ann"), package.summary.id));
    let trash = dir.path().join("trash/packages-x-0");
    fs::rename(&home, &trash).unwrap();
    fs::remove_file(trash.join("manifest")).unwrap();
    let remains = dir.path().join(format!("partial/{}/{}", owner_key("ann"), frames(58).summary.id));
    fs::create_dir_all(remains.join("files")).unwrap();
    drop(store);
    let store = Store::open(dir.path(), None).unwrap();
    assert!(!trash.exists() && !remains.exists());
    assert!(store.packages().unwrap().is_empty() && !has(&store, "ann", &package));
    put(&store, "ann", &package, 0);
    check(store.package("ann", &package.summary.id).unwrap().unwrap().path(), &package);
}

/// Sessions begin, finish and open packages while another process (here: another store on the same folder) prunes all the time:
/// what was got is never taken away, and nobody is told that a package is in use that he may have.
#[test]
fn a_package_that_is_being_begun_or_used_is_never_pruned() {
    let needs = Arc::<Needs>::default();
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), None).unwrap().with_holds(needs.clone());
    let pruner = Store::existing(dir.path(), None).unwrap().unwrap().with_holds(needs);
    let packages: Vec<Package> = (60..63).map(|seed| Package::of(&[("x", &crate::runtime::files::noise(seed, 3000))])).collect();
    let done = AtomicBool::new(false);
    let mut found = 0;
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                pruner.prune(&Prune { all: true, ..Prune::default() }, false).unwrap();
            }
        });
        for round in 0..60 {
            let package = &packages[round % packages.len()];
            let dir = match store.begin("ann", &package.summary).unwrap() {
                Begun::Present(dir) => {
                    found += 1;
                    dir
                }
                begun => {
                    let arriving = partial(Ok(begun), package);
                    fill(&arriving, package);
                    whole(&arriving)
                }
            };
            check(dir.path(), package);
        }
        done.store(true, Ordering::Relaxed);
    });
    assert!(found < 60, "something was pruned meanwhile");
}

#[test]
fn an_existing_store_is_looked_at_and_none_is_made() {
    let dir = tempfile::tempdir().unwrap();
    assert!(Store::existing(&dir.path().join("none"), None).unwrap().is_none());
    assert!(!dir.path().join("none").exists());
    let store = Store::open(dir.path(), None).unwrap();
    let overview = store.overview().unwrap();
    assert!(overview.packages.is_empty() && overview.used == 0);
    assert!(overview.limit > 0 && overview.limit < overview.free, "some of the disk is left to others");
    let path = dir.path().join(format!("packages/0011/{}/files", Hash([7; 32])));
    assert_eq!(package_at(&path), Some(("0011".to_owned(), Hash([7; 32]))));
    assert_eq!(package_at(path.parent().unwrap()), None);
}

#[test]
fn without_a_quota_what_has_arrived_does_not_make_the_limit_smaller() {
    let needs = Arc::<Needs>::default();
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), None).unwrap().with_holds(needs);
    let package = frames(70);
    // As on a disk of which this package takes much: what is free beside it counts, and what it has taken.
    let gate = store.enter().unwrap();
    let fits = |bytes, present| {
        let summary = ManifestSummary { bytes, ..package.summary };
        store.make_room(&gate, &owner_key("ann"), &summary, present).is_ok()
    };
    let free = store.root.space().map(|space| space.f_bavail * space.f_frsize).unwrap();
    assert!(!fits(free / 10 * 9, 0), "a fifth is left to others");
    assert!(fits(free / 10 * 9, free / 4));
}
