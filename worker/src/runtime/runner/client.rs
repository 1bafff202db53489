//! The agent's side of a runner: start it, find it again, command it, notice its end, and settle what it could not.

use std::{collections::HashMap, fs::OpenOptions, os::unix::fs::OpenOptionsExt, path::Path, process::Stdio, time::Duration};

use shared::domain::{
    error::{Code, Failure},
    id::CommandId,
    job::{Command, CommandState, JobEvent, Outcome},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixStream, unix::OwnedWriteHalf},
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
};

use super::{
    lock,
    protocol::{FromRunner, MAX_LINE, ToRunner, encode},
    server::ShortPath,
};
use crate::{
    domain::trainer::TrainerSettings,
    runtime::{
        journal::{Journal, JournalReader},
        now_ms,
        processes::Group,
        trainer::anchored,
        workspace::{Ended, JobDir, failure, read_json, write_json},
    },
};

/// How long a runner may take to answer a command, an fsync included.
const ANSWER: Duration = Duration::from_secs(10);
/// How often a runner that does not listen (yet, or any more) is tried.
const TRY: Duration = Duration::from_millis(50);

/// What is found in a job's directory.
pub enum Attached {
    /// A runner works on it.
    Running(RunnerHandle),
    /// It has ended.
    Ended(Ended),
    /// Its runner is gone and has left no outcome: [`settle_lost`] is due.
    Lost,
}

/// How a runner ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// With the job's outcome.
    Ended(Ended),
    /// Without one: [`settle_lost`] is due.
    Lost,
}

/// The agent's end of a runner. Dropping it leaves the runner alone.
pub struct RunnerHandle {
    appended: watch::Receiver<u64>,
    ended: watch::Receiver<Option<End>>,
    commands: mpsc::Sender<Asked>,
    task: JoinHandle<()>,
}

struct Asked {
    id: CommandId,
    command: Command,
    answer: oneshot::Sender<(CommandState, String)>,
}

