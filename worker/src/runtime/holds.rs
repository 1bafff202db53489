//! Which packages the jobs need, as their records on the disk say it: true for the agent before and after a restart, and for
//! `webrtc-worker store` beside it.
//!
//! A job's record is written before its package is looked for in the store, and the store asks within its gate: a package that is
//! found for a new job is either needed by then, or gone before it is found.

use shared::{
    domain::{error::Failure, job::JobState},
    runtime::store::{Held, Holds, owner_key, package_at},
};

use super::workspace::{JobDir, Workspace};

impl Holds for Workspace {
    fn held(&self) -> Result<Vec<Held>, Failure> {
        Ok(self.jobs()?.iter().filter_map(held_by).collect())
    }
}

fn held_by(dir: &JobDir) -> Option<Held> {
    match dir.record() {
        Ok(record) => {
            let arriving = match record.state {
                JobState::Ended { .. } => return None,
                JobState::Uploading => true,
                _ => false,
            };
            Some(Held { owner: owner_key(&record.owner), package: record.package.id, by: record.job.to_string(), arriving })
        }
        // A record that cannot be read says nothing of whether the job is over: then its runner's last word does.
        Err(_) if dir.outcome_json().exists() => None,
        Err(_) => {
            let (owner, package) = package_at(&dir.package().read_link().ok()?)?;
            let by = dir.root().file_name()?.to_string_lossy().into_owned();
            Some(Held { owner, package, by, arriving: false })
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use shared::{
        domain::{
            id::JobId,
            job::{JobSpec, Outcome},
            manifest::{Hash, ManifestSummary},
        },
        runtime::store::Store,
    };

    use super::*;
    use crate::runtime::workspace::JobRecord;

    fn job(workspace: &Workspace, n: u8, state: JobState) -> JobDir {
        let job: JobId = format!("job{n}").parse().unwrap();
        let dir = workspace.job(&job);
        dir.create().unwrap();
        let record = JobRecord {
            job,
            spec: JobSpec { name: "x".into(), trainer: None, configs: vec![], labels: None, attempt: 0 },
            package: ManifestSummary { id: Hash([n; 32]), encoded_len: 1, files: 1, chunks: 1, bytes: 1 },
            state,
            order: u64::from(n),
            owner: "0011".into(),
            submitted_at: 1,
            ended_at: None,
            fetched_at: None,
            message: String::new(),
            results: None,
        };
        dir.set_record(&record).unwrap();
        dir
    }

    /// What another process, or the next agent, finds: nothing is kept in memory.
    fn found(root: &Path) -> Vec<(u8, bool)> {
        let mut held: Vec<_> =
            Workspace::open(root).unwrap().held().unwrap().iter().map(|held| (held.package.0[0], held.arriving)).collect();
        held.sort_unstable();
        held
    }

    #[test]
    fn jobs_that_are_not_over_need_their_packages_whatever_process_asks() {
        let folder = tempfile::tempdir().unwrap();
        let workspace = Workspace::open(folder.path()).unwrap();
        job(&workspace, 1, JobState::Ended { outcome: Outcome::Completed });
        job(&workspace, 2, JobState::Uploading);
        job(&workspace, 3, JobState::Queued { ahead: 0 });
        job(&workspace, 4, JobState::Running);
        assert_eq!(found(folder.path()), [(2, true), (3, false), (4, false)]);
        let held = workspace.held().unwrap();
        assert!(held.iter().all(|held| held.owner == owner_key("0011")));
        assert!(held.iter().any(|held| held.by == "job3"));
    }

    #[test]
    fn a_job_whose_record_is_damaged_keeps_its_package_until_its_runner_has_ended() {
        let folder = tempfile::tempdir().unwrap();
        let workspace = Workspace::open(folder.path()).unwrap();
        let store = Store::open(&folder.path().join("store"), None).unwrap();
        drop(store);
        let dir = job(&workspace, 5, JobState::Running);
        let files = folder.path().join(format!("store/packages/{}/{}/files", owner_key("0011"), Hash([9; 32])));
        fs::create_dir_all(&files).unwrap();
        dir.link_package(&files).unwrap();
        fs::write(dir.job_json(), "{\"job\": ").unwrap();
        assert_eq!(found(folder.path()), [(9, false)]);
        fs::write(dir.outcome_json(), "{}").unwrap();
        assert_eq!(found(folder.path()), []);
    }
}
