//! Secrets stay where they belong, however much is logged.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use shared::domain::{id::hex, invite::Invite};

use crate::{
    proxy::Proxy,
    stack::{Plan, Stack, Trainer},
};

/// Every form in which a secret of this lab could leak, by its name.
fn canaries(stack: &Stack, proxy: &Proxy) -> Vec<(&'static str, String)> {
    let Invite { token, secret, .. } = stack.invite();
    let room: serde_json::Value = serde_json::from_slice(&fs::read(stack.worker_data().join("room.json")).unwrap()).unwrap();
    let invite = fs::read_to_string(stack.invite_file()).unwrap();
    let mut canaries = vec![
        ("room token", token.expose().clone()),
        ("room secret", room["secret"].as_str().unwrap().to_owned()),
        ("invite", invite.trim().rsplit(':').next().unwrap()[60..].to_owned()),
        ("invite secret", URL_SAFE_NO_PAD.encode(secret.expose())),
        ("invite secret in hex", hex(secret.expose())),
        ("invite secret in Debug", format!("{:?}", secret.expose()).trim_matches(['[', ']']).to_owned()),
    ];
    let registered = proxy.seen("register");
    assert_eq!(registered.len(), 2, "worker and client came through the proxy");
    canaries.extend(registered.iter().map(|message| ("id token", message["id_token"].as_str().unwrap().to_owned())));
    canaries
}

/// The command lines of all processes of this folder, until told to end.
fn watch_command_lines(folder: PathBuf, stop: Arc<AtomicBool>) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut seen = String::new();
        while !stop.load(Ordering::Relaxed) {
            for process in crate::stack::processes_of(&folder) {
                if !seen.contains(&process.command) {
                    seen.push_str(&process.command);
                    seen.push('\n');
                }
            }
            thread::sleep(Duration::from_millis(20));
        }
        seen
    })
}

/// The content of all files below a folder, apart from files and folders of these names.
fn content(folder: &Path, except: &[&str]) -> String {
    let mut all = String::new();
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        if except.iter().any(|except| name == *except) {
            continue;
        }
        if path.is_dir() {
            all.push_str(&content(&path, except));
        } else if path.is_file() {
            all.push_str(&String::from_utf8_lossy(&fs::read(&path).unwrap()));
        }
    }
    all
}

#[test]
fn no_secret_is_logged_printed_kept_or_shown_to_other_users() {
    let mut plan = Plan::new(Trainer::Lite);
    plan.log = "trace";
    let mut stack = plan.start_server();
    let proxy = Proxy::start(&stack.url, Box::new(|_| {}));
    let server = std::mem::replace(&mut stack.url, proxy.url.clone());
    stack.start_worker();
    let stop = Arc::new(AtomicBool::new(false));
    let watching = watch_command_lines(stack.home().to_owned(), stop.clone());
    let said = stack.train(1);
    stop.store(true, Ordering::Relaxed);
    assert_eq!((said.code, said.finished().0), (0, "completed"));
    let metrics = get(&server, "/metrics");
    assert!(metrics.contains("# TYPE"), "{metrics}");
    let worker = stack.worker.as_ref().unwrap();
    let places = [
        ("the server's log", stack.server.err.text()),
        ("the server's stdout", stack.server.out.text()),
        ("the worker's log", worker.err.text()),
        ("the client's log", said.stderr),
        ("the client's stdout", said.stdout),
        ("a command line", watching.join().unwrap()),
        ("the metrics", metrics),
        ("the server's files", content(&stack.home().join("server"), &[])),
        ("the worker's files", content(&stack.worker_data(), &["room.json", "identity.json", "id-tokens"])),
        ("the models", content(&stack.output(), &[])),
    ];
    for (secret, canary) in canaries(&stack, &proxy) {
        assert!(canary.len() >= 16, "{secret} is too short to be looked for");
        for (place, text) in &places {
            assert!(!text.contains(&canary), "the {secret} is in {place}");
        }
    }
    assert!(places[2].1.contains("TRACE") && places[5].1.contains("sleap_nn_lite"), "nothing was looked at");
}

/// One GET, without a library.
fn get(server: &str, path: &str) -> String {
    use std::io::{Read, Write};
    let host = server.strip_prefix("http://").unwrap();
    let mut stream = std::net::TcpStream::connect(host).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}
