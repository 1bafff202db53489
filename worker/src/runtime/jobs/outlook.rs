//! What would become of a job, before it is one.

use std::path::Path;

use shared::domain::{
    error::{Code, Failure},
    id::JobId,
    job::{JobSpec, JobState, JobStatus},
    manifest::ManifestSummary,
};

use super::Jobs;
use crate::{
    domain::trainer::{Trainer, TrainerSettings},
    runtime::workspace::plan_of,
};

/// Names of running jobs that are told, at most.
const MAX_NAMES: usize = 8;

/// What the queue says of a job that somebody thinks of submitting.
#[derive(Debug, Clone, PartialEq)]
pub struct Outlook {
    /// The job that it would be.
    pub job: JobId,
    /// That job, where it is here already.
    pub known: Option<JobStatus>,
    /// Jobs that would run before it.
    pub ahead: u32,
    /// The names of the jobs that run now; a few.
    pub running: Vec<String>,
    /// Why it would be refused, where it would.
    pub refused: Option<Failure>,
}

impl Jobs {
    /// What [`Jobs::submit`] would do, without doing it.
    ///
    /// # Errors
    /// [`Code::InvalidRequest`] for a specification that is not acceptable, [`Code::BadPackage`] for a trainer that is not here.
    pub fn outlook(&self, spec: &JobSpec, package: &ManifestSummary) -> Result<Outlook, Failure> {
        spec.check()?;
        if let Some(name) = &spec.trainer {
            self.inner.settings.find(name)?;
        }
        let job = spec.job_id(&package.id);
        let table = self.table();
        let known = table.jobs.get(&job).map(|job| table.status_of(job));
        let own = table.jobs.get(&job).map_or(u64::MAX, |job| job.record.order);
        let waits = |state: JobState| matches!(state, JobState::Queued { .. } | JobState::Running);
        let ahead = table.jobs.values().filter(|other| other.record.order < own && waits(other.record.state)).count() as u32;
        let refused = known.is_none().then(|| table.may_enter().err()).flatten();
        let running = table.queue.values().filter_map(|id| table.jobs.get(id)).filter(|job| job.record.state == JobState::Running);
        Ok(Outlook {
            running: running.take(MAX_NAMES).map(|job| job.record.spec.name.clone()).collect(),
            ahead: known.as_ref().filter(|known| !waits_for_others(known.state)).map_or(ahead, |_| 0),
            job,
            known,
            refused,
        })
    }

    /// Who would train a job of this package, which is whole in this folder.
    ///
    /// # Errors
    /// [`Code::JobFailed`] when such a job would end the moment it is queued.
    pub fn preview(&self, spec: &JobSpec, package: &Path) -> Result<Trainer, Failure> {
        let fails = |failure: Failure| Failure::new(Code::JobFailed, format!("the job would fail at once: {}", failure.message));
        plan_of(package, spec, &self.inner.settings).map(|plan| plan.trainer).map_err(fails)
    }

    /// The operator's settings.
    pub fn settings(&self) -> &TrainerSettings {
        &self.inner.settings
    }
}

/// A job that runs or is over waits for nobody.
fn waits_for_others(state: JobState) -> bool {
    matches!(state, JobState::Uploading | JobState::Queued { .. })
}
