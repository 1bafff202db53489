//! Packages that arrive, break off, are damaged, fill the disk, and are whole in the end.

use std::{
    os::unix::fs::{PermissionsExt, symlink},
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, Ordering},
    },
};

use bytes::Bytes;
use tempfile::TempDir;

use super::{
    medium::{FileId, Medium},
    *,
};
use crate::{
    domain::{
        error::Code,
        frame::{FrameHeader, FrameKind, PIECE},
        manifest::{Chunk, Entry, Manifest},
        transfer::{Accepted, ChunkSet, Layout, Next, Receiving, Sending, WholeChunk, ranges_of},
    },
    runtime::{
        files::{ChunkReader, Source, noise},
        listing::Listing,
    },
};

/// A package on the sender's side.
pub(super) struct Package {
    _dir: TempDir,
    source: Arc<Source>,
    pub(super) manifest: Manifest,
    pub(super) summary: ManifestSummary,
    pub(super) layout: Layout,
}

impl Package {
    pub(super) fn of(files: &[(&str, &[u8])]) -> Package {
        let dir = tempfile::tempdir().unwrap();
        write_files(dir.path(), files);
        let source = Arc::new(Source::folder(dir.path()).unwrap());
        let manifest = source.scan(&mut |_| {}, &Default::default()).unwrap();
        let encoded = manifest.encode();
        let summary = manifest.summary(&encoded);
        let layout = Layout::new(&manifest);
        Package { _dir: dir, source, manifest, summary, layout }
    }

    fn reader(&self) -> ChunkReader {
        self.source.reader(Listing::in_memory(&self.manifest)).unwrap()
    }

    pub(super) fn chunk(&self, index: u32) -> WholeChunk {
        let place = self.layout.get(index).unwrap();
        let mut bytes = Vec::new();
        self.reader().read(index, place, &mut bytes, true).unwrap();
        WholeChunk { index, place, bytes: bytes.into() }
    }

    fn len(&self) -> u32 {
        self.layout.len()
    }
}

fn write_files(dir: &Path, files: &[(&str, &[u8])]) {
    for (path, bytes) in files {
        let path = dir.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
}

/// Two files of several chunks, a small one, and an empty one in a folder.
pub(super) fn frames(seed: u64) -> Package {
    let (a, b) = (noise(seed, 900_000), noise(seed + 1000, 500_000));
    Package::of(&[("frames.slp", &a), ("more/frames.slp", &b), ("config.yaml", b"model: x"), ("more/empty", b"")])
}

fn store() -> (TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("store"), None).unwrap();
    (dir, store)
}

/// Begins, or takes up, a package that is not whole.
pub(super) fn partial(begun: Result<Begun, Failure>, package: &Package) -> Arc<Partial> {
    match begun.unwrap() {
        Begun::New(announced) => announced.accept(package.manifest.clone()).unwrap(),
        Begun::Known(partial) => partial,
        Begun::Present(dir) => panic!("{} is whole", dir.path().display()),
    }
}

fn finish(partial: &Partial) -> Finished {
    partial.finish(&Default::default()).unwrap()
}

pub(super) fn whole(partial: &Partial) -> PackageDir {
    match finish(partial) {
        Finished::Whole(dir) => dir,
        Finished::Damaged(set) => panic!("damaged: {:?}", set.ranges()),
    }
}

fn prepare(partial: &Partial) {
    partial.prepare(&mut |_| {}, &Default::default()).unwrap();
}

/// Writes what is missing; returns how many bytes that was.
pub(super) fn fill(partial: &Partial, package: &Package) -> u64 {
    let missing = partial.present().complement();
    for index in missing.iter() {
        partial.write(&package.chunk(index)).unwrap();
    }
    assert!(partial.sync().unwrap().into_iter().eq(missing.iter()));
    package.layout.bytes_of(&missing)
}

pub(super) fn check(dir: &Path, package: &Package) {
    for entry in &package.manifest.entries {
        let path = dir.join(entry.path.as_str());
        let bytes = fs::read(&path).unwrap();
        let mut rest = &bytes[..];
        for chunk in &entry.chunks {
            let (bytes, after) = rest.split_at(chunk.len as usize);
            assert_eq!(Hash::of(bytes), chunk.hash, "{}", path.display());
            rest = after;
        }
        assert!(rest.is_empty(), "{}", path.display());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o100 != 0, entry.executable);
    }
}

