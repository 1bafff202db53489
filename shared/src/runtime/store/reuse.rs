//! Chunks that other packages of the same owner have already.
//!
//! Only the same owner's: otherwise somebody could learn from what need not be sent what others have sent (who proves that he has
//! it himself is another matter: see `share`). A chunk is read,
//! verified, and the very bytes that were verified are written, so that it does not matter what happens to the other package
//! meanwhile.

use std::{fs, sync::Arc};

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
    runtime::{
        files::{failed, root::Root},
        listing::Listing,
    },
};

/// So much is copied between two group commits.
const COMMIT_EVERY: u64 = 32 * 1024 * 1024;

/// The chunks that are wanted, by hash.
pub(super) struct Wanted {
    listing: Arc<Listing>,
    /// The beginning of each one's hash, and its index: of a large package there are many, and its listing has the hashes.
    sorted: Vec<(u32, u32)>,
}

impl Wanted {
    pub(super) fn new(partial: &Partial) -> Result<Wanted, Failure> {
        let listing = partial.listing().clone();
        let missing = partial.present().complement();
        let mut sorted = Vec::with_capacity(missing.count() as usize);
        for index in missing.iter() {
            sorted.push((beginning(&listing.hash(index)?), index));
        }
        sorted.sort_unstable();
        Ok(Wanted { listing, sorted })
    }

    pub(super) fn of(&self, hash: &Hash) -> impl Iterator<Item = u32> + use<'_> {
        let (hash, beginning) = (*hash, beginning(hash));
        let start = self.sorted.partition_point(|&(other, _)| other < beginning);
        let candidates = self.sorted[start..].iter().take_while(move |&&(other, _)| other == beginning);
        // A hash that cannot be read back is no longer wanted: its chunk is sent.
        candidates.map(|&(_, index)| index).filter(move |&index| self.listing.hash(index).is_ok_and(|own| own == hash))
    }
}

fn beginning(hash: &Hash) -> u32 {
    let [a, b, c, d, ..] = hash.0;
    u32::from_be_bytes([a, b, c, d])
}

/// Copies what the packages in these folders have of what `partial` lacks.
pub(super) fn from_others(
    partial: &Partial,
    folders: [&Root; 2],
    progress: &mut dyn FnMut(u64),
    cancel: &CancellationToken,
) -> Result<(), Failure> {
    let wanted = Wanted::new(partial)?;
    let mut copied = ChunkSet::new(partial.layout().len());
    let mut looked = 0;
    for folder in folders {
        let listed = fs::read_dir(folder.path()).map_err(|error| failed("list", folder.path().display(), &error))?;
        for entry in listed.filter_map(Result::ok) {
            let Some(id) = entry.file_name().to_str().and_then(parse_id).filter(|id| *id != partial.id()) else { continue };
            if copied.count() as usize == wanted.sorted.len() {
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
    let mut files = ChunkFiles::new(files);
    let mut uncommitted = 0;
    for (_, (place, hash)) in manifest.places().enumerate().filter(|(index, _)| there.contains(*index as u32)) {
        if wanted.of(&hash).all(|index| copied.contains(index)) {
            continue;
        }
        if cancel.is_cancelled() {
            return Err(Failure::new(Code::JobCancelled, "interrupted while earlier packages were being searched"));
        }
        looked(u64::from(place.len));
        let Ok(Some(bytes)) = files.read(&manifest.entries[place.entry].path, &place, &hash) else { continue };
        let bytes = Bytes::copy_from_slice(bytes);
        for index in wanted.of(&hash) {
            let Some(place) = partial.layout().get(index).filter(|own| own.len == place.len) else { continue };
            partial.write(&WholeChunk { index, place, bytes: bytes.clone() })?;
            copied.insert(index);
            uncommitted += u64::from(place.len);
        }
        if uncommitted >= COMMIT_EVERY {
            partial.sync()?;
            uncommitted = 0;
        }
    }
    Ok(())
}
