//! A job in its runner: its steps one after the other, its commands, its journal.
//!
//! ```text
//!   plan ──► step 0 ──► step 1 ──► … ──► JobEnded, outcome.json
//!              │ failed, stopped or cancelled: no further step │
//!              └──────────────────────────────────────────────►┘
//! ```

use std::time::Duration;

use shared::domain::{
    error::Failure,
    id::CommandId,
    job::{Command, CommandState, JobEvent, Outcome},
};
use tokio::{
    signal::unix::Signal,
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, Interval, MissedTickBehavior},
};

use super::{server::Request, step};
use crate::{
    domain::{package::Plan, trainer::TrainerSettings},
    runtime::{
        journal::Journal,
        now_ms,
        workspace::{Ended, JobDir, write_json},
    },
};

/// How often the journal is brought to the disk: a power cut costs at most what is younger, and the write itself.
const SYNC: Duration = Duration::from_millis(500);
/// How often a full disk is tried again at the end of a job.
const RETRY: Duration = Duration::from_secs(1);
/// How many commands a job takes.
const MAX_COMMANDS: usize = 1000;

/// A job that is being run.
pub(super) struct Job {
    pub(super) dir: JobDir,
    pub(super) settings: TrainerSettings,
    pub(super) requests: mpsc::Receiver<Request>,
    /// SIGTERM to the runner.
    pub(super) ending: Signal,
    /// The strongest command that was taken up.
    pub(super) asked: Option<Command>,
    /// The runner itself was told to end.
    pub(super) evicted: bool,
    journal: Journal,
    disk_full: bool,
    commands: Vec<Given>,
    /// At each tick, [`Job::start_sync`] is to be called.
    pub(super) sync: Interval,
    syncing: Option<JoinHandle<std::io::Result<()>>>,
}

/// A command that was given.
struct Given {
    id: CommandId,
    command: Command,
    state: CommandState,
    message: String,
}

impl Job {
    pub(super) fn new(dir: JobDir, settings: TrainerSettings, journal: Journal, requests: mpsc::Receiver<Request>, ending: Signal) -> Self {
        let mut sync = tokio::time::interval_at(Instant::now() + SYNC, SYNC);
        sync.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Job {
            dir,
            settings,
            requests,
            ending,
            asked: None,
            evicted: false,
            journal,
            disk_full: false,
            commands: Vec::new(),
            sync,
            syncing: None,
        }
    }

    /// Runs all steps; how the job ended, and a sentence.
    pub(super) async fn run(&mut self) -> (Outcome, String) {
        let plan = match self.plan() {
            Ok(plan) => plan,
            Err(failure) => return (Outcome::Failed, failure.message),
        };
        let steps: Vec<String> = plan.steps.iter().map(|step| step.name.clone()).collect();
        self.record([JobEvent::JobStarted { trainer: plan.trainer.to_string(), steps: steps.clone() }]);
        self.record(plan.notices.iter().map(|message| JobEvent::Notice { message: message.clone() }));
        let count = plan.steps.len();
        let mut last = String::new();
        for (index, name) in steps.iter().enumerate() {
            let (outcome, message) = step::run(self, &plan, index as u32).await;
            self.record([JobEvent::StepEnded { step: index as u32, outcome, message: message.clone() }]);
            if outcome != Outcome::Completed || self.asked.is_some() {
                let outcome = match (outcome, self.asked) {
                    (Outcome::Completed, Some(Command::Stop)) if index + 1 < count => Outcome::Stopped,
                    (Outcome::Completed, Some(Command::Cancel)) => Outcome::Cancelled,
                    (outcome, _) => outcome,
                };
                let place = if count > 1 { format!("{name} (step {} of {count}): ", index + 1) } else { String::new() };
                return (outcome, format!("{place}{message}"));
            }
            last = message;
        }
        let message = if count > 1 { format!("all {count} steps are complete") } else { last };
        (Outcome::Completed, message)
    }

    fn plan(&self) -> Result<Plan, Failure> {
        let plan = self.dir.plan(&self.dir.record()?.spec, &self.settings)?;
        self.dir.lay_out()?;
        Ok(plan)
    }