/// All regular files below a folder.
pub(super) fn tree(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.is_symlink() { files.extend(tree(&path)) } else { files.push(path) }
    }
    files.sort();
    files
}

#[test]
fn a_package_arrives_and_is_there_the_next_time() {
    let (_dir, store) = store();
    let package = frames(1);
    let partial = partial(store.begin("ann", &package.summary), &package);
    assert_eq!(partial.finish(&Default::default()).unwrap_err().code, Code::WrongState);
    let last = package.len() - 1;
    for index in (0..last).rev() {
        partial.write(&package.chunk(index)).unwrap();
    }
    assert!(partial.unsynced_bytes() > 0 && partial.present().is_empty());
    assert!(partial.sync().unwrap().into_iter().eq(0..last));
    assert_eq!((partial.sync().unwrap(), partial.unsynced_bytes()), (vec![], 0));
    assert!(store.package("ann", &package.summary.id).unwrap().is_none());
    partial.write(&package.chunk(last)).unwrap();
    let dir = whole(&partial);
    check(dir.path(), &package);
    assert_eq!(partial.write(&package.chunk(0)).unwrap_err().code, Code::WrongState);
    drop((partial, dir));

    let Begun::Present(dir) = store.begin("ann", &package.summary).unwrap() else { panic!("it is whole") };
    check(dir.path(), &package);
    assert_eq!((dir.summary(), dir.listing().manifest().unwrap()), (package.summary, package.manifest.clone()));
    assert!(matches!(store.begin("bob", &package.summary).unwrap(), Begun::New(_)), "owners share nothing");
}

#[test]
fn executable_files_stay_executable() {
    let (dir, store) = store();
    let script = dir.path().join("train.sh");
    fs::write(&script, "#!/bin/sh").unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let source = Source::files(vec![(script, "train.sh".parse().unwrap())]).unwrap();
    let manifest = source.scan(&mut |_| {}, &Default::default()).unwrap();
    let encoded = manifest.encode();
    let (summary, layout) = (manifest.summary(&encoded), Layout::new(&manifest));
    let package = Package { _dir: tempfile::tempdir().unwrap(), source: Arc::new(source), manifest, summary, layout };
    let partial = partial(store.begin("ann", &summary), &package);
    fill(&partial, &package);
    check(whole(&partial).path(), &package);
}

#[test]
fn what_was_synced_survives_and_what_was_not_is_asked_for() {
    let (dir, store) = store();
    let package = frames(2);
    let first = partial(store.begin("ann", &package.summary), &package);
    for index in [0, 2, 3] {
        first.write(&package.chunk(index)).unwrap();
    }
    assert_eq!(first.sync().unwrap(), [0, 2, 3]);
    first.write(&package.chunk(1)).unwrap();
    drop((first, store));

    let store = Store::open(&dir.path().join("store"), None).unwrap();
    let second = partial(store.begin("ann", &package.summary), &package);
    assert!(second.present().iter().eq([0, 2, 3]));
    fill(&second, &package);
    check(whole(&second).path(), &package);
}

#[test]
fn damage_on_the_disk_is_found_and_only_that_chunk_travels_again() {
    let (_dir, store) = store();
    let package = frames(3);
    type Damage = fn(&Path);
    let flip: Damage = |path| {
        let mut bytes = fs::read(path).unwrap();
        bytes[300_000] ^= 1;
        fs::write(path, bytes).unwrap();
    };
    let shorten: Damage = |path| fs::File::options().write(true).open(path).unwrap().set_len(899_999).unwrap();
    let remove: Damage = |path| fs::remove_file(path).unwrap();
    for (damage, at_once) in [(flip, false), (shorten, true), (remove, true)] {
        let first = partial(store.begin("ann", &package.summary), &package);
        fill(&first, &package);
        damage(&first.home().join("files/frames.slp"));
        drop(first);

        let second = partial(store.begin("ann", &package.summary), &package);
        let lost = if at_once {
            second.present().complement()
        } else {
            assert!(second.present().is_full());
            let Finished::Damaged(lost) = finish(&second) else { panic!("the damage was not found") };
            assert_eq!(second.present(), lost.complement());
            assert_eq!(lost.count(), 1);
            lost
        };
        assert!(store.package("ann", &package.summary.id).unwrap().is_none());
        // The damage is not forgotten in another restart.
        drop(second);
        let third = partial(store.begin("ann", &package.summary), &package);
        assert_eq!(fill(&third, &package), package.layout.bytes_of(&lost));
        let dir = whole(&third);
        check(dir.path(), &package);
        drop((dir, third));
        store.remove(&store.packages().unwrap()[0]).unwrap();
    }
}

