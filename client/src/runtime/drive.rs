//! What a command wants, driven over as many links as it takes.
//!
//! ```text
//!   link ─► HELLO ─► SUBMIT or choose a job ─► WATCH from the next seq ─► … upload, commands, download … ─► end
//!     ▲                                                                                │ link lost
//!     └────────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! Everything that a new link repeats is safe to repeat: a job's id is its content, a command has an id of its own, the journal is
//! asked for from the next seq, and a transfer sends only what is missing.

mod ask;
mod checkpoints;
mod path;
mod plan;
mod reading;
mod transfers;

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use shared::{
    domain::{
        error::{Code, Failure},
        id::{CommandId, JobId, SessionId, hex},
        invite::Grant,
        job::{Command, CommandState, JobEvent, JobSpec, JobState, JobStatus, Outcome},
        message::{
            Accepted, Control, ControlState, Hello, JobList, JobRef, PROTOCOL, Progress as JournalProgress, Req, Submit, ToClient,
            ToWorker, Watch, Welcome,
        },
        route::Route,
    },
    runtime::{files::Source, listing::Listing, seal},
};
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval},
};

pub(super) use self::reading::Reading;
use self::{
    ask::{answer, list},
    checkpoints::arrived,
    transfers::Transfers,
};
use super::{
    connect::{Attention, Connector},
    conversation::{Conversation, Incoming},
};
use crate::domain::{
    checkpoints::Checkpoints,
    event::Event,
    growth::at_once,
    job_choice,
    order::{End, FetchTo, Remote, UserCommand},
};

/// Between two looks at how a transfer goes.
const LOOK: Duration = Duration::from_millis(50);
const SUBMIT: Req = 2;
const WATCH: Req = 3;
const FETCH: Req = 4;

/// A package, read and hashed, on its way to become a job.
pub(super) struct Submission {
    /// Where its bytes come from.
    pub(super) source: Arc<Source>,
    /// What it is.
    pub(super) listing: Arc<Listing>,
    /// What to do with it.
    pub(super) spec: JobSpec,
    /// Whether a job that ended already is to be run anew.
    pub(super) again: bool,
}

/// When a command has what it wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Until {
    /// The job has ended, and its results are here if they were asked for.
    Ended,
    /// The package is whole at the worker.
    Uploaded,
    /// The results are here, even of a job that goes on.
    Fetched,
    /// The command has been applied or refused.
    Applied,
    /// The jobs have been listed.
    Listed,
    /// It is known what a submission would do.
    Planned,
}

/// One command of the user, over any number of links.
pub(super) struct Drive {
    /// Makes links.
    pub(super) connector: Connector,
    /// Who is told.
    pub(super) events: mpsc::Sender<Event>,
    /// What the user asks.
    pub(super) commands: mpsc::Receiver<UserCommand>,
    /// The session.
    pub(super) session: SessionId,
    /// The package of the job to submit, as long as it is being read; …
    pub(super) reading: Option<Reading>,
    /// … the job to submit, or …
    pub(super) submission: Option<Submission>,
    /// … which job of the worker is meant.
    pub(super) wanted: Option<String>,
    /// When to end.
    pub(super) until: Until,
    /// Where results go, if they are wanted.
    pub(super) fetch: Option<FetchTo>,
    /// Which checkpoints are wanted before the results.
    pub(super) checkpoints: Checkpoints,
    /// Commands for the job that have not been answered yet.
    pub(super) pending: Vec<(CommandId, Command)>,
    /// The last journal entry that was told.
    pub(super) last_seq: u64,
    /// What is known of the job.
    pub(super) known: Known,
    /// The most bulk connections.
    pub(super) connections: Option<u32>,
    /// When the command began.
    pub(super) began: Instant,
}

/// What a drive has learnt; it survives links.
#[derive(Default)]
pub(super) struct Known {
    job: Option<JobId>,
    /// How the job ended, once its last journal entry has been told.
    ended: Option<(Outcome, String)>,
    status: Option<JobStatus>,
    uploaded: bool,
    /// Bytes of chunks that were sent on links that are gone.
    sent: u64,
    saved: bool,
    /// The worker's free disk space when it was last asked, in bytes.
    disk_free: u64,
    /// How many other jobs the worker had, running or waiting, when the job was submitted.
    jobs: u32,
    /// The route when the last link was made.
    route: Option<Route>,
    /// When this machine lost the address that the link used.
    moved: Option<Instant>,
    /// When the worker was last heard, while there is no link.
    last_heard: Option<SystemTime>,
    /// When the job was submitted first.
    submitted: Option<Instant>,
}

