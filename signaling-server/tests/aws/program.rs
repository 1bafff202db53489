//! The real program with DynamoDB: set up, started, killed, misconfigured.

use std::{
    io::{BufRead, BufReader, Read},
    path::Path,
    process::{Child, Command, Output, Stdio},
    thread::JoinHandle,
};

use serde_json::{Value, json};

use super::{
    emulators::{Moto, environment},
    support::{Api, register},
};

fn command(dir: &Path, endpoint: &str, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_webrtc-server"));
    // Nothing of the person who runs the tests.
    for name in ["AWS_PROFILE", "AWS_DEFAULT_REGION", "AWS_SESSION_TOKEN", "HTTP_PROXY", "http_proxy"] {
        command.env_remove(name);
    }
    command.current_dir(dir).env("XDG_CONFIG_HOME", dir).envs(environment(endpoint)).args(args);
    command
}

fn run(mut command: Command) -> Output {
    command.env("WEBRTC_LOG", "off").output().unwrap()
}

fn says(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

struct Program {
    child: Child,
    api: Api,
    log: Option<JoinHandle<String>>,
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Program {
    /// Serves rooms of the table on a free port.
    fn start(dir: &Path, endpoint: &str) -> Self {
        let data = dir.join("data");
        let mut child = command(dir, endpoint, &["--store", "dynamodb", "--listen", "127.0.0.1:0", "--json", "--data-dir"])
            .arg(data)
            .env("WEBRTC_LOG", "trace")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // First of all: a program whose log nobody reads stops at a full pipe.
        let mut stderr = child.stderr.take().unwrap();
        let log = std::thread::spawn(move || {
            let mut log = String::new();
            stderr.read_to_string(&mut log).unwrap();
            log
        });
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let listening: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("not the line that was expected: {line:?}"));
        let api = Api::at(listening["ws"].as_str().unwrap().strip_prefix("ws://").unwrap().to_owned());
        Program { child, api, log: Some(log) }
    }

    /// Kills it; all that it has logged.
    fn kill(mut self) -> String {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.log.take().unwrap().join().unwrap()
    }
}

#[tokio::test]
async fn init_then_serve_and_rooms_survive_a_kill() {
    let (moto, dir) = (Moto::start(), tempfile::tempdir().unwrap());
    let serve = ["--store", "dynamodb", "--listen", "127.0.0.1:0"];
    let missing = run(command(dir.path(), &moto.endpoint, &serve));
    assert_eq!(missing.status.code(), Some(2));
    assert!(says(&missing).contains("make it: webrtc-server init --dynamodb-table webrtc-connect-rooms"), "{}", says(&missing));
    for made in [true, false] {
        let output = run(command(dir.path(), &moto.endpoint, &["init", "--json"]));
        assert!(output.status.success(), "{}", says(&output));
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        let expected = json!({"dynamodb_table": {"name": "webrtc-connect-rooms", "made": made, "ttl_switched_on": made}});
        assert_eq!(answer, expected);
    }

    let first = Program::start(dir.path(), &moto.endpoint);
    let (owner, thief) = (first.api.sign_in().await, first.api.sign_in().await);
    let room = first.api.create_room(&owner).await;
    let worker = first.api.join(&room, &owner, "w").await;
    let log = first.kill();
    drop(worker);
    assert!(log.contains("peer registered"));
    assert!(!log.contains(room.token.expose()), "the room's token is in the log");
    assert!(!log.contains("canary-of-aws"), "the AWS key is in the log");

    let second = Program::start(dir.path(), &moto.endpoint);
    let mut other = second.api.connect().await;
    assert_eq!(other.ask(register(&room, &thief, "w")).await["code"], "PEER_ID_TAKEN");
    let mut worker = second.api.join(&room, &owner, "w").await;
    assert_eq!(worker.ask(json!({"type": "renew"})).await["type"], "renewed");
}

#[test]
fn what_is_missing_of_aws_is_one_sentence_that_says_what_to_set() {
    let dir = tempfile::tempdir().unwrap();
    // Nothing listens there.
    let nowhere = "http://127.0.0.1:9";
    for (unset, says_what, code) in [
        ("AWS_REGION", "no AWS region is set; set AWS_REGION", 2),
        ("AWS_ACCESS_KEY_ID", "no AWS credentials were found", 2),
        ("nothing", "DynamoDB did not do dynamodb:DescribeTable", 4),
    ] {
        for args in [&["--store", "dynamodb", "--listen", "127.0.0.1:0"][..], &["init"]] {
            let mut command = command(dir.path(), nowhere, args);
            command.env_remove(unset);
            let output = run(command);
            assert_eq!(output.status.code(), Some(code), "{unset} {args:?}: {}", says(&output));
            assert!(says(&output).contains(says_what) && says(&output).lines().count() == 1, "{unset} {args:?}: {}", says(&output));
            assert!(output.stdout.is_empty());
        }
    }
}

#[test]
fn init_print_needs_no_aws_and_prints_a_script_with_the_policy() {
    let dir = tempfile::tempdir().unwrap();
    let print = |more: &[&str]| {
        let mut command =
            command(dir.path(), "http://127.0.0.1:9", &[&["init", "--print", "--dynamodb-table", "lab-rooms"], more].concat());
        command.env_remove("AWS_REGION");
        let output = run(command);
        assert!(output.status.success(), "{}", says(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    let script = print(&[]);
    assert!(script.starts_with("#!/bin/sh\n") && script.contains("--table-name lab-rooms"), "{script}");
    let answer: Value = serde_json::from_str(&print(&["--json"])).unwrap();
    assert_eq!(answer["policy"]["Statement"][0]["Resource"], "arn:aws:dynamodb:*:*:table/lab-rooms");
    assert_eq!(answer["commands"].as_array().unwrap().len(), 3);
    let bad = run(command(dir.path(), "http://127.0.0.1:9", &["init", "--print", "--dynamodb-table", "a'; rm -rf /"]));
    assert_eq!(bad.status.code(), Some(2));
}