#[test]
fn a_damaged_list_of_files_is_sent_again_and_what_was_received_stays() {
    let (_dir, store) = store();
    let package = frames(30);
    let damage = |path: &Path| fs::write(path, &package.manifest.encode()[1..]).unwrap();
    let first = partial(store.begin("ann", &package.summary), &package);
    first.write(&package.chunk(2)).unwrap();
    first.sync().unwrap();
    damage(&first.home().join("manifest"));
    // And somebody appended to a file.
    let longer = [fs::read(first.home().join("files/config.yaml")).unwrap(), vec![0; 100]].concat();
    fs::write(first.home().join("files/config.yaml"), longer).unwrap();
    drop(first);
    let Begun::New(announced) = store.begin("ann", &package.summary).unwrap() else { panic!("the list is damaged") };
    let second = announced.accept(package.manifest.clone()).unwrap();
    assert!(second.present().iter().eq([2]));
    fill(&second, &package);
    let dir = whole(&second);
    check(dir.path(), &package);

    // A whole package with a damaged list is none, and makes room for a new one.
    damage(&dir.path().with_file_name("manifest"));
    drop((dir, second));
    assert!(store.package("ann", &package.summary.id).unwrap().is_none());
    let third = partial(store.begin("ann", &package.summary), &package);
    fill(&third, &package);
    check(whole(&third).path(), &package);
}

#[test]
fn chunks_of_the_same_owners_packages_are_not_sent_again() {
    let (_dir, store) = store();
    let images = noise(4, 2_000_000);
    let edited = [&noise(5, 3000)[..], &images].concat();
    let before = Package::of(&[("frames.slp", &images), ("labels", b"one")]);
    let after = Package::of(&[("renamed.slp", &edited), ("labels", b"two")]);
    let first = partial(store.begin("ann", &before.summary), &before);
    fill(&first, &before);
    let dir = whole(&first);

    let other = partial(store.begin("bob", &after.summary), &after);
    prepare(&other);
    assert!(other.present().is_empty(), "another owner learns nothing");

    // A damaged chunk of the earlier package is no use.
    let path = dir.path().join("frames.slp");
    let mut bytes = fs::read(&path).unwrap();
    let place = before.layout.get(before.len() - 1).unwrap();
    bytes[place.offset as usize] ^= 1;
    fs::write(&path, bytes).unwrap();

    let second = partial(store.begin("ann", &after.summary), &after);
    let mut looked = 0;
    second.prepare(&mut |bytes| looked = bytes, &Default::default()).unwrap();
    assert!(looked > 1_000_000);
    let sent = fill(&second, &after);
    assert!(sent > u64::from(place.len) && sent < 900_000, "{sent} bytes were sent");
    check(whole(&second).path(), &after);

    // An interrupted package serves as well, with what is durable of it.
    let third = Package::of(&[("renamed.slp", &edited), ("labels", b"three")]);
    let interrupted = partial(store.begin("cyd", &before.summary), &before);
    interrupted.write(&before.chunk(0)).unwrap();
    interrupted.write(&before.chunk(3)).unwrap();
    assert_eq!(interrupted.sync().unwrap().len(), 2);
    let partial = partial(store.begin("cyd", &third.summary), &third);
    prepare(&partial);
    assert!(partial.present().count() >= 1);
}

#[test]
fn what_does_not_fit_is_refused_before_its_first_byte() {
    let dir = tempfile::tempdir().unwrap();
    let package = frames(6);
    let store = Store::open(dir.path(), Some(2_000_000)).unwrap();
    let first = partial(store.begin("ann", &package.summary), &package);
    let before = tree(dir.path());
    for (summary, named) in [(frames(7).summary, "1.4 MB"), (ManifestSummary { bytes: 1 << 60, ..frames(7).summary }, "TB")] {
        let failure = store.begin("ann", &summary).unwrap_err();
        assert!(failure.code == Code::NoSpace && failure.message.contains(named), "{failure}");
    }
    let unlimited = Store::open(dir.path(), None).unwrap();
    let huge = ManifestSummary { bytes: 1 << 60, ..frames(7).summary };
    assert_eq!(unlimited.begin("ann", &huge).unwrap_err().code, Code::NoSpace);
    let out = Destination::new(dir.path().join("out"), false).begin(&huge).unwrap_err();
    assert_eq!(out.code, Code::NoSpace);
    assert_eq!(unlimited.begin("ann", &ManifestSummary { encoded_len: u64::MAX, ..huge }).unwrap_err().code, Code::TooLarge);
    assert_eq!(tree(dir.path()), before);
    // The one that is here already goes on: it is counted once.
    drop(first);
    assert!(matches!(store.begin("ann", &package.summary).unwrap(), Begun::Known(_)));
}

