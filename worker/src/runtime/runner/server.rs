//! The runner's ear: a Unix socket in the job's directory, for this user only.

use std::{
    fs::{self, File, Permissions},
    os::{fd::AsRawFd, unix::fs::PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use shared::domain::{
    error::Failure,
    id::CommandId,
    job::{Command, CommandState},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{
        UnixListener, UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{Semaphore, mpsc, oneshot, watch},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::protocol::{FromRunner, MAX_LINE, ToRunner, encode};
use crate::runtime::workspace::{Ended, JobDir, failure};

/// How many agents may be connected: one works, a second may be its successor.
const CONNECTIONS: usize = 8;
/// How many commands wait for the job.
const REQUESTS: usize = 16;
/// How long a line may take to be written to an agent that does not read.
const WRITE: Duration = Duration::from_secs(10);

/// A command, and where its answer goes.
pub(super) struct Request {
    pub(super) id: CommandId,
    pub(super) command: Command,
    pub(super) reply: oneshot::Sender<(CommandState, String)>,
}

/// The listening socket and its connections.
pub(super) struct Server {
    path: PathBuf,
    ended: watch::Sender<Option<Ended>>,
    closing: CancellationToken,
    tasks: TaskTracker,
}

#[derive(Clone)]
struct Connection {
    appended: watch::Receiver<u64>,
    ended: watch::Receiver<Option<Ended>>,
    requests: mpsc::Sender<Request>,
}

impl Server {
    /// Listens in the job's directory; requests come out of the receiver.
    pub(super) fn start(dir: &JobDir, appended: watch::Receiver<u64>) -> Result<(Self, mpsc::Receiver<Request>), Failure> {
        let path = dir.runner_sock();
        let listen = || {
            let _ = fs::remove_file(&path);
            let short = ShortPath::to(&path)?;
            let listener = UnixListener::bind(short.path())?;
            fs::set_permissions(&path, Permissions::from_mode(0o600))?;
            Ok(listener)
        };
        let listener = listen().map_err(|error| failure("listen at", &path, &error))?;
        let (requests, receiver) = mpsc::channel(REQUESTS);
        let (ended, ended_receiver) = watch::channel(None);
        let server = Server { path, ended, closing: CancellationToken::new(), tasks: TaskTracker::new() };
        let connection = Connection { appended, ended: ended_receiver, requests };
        server.tasks.spawn(accept(listener, connection, server.closing.clone(), server.tasks.clone()));
        Ok((server, receiver))
    }

    /// Tells all agents of the end, and closes.
    pub(super) async fn finish(self, ended: Ended) {
        // First of all, so that whoever has heard of the end finds no socket.
        let _ = fs::remove_file(&self.path);
        self.ended.send_replace(Some(ended));
        self.closing.cancel();
        self.tasks.close();
        if timeout(WRITE, self.tasks.wait()).await.is_err() {
            tracing::debug!("an agent did not take the job's end; it finds it in outcome.json");
        }
    }
}

async fn accept(listener: UnixListener, connection: Connection, closing: CancellationToken, tasks: TaskTracker) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            () = closing.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match (accepted, places.clone().try_acquire_owned()) {
            (Ok((stream, _)), Ok(place)) => {
                let connection = connection.clone();
                tasks.spawn(async move {
                    connection.serve(stream).await;
                    drop(place);
                });
            }
            (Ok(_), Err(_)) => tracing::warn!("too many agents at the runner's socket"),
            (Err(error), _) => {
                tracing::warn!(%error, "the runner's socket");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

impl Connection {
    /// Writes what happens. Lines are read by a task of its own (reading a line cannot be interrupted half way), which hands answers over.
    async fn serve(self, stream: UnixStream) {
        let (read, mut write) = stream.into_split();
        let (answers, mut answered) = mpsc::channel(REQUESTS);
        let mut reading = tokio::spawn(read_commands(read, self.requests, answers));
        let (mut appended, mut ended) = (self.appended, self.ended);
        appended.mark_changed();
        loop {
            let message = tokio::select! {
                biased;
                Some(answer) = answered.recv() => answer,
                Ok(()) = appended.changed() => FromRunner::Appended { seq: *appended.borrow_and_update() },
                over = ended.wait_for(Option::is_some) => match over {
                    Ok(over) => FromRunner::Ended(over.clone().expect("waited for it")),
                    Err(_) => break,
                },
                _ = &mut reading => return,
            };
            let last = matches!(message, FromRunner::Ended(_));
            if send(&mut write, &message).await.is_err() || last {
                break;
            }
        }
        reading.abort();
    }
}

async fn send(write: &mut OwnedWriteHalf, message: &FromRunner) -> std::io::Result<()> {
    timeout(WRITE, write.write_all(encode(message).as_bytes())).await?
}

async fn read_commands(read: OwnedReadHalf, requests: mpsc::Sender<Request>, answers: mpsc::Sender<FromRunner>) {
    let mut read = BufReader::new(read);
    let mut line = Vec::new();
    loop {
        line.clear();
        match (&mut read).take(MAX_LINE as u64).read_until(b'\n', &mut line).await {
            Ok(length) if length > 0 && line.ends_with(b"\n") => {}
            _ => return,
        }
        let Ok(ToRunner::Command { id, command }) = serde_json::from_slice(&line) else { continue };
        let (reply, answer) = oneshot::channel();
        // A closed queue or a dropped answer: the job is just ending.
        let _ = requests.send(Request { id: id.clone(), command, reply }).await;
        let (state, message) = answer.await.unwrap_or_else(|_| (CommandState::Refused, "the job has ended".into()));
        if answers.send(FromRunner::Command { id, state, message }).await.is_err() {
            return;
        }
    }
}

/// A way to a socket that fits into the 108 bytes a socket's address may have, however deep its directory is.
pub(super) struct ShortPath {
    path: PathBuf,
    /// Keeps the directory's descriptor open, through which the path goes.
    _folder: Option<File>,
}

impl ShortPath {
    pub(super) fn to(path: &Path) -> std::io::Result<Self> {
        let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else { return Err(std::io::ErrorKind::InvalidInput.into()) };
        if path.as_os_str().len() < 100 {
            return Ok(ShortPath { path: path.to_owned(), _folder: None });
        }
        let folder = File::open(folder)?;
        let path = PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd())).join(name);
        Ok(ShortPath { path, _folder: Some(folder) })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}
