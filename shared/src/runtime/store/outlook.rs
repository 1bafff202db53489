//! What would come of a package, looked up without a trace: no folder is made, no lock taken, no time of last use changed.
//!
//! What the logs say is believed here; a transfer reads back what it builds on. So a plan is quick, and may be wrong by what was
//! damaged on the disk since.

use std::{collections::HashSet, io, path::PathBuf, sync::Arc};

use super::{
    PACKAGES, PARTIAL, Store, check_summary,
    clean::Decision,
    cost, log, names, owner_key,
    packages::parse_id,
    slot::{FILES, LOG, read_file, read_manifest, read_summary},
};
use crate::{
    domain::{
        error::Failure,
        id::hex,
        manifest::{Hash, Manifest, ManifestSummary},
        transfer::ChunkSet,
    },
    runtime::files::{failed, root::Root},
};

/// What the store has of a package.
#[derive(Debug)]
pub enum Stock {
    /// All of it: the directory with its files.
    Whole(PathBuf),
    /// Its list of files, and perhaps some chunks.
    Listed(Arc<Manifest>),
    /// Nothing.
    Nothing,
}

/// What the store lacks of a package, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Missing {
    /// What is not in its own place yet.
    pub to_write: u64,
    /// What no other package of the owner has either.
    pub to_send: u64,
}

impl Store {
    /// What there is of a package of this owner.
    ///
    /// # Errors
    /// [`Code::TooLarge`](crate::domain::error::Code::TooLarge), [`Code::BadFile`](crate::domain::error::Code::BadFile).
    pub fn stock(&self, owner: &str, summary: &ManifestSummary) -> Result<Stock, Failure> {
        check_summary(summary)?;
        for (folder, whole) in [(PACKAGES, true), (PARTIAL, false)] {
            let Some(home) = self.look(&format!("{folder}/{}/{}", owner_key(owner), hex(&summary.id.0)))? else { continue };
            match read_manifest(&home, &summary.id) {
                Some(_) if whole && read_summary(&home).is_some() => return Ok(Stock::Whole(home.path().join(FILES))),
                Some(manifest) if !whole => return Ok(Stock::Listed(Arc::new(manifest))),
                _ => {}
            }
        }
        Ok(Stock::Nothing)
    }

    /// What is missing of a package with this manifest, which is not whole.
    ///
    /// # Errors
    /// [`Code::BadFile`](crate::domain::error::Code::BadFile) when the store cannot be read.
    pub fn missing(&self, owner: &str, id: &Hash, manifest: &Manifest) -> Result<Missing, Failure> {
        let owner = owner_key(owner);
        let own = self.look(&format!("{PARTIAL}/{owner}/{}", hex(&id.0)))?;
        let there = own.map_or_else(|| ChunkSet::new(manifest.chunk_count()), |home| durable(&home, id, manifest));
        let lacking = || manifest.places().enumerate().filter(|(index, _)| !there.contains(*index as u32)).map(|(_, chunk)| chunk);
        let mut wanted: HashSet<Hash> = lacking().map(|(_, hash)| hash).collect();
        for folder in [PACKAGES, PARTIAL] {
            let Some(folder) = self.look(&format!("{folder}/{owner}"))? else { continue };
            self.strike_off(&folder, id, &mut wanted)?;
        }
        Ok(Missing {
            to_write: lacking().map(|(place, _)| u64::from(place.len)).sum(),
            to_send: lacking().filter(|(_, hash)| wanted.contains(hash)).map(|(place, _)| u64::from(place.len)).sum(),
        })
    }

    /// How many bytes there is room for, and whether [`Store::begin`] would refuse this package, which is not whole, for want of room.
    ///
    /// # Errors
    /// [`Code::BadFile`](crate::domain::error::Code::BadFile) when the store cannot be read.
    pub fn room(
        &self,
        owner: &str,
        summary: &ManifestSummary,
        stock: &Stock,
        missing: Missing,
    ) -> Result<(u64, Result<(), Failure>), Failure> {
        let present = match stock {
            Stock::Whole(_) => summary.bytes,
            Stock::Listed(_) => summary.bytes.saturating_sub(missing.to_write),
            Stock::Nothing => 0,
        };
        let _gate = self.enter()?;
        let Decision { going, room } = self.decide_room(&owner_key(owner), summary, present)?;
        let fits = match (stock, going) {
            (Stock::Whole(_), _) => Ok(()),
            (_, Err(failure)) => Err(failure),
            (Stock::Listed(_), Ok(going)) if going.is_empty() => self.outstanding.would_take(&self.root, missing.to_write, 0),
            (Stock::Nothing, Ok(going)) if going.is_empty() => self.outstanding.would_take(&self.root, cost(summary), summary.files),
            // Their going makes room enough on the disk, too.
            _ => Ok(()),
        };
        Ok((room, fits))
    }

    /// Takes from `wanted` what the packages in an owner's folder have.
    fn strike_off(&self, folder: &Root, id: &Hash, wanted: &mut HashSet<Hash>) -> Result<(), Failure> {
        let listed = names(folder.path()).map_err(|error| failed("list", folder.path().display(), &error))?;
        for other in listed.iter().filter_map(|name| parse_id(name)).filter(|other| other != id) {
            if wanted.is_empty() {
                break;
            }
            // One that is just being removed or cannot be read has nothing to offer.
            let Ok(home) = folder.subdir(hex(&other.0)) else { continue };
            let Some(manifest) = read_manifest(&home, &other) else { continue };
            let there = durable(&home, &other, &manifest);
            for (_, (_, hash)) in manifest.places().enumerate().filter(|(index, _)| there.contains(*index as u32)) {
                wanted.remove(&hash);
            }
        }
        Ok(())
    }

    /// A folder of the store, if it is there.
    fn look(&self, path: &str) -> Result<Option<Root>, Failure> {
        match self.root.subdir(path) {
            Ok(folder) => Ok(Some(folder)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("use the store in", self.root.path().display(), &error)),
        }
    }
}

/// The chunks that a package's log names.
fn durable(home: &Root, id: &Hash, manifest: &Manifest) -> ChunkSet {
    let log = read_file(home, LOG, u64::MAX).ok().flatten().unwrap_or_default();
    log::replay(id, manifest.chunk_count(), &log)
}
