//! A job's runner: a small process of its own session that owns the trainer, its sockets, its log and the job's journal.
//!
//! The agent may be killed, upgraded, restarted: the runner goes on, and the agent finds it again.
//!
//! * the runner's side: [`run`] (the hidden subcommand `run-job <job dir>`), [`server`], [`job`], [`step`]
//! * the agent's side: [`spawn`], [`attach`], [`RunnerHandle`], [`settle_lost`] in [`client`]
//! * between them: lines of JSON on a Unix socket in the job's directory ([`protocol`]), and the journal, which the agent reads itself
//! * who is alive is decided by a file lock ([`lock`]), which the kernel frees however a process ends

pub mod client;
mod job;
mod lock;
pub mod protocol;
mod server;
mod step;

use std::{path::Path, process::ExitCode};

use shared::domain::error::{Code, Failure};
use tokio::signal::unix::{SignalKind, signal};

pub use client::{Attached, End, RunnerHandle, attach, settle_lost, spawn};

use super::{
    journal::Journal,
    processes,
    workspace::{JobDir, read_json, write_json},
};
use crate::domain::trainer::TrainerSettings;

/// Runs the job whose directory this is, to its end. This is the whole of the hidden subcommand `run-job`.
///
/// Exit code 0: the job has an outcome, whichever; 1: it could not even be taken up, and the log says why.
pub async fn run(job_dir: &Path) -> ExitCode {
    match run_inner(&JobDir::at(job_dir)).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            tracing::error!(%failure, "the job was not run");
            ExitCode::FAILURE
        }
    }
}

async fn run_inner(dir: &JobDir) -> Result<(), Failure> {
    // Fails for a leader of a session, which is as good.
    let _ = rustix::process::setsid();
    let _lock = lock::held_by_runner(dir)?;
    if dir.ended()?.is_some() {
        return Ok(());
    }
    processes::adopt_orphans();
    let no_signals = |error: std::io::Error| Failure::new(Code::Internal, format!("no signal handler could be set: {error}"));
    // Caught signals are at their default again in the trainer: it must react to SIGINT even if the agent was started ignoring it.
    let _interrupts = signal(SignalKind::interrupt()).map_err(no_signals)?;
    let ending = signal(SignalKind::terminate()).map_err(no_signals)?;
    let identity = processes::Group::of(std::process::id());
    write_json(&dir.runner_pid(), &identity)?;
    let settings = read_json::<TrainerSettings>(&dir.runner_json())?.unwrap_or_default();
    let journal = Journal::open(&dir.journal())?;
    let (server, requests) = server::Server::start(dir, journal.appended())?;
    let mut job = job::Job::new(dir.clone(), settings, journal, requests, ending);
    let (outcome, message) = job.run().await;
    let ended = job.finish(outcome, message).await?;
    server.finish(ended).await;
    Ok(())
}
