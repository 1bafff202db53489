//! The table of jobs: each job's record and watchers, their order, and every change of a job's state.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use shared::domain::{
    error::{Code, Failure},
    id::JobId,
    job::{JobEvent, JobState, JobStatus, Outcome},
    manifest::Manifest,
};
use tokio::{sync::watch, time::Instant};

use super::MAX_ACTIVE;
use crate::runtime::{
    journal::Journal,
    now_ms,
    runner::RunnerHandle,
    workspace::{Ended, JobDir, JobRecord},
};

#[derive(Default)]
pub(super) struct Table {
    /// By order of submission.
    pub(super) queue: BTreeMap<u64, JobId>,
    pub(super) jobs: HashMap<JobId, Job>,
    /// Whether it takes any job.
    pub(super) door: Door,
}

/// Which new jobs are taken.
#[derive(Default)]
pub(super) enum Door {
    /// All.
    #[default]
    Open,
    /// One, and none has come.
    One,
    /// None but this one, which is here.
    Shut(JobId),
}

pub(super) struct Job {
    pub(super) dir: JobDir,
    pub(super) record: JobRecord,
    pub(super) status: watch::Sender<JobStatus>,
    /// The journal's last seq; the job's own sender, whoever writes the journal.
    pub(super) appended: watch::Sender<u64>,
    pub(super) runner: Option<Arc<RunnerHandle>>,
    /// While the client of an unfinished upload is away: until when its place is held.
    pub(super) held_until: Option<Instant>,
    /// Whether a task supervises it.
    pub(super) started: bool,
}

/// How a runner ended, and what it left behind.
pub(super) struct RunnerEnd {
    pub(super) ended: Ended,
    pub(super) results: Option<Manifest>,
}

impl Table {
    pub(super) fn job(&self, id: &JobId) -> Result<&Job, Failure> {
        self.jobs.get(id).ok_or_else(|| unknown(id))
    }

    pub(super) fn job_mut(&mut self, id: &JobId) -> Result<&mut Job, Failure> {
        self.jobs.get_mut(id).ok_or_else(|| unknown(id))
    }

    /// Whether a job that is not here would be taken.
    ///
    /// # Errors
    /// Why not.
    pub(super) fn may_enter(&self) -> Result<(), Failure> {
        if let Door::Shut(one) = &self.door
            && !self.jobs.get(one).is_some_and(Job::is_abandoned)
        {
            return Err(Failure::new(Code::Unavailable, "this worker takes one job, and has it; submit to another worker"));
        }
        if self.jobs.values().filter(|job| !job.is_over()).count() >= MAX_ACTIVE {
            return Err(Failure::new(Code::RateLimited, format!("the worker has {MAX_ACTIVE} jobs waiting already; try again later")));
        }
        Ok(())
    }

    /// A new job.
    ///
    /// # Errors
    /// When the one before it, whose client stayed away, cannot be ended.
    pub(super) fn enter(&mut self, job: Job) -> Result<(), Failure> {
        let before = match std::mem::take(&mut self.door) {
            Door::Open => None,
            Door::One => {
                self.door = Door::Shut(job.id());
                None
            }
            Door::Shut(one) => {
                self.door = Door::Shut(job.id());
                Some(one)
            }
        };
        if let Some(before) = before.and_then(|id| self.jobs.get_mut(&id)) {
            before.end_by_agent(Outcome::Cancelled, "its package did not come, and another job took its place")?;
        }
        self.queue.insert(job.record.order, job.id());
        self.jobs.insert(job.id(), job);
        Ok(())
    }

    pub(super) fn next_order(&self) -> u64 {
        self.queue.last_key_value().map_or(1, |(order, _)| order + 1)
    }

    /// A job whose client stayed away too long during its upload goes to the end of the queue.
    pub(super) fn renew_place(&mut self, id: &JobId) -> Result<(), Failure> {
        let next = self.next_order();
        let job = self.job_mut(id)?;
        let lapsed = job.is_abandoned();
        job.held_until = None;
        if lapsed && job.record.order + 1 != next {
            let old = std::mem::replace(&mut job.record.order, next);
            job.dir.set_record(&job.record)?;
            self.queue.remove(&old);
            self.queue.insert(next, id.clone());
        }
        Ok(())
    }

    pub(super) fn status_of(&self, job: &Job) -> JobStatus {
        let JobRecord { job: id, spec, state, submitted_at, message, results, .. } = job.record.clone();
        let state = match state {
            JobState::Queued { .. } => {
                let before =
                    |other: &&Job| other.record.order < job.record.order && !other.is_over() && other.record.state != JobState::Uploading;
                JobState::Queued { ahead: self.jobs.values().filter(before).count() as u32 }
            }
            state => state,
        };
        JobStatus { job: id, name: spec.name, state, last_seq: *job.appended.borrow(), submitted_at, message, results }
    }
}

fn unknown(id: &JobId) -> Failure {
    Failure::new(Code::JobNotFound, format!("this worker has no job {id}; 'webrtc-client status' lists those that it has"))
}

impl Job {
    pub(super) fn new(dir: JobDir, record: JobRecord, last_seq: u64) -> Self {
        let JobRecord { job, spec, state, submitted_at, message, results, .. } = record.clone();
        let status = JobStatus { job, name: spec.name, state, last_seq, submitted_at, message, results };
        Job {
            dir,
            record,
            status: watch::Sender::new(status),
            appended: watch::Sender::new(last_seq),
            runner: None,
            held_until: None,
            started: false,
        }
    }

    pub(super) fn id(&self) -> JobId {
        self.record.job.clone()
    }

    /// Whether its client has stayed away from its upload for longer than its place is held.
    pub(super) fn is_abandoned(&self) -> bool {
        self.record.state == JobState::Uploading && self.held_until.is_some_and(|until| until < Instant::now())
    }

    pub(super) fn is_over(&self) -> bool {
        matches!(self.record.state, JobState::Ended { .. })
    }

    /// The one door for every change of state.
    pub(super) fn set_state(&mut self, state: JobState) -> Result<(), Failure> {
        tracing::info!(job = %self.record.job, from = ?self.record.state, to = ?state, "a job's state");
        self.record.state = state;
        if self.is_over() {
            self.record.ended_at.get_or_insert(now_ms() / 1000);
        }
        self.dir.set_record(&self.record)
    }

    /// Appends to the journal; only while no runner does.
    pub(super) fn append(&mut self, event: JobEvent) -> Result<(), Failure> {
        let seq = Journal::open(&self.dir.journal())?.append(now_ms(), [event])?;
        self.appended.send_replace(seq);
        Ok(())
    }

    /// Ends a job that no runner has ended.
    pub(super) fn end_by_agent(&mut self, outcome: Outcome, message: &str) -> Result<(), Failure> {
        self.append(JobEvent::JobEnded { outcome, message: message.to_owned() })?;
        self.record.message = message.to_owned();
        self.set_state(JobState::Ended { outcome })
    }

    /// Takes over what the runner says at its end.
    pub(super) fn finish(&mut self, end: RunnerEnd) -> Result<(), Failure> {
        if let Some(manifest) = end.results {
            let encoded = manifest.encode();
            self.dir.set_results_manifest(&encoded)?;
            self.record.results = Some(manifest.summary(&encoded));
        }
        self.record.message = end.ended.message;
        self.appended.send_replace(end.ended.last_seq);
        self.set_state(JobState::Ended { outcome: end.ended.outcome })
    }
}
