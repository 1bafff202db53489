//! Checkpoints of a running job, in the folder of its results. Everything but the transfer blocks.
//!
//! ```text
//! <results>/checkpoints/<job>/step-<n>/
//!   epoch-12-1a2b3c4d/<run>/best.ckpt   the newest one that is whole and verified, with its configurations
//!   .arriving/<id>/                     one that is arriving
//! ```
//! * steps and epochs count from 1, as everywhere where people look; `<job>` and the last word of the epoch's folder are beginnings of ids
//! * one that is whole gets its name by one rename, and only then is the one before it removed
//! * the results take what they can from here; after a job that went well nothing of it stays, since the results have its models

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use shared::{
    domain::{
        error::{Code, Failure},
        id::{JobId, hex},
        job::Checkpoint,
        manifest::{Entry, Manifest},
        message::FileMeta,
        transfer::Progress,
    },
    runtime::{
        files::Source,
        listing::Listing,
        store::Destination,
        transfer::{Pool, StepPort, receive},
    },
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::domain::format;

/// The folder of all checkpoints, in that of the results.
const FOLDER: &str = "checkpoints";
const ARRIVING: &str = ".arriving";

/// A checkpoint that is in place.
pub(super) struct Saved {
    /// Its folder.
    pub(super) path: PathBuf,
    /// Bytes that were here before.
    pub(super) already_here: u64,
}

/// Where a job's checkpoints go.
#[derive(Clone)]
pub(super) struct Place {
    results: PathBuf,
    job: String,
}

impl Place {
    /// In this folder of results.
    pub(super) fn new(results: &Path, job: &JobId) -> Self {
        Place { results: results.to_owned(), job: format::short(job).to_owned() }
    }

    fn home(&self) -> PathBuf {
        self.results.join(FOLDER).join(&self.job)
    }

    fn step(&self, step: u32) -> PathBuf {
        self.home().join(format!("step-{}", u64::from(step) + 1))
    }

    /// Folders that have something of the results: checkpoints that are in place, and what has arrived of others.
    pub(super) fn nearby(&self) -> Vec<PathBuf> {
        let of_step = |step: &PathBuf| {
            let arriving = folders(&step.join(ARRIVING)).into_iter();
            let mut found = folders(step);
            found.extend(arriving.flat_map(|folder| Destination::new(folder, true).unfinished()));
            found
        };
        folders(&self.home()).iter().flat_map(of_step).collect()
    }

    /// Receives an announced checkpoint of a step, and puts it in the place of the one before.
    pub(super) async fn receive(self, meta: FileMeta, checkpoint: Checkpoint, pool: Pool, steps: StepPort) -> Result<Saved, Failure> {
        if meta.manifest.id != checkpoint.id {
            return Err(Failure::new(Code::InvalidRequest, "the worker sent another checkpoint than it offered"));
        }
        let step = self.step(checkpoint.step);
        let place = step.join(version(&checkpoint));
        let arriving = step.join(ARRIVING).join(hex(&checkpoint.id.0));
        let (summary, to) = (meta.manifest, if place.exists() { place.clone() } else { arriving.clone() });
        let begun = blocking(move || {
            remove_siblings(&arriving);
            Destination::new(to, true).with_nearby(folders(&step)).begin(&summary)
        })
        .await?;
        let progress = watch::Sender::new(Progress::default());
        let seen = progress.subscribe();
        let package = receive(meta, begun, &pool, steps, progress).await?;
        let already_here = summary.bytes.saturating_sub(seen.borrow().needed_bytes);
        let from = package.path().to_owned();
        blocking(move || {
            put(&from, &place).map_err(|error| Failure::new(Code::BadFile, format!("cannot make {}: {error}", place.display())))?;
            Ok(Saved { path: place, already_here })
        })
        .await
    }

    /// Removes what the results have, too; gives what they do not have. After a job that went well (`superseded`) the results count as having
    /// a model when they have one of its name: it is at least as good.
    pub(super) fn clean_up(&self, results: &Manifest, superseded: bool) -> Vec<PathBuf> {
        let mut kept = Vec::new();
        for step in folders(&self.home()) {
            for version in folders(&step) {
                if is_in(&version, results, superseded) {
                    remove_all(&version);
                } else {
                    kept.push(version);
                }
            }
            remove_all(&step.join(ARRIVING));
            // Each goes only when nothing is in it.
            let _ = fs::remove_dir(&step);
        }
        let _ = fs::remove_dir(self.home());
        let _ = fs::remove_dir(self.results.join(FOLDER));
        kept
    }
}

/// The name of a checkpoint's folder.
fn version(checkpoint: &Checkpoint) -> String {
    let id = &hex(&checkpoint.id.0)[..8];
    match checkpoint.epoch {
        Some(epoch) => format!("epoch-{}-{id}", u64::from(epoch) + 1),
        None => format!("best-{id}"),
    }
}

/// Gives what has arrived its name, durably, and removes what was there before.
fn put(from: &Path, place: &Path) -> io::Result<()> {
    let step = place.parent().ok_or_else(|| io::Error::other("it has no folder"))?;
    let is_there = fs::canonicalize(place).is_ok_and(|place| fs::canonicalize(from).is_ok_and(|from| from == place));
    if !is_there {
        fs::rename(from, place)?;
        File::open(step)?.sync_all()?;
    }
    for other in folders(step).into_iter().filter(|other| other != place) {
        remove_all(&other);
    }
    remove_all(&step.join(ARRIVING));
    Ok(())
}

/// Whether everything in a checkpoint's folder is in the results.
fn is_in(version: &Path, results: &Manifest, superseded: bool) -> bool {
    let Ok(manifest) = Source::folder(version).and_then(|source| source.scan(&mut |_| {}, &CancellationToken::new())) else { return false };
    let has = |entry: &Entry| {
        let configuration = [".yaml", ".yml", ".json", ".toml"].iter().any(|end| entry.path.as_str().ends_with(end));
        let theirs = results.entries.iter().find(|other| other.path == entry.path);
        theirs.is_some_and(|other| superseded || configuration || other.chunks == entry.chunks)
    };
    manifest.entries.iter().all(has)
}

/// Removes what arrived in part beside this, and was followed by a newer one.
fn remove_siblings(arriving: &Path) {
    let Some(parent) = arriving.parent() else { return };
    for other in fs::read_dir(parent).into_iter().flatten().flatten().map(|entry| entry.path()).filter(|other| other != arriving) {
        remove_all(&other);
    }
}

/// The folders in a folder, hidden ones left out.
fn folders(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let visible = entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()) && !entry.file_name().as_encoded_bytes().starts_with(b"."));
    visible.map(|entry| entry.path()).collect()
}

