//! The walls of the source: calls go down (api → runtime → domain), a domain is pure, and a heavy crate is named in one place, so that
//! its next breaking change touches one place.
//!
//! This is a reader of paths, not of types: comments and literals are blanked out, `use` groups are spread, and each path such as
//! `crate::runtime::store` is held against the rules. What it cannot see (`clippy.toml` lists it) clippy denies.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

const CRATES: [&str; 4] = ["shared", "signaling-server", "worker", "client"];

/// Where each heavy crate may be named: a file, or a folder that ends in `/`.
const HEAVY: [(&str, &str); 8] = [
    ("webrtc", "shared/src/runtime/peer/"),
    ("rtc", "shared/src/runtime/peer/"),
    ("zeromq", "worker/src/runtime/progress.rs"),
    ("redb", "signaling-server/src/runtime/store/redb.rs"),
    ("jsonwebtoken", "signaling-server/src/runtime/auth.rs"),
    ("aws_sdk_dynamodb", "signaling-server/src/runtime/store/dynamodb/"),
    ("aws_sdk_cognitoidentityprovider", "signaling-server/src/runtime/cognito/"),
    ("async_nats", "signaling-server/src/runtime/relay/nats.rs"),
];

/// What a domain may not name: the beginning of a path. Values such as `IpAddr` are in `core::net`, too.
const IMPURE: [&str; 10] = [
    "crate::runtime",
    "crate::api",
    "shared::runtime",
    "tokio",
    "getrandom",
    "std::fs",
    "std::net",
    "std::env",
    "std::process",
    "std::thread",
];
/// What a domain may not call: the end of a path.
const CLOCKS: [&str; 2] = ["Instant::now", "SystemTime::now"];
const DENIED: &str = "#![deny(clippy::disallowed_methods,clippy::disallowed_types)]";

#[test]
fn no_room_names_an_upper_one_and_heavy_crates_have_one_place() {
    let root = root();
    let mut broken = Vec::new();
    for name in CRATES {
        let files = sources(&root.join(name).join("src"));
        let domain = root.join(name).join("src/domain/mod.rs");
        assert!(files.contains(&domain), "{} is missing: is this test looking in the right place?", domain.display());
        for file in files {
            let text = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
            let place = file.strip_prefix(&root).expect("it was found below the root").to_str().expect("our file names are ASCII");
            broken.extend(check(place, &text));
        }
    }
    assert!(broken.is_empty(), "\n{}\n", broken.join("\n"));
}

#[test]
fn the_server_does_not_contain_webrtc() {
    assert!(packages(&["worker"]).contains_key("webrtc"), "cargo tree does not tell what it should");
    let server = packages(&["signaling-server"]);
    for name in ["webrtc", "rtc", "zeromq"] {
        assert!(!server.contains_key(name), "signaling-server depends on {name}: cargo tree -p signaling-server -i {name}");
    }
}

#[test]
fn the_server_without_the_feature_aws_does_not_contain_its_sdk() {
    let is_aws = |name: &&String| name.starts_with("aws-sdk-") || name.starts_with("aws-smithy-") || *name == "aws-config";
    assert!(packages(&["signaling-server"]).keys().any(|name| is_aws(&name)), "the feature is on of its own accord");
    let without = packages(&["signaling-server", "--no-default-features"]);
    assert_eq!(without.keys().find(is_aws), None);
}

