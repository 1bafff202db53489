//! What plays AWS: each on a loopback port of its own, ended with its value.

use std::{
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
};

use dynoxide::Database;
use shared::domain::id::Secret;
use signaling_server::runtime::config::{AwsKeys, AwsSettings};
use tempfile::TempDir;
use tokio::sync::oneshot;

pub(crate) use super::moto::{Moto, environment, tool};
use super::moto::{REGION, listening, root};

/// How the server reaches what plays AWS at this URL.
pub(crate) fn settings(endpoint: &str) -> AwsSettings {
    AwsSettings {
        region: Some(REGION.to_owned()),
        endpoint_url: Some(endpoint.to_owned()),
        keys: Some(AwsKeys { id: "test".to_owned(), secret: Secret::new("test".to_owned()) }),
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
