//! What plays AWS: each on a loopback port of its own, ended with its value.

use std::{
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use dynoxide::Database;
use shared::domain::id::Secret;
use signaling_server::runtime::config::{AwsKeys, AwsSettings};
use tempfile::TempDir;
use tokio::sync::oneshot;

/// Python takes its time on a busy machine.
const START: Duration = Duration::from_secs(60);
const REGION: &str = "us-west-1";

/// How the server reaches what plays AWS at this URL.
pub(crate) fn settings(endpoint: &str) -> AwsSettings {
    AwsSettings {
        region: Some(REGION.to_owned()),
        endpoint_url: Some(endpoint.to_owned()),
        keys: Some(AwsKeys { id: "test".to_owned(), secret: Secret::new("test".to_owned()) }),
    }
}

/// The same for a process.
pub(crate) fn environment(endpoint: &str) -> Vec<(&'static str, String)> {
    [
        ("AWS_REGION", REGION),
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "canary-of-aws"),
        ("AWS_ENDPOINT_URL", endpoint),
        // Neither the files of the person who runs the tests nor an instance's metadata.
        ("AWS_CONFIG_FILE", "/dev/null"),
        ("AWS_SHARED_CREDENTIALS_FILE", "/dev/null"),
        ("AWS_EC2_METADATA_DISABLED", "true"),
        ("NO_PROXY", "127.0.0.1"),
    ]
    .map(|(name, value)| (name, value.to_owned()))
    .to_vec()
}

/// DynamoDB and Cognito, in Python.
pub(crate) struct Moto {
    child: Child,
    /// Where it answers.
    pub(crate) endpoint: String,
}

impl Moto {
    /// Starts `moto_server` and waits until it says where it listens.
    pub(crate) fn start() -> Self {
        let program = tool("moto_server");
        // Of its own accord it takes a free port.
        let mut child = Command::new(&program)
            .args(["-H", "127.0.0.1", "-p", "0"])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{} cannot be started: {error}", program.display()));
        let stderr = child.stderr.take().expect("it was piped");
        let mut moto = Moto { child, endpoint: String::new() };
        moto.endpoint = listening(stderr, "Running on ").expect("moto_server should have said where it listens");
        moto
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Cognito, in JavaScript.
pub(crate) struct CognitoLocal {
    child: Child,
    /// Where it answers.
    pub(crate) endpoint: String,
    /// Its configuration and users.
    _folder: TempDir,
}

impl CognitoLocal {
    /// What its tokens' issuers begin with; the pool's id follows.
    pub(crate) const ISSUER: &str = "http://cognito.test";

    /// Starts it and waits until it says where it listens.
    pub(crate) fn start() -> Self {
        let program = node_tool("cognito-local/lib/bin/start.js");
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(folder.path().join(".cognito")).expect("a folder in it");
        // Without the first of these it takes nothing but e-mail addresses for names.
        let config = serde_json::json!({"UserPoolDefaults": {"UsernameAttributes": []}, "TokenConfig": {"IssuerDomain": Self::ISSUER}});
        std::fs::write(folder.path().join(".cognito/config.json"), config.to_string()).expect("a file in it");
        let mut child = Command::new("node")
            .arg(&program)
            .current_dir(folder.path())
            .envs([("HOST", "127.0.0.1"), ("PORT", "0")])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("node cannot be started ({error}); install Node.js"));
        let stdout = child.stdout.take().expect("it was piped");
        let mut emulator = CognitoLocal { child, endpoint: String::new(), _folder: folder };
        emulator.endpoint = listening(stdout, "running on ").expect("cognito-local should have said where it listens");
        emulator
    }
}

impl Drop for CognitoLocal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The URL that a program says after these words, if it does in time.
fn listening(output: impl Read + Send + 'static, after: &'static str) -> Option<String> {
    let (said, hears) = mpsc::channel();
    // Read to its end: a program whose log nobody reads stops at a full pipe.
    thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if let Some((_, rest)) = line.split_once(after) {
                let url: String = rest.chars().take_while(|c| c.is_ascii_graphic()).collect();
                let _ = said.send(url);
            }
        }
    });
    hears.recv_timeout(START).ok()
}

/// A file of a package that test_files/emulators/package.json lists.
pub(crate) fn node_tool(path: &str) -> PathBuf {
    let folder = std::env::var_os("WEBRTC_TEST_NODE_TOOLS").map_or_else(|| root().join(".node-tools"), PathBuf::from);
    let file = folder.join("node_modules").join(path);
    assert!(
        file.is_file(),
        "{} is missing; run: bash -c 'source scripts/lib.sh && ensure_node_tools' (or set WEBRTC_TEST_NODE_TOOLS to a folder where \
         npm ci was run with test_files/emulators/package-lock.json)",
        file.display()
    );
    file
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package lies in the workspace")
}

/// A program that test_files/tools.txt lists.
pub(crate) fn tool(name: &str) -> PathBuf {
    let folder = std::env::var_os("WEBRTC_TEST_TOOLS").map_or_else(|| root().join(".venv-tools/bin"), PathBuf::from);
    let program = folder.join(name);
    assert!(
        program.is_file(),
        "{} is missing; run: python3 -m venv .venv-tools && .venv-tools/bin/pip install -r test_files/tools.txt \
         (or set WEBRTC_TEST_TOOLS to the folder where it is)",
        program.display()
    );
    program
}

/// DynamoDB in this process, on a thread of its own, so that it does not slow the server under test down.
pub(crate) struct Dynoxide {
    /// Where it answers.
    pub(crate) endpoint: String,
    /// What is behind the port: a look at the items, past the server.
    pub(crate) database: Database,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Dynoxide {
    /// An empty database.
    pub(crate) fn start() -> Self {
        Self::with(Database::memory().expect("SQLite opens in memory"))
    }

    /// With this database, whose clock may be the test's.
    pub(crate) fn with(database: Database) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        listener.set_nonblocking(true).expect("a fresh socket takes that");
        let endpoint = format!("http://{}", listener.local_addr().expect("it is bound"));
        let (stop, stopped) = oneshot::channel::<()>();
        let behind = database.clone();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).expect("it does not block");
                // Not until the last connection is closed: a pooled one may stay.
                tokio::select! {
                    ended = dynoxide::server::serve_with_shutdown(listener, behind, std::future::pending()) => ended.expect("it serves"),
                    _ = stopped => {}
                }
            });
        });
        Dynoxide { endpoint, database, stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for Dynoxide {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