impl Drive {
    /// A command that wants this; its job, commands and files are set by whoever asks.
    pub(super) fn new(remote: &Remote, until: Until, events: mpsc::Sender<Event>) -> Result<Self, Failure> {
        Ok(Drive {
            connector: Connector::new(remote)?,
            events,
            commands: mpsc::channel(1).1,
            session: hex(&seal::random::<16>()?).parse()?,
            reading: None,
            submission: None,
            wanted: None,
            until,
            fetch: None,
            checkpoints: Checkpoints::new(false),
            pending: Vec::new(),
            last_seq: 0,
            known: Known::default(),
            connections: remote.connections,
            began: Instant::now(),
        })
    }

    /// Runs to the end.
    pub(super) async fn run(mut self) -> Result<End, Failure> {
        loop {
            let Some(link) = self.link().await? else { return self.detach().await };
            let mut talk = Conversation::start(link, self.connector.options(), self.connections);
            let mut transfers = Transfers::new();
            let result = self.converse(&mut talk, &mut transfers).await;
            match result {
                Err(failure) if failure.code == Code::NoConnection => {
                    self.known.last_heard.get_or_insert(talk.last_heard());
                    self.known.moved = None;
                    drop(talk);
                    self.interrupted(transfers).await;
                    self.tell(Event::Disconnected { reason: failure.message, retry_in_ms: 0 }).await;
                }
                result => {
                    let reason = if result.is_ok() { "done" } else { "failed" };
                    talk.goodbye(reason).await;
                    transfers.end().await;
                    return result;
                }
            }
        }
    }

