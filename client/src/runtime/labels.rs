//! A look into a SLEAP labels file (HDF5): whether it has images.
//!
//! A package file has a dataset `videoN/video` with one encoded image a labelled frame; a plain labels file has only `videos_json`,
//! which names videos of the machine it was made on (SLEAP's `sleap/io/format/hdf5.py`).

use std::path::Path;

use hdf5_reader::{Hdf5File, storage::FileStorage};
use shared::domain::error::Failure;

use crate::domain::submission::bad;

/// Whether the labels file has at least one embedded image.
///
/// # Errors
/// [`shared::domain::error::Code::BadPackage`] when it cannot be understood.
pub(super) fn has_images(path: &Path) -> Result<bool, Failure> {
    look(path).map_err(|error| bad(format!("{} is damaged or no SLEAP labels file ({error}): export or copy it again", path.display())))
}

fn look(path: &Path) -> Result<bool, hdf5_reader::error::Error> {
    // Read, not mapped into memory: a file that shrinks under a map kills the process.
    let file = Hdf5File::from_storage(std::sync::Arc::new(FileStorage::open(path)?))?;
    for group in file.root_group()?.groups()? {
        let is_video = group.name().strip_prefix("video").is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()));
        if is_video && group.dataset("video").is_ok_and(|images| !images.shape().contains(&0)) {
            return Ok(true);
        }
    }
    Ok(false)
}