#[test]
fn a_package_that_is_used_is_not_removed() {
    let (_dir, store) = store();
    let package = frames(8);
    let arriving = partial(store.begin("ann", &package.summary), &package);
    assert_eq!(store.begin("ann", &package.summary).unwrap_err().code, Code::PeerBusy);
    let listed = store.packages().unwrap();
    assert_eq!((listed.len(), listed[0].whole, listed[0].summary), (1, false, package.summary));
    assert_eq!(store.remove(&listed[0]).unwrap_err().code, Code::WrongState);
    fill(&arriving, &package);
    let dir = whole(&arriving);
    drop(arriving);
    let listed = store.packages().unwrap();
    assert!(listed.len() == 1 && listed[0].whole && store.overview().unwrap().used >= package.summary.bytes);
    assert_eq!(store.remove(&listed[0]).unwrap_err().code, Code::WrongState);
    let again = store.package("ann", &package.summary.id).unwrap().unwrap();
    drop(dir);
    assert_eq!(store.remove(&listed[0]).unwrap_err().code, Code::WrongState);
    drop(again);
    store.remove(&listed[0]).unwrap();
    store.remove(&listed[0]).unwrap();
    assert!(store.packages().unwrap().is_empty() && store.package("ann", &package.summary.id).unwrap().is_none());
    assert!(tree(store.root.path()).is_empty());
}

#[test]
fn another_manifest_than_the_announced_one_is_refused() {
    let (_dir, store) = store();
    let (package, other) = (frames(9), frames(10));
    let Begun::New(announced) = store.begin("ann", &package.summary).unwrap() else { panic!("it is new") };
    assert_eq!(announced.accept(other.manifest.clone()).unwrap_err().code, Code::BadPackage);
    let partial = partial(store.begin("ann", &package.summary), &package);
    assert_eq!(partial.write(&WholeChunk { index: 99, ..package.chunk(0) }).unwrap_err().code, Code::InvalidRequest);
    assert_eq!(partial.write(&WholeChunk { bytes: vec![1].into(), ..package.chunk(0) }).unwrap_err().code, Code::InvalidRequest);
}

#[test]
fn a_download_lands_in_the_folder_and_leaves_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("results");
    let package = frames(11);
    let destination = Destination::new(&out, false);
    let first = partial(destination.begin(&package.summary), &package);
    first.write(&package.chunk(0)).unwrap();
    first.sync().unwrap();
    assert!(fs::read_dir(&out).unwrap().all(|entry| entry.unwrap().file_name() == ".webrtc-connect"));
    drop(first);
    let second = partial(destination.begin(&package.summary), &package);
    prepare(&second);
    assert_eq!(second.present().count(), 1);
    fill(&second, &package);
    assert_eq!(whole(&second).path(), out.canonicalize().unwrap());
    check(&out, &package);
    assert_eq!(tree(&out).len(), package.manifest.entries.len());

    // Fetched again, nothing is sent, and nothing is touched.
    let again = partial(destination.begin(&package.summary), &package);
    prepare(&again);
    assert!(again.present().is_full());
    whole(&again);
    check(&out, &package);
    assert_eq!(tree(&out).len(), package.manifest.entries.len());
}

