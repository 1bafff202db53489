//! A folder → the files in it.

use std::{
    fs::{self, Metadata},
    path::{Path, PathBuf},
};

use super::failed;
use crate::domain::{
    error::{Code, Failure},
    path::RelPath,
};

/// Where an unfinished download keeps its parts (`runtime::store`); never sent.
pub(crate) const WORK_FOLDER: &str = ".webrtc-connect";
/// The most files that a folder may have.
const MAX_FILES: usize = 1_000_000;

/// A file that was found.
pub(super) struct Found {
    /// Its name in the package.
    pub(super) path: RelPath,
    /// Where it really is, below the folder, every link resolved.
    pub(super) real: PathBuf,
    pub(super) metadata: Metadata,
}

/// All files below a folder (which must be canonical). Folders without files in them do not count.
///
/// # Errors
/// [`Code::BadFile`] for what cannot be read or named, for links that lead out of the folder or in circles, and for what is
/// neither file nor folder.
pub(super) fn walk(folder: &Path) -> Result<Vec<Found>, Failure> {
    let mut walk = Walk { folder, above: vec![folder.to_owned()], found: Vec::new() };
    walk.enter(folder, "")?;
    Ok(walk.found)
}

struct Walk<'a> {
    folder: &'a Path,
    /// The folders that we are in, resolved: to notice circles.
    above: Vec<PathBuf>,
    found: Vec<Found>,
}

impl Walk<'_> {
    fn enter(&mut self, folder: &Path, prefix: &str) -> Result<(), Failure> {
        let unreadable = |error: std::io::Error| failed("read the folder", folder.display(), &error);
        for entry in fs::read_dir(folder).map_err(unreadable)? {
            let entry = entry.map_err(unreadable)?;
            let name = entry.file_name();
            if prefix.is_empty() && name == WORK_FOLDER {
                continue;
            }
            let name = name.to_str().ok_or_else(|| bad(&entry.path(), "has a name that is not UTF-8; rename it"))?;
            let path = format!("{prefix}{name}")
                .parse::<RelPath>()
                .map_err(|failure| bad(&entry.path(), &format!("cannot be sent under this name: {}", failure.message)))?;
            self.visit(&entry.path(), path)?;
        }
        Ok(())
    }

    fn visit(&mut self, at: &Path, path: RelPath) -> Result<(), Failure> {
        let looked = |error: std::io::Error| failed("look at", at.display(), &error);
        let mut metadata = fs::symlink_metadata(at).map_err(looked)?;
        let mut real = at.to_owned();
        if metadata.is_symlink() {
            real = fs::canonicalize(at).map_err(|_| bad(at, "is a link to something that is not there; remove it"))?;
            if !real.starts_with(self.folder) {
                return Err(bad(at, "is a link that leads out of the folder; put the file itself there, or remove the link"));
            }
            metadata = fs::symlink_metadata(&real).map_err(looked)?;
        }
        if metadata.is_dir() {
            if self.above.contains(&real) {
                return Err(bad(at, "is a link to a folder that contains it; remove it"));
            }
            self.above.push(real.clone());
            self.enter(&real, &format!("{path}/"))?;
            self.above.pop();
            return Ok(());
        }
        if !metadata.is_file() {
            return Err(bad(at, "is neither a file nor a folder; remove it"));
        }
        if self.found.len() >= MAX_FILES {
            return Err(bad(self.folder, &format!("has more than {MAX_FILES} files; pack some of them together")));
        }
        let real = real.strip_prefix(self.folder).map_err(|_| bad(at, "leads out of the folder"))?.to_owned();
        self.found.push(Found { path, real, metadata });
        Ok(())
    }
}

fn bad(path: &Path, why: &str) -> Failure {
    Failure::new(Code::BadFile, format!("{} {why}", path.display()))
}
