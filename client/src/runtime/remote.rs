//! Everything that needs a worker: connecting, submitting, following, controlling, fetching.

use std::path::PathBuf;

use shared::domain::{error::Failure, job::Command};
use tokio::sync::mpsc;

use super::{
    connect::Connector,
    drive::{self, Drive, Reading, Until},
};
use crate::domain::{
    checkpoints::Checkpoints,
    event::Event,
    order::{End, FetchTo, Remote, TrainRequest, UserCommand},
};

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
    let reading = Reading::start(package, again, remote.config_dir.join("scans"), &events).await?;
    let mut drive = Drive::new(remote, if detach { Until::Uploaded } else { Until::Ended }, events)?;
    drive.reading = Some(reading);
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
    let reading = Reading::start(package, again, remote.config_dir.join("scans"), &events).await?;
    let mut drive = Drive::new(remote, Until::Planned, events)?;
    drive.reading = Some(reading);
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