#[test]
fn a_download_takes_what_files_nearby_have_and_leaves_them() {
    let dir = tempfile::tempdir().unwrap();
    let (out, first, second) = (dir.path().join("out"), dir.path().join("first"), dir.path().join("second"));
    let (a, b) = (noise(15, 900_000), noise(16, 500_000));
    let package = Package::of(&[("run/best.ckpt", &a), ("run/other", &b), ("run/empty", b"")]);
    // Moved by some bytes in one of them, and damaged in a place in the other.
    write_files(&first, &[("elsewhere/best.ckpt", &[b"more in front".as_slice(), &a].concat())]);
    let mut damaged = b.clone();
    damaged[250_000] ^= 1;
    write_files(&second, &[("run/other", &damaged)]);
    let before = (tree(&first), fs::read(second.join("run/other")).unwrap());
    let nearby = vec![dir.path().join("is not there"), first.clone(), second.clone()];
    let destination = Destination::new(&out, false).with_nearby(nearby);
    let arriving = partial(destination.begin(&package.summary), &package);
    prepare(&arriving);
    let missing = package.layout.bytes_of(&arriving.present().complement());
    assert!((1..1_000_000).contains(&missing), "{missing}");
    let missing = arriving.present().complement().count();
    assert!(missing <= 4, "{missing} of {} chunks", package.len());
    assert_eq!(destination.unfinished(), [out.join(".webrtc-connect").join(hex(&package.summary.id.0)).join("files")]);
    // One that is not whole helps another, too; what lies beside a hole in it may not be recognised.
    let beside = Destination::new(dir.path().join("beside"), false).with_nearby(destination.unfinished());
    let copy = partial(beside.begin(&package.summary), &package);
    prepare(&copy);
    assert!(2 * copy.present().count() >= arriving.present().count(), "{}", copy.present().count());
    fill(&arriving, &package);
    whole(&arriving);
    check(&out, &package);
    assert_eq!((tree(&first), fs::read(second.join("run/other")).unwrap()), before);
}

#[test]
fn a_different_file_is_overwritten_only_on_request() {
    let dir = tempfile::tempdir().unwrap();
    let package = frames(12);
    write_files(dir.path(), &[("config.yaml", b"mine: 12")]);
    let careful = partial(Destination::new(dir.path(), false).begin(&package.summary), &package);
    let failure = careful.prepare(&mut |_| {}, &Default::default()).unwrap_err();
    assert!(failure.code == Code::BadFile && failure.message.contains("config.yaml"), "{failure}");
    // One that appears in the middle is noticed in the end, before anything is moved.
    fill(&careful, &package);
    assert_eq!(careful.finish(&Default::default()).unwrap_err().code, Code::BadFile);
    assert_eq!(fs::read(dir.path().join("config.yaml")).unwrap(), b"mine: 12");
    assert!(!dir.path().join("frames.slp").exists());
    drop(careful);

    let bold = partial(Destination::new(dir.path(), true).begin(&package.summary), &package);
    prepare(&bold);
    assert!(bold.present().is_full(), "what was received is kept");
    whole(&bold);
    check(dir.path(), &package);
}

#[test]
fn a_download_that_broke_off_while_its_files_were_moved_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let package = frames(13);
    let destination = Destination::new(dir.path(), false);
    let first = partial(destination.begin(&package.summary), &package);
    fill(&first, &package);
    fs::rename(first.home().join("files/frames.slp"), dir.path().join("frames.slp")).unwrap();
    drop(first);
    let second = partial(destination.begin(&package.summary), &package);
    prepare(&second);
    assert!(second.present().is_full());
    whole(&second);
    check(dir.path(), &package);
    assert_eq!(tree(dir.path()).len(), package.manifest.entries.len());
}

#[test]
fn a_download_cannot_leave_its_folder() {
    let dir = tempfile::tempdir().unwrap();
    let (out, outside) = (dir.path().join("out"), dir.path().join("outside"));
    fs::create_dir_all(&outside).unwrap();
    let package = frames(14);
    let partial_of = |out: &Path| partial(Destination::new(out, true).begin(&package.summary), &package);
    let first = partial_of(&out);
    fill(&first, &package);
    symlink("../outside", out.join("more")).unwrap();
    let failure = first.finish(&Default::default()).unwrap_err();
    assert!(failure.code == Code::BadFile && failure.message.contains("symbolic link"), "{failure}");
    assert!(tree(&outside).is_empty());
    fs::remove_file(out.join("more")).unwrap();
    whole(&first);
    check(&out, &package);

    let chunk = Chunk { hash: Hash::of(b"x"), len: 1 };
    let path = format!("{}/x", super::super::files::WORK_FOLDER.to_uppercase()).parse().unwrap();
    let manifest = Manifest::new(vec![Entry { path, size: 1, executable: false, chunks: vec![chunk] }]).unwrap();
    let encoded = manifest.encode();
    let Begun::New(announced) = Destination::new(&out, true).begin(&manifest.summary(&encoded)).unwrap() else { panic!("it is new") };
    assert_eq!(announced.accept(manifest).unwrap_err().code, Code::BadPackage);
}