fn remove_all(folder: &Path) {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(%error, path = %folder.display(), "what is left of a checkpoint cannot be removed");
        }
        _ => {}
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Failure> + Send + 'static) -> Result<T, Failure> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(Failure::new(Code::Internal, format!("saving a checkpoint ended unexpectedly: {error}"))))
}

/// Cleans up off the runtime's threads; see [`Place::clean_up`].
pub(super) async fn clean_up(place: Place, results: Arc<Listing>, superseded: bool) -> Vec<PathBuf> {
    let cleaned = blocking(move || Ok(place.clean_up(&results.manifest()?, superseded))).await;
    cleaned.inspect_err(|failure| tracing::warn!(%failure, "checkpoints that the results have, too, are kept")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use shared::domain::manifest::Hash;

    use super::*;

    fn write(path: &Path, content: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn place(folder: &Path) -> Place {
        Place::new(folder, &"1a2b3c4d5e6f".parse().unwrap())
    }

    fn results(files: &[(&str, &str)]) -> Manifest {
        let folder = tempfile::tempdir().unwrap();
        for (path, content) in files {
            write(&folder.path().join(path), content);
        }
        Source::folder(folder.path()).unwrap().scan(&mut |_| {}, &CancellationToken::new()).unwrap()
    }

    #[test]
    fn the_one_before_goes_when_the_next_is_in_place() {
        let folder = tempfile::tempdir().unwrap();
        let place = place(folder.path());
        let step = place.step(0);
        assert_eq!(step, folder.path().join("checkpoints/1a2b3c4d/step-1"));
        write(&step.join("epoch-1-aaaaaaaa/run/best.ckpt"), "one");
        write(&step.join(".arriving/bb/run/best.ckpt"), "two");
        write(&step.join(".arriving/old/part"), "of one that is superseded");
        put(&step.join(".arriving/bb"), &step.join("epoch-2-bbbbbbbb")).unwrap();
        assert_eq!(place.nearby(), [step.join("epoch-2-bbbbbbbb")]);
        assert_eq!(fs::read_dir(&step).unwrap().count(), 1);
        // The same once more, found in its place.
        put(&step.join("epoch-2-bbbbbbbb"), &step.join("epoch-2-bbbbbbbb")).unwrap();
        assert_eq!(fs::read_to_string(step.join("epoch-2-bbbbbbbb/run/best.ckpt")).unwrap(), "two");
    }

    #[test]
    fn folders_are_named_as_people_count() {
        let checkpoint = Checkpoint { step: 0, epoch: Some(11), metric: None, bytes: 1, id: Hash([0x1a; 32]) };
        assert_eq!(version(&checkpoint), "epoch-12-1a1a1a1a");
        assert_eq!(version(&Checkpoint { epoch: None, ..checkpoint }), "best-1a1a1a1a");
    }

    #[test]
    fn what_the_results_have_is_removed_and_nothing_else() {
        let model = "run/best.ckpt";
        let same = results(&[(model, "one"), ("run/training_config.yaml", "changed at the end"), ("run/log.csv", "1")]);
        let other = results(&[(model, "half of it")]);
        for (results, superseded, kept) in [(&same, false, 0), (&other, false, 1), (&same, true, 0), (&results(&[("x", "y")]), true, 1)] {
            let folder = tempfile::tempdir().unwrap();
            let place = place(folder.path());
            let version = place.step(2).join("epoch-1-aaaaaaaa");
            write(&version.join(model), "one");
            write(&version.join("run/training_config.yaml"), "a: 1");
            write(&place.step(2).join(".arriving/cc/part"), "x");
            let expected = if kept == 1 { vec![version] } else { vec![] };
            assert_eq!(place.clean_up(results, superseded), expected);
            assert_eq!(folder.path().join("checkpoints").exists(), kept == 1);
            assert_eq!(place.nearby(), expected);
        }
        // A job that went well has a better one under the same name; its configuration is there as well.
        let folder = tempfile::tempdir().unwrap();
        write(&place(folder.path()).step(0).join("epoch-1-aaaaaaaa").join(model), "one");
        assert!(place(folder.path()).clean_up(&other, true).is_empty());
    }
}
