//! A look into a zip: what is in it, and one small file of it. Nothing is unpacked.

use std::{
    fs::File,
    io::{BufReader, Read},
    path::Path,
};

use shared::domain::{
    error::{Code, Failure},
    path::RelPath,
};
use zip::{ZipArchive, result::ZipError};

use crate::domain::submission::bad;

/// The files of the zip, folders left out.
///
/// # Errors
/// [`Code::BadPackage`] when it is damaged, encrypted, or has a name or a link in it that must not be in a package.
pub(super) fn list(path: &Path) -> Result<Vec<RelPath>, Failure> {
    let archive = open(path)?;
    let shown = path.display();
    let mut files = Vec::new();
    for index in 0..archive.len() {
        let entry = archive.by_index_data(index).map_err(|error| damaged(path, &error))?;
        if entry.encrypted() {
            return Err(bad(format!("{shown} is encrypted: unpack it with its password and give the folder instead")));
        }
        if entry.is_dir() {
            continue;
        }
        let name = entry.name().map_err(|error| damaged(path, &error))?;
        let name: RelPath = name.parse().map_err(|failure: Failure| bad(format!("{shown} cannot be sent: {failure}; zip it again")))?;
        if entry.is_symlink() {
            return Err(bad(format!("{shown} has a symbolic link in it ({name}), which is not sent: zip it again with the file itself")));
        }
        files.push(name);
    }
    Ok(files)
}

/// One file of the zip, at most `limit` bytes of it.
///
/// # Errors
/// [`Code::BadPackage`] when it is damaged or larger.
pub(super) fn read(path: &Path, name: &RelPath, limit: u64) -> Result<Vec<u8>, Failure> {
    let mut archive = open(path)?;
    let mut bytes = Vec::new();
    let entry = archive.by_name(name.as_str()).map_err(|error| damaged(path, &error))?;
    entry.take(limit + 1).read_to_end(&mut bytes).map_err(|error| damaged(path, &ZipError::Io(error)))?;
    if bytes.len() as u64 > limit {
        return Err(bad(format!("{name} in {} is too large for a configuration", path.display())));
    }
    Ok(bytes)
}

fn open(path: &Path) -> Result<ZipArchive<BufReader<File>>, Failure> {
    let file = File::open(path).map_err(|error| Failure::new(Code::BadFile, format!("cannot read {}: {error}", path.display())))?;
    ZipArchive::new(BufReader::new(file)).map_err(|error| damaged(path, &error))
}

fn damaged(path: &Path, error: &ZipError) -> Failure {
    match error {
        ZipError::CompressionMethodNotSupported(_) => {
            bad(format!("{} is packed by a method that we do not read: zip it again (deflate), or give the folder", path.display()))
        }
        error => bad(format!("{} is not a whole zip ({error}): export or copy it again", path.display())),
    }
}