impl Drop for RunnerHandle {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Starts a runner for a job, whose `job.json` and package are in place: `exe run-job <job dir>`.
///
/// # Errors
/// [`Code::WrongState`] when it has (or had) a runner; [`Code::BadFile`], [`Code::NoSpace`]; [`Code::Internal`] when `exe` cannot be run.
pub async fn spawn(exe: &Path, dir: &JobDir, settings: &TrainerSettings) -> Result<RunnerHandle, Failure> {
    let taken = || Failure::new(Code::WrongState, format!("the job in {} has been taken up already", dir.root().display()));
    let lock = lock::take(dir)?.ok_or_else(taken)?;
    if dir.runner_pid().exists() || dir.ended()?.is_some() {
        return Err(taken());
    }
    let here = std::env::current_dir().map_err(|error| failure("find", Path::new("."), &error))?;
    write_json(&dir.runner_json(), &anchored(settings.clone(), &here))?;
    let log = dir.runner_log();
    let open = || OpenOptions::new().append(true).create(true).mode(0o600).open(&log);
    let out = open().map_err(|error| failure("open", &log, &error))?;
    let err = out.try_clone().map_err(|error| failure("open", &log, &error))?;
    let mut child = tokio::process::Command::new(exe)
        .arg("run-job")
        .arg(dir.root())
        .stdin(Stdio::from(lock))
        .stdout(out)
        .stderr(err)
        .spawn()
        .map_err(|error| Failure::new(Code::Internal, format!("the runner {} cannot be started: {error}", exe.display())))?;
    // The command held our copy of the lock and is dropped here: from now on the runner alone holds it. It must be reaped when it ends.
    Ok(RunnerHandle::connect(dir.clone(), async move {
        match child.wait().await {
            Ok(status) => tracing::debug!(%status, "the runner has ended"),
            Err(error) => tracing::warn!(%error, "the runner was not waited for"),
        }
    }))
}

/// Finds out what has become of a job that was given to a runner, by this agent or by one before it.
///
/// # Errors
/// [`Code::BadFile`].
pub async fn attach(dir: &JobDir) -> Result<Attached, Failure> {
    if let Some(ended) = dir.ended()? {
        return Ok(Attached::Ended(ended));
    }
    if lock::take(dir)?.is_some() {
        // It may have ended between the two looks.
        return Ok(dir.ended()?.map_or(Attached::Lost, Attached::Ended));
    }
    Ok(Attached::Running(RunnerHandle::connect(dir.clone(), std::future::ready(()))))
}

/// Brings a job whose runner is gone to its end: the trainer's group is killed, the journal gets its last entry, `outcome.json` is written.
///
/// # Errors
/// [`Code::WrongState`] when there is a runner after all; [`Code::BadFile`], [`Code::NoSpace`].
pub async fn settle_lost(dir: &JobDir, grace: Duration) -> Result<Ended, Failure> {
    let _lock = lock::take(dir)?
        .ok_or_else(|| Failure::new(Code::WrongState, format!("the job in {} still has a runner", dir.root().display())))?;
    if let Some(ended) = dir.ended()? {
        return Ok(ended);
    }
    if let Some(Some(group)) = read_json::<Option<Group>>(&dir.trainer_pid())? {
        let left = group.terminate(grace).await;
        if left.is_empty() {
            let _ = std::fs::remove_file(dir.trainer_pid());
        } else {
            tracing::error!(?left, "processes of a lost job's trainer do not end");
        }
    }
    let mut journal = Journal::open(&dir.journal())?;
    let last = JournalReader::from_seq(&dir.journal(), journal.last_seq())?.read(1)?.pop();
    let (outcome, message) = match last.map(|entry| entry.event) {
        // It had come so far that only outcome.json was missing.
        Some(JobEvent::JobEnded { outcome, message }) => (outcome, message),
        _ => {
            let message = "the job's runner on the worker was lost (killed, or the machine restarted); models saved until then can be \
                           fetched. Submit the job again with --again";
            let (outcome, message) = (Outcome::Failed, message.to_owned());
            journal.append(now_ms(), [JobEvent::JobEnded { outcome, message: message.clone() }])?;
            (outcome, message)
        }
    };
    if let Some(sync) = journal.syncing() {
        sync().map_err(|error| failure("write", &dir.journal(), &error))?;
    }
    let ended = Ended { outcome, message, last_seq: journal.last_seq() };
    write_json(&dir.outcome_json(), &ended)?;
    Ok(ended)
}

impl RunnerHandle {
    fn connect(dir: JobDir, reaping: impl Future<Output = ()> + Send + 'static) -> Self {
        let (appended_sender, appended) = watch::channel(0);
        let (ended_sender, ended) = watch::channel(None);
        let (commands, asked) = mpsc::channel(16);
        let link = Link { dir, appended: appended_sender, ended: ended_sender, asked, waiting: HashMap::new() };
        let task = tokio::spawn(async move {
            tokio::join!(link.run(), reaping);
        });
        RunnerHandle { appended, ended, commands, task }
    }

    /// Tells the journal's last seq, whenever it has changed; closed when the runner has ended. 0 until it was heard of.
    pub fn appended(&self) -> watch::Receiver<u64> {
        self.appended.clone()
    }

    /// Gives a command; how far it is: received (durably), or further if its id came before; or refused, with the reason. Its later
    /// steps stand in the journal ([`JobEvent::CommandAdvanced`]).
    ///
    /// # Errors
    /// [`Code::WrongState`] when the runner has ended; [`Code::Unavailable`] when it does not answer (asking again is safe).
    pub async fn command(&self, id: CommandId, command: Command) -> Result<(CommandState, String), Failure> {
        let gone = || Failure::new(Code::WrongState, "the job has ended");
        let (answer, answered) = oneshot::channel();
        self.commands.send(Asked { id, command, answer }).await.map_err(|_| gone())?;
        match tokio::time::timeout(ANSWER, answered).await {
            Ok(Ok(state)) => Ok(state),
            Ok(Err(_)) if self.ended.borrow().is_some() => Err(gone()),
            _ => Err(Failure::new(Code::Unavailable, "the job's runner does not answer; try again")),
        }
    }

