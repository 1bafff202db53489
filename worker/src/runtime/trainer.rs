//! The trainer's process: a group of its own, nothing on its input, a cleaned environment, its output in a file.
//!
//! A file and no pipe: a pipe that nobody drains (the runner was killed) would hang the trainer, a broken one end it.

use std::{
    ffi::OsString,
    fs::OpenOptions,
    io,
    os::unix::{fs::OpenOptionsExt, process::ExitStatusExt},
    path::Path,
    process::{ExitStatus, Stdio},
};

use tokio::process::{Child, Command};

use super::processes::Group;
use crate::domain::{
    command::Invocation,
    outcome::{Exit, NotStarted},
    trainer::TrainerSettings,
};

/// A running trainer.
pub struct TrainerProcess {
    child: Child,
    group: Option<Group>,
}

/// Environment variables that every trainer gets, besides the operator's; a name that ends in `*` is a beginning. All others, among
/// them whatever secrets the worker was started with, are not handed on.
const ENVIRONMENT: [&str; 17] = [
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "LANG",
    "LC_*",
    "TZ",
    "TMPDIR",
    "LD_LIBRARY_PATH",
    "CUDA*",
    "NVIDIA*",
    "NCCL_*",
    "VIRTUAL_ENV",
    "CONDA_*",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "XDG_CACHE_HOME",
];

impl TrainerProcess {
    /// Starts it in `folder`, its output appended to `log`.
    ///
    /// # Errors
    /// Why it could not be started.
    pub fn start(call: &Invocation, folder: &Path, log: &Path) -> Result<Self, NotStarted> {
        let other = |error: io::Error| NotStarted::Other(error.to_string());
        let out = OpenOptions::new().append(true).create(true).mode(0o600).open(log).map_err(other)?;
        let err = out.try_clone().map_err(other)?;
        let (program, arguments) = call.argv.split_first().ok_or_else(|| NotStarted::Other("its command is empty".into()))?;
        let child = Command::new(program)
            .args(arguments)
            .current_dir(folder)
            .env_clear()
            .envs(environment(std::env::vars_os(), &call.env))
            .env("PYTHONUNBUFFERED", "1")
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .process_group(0)
            .spawn()
            .map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => NotStarted::NotFound,
                io::ErrorKind::PermissionDenied => NotStarted::NotAllowed,
                _ => other(error),
            })?;
        let group = child.id().and_then(Group::of);
        Ok(TrainerProcess { child, group })
    }

    /// Its process group; `None`: it was gone at once.
    pub fn group(&self) -> Option<&Group> {
        self.group.as_ref()
    }

    /// Its process id, until it has been waited for.
    pub fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// Waits for its end. May be dropped and called again.
    pub async fn wait(&mut self) -> Exit {
        match self.child.wait().await {
            Ok(status) => exit(status),
            Err(error) => {
                tracing::error!(%error, "the trainer's exit status is lost");
                Exit::Code(-1)
            }
        }
    }
}

fn exit(status: ExitStatus) -> Exit {
    status.code().map(Exit::Code).or_else(|| status.signal().map(Exit::Signal)).unwrap_or(Exit::Code(-1))
}

fn environment(all: impl Iterator<Item = (OsString, OsString)>, more: &[String]) -> Vec<(OsString, OsString)> {
    let wanted = |name: &str| {
        let usual = ENVIRONMENT.iter().any(|allowed| match allowed.strip_suffix('*') {
            Some(prefix) => name.starts_with(prefix),
            None => name == *allowed,
        });
        usual || more.iter().any(|allowed| allowed == name)
    };
    all.filter(|(name, _)| name.to_str().is_some_and(wanted)).collect()
}

/// Settings whose commands work from any folder: words that name an existing file relative to `base` are made absolute.
///
/// The trainer's working directory is the job's, not the one that the operator was in when writing `python3 tools/train.py`.
pub fn anchored(mut settings: TrainerSettings, base: &Path) -> TrainerSettings {
    let anchor = |word: &mut String| {
        let is_path = word.contains('/') && !word.starts_with('/') && !word.contains('{');
        if is_path && let Some(absolute) = base.join(word.as_str()).to_str().filter(|path| Path::new(path).exists()) {
            *word = absolute.to_owned();
        }
    };
    settings.sleap_nn.iter_mut().for_each(anchor);
    settings.sleap_train.iter_mut().for_each(anchor);
    settings.trainers.values_mut().flat_map(|custom| &mut custom.command).for_each(anchor);
    settings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_of_the_worker_stay_with_it() {
        let all = ["PATH", "LC_ALL", "CUDA_VISIBLE_DEVICES", "WEBRTC_INVITE", "AWS_SECRET_ACCESS_KEY", "MINE", "PATHS"];
        let all = all.map(|name| (OsString::from(name), OsString::from("x"))).into_iter();
        let kept: Vec<_> = environment(all, &["MINE".into()]).into_iter().map(|(name, _)| name.into_string().unwrap()).collect();
        assert_eq!(kept, ["PATH", "LC_ALL", "CUDA_VISIBLE_DEVICES", "MINE"]);
    }

    #[test]
    fn relative_commands_are_anchored_where_they_were_meant() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("tools")).unwrap();
        std::fs::write(folder.path().join("tools/train.py"), "").unwrap();
        let words = ["python3", "tools/train.py", "tools/none.py", "/abs/x"].map(str::to_owned).to_vec();
        let settings = anchored(TrainerSettings { sleap_nn: words, ..TrainerSettings::default() }, folder.path());
        let script = folder.path().join("tools/train.py");
        assert_eq!(settings.sleap_nn, ["python3", script.to_str().unwrap(), "tools/none.py", "/abs/x"]);
    }

    #[tokio::test]
    async fn a_process_gets_the_clean_room_that_it_was_promised() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let script = "env; pwd; cat; ps -o pgid= -p $$ 2>/dev/null; echo to-stderr >&2; kill -INT $$; echo survived SIGINT";
        let argv = ["sh", "-c", script].map(str::to_owned).to_vec();
        let call = Invocation { config: None, argv, env: vec![], can_stop: false };
        let mut process = TrainerProcess::start(&call, folder.path(), &log).unwrap();
        let group = process.group().cloned();
        assert_eq!(process.wait().await, Exit::Signal(2));
        assert!(group.is_none_or(|group| group.members().is_empty()));
        let text = std::fs::read_to_string(&log).unwrap();
        assert!(text.contains("PYTHONUNBUFFERED=1") && text.contains("to-stderr"), "{text}");
        assert!(!text.contains("CARGO_MANIFEST_DIR"), "{text}");
    }

    #[tokio::test]
    async fn what_cannot_be_started_says_why() {
        let folder = tempfile::tempdir().unwrap();
        let start = |program: &str| {
            let call = Invocation { config: None, argv: vec![program.into()], env: vec![], can_stop: false };
            TrainerProcess::start(&call, folder.path(), &folder.path().join("log")).err().unwrap()
        };
        assert_eq!(start("no-such-trainer-anywhere"), NotStarted::NotFound);
        let file = folder.path().join("plain");
        std::fs::write(&file, "x").unwrap();
        assert_eq!(start(file.to_str().unwrap()), NotStarted::NotAllowed);
    }
}