    async fn converse(&mut self, talk: &mut Conversation, transfers: &mut Transfers) -> Result<End, Failure> {
        self.hello(talk).await?;
        if let Some(end) = self.read_package(talk).await? {
            return Ok(end);
        }
        match self.begin(talk).await? {
            Some(end) => return Ok(end),
            None => self.follow(talk, transfers).await?,
        }
        let doubted = talk.doubted();
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            if let Some(end) = self.end_reached().await {
                return Ok(end);
            }
            tokio::select! {
                _ = look.tick(), if transfers.uploading.is_some() || transfers.downloading.is_some() => {
                    talk.ping();
                    transfers.grow(talk);
                }
                incoming = talk.next() => self.handle(incoming, talk, transfers).await?,
                attention = self.connector.attend() => self.attend(attention, talk),
                () = doubted.notified() => self.connector.doubt(),
                Some(moved) = transfers.tasks.join_next() => self.moved(moved, transfers, talk).await?,
                saved = arrived(&mut transfers.checkpoint) => self.checkpoint_arrived(saved, talk, transfers).await?,
                Ok(()) = transfers.upload.changed(), if transfers.uploading.is_some() => self.report_upload(transfers, talk).await,
                Ok(()) = transfers.download.changed(), if transfers.downloading.is_some() => self.report_download(transfers).await,
                Some(command) = self.commands.recv() => match command {
                    UserCommand::Detach => return self.detach().await,
                    other => {
                        self.pending.extend(pending_command(other)?);
                        self.send_pending(talk).await?;
                    }
                },
            }
        }
    }

    /// What the server and the network say of the link. A restart needs the server: it waits until that is reached.
    fn attend(&mut self, attention: Attention, talk: &Conversation) {
        match attention {
            Attention::WorkerLeft => talk.probe(),
            Attention::WorkerMoved(at) => talk.moved(at),
            Attention::NetworkChanged if talk.has_lost_address() => {
                self.known.moved.get_or_insert_with(Instant::now);
            }
            Attention::NetworkChanged => {
                self.known.moved = None;
                talk.probe();
            }
            Attention::Reachable => {
                if let Some(at) = self.known.moved.take_if(|_| talk.has_moved()) {
                    talk.moved(at);
                }
            }
        }
    }

    async fn hello(&mut self, talk: &mut Conversation) -> Result<(), Failure> {
        let asked = Instant::now();
        let hello = Hello { protocol: PROTOCOL, version: env!("CARGO_PKG_VERSION").to_owned(), session: self.session.clone() };
        talk.tell(ToWorker::Hello(hello)).await?;
        let Welcome { protocol, grant, worker, resumed, held } = answer(talk, |message| match message {
            ToClient::Welcome(welcome) => Some(Ok(welcome)),
            ToClient::Refused(refused) => Some(Err(refused.failure)),
            _ => None,
        })
        .await?;
        let round_trip = asked.elapsed();
        if protocol != PROTOCOL {
            return Err(Failure::new(
                Code::VersionMismatch,
                format!(
                    "this client speaks protocol {PROTOCOL}, the worker (version {}) {protocol}; install the same version on both",
                    worker.version
                ),
            ));
        }
        self.connector.welcomed();
        let needs_submit = self.submits() || self.until == Until::Applied || self.fetch.is_some();
        if needs_submit && grant == Grant::Watch {
            return Err(Failure::new(Code::Forbidden, "this invite only lets you watch; ask for the worker's submit invite"));
        }
        let route = talk.route().await;
        let elapsed_ms = self.began.elapsed().as_millis() as u64;
        self.known.route = route.clone();
        self.tell(Event::Connected { worker: worker.clone(), grant, route, resumed, elapsed_ms }).await;
        self.tell_long_absence(Duration::from_secs(held)).await;
        self.known.disk_free = worker.disk_free;
        if self.known.job.is_none() {
            self.known.jobs = worker.jobs;
        }
        if self.connector.remember(&worker.name)? {
            let message = format!(
                "a worker named '{}' had another key in another room: right if it was set up anew or another machine has that name",
                worker.name
            );
            self.tell(Event::Notice { message }).await;
        }
        if self.submits() && !self.known.uploaded {
            // Bulk connections take a moment: begun now, they are there when the package is read and the worker says what it lacks.
            let bytes = if self.until == Until::Planned { 0 } else { self.package_bytes() };
            talk.keep_bulk(at_once(round_trip, bytes));
        }
        Ok(())
    }

    async fn tell_long_absence(&mut self, held: Duration) {
        let Some(away) = self.known.last_heard.take().and_then(|heard| heard.elapsed().ok()).filter(|away| *away > held) else { return };
        let (away, held) = (away.as_secs(), held.as_secs());
        let message = format!(
            "the worker was out of reach for {away} s; it holds a place in the queue for {held} s, so an unfinished upload may have lost its own. The job, its journal and what was sent are kept"
        );
        self.tell(Event::Notice { message }).await;
    }

    /// Submits the job, or finds the one that is meant.
    async fn begin(&mut self, talk: &mut Conversation) -> Result<Option<End>, Failure> {
        if self.until == Until::Planned {
            return self.plan(talk).await.map(Some);
        }
        if self.submission.is_some() {
            return self.submit(talk).await.map(|()| None);
        }
        if self.known.job.is_some() && self.until != Until::Listed {
            return Ok(None);
        }
        let JobList { jobs, worker, .. } = list(talk).await?;
        if self.until == Until::Listed {
            self.tell(Event::Jobs { worker, jobs }).await;
            self.tell_path(talk).await;
            return Ok(Some(End::Done));
        }
        let status = job_choice::choose(&jobs, self.wanted.as_deref())?.clone();
        self.known.job = Some(status.job.clone());
        self.note(status).await;
        Ok(None)
    }

    /// With `--again`: the first attempt that the worker does not know.
    async fn next_attempt(&mut self, talk: &mut Conversation) -> Result<(), Failure> {
        if self.submission.as_ref().is_some_and(|submission| submission.again) {
            let known = list(talk).await?.jobs;
            if let Some(submission) = &mut self.submission {
                while known.iter().any(|status| status.job == submission.spec.job_id(&submission.listing.summary().id)) {
                    submission.spec.attempt += 1;
                }
                submission.again = false;
            }
        }
        Ok(())
    }

    async fn submit(&mut self, talk: &mut Conversation) -> Result<(), Failure> {
        self.next_attempt(talk).await?;
        let submission = self.submission.as_ref().expect("asked above");
        let (spec, manifest) = (submission.spec.clone(), submission.listing.summary());
        self.known.submitted.get_or_insert_with(Instant::now);
        talk.tell(ToWorker::Submit(Submit { req: SUBMIT, spec, manifest, plan: false })).await?;
        let Accepted { status, known, .. } = answer(talk, |message| match message {
            ToClient::Accepted(accepted) => Some(Ok(accepted)),
            ToClient::Refused(refused) if refused.req == SUBMIT => Some(Err(refused.failure)),
            _ => None,
        })
        .await?;
        // What was sent is not there until the worker says so: it may have been killed in between, and then it takes what is missing again.
        self.known.uploaded = status.state != JobState::Uploading;
        let first = self.known.job.replace(status.job.clone()).is_none();
        if first {
            // What the worker counted as it greeted us has this job in it, if it had it then.
            self.known.jobs -= u32::from(known && !matches!(status.state, JobState::Ended { .. })).min(self.known.jobs);
        }
        if first && self.known.uploaded {
            self.tell_plan(known, manifest.bytes, 0).await;
        }
        self.note(status).await;
        Ok(())
    }

    /// Takes up what this command wants of its job on a fresh link.
    async fn follow(&mut self, talk: &mut Conversation, transfers: &mut Transfers) -> Result<(), Failure> {
        let job = self.job()?;
        self.checkpoints.handle_link();
        if matches!(self.until, Until::Ended | Until::Uploaded) {
            talk.tell(ToWorker::Watch(Watch { req: WATCH, job: job.clone(), from: self.last_seq + 1 })).await?;
        }
        if let Some(submission) = &self.submission
            && !self.known.uploaded
        {
            transfers.start_upload(submission, job, talk)?;
        }
        self.send_pending(talk).await?;
        self.ask_for_results(talk, transfers).await
    }

    async fn handle(&mut self, incoming: Incoming, talk: &mut Conversation, transfers: &mut Transfers) -> Result<(), Failure> {
        match incoming {
            Incoming::Lost(failure) => return Err(Failure::new(Code::NoConnection, failure.message)),
            Incoming::Journal(JournalProgress { job, entry }) => {
                if Some(&job) != self.known.job.as_ref() || entry.seq <= self.last_seq {
                    return Ok(());
                }
                if entry.seq != self.last_seq + 1 {
                    return Err(Failure::new(Code::NoConnection, "journal entries are missing; asking again"));
                }
                self.last_seq = entry.seq;
                if let JobEvent::JobEnded { outcome, message } = &entry.event {
                    self.known.ended = Some((*outcome, message.clone()));
                }
                self.checkpoints.handle_entry(entry.seq, &entry.event);
                self.tell(Event::Journal { job, entry }).await;
                self.ask_for_checkpoint(talk).await?;
            }
            Incoming::Message(ToClient::JobState(status)) => {
                self.note(status).await;
                self.ask_for_results(talk, transfers).await?;
            }
            Incoming::Message(ToClient::CaughtUp(caught_up)) => {
                self.checkpoints.handle_caught_up(caught_up.seq);
                self.tell(Event::CaughtUp { job: caught_up.job, seq: caught_up.seq }).await;
                self.ask_for_checkpoint(talk).await?;
            }
            Incoming::Message(ToClient::ControlState(state)) => self.advanced(state).await?,
            Incoming::Message(ToClient::Checkpoint(offer)) => self.checkpoint_offered(offer, transfers),
            Incoming::Message(ToClient::FileMeta(meta)) => {
                if let Some(meta) = self.start_checkpoint(meta, talk, transfers).await? {
                    self.start_download(meta, talk, transfers)?;
                }
            }
            Incoming::Message(ToClient::Refused(refused)) if self.checkpoint_refused(&refused) => {}
            Incoming::Message(ToClient::Refused(refused)) => return Err(refused.failure),
            Incoming::Message(ToClient::Bye(_)) => return Err(Failure::new(Code::NoConnection, "the worker is going away")),
            Incoming::Message(_) => {}
        }
        Ok(())
    }

    async fn note(&mut self, status: JobStatus) {
        if Some(&status.job) != self.known.job.as_ref() || self.known.status.as_ref() == Some(&status) {
            return;
        }
        // Journal entries tell how far a running job is; a state is told when it is another one.
        let told = self.known.status.as_ref().is_some_and(|known| known.state == status.state && known.results == status.results);
        if !told {
            self.tell(Event::JobState(status.clone())).await;
        }
        self.known.status = Some(status);
    }

    async fn advanced(&mut self, state: ControlState) -> Result<(), Failure> {
        let Some(&(_, command)) = self.pending.iter().find(|(id, _)| *id == state.id) else { return Ok(()) };
        let ControlState { job, id, state, message } = state;
        self.tell(Event::Command { job, id: id.clone(), command, state, message: message.clone() }).await;
        if state == CommandState::Refused && self.until == Until::Applied {
            return Err(Failure::new(Code::WrongState, message));
        }
        if state >= CommandState::Applied {
            self.pending.retain(|(pending, _)| *pending != id);
        }
        Ok(())
    }

    async fn ask_for_results(&mut self, talk: &Conversation, transfers: &mut Transfers) -> Result<(), Failure> {
        let there = self.known.status.as_ref().is_some_and(|status| status.results.is_some());
        let over = self.known.status.as_ref().is_some_and(|status| matches!(status.state, JobState::Ended { .. }));
        if self.fetch.is_none() || self.known.saved || transfers.asked {
            return Ok(());
        }
        if !there && self.until == Until::Fetched {
            return Err(Failure::new(
                Code::WrongState,
                "this job has no results that can be fetched yet; follow it with 'webrtc-client watch'",
            ));
        }
        if there && (over || self.until == Until::Fetched) {
            transfers.asked = true;
            self.drop_checkpoint(talk, transfers);
            let _ = talk.pool();
            talk.tell(ToWorker::Fetch(JobRef { req: FETCH, job: self.job()? })).await?;
        }
        Ok(())
    }

    async fn send_pending(&self, talk: &Conversation) -> Result<(), Failure> {
        let job = self.job()?;
        for (id, command) in &self.pending {
            talk.tell(ToWorker::Control(Control { job: job.clone(), id: id.clone(), command: *command })).await?;
        }
        Ok(())
    }

    async fn detach(&mut self) -> Result<End, Failure> {
        let Some(job) = self.known.job.clone() else {
            return Err(Failure::new(Code::NoConnection, "left before the worker knew of the job; run the same command again to go on"));
        };
        self.tell(Event::Detached { job: job.clone() }).await;
        Ok(End::Detached { job })
    }

    async fn end_reached(&mut self) -> Option<End> {
        let job = self.known.job.clone()?;
        match self.until {
            Until::Listed | Until::Planned => None,
            Until::Applied => self.pending.is_empty().then_some(End::Done),
            Until::Fetched => self.known.saved.then_some(End::Done),
            Until::Uploaded => {
                // Not when the last byte was taken: until the worker has made a job of it, it is nobody's but ours to finish.
                let is_a_job = self.known.status.as_ref().is_some_and(|status| status.state != JobState::Uploading);
                if !self.known.uploaded || !is_a_job {
                    return None;
                }
                self.detach().await.ok()
            }
            Until::Ended => {
                let (outcome, message) = self.known.ended.clone()?;
                let status = self.known.status.as_ref().filter(|status| matches!(status.state, JobState::Ended { .. }))?;
                if self.fetch.is_some() && status.results.is_some() && !self.known.saved {
                    return None;
                }
                let elapsed_ms = self.known.submitted.unwrap_or(self.began).elapsed().as_millis() as u64;
                self.tell(Event::Finished { job: job.clone(), outcome, message: message.clone(), elapsed_ms }).await;
                Some(End::Finished { job, outcome, message })
            }
        }
    }

    fn job(&self) -> Result<JobId, Failure> {
        self.known.job.clone().ok_or_else(|| Failure::new(Code::Internal, "no job was chosen"))
    }

    async fn tell(&self, event: Event) {
        // Whoever shows events may be gone (a closed pipe): the work goes on.
        let _ = self.events.send(event).await;
    }
}

/// What the user asks of the job, with an id of its own; none for what is no command to it.
fn pending_command(command: UserCommand) -> Result<Option<(CommandId, Command)>, Failure> {
    let command = match command {
        UserCommand::Stop => Command::Stop,
        UserCommand::Cancel => Command::Cancel,
        UserCommand::Detach => return Ok(None),
    };
    Ok(Some((command_id()?, command)))
}

/// A fresh command id.
pub(super) fn command_id() -> Result<CommandId, Failure> {
    hex(&seal::random::<16>()?).parse()
}
