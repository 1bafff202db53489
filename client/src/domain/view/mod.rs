//! What people see of the events: lines that stay, at most two live lines, and a summary at the end.
//!
//! * [`View::handle`] takes each event in turn and gives the lines that stay
//! * [`View::live`] says what is going on now, however many events that took
//! * [`View::summary`] is the last word, for stdout
//! * [`View::stage`] says what leaving now would mean
//!
//! Every text becomes a [`Line`] or a [`Live`], and is escaped by that.

mod line;
mod plan;
mod tables;
mod training;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use shared::domain::{
    id::{CommandId, JobId},
    invite::Grant,
    job::{CommandState, JobEvent, JobState, JobStatus, JournalEntry, Metric, Outcome},
    message::WorkerInfo,
    route::Route,
};

pub use self::line::{Line, Live, Tone};
use self::training::Training;
use super::{event::Event, format, plan::Plan, rate::Rate, select};

/// Names under which a checkpoint is code to whoever loads it without care.
const CHECKPOINTS: [&str; 6] = [".ckpt", ".pt", ".pth", ".pkl", ".h5", ".keras"];
/// How many failed tries in a row pass between two lines about them.
const TRIES_BETWEEN_LINES: u32 = 5;
/// What is done with a package before it is sent.
const READING: &str = "reading";
/// More steps than any package has: what is saved of those beyond them is not repeated at the end.
const MAX_CHECKPOINTS: usize = 256;
/// How many steps of commands are remembered, so that none is shown twice.
const MAX_COMMANDS: usize = 1024;

/// How far a command is, as far as leaving it matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Reading, connecting: nothing is at the worker yet.
    Preparing,
    /// Part of the package is at the worker.
    Uploading,
    /// The worker has the job; it goes on without us.
    Following,
    /// The job is over; its results are under way.
    Fetching,
    /// Nothing is left to do.
    Over,
}

/// How to show things.
#[derive(Debug, Clone, Default)]
pub struct ViewOptions {
    /// Show the trainer's log lines and every gap.
    pub verbose: bool,
    /// What must be added to a command to reach the same worker (` --invite-file x`), for "come back with".
    pub options: String,
}

/// Everything shown so far, as far as what follows depends on it.
#[derive(Debug)]
pub struct View {
    options: ViewOptions,
    stage: Stage,
    job: Option<JobId>,
    name: Option<String>,
    state: Option<JobState>,
    connecting: Option<(String, u32)>,
    failed_tries: u32,
    transfer: Option<Transfer>,
    training: Training,
    commands: BTreeSet<(CommandId, CommandState)>,
    downloaded: Option<Downloaded>,
    /// What was saved of steps whose models are not here yet: where, and what it is.
    checkpoints: BTreeMap<u32, (String, String)>,
    answer: Vec<Line>,
    detached: bool,
    finished: Option<(Outcome, String, Option<u64>)>,
}

#[derive(Debug)]
struct Transfer {
    verb: &'static str,
    done: u64,
    total: u64,
    rate: Rate,
}

#[derive(Debug)]
struct Downloaded {
    path: String,
    files: u64,
    bytes: u64,
}

impl View {
    /// Nothing seen yet.
    pub fn new(options: ViewOptions) -> Self {
        View {
            options,
            stage: Stage::Preparing,
            job: None,
            name: None,
            state: None,
            connecting: None,
            failed_tries: 0,
            transfer: None,
            training: Training::default(),
            commands: BTreeSet::new(),
            downloaded: None,
            checkpoints: BTreeMap::new(),
            answer: vec![],
            detached: false,
            finished: None,
        }
    }

    /// What leaving now would mean.
    pub fn stage(&self) -> Stage {
        self.stage
    }

