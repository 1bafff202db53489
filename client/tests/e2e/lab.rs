//! A laboratory: a server, a worker and people with clients, each with folders of its own, on an address of their own.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{Read, Write},
    net::TcpStream,
    ops::{Deref, DerefMut},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use rcgen::{BasicConstraints, Certificate, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use serde_json::Value;
use shared::domain::{manifest::Hash, message::HELD};
use tempfile::TempDir;

use super::{
    cable::{Cable, Side},
    package::Steady,
    program::Program,
};

/// What a lab is made of. Dropped, it leaves no process behind.
pub(crate) struct Lab {
    folder: TempDir,
    address: String,
    cable: Option<Cable>,
    server_side: Side,
    hold: u64,
    turn: Option<Arc<File>>,
    /// Whether the server speaks TLS, with a certificate of the lab's own CA.
    secure: bool,
}

/// A program that can be started again with the same folders.
pub(crate) struct Restartable {
    program: Program,
    log: PathBuf,
    command: Box<dyn Fn() -> Command>,
    ready: &'static str,
}

/// What one job left on the worker's disk.
pub(crate) struct JobFiles(PathBuf);

/// Hashes of the files below a folder, by their paths in it.
pub(crate) type Hashes = BTreeMap<PathBuf, Hash>;

impl Lab {
    /// A lab on this machine.
    pub(crate) fn new() -> Self {
        // Of the 16 million loopback addresses each lab has one, so that a restarted server finds its port free.
        static LABS: AtomicU32 = AtomicU32::new(1);
        let (process, lab) = (std::process::id(), LABS.fetch_add(1, Ordering::Relaxed));
        let address = format!("127.{}.{}.{}", 1 + process / 250 % 250, 1 + process % 250, lab);
        Lab { folder: tempfile::tempdir().unwrap(), address, cable: None, server_side: Side::Worker, hold: HELD, turn: None, secure: false }
    }

    /// A lab that moves many bytes: one at a time, whatever runs the tests.
    pub(crate) fn heavy() -> Self {
        // Labs of one test take their turn together.
        static TURN: Mutex<Weak<File>> = Mutex::new(Weak::new());
        let mut known = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let turn = known.upgrade().unwrap_or_else(|| {
            let turn = File::create(Path::new(env!("CARGO_TARGET_TMPDIR")).join("e2e.turn")).unwrap();
            turn.lock().unwrap();
            Arc::new(turn)
        });
        *known = Arc::downgrade(&turn);
        let mut lab = Lab::new();
        lab.turn = Some(turn);
        lab
    }

    /// A lab with a cable between worker and clients, and the server on one side of it.
    pub(crate) fn with_cable(server: Side) -> Self {
        let mut lab = Lab::heavy();
        let cable = Cable::new();
        lab.address = cable.address(server).to_owned();
        lab.server_side = server;
        lab.cable = Some(cable);
        lab
    }

    /// The server speaks TLS, with a certificate that everybody trusts who is told the lab's own CA.
    pub(crate) fn secure(mut self) -> Self {
        let mut ca = CertificateParams::new(Vec::new()).unwrap();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate().unwrap()).unwrap();
        let authority: &Certificate = ca.as_ref();
        let key = KeyPair::generate().unwrap();
        let cert = CertificateParams::new([self.address.clone()]).unwrap().signed_by(&key, &ca).unwrap();
        for (name, text) in [("ca.pem", authority.pem()), ("cert.pem", cert.pem()), ("key.pem", key.serialize_pem())] {
            std::fs::write(self.path(name), text).unwrap();
        }
        self.secure = true;
        self
    }

    /// Workers hold a session without a link for so many seconds.
    pub(crate) fn hold(mut self, seconds: u64) -> Self {
        self.hold = seconds;
        self
    }

    /// The cable.
    pub(crate) fn cable(&self) -> &Cable {
        self.cable.as_ref().expect("Lab::with_cable makes one")
    }

    /// The signaling server.
    pub(crate) fn server(&self) -> Restartable {
        let (address, data) = (self.server_address(), self.path("server"));
        let base = self.base(self.server_side, "webrtc-server", "server-home");
        let tls = self.secure.then(|| (self.path("cert.pem"), self.path("key.pem")));
        self.restartable("server", "listening", move || {
            let mut command = base();
            command.args(["--json", "--listen", &address, "--data-dir"]).arg(&data);
            if let Some((cert, key)) = &tls {
                command.arg("--tls-cert").arg(cert).arg("--tls-key").arg(key);
            }
            command
        })
    }

    /// A call of `webrtc-server` by somebody with a home of its own.
    pub(crate) fn server_command(&self, home: &str) -> Command {
        self.base(self.server_side, "webrtc-server", home)()
    }

    /// Where the server listens.
    pub(crate) fn server_address(&self) -> String {
        format!("{}:8001", self.address)
    }

    /// How many sign-ins the server has counted since its start.
    pub(crate) fn sign_ins(&self) -> u64 {
        let mut stream = TcpStream::connect(self.server_address()).unwrap();
        write!(stream, "GET /metrics HTTP/1.1\r\nHost: server\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let line = answer.lines().find_map(|line| line.strip_prefix("webrtc_server_sign_ins_total ")).expect("it is counted");
        line.parse().unwrap()
    }

    /// The exit code of `webrtc-worker health`.
    pub(crate) fn probe(&self, more: &[&str]) -> i32 {
        let mut command = self.base(Side::Worker, "webrtc-worker", "worker-home")();
        command.args(["health", "--json", "--data-dir"]).arg(self.worker_data()).args(more);
        Program::start(command, &self.path("probe.log")).exit_code()
    }

    fn server_url(&self) -> String {
        format!("http{}://{}", if self.secure { "s" } else { "" }, self.server_address())
    }

    /// A worker whose trainer is one of test_files, by its path there.
    pub(crate) fn worker(&self, trainer: &str) -> Restartable {
        self.worker_with(trainer, &[])
    }

    /// A worker with more options.
    pub(crate) fn worker_with(&self, trainer: &str, more: &[&str]) -> Restartable {
        let config = self.path("worker.toml");
        let words = [python(), test_files().join(trainer)].map(|path| path.to_str().unwrap().to_owned());
        let (words, hold) = (serde_json::to_string(&words).unwrap(), self.hold);
        std::fs::write(&config, format!("[worker]\nsleap_nn = {words}\nhold = {hold}\n")).unwrap();
        let (server, data, invite) = (self.server_url(), self.worker_data(), self.path("invite"));
        let more: Vec<String> = more.iter().map(|&arg| arg.to_owned()).collect();
        let base = self.base(Side::Worker, "webrtc-worker", "worker-home");
        let worker = self.restartable("worker", "invite", move || {
            let mut command = base();
            command.args(["--json", "--name", "demo", "--server", &server, "--data-dir"]).arg(&data);
            command.arg("--config").arg(&config).arg("--invite-file").arg(&invite).args(&more);
            command
        });
        let watch = worker.all("invite")[0]["watch"].as_str().unwrap().to_owned();
        std::fs::write(self.path("watch-invite"), watch).unwrap();
        worker
    }

    /// A server and a worker with the steady trainer.
    pub(crate) fn open(&self) -> (Restartable, Restartable) {
        (self.server(), self.worker("odd_trainers/steady.py"))
    }

    /// A client of somebody who may submit.
    pub(crate) fn client(&self, args: &[&str]) -> Program {
        self.start_client("anna", "invite", args)
    }

    /// A client of somebody else, who may watch.
    pub(crate) fn watcher(&self, args: &[&str]) -> Program {
        self.start_client("ben", "watch-invite", args)
    }

    /// A client of somebody with a key of his own, who may submit, too; his models come to a folder of his own.
    pub(crate) fn train_as(&self, person: &str, package: &Path) -> Program {
        let models = self.path(&format!("{person}-models"));
        self.start_client(person, "invite", &["train", package.to_str().unwrap(), "--output", models.to_str().unwrap()])
    }

    /// A client that submits this package; its models come to [`Lab::models`].
    pub(crate) fn train(&self, package: &Path, more: &[&str]) -> Program {
        let models = self.models();
        let args = [&["train", package.to_str().unwrap(), "--output", models.to_str().unwrap()], more].concat();
        self.client(&args)
    }

    /// A package for the steady trainer.
    pub(crate) fn package(&self, name: &str, steady: &Steady) -> PathBuf {
        steady.write(&self.path(name))
    }

    /// Where models are fetched to.
    pub(crate) fn models(&self) -> PathBuf {
        self.path("models")
    }

    /// A path in the lab's folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// What the worker has of the job that an event is about.
    pub(crate) fn job(&self, event: &Value) -> JobFiles {
        JobFiles(self.worker_data().join("jobs").join(event["job"].as_str().expect("an event of a job")))
    }

    /// The models that came are the ones that were made.
    pub(crate) fn assert_models_are_those_of(&self, job: &JobFiles) {
        let (ours, theirs) = (hashes(&self.models()), hashes(&job.0.join("results")));
        assert!(theirs.keys().any(|path| path.ends_with("best.ckpt")), "{theirs:?}");
        assert_eq!(ours, theirs);
    }

    fn worker_data(&self) -> PathBuf {
        self.path("worker")
    }

    fn start_client(&self, person: &str, invite: &str, args: &[&str]) -> Program {
        let mut command = self.base(Side::Client, "webrtc-client", person)();
        command.args(args).arg("--json").arg("--invite-file").arg(self.path(invite));
        Program::start(command, &self.path(&format!("{person}.log")))
    }

    /// How to call one of our programs as somebody with this home.
    fn base(&self, side: Side, program: &str, home: &str) -> impl Fn() -> Command + use<> {
        let (program, home) = (binary(program), self.path(home));
        std::fs::create_dir_all(&home).unwrap();
        let entrance = self.cable.as_ref().map(|cable| cable.entrance(side));
        let ca_file = self.secure.then(|| self.path("ca.pem"));
        move || {
            let mut command = match &entrance {
                Some(entrance) => {
                    let mut command = Command::new(&entrance[0]);
                    command.args(&entrance[1..]).arg(&program);
                    command
                }
                None => Command::new(&program),
            };
            // Nothing of the person who runs the tests: no configuration, no invite.
            command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("HOME", &home).current_dir(&home);
            for name in ["XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME"] {
                command.env(name, home.join(name));
            }
            command.envs(ca_file.iter().map(|path| ("WEBRTC_CA_FILE", path)));
            command.env(
                "WEBRTC_LOG",
                std::env::var_os("WEBRTC_LOG").unwrap_or_else(|| "error,client=info,worker=info,shared=info,signaling_server=info".into()),
            );
            command
        }
    }

    fn restartable(&self, name: &str, ready: &'static str, command: impl Fn() -> Command + 'static) -> Restartable {
        let log = self.path(&format!("{name}.log"));
        let mut restartable = Restartable { program: Program::start(command(), &log), log, command: Box::new(command), ready };
        restartable.await_ready();
        restartable
    }
}

impl Drop for Lab {
    /// Runners and trainers have sessions of their own and would go on: they are known by our folder in their command line.
    fn drop(&mut self) {
        let folder = self.folder.path().to_str().unwrap();
        for pid in processes() {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            if pid != std::process::id() as i32 && String::from_utf8_lossy(&line).contains(folder) {
                let _ = Command::new("kill").args(["-9", &pid.to_string()]).output();
            }
        }
        // The next heavy lab may begin.
        self.turn = None;
        if std::thread::panicking() {
            for name in ["server.log", "worker.log", "anna.log", "ben.log"] {
                let log = std::fs::read_to_string(self.path(name)).unwrap_or_default();
                let tail: Vec<&str> = log.lines().rev().take(40).collect::<Vec<_>>().into_iter().rev().collect();
                eprintln!("--- the end of {name}\n{}", tail.join("\n"));
            }
        }
    }
}

impl Restartable {
    /// Starts it once more after it has ended, and waits until it is there.
    pub(crate) fn start_again(&mut self) {
        self.program = Program::start((self.command)(), &self.log);
        self.await_ready();
    }

    fn await_ready(&mut self) {
        let ready = self.ready;
        // The server's one line has no type.
        self.program.wait_until(ready, |event| event["type"] == ready || event.get("http").is_some());
    }
}

impl Deref for Restartable {
    type Target = Program;
    fn deref(&self) -> &Program {
        &self.program
    }
}

impl DerefMut for Restartable {
    fn deref_mut(&mut self) -> &mut Program {
        &mut self.program
    }
}

impl JobFiles {
    /// The process group of the trainer, once there is one.
    pub(crate) fn trainer(&self) -> i32 {
        self.group("trainer.pid")
    }

    /// Whether there is something of this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.join(name).exists()
    }

    /// Kills the runner, and only it.
    pub(crate) fn kill_runner(&self) {
        let killed = Command::new("kill").args(["-9", &self.group("runner.pid").to_string()]).status().unwrap();
        assert!(killed.success(), "kill -9 of the runner");
    }

    fn group(&self, file: &str) -> i32 {
        let mut found = None;
        eventually(&format!("{file} is there"), || {
            let text = std::fs::read_to_string(self.0.join(file)).unwrap_or_default();
            found = serde_json::from_str::<Value>(&text).ok().and_then(|group| group["pgid"].as_i64());
            found.is_some()
        });
        found.unwrap() as i32
    }
}

