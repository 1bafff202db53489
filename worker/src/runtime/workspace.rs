//! Where jobs live on the worker's disk.
//!
//! ```text
//! <root>/jobs/<JobId>/           0700
//!   job.json                     specification and state; written by the agent
//!   package  (or package/)       the package's files, read-only: a folder, or a link to one
//!   runner.json  runner.lock  runner.pid  runner.sock  runner.log      the runner's
//!   journal                      everything that happened
//!   config/step-N.yaml           configurations that we wrote
//!   run/                         the trainer's working directory: links to the package's files, by their paths
//!   results/<run>/               what the trainer wrote
//!   checkpoints/<step>/          copies of the best model while it trains ([`super::checkpoint`])
//!   trainer.log  trainer.pid     its output; its process group, while there is one
//!   outcome.json                 how the job ended: the last thing written
//! ```

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, symlink},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use shared::domain::{
    error::{Code, Failure},
    id::JobId,
    job::{JobSpec, JobState, Outcome},
    manifest::ManifestSummary,
    path::RelPath,
};

use crate::domain::{
    config::MAX_CONFIG,
    package::{self, PackageFile, Plan},
    trainer::TrainerSettings,
};

/// All jobs of a worker.
#[derive(Debug, Clone)]
pub struct Workspace {
    root: PathBuf,
}

/// What the agent keeps about a job: `job.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobRecord {
    /// Which job.
    pub job: JobId,
    /// What to do.
    pub spec: JobSpec,
    /// The package.
    pub package: ManifestSummary,
    /// Where the job is.
    pub state: JobState,
    /// Its place in the queue: jobs run in this order.
    pub order: u64,
    /// The client that submitted it: its static public key as text.
    pub owner: String,
    /// When it was submitted: Unix seconds.
    pub submitted_at: u64,
    /// When it ended: Unix seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<u64>,
    /// When its results were last fetched: Unix seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fetched_at: Option<u64>,
    /// How it ended, in a sentence; empty before.
    #[serde(default)]
    pub message: String,
    /// What can be fetched, once it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub results: Option<ManifestSummary>,
}

/// How a job ended: `outcome.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// How.
    pub outcome: Outcome,
    /// One sentence.
    pub message: String,
    /// The journal's last seq.
    pub last_seq: u64,
}

impl Workspace {
    /// A workspace at this folder, made if it is not there.
    ///
    /// # Errors
    /// [`Code::BadFile`] or [`Code::NoSpace`].
    pub fn open(root: &Path) -> Result<Self, Failure> {
        make_private(&root.join("jobs"))?;
        let root = root.canonicalize().map_err(|error| failure("open", root, &error))?;
        Ok(Workspace { root })
    }

    /// A job's directory, whether it is there or not.
    pub fn job(&self, job: &JobId) -> JobDir {
        JobDir::at(&self.root.join("jobs").join(job.as_str()))
    }

    /// The jobs that there are, in no order. What is not a job's directory is left alone.
    ///
    /// # Errors
    /// [`Code::BadFile`].
    pub fn jobs(&self) -> Result<Vec<JobDir>, Failure> {
        let folder = self.root.join("jobs");
        let entries = fs::read_dir(&folder).map_err(|error| failure("list", &folder, &error))?;
        let mut jobs = Vec::new();
        for entry in entries {
            let path = entry.map_err(|error| failure("list", &folder, &error))?.path();
            if path.join("job.json").is_file() {
                jobs.push(JobDir::at(&path));
            }
        }
        Ok(jobs)
    }
}

/// One job's directory; see the module for what is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobDir {
    root: PathBuf,
}

