//! One step: a trainer from its start to the moment its process group is empty.
//!
//! ```text
//!   bind sockets ─► write configuration ─► start ─► frames, lines, commands … ─► exit ─► empty the group ─► drain ─► judge
//! ```

use std::{future::Future, pin::Pin, time::Duration};

use bytes::Bytes;
use shared::domain::{
    error::Failure,
    job::{Command, CommandState, JobEvent, Outcome, Phase},
};
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use super::{job::Job, server::Request};
use crate::{
    domain::{
        command::{self, Invocation, Places},
        outcome::{self, Evidence, Exit},
        package::{Plan, Step},
        progress::Tracker,
    },
    runtime::{
        checkpoint::Checkpoints,
        processes,
        progress::TrainerLink,
        tail::Tail,
        trainer::TrainerProcess,
        workspace::{failure, write_json, write_text},
    },
};

/// How many frames are journalled with one write.
const BATCH: usize = 512;
/// How long what a trainer leaves behind may take to end by itself.
const LINGER: Duration = Duration::from_secs(1);
/// How long the sockets are read after the trainer's end, if something keeps them open.
const DRAIN: Duration = Duration::from_secs(2);

/// Runs a step; how it ended, and a sentence.
pub(super) async fn run(job: &mut Job, plan: &Plan, index: u32) -> (Outcome, String) {
    let step = &plan.steps[index as usize];
    // Commands that came between two steps.
    while let Ok(request) = job.requests.try_recv() {
        if let Some(command) = job.receive(request) {
            job.asked = if job.asked == Some(Command::Cancel) { job.asked } else { Some(command) };
            job.advance(command, CommandState::Applied, "");
        }
    }
    match job.asked {
        Some(Command::Cancel) => return (Outcome::Cancelled, "cancelled on request before it began".into()),
        Some(Command::Stop) => return (Outcome::Stopped, "stopped on request before it began".into()),
        None => {}
    }
    job.record([
        JobEvent::StepStarted { step: index, name: step.name.clone(), run: step.run.clone(), max_epochs: step.max_epochs },
        JobEvent::PhaseEntered { step: index, phase: Phase::Starting },
    ]);
    let (link, call) = match prepare(job, plan, index).await {
        Ok(prepared) => prepared,
        Err(failure) => return (Outcome::Failed, failure.message),
    };
    let checkpoints = Checkpoints::watch(&job.dir, index, &step.run, &job.settings.results(&plan.trainer));
    let mut running = Running::new(job, link, index, call.can_stop, checkpoints);
    let exit = match TrainerProcess::start(&call, &running.job.dir.run(), &running.job.dir.trainer_log()) {
        Ok(mut process) => {
            let exit = running.drive(&mut process).await;
            running.clear(&process).await;
            exit
        }
        Err(why) => Exit::NotStarted(why),
    };
    running.end(plan, step, &call, exit).await
}

/// Sockets, the step's configuration, and the trainer's folders.
async fn prepare(job: &Job, plan: &Plan, index: u32) -> Result<(TrainerLink, Invocation), Failure> {
    let step = &plan.steps[index as usize];
    let link = TrainerLink::bind().await?;
    let text = |path: std::path::PathBuf| {
        let name = path.display().to_string();
        path.into_os_string().into_string().map_err(|_| failure("use", name.as_ref(), &std::io::Error::other("it is not UTF-8")))
    };
    let (run, config, results) = (text(job.dir.run())?, text(job.dir.config())?, text(job.dir.results())?);
    let places = Places { run: &run, config: &config, results: &results };
    let call = command::invocation(&plan.trainer, index, step, &job.settings, link.ports(), places)?;
    if let Some((name, text)) = &call.config {
        write_text(&job.dir.config().join(name), text)?;
    }
    if matches!(plan.trainer, crate::domain::trainer::Trainer::Custom(_)) {
        let output = job.dir.results().join(&step.run);
        std::fs::create_dir_all(&output).map_err(|error| failure("make", &output, &error))?;
    }
    Ok((link, call))
}

