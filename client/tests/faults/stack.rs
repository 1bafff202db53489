//! The three programs as a lab has them, on loopback, each in a folder of its own below one home.

use std::{
    ffi::OsStr,
    fs,
    hash::{DefaultHasher, Hasher},
    io::{BufRead, BufReader, Read},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Condvar, Mutex, MutexGuard},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use serde_json::Value;
use tempfile::TempDir;

/// How long anything may take before a test fails with everything that was said.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

/// What the worker runs as its trainer.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Trainer {
    /// One of `test_files/odd_trainers`.
    Odd(&'static str),
    /// The real one.
    Lite,
    /// One that is not installed.
    Missing,
}

impl Trainer {
    fn command(self) -> Vec<String> {
        let test_files = root().join("test_files");
        let script = match self {
            Trainer::Odd(name) => test_files.join(format!("odd_trainers/{name}.py")),
            Trainer::Lite => test_files.join("trainer/sleap_nn_lite.py"),
            Trainer::Missing => return vec!["no-such-trainer".into()],
        };
        [python(), script].map(|path| path.to_str().unwrap().to_owned()).into()
    }
}

/// What is to be the case before the worker starts.
pub(crate) struct Plan {
    /// What the worker trains with.
    pub(crate) trainer: Trainer,
    /// More arguments of the server.
    pub(crate) server: Vec<String>,
    /// More arguments of the worker.
    pub(crate) worker: Vec<String>,
    /// `WEBRTC_LOG` of all programs.
    pub(crate) log: &'static str,
    /// The size of a disk of its own for the worker's data.
    pub(crate) disk: Option<&'static str>,
}

impl Plan {
    /// An ordinary lab.
    pub(crate) fn new(trainer: Trainer) -> Self {
        Plan { trainer, server: vec![], worker: vec![], log: "info", disk: None }
    }

    /// Starts server and worker; both are ready.
    pub(crate) fn start(self) -> Stack {
        let mut stack = self.start_server();
        stack.start_worker();
        stack
    }

    /// Starts the server alone.
    pub(crate) fn start_server(self) -> Stack {
        let home = tempfile::tempdir().unwrap();
        let mut command = program("webrtc-server", home.path(), self.log);
        command.args(["--listen", "127.0.0.1:0", "--json", "--data-dir"]).arg(home.path().join("server")).args(&self.server);
        let server = Program::start(&mut command);
        let listening: Value = serde_json::from_str(&server.out.wait(|line| line.contains("listening"))).unwrap();
        let url = listening["http"].as_str().unwrap().to_owned();
        Stack { plan: self, url, server, worker: None, home }
    }
}

/// A server, a worker, and whoever uses them. Nothing of it outlives the test.
pub(crate) struct Stack {
    plan: Plan,
    /// Where the server listens.
    pub(crate) url: String,
    /// The server.
    pub(crate) server: Program,
    /// The worker.
    pub(crate) worker: Option<Program>,
    home: TempDir,
}

impl Stack {
    /// The folder of everything.
    pub(crate) fn home(&self) -> &Path {
        self.home.path()
    }

    /// The file with the worker's submit invite.
    pub(crate) fn invite_file(&self) -> PathBuf {
        self.home().join("invite.txt")
    }

    /// The worker's submit invite.
    pub(crate) fn invite(&self) -> shared::domain::invite::Invite {
        fs::read_to_string(self.invite_file()).unwrap().parse().unwrap()
    }

    /// Where the worker keeps its data.
    pub(crate) fn worker_data(&self) -> PathBuf {
        self.home().join("worker")
    }

    /// Starts the worker and waits until it is in its room.
    pub(crate) fn start_worker(&mut self) {
        let words: Vec<String> = self.plan.trainer.command();
        let config = self.file("worker.toml", format!("[worker]\nsleap_nn = {words:?}\ngrace_secs = 2\n"));
        let data = self.worker_data();
        fs::create_dir_all(&data).unwrap();
        let mut command = program("webrtc-worker", self.home(), self.plan.log);
        if let Some(size) = self.plan.disk {
            command = on_a_disk_of_its_own(command, &data, size);
        }
        command.args(["--server", &self.url, "--name", "demo", "--json", "--bind", "127.0.0.1:0", "--data-dir"]).arg(data);
        command.arg("--invite-file").arg(self.invite_file()).arg("--config").arg(config).args(&self.plan.worker);
        let worker = Program::start(&mut command);
        worker.out.wait(|line| line.contains("\"type\":\"invite\""));
        self.worker = Some(worker);
    }