macro_rules! places {
    ($($(#[$doc:meta])* $name:ident => $file:literal;)*) => {
        $($(#[$doc])* pub fn $name(&self) -> PathBuf { self.root.join($file) })*
    };
}

impl JobDir {
    /// The directory at this path, whether it is there or not.
    pub fn at(root: &Path) -> Self {
        JobDir { root: root.to_owned() }
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    places! {
        /// The agent's record.
        job_json => "job.json";
        /// The package's files, or a link to their folder.
        package => "package";
        /// What the runner was told.
        runner_json => "runner.json";
        /// Locked as long as the runner lives.
        runner_lock => "runner.lock";
        /// Which process the runner is.
        runner_pid => "runner.pid";
        /// Where the runner listens.
        runner_sock => "runner.sock";
        /// What the runner's own log says.
        runner_log => "runner.log";
        /// Everything that happened.
        journal => "journal";
        /// Configurations that we wrote.
        config => "config";
        /// The trainer's working directory.
        run => "run";
        /// What the trainer wrote.
        results => "results";
        /// Copies of the steps' best models, while the job runs.
        checkpoints => "checkpoints";
        /// The manifest of that, once the job has ended.
        results_manifest => "results.manifest";
        /// The trainer's output.
        trainer_log => "trainer.log";
        /// The trainer's process group, while there is one.
        trainer_pid => "trainer.pid";
        /// How the job ended.
        outcome_json => "outcome.json";
    }

    /// Makes the directory, for its owner only.
    ///
    /// # Errors
    /// [`Code::BadFile`] or [`Code::NoSpace`].
    pub fn create(&self) -> Result<(), Failure> {
        make_private(&self.root)
    }

    /// The agent's record.
    ///
    /// # Errors
    /// [`Code::BadFile`].
    pub fn record(&self) -> Result<JobRecord, Failure> {
        let path = self.job_json();
        read_json(&path)?.ok_or_else(|| Failure::new(Code::BadFile, format!("{} is missing", path.display())))
    }

    /// Writes the agent's record.
    ///
    /// # Errors
    /// [`Code::BadFile`] or [`Code::NoSpace`].
    pub fn set_record(&self, record: &JobRecord) -> Result<(), Failure> {
        write_json(&self.job_json(), record)
    }

    /// Writes the manifest of the results.
    ///
    /// # Errors
    /// [`Code::BadFile`] or [`Code::NoSpace`].
    pub fn set_results_manifest(&self, encoded: &[u8]) -> Result<(), Failure> {
        let path = self.results_manifest();
        write_whole(&path, encoded).map_err(|error| failure("write", &path, &error))
    }

    /// Makes the package's files, in their folder of the store, this job's.
    ///
    /// # Errors
    /// [`Code::BadFile`] or [`Code::NoSpace`].
    pub fn link_package(&self, folder: &Path) -> Result<(), Failure> {
        let link = self.package();
        match symlink(folder, &link) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(failure("make", &link, &error)),
            _ => Ok(()),
        }
    }

    /// How the job ended, once it has.
    ///
    /// # Errors
    /// [`Code::BadFile`].
    pub fn ended(&self) -> Result<Option<Ended>, Failure> {
        read_json(&self.outcome_json())
    }

    /// The package's files.
    ///
    /// # Errors
    /// [`Code::BadFile`]; [`Code::BadPackage`] where a name cannot be a package's.
    pub fn package_files(&self) -> Result<Vec<PackageFile>, Failure> {
        files_of(&self.package())
    }

    /// A small file of the package.
    ///
    /// # Errors
    /// [`Code::BadFile`], also where it is longer than `limit`.
    pub fn package_file(&self, path: &RelPath, limit: u64) -> Result<Vec<u8>, Failure> {
        let full = self.package().join(path.as_str());
        read_bounded(&full, limit)
    }

    /// Removes the job and everything it left.
    ///
    /// # Errors
    /// [`Code::BadFile`].
    pub fn remove(&self) -> Result<(), Failure> {
        // Without its record it is no job any more, however far the rest comes.
        let path = self.job_json();
        fs::remove_file(&path).and_then(|()| fs::remove_dir_all(&self.root)).map_err(|error| failure("remove", &self.root, &error))
    }

    /// What the package asks for; the agent asks before it queues a job, the runner before it begins.
    ///
    /// # Errors
    /// [`Code::BadPackage`] with what is wrong; [`Code::BadFile`].
    pub fn plan(&self, spec: &JobSpec, settings: &TrainerSettings) -> Result<Plan, Failure> {
        plan_of(&self.package(), spec, settings)
    }

    /// Makes the trainer's folders, and links to the package's files in its working directory.
    ///
    /// The package is not copied (it may have many gigabytes) and its files are read-only: a trainer that writes to its labels fails.
    ///
    /// # Errors
    /// [`Code::BadFile`] or [`Code::NoSpace`].
    pub fn lay_out(&self) -> Result<(), Failure> {
        for folder in [self.config(), self.run(), self.results()] {
            make_private(&folder)?;
        }
        let package = self.package();
        let package = package.canonicalize().map_err(|error| failure("open", &package, &error))?;
        for file in self.package_files()? {
            let link = self.run().join(file.path.as_str());
            if let Some(parent) = link.parent() {
                make_private(parent)?;
            }
            match symlink(package.join(file.path.as_str()), &link) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failure("make", &link, &error)),
                _ => {}
            }
        }
        Ok(())
    }
}

/// What a package asks for whose files are in this folder.
///
/// # Errors
/// [`Code::BadPackage`], or [`Code::BadFile`] where it cannot be read.
pub fn plan_of(folder: &Path, spec: &JobSpec, settings: &TrainerSettings) -> Result<Plan, Failure> {
    let files = files_of(folder)?;
    package::plan(&files, &mut |path| read_bounded(&folder.join(path.as_str()), MAX_CONFIG), spec, settings)
}

fn files_of(folder: &Path) -> Result<Vec<PackageFile>, Failure> {
    let mut files = Vec::new();
    walk(folder, "", &mut files)?;
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}

fn walk(folder: &Path, prefix: &str, files: &mut Vec<PackageFile>) -> Result<(), Failure> {
    for entry in fs::read_dir(folder).map_err(|error| failure("list", folder, &error))? {
        let entry = entry.map_err(|error| failure("list", folder, &error))?;
        let metadata = entry.metadata().map_err(|error| failure("read", &entry.path(), &error))?;
        let name = entry.file_name();
        let name = name.to_str().ok_or_else(|| Failure::new(Code::BadPackage, format!("{name:?} in the package is not UTF-8")))?;
        let path: RelPath = format!("{prefix}{name}").parse()?;
        if metadata.is_dir() {
            walk(&entry.path(), &format!("{path}/"), files)?;
        } else if metadata.is_file() {
            files.push(PackageFile { path, size: metadata.len() });
        }
    }
    Ok(())
}

/// Reads a JSON file of ours; `None` where there is none.
///
/// # Errors
/// [`Code::BadFile`].
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, Failure> {
    if !path.exists() {
        return Ok(None);
    }
    let bytes = read_bounded(path, 16 * 1024 * 1024)?;
    let value =
        serde_json::from_slice(&bytes).map_err(|error| Failure::new(Code::BadFile, format!("{} is damaged ({error})", path.display())))?;
    Ok(Some(value))
}

/// Writes a JSON file of ours so that it is there as a whole or not at all, power cuts included.
///
/// # Errors
/// [`Code::BadFile`] or [`Code::NoSpace`].
pub fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), Failure> {
    let mut bytes = serde_json::to_vec_pretty(value).map_err(|error| Failure::new(Code::Internal, error.to_string()))?;
    bytes.push(b'\n');
    write_whole(path, &bytes).map_err(|error| failure("write", path, &error))
}

fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().ok_or_else(|| io::Error::other("it has no folder"))?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = folder.join(format!(".{name}.new"));
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    File::open(folder)?.sync_all()
}