/// A step whose sockets are open.
struct Running<'a> {
    job: &'a mut Job,
    link: TrainerLink,
    index: u32,
    can_stop: bool,
    tracker: Tracker,
    checkpoints: Checkpoints,
    lines: mpsc::Receiver<String>,
    tail: JoinHandle<Vec<String>>,
    tail_done: CancellationToken,
    link_open: bool,
    lines_open: bool,
    /// A stop was asked before training had ended: it is this step's.
    stopping: bool,
    /// The trainer has been told to stop.
    stop_sent: bool,
    /// What is ending the group, and what was left of it.
    ending: Option<Pin<Box<dyn Future<Output = Vec<i32>> + Send>>>,
}

impl<'a> Running<'a> {
    fn new(job: &'a mut Job, link: TrainerLink, index: u32, can_stop: bool, checkpoints: Checkpoints) -> Self {
        let (sender, lines) = mpsc::channel(256);
        let tail_done = CancellationToken::new();
        let tail = tokio::spawn(Tail::new(&job.dir.trainer_log(), sender).run(tail_done.clone()));
        let tracker = Tracker::new(index);
        Running {
            job,
            link,
            index,
            can_stop,
            tracker,
            checkpoints,
            lines,
            tail,
            tail_done,
            link_open: true,
            lines_open: true,
            stopping: false,
            stop_sent: false,
            ending: None,
        }
    }

    /// Follows the trainer until it has ended.
    async fn drive(&mut self, process: &mut TrainerProcess) -> Exit {
        if let Err(failure) = write_json(&self.job.dir.trainer_pid(), &process.group()) {
            tracing::error!(%failure, "an agent could not end this trainer if the runner were lost");
        }
        let mut frames = Vec::new();
        let mut lines = Vec::new();
        let stop_sent = self.link.stop_sent();
        tokio::pin!(stop_sent);
        loop {
            tokio::select! {
                exit = process.wait() => return exit,
                count = self.link.receive(&mut frames, BATCH), if self.link_open => {
                    self.link_open = count > 0;
                    self.take_frames(&mut frames);
                }
                count = self.lines.recv_many(&mut lines, BATCH), if self.lines_open => {
                    self.lines_open = count > 0;
                    self.take_lines(&mut lines);
                }
                Some(event) = self.checkpoints.next() => self.job.record([event]),
                Some(request) = self.job.requests.recv() => self.take_request(request, process),
                () = &mut stop_sent, if !self.stop_sent => {
                    self.stop_sent = true;
                    self.job.advance(Command::Stop, CommandState::Applied, "");
                }
                _ = self.job.ending.recv() => {
                    self.job.evicted = true;
                    self.terminate(process);
                }
                left = poll(&mut self.ending) => {
                    self.ending = None;
                    if !left.is_empty() {
                        self.notice(format!("processes of the trainer do not end: {left:?}"));
                        return Exit::Signal(9);
                    }
                }
                _ = self.job.sync.tick() => self.job.start_sync(),
            }
        }
    }

    fn take_request(&mut self, request: Request, process: &TrainerProcess) {
        match self.job.receive(request) {
            Some(Command::Cancel) => {
                self.job.asked = Some(Command::Cancel);
                self.terminate(process);
                self.job.advance(Command::Cancel, CommandState::Applied, "");
            }
            Some(Command::Stop) => self.stop(),
            None => {}
        }
    }

    fn stop(&mut self) {
        if self.job.asked == Some(Command::Cancel) {
            self.job.advance(Command::Stop, CommandState::Refused, "the job is being cancelled");
        } else if self.tracker.facts().train_end {
            // Nothing is left to stop in this step; no further one will begin.
            self.job.asked = Some(Command::Stop);
            self.job.advance(Command::Stop, CommandState::Applied, "");
        } else if !self.can_stop {
            self.job.advance(Command::Stop, CommandState::Refused, "this trainer cannot be stopped early; it can be cancelled");
        } else if self.stop_sent {
            self.job.advance(Command::Stop, CommandState::Applied, "");
        } else {
            self.job.asked = Some(Command::Stop);
            self.stopping = true;
            self.link.stop();
        }
    }

