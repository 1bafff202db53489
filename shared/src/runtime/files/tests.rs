//! Real files in temporary folders: what a scan finds, a reader gives back.

use std::{
    ffi::OsStr,
    io::Write,
    os::unix::{ffi::OsStrExt, fs::symlink},
    time::SystemTime,
};

use tempfile::TempDir;
use zip::{CompressionMethod, ZipWriter, write::SimpleFileOptions};

use super::*;
use crate::domain::manifest::{Chunk, ChunkPlace, Manifest};

fn rel(path: &str) -> RelPath {
    path.parse().unwrap()
}

fn scan(source: &Source) -> Result<Manifest, Failure> {
    source.scan(&mut |_| {}, &Default::default())
}

/// Scans, then reads every chunk in the order that `order` makes of them, and puts the files together.
fn read_back(source: Source, order: impl FnOnce(&mut Vec<(u32, ChunkPlace)>)) -> Vec<(String, Vec<u8>)> {
    let mut heard = 0;
    let manifest = source.scan(&mut |bytes| heard = bytes, &Default::default()).unwrap();
    assert_eq!((heard, heard), (manifest.bytes(), source.bytes()));
    let listing = Listing::in_memory(&manifest);
    let mut reader = Arc::new(source).reader(listing.clone()).unwrap();
    let mut files: Vec<(String, Vec<u8>)> =
        manifest.entries.iter().map(|entry| (entry.path.to_string(), vec![0; entry.size as usize])).collect();
    let mut places: Vec<_> = (0..).zip(manifest.places().map(|(place, _)| place)).collect();
    order(&mut places);
    let mut buf = Vec::new();
    for (index, place) in places {
        buf.clear();
        reader.read(index, place, &mut buf, false).unwrap();
        assert_eq!(Hash::of(&buf), listing.hash(index).unwrap());
        files[place.entry].1[place.offset as usize..][..buf.len()].copy_from_slice(&buf);
    }
    files
}