/// Writes a file for a program of the same user, not for keeping.
pub(crate) fn write_text(path: &Path, text: &str) -> Result<(), Failure> {
    let write = || OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?.write_all(text.as_bytes());
    write().map_err(|error| failure("write", path, &error))
}

fn read_bounded(path: &Path, limit: u64) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let read = || -> io::Result<usize> { File::open(path)?.take(limit + 1).read_to_end(&mut bytes) };
    let length = { read }().map_err(|error| failure("read", path, &error))?;
    if length as u64 > limit {
        return Err(Failure::new(Code::BadFile, format!("{} is longer than {limit} bytes", path.display())));
    }
    Ok(bytes)
}

fn make_private(folder: &Path) -> Result<(), Failure> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(|error| failure("make", folder, &error))
}

/// What a person needs to know about an I/O error.
pub(crate) fn failure(what: &str, path: &Path, error: &io::Error) -> Failure {
    let path = path.display();
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            Failure::new(Code::NoSpace, format!("cannot {what} {path}: the worker's disk is full; free some space"))
        }
        _ => Failure::new(Code::BadFile, format!("cannot {what} {path}: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use shared::domain::manifest::Hash;

    use super::*;

    fn job() -> (tempfile::TempDir, JobDir) {
        let folder = tempfile::tempdir().unwrap();
        let job = Workspace::open(folder.path()).unwrap().job(&"0123abcd".parse().unwrap());
        job.create().unwrap();
        (folder, job)
    }

    #[test]
    fn a_record_survives_and_lists_its_job() {
        let (folder, job) = job();
        let workspace = Workspace::open(folder.path()).unwrap();
        assert_eq!(workspace.jobs().unwrap(), []);
        let record = JobRecord {
            job: "0123abcd".parse().unwrap(),
            spec: JobSpec { name: "x".into(), trainer: None, configs: vec![], labels: None, attempt: 0 },
            package: ManifestSummary { id: Hash([1; 32]), encoded_len: 1, files: 1, chunks: 1, bytes: 1 },
            state: JobState::Running,
            order: 1,
            owner: "0011".into(),
            submitted_at: 5,
            ended_at: None,
            fetched_at: None,
            message: String::new(),
            results: None,
        };
        job.set_record(&record).unwrap();
        assert_eq!(workspace.jobs().unwrap(), std::slice::from_ref(&job));
        assert_eq!(job.record().unwrap(), record);
        assert_eq!(job.ended().unwrap(), None);
        fs::write(job.job_json(), "{\"job\": ").unwrap();
        assert_eq!(job.record().unwrap_err().code, Code::BadFile);
    }

    #[test]
    fn a_trainer_sees_the_package_at_its_own_paths() {
        let (folder, job) = job();
        let store = folder.path().join("store");
        fs::create_dir_all(store.join("top")).unwrap();
        fs::write(store.join("top/x.pkg.slp"), "labels").unwrap();
        fs::write(store.join("a.yaml"), "a: 1").unwrap();
        symlink(&store, job.package()).unwrap();
        symlink("/etc/passwd", store.join("evil")).unwrap();
        let files = job.package_files().unwrap();
        assert_eq!(files.iter().map(|file| (file.path.as_str(), file.size)).collect::<Vec<_>>(), [("a.yaml", 4), ("top/x.pkg.slp", 6)]);
        job.lay_out().unwrap();
        job.lay_out().unwrap();
        assert_eq!(fs::read_to_string(job.run().join("top/x.pkg.slp")).unwrap(), "labels");
        assert!(!job.run().join("evil").exists());
        assert_eq!(job.package_file(&files[0].path, 4).unwrap(), b"a: 1");
        assert!(job.package_file(&files[0].path, 3).is_err());
    }
}
