//! Everything that needs a worker: connecting, submitting, following, controlling, fetching.

use std::{path::PathBuf, sync::Arc};

use shared::{
    domain::{
        error::{Code, Failure},
        job::Command,
        transfer::Places,
    },
    runtime::files::{ScanCache, Source},
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{
    connect::Connector,
    drive::{self, Drive, Submission, Until},
};
use crate::domain::{
    checkpoints::Checkpoints,
    event::Event,
    order::{End, FetchTo, Remote, TrainRequest, UserCommand},
    submission::{Package, PackageInput},
};

/// Bytes between two reports while a package is read.
const SCAN_REPORT: u64 = 16 << 20;

/// Submits a package and follows its job to the end.
///
/// # Errors
/// Whatever stands in the way for good; what passes is waited for.
pub async fn train(
    remote: &Remote,
    request: TrainRequest,
    events: mpsc::Sender<Event>,
    commands: mpsc::Receiver<UserCommand>,
) -> Result<End, Failure> {
    let TrainRequest { package, output, overwrite, again, detach, fetch, checkpoints } = request;
    let submission = prepare(package, again, remote.config_dir.join("scans"), &events).await?;
    let mut drive = Drive::new(remote, if detach { Until::Uploaded } else { Until::Ended }, events)?;
    drive.submission = Some(submission);
    drive.fetch = fetch.then_some(FetchTo { output, overwrite });
    drive.checkpoints = Checkpoints::new(fetch && checkpoints && !detach);
    drive.commands = commands;
    drive.run().await
}

/// Says what submitting a package would do; changes nothing at the worker.
///
/// # Errors
/// As [`train`]; what the worker would refuse the package with.
pub async fn plan(remote: &Remote, request: TrainRequest, events: mpsc::Sender<Event>) -> Result<End, Failure> {
    let TrainRequest { package, again, .. } = request;
    let submission = prepare(package, again, remote.config_dir.join("scans"), &events).await?;
    let mut drive = Drive::new(remote, Until::Planned, events)?;
    drive.submission = Some(submission);
    drive.run().await
}

/// Follows a job to its end, from journal entry `from` (1 is the first); with a folder its checkpoints and results are fetched, too.
///
/// # Errors
/// As [`train`].
pub async fn watch(
    remote: &Remote,
    job: Option<String>,
    from: u64,
    fetch: Option<FetchTo>,
    events: mpsc::Sender<Event>,
    commands: mpsc::Receiver<UserCommand>,
) -> Result<End, Failure> {
    let mut drive = Drive::new(remote, Until::Ended, events)?;
    drive.wanted = job;
    drive.last_seq = from.saturating_sub(1);
    drive.checkpoints = Checkpoints::new(fetch.is_some());
    drive.fetch = fetch;
    drive.commands = commands;
    drive.run().await
}

/// Stops or cancels a job; ends when the trainer has been told.
///
/// # Errors
/// As [`train`]; [`Code::WrongState`] when the worker refuses.
pub async fn control(remote: &Remote, job: Option<String>, command: Command, events: mpsc::Sender<Event>) -> Result<End, Failure> {
    let mut drive = Drive::new(remote, Until::Applied, events)?;
    drive.wanted = job;
    drive.pending.push((drive::command_id()?, command));
    drive.run().await
}

/// Fetches the results of a job.
///
/// # Errors
/// As [`train`]; [`Code::WrongState`] when there are none yet.
pub async fn fetch(
    remote: &Remote,
    job: Option<String>,
    output: PathBuf,
    overwrite: bool,
    events: mpsc::Sender<Event>,
) -> Result<End, Failure> {
    let mut drive = Drive::new(remote, Until::Fetched, events)?;
    drive.wanted = job;
    drive.fetch = Some(FetchTo { output, overwrite });
    drive.run().await
}

/// Lists the jobs of the worker.
///
/// # Errors
/// As [`train`].
pub async fn status(remote: &Remote, events: mpsc::Sender<Event>) -> Result<End, Failure> {
    Drive::new(remote, Until::Listed, events)?.run().await
}

/// Lists the workers that are in the room now.
///
/// # Errors
/// As [`train`].
pub async fn workers(remote: &Remote, events: mpsc::Sender<Event>) -> Result<End, Failure> {
    let workers = Connector::new(remote)?.workers().await?;
    let _ = events.send(Event::Workers { workers }).await;
    Ok(End::Done)
}

/// Reads and hashes a package; one that was read before and has not changed is not read again.
async fn prepare(package: Package, again: bool, scans: PathBuf, events: &mpsc::Sender<Event>) -> Result<Submission, Failure> {
    let stop = CancellationToken::new();
    let _stop_with_us = stop.clone().drop_guard();
    let events = events.clone();
    let reading = tokio::task::spawn_blocking(move || -> Result<Submission, Failure> {
        let source = match package.input {
            PackageInput::Folder(path) => Source::folder(&path)?,
            PackageInput::Files(files) => Source::files(files)?,
            PackageInput::Zip(path) => Source::zip(&path)?,
        };
        let source = if package.extra.is_empty() { source } else { source.and(Source::files(package.extra)?)? };
        let source = Arc::new(source.with_cache(ScanCache::new(scans)));
        let total = source.bytes();
        let mut told = 0;
        let mut progress = |bytes: u64| {
            // Not for every chunk: a slow terminal must not slow down the reading.
            if bytes - told >= SCAN_REPORT || bytes == total {
                told = bytes;
                let _ = events.try_send(Event::Scanning { bytes, total });
            }
        };
        let manifest = Arc::new(source.scan(&mut progress, &stop)?);
        let summary = manifest.summary(&manifest.encode());
        Ok(Submission { source, summary, places: Arc::new(Places::new(manifest)), spec: package.spec, again })
    });
    reading.await.map_err(|error| Failure::new(Code::Internal, format!("reading the package ended unexpectedly: {error}")))?
}
