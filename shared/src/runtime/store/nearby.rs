//! Chunks that files in other folders of the user have already: a checkpoint that came while training went on, for results.
//!
//! Nothing is known of these files beforehand. They are cut and hashed like files that are to be sent, so that content is found wherever
//! it lies in them; each chunk is read back and verified when it is copied.

use std::{fs, io, path::Path};

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use super::{partial::Partial, verify::ChunkFiles};
use crate::{
    domain::{
        error::{Code, Failure},
        manifest::{Hash, Manifest},
        transfer::WholeChunk,
    },
    runtime::files::{Source, root::Root},
};

/// So much is copied between two group commits.
const COMMIT_EVERY: u64 = 32 * 1024 * 1024;

/// Copies what files in these folders have of what `partial` lacks.
pub(super) fn from_folders(partial: &Partial, folders: &[impl AsRef<Path>], cancel: &CancellationToken) -> Result<(), Failure> {
    for folder in folders.iter().map(AsRef::as_ref) {
        if partial.present().is_full() {
            break;
        }
        // One that is just being removed or cannot be read has nothing to offer.
        if let (Ok(root), Ok(manifest)) = (open(folder), Source::folder(folder).and_then(|source| source.scan(&mut |_| {}, cancel))) {
            from_one(partial, root, &manifest, cancel)?;
        }
        if cancel.is_cancelled() {
            return Err(Failure::new(Code::JobCancelled, "interrupted while the folder was being searched"));
        }
    }
    Ok(())
}

fn open(folder: &Path) -> io::Result<Root> {
    Root::open(&fs::canonicalize(folder)?)
}

fn from_one(partial: &Partial, root: Root, manifest: &Manifest, cancel: &CancellationToken) -> Result<(), Failure> {
    let listing = partial.listing();
    let missing = partial.present().complement();
    let mut wanted = missing.iter().map(|index| Ok((listing.hash(index)?, index))).collect::<Result<Vec<(Hash, u32)>, Failure>>()?;
    wanted.sort_unstable();
    let mut files = ChunkFiles::new(root);
    let mut uncommitted = 0;
    for (place, hash) in manifest.places() {
        let start = wanted.partition_point(|(other, _)| *other < hash);
        let takers = wanted[start..].iter().take_while(|(other, _)| *other == hash);
        for &(_, index) in takers {
            let Some(own) = listing.layout().get(index).filter(|own| own.len == place.len) else { continue };
            let Ok(Some(bytes)) = files.read(&manifest.entries[place.entry].path, &place, &hash) else { break };
            partial.write(&WholeChunk { index, place: own, bytes: Bytes::copy_from_slice(bytes) })?;
            uncommitted += u64::from(own.len);
        }
        if uncommitted >= COMMIT_EVERY {
            partial.sync()?;
            uncommitted = 0;
        }
        if cancel.is_cancelled() {
            break;
        }
    }
    partial.sync().map(drop)
}