/// A disk that is full after so many bytes, or whose syncs fail.
struct Full(Box<dyn Medium>, Arc<AtomicI64>, bool);

impl Medium for Full {
    fn write_at(&self, file: FileId, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if !self.2 && self.1.fetch_sub(bytes.len() as i64, Ordering::Relaxed) < bytes.len() as i64 {
            return Err(rustix::io::Errno::NOSPC.into());
        }
        self.0.write_at(file, offset, bytes)
    }

    fn sync(&self, files: &[FileId]) -> io::Result<()> {
        if self.2 && self.1.fetch_sub(1, Ordering::Relaxed) < 1 {
            return Err(rustix::io::Errno::NOSPC.into());
        }
        self.0.sync(files)
    }
}

#[test]
fn a_full_disk_is_said_and_the_transfer_goes_on_when_there_is_space() {
    let package = frames(15);
    for (at_sync, room) in [(false, 500_000), (true, 2), (true, 3)] {
        let (_dir, store) = store();
        let left = Arc::new(AtomicI64::new(room));
        let partial = partial(store.begin("ann", &package.summary), &package);
        let partial = Arc::into_inner(partial).unwrap().on(|disk| Box::new(Full(disk, left.clone(), at_sync)));
        let mut acked = ChunkSet::new(package.len());
        let failure = (0..package.len())
            .find_map(|index| match partial.write(&package.chunk(index)).and_then(|()| partial.sync()) {
                Ok(durable) => {
                    durable.into_iter().for_each(|index| assert!(acked.insert(index)));
                    None
                }
                Err(failure) => Some(failure),
            })
            .unwrap();
        assert_eq!(failure.code, Code::NoSpace);
        assert_eq!(partial.present(), acked);
        assert!(!acked.is_empty() && store.package("ann", &package.summary.id).unwrap().is_none());
        left.store(i64::MAX, Ordering::Relaxed);
        fill(&partial, &package);
        check(whole(&partial).path(), &package);
    }
}

type Write = (FileId, u64, Vec<u8>);

/// A disk that keeps what was not synced in memory; at the cut some of it, in any order and torn, has reached the platter.
#[derive(Clone)]
struct Volatile {
    disk: Arc<dyn Medium>,
    unsynced: Arc<Mutex<Vec<Write>>>,
    /// So many writes and syncs until the cut.
    left: Arc<AtomicI64>,
}

impl Medium for Volatile {
    fn write_at(&self, file: FileId, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.unsynced.lock().unwrap().push((file, offset, bytes.to_vec()));
        self.use_power()
    }

    fn sync(&self, files: &[FileId]) -> io::Result<()> {
        self.use_power()?;
        let mut unsynced = self.unsynced.lock().unwrap();
        for (file, offset, bytes) in unsynced.extract_if(.., |(file, ..)| files.contains(file)) {
            self.disk.write_at(file, offset, &bytes)?;
        }
        Ok(())
    }
}

impl Volatile {
    /// The power goes between any two operations, also in the middle of a group commit.
    fn use_power(&self) -> io::Result<()> {
        if self.left.fetch_sub(1, Ordering::Relaxed) > 0 { Ok(()) } else { Err(rustix::io::Errno::IO.into()) }
    }

    /// What was not synced is lost, or not, or in part.
    fn lose(&self, dice: &mut Dice) {
        for (file, offset, bytes) in self.unsynced.lock().unwrap().drain(..) {
            match dice.roll(3) {
                0 => {}
                1 => self.disk.write_at(file, offset, &bytes).unwrap(),
                _ => self.disk.write_at(file, offset, &bytes[..dice.roll(bytes.len())]).unwrap(),
            }
        }
    }
}

/// Numbers that look random and are the same each time.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % sides.max(1)
    }
}