    /// Writes a file below the home.
    pub(crate) fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.home().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    /// A folder with the package of the demo, whose centroid model is trained for so many epochs.
    pub(crate) fn package(&self, epochs: u32) -> String {
        let folder = self.home().join("flies");
        fs::create_dir_all(&folder).unwrap();
        for entry in fs::read_dir(flies("folder")).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), folder.join(entry.file_name())).unwrap();
        }
        let config = folder.join("centroid.yaml");
        let text = fs::read_to_string(&config).unwrap().replace("max_epochs: 8", &format!("max_epochs: {epochs}"));
        assert!(text.contains(&format!("max_epochs: {epochs}\n")));
        fs::write(config, text).unwrap();
        folder.to_str().unwrap().to_owned()
    }

    /// The client with these arguments, the invite and `--json`, not yet started.
    pub(crate) fn client(&self, args: &[&str]) -> Command {
        let mut command = program("webrtc-client", self.home(), self.plan.log);
        if self.plan.log == "info" {
            command.env_remove("WEBRTC_LOG");
        }
        command.args(args).args(["--json", "--bind", "127.0.0.1:0"]);
        if !args.contains(&"--invite-file") {
            command.arg("--invite-file").arg(self.invite_file());
        }
        command
    }

    /// Runs the client to its end.
    pub(crate) fn run(&self, args: &[&str]) -> Said {
        Program::start(&mut self.client(args)).end()
    }

    /// Trains the centroid model of the demo's package, to the end.
    pub(crate) fn train(&self, epochs: u32) -> Said {
        self.start_training(epochs).end()
    }

    /// The same, only begun.
    pub(crate) fn start_training(&self, epochs: u32) -> Program {
        let package = self.package(epochs);
        let output = self.output();
        Program::start(&mut self.client(&["train", &package, "--config", "centroid.yaml", "--output", output.to_str().unwrap()]))
    }

    /// Where models go.
    pub(crate) fn output(&self) -> PathBuf {
        self.home().join("models")
    }

    /// The processes that belong to this stack, by what they run or where.
    pub(crate) fn processes(&self) -> Vec<Process> {
        processes_of(self.home())
    }

    /// The trainer's processes.
    pub(crate) fn trainers(&self) -> Vec<Process> {
        self.processes().into_iter().filter(|process| process.command.contains("test_files")).collect()
    }
}

impl Drop for Stack {
    /// A runner and its trainer outlive their agent, by design; a test's must not.
    fn drop(&mut self) {
        if thread::panicking() {
            let worker = self.worker.as_ref().map(|worker| worker.err.text()).unwrap_or_default();
            eprintln!("--- server\n{}\n--- worker\n{}\n---", tail(&self.server.err.text()), tail(&worker));
        }
        for process in self.processes() {
            let _ = Command::new("kill").args(["-9", &process.pid.to_string()]).stderr(Stdio::null()).status();
        }
    }
}

/// A process of this machine.
#[derive(Debug)]
pub(crate) struct Process {
    /// Its id.
    pub(crate) pid: u32,
    /// Its command line, blanks between the words.
    pub(crate) command: String,
}

/// The processes that name this folder or work in it, apart from dead ones.
pub(crate) fn processes_of(folder: &Path) -> Vec<Process> {
    let folder = folder.to_str().unwrap();
    let process = |entry: fs::DirEntry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let command = fs::read_to_string(entry.path().join("cmdline")).ok()?.replace('\0', " ");
        let cwd = fs::read_link(entry.path().join("cwd")).unwrap_or_default();
        let ours = command.contains(folder) || cwd.to_string_lossy().contains(folder);
        (ours && pid != std::process::id()).then_some(Process { pid, command })
    };
    fs::read_dir("/proc").unwrap().flatten().filter_map(process).collect()
}

/// A program that runs, and everything it says.
pub(crate) struct Program {
    child: Child,
    /// What it says on stdout.
    pub(crate) out: Arc<Heard>,
    /// What it says on stderr.
    pub(crate) err: Arc<Heard>,
    /// When it was started.
    pub(crate) began: Instant,
}

impl Program {
    /// Starts it.
    pub(crate) fn start(command: &mut Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let began = Instant::now();
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let out = Heard::listen(child.stdout.take().unwrap());
        let err = Heard::listen(child.stderr.take().unwrap());
        Program { child, out, err, began }
    }

    /// Waits for an event on stdout.
    pub(crate) fn event(&self, mut wanted: impl FnMut(&Value) -> bool) -> Value {
        let line = self.out.wait(|line| serde_json::from_str(line).is_ok_and(|event| wanted(&event)));
        serde_json::from_str(&line).unwrap()
    }