    /// Writes the end: the last journal entry, then `outcome.json`. On a full disk it waits for space, since an end must not be lost.
    pub(super) async fn finish(&mut self, outcome: Outcome, message: String) -> Result<Ended, Failure> {
        self.requests.close();
        while let Some(request) = self.requests.recv().await {
            let _ = request.reply.send((CommandState::Refused, "the job has ended".into()));
        }
        self.observe_commands();
        self.record([JobEvent::JobEnded { outcome, message: message.clone() }]);
        let mut ended = Ended { outcome, message, last_seq: 0 };
        loop {
            match self.write_end(&mut ended) {
                Ok(()) => return Ok(ended),
                Err(failure) => tracing::error!(%failure, "the job's end cannot be written yet"),
            }
            tokio::select! {
                () = tokio::time::sleep(RETRY) => {}
                _ = self.ending.recv() => return Err(Failure::new(shared::domain::error::Code::NoSpace, "ended before its end could be written")),
            }
        }
    }

    fn write_end(&mut self, ended: &mut Ended) -> Result<(), Failure> {
        self.journal.append(now_ms(), [])?;
        self.sync_now();
        ended.last_seq = self.journal.last_seq();
        write_json(&self.dir.outcome_json(), ended)
    }

    /// Appends to the journal; on a full disk training goes on, and the journal says later what is missing.
    pub(super) fn record(&mut self, events: impl IntoIterator<Item = JobEvent>) {
        match self.journal.append(now_ms(), events) {
            Ok(_) => self.disk_full = false,
            Err(failure) if !self.disk_full => {
                self.disk_full = true;
                tracing::error!(%failure, "the journal cannot be written; the training goes on");
            }
            Err(_) => {}
        }
    }

    /// Brings the journal to the disk on a thread that may block, unless the last time is not over yet.
    pub(super) fn start_sync(&mut self) {
        if self.syncing.as_ref().is_some_and(|task| !task.is_finished()) {
            return;
        }
        self.syncing = self.journal.syncing().map(tokio::task::spawn_blocking);
    }

    fn sync_now(&mut self) {
        if let Some(sync) = self.journal.syncing()
            && let Err(error) = sync()
        {
            tracing::error!(%error, "the journal could not be brought to the disk");
        }
    }

    /// Takes a command up: durably recorded before it is answered, and applied at most once. `true`: it is new, and to be applied.
    pub(super) fn receive(&mut self, request: Request) -> Option<Command> {
        if let Some(given) = self.commands.iter().find(|given| given.id == request.id) {
            let _ = request.reply.send((given.state, given.message.clone()));
            return None;
        }
        if self.commands.len() >= MAX_COMMANDS {
            let _ = request.reply.send((CommandState::Refused, "too many commands for one job".into()));
            return None;
        }
        let Request { id, command, reply } = request;
        self.commands.push(Given { id, command, state: CommandState::Received, message: String::new() });
        let given = self.commands.last().expect("just pushed");
        let event = advanced(given);
        self.record([event]);
        self.sync_now();
        let _ = reply.send((CommandState::Received, String::new()));
        Some(command)
    }

    /// All received commands of this kind have come to this state.
    pub(super) fn advance(&mut self, command: Command, state: CommandState, message: &str) {
        let mut events = Vec::new();
        for given in self.commands.iter_mut().filter(|given| given.command == command && given.state == CommandState::Received) {
            given.state = state;
            given.message = message.to_owned();
            events.push(advanced(given));
        }
        self.record(events);
    }

    /// The end of the job is what every applied command wanted; what was not applied can no longer be.
    fn observe_commands(&mut self) {
        let mut events = Vec::new();
        for given in &mut self.commands {
            match given.state {
                CommandState::Applied => given.state = CommandState::Observed,
                CommandState::Received => {
                    given.state = CommandState::Refused;
                    given.message = "the job ended before it could be applied".into();
                }
                CommandState::Observed | CommandState::Refused => continue,
            }
            events.push(advanced(given));
        }
        self.record(events);
    }
}

fn advanced(given: &Given) -> JobEvent {
    JobEvent::CommandAdvanced { id: given.id.clone(), command: given.command, state: given.state, message: given.message.clone() }
}