    /// Takes an event that came at `now` (since any fixed start); gives the lines that stay.
    pub fn handle(&mut self, now: Duration, event: &Event) -> Vec<Line> {
        match event {
            Event::Scanning { bytes, total } if bytes >= total => {
                self.transfer = None;
                vec![]
            }
            Event::Scanning { bytes, total } => self.transferring(now, READING, *bytes, *total),
            Event::Connecting { server, attempt, .. } => {
                self.interrupt();
                self.connecting = Some((server.clone(), *attempt));
                vec![]
            }
            Event::Connected { worker, grant, route, resumed, elapsed_ms } => {
                self.connected(worker, *grant, route.as_ref(), *resumed, *elapsed_ms)
            }
            Event::Disconnected { reason, retry_in_ms } => self.disconnected(reason, *retry_in_ms),
            Event::Plan(plan) => self.plan(plan),
            Event::Uploading { done, total, .. } => {
                self.advance(Stage::Uploading);
                self.transferring(now, "uploading", *done, *total)
            }
            Event::Uploaded { bytes, elapsed_ms, .. } => {
                self.transfer = None;
                self.advance(Stage::Following);
                vec![Line::plain(format!("uploaded {}", moved(*bytes, *elapsed_ms)))]
            }
            Event::JobState(status) => self.job_state(status),
            Event::Journal { job, entry } => self.journal(job, entry),
            Event::CaughtUp { job, .. } => {
                self.job = Some(job.clone());
                self.advance(Stage::Following);
                vec![]
            }
            Event::Command { id, command, state, message, job } => {
                self.job = Some(job.clone());
                if self.is_told(id, *state) {
                    return vec![];
                }
                vec![training::command_line(*command, *state, message)]
            }
            Event::Downloading { done, total } => {
                if self.is_ended() {
                    self.advance(Stage::Fetching);
                }
                self.transferring(now, "downloading", *done, *total)
            }
            Event::Downloaded { path, files, bytes, already_here, elapsed_ms } => {
                self.downloaded(path, files, *bytes, *already_here, *elapsed_ms)
            }
            Event::CheckpointSaved { step, epoch, metric, path, .. } => self.checkpoint_saved(*step, *epoch, *metric, path),
            Event::Jobs { worker, jobs } => self.answer(tables::jobs(worker, jobs)),
            Event::Path { route, speed, why } => {
                // Below the worker, above its jobs.
                let at = self.answer.len().min(1);
                self.answer.splice(at..at, tables::path(route.as_ref(), *speed, why.as_deref()));
                vec![]
            }
            Event::Workers { workers } => self.answer(tables::workers(workers)),
            Event::Detached { job } => {
                self.set_detached(job);
                vec![]
            }
            Event::Finished { job, outcome, message, elapsed_ms } => {
                self.set_finished(job, *outcome, message, Some(*elapsed_ms));
                vec![]
            }
            Event::Notice { message } => vec![Line::warning(format!("note: {message}"))],
        }
    }

    /// What is going on now: at most one line about a transfer and one about the job.
    pub fn live(&self, now: Duration) -> Vec<Live> {
        let mut lines = Vec::new();
        if let Some((server, attempt)) = &self.connecting {
            let again = if *attempt > 1 { format!(" (try {attempt})") } else { String::new() };
            lines.push(Live::open(format!("connecting through {server}{again}")));
        }
        lines.extend(self.transfer.as_ref().map(|transfer| transfer.live(now)));
        match (self.training.live(), self.state) {
            (Some(live), _) => lines.push(live),
            (None, Some(JobState::Queued { ahead })) if !self.training.begun => lines.push(Live::open(queue_place(ahead))),
            (None, Some(JobState::Running)) if !self.training.ended => lines.push(Live::open("waiting for the trainer")),
            _ => {}
        }
        lines.truncate(2);
        lines
    }

    /// The last word: the answer to a question, or how the job ended and where its models are.
    pub fn summary(&self) -> Vec<Line> {
        let mut lines = self.answer.clone();
        let job = self.job.as_ref().map(|job| format::short(job).to_owned()).unwrap_or_default();
        if let Some((outcome, message, elapsed_ms)) = &self.finished {
            lines.extend(self.training.summary());
            lines.extend(self.models_line(&job));
            lines.extend(self.checkpoint_lines());
            lines.push(self.end_line(*outcome, message, *elapsed_ms, &job));
        } else if self.detached {
            lines.extend(self.detached_lines());
            lines.extend(self.checkpoint_lines());
        } else {
            lines.extend(self.downloaded.as_ref().map(Downloaded::line));
        }
        lines
    }

    /// How to come back to the job that goes on.
    pub fn detached_lines(&self) -> Vec<Line> {
        let Some(job) = &self.job else { return vec![] };
        let (job, options) = (format::short(job), &self.options.options);
        match self.stage {
            Stage::Preparing | Stage::Uploading => {
                vec![Line::plain(format!("job {job}: what was sent is kept at the worker; run the same command again to continue"))]
            }
            Stage::Following => vec![
                Line::plain(format!("job {job} goes on at the worker; come back with:")),
                Line::plain(format!("  webrtc-client watch {job}{options}")),
            ],
            Stage::Fetching | Stage::Over => vec![
                Line::plain(format!("job {job} is over and its results are kept at the worker; get them with:")),
                Line::plain(format!("  webrtc-client fetch {job}{options}")),
            ],
        }
    }

    /// The user has left this job.
    pub fn set_detached(&mut self, job: &JobId) {
        self.job = Some(job.clone());
        self.detached = true;
    }