    fn terminate(&mut self, process: &TrainerProcess) {
        let grace = Duration::from_secs(self.job.settings.grace_secs.into());
        if let (None, Some(group)) = (&self.ending, process.group().cloned()) {
            self.ending = Some(Box::pin(async move { group.terminate(grace).await }));
        }
    }

    fn take_frames(&mut self, frames: &mut Vec<Bytes>) {
        let tracker = &mut self.tracker;
        let events: Vec<_> = frames.drain(..).flat_map(|frame| tracker.handle(&frame)).collect();
        self.checkpoints.handle_events(&events);
        self.job.record(events);
    }

    fn take_lines(&mut self, lines: &mut Vec<String>) {
        let step = self.index;
        self.job.record(lines.drain(..).map(|line| JobEvent::Log { step, line }));
    }

    fn notice(&mut self, message: String) {
        self.job.record([JobEvent::Notice { message }]);
    }

    /// Ends what the trainer has left behind: members of its group, and what had left the group.
    async fn clear(&mut self, process: &TrainerProcess) {
        let grace = Duration::from_secs(self.job.settings.grace_secs.into());
        let Some(group) = process.group().cloned() else { return };
        let mut left = match self.ending.take() {
            Some(ending) => ending.await,
            None => {
                if !group.wait_empty(LINGER).await {
                    self.notice("the trainer ended and left processes behind, which are being ended".into());
                }
                group.terminate(grace).await
            }
        };
        let strays = processes::end_adopted(process.id(), grace).await;
        if strays > 0 {
            self.notice(format!("{strays} processes that had left the trainer's group were ended"));
        }
        left.retain(|pid| group.members().contains(pid));
        if left.is_empty() {
            let _ = std::fs::remove_file(self.job.dir.trainer_pid());
        } else {
            self.notice(format!("processes of the trainer do not end: {left:?}"));
        }
    }

    /// Reads what is still on its way, closes everything, and judges.
    async fn end(mut self, plan: &Plan, step: &Step, call: &Invocation, exit: Exit) -> (Outcome, String) {
        let mut frames = Vec::new();
        while self.link.drain(&mut frames, DRAIN).await {
            self.take_frames(&mut frames);
        }
        if self.link.was_stop_sent() {
            // A trainer can end for it before we have heard that it was sent.
            self.job.advance(Command::Stop, CommandState::Applied, "");
        }
        self.tail_done.cancel();
        let mut lines = Vec::new();
        while self.lines.recv_many(&mut lines, BATCH).await > 0 {
            self.take_lines(&mut lines);
        }
        let last_lines = (&mut self.tail).await.unwrap_or_default();
        self.link.close().await;
        // Results follow the last step at once.
        if (self.index as usize) + 1 < plan.steps.len() && self.job.asked != Some(Command::Cancel) {
            let events = self.checkpoints.finish().await;
            self.job.record(events);
        }

        let folder = self.job.dir.results().join(&step.run);
        let mut missing = self.job.settings.results(&plan.trainer);
        missing.retain(|name| !std::fs::metadata(folder.join(name)).is_ok_and(|file| file.is_file() && file.len() > 0));
        if self.job.evicted && self.job.asked != Some(Command::Cancel) {
            let message = "the worker's machine asked the runner to end (SIGTERM); submit the job again when it is back";
            return (Outcome::Failed, message.into());
        }
        let asked = self.job.asked.filter(|&asked| asked == Command::Cancel || self.stopping);
        outcome::judge(&Evidence {
            trainer: &plan.trainer,
            program: call.argv.first().map_or("", String::as_str),
            asked,
            exit,
            facts: self.tracker.facts(),
            missing: &missing,
            last_lines: &last_lines,
        })
    }
}

/// Waits for a future that may not be there; for ever, if it is not.
async fn poll(future: &mut Option<Pin<Box<dyn Future<Output = Vec<i32>> + Send>>>) -> Vec<i32> {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}
