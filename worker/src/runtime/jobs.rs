//! The worker's jobs: a durable queue, and one supervising task for each that runs.
//!
//! * every job is a directory with a record ([`super::workspace`]); the table here is rebuilt from them at start
//! * jobs run in the order of their submission, `parallel` at a time; one that still uploads lets others pass
//! * a journal has one writer at a time: the agent before and after its runner, the runner in between
//! * at start, runners that are alive are taken up again, and jobs whose runner is gone are ended with the reason

mod outlook;
mod table;

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use shared::{
    domain::{
        error::{Code, Failure},
        id::{CommandId, JobId},
        job::{Command, CommandState, JobEvent, JobSpec, JobState, JobStatus, Outcome},
        manifest::{Hash, Manifest, ManifestSummary},
    },
    runtime::files::Source,
};
use tokio::{sync::watch, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use self::outlook::Outlook;
use self::table::{Door, Job, RunnerEnd, Table};
use super::{
    checkpoint, journal, now_ms,
    runner::{self, Attached, End},
    workspace::{Ended, JobDir, JobRecord, Workspace},
};
use crate::domain::{stay::Over, trainer::TrainerSettings};

/// Jobs that may wait or run at the same time.
const MAX_ACTIVE: usize = 100;

/// The jobs of this worker. Clones share them.
#[derive(Clone)]
pub struct Jobs {
    inner: Arc<Inner>,
}

struct Inner {
    workspace: Workspace,
    settings: TrainerSettings,
    exe: PathBuf,
    parallel: usize,
    table: Mutex<Table>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Jobs {
    /// Opens the jobs below `root` and takes up what was running. `exe` is this program: a runner is started from it.
    ///
    /// # Errors
    /// [`Code::BadFile`] when the folder cannot be read. A single job that cannot be read is logged and left alone.
    pub async fn open(
        root: &Path,
        settings: TrainerSettings,
        exe: PathBuf,
        parallel: usize,
        stop: CancellationToken,
    ) -> Result<Self, Failure> {
        let workspace = Workspace::open(root)?;
        let inner = Inner { workspace, settings, exe, parallel: parallel.max(1), table: Mutex::default(), tasks: TaskTracker::new(), stop };
        let jobs = Jobs { inner: Arc::new(inner) };
        for dir in jobs.inner.workspace.jobs()? {
            if let Err(failure) = jobs.take_up(dir.clone()) {
                tracing::warn!(job = %dir.root().display(), %failure, "a job cannot be taken up");
            }
        }
        let running: Vec<JobId> = jobs.table().jobs.values().filter(|job| job.record.state == JobState::Running).map(Job::id).collect();
        for job in running {
            jobs.supervise(job);
        }
        jobs.start_next();
        Ok(jobs)
    }

    fn take_up(&self, dir: JobDir) -> Result<(), Failure> {
        let record = dir.record()?;
        let last_seq = journal::last_seq(&dir.journal())?;
        let job = Job::new(dir, record, last_seq);
        let mut table = self.table();
        table.queue.insert(job.record.order, job.id());
        table.jobs.insert(job.id(), job);
        Ok(())
    }

    /// The job of this specification and package: a new one, or the one that is there already (then `true`).
    ///
    /// # Errors
    /// [`Code::InvalidRequest`] for a specification that is not acceptable, [`Code::RateLimited`] when too many jobs wait,
    /// [`Code::NoSpace`] or [`Code::BadFile`] when it cannot be recorded.
    pub fn submit(&self, spec: JobSpec, package: ManifestSummary, owner: &str) -> Result<(JobStatus, bool), Failure> {
        spec.check()?;
        if let Some(name) = &spec.trainer {
            self.inner.settings.find(name)?;
        }
        let id = spec.job_id(&package.id);
        let mut table = self.table();
        if table.jobs.contains_key(&id) {
            table.renew_place(&id)?;
            drop(table);
            self.publish();
            return Ok((self.status(&id)?, true));
        }
        table.may_enter()?;
        let record = JobRecord {
            job: id.clone(),
            spec,
            package,
            state: JobState::Uploading,
            order: table.next_order(),
            owner: owner.to_owned(),
            submitted_at: now_ms() / 1000,
            ended_at: None,
            fetched_at: None,
            message: String::new(),
            results: None,
        };
        let dir = self.inner.workspace.job(&id);
        dir.create()?;
        dir.set_record(&record)?;
        tracing::info!(job = %id, name = %record.spec.name, bytes = package.bytes, "a job was submitted");
        table.enter(Job::new(dir, record, 0))?;
        drop(table);
        Ok((self.status(&id)?, false))
    }

    /// Everything a transfer needs to know of a job that uploads.
    ///
    /// # Errors
    /// [`Code::JobNotFound`], [`Code::WrongState`] when its package is not awaited.
    pub fn awaited_package(&self, id: &JobId) -> Result<(ManifestSummary, String), Failure> {
        let table = self.table();
        let job = table.job(id)?;
        if job.record.state != JobState::Uploading {
            return Err(Failure::new(Code::WrongState, "the worker has this job's package already"));
        }
        Ok((job.record.package, job.record.owner.clone()))
    }

    /// A job's package is whole, in this folder: the job is queued, or ended when there is nothing in it to run.
    ///
    /// # Errors
    /// [`Code::JobNotFound`], [`Code::NoSpace`] or [`Code::BadFile`].
    pub fn uploaded(&self, id: &JobId, package: &Path) -> Result<(), Failure> {
        let mut table = self.table();
        let job = table.job_mut(id)?;
        if job.record.state != JobState::Uploading {
            return Ok(());
        }
        job.dir.link_package(package)?;
        let planned = job.dir.plan(&job.record.spec, &self.inner.settings);
        match planned {
            Ok(_) => job.set_state(JobState::Queued { ahead: 0 })?,
            Err(failure) => job.end_by_agent(Outcome::Failed, &failure.message)?,
        }
        drop(table);
        self.start_next();
        Ok(())
    }

    /// The client of an unfinished upload has gone: its place is held until then.
    pub fn left(&self, id: &JobId, held_until: Instant) {
        if let Ok(job) = self.table().job_mut(id)
            && job.record.state == JobState::Uploading
        {
            job.held_until = Some(held_until);
        }
    }

    /// A job as a list shows it.
    ///
    /// # Errors
    /// [`Code::JobNotFound`].
    pub fn status(&self, id: &JobId) -> Result<JobStatus, Failure> {
        let table = self.table();
        let job = table.job(id)?;
        Ok(table.status_of(job))
    }

    /// The newest jobs, oldest first.
    pub fn list(&self, most: usize) -> Vec<JobStatus> {
        let table = self.table();
        let newest: Vec<&JobId> = table.queue.values().rev().take(most).collect();
        newest.into_iter().rev().filter_map(|id| table.jobs.get(id)).map(|job| table.status_of(job)).collect()
    }

    /// Takes one job from now on: one that is here and not over, or else the first that comes.
    pub fn take_one(&self) {
        let mut table = self.table();
        let here = table.queue.values().find(|id| table.jobs.get(*id).is_some_and(|job| !job.is_over())).cloned();
        table.door = here.map_or(Door::One, Door::Shut);
    }

    /// How the one job ended, once it has.
    pub fn over(&self) -> Option<Over> {
        let table = self.table();
        let Door::Shut(one) = &table.door else { return None };
        let job = table.jobs.get(one).filter(|job| !job.started)?;
        let JobState::Ended { outcome } = job.record.state else { return None };
        Some(Over { outcome, unfetched: job.record.results.is_some() && job.record.fetched_at.is_none() })
    }

    /// Whether a job runs, or waits for its turn.
    pub fn busy(&self) -> bool {
        self.table().jobs.values().any(|job| job.started || matches!(job.record.state, JobState::Queued { .. } | JobState::Running))
    }

    /// Jobs that run or wait.
    pub fn active(&self) -> u32 {
        self.table().jobs.values().filter(|job| !job.is_over()).count() as u32
    }

    /// Word of every change of a job's state.
    ///
    /// # Errors
    /// [`Code::JobNotFound`].
    pub fn watch(&self, id: &JobId) -> Result<watch::Receiver<JobStatus>, Failure> {
        Ok(self.table().job(id)?.status.subscribe())
    }

    /// A job's directory.
    ///
    /// # Errors
    /// [`Code::JobNotFound`].
    pub fn dir(&self, id: &JobId) -> Result<JobDir, Failure> {
        Ok(self.table().job(id)?.dir.clone())
    }

    /// A job's journal, and word of every append.
    ///
    /// # Errors
    /// [`Code::JobNotFound`].
    pub fn journal(&self, id: &JobId) -> Result<(PathBuf, watch::Receiver<u64>), Failure> {
        let table = self.table();
        let job = table.job(id)?;
        Ok((job.dir.journal(), job.appended.subscribe()))
    }

    /// The directory of a job that has results, and their manifest's bytes.
    ///
    /// # Errors
    /// [`Code::JobNotFound`], [`Code::WrongState`] when there are none yet, [`Code::BadFile`].
    pub fn results(&self, id: &JobId) -> Result<(JobDir, Vec<u8>), Failure> {
        let table = self.table();
        let job = table.job(id)?;
        if job.record.results.is_none() {
            return Err(Failure::new(Code::WrongState, "the job has no results that can be fetched yet"));
        }
        let path = job.dir.results_manifest();
        let bytes =
            std::fs::read(&path).map_err(|error| Failure::new(Code::BadFile, format!("{} cannot be read: {error}", path.display())))?;
        Ok((job.dir.clone(), bytes))
    }

    /// The results of a job have arrived at a client.
    ///
    /// # Errors
    /// [`Code::JobNotFound`], [`Code::NoSpace`] or [`Code::BadFile`].
    pub fn fetched(&self, id: &JobId) -> Result<(), Failure> {
        let mut table = self.table();
        let job = table.job_mut(id)?;
        job.record.fetched_at = Some(now_ms() / 1000);
        job.dir.set_record(&job.record)
    }

    /// Forgets jobs that ended before `ended_before`, or whose results were fetched before `fetched_before` (Unix seconds), and
    /// removes what they left; gives the packages that the others need.
    pub fn forget_old(&self, ended_before: u64, fetched_before: u64) -> HashSet<Hash> {
        let mut table = self.table();
        let old = |job: &Job| {
            let before = |at: Option<u64>, limit: u64| at.is_some_and(|at| at < limit);
            job.is_over() && !job.started && (before(job.record.ended_at, ended_before) || before(job.record.fetched_at, fetched_before))
        };
        let gone: Vec<JobId> = table.jobs.values().filter(|job| old(job)).map(Job::id).collect();
        for id in gone {
            let Some(job) = table.jobs.remove(&id) else { continue };
            table.queue.remove(&job.record.order);
            match job.dir.remove() {
                Ok(()) => tracing::info!(job = %id, "an old job was removed"),
                Err(failure) => tracing::warn!(job = %id, %failure, "an old job could not be removed"),
            }
        }
        table.jobs.values().map(|job| job.record.package.id).collect()
    }

    /// Stops or cancels a job. How it went is in the journal, as [`JobEvent::CommandAdvanced`].
    ///
    /// # Errors
    /// [`Code::JobNotFound`], [`Code::WrongState`] when the job is over, or what the runner refuses.
    pub async fn command(&self, id: &JobId, command_id: CommandId, command: Command) -> Result<(), Failure> {
        let runner = {
            let mut table = self.table();
            let job = table.job_mut(id)?;
            match job.record.state {
                JobState::Ended { .. } => return Err(Failure::new(Code::WrongState, "the job is over already")),
                JobState::Uploading | JobState::Queued { .. } if !job.started => {
                    for state in [CommandState::Received, CommandState::Applied, CommandState::Observed] {
                        let id = command_id.clone();
                        job.append(JobEvent::CommandAdvanced { id, command, state, message: String::new() })?;
                    }
                    job.end_by_agent(Outcome::Cancelled, "cancelled before it began")?;
                    None
                }
                _ => Some(job.runner.clone()),
            }
        };
        match runner {
            None => {
                self.start_next();
                Ok(())
            }
            Some(Some(runner)) => match runner.command(command_id, command).await? {
                (CommandState::Refused, message) => Err(Failure::new(Code::WrongState, message)),
                _ => Ok(()),
            },
            Some(None) => Err(Failure::new(Code::Unavailable, "the job's runner is only starting; try again in a moment")),
        }
    }

    /// Waits until every supervising task has ended; the runners go on by themselves.
    pub async fn drain(&self) {
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.inner.table.lock().expect("no panic happens under this lock")
    }

    /// Starts queued jobs while there is room.
    fn start_next(&self) {
        let starting: Vec<JobId> = {
            let mut table = self.table();
            let busy = table.jobs.values().filter(|job| job.started).count();
            let next: Vec<JobId> = table
                .queue
                .values()
                .filter(|id| table.jobs.get(*id).is_some_and(|job| !job.started && matches!(job.record.state, JobState::Queued { .. })))
                .take(self.inner.parallel.saturating_sub(busy))
                .cloned()
                .collect();
            for id in &next {
                if let Some(job) = table.jobs.get_mut(id) {
                    job.started = true;
                }
            }
            next
        };
        for id in starting {
            self.supervise(id);
        }
        self.publish();
    }

    /// Tells every watcher its job's present state, where it has changed.
    fn publish(&self) {
        let table = self.table();
        for job in table.jobs.values() {
            let status = table.status_of(job);
            job.status.send_if_modified(|known| {
                let changed = known.state != status.state || known.results != status.results;
                if changed {
                    *known = status;
                }
                changed
            });
        }
    }

    /// Runs one job to its end, in a task of its own.
    fn supervise(&self, id: JobId) {
        if let Ok(job) = self.table().job_mut(&id) {
            job.started = true;
        }
        let jobs = self.clone();
        self.inner.tasks.spawn(async move {
            let stop = jobs.inner.stop.clone();
            // At the agent's end the runner goes on; the next agent takes it up.
            if stop.run_until_cancelled(jobs.run(&id)).await.is_some() {
                jobs.start_next();
            }
        });
    }

    async fn run(&self, id: &JobId) {
        let result = self.run_inner(id).await;
        if let Some(dir) = self.record_end(id, result) {
            let _ = tokio::task::spawn_blocking(move || checkpoint::remove_if_settled(&dir)).await;
        }
    }

    /// Takes over how a job ended; gives its directory.
    fn record_end(&self, id: &JobId, result: Result<RunnerEnd, Failure>) -> Option<JobDir> {
        let mut table = self.table();
        let job = table.job_mut(id).ok()?;
        job.started = false;
        job.runner = None;
        let ended = match result {
            Ok(ended) => job.finish(ended),
            Err(failure) => job.end_by_agent(Outcome::Failed, &failure.message),
        };
        if let Err(failure) = ended {
            tracing::error!(job = %id, %failure, "the end of a job could not be recorded");
        }
        Some(job.dir.clone())
    }

    async fn run_inner(&self, id: &JobId) -> Result<RunnerEnd, Failure> {
        let (dir, running) = {
            let table = self.table();
            let job = table.job(id)?;
            (job.dir.clone(), job.record.state == JobState::Running)
        };
        let handle = match self.take_up_runner(id, &dir, running).await? {
            Attached::Running(handle) => handle,
            Attached::Ended(ended) => return Ok(self.with_results(&dir, ended).await),
            Attached::Lost => return self.settle(&dir).await,
        };
        let handle = Arc::new(handle);
        self.table().job_mut(id)?.runner = Some(handle.clone());
        let mut appended = handle.appended();
        let end = {
            let mut ending = std::pin::pin!(handle.ended());
            loop {
                self.forward(id, *appended.borrow_and_update());
                tokio::select! {
                    end = &mut ending => break end,
                    changed = appended.changed() => if changed.is_err() { break ending.await },
                }
            }
        };
        match end {
            End::Ended(ended) => Ok(self.with_results(&dir, ended).await),
            End::Lost => self.settle(&dir).await,
        }
    }

    /// The runner of a job: the one that is there, or a new one.
    async fn take_up_runner(&self, id: &JobId, dir: &JobDir, running: bool) -> Result<Attached, Failure> {
        if running {
            let found = runner::attach(dir).await?;
            // The agent may have been killed between its decision and the runner's start.
            if !matches!(found, Attached::Lost) || dir.runner_pid().exists() {
                return Ok(found);
            }
        } else {
            self.table().job_mut(id)?.set_state(JobState::Running)?;
            self.publish();
        }
        runner::spawn(&self.inner.exe, dir, &self.inner.settings).await.map(Attached::Running)
    }

    /// Brings a job whose runner is gone to its end.
    async fn settle(&self, dir: &JobDir) -> Result<RunnerEnd, Failure> {
        let grace = Duration::from_secs(self.inner.settings.grace_secs.into());
        let ended = runner::settle_lost(dir, grace).await?;
        Ok(self.with_results(dir, ended).await)
    }

    fn forward(&self, id: &JobId, seq: u64) {
        if let Ok(job) = self.table().job(id) {
            job.appended.send_if_modified(|known| std::mem::replace(known, seq.max(*known)) < seq);
        }
    }

    /// Reads and hashes what the job left behind.
    async fn with_results(&self, dir: &JobDir, ended: Ended) -> RunnerEnd {
        let (dir, whole) = (dir.clone(), ended.outcome == Outcome::Completed);
        let hashing = tokio::task::spawn_blocking(move || -> Result<Option<Manifest>, Failure> {
            let folder = dir.results();
            if !whole {
                checkpoint::restore(&dir);
            }
            if !folder.is_dir() {
                return Ok(None);
            }
            let manifest = Source::folder(&folder)?.scan(&mut |_| {}, &CancellationToken::new())?;
            Ok((!manifest.entries.is_empty()).then_some(manifest))
        });
        let results = match hashing.await {
            Ok(Ok(manifest)) => manifest,
            Ok(Err(failure)) if failure.code == Code::BadPackage => None,
            Ok(Err(failure)) => {
                tracing::error!(%failure, "the results of a job cannot be read");
                None
            }
            Err(error) => {
                tracing::error!(%error, "reading results ended unexpectedly");
                None
            }
        };
        RunnerEnd { ended, results }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(workspace: &Workspace, order: u64, state: JobState, ended_at: Option<u64>, fetched_at: Option<u64>) -> JobDir {
        let job: JobId = format!("job{order}").parse().unwrap();
        let dir = workspace.job(&job);
        dir.create().unwrap();
        let record = JobRecord {
            job,
            spec: JobSpec { name: "x".into(), trainer: None, configs: vec![], labels: None, attempt: 0 },
            package: ManifestSummary { id: Hash([order as u8; 32]), encoded_len: 1, files: 1, chunks: 1, bytes: 1 },
            state,
            order,
            owner: "0011".into(),
            submitted_at: 1,
            ended_at,
            fetched_at,
            message: String::new(),
            results: None,
        };
        dir.set_record(&record).unwrap();
        dir
    }

    #[tokio::test]
    async fn only_jobs_that_are_over_and_old_are_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let workspace = Workspace::open(folder.path()).unwrap();
        let ended = JobState::Ended { outcome: Outcome::Completed };
        let dirs = [
            record(&workspace, 1, ended, Some(100), None),
            record(&workspace, 2, ended, Some(900), Some(950)),
            record(&workspace, 3, ended, Some(900), None),
            record(&workspace, 4, JobState::Uploading, None, None),
        ];
        let settings = TrainerSettings::default();
        let jobs = Jobs::open(folder.path(), settings, "no-runner-is-started".into(), 1, CancellationToken::new()).await.unwrap();
        let needed = jobs.forget_old(500, 960);
        assert_eq!(dirs.map(|dir| dir.root().exists()), [false, false, true, true]);
        assert_eq!(needed, HashSet::from([Hash([3; 32]), Hash([4; 32])]));
        let left: Vec<String> = jobs.list(10).into_iter().map(|status| status.job.to_string()).collect();
        assert_eq!(left, ["job3", "job4"]);
    }

    #[tokio::test]
    async fn a_worker_for_one_job_refuses_another_unless_the_first_was_given_up() {
        let folder = tempfile::tempdir().unwrap();
        let workspace = Workspace::open(folder.path()).unwrap();
        record(&workspace, 1, JobState::Ended { outcome: Outcome::Failed }, Some(1), None);
        let settings = TrainerSettings::default();
        let jobs = Jobs::open(folder.path(), settings, "no-runner-is-started".into(), 1, CancellationToken::new()).await.unwrap();
        let package = ManifestSummary { id: Hash([250; 32]), encoded_len: 1, files: 1, chunks: 1, bytes: 1 };
        let spec = |name: &str| JobSpec { name: name.into(), trainer: None, configs: vec![], labels: None, attempt: 0 };
        let submit = |name: &str| jobs.submit(spec(name), package, "anna").map(|(status, _)| status.job);
        jobs.take_one();
        assert_eq!(jobs.outlook(&spec("a"), &package).unwrap().refused, None);
        let first = submit("a").unwrap();
        let refused = submit("b").unwrap_err();
        assert_eq!(refused.code, Code::Unavailable);
        assert_eq!(jobs.outlook(&spec("b"), &package).unwrap().refused, Some(refused));
        assert_eq!(submit("a").unwrap(), first, "the same job again is no other");
        jobs.left(&first, Instant::now() - Duration::from_secs(1));
        let second = submit("b").unwrap();
        assert_eq!(jobs.status(&first).unwrap().state, JobState::Ended { outcome: Outcome::Cancelled });
        assert_eq!(jobs.over(), None, "the one job is another now");
        jobs.command(&second, "c".parse().unwrap(), Command::Cancel).await.unwrap();
        assert_eq!(jobs.over(), Some(Over { outcome: Outcome::Cancelled, unfetched: false }));
        assert!(submit("c").is_err());
    }

    #[tokio::test]
    async fn an_outlook_says_place_and_refusal_and_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let workspace = Workspace::open(folder.path()).unwrap();
        for order in 1..=MAX_ACTIVE as u64 {
            record(&workspace, order, JobState::Uploading, None, None);
        }
        record(&workspace, 200, JobState::Ended { outcome: Outcome::Completed }, Some(1), None);
        let settings = TrainerSettings::default();
        let jobs = Jobs::open(folder.path(), settings, "no-runner-is-started".into(), 1, CancellationToken::new()).await.unwrap();
        let spec = JobSpec { name: "new".into(), trainer: None, configs: vec![], labels: None, attempt: 0 };
        let package = ManifestSummary { id: Hash([250; 32]), encoded_len: 1, files: 1, chunks: 1, bytes: 1 };
        let outlook = jobs.outlook(&spec, &package).unwrap();
        assert_eq!((outlook.ahead, outlook.known), (0, None), "who uploads does not run before");
        assert_eq!(outlook.refused.unwrap(), jobs.submit(spec.clone(), package, "anna").unwrap_err());
        assert_eq!(outlook.job, spec.job_id(&package.id));
        assert!(!workspace.job(&outlook.job).root().exists());
        let strange = JobSpec { trainer: Some("strange".into()), ..spec };
        assert_eq!(jobs.outlook(&strange, &package).unwrap_err().code, Code::BadPackage);
    }

    #[tokio::test]
    async fn an_upload_keeps_its_place_as_long_as_it_is_held() {
        for (held, first) in [(true, true), (false, false)] {
            let folder = tempfile::tempdir().unwrap();
            let settings = TrainerSettings::default();
            let jobs = Jobs::open(folder.path(), settings, "no-runner-is-started".into(), 1, CancellationToken::new()).await.unwrap();
            let submit = |name: &str, package: u8| {
                let spec = JobSpec { name: name.into(), trainer: None, configs: vec![], labels: None, attempt: 0 };
                let package = ManifestSummary { id: Hash([package; 32]), encoded_len: 1, files: 1, chunks: 1, bytes: 1 };
                jobs.submit(spec, package, "anna").unwrap().0.job
            };
            let (away, other) = (submit("away", 1), submit("other", 2));
            let now = Instant::now();
            jobs.left(&away, if held { now + Duration::from_secs(1000) } else { now });
            assert_eq!(submit("away", 1), away);
            let order: Vec<JobId> = jobs.list(10).into_iter().map(|status| status.job).collect();
            assert_eq!(order, if first { [away, other] } else { [other, away] });
        }
    }
}
