//! What a user orders, and how an order ends.

use std::path::PathBuf;

use shared::domain::{id::JobId, invite::Invite, job::Outcome, network::Network};

use super::submission::Package;

/// What every command needs.
#[derive(Debug, Clone)]
pub struct Remote {
    /// The way to the room.
    pub invite: Invite,
    /// The worker to take, by name or peer id or a beginning of one; absent: the invite's own.
    pub worker: Option<String>,
    /// How we may be reached.
    pub network: Network,
    /// The most bulk connections that a transfer may have; absent: as many as help.
    pub connections: Option<u32>,
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
    /// Whether to fetch the results at the end.
    pub fetch: bool,
    /// Whether to fetch each new best checkpoint before that.
    pub checkpoints: bool,
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

/// Where results go.
#[derive(Clone)]
pub struct FetchTo {
    /// The folder.
    pub output: PathBuf,
    /// Whether files that are there and differ may be replaced.
    pub overwrite: bool,
}