    /// How the runner ended, once it has.
    pub fn end(&self) -> Option<End> {
        self.ended.borrow().clone()
    }

    /// Waits for the runner's end.
    pub async fn ended(&self) -> End {
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await {
            Ok(end) => end.clone().unwrap_or(End::Lost),
            Err(_) => End::Lost,
        }
    }
}

/// The connection behind a handle.
struct Link {
    dir: JobDir,
    appended: watch::Sender<u64>,
    ended: watch::Sender<Option<End>>,
    asked: mpsc::Receiver<Asked>,
    waiting: HashMap<CommandId, oneshot::Sender<(CommandState, String)>>,
}

impl Link {
    /// Connects, as often as needed, until the runner's end is known.
    async fn run(mut self) {
        loop {
            if let Ok(short) = ShortPath::to(&self.dir.runner_sock())
                && let Ok(stream) = UnixStream::connect(short.path()).await
            {
                self.talk(stream).await;
                self.waiting.clear();
            }
            if let Some(end) = self.look() {
                self.ended.send_replace(Some(end));
                return;
            }
            tokio::time::sleep(TRY).await;
        }
    }

    /// Whether the runner has ended, by what lies on the disk.
    fn look(&self) -> Option<End> {
        let ended = |dir: &JobDir| dir.ended().ok().flatten();
        if let Some(ended) = ended(&self.dir) {
            self.appended.send_if_modified(|seq| std::mem::replace(seq, ended.last_seq) != ended.last_seq);
            return Some(End::Ended(ended));
        }
        match lock::take(&self.dir) {
            Ok(None) => None,
            Ok(Some(_lock)) => Some(ended(&self.dir).map_or(End::Lost, End::Ended)),
            Err(failure) => {
                tracing::warn!(%failure, "whether the runner lives cannot be seen");
                None
            }
        }
    }

    async fn talk(&mut self, stream: UnixStream) {
        let (read, mut write) = stream.into_split();
        let (lines_sender, mut lines) = mpsc::channel(16);
        let reading = tokio::spawn(read_lines(read, lines_sender));
        loop {
            tokio::select! {
                line = lines.recv() => match line {
                    Some(message) => self.take(message),
                    None => break,
                },
                Some(asked) = self.asked.recv() => if self.ask(&mut write, asked).await.is_err() { break },
            }
        }
        reading.abort();
    }

    fn take(&mut self, message: FromRunner) {
        match message {
            FromRunner::Appended { seq } => {
                self.appended.send_if_modified(|last| std::mem::replace(last, seq) != seq);
            }
            FromRunner::Command { id, state, message } => {
                if let Some(answer) = self.waiting.remove(&id) {
                    let _ = answer.send((state, message));
                }
            }
            // The same stands in outcome.json, which is looked at when the connection has ended.
            FromRunner::Ended(_) | FromRunner::Unknown => {}
        }
    }

    async fn ask(&mut self, write: &mut OwnedWriteHalf, asked: Asked) -> std::io::Result<()> {
        let line = encode(&ToRunner::Command { id: asked.id.clone(), command: asked.command });
        self.waiting.retain(|_, answer| !answer.is_closed());
        self.waiting.insert(asked.id, asked.answer);
        tokio::time::timeout(ANSWER, write.write_all(line.as_bytes())).await?
    }
}

async fn read_lines(read: tokio::net::unix::OwnedReadHalf, lines: mpsc::Sender<FromRunner>) {
    let mut read = BufReader::new(read);
    let mut line = Vec::new();
    loop {
        line.clear();
        match (&mut read).take(MAX_LINE as u64).read_until(b'\n', &mut line).await {
            Ok(length) if length > 0 && line.ends_with(b"\n") => {}
            _ => return,
        }
        if let Ok(message) = serde_json::from_slice(&line)
            && lines.send(message).await.is_err()
        {
            return;
        }
    }
}