/// The packages that a program is linked from, and their versions.
fn packages(package: &[&str]) -> BTreeMap<String, String> {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--offline", "--edges", "normal", "--prefix", "none", "--package"])
        .args(package)
        .current_dir(root())
        .output()
        .expect("cargo built this test, so it can be started");
    assert!(output.status.success(), "cargo tree failed: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("cargo prints UTF-8");
    text.lines().filter_map(|line| line.split_once(" v")).map(|(name, rest)| (name.to_owned(), rest.to_owned())).collect()
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package lies in the workspace").to_owned()
}

fn sources(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.expect("a folder of ours can be read").path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Everything that is wrong with one file, each as `file:line: sentence`. `place` is relative to the workspace.
fn check(place: &str, text: &str) -> Vec<String> {
    let code = blank_out(text);
    let room = place.split('/').nth(2).unwrap_or_default().trim_end_matches(".rs");
    let mut broken = Vec::new();
    for (line, path) in paths(&code) {
        let wrong = match room {
            "domain" => impurity(&path),
            "runtime" => names_room(&path, "api").then(|| format!("a runtime must not name the api ({path})")),
            _ => None,
        };
        broken.extend(wrong.into_iter().chain(misplaced(place, &path)).map(|wrong| format!("{place}:{line}: {wrong}")));
    }
    if place.ends_with("src/domain/mod.rs") && !opens_with_deny(&code) {
        broken.push(format!("{place}:1: it must open with {DENIED}"));
    }
    broken
}

fn impurity(path: &str) -> Option<String> {
    for room in ["runtime", "api"] {
        if names_room(path, room) {
            return Some(format!("a domain must not name the {room} ({path})"));
        }
    }
    if IMPURE.iter().any(|start| starts_with(path, start)) {
        return Some(format!("a domain does no I/O and starts nothing ({path})"));
    }
    let clock = CLOCKS.iter().any(|end| path == *end || path.ends_with(&format!("::{end}")));
    clock.then(|| format!("a domain has no clock: take the time as an argument ({path})"))
}

/// Whether a path leads to a room of its own crate: `crate::api`, or `super::super::api`.
fn names_room(path: &str, room: &str) -> bool {
    let mut parts = path.split("::").skip_while(|part| *part == "super").peekable();
    let relative = path.starts_with("super::");
    (relative || parts.next() == Some("crate")) && parts.next() == Some(room)
}

fn misplaced(place: &str, path: &str) -> Option<String> {
    let (name, home) = HEAVY.iter().find(|(name, _)| starts_with(path, name))?;
    let home_is_here = if home.ends_with('/') { place.starts_with(home) } else { place == *home };
    (!home_is_here).then(|| format!("{name} is named in {home} only"))
}

fn starts_with(path: &str, start: &str) -> bool {
    path.strip_prefix(start).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

fn opens_with_deny(code: &str) -> bool {
    code.split_whitespace().collect::<String>().starts_with(DENIED)
}

/// The text with comments, and what is in string and character literals, replaced by blanks; lines stay where they are.
fn blank_out(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let length = token_to_blank(rest, out.chars().next_back());
        if length == 0 {
            out.push(first);
            rest = &rest[first.len_utf8()..];
        } else {
            out.extend(rest[..length].chars().map(|c| if c == '\n' { c } else { ' ' }));
            rest = &rest[length..];
        }
    }
    out
}

/// How many bytes of a comment or a literal the text begins with.
fn token_to_blank(text: &str, before: Option<char>) -> usize {
    let until = |end: &str| text.find(end).unwrap_or(text.len());
    if text.starts_with("//") {
        return until("\n");
    }
    if text.starts_with("/*") {
        return block_comment(text);
    }
    if text.starts_with('"') {
        return quoted(text, '"');
    }
    let in_word = before.is_some_and(|c| c.is_alphanumeric() || c == '_');
    if !in_word && (text.starts_with('r') || text.starts_with("br")) {
        return raw_string(text);
    }
    // 'x' and '\n' are characters, 'a in front of anything else is a lifetime.
    let mut chars = text.chars();
    match (chars.next(), chars.next(), chars.next()) {
        (Some('\''), Some('\\'), _) | (Some('\''), Some(_), Some('\'')) => quoted(text, '\''),
        _ => 0,
    }
}

fn block_comment(text: &str) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while at < text.len() {
        let rest = &text[at..];
        match rest {
            _ if rest.starts_with("/*") => (depth, at) = (depth + 1, at + 2),
            _ if rest.starts_with("*/") => (depth, at) = (depth - 1, at + 2),
            _ => at += rest.chars().next().map_or(1, char::len_utf8),
        }
        if depth == 0 {
            break;
        }
    }
    at
}

fn quoted(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == quote => return at + 1,
            _ => {}
        }
    }
    text.len()
}

fn raw_string(text: &str) -> usize {
    let open = text.trim_start_matches('b').trim_start_matches('r');
    let hashes = open.chars().take_while(|c| *c == '#').count();
    if !open[hashes..].starts_with('"') {
        return 0;
    }
    let start = text.len() - open.len() + hashes + 1;
    let end = format!("\"{}", "#".repeat(hashes));
    text[start..].find(&end).map_or(text.len(), |at| start + at + end.len())
}

/// Every path in the code with its line, `use a::{b, c::d}` as `a::b` and `a::c::d`.
fn paths(code: &str) -> Vec<(usize, String)> {
    let tokens = tokens(code);
    let mut found = Vec::new();
    // One prefix for each open brace; a brace that no path opens has none.
    let mut open: Vec<Option<String>> = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let (line, token) = tokens[at];
        match token {
            "{" => open.push(None),
            "}" => drop(open.pop()),
            _ if is_name(token) || token == "::" => {
                let prefix = open.last().cloned().flatten();
                let in_use = at > 0 && tokens[at - 1].1 == "use";
                let (path, next) = read_path(&tokens, at);
                at = next;
                let whole = prefix.map_or_else(|| path.clone(), |prefix| format!("{prefix}::{path}"));
                if tokens.get(at).is_some_and(|(_, token)| *token == "{") && tokens[at - 1].1 == "::" {
                    open.push(Some(whole));
                    at += 1;
                } else if in_use || whole.contains("::") {
                    // A name by itself is a keyword, or something local.
                    found.push((line, whole));
                }
                continue;
            }
            _ => {}
        }
        at += 1;
    }
    found
}

