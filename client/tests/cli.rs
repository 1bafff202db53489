//! The real program, as far as it comes without a worker: what is said, and the exit codes.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use shared::domain::{
    id::Secret,
    invite::{Grant, Invite},
};
use tempfile::TempDir;

/// What must not be seen: the token of every invite here, and a part of its encoded form.
const CANARY: &str = "token-canary-4711";

/// A user with an empty home directory.
struct User {
    home: TempDir,
}

struct Said {
    code: i32,
    stdout: String,
    stderr: String,
}

impl User {
    fn new() -> Self {
        User { home: tempfile::tempdir().unwrap() }
    }

    fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.home.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        path
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_webrtc-client"));
        command.args(args).current_dir(self.home.path()).env_clear().env("HOME", self.home.path()).stdin(Stdio::null());
        command
    }

    fn says(&self, args: &[&str]) -> Said {
        heard(self.command(args).output().unwrap())
    }

    fn says_with_stdin(&self, args: &[&str], input: &str) -> Said {
        let mut command = self.command(args);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        heard(child.wait_with_output().unwrap())
    }
}

fn heard(output: Output) -> Said {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Said { code: output.status.code().unwrap(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

impl Said {
    /// One line that begins with `error:`, the code, and nothing on stdout.
    fn refuses(&self, code: i32, says: &str) -> &Self {
        assert_eq!((self.code, self.stdout.as_str()), (code, ""), "{}", self.stderr);
        let errors: Vec<&str> = self.stderr.lines().filter(|line| !line.starts_with("warning:")).collect();
        assert_eq!(errors.len(), 1, "{}", self.stderr);
        assert!(errors[0].starts_with("error: ") && errors[0].contains(says), "{}", self.stderr);
        self
    }
}

fn invite() -> String {
    let invite = Invite {
        // Nothing listens on port 9 of the loopback; no test gets that far.
        server: "http://127.0.0.1:9".into(),
        room: "0123456789abcdef0123456789abcdef".parse().unwrap(),
        token: Secret::new(CANARY.into()),
        worker: "worker-1".parse().unwrap(),
        grant: Grant::Submit,
        secret: Secret::new([7; 32]),
        worker_key: [9; 32],
        room_key: [6; 32],
    };
    invite.expose()
}

fn data(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name).to_str().unwrap().to_owned()
}

#[test]
fn help_has_examples_and_exit_codes() {
    let user = User::new();
    let short = user.says(&["-h"]);
    assert_eq!((short.code, short.stderr.as_str()), (0, ""));
    for command in ["train", "doctor", "status", "watch", "stop", "cancel", "fetch", "workers"] {
        assert!(short.stdout.contains(&format!("\n  {command} ")), "{}", short.stdout);
        let help = user.says(&[command, "--help"]);
        assert!(help.code == 0 && help.stdout.contains("Exit codes:") && help.stdout.contains("--invite-file"), "{}", help.stdout);
    }
    let long = user.says(&["--help"]);
    assert!(long.stdout.contains("Examples:") && long.stdout.contains("130  interrupted"), "{}", long.stdout);
    assert!(user.says(&["train", "-h"]).stdout.contains("webrtc-client train fly.training_job.zip"));
    assert!(user.says(&["--version"]).stdout.contains(env!("CARGO_PKG_VERSION")));
}

#[test]
fn wrong_usage_is_exit_code_2() {
    let user = User::new();
    for args in [
        &[][..],
        &["trian"],
        &["train"],
        &["status", "--no-such-flag"],
        &["watch", "--from", "0"],
        &["status", "--bind", "lab"],
        &["status", "--invite", "a", "--invite-file", "b"],
    ] {
        let said = user.says(args);
        assert_eq!((said.code, said.stdout.as_str()), (2, ""), "{args:?}: {}", said.stderr);
        assert!(said.stderr.contains("--help") || said.stderr.contains("Usage:"), "{args:?}: {}", said.stderr);
    }
}

#[test]
fn a_missing_or_wrong_invite_says_what_to_do() {
    let user = User::new();
    user.says(&["status"]).refuses(2, "no invite: pass on the line that webrtc-worker printed");
    user.says(&["status", "--invite-file", "no.txt"]).refuses(3, "cannot read the invite file no.txt");
    let whole = invite();
    let damaged = user.file("damaged.txt", &whole[..whole.len() / 2]);
    user.says(&["status", "--invite-file", damaged.to_str().unwrap()]).refuses(5, "damaged or cut short");
    user.says_with_stdin(&["status", "--invite", "-"], "hello\n").refuses(5, "it must begin with 'webrtc-connect:'");
    let ancestor = user.command(&["status"]).env("WEBRTC_INVITE", "sleap-session:eyJyIjoiYSIsInQiOiJiIiwicCI6ImMifQ").output().unwrap();
    heard(ancestor).refuses(5, "older Python system");
    user.says(&["train", &whole]).refuses(2, "an invite stands where the package belongs");
}

#[test]
fn an_invite_on_the_command_line_is_warned_about() {
    let user = User::new();
    let whole = invite();
    let said = user.says(&["status", "--invite", &whole[..40]]);
    assert!(said.stderr.starts_with("warning: others on this machine can see the invite"), "{}", said.stderr);
    let quiet = user.says(&["status", "-q", "--invite", &whole[..40]]);
    assert!(!quiet.stderr.contains("warning"), "{}", quiet.stderr);
}

#[test]
fn a_bad_package_is_refused_before_anybody_is_called() {
    let user = User::new();
    let invite = user.file("invite.txt", invite());
    let config = user.file("centroid.yaml", "model_config: {}\n");
    user.file("bare/fly.pkg.slp", "x");
    let (invite, config) = (invite.to_str().unwrap(), config.to_str().unwrap());
    let train = |args: &[&str]| user.says(&[&["train", "--invite-file", invite], args].concat());
    train(&["no.zip"]).refuses(3, "no.zip does not exist");
    train(&[&data("without_images.slp"), "--config", config]).refuses(3, "has no images in it");
    train(&[&data("with_images.pkg.slp")]).refuses(3, "add --config FILE");
    train(&["bare"]).refuses(3, "no training configuration");
    train(&["centroid.yaml"]).refuses(3, "is a configuration, not a package");
}

#[test]
fn json_carries_the_error_too() {
    let user = User::new();
    let said = user.says(&["train", "no.zip", "--json"]);
    assert_eq!(said.code, 3);
    let error: serde_json::Value = serde_json::from_str(&said.stdout).unwrap();
    assert_eq!((&error["type"], &error["code"]), (&"error".into(), &"BAD_FILE".into()));
    assert!(error["message"].as_str().unwrap().contains("no.zip does not exist"));
    assert!(said.stderr.starts_with("error: no.zip"));
}

#[test]
fn the_configuration_file_is_read_and_its_faults_named() {
    let user = User::new();
    user.file("damaged.txt", "webrtc-connect:AAAA");
    user.file("webrtc-connect.toml", "[client]\ninvite_file = 'damaged.txt'\n[environments.lab.client]\ninvite_file = 'gone.txt'\n");
    user.says(&["status"]).refuses(5, "damaged or cut short");
    user.says(&["status", "--environment", "lab"]).refuses(3, "gone.txt");
    let other = user.file("other.toml", "[client]\nworkr = 'x'\n");
    user.says(&["status", "--config-file", other.to_str().unwrap()]).refuses(2, "line 2, key 'workr'");
    let invite = user.file("invite.txt", invite());
    let ice = user.command(&["status", "--invite-file", invite.to_str().unwrap()]).env("ICE_SERVERS", "{\"urls\": 1}").output().unwrap();
    heard(ice).refuses(2, "(ICE_SERVERS): server 1: \"urls\" must be text");
}

#[test]
fn doctor_says_what_is_wrong_first_and_ends_with_11() {
    let user = User::new();
    let invite = user.file("invite.txt", invite());
    let invite = invite.to_str().unwrap();
    let said = user.says(&["doctor", "--invite-file", invite]);
    let lines: Vec<&str> = said.stdout.lines().collect();
    assert_eq!((said.code, lines[0]), (11, "Nothing listens at the signaling server's address http://127.0.0.1:9."), "{}", said.stdout);
    assert!(lines[1].starts_with("  Start webrtc-server there") && lines.iter().all(|line| line.chars().count() <= 80), "{}", said.stdout);
    assert!(said.stdout.contains(&format!("(--invite-file {invite})")), "{}", said.stdout);

    let json = user.says(&["doctor", "--invite-file", invite, "--json"]);
    let object: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!((json.code, &object["type"], &object["problems"][0]["cause"]), (11, &"doctor".into(), &"server-unreachable".into()));
    assert_eq!((json.stdout.lines().count(), json.stderr.as_str()), (1, ""));

    let malformed = heard(user.command(&["doctor", "--json"]).env("ICE_SERVERS", "[{").output().unwrap());
    let object: serde_json::Value = serde_json::from_str(&malformed.stdout).unwrap();
    assert_eq!((malformed.code, &object["problems"][0]["cause"]), (11, &"settings".into()));
    for said in [said, json, malformed] {
        assert!(!said.stdout.contains(CANARY) && !said.stderr.contains(CANARY));
    }
}

#[test]
fn doctor_without_an_invite_looks_at_this_side() {
    let user = User::new();
    let said = user.says(&["doctor", "--json"]);
    let object: serde_json::Value = serde_json::from_str(&said.stdout).unwrap();
    let broken = object["problems"].as_array().unwrap().iter().map(|problem| problem["cause"].as_str().unwrap());
    // A machine without any network has that one fault.
    let alone = broken.clone().all(|cause| cause == "no-address");
    assert!(alone && (said.code == 0) == object["healthy"].as_bool().unwrap(), "{}", said.stdout);
    assert_eq!(object["examination"]["invited"], false);
}

/// Whatever is done wrong with an invite, neither it nor its token is printed or logged.
#[test]
fn an_invite_is_never_printed() {
    let user = User::new();
    let whole = invite();
    let body = whole.strip_prefix("webrtc-connect:").unwrap();
    let file = user.file("invite.txt", &whole);
    let file = file.to_str().unwrap();
    let cut = &whole[..whole.len() - 5];
    for args in [
        &["train", &whole][..],
        &["train", "./", "--config", &whole],
        &["train", "x.zip", &whole],
        &["status", &whole],
        &[&whole],
        &["watch", "--from", &whole, "--invite-file", file],
        &["status", "--bind", &whole],
        &["status", "--invite", cut],
        &["doctor", "--invite", cut],
        &["doctor", "--invite", &whole, "--ice-servers", &whole],
        &["doctor", "--invite-file", file],
        &["status", "--invite", &whole, "--worker", &whole, "--ice-servers", &whole],
        &["status", "--invite-file", &whole],
        &["status", "--config-file", &whole],
        &["train", &data("with_images.pkg.slp"), "--invite-file", file, "--config", &whole],
    ] {
        for verbosity in [&[][..], &["-vv"], &["--json"]] {
            let said = user.says(&[args, verbosity].concat());
            assert_ne!(said.code, 0);
            for text in [&said.stdout, &said.stderr] {
                assert!(!text.contains(CANARY) && !text.contains(&body[..24]), "{args:?}: {text}");
            }
        }
    }
}