fn folder(files: &[(&str, &[u8])]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (path, bytes) in files {
        let path = dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    dir
}

fn zip_of(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = ZipWriter::new(io::Cursor::new(Vec::new()));
    for (index, (path, bytes)) in files.iter().enumerate() {
        let method = if index % 2 == 0 { CompressionMethod::Deflated } else { CompressionMethod::Stored };
        zip.start_file(*path, SimpleFileOptions::default().compression_method(method)).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

/// The positions of a zip's central directory headers.
fn headers(zip: &[u8]) -> Vec<usize> {
    (0..zip.len() - 4).filter(|&at| zip[at..at + 4] == *b"PK\x01\x02").collect()
}

fn in_file(bytes: &[u8]) -> (TempDir, PathBuf) {
    let dir = folder(&[("package.zip", bytes)]);
    let path = dir.path().join("package.zip");
    (dir, path)
}

#[test]
fn a_folder_comes_back_as_it_was() {
    let (big, small) = (noise(1, 900_000), noise(2, 3000));
    let dir = folder(&[("b/frames.slp", &big), ("a.yaml", &small), ("b/empty", b""), (".webrtc-connect/x/part", b"unfinished")]);
    symlink("b/frames.slp", dir.path().join("linked.slp")).unwrap();
    let files = read_back(Source::folder(dir.path()).unwrap(), |places| places.reverse());
    let expected: [(&str, &[u8]); 4] = [("a.yaml", &small), ("b/empty", b""), ("b/frames.slp", &big), ("linked.slp", &big)];
    assert!(files.iter().map(|(path, bytes)| (path.as_str(), &bytes[..])).eq(expected));
}

#[test]
fn what_cannot_be_sent_from_a_folder_is_named() {
    let outside = folder(&[("secret", b"x")]);
    type Make<'a> = Box<dyn Fn(&Path) + 'a>;
    let cases: [(&str, Make); 6] = [
        ("leads out", Box::new(|dir| symlink(outside.path().join("secret"), dir.join("bad")).unwrap())),
        ("not there", Box::new(|dir| symlink("nowhere", dir.join("bad")).unwrap())),
        ("contains it", Box::new(|dir| symlink(".", dir.join("bad")).unwrap())),
        ("neither", Box::new(|dir| drop(std::os::unix::net::UnixListener::bind(dir.join("bad")).unwrap()))),
        ("not every system", Box::new(|dir| fs::write(dir.join("bad:name"), "").unwrap())),
        ("UTF-8", Box::new(|dir| fs::write(dir.join(OsStr::from_bytes(b"bad\xff")), "").unwrap())),
    ];
    for (expected, make) in cases {
        let dir = folder(&[("good", b"fine")]);
        make(dir.path());
        let failure = Source::folder(dir.path()).unwrap_err();
        assert!(failure.code == Code::BadFile && failure.message.contains(expected), "{expected}: {failure}");
        assert!(failure.message.contains("bad"), "{failure}");
    }
    assert_eq!(Source::folder(Path::new("/nowhere/at/all")).unwrap_err().code, Code::BadFile);
}

#[test]
fn a_link_put_in_place_of_a_file_is_not_followed() {
    let outside = folder(&[("secret", b"fine")]);
    let dir = folder(&[("results/best.ckpt", b"fine")]);
    let swap = || {
        fs::remove_file(dir.path().join("results/best.ckpt")).unwrap();
        symlink(outside.path().join("secret"), dir.path().join("results/best.ckpt")).unwrap();
    };
    let source = Source::files_below(dir.path(), vec![rel("results/best.ckpt")]).unwrap();
    let whole = Source::folder(dir.path()).unwrap();
    swap();
    for failure in [
        scan(&source).unwrap_err(),
        scan(&whole).unwrap_err(),
        Source::files_below(dir.path(), vec![rel("results/best.ckpt")]).unwrap_err(),
    ] {
        assert!(failure.code == Code::BadFile && failure.message.contains("symbolic link"), "{failure}");
    }
}

#[test]
fn a_zip_comes_back_as_its_entries_in_any_order() {
    let (big, soft) = (noise(3, 900_000), vec![b'a'; 700_000]);
    let entries: [(&str, &[u8]); 4] =
        [("package/soft", &soft), ("package/raw", &big), ("package/deep/packed", &big[..500_000]), ("package/empty", b"")];
    let (_dir, path) = in_file(&zip_of(&[&entries[..], &[("package/folder/", b""), ("__MACOSX/._raw", b"junk")]].concat()));
    let extra = folder(&[("config.yaml", b"model: x")]);
    for reversed in [false, true] {
        let config = Source::files(vec![(extra.path().join("config.yaml"), rel("config.yaml"))]).unwrap();
        let source = Source::zip(&path).unwrap().and(config).unwrap();
        assert_eq!(source.read_small(&rel("config.yaml"), 100).unwrap().unwrap(), b"model: x");
        assert_eq!(source.read_small(&rel("package/empty"), 100).unwrap().unwrap(), b"");
        assert_eq!(source.read_small(&rel("package/raw"), 100).unwrap_err().code, Code::TooLarge);
        assert_eq!(source.read_small(&rel("nothing"), 100).unwrap(), None);
        let files = read_back(source, |places| {
            if reversed {
                places.reverse()
            }
        });
        for (path, bytes) in entries.iter().chain(&[("config.yaml", &b"model: x"[..])]) {
            assert!(files.iter().any(|(name, got)| name == path && got == bytes), "{path}");
        }
        assert_eq!(files.len(), 5);
    }
}

#[test]
fn a_hostile_zip_is_refused_with_its_reason() {
    let soft = vec![0; 100_000];
    let zip = zip_of(&[("first", &soft), ("second", b"stored")]);
    let patched = |entry: usize, offset: usize, bytes: &[u8]| {
        let mut zip = zip.clone();
        let at = headers(&zip)[entry] + offset;
        zip[at..at + bytes.len()].copy_from_slice(bytes);
        zip
    };
    let linked = {
        let mut zip = ZipWriter::new(io::Cursor::new(Vec::new()));
        zip.add_symlink("link", "/etc/passwd", SimpleFileOptions::default()).unwrap();
        zip.finish().unwrap().into_inner()
    };
    let first_header = u32::from_le_bytes(zip[headers(&zip)[0] + 42..][..4].try_into().unwrap());
    for (expected, bytes) in [
        ("shorter", patched(0, 24, &200_000u32.to_le_bytes())),
        ("longer", patched(0, 24, &50_000u32.to_le_bytes())),
        ("checksum", patched(0, 16, &[1, 2, 3, 4])),
        ("encrypted", patched(0, 8, &[1])),
        ("share bytes", patched(1, 42, &first_header.to_le_bytes())),
        ("deflate", patched(0, 10, &[14])),
        ("not acceptable", patched(0, 46, b"../xx")),
        ("not acceptable", patched(0, 46, b"/etcx")),
        ("symbolic link", linked),
        ("not a zip", b"PK but not really".to_vec()),
    ] {
        let (_dir, path) = in_file(&bytes);
        let failure = Source::zip(&path).and_then(|source| scan(&source)).unwrap_err();
        assert!(failure.code == Code::BadPackage && failure.message.contains(expected), "{expected}: {failure}");
    }
}

#[test]
fn a_file_that_changes_is_noticed() {
    let bytes = noise(5, 600_000);
    for (what, change) in [("content", noise(6, 600_000)), ("shorter", bytes[..1000].to_vec()), ("gone", Vec::new())] {
        let dir = folder(&[("data", &bytes)]);
        let cache = folder(&[]);
        let path = dir.path().join("data");
        let source = Source::folder(dir.path()).unwrap().with_cache(ScanCache::trusting(cache.path()));
        let listing = Listing::in_memory(&scan(&source).unwrap());
        let mut reader = Arc::new(source).reader(listing.clone()).unwrap();
        if what == "gone" {
            fs::remove_file(path).unwrap()
        } else {
            fs::write(path, change).unwrap()
        }
        let layout = listing.layout();
        let mut read = |index: u32| reader.read(index, layout.get(index).unwrap(), &mut Vec::new(), false);
        let failures: Vec<Failure> = (0..layout.len()).filter_map(|index| read(index).err()).collect();
        assert!(!failures.is_empty() && failures.iter().all(|failure| failure.code == Code::BadFile), "{what}");
        if what != "gone" {
            assert!(failures.iter().all(|failure| failure.message.contains("changed")), "{what}");
            assert_eq!(fs::read_dir(cache.path()).unwrap().count(), 0, "the cached scan is forgotten");
        }
    }
    let dir = folder(&[("data", &bytes)]);
    let source = Source::folder(dir.path()).unwrap();
    fs::write(dir.path().join("data"), noise(7, 600_000)).unwrap();
    assert!(scan(&source).unwrap_err().message.contains("changed"));
}

#[test]
fn an_unchanged_file_is_not_read_again() {
    let dir = folder(&[("data", &noise(8, 300_000)), ("labels", b"one")]);
    let store = folder(&[]);
    let cache = ScanCache::trusting(store.path());
    let source = || Source::folder(dir.path()).unwrap().with_cache(cache.clone());
    let first = scan(&source()).unwrap();
    // Put something else under the stamps: if the next scan says it, it did not look into the file.
    let claimed = source();
    let item = claimed.items.iter().find(|item| item.path.as_str() == "data").unwrap();
    let claim = [Chunk { hash: Hash([7; 32]), len: item.size as u32 / 2 }; 2];
    cache.save(&claimed.cache_key(), [(item.stamp, &claim[..])].into_iter(), SystemTime::now());
    let second = scan(&source()).unwrap();
    assert_eq!(second.entries[0].chunks[1].hash, Hash([7; 32]));
    assert_eq!(second.entries[1], first.entries[1]);

    // A changed file is read, and a damaged cache is no cache.
    fs::write(dir.path().join("data"), noise(9, 300_000)).unwrap();
    let chunks_of_data = |source: &Source| scan(source).unwrap().entries[0].chunks.clone();
    let changed = chunks_of_data(&Source::folder(dir.path()).unwrap());
    assert_ne!(changed, first.entries[0].chunks);
    assert_eq!(chunks_of_data(&source()), changed);
    for entry in fs::read_dir(store.path()).unwrap() {
        fs::write(entry.unwrap().path(), b"webrtc-connect scan 3\nnonsense").unwrap();
    }
    assert_eq!(chunks_of_data(&source()), changed);
}

#[test]
fn a_file_changed_just_now_is_not_trusted_to_the_cache() {
    let dir = folder(&[("data", b"young")]);
    let store = folder(&[]);
    let cache = ScanCache::new(store.path());
    let source = Source::folder(dir.path()).unwrap().with_cache(cache.clone());
    scan(&source).unwrap();
    assert!(cache.load(&source.cache_key()).is_empty());
}

#[test]
fn a_cancelled_scan_ends() {
    let dir = folder(&[("data", &noise(10, 900_000))]);
    let cancel = tokio_util::sync::CancellationToken::new();
    let mut heard = 0;
    let failure = Source::folder(dir.path())
        .unwrap()
        .scan(
            &mut |_| {
                heard += 1;
                cancel.cancel();
            },
            &cancel,
        )
        .unwrap_err();
    assert_eq!((failure.code, heard >= 1), (Code::JobCancelled, true));
}

#[test]
fn two_files_of_one_name_are_refused() {
    let dir = folder(&[("a", b"1"), ("b", b"2")]);
    let one = |name: &str| Source::files(vec![(dir.path().join(name), rel("same"))]).unwrap();
    assert_eq!(one("a").and(one("b")).unwrap_err().code, Code::BadPackage);
    assert_eq!(Source::files(vec![(dir.path().to_owned(), rel("x"))]).unwrap_err().code, Code::BadFile);
}