    /// Waits for an entry of the journal.
    pub(crate) fn journal(&self, kind: &str) -> Value {
        self.event(|event| event["entry"]["event"]["event"] == kind)
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// The most memory that it has had, in MB.
    pub(crate) fn peak_memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id())).expect("it runs");
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
    }

    /// Stops it in the middle of whatever it does while something else is done: none of its threads runs meanwhile.
    pub(crate) fn paused<T>(&self, meanwhile: impl FnOnce() -> T) -> T {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::STOP).unwrap();
        waitid(WaitId::Pid(pid), WaitIdOptions::STOPPED).unwrap();
        let done = meanwhile();
        kill_process(pid, Signal::CONT).unwrap();
        done
    }

    /// Ends it without a word.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Waits for its end.
    pub(crate) fn end(mut self) -> Said {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            match self.child.try_wait().unwrap() {
                Some(status) => break status,
                None if Instant::now() > deadline => {
                    panic!("it does not end; stdout:\n{}\nstderr:\n{}", tail(&self.out.text()), tail(&self.err.text()))
                }
                None => thread::sleep(Duration::from_millis(5)),
            }
        };
        let took = self.began.elapsed();
        let (stdout, stderr) = (self.out.whole(), self.err.whole());
        let events = stdout.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}"))).collect();
        Said { code: status.code().unwrap_or(-1), events, stdout, stderr, took }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The lines of one stream so far.
pub(crate) struct Heard {
    lines: Mutex<(Vec<String>, bool)>,
    changed: Condvar,
}

impl Heard {
    fn listen(stream: impl Read + Send + 'static) -> Arc<Self> {
        let heard = Arc::new(Heard { lines: Mutex::default(), changed: Condvar::new() });
        let told = heard.clone();
        thread::spawn(move || {
            let mut reader = BufReader::new(stream);
            let mut line = Vec::new();
            while reader.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
                told.lines().0.push(String::from_utf8_lossy(&line).trim_end_matches('\n').to_owned());
                told.changed.notify_all();
                line.clear();
            }
            told.lines().1 = true;
            told.changed.notify_all();
        });
        heard
    }

    fn lines(&self) -> MutexGuard<'_, (Vec<String>, bool)> {
        self.lines.lock().unwrap()
    }

    /// The first line of this kind, as soon as there is one.
    pub(crate) fn wait(&self, mut wanted: impl FnMut(&str) -> bool) -> String {
        let deadline = Instant::now() + PATIENCE;
        let mut seen = 0;
        let mut lines = self.lines();
        loop {
            if let Some(line) = lines.0[seen..].iter().find(|line| wanted(line)) {
                return line.clone();
            }
            seen = lines.0.len();
            let left = deadline.saturating_duration_since(Instant::now());
            if lines.1 || left.is_zero() {
                let text = tail(&lines.0.join("\n"));
                drop(lines);
                panic!("what was waited for did not come; instead:\n{text}");
            }
            lines = self.changed.wait_timeout(lines, left).unwrap().0;
        }
    }

    /// Everything so far.
    pub(crate) fn text(&self) -> String {
        self.lines().0.join("\n")
    }

    /// Everything, once the stream has ended.
    fn whole(&self) -> String {
        let ended = self.changed.wait_timeout_while(self.lines(), PATIENCE, |lines| !lines.1).unwrap().0;
        ended.0.join("\n")
    }
}

/// What a client said, and how it ended.
#[derive(Debug)]
pub(crate) struct Said {
    /// The exit code.
    pub(crate) code: i32,
    /// One a line of stdout.
    pub(crate) events: Vec<Value>,
    /// stdout.
    pub(crate) stdout: String,
    /// stderr.
    pub(crate) stderr: String,
    /// From its start to its end.
    pub(crate) took: Duration,
}

impl Said {
    /// It ended with this code, and one sentence with all of these words in it.
    #[track_caller]
    pub(crate) fn refuses(&self, code: i32, words: &[&str]) -> &Self {
        let errors: Vec<&str> = self.stderr.lines().filter(|line| line.starts_with("error: ")).collect();
        assert_eq!((self.code, errors.len()), (code, 1), "{}\n{}", self.stderr, tail(&self.stdout));
        for word in words {
            assert!(errors[0].contains(word), "no {word:?} in: {}", errors[0]);
        }
        self
    }

