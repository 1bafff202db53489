//! A signaling server that tampers: whatever it does, the client refuses and never connects.
//!
//! Someone in the middle who holds an invite is tested where both connections can be built by hand: `shared`, `runtime::link`.

use serde_json::{Value, json};
use shared::domain::invite::Invite;

use crate::{
    proxy::{Meddle, Proxy},
    stack::{Plan, Said, Stack, Trainer},
};

/// `status` through this proxy.
fn status(stack: &Stack, proxy: &Proxy) -> Said {
    let invite = Invite { server: proxy.url.clone(), ..stack.invite() };
    let file = stack.file("through_proxy.txt", invite.expose());
    stack.run(&["status", "--invite-file", file.to_str().unwrap()])
}

/// The client refuses this server: exit code 5, and no connection.
#[track_caller]
fn refused(stack: &Stack, meddle: impl FnMut(&mut Value) + Send + 'static) -> Said {
    let said = status(stack, &Proxy::start(&stack.url, Box::new(meddle) as Meddle));
    said.refuses(5, &[]);
    assert!(!said.events.iter().any(|event| event["type"] == "connected"), "{}", said.stdout);
    said
}

/// What an honest session sends of this type: first offer, first answer.
fn recorded(stack: &Stack, kind: &str) -> Value {
    let honest = Proxy::start(&stack.url, Box::new(|_| {}));
    assert_eq!(status(stack, &honest).code, 0);
    honest.seen(kind)[0].clone()
}

fn lab() -> Stack {
    Plan::new(Trainer::Missing).start()
}

#[test]
fn an_altered_answer_is_refused() {
    let said = refused(&lab(), |message| {
        if message["type"] == "answer" {
            let sealed = message["sdp"].as_str().unwrap().to_owned();
            let middle = sealed.len() / 2;
            let other = if &sealed[middle..=middle] == "A" { "B" } else { "A" };
            message["sdp"] = format!("{}{other}{}", &sealed[..middle], &sealed[middle + 1..]).into();
        }
    });
    said.refuses(5, &["tampered", "invite"]);
}

#[test]
fn an_answer_of_another_session_is_refused() {
    let stack = lab();
    let old = recorded(&stack, "answer");
    let said = refused(&stack, move |message| {
        if message["type"] == "answer" {
            message["sdp"] = old["sdp"].clone();
        }
    });
    said.refuses(5, &["tampered"]);
}

#[test]
fn an_old_offer_in_the_place_of_the_new_one_is_refused_by_the_worker() {
    let stack = lab();
    let old = recorded(&stack, "offer");
    let said = refused(&stack, move |message| {
        if message["type"] == "offer" {
            message["sdp"] = old["sdp"].clone();
        }
    });
    said.refuses(5, &["tampered"]);
}

/// Five in a row: a worker answers four at a time, and those that left must not keep the next one out.
#[test]
fn an_answer_that_is_not_sealed_is_refused() {
    let stack = lab();
    let sdp = "v=0\r\no=- 1 1 IN IP4 0.0.0.0\r\ns=-\r\nt=0 0\r\na=fingerprint:sha-256 00\r\n";
    for plain in [json!(sdp), json!({"type": "answer", "sdp": sdp}), json!("sealed.submit."), json!("sealed.watch.AAAA"), Value::Null] {
        let said = refused(&stack, move |message| {
            if message["type"] == "answer" {
                message["sdp"] = plain.clone();
            }
        });
        said.refuses(5, &["tampered"]);
    }
}

#[test]
fn candidates_that_are_not_sealed_are_refused() {
    refused(&lab(), |message| {
        if message["type"] == "answer" {
            // Held back: otherwise the worker's own checks may connect both before the first candidate is here.
            *message = json!({"type": "metadata_updated"});
        }
        if message["type"] == "candidate" && message.get("sender").is_some() {
            message["candidate"] = json!({"candidate": "candidate:1 1 udp 1 127.0.0.1 9 typ host", "sdpMid": "0", "sdpMLineIndex": 0});
        }
    });
}

#[test]
fn a_worker_that_the_room_does_not_vouch_for_is_refused() {
    let said = refused(&lab(), |message| {
        if message["type"] == "registered_auth" {
            message["peers"][0]["peer_id"] = "worker-evil".into();
            message["peers"][0]["metadata"]["worker"]["peer"] = "worker-evil".into();
        }
    });
    said.refuses(5, &["vouch", "worker-evil"]);
}

#[test]
fn what_a_server_says_moves_no_cursor() {
    let said = refused(&lab(), |message| {
        if message["type"] == "registered_auth" {
            *message = json!({"type": "error", "code": "FORBIDDEN", "message": "\u{1b}[2J\u{1b}]0;owned\u{7}go away\u{202e}"});
        }
    });
    said.refuses(5, &["go away"]);
    assert!(!said.stderr.contains(['\x1b', '\x07', '\u{202e}']), "{}", said.stderr);
}
