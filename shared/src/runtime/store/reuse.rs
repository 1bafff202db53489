//! Chunks that other packages of the same owner have already.
//!
//! Only the same owner's: otherwise somebody could learn from what need not be sent what others have sent (who proves that he has
//! it himself is another matter: see `share`). A chunk is read,
//! verified, and the very bytes that were verified are written, so that it does not matter what happens to the other package
//! meanwhile.

use std::fs;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use super::{
    log,
    packages::parse_id,
    partial::Partial,
    slot::{FILES, LOG, read_file, read_manifest},
    verify::ChunkFiles,
};
use crate::{
    domain::{
        error::{Code, Failure},
        manifest::{Hash, Manifest},
        transfer::{ChunkSet, WholeChunk},
    },
    runtime::files::{failed, root::Root},
};

/// So much is copied between two group commits.
const COMMIT_EVERY: u64 = 32 * 1024 * 1024;

/// The chunks that are wanted, by hash.
pub(super) struct Wanted(Vec<(Hash, u32)>);

impl Wanted {
    pub(super) fn new(partial: &Partial) -> Wanted {
        let missing = partial.present().complement();
        let mut wanted: Vec<_> = missing.iter().filter_map(|index| Some((partial.places().get(index)?.chunk.hash, index))).collect();
        wanted.sort_unstable();
        Wanted(wanted)
    }

    pub(super) fn of(&self, hash: &Hash) -> &[(Hash, u32)] {
        let start = self.0.partition_point(|(other, _)| other < hash);
        let len = self.0[start..].partition_point(|(other, _)| other == hash);
        &self.0[start..start + len]
    }
}

/// Copies what the packages in these folders have of what `partial` lacks.
pub(super) fn from_others(
    partial: &Partial,
    folders: [&Root; 2],
    progress: &mut dyn FnMut(u64),
    cancel: &CancellationToken,
) -> Result<(), Failure> {
    let wanted = Wanted::new(partial);
    let mut copied = ChunkSet::new(partial.places().len());
    let mut looked = 0;
    for folder in folders {
        let listed = fs::read_dir(folder.path()).map_err(|error| failed("list", folder.path().display(), &error))?;
        for entry in listed.filter_map(Result::ok) {
            let Some(id) = entry.file_name().to_str().and_then(parse_id).filter(|id| *id != partial.id()) else { continue };
            if copied.count() as usize == wanted.0.len() {
                break;
            }
            // One that is just being removed or cannot be read has nothing to offer.
            let Ok(home) = folder.subdir(entry.file_name()) else { continue };
            if let Some(manifest) = read_manifest(&home, &id) {
                let mut heard = |bytes| {
                    looked += bytes;
                    progress(looked);
                };
                from_one(partial, &home, &id, &manifest, &wanted, &mut copied, &mut heard, cancel)?;
            }
        }
    }
    partial.sync().map(drop)
}

#[expect(clippy::too_many_arguments, reason = "one loop body, in a function of its own for its length; go with the loop")]
fn from_one(
    partial: &Partial,
    home: &Root,
    id: &Hash,
    manifest: &Manifest,
    wanted: &Wanted,
    copied: &mut ChunkSet,
    looked: &mut dyn FnMut(u64),
    cancel: &CancellationToken,
) -> Result<(), Failure> {
    // A whole package has a log as well; it names all chunks.
    let Ok(Some(log)) = read_file(home, LOG, u64::MAX) else { return Ok(()) };
    let there = log::replay(id, manifest.chunk_count(), &log);
    let Ok(files) = home.subdir(FILES) else { return Ok(()) };
    let mut files = ChunkFiles::new(files, &manifest.entries);
    let mut uncommitted = 0;
    for (_, place) in manifest.places().enumerate().filter(|(index, _)| there.contains(*index as u32)) {
        let takers = wanted.of(&place.chunk.hash);
        if takers.iter().all(|&(_, index)| copied.contains(index)) {
            continue;
        }
        if cancel.is_cancelled() {
            return Err(Failure::new(Code::JobCancelled, "interrupted while earlier packages were being searched"));
        }
        looked(u64::from(place.chunk.len));
        let Ok(Some(bytes)) = files.read(&place) else { continue };
        let bytes = Bytes::copy_from_slice(bytes);
        for &(_, index) in takers {
            let Some(place) = partial.places().get(index).filter(|own| own.chunk.len == place.chunk.len) else { continue };
            partial.write(&WholeChunk { index, place, bytes: bytes.clone() })?;
            copied.insert(index);
            uncommitted += u64::from(place.chunk.len);
        }
        if uncommitted >= COMMIT_EVERY {
            partial.sync()?;
            uncommitted = 0;
        }
    }
    Ok(())
}