    /// We leave, whatever it is that we leave.
    pub fn set_left(&mut self) {
        self.detached = true;
    }

    /// This job is over; said twice, the first word counts.
    pub fn set_finished(&mut self, job: &JobId, outcome: Outcome, message: &str, elapsed_ms: Option<u64>) {
        self.job = Some(job.clone());
        self.transfer = None;
        self.stage = Stage::Over;
        self.finished.get_or_insert_with(|| (outcome, message.to_owned(), elapsed_ms));
    }

    /// Whether this step of a command was shown: it comes as an answer and in the journal.
    fn is_told(&mut self, id: &CommandId, state: CommandState) -> bool {
        if self.commands.len() >= MAX_COMMANDS {
            self.commands.clear();
        }
        !self.commands.insert((id.clone(), state))
    }

    fn advance(&mut self, stage: Stage) {
        self.stage = self.stage.max(stage);
    }

    fn is_ended(&self) -> bool {
        self.training.ended || matches!(self.state, Some(JobState::Ended { .. }))
    }

    fn answer(&mut self, lines: Vec<Line>) -> Vec<Line> {
        self.answer = lines;
        vec![]
    }

    fn transferring(&mut self, now: Duration, verb: &'static str, done: u64, total: u64) -> Vec<Line> {
        let transfer = match &mut self.transfer {
            Some(transfer) if transfer.verb == verb => transfer,
            other => other.insert(Transfer { verb, done, total, rate: Rate::default() }),
        };
        (transfer.done, transfer.total) = (done, total);
        transfer.rate.observe(now, done);
        vec![]
    }

    fn connected(&mut self, worker: &WorkerInfo, grant: Grant, route: Option<&Route>, resumed: bool, elapsed_ms: u64) -> Vec<Line> {
        self.connecting = None;
        self.failed_tries = 0;
        let route = route.map(|route| format!(", {}", plan::path(route))).unwrap_or_default();
        let again = if resumed { ", session resumed" } else { "" };
        let watch = if grant == Grant::Watch { ", watching only" } else { "" };
        let gpus = select::gpus(&worker.gpus);
        vec![Line::plain(format!("connected to {} in {}{route}{again}{watch}; {gpus}", worker.name, format::millis(elapsed_ms)))]
    }

    /// What goes over a connection is under way no longer; a package is read beside that.
    fn interrupt(&mut self) {
        self.transfer = self.transfer.take().filter(|transfer| transfer.verb == READING);
    }

    fn disconnected(&mut self, reason: &str, retry_in_ms: u64) -> Vec<Line> {
        self.interrupt();
        self.connecting = None;
        self.failed_tries = self.failed_tries.saturating_add(1);
        if self.failed_tries % TRIES_BETWEEN_LINES != 1 {
            return vec![];
        }
        let tries = if self.failed_tries > 1 { format!(" ({} tries so far)", self.failed_tries) } else { String::new() };
        let reassure = if self.stage == Stage::Following { "; the job goes on" } else { "" };
        vec![Line::warning(format!("no connection: {reason}; next try in {}{tries}{reassure}", format::millis(retry_in_ms)))]
    }

    fn plan(&mut self, plan: &Plan) -> Vec<Line> {
        self.transfer = None;
        if let Some(outlook) = plan.outlook.as_ref().filter(|_| plan.only) {
            return self.answer(plan::table(plan, outlook));
        }
        self.job = Some(plan.job.clone());
        self.advance(Stage::Uploading);
        plan::begins(plan)
    }

    fn job_state(&mut self, status: &JobStatus) -> Vec<Line> {
        let before = self.state.replace(status.state);
        self.job = Some(status.job.clone());
        self.name = Some(status.name.clone());
        match status.state {
            JobState::Uploading => self.advance(Stage::Uploading),
            JobState::Queued { .. } | JobState::Running => self.advance(Stage::Following),
            JobState::Ended { .. } => self.advance(Stage::Fetching),
        }
        match status.state {
            JobState::Queued { ahead } if before != Some(status.state) && !self.training.begun => vec![Line::plain(queue_place(ahead))],
            _ => vec![],
        }
    }

    fn journal(&mut self, job: &JobId, entry: &JournalEntry) -> Vec<Line> {
        self.job = Some(job.clone());
        self.advance(Stage::Following);
        if let JobEvent::CommandAdvanced { id, state, .. } = &entry.event
            && self.is_told(id, *state)
        {
            return vec![];
        }
        let lines = self.training.handle(entry, self.options.verbose);
        if self.training.ended {
            self.advance(Stage::Fetching);
        }
        lines
    }

