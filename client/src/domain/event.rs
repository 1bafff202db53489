//! What the runtime tells whoever shows it: bars and tables on a terminal, or `--json`.
//!
//! One JSON object a line on stdout is exactly one of these, tagged by `type`.

use serde::{Deserialize, Serialize};
use shared::domain::{
    id::{CommandId, JobId, RoomId},
    invite::Grant,
    job::{Command, CommandState, JobStatus, JournalEntry, Metric, Outcome},
    message::WorkerInfo,
    route::Route,
};

use super::plan::{Plan, Speed};

/// One thing that happened, in the order in which it happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Event {
    /// The package is being read and hashed.
    Scanning {
        /// Bytes read so far.
        bytes: u64,
        /// Bytes in all.
        total: u64,
    },
    /// A connection to the worker is being made.
    Connecting {
        /// The signaling server.
        server: String,
        /// The room.
        room: RoomId,
        /// 1 for the first try since the last success.
        attempt: u32,
    },
    /// The worker has proved itself and data can flow.
    Connected {
        /// The worker.
        worker: WorkerInfo,
        /// What the invite grants here.
        grant: Grant,
        /// The route in use.
        route: Option<Route>,
        /// Whether the worker still held our session.
        resumed: bool,
        /// How long connecting took, in milliseconds.
        elapsed_ms: u64,
    },
    /// The connection is gone, or could not be made; it is tried again.
    Disconnected {
        /// Why.
        reason: String,
        /// Until the next try, in milliseconds.
        retry_in_ms: u64,
    },
    /// What an upload will be; the answer to `train --plan`.
    Plan(Box<Plan>),
    /// How far the upload is.
    Uploading {
        /// Bytes that are verified and on the worker's disk, of those to send.
        done: u64,
        /// Bytes to send.
        total: u64,
        /// Bytes of the package that were sent since the command began, repetitions included.
        #[serde(default)]
        sent: u64,
        /// How long the worker took to answer the last sign of life, in milliseconds.
        round_trip_ms: Option<u64>,
    },
    /// The package is whole at the worker.
    Uploaded {
        /// Bytes that the worker lacked, when it was last asked.
        bytes: u64,
        /// Bytes of the package that were sent since the command began, repetitions included.
        #[serde(default)]
        sent: u64,
        /// Milliseconds.
        elapsed_ms: u64,
    },
    /// The job's state has changed.
    JobState(JobStatus),
    /// An entry of the job's journal: each once, in order.
    Journal {
        /// The job.
        job: JobId,
        /// The entry.
        entry: JournalEntry,
    },
    /// Everything that had happened before we came has been shown.
    CaughtUp {
        /// The job.
        job: JobId,
        /// The journal's last seq.
        seq: u64,
    },
    /// How far a command has come.
    Command {
        /// The job.
        job: JobId,
        /// The command.
        id: CommandId,
        /// What it asks; absent when it is another client's.
        command: Command,
        /// How far.
        state: CommandState,
        /// Why, where it was refused.
        message: String,
    },
    /// How far the download is.
    Downloading {
        /// Bytes that are verified and on disk here, of those to fetch.
        done: u64,
        /// Bytes to fetch.
        total: u64,
    },
    /// The results are in place.
    Downloaded {
        /// Where: a folder.
        path: String,
        /// The files, relative to it.
        files: Vec<String>,
        /// Bytes of all files.
        bytes: u64,
        /// Bytes of them that were here before, in files that are in place or in saved checkpoints.
        #[serde(default)]
        already_here: u64,
        /// Milliseconds.
        elapsed_ms: u64,
    },
    /// A checkpoint of the running job is in place; those of the same step before it are gone.
    CheckpointSaved {
        /// The job.
        job: JobId,
        /// Which step, from 0.
        step: u32,
        /// The epoch that it is of, from 0, where that is known.
        epoch: Option<u32>,
        /// Its validation loss, where that is known.
        metric: Option<Metric>,
        /// Where: a folder.
        path: String,
        /// Bytes of all its files.
        bytes: u64,
        /// Bytes of them that were here before.
        already_here: u64,
    },
    /// The answer to `status`: all jobs of the worker.
    Jobs {
        /// The worker.
        worker: WorkerInfo,
        /// Its jobs, oldest first.
        jobs: Vec<JobStatus>,
    },
    /// Which way `status` came, how fast it is, and why it is not a better one.
    Path {
        /// The route in use.
        route: Option<Route>,
        /// How fast the last package went to this worker.
        speed: Option<Speed>,
        /// What keeps it from being a better one, in a clause; absent where it is as good as it can be.
        why: Option<String>,
    },
    /// The workers in the room (`workers`).
    Workers {
        /// Them, as they describe themselves to the server.
        workers: Vec<WorkerInfo>,
    },
    /// The user left a job that goes on.
    Detached {
        /// The job.
        job: JobId,
    },
    /// The end of a job, as the last word of `train` and `watch`.
    Finished {
        /// The job.
        job: JobId,
        /// How it ended.
        outcome: Outcome,
        /// One sentence.
        message: String,
        /// From submission to here, in milliseconds.
        elapsed_ms: u64,
    },
    /// Something else that a person should know.
    Notice {
        /// One sentence.
        message: String,
    },
}
