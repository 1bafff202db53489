//! Looking at a step's model, and copying it. Everything here blocks.
//!
//! A trainer writes its model in place, so a hard link would change with it: the copy is one of the content. Where the file system can
//! share blocks between files (btrfs, XFS), the kernel does that, and a copy costs next to nothing.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Seek, SeekFrom},
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use rustix::fs::OFlags;
use shared::{
    domain::{
        error::Failure,
        job::{Checkpoint, Metric},
    },
    runtime::files::Source,
};
use tokio_util::sync::CancellationToken;

use super::{ABOUT, FILES, MANIFEST, NEW, numbers, remove_copies};
use crate::{
    domain::checkpoint::{Found, HEAD, Stamp, TAIL, Wholeness, is_configuration, wholeness},
    runtime::workspace::{failure, write_json},
};

/// The longest configuration that is copied with a model, in bytes …
const MAX_CONFIGURATION: u64 = 1 << 20;
/// … and how many of them.
const MAX_CONFIGURATIONS: usize = 32;
/// Disk space that no copy takes.
const RESERVE: u64 = 256 << 20;

/// Where a step's model is written, and where its copies go.
pub(super) struct Model {
    /// The results of all steps.
    pub(super) results: PathBuf,
    /// The folder of this step's, below them.
    pub(super) run: String,
    /// The files that are the model, relative to that.
    pub(super) files: Vec<String>,
    /// The folder of its copies.
    pub(super) home: PathBuf,
}

impl Model {
    /// What there is now.
    pub(super) fn look(&self) -> Found {
        let folder = self.results.join(&self.run);
        let below = || Ok::<_, io::Error>(folder.canonicalize()?.starts_with(self.results.canonicalize()?));
        if !below().unwrap_or(false) {
            return Found::Missing;
        }
        let mut stamps = Vec::with_capacity(self.files.len());
        let mut sure = true;
        for name in &self.files {
            let Ok(file) = open_plain(&folder.join(name)) else { return Found::Missing };
            match judge(name, &file) {
                Ok((_, Wholeness::Half)) => return Found::Half,
                Ok((stamp, wholeness)) => {
                    stamps.push(stamp);
                    sure &= wholeness == Wholeness::Whole;
                }
                Err(_) => return Found::Missing,
            }
        }
        Found::There { stamps, sure }
    }

    /// Copies the files that had these stamps; `None`: they have changed.
    pub(super) fn copy(&self, stamps: &[Stamp], step: u32, origin: (Option<u32>, Option<Metric>)) -> Result<Option<Checkpoint>, Failure> {
        let fresh = self.home.join(NEW);
        let cannot = |error: io::Error| failure("copy the checkpoint to", &fresh, &error);
        remove_if_there(&fresh).map_err(cannot)?;
        let folder = fresh.join(FILES).join(&self.run);
        fs::create_dir_all(&folder).map_err(cannot)?;
        self.check_space(stamps).map_err(cannot)?;
        for (name, stamp) in self.files.iter().zip(stamps) {
            let whole = copy_unchanged(&self.results.join(&self.run).join(name), &folder.join(name), Some(*stamp)).map_err(cannot)?;
            let whole = whole && judge(name, &open_plain(&folder.join(name)).map_err(cannot)?).map_err(cannot)?.1 != Wholeness::Half;
            if !whole {
                return Ok(None);
            }
        }
        for name in self.configurations() {
            // A model can be used without the one that cannot be read just now; the next copy has it.
            let _ = copy_unchanged(&self.results.join(&self.run).join(&name), &folder.join(&name), None);
        }
        let manifest = Source::folder(&fresh.join(FILES))?.scan(&mut |_| {}, &CancellationToken::new())?;
        let encoded = manifest.encode();
        let summary = manifest.summary(&encoded);
        let checkpoint = Checkpoint { step, epoch: origin.0, metric: origin.1, bytes: summary.bytes, id: summary.id };
        fs::write(fresh.join(MANIFEST), &encoded).map_err(cannot)?;
        write_json(&fresh.join(ABOUT), &checkpoint)?;
        let number = numbers(&self.home).map_err(cannot)?.into_iter().max().unwrap_or_default() + 1;
        fs::rename(&fresh, self.home.join(number.to_string())).map_err(cannot)?;
        // One that is being sent goes with the next one, or at the job's end.
        remove_copies(&self.home, Some(number));
        Ok(Some(checkpoint))
    }

    /// The small files beside the model that say how to use it.
    fn configurations(&self) -> Vec<String> {
        let listed = fs::read_dir(self.results.join(&self.run)).into_iter().flatten().flatten();
        let small = |entry: &fs::DirEntry| entry.metadata().is_ok_and(|file| file.is_file() && file.len() <= MAX_CONFIGURATION);
        let names = listed.filter(small).filter_map(|entry| entry.file_name().into_string().ok());
        names.filter(|name| is_configuration(name)).take(MAX_CONFIGURATIONS).collect()
    }

    fn check_space(&self, stamps: &[Stamp]) -> io::Result<()> {
        let space = rustix::fs::statvfs(&self.home)?;
        let needed = stamps.iter().fold(RESERVE, |sum, stamp| sum.saturating_add(stamp.size));
        if space.f_bavail.saturating_mul(space.f_frsize) < needed {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }
}

/// Whether a file is whole, by its format.
pub(super) fn is_half(path: &Path) -> io::Result<bool> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    Ok(judge(&name, &open_plain(path)?)?.1 == Wholeness::Half)
}

/// Copies a regular file; `false`: it changed meanwhile, or had another stamp before.
pub(super) fn copy_unchanged(from: &Path, to: &Path, expected: Option<Stamp>) -> io::Result<bool> {
    let mut source = open_plain(from)?;
    let before = stamp(&source)?;
    if expected.is_some_and(|expected| expected != before) {
        return Ok(false);
    }
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent)?;
    }
    let mut target = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to)?;
    source.seek(SeekFrom::Start(0))?;
    // From file to file the kernel copies, or shares.
    io::copy(&mut source, &mut target)?;
    let unchanged = stamp(&source)? == before && stamp(&open_plain(from)?)? == before && target.metadata()?.len() == before.size;
    Ok(unchanged)
}

/// Opens a regular file that is no link; a trainer can put anything in its place.
fn open_plain(path: &Path) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a file"));
    }
    Ok(file)
}

fn stamp(file: &File) -> io::Result<Stamp> {
    let metadata = file.metadata()?;
    let modified_ns = i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec());
    Ok(Stamp { inode: metadata.ino(), size: metadata.len(), modified_ns })
}

/// A file's stamp, and what its format says; both of the same moment, as far as the next look can tell.
fn judge(name: &str, file: &File) -> io::Result<(Stamp, Wholeness)> {
    let stamp = stamp(file)?;
    let read = |length: usize, at: u64| {
        let mut bytes = vec![0; length];
        file.read_exact_at(&mut bytes, at).map(|()| bytes)
    };
    let (head, tail) = (stamp.size.min(HEAD as u64), stamp.size.min(TAIL as u64));
    match (read(head as usize, 0), read(tail as usize, stamp.size - tail)) {
        (Ok(head), Ok(tail)) => Ok((stamp, wholeness(name, &head, &tail, stamp.size))),
        // It has just become shorter.
        _ => Ok((stamp, Wholeness::Half)),
    }
}

fn remove_if_there(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
