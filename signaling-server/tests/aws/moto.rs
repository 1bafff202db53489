//! moto: DynamoDB and Cognito in a process of their own.

use std::{
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

/// Python takes its time on a busy machine.
const START: Duration = Duration::from_secs(60);
/// Where it all is.
pub(crate) const REGION: &str = "us-west-1";

/// How a process reaches what plays AWS at this URL.
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

/// The URL that a program says after these words, if it does in time.
pub(crate) fn listening(output: impl Read + Send + 'static, after: &'static str) -> Option<String> {
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

/// The workspace.
pub(crate) fn root() -> &'static Path {
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