    /// The journal's events of a kind, in order.
    pub(crate) fn journal(&self, kind: &str) -> Vec<&Value> {
        self.entries().map(|entry| &entry["event"]).filter(|event| event["event"] == kind).collect()
    }

    fn entries(&self) -> impl Iterator<Item = &Value> {
        self.events.iter().filter(|event| event["type"] == "journal").map(|event| &event["entry"])
    }

    /// Every entry of the journal has arrived, once, in order.
    #[track_caller]
    pub(crate) fn journal_is_whole(&self) -> &Self {
        let seqs: Vec<u64> = self.entries().map(|entry| entry["seq"].as_u64().unwrap()).collect();
        assert!(seqs.iter().copied().eq(1..=seqs.len() as u64), "{seqs:?}");
        assert_eq!(self.entries().last().unwrap()["event"]["event"], "job_ended");
        self
    }

    /// The event that says how the job ended.
    #[track_caller]
    pub(crate) fn finished(&self) -> (&str, &str) {
        let event = self.events.iter().find(|event| event["type"] == "finished");
        let event = event.unwrap_or_else(|| panic!("no end: {}\n{}", self.stderr, tail(&self.stdout)));
        (event["outcome"].as_str().unwrap(), event["message"].as_str().unwrap())
    }
}

/// Waits until it is so.
#[track_caller]
pub(crate) fn until(what: &str, mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !so() {
        assert!(Instant::now() < deadline, "{what} did not come true");
        thread::sleep(Duration::from_millis(10));
    }
}

/// One of the demo's packages: `folder`, `zip`, `pkg` or `plain-slp`. Made once for all test processes; do not change it.
pub(crate) fn flies(kind: &str) -> PathBuf {
    let (script, slp) = (root().join("test_files/make_package.py"), root().join("test_files/trainer/slp.py"));
    let mut version = DefaultHasher::new();
    version.write(&[fs::read(&script).unwrap(), fs::read(slp).unwrap()].concat());
    let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("flies-{:x}", version.finish())).join(kind);
    // With the name that a user's file would have.
    let name = Path::new(match kind {
        "folder" => "flies",
        "zip" => "flies.zip",
        "pkg" => "flies.pkg.slp",
        _ => "plain.slp",
    });
    if !place.exists() {
        let own = place.with_extension(format!("new-{}-{:?}", std::process::id(), thread::current().id()));
        fs::create_dir_all(&own).unwrap();
        let mut command = Command::new(python());
        command.arg(script).args(["--frames", "8", "--kind", kind, "--output"]).arg(own.join(name));
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        if fs::rename(&own, &place).is_err() {
            // Another test was faster.
            fs::remove_dir_all(own).unwrap();
        }
    }
    place.join(name)
}

/// The last lines of a long text.
pub(crate) fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Python with what the trainers need.
fn python() -> PathBuf {
    let python = std::env::var_os("WEBRTC_TEST_PYTHON").map_or_else(|| root().join(".venv/bin/python"), PathBuf::from);
    assert!(python.is_file(), "{} is missing: run scripts/test, which sets it up, or name one in WEBRTC_TEST_PYTHON", python.display());
    python
}

/// A program of this workspace with an empty home directory.
fn program(name: impl AsRef<OsStr>, home: &Path, log: &str) -> Command {
    let path = Path::new(env!("CARGO_BIN_EXE_webrtc-client")).with_file_name(name.as_ref());
    assert!(path.is_file(), "{} is missing: run scripts/test, or cargo build --workspace --bins", path.display());
    let mut command = Command::new(path);
    command.current_dir(home).env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.env("HOME", home).env("XDG_CONFIG_HOME", home.join("config")).env("WEBRTC_LOG", log);
    command
}

/// The same command, in a mount namespace in which this folder is a disk of this size.
pub(crate) fn on_a_disk_of_its_own(command: Command, folder: &Path, size: &str) -> Command {
    let allowed = Command::new("unshare").args(["-Urm", "true"]).output().is_ok_and(|output| output.status.success());
    assert!(allowed, "this test mounts a small disk: it needs unshare (util-linux) and user namespaces without privileges");
    let mut wrapped = Command::new("unshare");
    wrapped.args(["-Urm", "sh", "-c", r#"mount -t tmpfs -o "size=$1" none "$2" && shift 2 && exec "$@""#, "sh", size]).arg(folder);
    wrapped.arg(command.get_program()).args(command.get_args()).env_clear();
    wrapped.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?)))).process_group(0);
    if let Some(home) = command.get_current_dir() {
        wrapped.current_dir(home);
    }
    wrapped
}
