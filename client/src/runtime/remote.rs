//! Everything that needs a worker: connecting, submitting, following, controlling, fetching.

use std::{net::SocketAddr, path::PathBuf};

use shared::domain::{
    error::{Code, Failure},
    id::JobId,
    invite::Invite,
    job::{Command, Outcome},
    signal::IceServer,
};
use tokio::sync::mpsc;

use crate::domain::{event::Event, submission::Package};

/// What every command needs.
#[derive(Debug, Clone)]
pub struct Remote {
    /// The way to the room.
    pub invite: Invite,
    /// The worker to take, by name or peer id or a beginning of one; absent: the invite's own.
    pub worker: Option<String>,
    /// STUN and TURN servers besides those that the signaling server names.
    pub ice_servers: Vec<IceServer>,
    /// Local addresses to use; empty: all.
    pub bind: Vec<SocketAddr>,
    /// Use relays only, so that the peers do not learn each other's address.
    pub relay_only: bool,
    /// Where our key and the known workers lie.
    pub config_dir: PathBuf,
}

/// What a user may say while a command runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UserCommand {
    /// Finish the batch, validate, save, end.
    Stop,
    /// End the job now.
    Cancel,
    /// Leave the job alone and end this program.
    Detach,
}

/// What `train` is to do.
#[derive(Debug, Clone)]
pub struct TrainRequest {
    /// What to train on.
    pub package: Package,
    /// Where the results go.
    pub output: PathBuf,
    /// Whether files there may be replaced.
    pub overwrite: bool,
    /// Whether a finished job is run once more.
    pub again: bool,
    /// Leave once the package is uploaded.
    pub detach: bool,
    /// Only say what would be sent.
    pub plan_only: bool,
    /// Whether to fetch the results at the end.
    pub fetch: bool,
}

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The job is over.
    Finished {
        /// Which.
        job: JobId,
        /// How.
        outcome: Outcome,
        /// One sentence.
        message: String,
    },
    /// The job was left alone.
    Detached {
        /// Which.
        job: JobId,
    },
    /// The question was answered, the command done.
    Done,
}

/// Submits a package and follows its job to the end.
///
/// # Errors
/// Whatever stands in the way for good; what passes is waited for.
pub async fn train(
    _remote: &Remote,
    _request: TrainRequest,
    _events: mpsc::Sender<Event>,
    _commands: mpsc::Receiver<UserCommand>,
) -> Result<End, Failure> {
    Err(unreachable())
}

/// Follows a job from journal entry `from` on; `None`: the running one, else the newest.
///
/// # Errors
/// As [`train`].
pub async fn watch(
    _remote: &Remote,
    _job: Option<String>,
    _from: u64,
    _events: mpsc::Sender<Event>,
    _commands: mpsc::Receiver<UserCommand>,
) -> Result<End, Failure> {
    Err(unreachable())
}

/// Stops or cancels a job.
///
/// # Errors
/// As [`train`].
pub async fn control(_remote: &Remote, _job: Option<String>, _command: Command, _events: mpsc::Sender<Event>) -> Result<End, Failure> {
    Err(unreachable())
}

/// Fetches a job's results.
///
/// # Errors
/// As [`train`].
pub async fn fetch(
    _remote: &Remote,
    _job: Option<String>,
    _output: PathBuf,
    _overwrite: bool,
    _events: mpsc::Sender<Event>,
) -> Result<End, Failure> {
    Err(unreachable())
}

/// Lists the worker's jobs.
///
/// # Errors
/// As [`train`].
pub async fn status(_remote: &Remote, _events: mpsc::Sender<Event>) -> Result<End, Failure> {
    Err(unreachable())
}

/// Lists the workers of the room.
///
/// # Errors
/// As [`train`].
pub async fn workers(_remote: &Remote, _events: mpsc::Sender<Event>) -> Result<End, Failure> {
    Err(unreachable())
}

fn unreachable() -> Failure {
    Failure::new(Code::Internal, "this build of webrtc-client cannot reach workers: install a released one")
}