    fn checkpoint_saved(&mut self, step: u32, epoch: Option<u32>, metric: Option<Metric>, path: &str) -> Vec<Line> {
        let mut what = epoch.map(|epoch| format!(" of epoch {}", training::human(epoch))).unwrap_or_default();
        if let Some(metric) = metric {
            what.push_str(&format!(" (val {})", format::metric(metric)));
        }
        let label = self.training.label(step);
        let line = Line::plain(format!("{label}  best checkpoint{what} saved: {path}"));
        if self.checkpoints.len() < MAX_CHECKPOINTS || self.checkpoints.contains_key(&step) {
            self.checkpoints.insert(step, (format!("{label}  best checkpoint{what}"), path.to_owned()));
        }
        vec![line]
    }

    /// What is left if nothing more comes.
    fn checkpoint_lines(&self) -> Vec<Line> {
        self.checkpoints.values().map(|(what, path)| Line::good(format!("{what}: {path}"))).collect()
    }

    fn downloaded(&mut self, path: &str, files: &[String], bytes: u64, already_here: u64, elapsed_ms: u64) -> Vec<Line> {
        self.transfer = None;
        // The models are here; a checkpoint that is kept beside them is told by a notice.
        self.checkpoints.clear();
        let here = if already_here > 0 { format!("; {} were here already", format::bytes(already_here)) } else { String::new() };
        let mut lines = vec![Line::plain(format!("downloaded {}{here}", moved(bytes.saturating_sub(already_here), elapsed_ms)))];
        if self.options.verbose {
            lines.extend(files.iter().map(|file| Line::new(Tone::Quiet, format!("  | {file}"))));
        }
        let is_checkpoint = |file: &String| CHECKPOINTS.iter().any(|end| file.ends_with(end));
        if self.downloaded.is_none() && files.iter().any(is_checkpoint) {
            lines.push(Line::new(
                Tone::Quiet,
                "note: a checkpoint can run code when it is loaded; load those of workers that you trust, or with weights_only",
            ));
        }
        self.downloaded = Some(Downloaded { path: path.to_owned(), files: files.len() as u64, bytes });
        lines
    }

    fn models_line(&self, job: &str) -> Option<Line> {
        if let Some(downloaded) = &self.downloaded {
            return Some(downloaded.line());
        }
        let (outcome, ..) = self.finished.as_ref()?;
        matches!(outcome, Outcome::Completed | Outcome::Stopped)
            .then(|| Line::plain(format!("models: at the worker; get them with: webrtc-client fetch {job}{}", self.options.options)))
    }

    fn end_line(&self, outcome: Outcome, message: &str, elapsed_ms: Option<u64>, job: &str) -> Line {
        let name = self.name.as_ref().map(|name| format!("{name} (job {job})")).unwrap_or_else(|| format!("job {job}"));
        let elapsed = elapsed_ms.map(|ms| format!(" after {}", format::millis(ms))).unwrap_or_default();
        let message = if message.is_empty() { String::new() } else { format!(": {message}") };
        let tone = if matches!(outcome, Outcome::Completed | Outcome::Stopped) { Tone::Good } else { Tone::Warning };
        Line::new(tone, format!("{name} {outcome}{elapsed}{message}"))
    }
}

impl Transfer {
    fn live(&self, now: Duration) -> Live {
        let mut text = format!("{} {} of {}", self.verb, format::bytes(self.done), format::bytes(self.total));
        let left = self.total.saturating_sub(self.done);
        if let Some(rate) = self.rate.per_second(now).filter(|_| left > 0) {
            text.push_str(&format!(", {}/s", format::bytes(rate as u64)));
        }
        if let Some(eta) = self.rate.eta(now, left).filter(|_| left > 0) {
            text.push_str(&format!(", {} left", format::duration(eta)));
        }
        Live::measured(text, self.done, self.total)
    }
}

impl Downloaded {
    fn line(&self) -> Line {
        Line::good(format!("models: {} ({}, {})", self.path, format::count(self.files, "file"), format::bytes(self.bytes)))
    }
}

fn queue_place(ahead: u32) -> String {
    match ahead {
        0 => "queued: next in line".into(),
        ahead => format!("queued: {} before this one", format::count(ahead.into(), "job")),
    }
}

fn moved(bytes: u64, elapsed_ms: u64) -> String {
    let rate = bytes.saturating_mul(1000).checked_div(elapsed_ms).filter(|_| bytes > 0);
    let rate = rate.map(|rate| format!(" ({}/s)", format::bytes(rate))).unwrap_or_default();
    format!("{} in {}{rate}", format::bytes(bytes), format::millis(elapsed_ms))
}

#[cfg(test)]
mod tests;