#[test]
fn after_any_power_cut_no_acked_chunk_is_missing() {
    let (_dir, store) = store();
    let mut dice = Dice(1);
    let (mut cuts, mut wholes) = (0, 0);
    while cuts < 200 {
        let package = frames(100 + wholes);
        let mut acked = ChunkSet::new(package.len());
        loop {
            let mut medium = None;
            let partial = partial(store.begin("ann", &package.summary), &package);
            let partial = Arc::into_inner(partial).unwrap().on(|disk| {
                let left = Arc::new(AtomicI64::new(dice.roll(16) as i64));
                let volatile = Volatile { disk: Arc::from(disk), unsynced: Arc::default(), left };
                medium = Some(volatile.clone());
                Box::new(volatile)
            });
            let present = partial.present();
            assert!(acked.iter().all(|index| present.contains(index)), "an acked chunk is missing after cut {cuts}");
            for index in present.iter() {
                let chunk = package.chunk(index);
                let path = package.manifest.entries[chunk.place.entry].path.as_str();
                let bytes = fs::read(partial.home().join("files").join(path)).unwrap();
                assert!(bytes[chunk.place.offset as usize..].starts_with(&chunk.bytes), "chunk {index} is not what was acked");
            }
            acked = present;
            if acked.is_full() {
                check(whole(&partial).path(), &package);
                break;
            }
            let missing: Vec<u32> = acked.iter_missing().collect();
            loop {
                let index = missing[dice.roll(missing.len())];
                let written = partial.write(&package.chunk(index));
                let synced = written.and_then(|()| if dice.roll(3) == 0 { partial.sync() } else { Ok(Vec::new()) });
                match synced {
                    Ok(durable) => durable.into_iter().for_each(|index| assert!(acked.insert(index))),
                    Err(_) => break,
                }
                if acked.is_full() {
                    break;
                }
            }
            medium.unwrap().lose(&mut dice);
            cuts += 1;
        }
        wholes += 1;
    }
}

#[test]
fn a_transfer_survives_the_receivers_death_again_and_again() {
    const WINDOW: u64 = 1_000_000;
    let (dir, _) = store();
    let package = Package::of(&[("big.slp", &noise(20, 6_000_000)), ("small", b"x"), ("none", b"")]);
    let mut reader = package.reader();
    let mut dice = Dice(7);
    let (mut sent, mut kills) = (0, 0u64);
    let done = loop {
        // The receiver starts: nothing of it but its disk has survived.
        let store = Store::open(&dir.path().join("store"), None).unwrap();
        let partial = partial(store.begin("ann", &package.summary), &package);
        let mut receiving = Receiving::new(partial.layout().clone(), &partial.present());
        let mut sending = Sending::new(partial.layout().clone(), receiving.needed().clone(), WINDOW).unwrap();
        let mut lifetime = 3 + dice.roll(10);
        let mut buf: Vec<u8> = Vec::new();
        while lifetime > 0 && !sending.is_complete() {
            lifetime -= 1;
            let connection = dice.roll(3) as u32;
            match sending.next(connection) {
                Next::Chunk(index, place) => {
                    buf.clear();
                    reader.read(index, place, &mut buf, false).unwrap();
                    sent += buf.len() as u64;
                    for (at, piece) in buf.chunks(PIECE).enumerate() {
                        let header = FrameHeader { transfer: 1, kind: FrameKind::Chunk(index), offset: (at * PIECE) as u32 };
                        let piece = Bytes::copy_from_slice(piece);
                        if let Accepted::Whole(chunk) = receiving.accept_piece(connection, header, piece).unwrap() {
                            let hash = partial.listing().hash(chunk.index).unwrap();
                            let Accepted::Verified(chunk) = receiving.verify(chunk, &hash).unwrap() else { panic!("it is good") };
                            partial.write(&chunk).unwrap();
                        }
                    }
                }
                Next::Wait | Next::AllSent => {
                    let durable = partial.sync().unwrap();
                    assert!(durable.iter().all(|&index| receiving.stored(index)));
                    sending.acked(&ranges_of(durable)).unwrap();
                }
            }
        }
        if receiving.is_complete() {
            break whole(&partial);
        }
        kills += 1;
    };
    check(done.path(), &package);
    assert!(kills > 2);
    let again = sent - package.summary.bytes;
    assert!(again <= kills * WINDOW, "{again} bytes were sent again after {kills} kills");
}

