//! The real program: killed, stopped, misconfigured, watched.

use std::{
    io::{BufRead, BufReader, Read},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    thread::JoinHandle,
};

use serde_json::{Value, json};

use signaling_server::runtime::tls::TlsFiles;

use super::{
    support::{Api, register},
    tls::Authority,
};

pub(super) struct Program {
    child: Child,
    pub(super) api: Api,
    /// Read all along: a program whose log nobody reads stops at a full pipe.
    log: Option<JoinHandle<String>>,
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn command(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_webrtc-server"));
    // No configuration file of the person who runs the tests.
    command.current_dir(dir).env("XDG_CONFIG_HOME", dir).env("WEBRTC_LOG", "trace").stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Starts on a free port and waits for the line that says which.
pub(super) fn start(dir: &Path, more: &[&str]) -> Program {
    let data = dir.join("data");
    let mut child =
        command(dir).args(["--listen", "127.0.0.1:0", "--json", "--data-dir"]).arg(data).args(more).spawn().expect("the program starts");
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let listening: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("not the line that was expected: {line:?}"));
    let mut stderr = child.stderr.take().unwrap();
    let log = std::thread::spawn(move || {
        let mut log = String::new();
        stderr.read_to_string(&mut log).unwrap();
        log
    });
    let address = listening["ws"].as_str().unwrap().strip_prefix("ws://").unwrap().to_owned();
    assert_eq!(listening["http"], format!("http://{address}"));
    Program { child, api: Api::at(address), log: Some(log) }
}

impl Program {
    pub(super) fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    /// All that it has logged; it must have ended.
    pub(super) fn log(&mut self) -> String {
        self.log.take().unwrap().join().unwrap()
    }

    pub(super) async fn ended(&mut self) -> ExitStatus {
        for _ in 0..400 {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            tokio::time::sleep(std::time::Duration::from_millis(25)).await;
        }
        panic!("the program did not end");
    }
}

#[tokio::test]
async fn rooms_owners_and_tokens_survive_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let mut first = start(dir.path(), &[]);
    let (owner, thief) = (first.api.sign_in().await, first.api.sign_in().await);
    let room = first.api.create_room(&owner).await;
    let _worker = first.api.join(&room, &owner, "w").await;
    first.signal("KILL");
    first.ended().await;
    drop(first);

    let second = start(dir.path(), &[]);
    let mut other = second.api.connect().await;
    assert_eq!(other.ask(register(&room, &thief, "w")).await["code"], "PEER_ID_TAKEN");
    let mut worker = second.api.join(&room, &owner, "w").await;
    assert_eq!(worker.ask(json!({"type": "renew"})).await["type"], "renewed");
}

#[tokio::test]
async fn sigterm_says_goodbye_and_exits_with_success() {
    let dir = tempfile::tempdir().unwrap();
    let mut program = start(dir.path(), &[]);
    let owner = program.api.sign_in().await;
    let room = program.api.create_room(&owner).await;
    let mut worker = program.api.join(&room, &owner, "w").await;
    program.signal("TERM");
    assert_eq!(worker.closed().await, 1012);
    drop(worker);
    assert!(program.ended().await.success());
    assert!(program.log().contains("\"message\":\"stopped\""));
}

#[tokio::test]
async fn a_second_signal_does_not_wait_for_anybody() {
    let dir = tempfile::tempdir().unwrap();
    let mut program = start(dir.path(), &[]);
    let owner = program.api.sign_in().await;
    let room = program.api.create_room(&owner).await;
    let mut worker = program.api.join(&room, &owner, "w").await;
    // It never answers the close, so that the server waits for it a while.
    let _deaf = program.api.join(&room, &owner, "c").await;
    program.signal("TERM");
    assert_eq!(worker.closed().await, 1012);
    program.signal("INT");
    assert_eq!(program.ended().await.code(), Some(130));
}

#[tokio::test]
async fn a_probe_is_told_whether_the_server_can_serve() {
    let dir = tempfile::tempdir().unwrap();
    let mut program = start(dir.path(), &[]);
    // As in a container: the same variables as the server, and no URL.
    let ask = || command(dir.path()).env("WEBRTC_SERVER_LISTEN", &program.api.address).arg("health").output().unwrap();
    let healthy = ask();
    assert_eq!(healthy.status.code(), Some(0));
    assert_eq!(serde_json::from_slice::<Value>(&healthy.stdout).unwrap()["status"], "healthy");
    program.child.kill().unwrap();
    program.child.wait().unwrap();
    let gone = command(dir.path()).env("WEBRTC_SERVER_LISTEN", &program.api.address).arg("health").output().unwrap();
    assert_eq!(gone.status.code(), Some(4));
    assert!(String::from_utf8_lossy(&gone.stderr).contains("the server at 127.0.0.1:"));
}

#[tokio::test]
async fn a_hangup_reads_the_certificate_anew_and_ends_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let TlsFiles { cert, key } = authority.files();
    let mut child = command(dir.path())
        .args(["--listen", "127.0.0.1:0", "--json", "--store", "memory", "--tls-cert"])
        .arg(cert)
        .arg("--tls-key")
        .arg(key)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let listening: Value = serde_json::from_str(&line).unwrap();
    let address = listening["ws"].as_str().unwrap().strip_prefix("wss://").expect("it says that it speaks TLS").to_owned();
    assert_eq!(listening["http"], format!("https://{address}"));
    let program = Program { child, api: Api::at(address.clone()), log: None };
    authority.connect(&address).await;
    let asked = |url: &str| command(dir.path()).args(["health", url]).output().unwrap();
    assert!(asked(&format!("https://{address}")).status.success(), "a probe asks over TLS, too");
    assert_eq!(asked(&format!("http://{address}")).status.code(), Some(4));
    // It looks by itself every 30 s, which is longer than the test waits.
    let second = authority.issue();
    program.signal("HUP");
    authority.await_served(&address, &second).await;
}

