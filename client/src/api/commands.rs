//! One command, from its first event to its exit code.
//!
//! ```text
//!   settings, package ──► remote::…(events, commands) ──► End ──► summary ──► exit code
//!                              │ events                ▲ Detach
//!                              ▼                       │
//!                           Output                  Ctrl-C
//! ```
//! * Ctrl-C before the worker has anything: 130 at once; after that: `Detach`, then the way back is said; a second one: 130 at once

use std::{future::Future, path::PathBuf, time::Duration};

use shared::domain::{
    error::{Code, Failure},
    job::{Command, Outcome},
    message::WorkerInfo,
};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
    task::JoinHandle,
    time::timeout,
};

use super::{
    cli::{Action, Cli, Global, KnownAction, TrainArgs},
    doctor,
    output::Output,
    prompt,
    settings::{self, Environment, Settings},
};
use crate::{
    domain::{
        event::Event,
        order::{End, FetchTo, Remote, TrainRequest, UserCommand},
        submission::{self, Package, Wishes},
        view::{Line, Stage, ViewOptions},
    },
    runtime::{package, remote},
};

/// Events on their way to the output.
const EVENTS: usize = 1024;
/// How long leaving politely may take.
const FAREWELL: Duration = Duration::from_secs(5);
/// The exit code after an interrupt.
const INTERRUPTED: u8 = 130;

/// Runs a command; gives the exit code.
///
/// # Errors
/// Whatever stood in its way.
pub async fn run(cli: Cli) -> Result<u8, Failure> {
    let mut interrupts =
        signal(SignalKind::interrupt()).map_err(|error| Failure::new(Code::Internal, format!("cannot listen for Ctrl-C: {error}")))?;
    match cli.action {
        Action::Train(args) => train(&cli.global, args, &mut interrupts).await,
        Action::Doctor(args) => Ok(doctor::run(&cli.global, args, &mut interrupts).await?.unwrap_or(INTERRUPTED)),
        Action::Known(action) => run_known(&cli.global, action, &mut interrupts).await,
    }
}

async fn run_known(global: &Global, action: KnownAction, interrupts: &mut Signal) -> Result<u8, Failure> {
    let Some(Settings { remote, options }) = load_settings(global, interrupts).await? else { return Ok(INTERRUPTED) };
    let output = start_output(global, options);
    let remote = &remote;
    match action {
        KnownAction::Status => drive(output, interrupts, |events, _| remote::status(remote, events)).await,
        KnownAction::Workers => drive(output, interrupts, |events, _| remote::workers(remote, events)).await,
        KnownAction::Watch { job, from, output: folder, overwrite } => {
            let fetch = folder.map(|folder| FetchTo { output: absolute(folder), overwrite });
            drive(output, interrupts, |events, commands| remote::watch(remote, job, from, fetch, events, commands)).await
        }
        KnownAction::Stop { job } => drive(output, interrupts, |events, _| remote::control(remote, job, Command::Stop, events)).await,
        KnownAction::Cancel { job } => drive(output, interrupts, |events, _| remote::control(remote, job, Command::Cancel, events)).await,
        KnownAction::Fetch { job, output: folder, overwrite } => {
            let folder = absolute(folder.unwrap_or_else(|| submission::output_folder(job.as_deref().unwrap_or_default())));
            drive(output, interrupts, |events, _| remote::fetch(remote, job, folder, overwrite, events)).await
        }
    }
}

async fn train(global: &Global, args: TrainArgs, interrupts: &mut Signal) -> Result<u8, Failure> {
    check_is_no_invite(&args)?;
    let wishes =
        Wishes { configs: args.config.clone(), labels: args.labels.clone(), trainer: args.trainer.clone(), name: args.name.clone() };
    let path = args.package.clone();
    // The package first: its faults are the user's to mend before anybody is called.
    let Some(package) = off_thread(interrupts, move || package::read(&path, &wishes)).await? else { return Ok(INTERRUPTED) };
    let Some(Settings { mut remote, options }) = load_settings(global, interrupts).await? else { return Ok(INTERRUPTED) };
    if remote.worker.is_none() && !global.json && prompt::is_possible() {
        match ask_for_worker(&remote, interrupts).await? {
            Answer::Left => return Ok(INTERRUPTED),
            Answer::Nothing => {}
            Answer::Worker(worker) => remote.worker = Some(worker),
        }
    }
    let plan = args.plan;
    let request = train_request(args, package);
    let output = start_output(global, options);
    if plan {
        return drive(output, interrupts, |events, _| remote::plan(&remote, request, events)).await;
    }
    drive(output, interrupts, |events, commands| remote::train(&remote, request, events, commands)).await
}

fn train_request(args: TrainArgs, package: Package) -> TrainRequest {
    let output = args.output.unwrap_or_else(|| submission::output_folder(&package.name));
    TrainRequest {
        output: absolute(output),
        package,
        overwrite: args.overwrite,
        again: args.again,
        detach: args.detach,
        fetch: !args.no_fetch,
        checkpoints: !args.no_checkpoints,
    }
}

/// So that the summary says where the models are, whatever the working directory.
fn absolute(path: PathBuf) -> PathBuf {
    std::path::absolute(&path).unwrap_or(path)
}