#[test]
fn many_small_files_are_received_with_few_open_at_once() {
    let (_dir, store) = store();
    let names: Vec<(String, Vec<u8>)> = (0..600).map(|n| (format!("frames/{}/{n}.png", n % 7), noise(n, 200 + n as usize))).collect();
    let files: Vec<(&str, &[u8])> = names.iter().map(|(name, bytes)| (name.as_str(), &bytes[..])).collect();
    let package = Package::of(&files);
    let partial = partial(store.begin("ann", &package.summary), &package);
    let before = fs::read_dir("/proc/self/fd").map(|fds| fds.count()).unwrap_or(0);
    fill(&partial, &package);
    let after = fs::read_dir("/proc/self/fd").map(|fds| fds.count()).unwrap_or(0);
    assert!(after < before + 300, "{before} → {after} open files");
    let dir = whole(&partial);
    check(dir.path(), &package);
    assert_eq!(tree(dir.path()).len(), 600);
}

/// Every path of the store, with what changes when somebody touches it.
fn traces(folder: &Path) -> Vec<(PathBuf, u64, SystemTime)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let metadata = fs::metadata(&path).unwrap();
        found.push((path.clone(), metadata.len(), metadata.modified().unwrap()));
        if metadata.is_dir() {
            found.extend(traces(&path));
        }
    }
    found.sort();
    found
}

#[test]
fn a_look_says_what_is_missing_and_leaves_no_trace() {
    let (dir, store) = store();
    let (first, second) = (frames(1), frames(2));
    let missing = |package: &Package| store.missing("anna", &package.summary.id, &package.manifest).unwrap();
    let all = first.summary.bytes;
    let empty = traces(dir.path());
    assert!(matches!(store.stock("anna", &first.summary).unwrap(), Stock::Nothing));
    assert_eq!(missing(&first), Missing { to_write: all, to_send: all });
    assert_eq!(traces(dir.path()), empty);

    let arriving = partial(store.begin("anna", &first.summary), &first);
    arriving.write(&first.chunk(0)).unwrap();
    arriving.sync().unwrap();
    let left = all - u64::from(first.layout.get(0).unwrap().len);
    let half = traces(dir.path());
    assert!(matches!(store.stock("anna", &first.summary).unwrap(), Stock::Listed(manifest) if *manifest == first.manifest));
    assert_eq!(missing(&first), Missing { to_write: left, to_send: left }, "while the transfer has it locked");
    assert_eq!(traces(dir.path()), half);

    fill(&arriving, &first);
    drop(whole(&arriving));
    drop(arriving);
    let done = traces(dir.path());
    assert!(matches!(store.stock("anna", &first.summary).unwrap(), Stock::Whole(files) if files.join("config.yaml").is_file()));
    assert!(matches!(store.stock("ben", &first.summary).unwrap(), Stock::Nothing), "owners share nothing");
    let config = first.manifest.entries.iter().find(|entry| entry.path.as_str() == "config.yaml").unwrap().size;
    assert_eq!(missing(&second), Missing { to_write: second.summary.bytes, to_send: second.summary.bytes - config });
    let ben = store.missing("ben", &second.summary.id, &second.manifest).unwrap();
    assert_eq!(ben.to_send, second.summary.bytes, "owners share nothing");
    assert_eq!(traces(dir.path()), done);
}

#[test]
fn a_look_and_a_beginning_agree_about_room() {
    let dir = tempfile::tempdir().unwrap();
    let package = frames(1);
    let stock = |store: &Store| store.stock("anna", &package.summary).unwrap();
    let room = |store: &Store| {
        let missing = Missing { to_write: package.summary.bytes, to_send: 0 };
        store.room("anna", &package.summary, &stock(store), missing).unwrap()
    };
    let tight = Store::open(&dir.path().join("tight"), Some(cost(&package.summary) - 1)).unwrap();
    let (free, fits) = room(&tight);
    assert_eq!(free, cost(&package.summary) - 1);
    assert_eq!(fits.unwrap_err(), tight.begin("anna", &package.summary).unwrap_err());
    let wide = Store::open(&dir.path().join("wide"), Some(cost(&package.summary))).unwrap();
    assert_eq!(room(&wide), (cost(&package.summary), Ok(())));
    let arriving = partial(wide.begin("anna", &package.summary), &package);
    fill(&arriving, &package);
    drop(whole(&arriving));
    assert_eq!(room(&wide), (cost(&package.summary), Ok(())), "what is here needs no room");
    let (free, fits) =
        Store::open(&dir.path().join("open"), None).unwrap().room("anna", &package.summary, &Stock::Nothing, Missing::default()).unwrap();
    assert!(free > 0 && fits.is_ok());
}