/// Looks until it is so: for what nobody reports.
pub(crate) fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < end, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The living processes of a group.
pub(crate) fn members(group: i32) -> Vec<i32> {
    processes().into_iter().filter(|&pid| stat(pid).is_some_and(|(state, pgrp)| state != "Z" && pgrp == group)).collect()
}

fn processes() -> Vec<i32> {
    let entries = std::fs::read_dir("/proc").unwrap();
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
}

/// State and process group, from `/proc/PID/stat` (proc(5)).
fn stat(pid: i32) -> Option<(String, i32)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    Some((fields.next()?.to_owned(), fields.nth(1)?.parse().ok()?))
}

fn hashes(folder: &Path) -> Hashes {
    let (mut found, mut folders) = (Hashes::new(), vec![folder.to_owned()]);
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(&next).unwrap_or_else(|error| panic!("{}: {error}", next.display())) {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let hash = Hash::of(&std::fs::read(&path).unwrap());
                found.insert(path.strip_prefix(folder).unwrap().to_owned(), hash);
            }
        }
    }
    found
}

/// Where the trainers and the package maker are.
pub(crate) fn test_files() -> PathBuf {
    root().join("test_files")
}

/// An interpreter that can run them.
pub(crate) fn python() -> PathBuf {
    let python = std::env::var_os("WEBRTC_TEST_PYTHON").map_or_else(|| root().join(".venv/bin/python"), PathBuf::from);
    assert!(
        python.is_file(),
        "the trainers need Python with test_files/requirements.txt, and there is no {}: run scripts/test, which makes .venv, or name an interpreter in WEBRTC_TEST_PYTHON",
        python.display()
    );
    python
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// One of the three programs; the other two lie beside the client.
fn binary(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_BIN_EXE_webrtc-client")).with_file_name(name);
    assert!(path.is_file(), "{} is not built: cargo build --workspace --bins", path.display());
    path
}