fn check_is_no_invite(args: &TrainArgs) -> Result<(), Failure> {
    if args.package.to_string_lossy().starts_with("webrtc-connect:") {
        return Err(Failure::new(
            Code::InvalidRequest,
            "an invite stands where the package belongs: webrtc-client train PACKAGE --invite-file FILE",
        ));
    }
    Ok(())
}

async fn load_settings(global: &Global, interrupts: &mut Signal) -> Result<Option<Settings>, Failure> {
    let global = global.clone();
    off_thread(interrupts, move || settings::load(&global, &Environment::of_process())).await
}

fn start_output(global: &Global, options: String) -> Output {
    Output::start(global.json, global.quiet, global.verbose, ViewOptions { verbose: global.verbose > 0, options })
}

/// Runs what may block for long, such as a read of stdin; `None`: interrupted.
async fn off_thread<T: Send + 'static>(
    interrupts: &mut Signal,
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<Option<T>, Failure> {
    let work = tokio::task::spawn_blocking(work);
    tokio::select! {
        biased;
        _ = interrupts.recv() => Ok(None),
        done = work => done.map_err(|error| Failure::new(Code::Internal, format!("a task died: {error}")))?.map(Some),
    }
}

enum Answer {
    Nothing,
    Worker(String),
    Left,
}

/// Looks who is in the room and asks, where there is a choice.
async fn ask_for_worker(remote: &Remote, interrupts: &mut Signal) -> Result<Answer, Failure> {
    let (sender, mut events) = mpsc::channel(EVENTS);
    let gather = async {
        let mut found: Vec<WorkerInfo> = Vec::new();
        while let Some(event) = events.recv().await {
            if let Event::Workers { workers } = event {
                found = workers;
            }
        }
        found
    };
    let both = async { tokio::join!(remote::workers(remote, sender), gather) };
    let (end, workers) = tokio::select! {
        biased;
        _ = interrupts.recv() => return Ok(Answer::Left),
        both = both => both,
    };
    end?;
    if workers.len() < 2 {
        return Ok(Answer::Nothing);
    }
    let own = remote.invite.worker.clone();
    let chosen = off_thread(interrupts, move || Ok(prompt::choose_worker(&workers, &own))).await?.flatten();
    Ok(chosen.map(|peer| Answer::Worker(peer.to_string())).unwrap_or(Answer::Left))
}

/// Runs a command against the worker, shows its events, obeys Ctrl-C; gives the exit code.
async fn drive<F, W>(output: Output, interrupts: &mut Signal, start: F) -> Result<u8, Failure>
where
    F: FnOnce(mpsc::Sender<Event>, mpsc::Receiver<UserCommand>) -> W,
    W: Future<Output = Result<End, Failure>>,
{
    let (events, incoming) = mpsc::channel(EVENTS);
    let (commands, orders) = mpsc::channel(8);
    let mut shown = tokio::spawn(output.clone().show(incoming, commands.clone()));
    // Boxed: a connection's future has tens of kilobytes.
    let mut work = Box::pin(start(events, orders));
    let mut interrupted_at = None;
    let end = loop {
        let farewell = async {
            match interrupted_at {
                Some(at) => tokio::time::sleep_until(at + FAREWELL).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            _ = interrupts.recv() => {
                if interrupted_at.is_some() || output.stage() == Stage::Preparing {
                    output.abandon();
                    return Ok(INTERRUPTED);
                }
                interrupted_at = Some(tokio::time::Instant::now());
                output.line(Line::warning("leaving; Ctrl-C once more leaves at once"));
                // A full queue means that it was said before.
                let _ = commands.try_send(UserCommand::Detach);
            }
            end = &mut work => break end,
            () = farewell => break Ok(End::Done),
        }
    };
    finish(output, end, interrupted_at.is_some(), &mut shown, interrupts).await
}

async fn finish(
    output: Output,
    end: Result<End, Failure>,
    interrupted: bool,
    shown: &mut JoinHandle<()>,
    interrupts: &mut Signal,
) -> Result<u8, Failure> {
    let stage = output.stage();
    let closing = async {
        // The last events are shown before the last word; a task of the runtime that holds on to its sender must not hold us.
        if timeout(FAREWELL, &mut *shown).await.is_err() {
            shown.abort();
        }
        output.close(end.as_ref().ok(), interrupted).await;
    };
    tokio::select! {
        biased;
        _ = interrupts.recv() => {
            output.abandon();
            return Ok(INTERRUPTED);
        }
        () = closing => {}
    }
    Ok(exit_code(&end?, interrupted, stage))
}

fn exit_code(end: &End, interrupted: bool, stage: Stage) -> u8 {
    match end {
        End::Finished { outcome: Outcome::Completed | Outcome::Stopped, .. } => 0,
        End::Finished { outcome: Outcome::Cancelled, .. } => Code::JobCancelled.exit_code(),
        End::Finished { outcome: Outcome::Failed, .. } => Code::JobFailed.exit_code(),
        // A job that the worker has goes on without us, as was wished; anything else was broken off.
        End::Detached { .. } | End::Done if interrupted && stage != Stage::Following => INTERRUPTED,
        End::Detached { .. } | End::Done => 0,
    }
}

#[cfg(test)]
mod tests;