/// A path from a token on, and the index of the token behind it.
fn read_path(tokens: &[(usize, &str)], mut at: usize) -> (String, usize) {
    let mut parts = Vec::new();
    loop {
        if tokens.get(at).is_some_and(|(_, token)| *token == "::") {
            at += 1;
        }
        match tokens.get(at) {
            Some((_, token)) if is_name(token) => parts.push(*token),
            _ => break,
        }
        at += 1;
        if tokens.get(at).is_none_or(|(_, token)| *token != "::") {
            break;
        }
    }
    (parts.join("::"), at)
}

fn is_name(token: &str) -> bool {
    token.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// Names, `::`, and every other character by itself, each with its line.
fn tokens(code: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    for (number, mut rest) in code.lines().enumerate().map(|(index, line)| (index + 1, line)) {
        while let Some(first) = rest.chars().next() {
            let length = match first {
                _ if rest.starts_with("::") => 2,
                _ if first.is_alphanumeric() || first == '_' => rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len()),
                _ => first.len_utf8(),
            };
            if !first.is_whitespace() {
                found.push((number, &rest[..length]));
            }
            rest = &rest[length..];
        }
    }
    found
}

/// The lines that [`check`] finds fault with.
fn faults(place: &str, text: &str) -> Vec<usize> {
    let lines = check(place, text);
    lines.iter().map(|line| line[place.len() + 1..].split(':').next().unwrap().parse().unwrap()).collect()
}

#[test]
fn each_rule_can_fail() {
    for (place, text) in [
        ("worker/src/domain/a.rs", "use crate::runtime::gpu;"),
        ("worker/src/domain/a.rs", "use crate::{domain::b, runtime::gpu};"),
        ("worker/src/domain/a.rs", "use super::super::api;"),
        ("worker/src/domain/a.rs", "use shared::{domain::id, runtime::{store::{self}}};"),
        ("shared/src/domain/a/b.rs", "fn f() { tokio::spawn(g()); }"),
        ("shared/src/domain/a.rs", "fn f() { let x = ::std::fs::read(p); }"),
        ("shared/src/domain/a.rs", "use std::{collections::BTreeMap, net::{IpAddr}};"),
        ("shared/src/domain/a.rs", "const A: &'static str = \"x\"; fn f() { std::env::var(A); }"),
        ("client/src/domain/a.rs", "let now = Instant::now();"),
        ("client/src/domain/a.rs", "let now = std::time::SystemTime :: now();"),
        ("client/src/domain.rs", "use crate::api;"),
        ("client/src/runtime/a.rs", "let quote = '\"'; use crate::api::cli; let other = '\"';"),
        ("client/src/runtime/a.rs", "use webrtc::peer_connection::PeerConnection;"),
        ("worker/src/runtime/other.rs", "let socket = zeromq::SubSocket::new();"),
        ("worker/src/main.rs", "use {rtc::ice, std::fs};"),
        ("signaling-server/src/runtime/store/mod.rs", "use redb::Database;"),
        ("signaling-server/src/domain/mod.rs", "//! Pure.\n\npub mod a;\n#![deny(clippy::disallowed_methods, clippy::disallowed_types)]"),
    ] {
        assert_eq!(faults(place, text), [1], "{place}: {text}");
    }
}

#[test]
fn what_is_right_is_left_alone() {
    for (place, text) in [
        ("worker/src/domain/a.rs", "//! See crate::runtime, tokio and std::fs.\n/* use /* tokio */ ::fs; */ use crate::domain::b;"),
        ("worker/src/domain/a.rs", r###"const A: &str = "tokio::spawn \" std::fs"; const B: &str = r#"crate::api " std::net"#;"###),
        (
            "worker/src/domain/a.rs",
            "fn f<'a>(now: Instant, at: &'a SystemTime) { my_tokio::spawn(); self.tokio_like; core::net::IpAddr::V4; }",
        ),
        ("worker/src/domain/a.rs", "#[cfg(test)] mod tests { use super::*; }"),
        ("worker/src/api/cli.rs", "use crate::{domain::a, runtime::b}; use std::{env, net::SocketAddr};"),
        ("worker/src/runtime/a.rs", "use crate::domain::b; let api = 1; f(api);"),
        ("shared/src/runtime/peer/connection.rs", "use webrtc::data_channel::DataChannel; use rtc::ice;"),
        ("signaling-server/src/runtime/store/mod.rs", "mod redb;\npub use self::{memory::MemoryStore, redb::RedbStore};"),
        ("client/src/domain/mod.rs", "//! Pure.\n#![deny(clippy::disallowed_methods, clippy::disallowed_types)]\n\npub mod a;"),
    ] {
        assert_eq!(check(place, text), [""; 0], "{place}: {text}");
    }
}

#[test]
fn a_fault_is_found_on_its_own_line() {
    let text = "//! Text.\n\nuse std::{\n    collections::BTreeMap,\n    fs,\n};\n\nfn f() -> &'static str {\n    \"a\n b\"\n}\n\nuse tokio::net;\n";
    assert_eq!(faults("shared/src/domain/a.rs", text), [5, 13]);
    assert_eq!(check("shared/src/domain/a.rs", text)[0], "shared/src/domain/a.rs:5: a domain does no I/O and starts nothing (std::fs)");
}