#[tokio::test]
async fn no_secret_reaches_the_log_not_even_at_trace() {
    let dir = tempfile::tempdir().unwrap();
    let turn = r#"[{"urls":"turn:t.example","username":"u","credential":"canary-turn"}]"#;
    let secret_file = dir.path().join("turn-secret");
    std::fs::write(&secret_file, "canary-shared-secret-of-turn").unwrap();
    std::fs::set_permissions(&secret_file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let with_turn = ["--ice-servers", turn, "--turn-urls", "turn:t.example", "--turn-secret-file", secret_file.to_str().unwrap()];
    let mut program = start(dir.path(), &with_turn);
    let owner = program.api.sign_in().await;
    let room = program.api.create_room(&owner).await;
    let mut worker = program.api.connect().await;
    let welcome = worker.ask(register(&room, &owner, "w")).await;
    let credential = welcome["ice_servers"][1]["credential"].as_str().expect("a TURN credential");
    let (_, metrics) = program.api.get("/metrics").await;
    assert!(!metrics.to_string().contains(credential) && !metrics.to_string().contains("canary"), "{metrics}");
    // The file is spoiled while the server runs: that is told to the log.
    std::fs::write(&secret_file, "canary canary").unwrap();
    assert!(program.api.connect().await.ask(register(&room, &owner, "x")).await["ice_servers"][1]["credential"].is_string());
    worker.send(json!({"type": "offer", "target": "w", "sdp": "canary-sdp"})).await;
    worker.expect("offer").await;
    let mut wrong = program.api.connect().await;
    wrong.ask(json!({"type": "register", "peer_id": "c", "room_id": room.room_id, "token": "canary-token", "id_token": "canary-jwt", "role": "client"})).await;
    worker.leave().await;
    program.signal("TERM");
    program.ended().await;
    let log = program.log();
    assert!(log.contains("peer registered") && log.contains("the TURN secrets cannot be read anew"), "{log}");
    let signature = owner.token.rsplit('.').next().unwrap();
    for secret in [signature, room.token.expose(), credential, "canary"] {
        assert!(!log.contains(secret), "{secret} in:\n{}", log.lines().find(|line| line.contains(secret)).unwrap_or_default());
    }
}

#[tokio::test]
async fn an_idle_server_is_small() {
    let dir = tempfile::tempdir().unwrap();
    let program = start(dir.path(), &[]);
    program.api.sign_in().await;
    let status = std::fs::read_to_string(format!("/proc/{}/status", program.child.id())).unwrap();
    // Of its own. How much of the program's file is mapped, which has twice the length without optimisation, is up to the kernel and differs by megabytes.
    let resident = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    let kib: u64 = resident.trim().trim_end_matches(" kB").parse().unwrap();
    println!("idle server: {kib} KiB of its own");
    assert!(kib < 5 * 1024, "{kib} KiB");
}

#[test]
fn what_is_wrong_at_the_start_is_one_sentence_and_an_exit_code() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("webrtc-connect.toml");
    let run = |toml: &str, args: &[&str]| {
        std::fs::write(&config, toml).unwrap();
        let output = command(dir.path()).env("WEBRTC_LOG", "off").args(args).output().unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, message) = run("[server]\nroom_tll = 5\n", &[]);
    assert_eq!(code, 2);
    assert!(message.contains("webrtc-connect.toml, line 2, key 'room_tll'") && message.lines().count() == 1, "{message}");

    std::fs::write(dir.path().join("file"), "").unwrap();
    let (code, message) = run("", &["--listen", "127.0.0.1:0", "--data-dir", "file/data"]);
    assert_eq!(code, 3, "{message}");
    assert!(message.contains("cannot make the data directory file/data"), "{message}");

    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let (code, message) = run("", &["--store", "memory", "--listen", &address]);
    assert_eq!(code, 4, "{message}");
    assert!(message.contains(&format!("cannot listen on {address}")), "{message}");

    let turn = ["--store", "memory", "--listen", "127.0.0.1:0", "--turn-urls", "turn:t.example", "--turn-secret-file", "turn-secret"];
    let (code, message) = run("", &turn);
    assert_eq!(code, 3, "{message}");
    assert!(message.contains("the TURN secrets' file turn-secret: No such file"), "{message}");
    std::fs::write(dir.path().join("turn-secret"), "canary-canary-canary-canary").unwrap();
    std::fs::set_permissions(dir.path().join("turn-secret"), std::fs::Permissions::from_mode(0o604)).unwrap();
    let (code, message) = run("", &turn);
    assert_eq!(code, 3, "{message}");
    assert!(message.contains("chmod 600") && !message.contains("canary"), "{message}");
    let (code, message) = run("", &turn[..6]);
    assert_eq!(code, 2, "{message}");
    assert!(message.contains("--turn-urls needs --turn-secret-file"), "{message}");

    let (code, message) = run("", &["--listen", "nowhere"]);
    assert_eq!(code, 2, "{message}");
}
