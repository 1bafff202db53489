//! The folder of a partial package: claimed by one transfer at a time, prepared durably.

use std::{
    collections::BTreeSet,
    io::{self, Read, Write},
};

use super::{folder::Folder, gate::Gate, medium::SYNC_ONE_BY_ONE, share::Others};
use crate::{
    domain::{
        error::{Code, Failure},
        id::hex,
        manifest::{Hash, MAX_MANIFEST, Manifest, ManifestReader, ManifestSummary, PART},
    },
    runtime::files::{failed, root::Root},
};

pub(super) const FILES: &str = "files";
pub(super) const LOG: &str = "chunks.log";
pub(super) const MANIFEST: &str = "manifest";
pub(super) const SUMMARY: &str = "summary";

/// Where a package goes when it is whole.
#[derive(Debug)]
pub(super) enum Goal {
    /// Into the store: the owner's folders of partial and of whole packages, and what may be shared with others.
    Package { partials: Root, packages: Root, gate: Gate, others: Option<Others> },
    /// Into a folder of the user.
    Folder(Folder),
}

/// A place for a partial package, ours alone as long as it is open.
#[derive(Debug)]
pub(super) struct Slot {
    /// The folder that it is in.
    pub(super) parent: Root,
    /// Its folder; locked.
    pub(super) home: Root,
    pub(super) summary: ManifestSummary,
    pub(super) goal: Goal,
}

impl Slot {
    /// A slot of the package's id below `parent`.
    ///
    /// # Errors
    /// [`Code::PeerBusy`] when another transfer writes it.
    pub(super) fn claim(parent: Root, summary: ManifestSummary, goal: Goal) -> Result<Slot, Failure> {
        let name = hex(&summary.id.0);
        let unusable = |error: io::Error| failed("use", parent.path().join(&name).display(), &error);
        loop {
            let home = parent.make_dirs(&name).map_err(unusable)?;
            if !home.try_lock(false).map_err(unusable)? {
                return Err(Failure::new(
                    Code::PeerBusy,
                    "the same package is being received in another session; wait until that has ended",
                ));
            }
            // Between opening and locking it may have been finished or removed.
            match parent.subdir(&name) {
                Ok(now) if now.is(&home).map_err(unusable)? => return Ok(Slot { parent, home, summary, goal }),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(unusable(error)),
            }
        }
    }

    /// Its manifest, if it is there and undamaged.
    pub(super) fn manifest(&self) -> Option<Manifest> {
        read_manifest(&self.home, &self.summary.id)
    }

    /// Gives up a slot that nothing is in.
    pub(super) fn give_up(self) {
        // Whatever is in it is worth keeping; then this fails, as it should.
        let _ = self.parent.remove_dir(hex(&self.summary.id.0));
    }

    /// Makes the folders and files of a manifest, empty, and then the manifest itself: all durable.
    pub(super) fn prepare(&self, manifest: &Manifest) -> Result<(), Failure> {
        let unusable = |error: io::Error| failed("prepare the package in", self.home.path().display(), &error);
        let files = self.home.make_dirs(FILES).map_err(unusable)?;
        let mut folders: BTreeSet<&str> = BTreeSet::from([""]);
        let entries = &manifest.entries;
        for entry in entries {
            let parent = entry.path.parent().unwrap_or("");
            if !folders.contains(parent) {
                files.make_dirs(parent).map_err(unusable)?;
                folders.extend(parent.match_indices('/').map(|(end, _)| &parent[..end]));
                folders.insert(parent);
            }
            let file = files.open_to_write(entry.path.as_str(), entry.executable).map_err(unusable)?;
            if entries.len() <= SYNC_ONE_BY_ONE {
                file.sync_all().map_err(unusable)?;
            }
        }
        if entries.len() <= SYNC_ONE_BY_ONE || !files.sync_file_system().map_err(unusable)? {
            for folder in folders {
                files.subdir(folder).and_then(|folder| folder.sync()).map_err(unusable)?;
            }
        }
        let summary = postcard::to_allocvec(&self.summary).expect("a summary always serialises to memory");
        let write = || {
            write_durably(&self.home, SUMMARY, [summary])?;
            write_durably(&self.home, MANIFEST, manifest.encoded_parts(PART))?;
            self.home.sync()?;
            self.parent.sync()
        };
        write().map_err(unusable)
    }
}

/// The manifest in a package's folder; `None`: it is missing or damaged.
pub(super) fn read_manifest(home: &Root, id: &Hash) -> Option<Manifest> {
    let mut file = home.open_file(MANIFEST).ok()?.take(MAX_MANIFEST + 1);
    let (mut reader, mut hasher, mut part) = (ManifestReader::default(), blake3::Hasher::new(), vec![0; PART]);
    loop {
        match file.read(&mut part) {
            Ok(0) => break,
            Ok(read) => {
                hasher.update(&part[..read]);
                reader.push(&part[..read]).ok()?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return None,
        }
    }
    if file.limit() == 0 || hasher.finalize() != id.0 {
        return None;
    }
    reader.finish().ok()
}

/// The summary in a package's folder; `None`: it is missing or damaged.
pub(super) fn read_summary(home: &Root) -> Option<ManifestSummary> {
    postcard::from_bytes(&read_file(home, SUMMARY, 4096).ok()??).ok()
}

/// What a file of at most `limit` bytes has in it; `None`: there is no such file.
pub(super) fn read_file(root: &Root, name: &str, limit: u64) -> io::Result<Option<Vec<u8>>> {
    let file = match root.open_file(name) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is longer than it can be"));
    }
    Ok(Some(bytes))
}

/// Writes a file whole or not at all. Its name is durable once the root is synced.
fn write_durably(root: &Root, name: &str, parts: impl IntoIterator<Item = Vec<u8>>) -> io::Result<()> {
    let fresh = format!("{name}.new");
    let mut file = root.open_to_write(&fresh, false)?;
    file.set_len(0)?;
    parts.into_iter().try_for_each(|part| file.write_all(&part))?;
    file.sync_all()?;
    root.rename(&fresh, root, name, true)
}
