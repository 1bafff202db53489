//! Invites that do not fit, rooms that are gone, programs that are not there.

use std::time::Duration;

use shared::domain::{id::Secret, invite::Invite};

use crate::stack::{Plan, Said, Stack, Trainer};

/// `status` with this invite.
fn status(stack: &Stack, invite: &Invite) -> Said {
    let file = stack.file("other.txt", invite.expose());
    stack.run(&["status", "--invite-file", file.to_str().unwrap()])
}

#[test]
fn an_invite_of_another_room_or_a_damaged_one_is_refused() {
    let stack = Plan::new(Trainer::Missing).start();
    let other = Plan::new(Trainer::Missing).start().invite();
    let ours = stack.invite();
    status(&stack, &Invite { secret: other.secret.clone(), ..ours.clone() }).refuses(5, &["invite", "ask for a new invite"]);
    status(&stack, &Invite { worker_key: other.worker_key, ..ours.clone() }).refuses(5, &["invite"]);
    status(&stack, &Invite { room: other.room.clone(), ..ours.clone() }).refuses(5, &["room of this invite is gone or expired"]);
    status(&stack, &Invite { token: Secret::new("wrong".into()), ..ours.clone() }).refuses(5, &["room of this invite is gone"]);
    let text = ours.expose();
    let damaged = stack.file("damaged.txt", &text[..text.len() - 9]);
    stack.run(&["status", "--invite-file", damaged.to_str().unwrap()]).refuses(5, &["damaged or cut short"]);
    assert_eq!(stack.run(&["status"]).code, 0);
}

#[test]
fn an_expired_room_says_whom_to_ask() {
    let mut plan = Plan::new(Trainer::Missing);
    plan.worker = vec!["--room-ttl".into(), "2".into()];
    let mut stack = plan.start();
    stack.worker.take().unwrap().kill();
    let said = stack.run(&["status"]);
    said.refuses(5, &["gone or expired", "ask for the invite that webrtc-worker prints now"]);
}

#[test]
fn a_server_that_is_not_there_is_told_at_once() {
    let mut stack = Plan::new(Trainer::Missing).start();
    stack.server.kill();
    let said = stack.run(&["status"]);
    said.refuses(4, &["the signaling server", "cannot be reached", "webrtc-server"]);
    assert!(said.took < Duration::from_secs(5), "{:?}", said.took);
}

#[test]
fn an_absent_worker_is_waited_for_twenty_seconds() {
    let mut stack = Plan::new(Trainer::Missing).start();
    stack.worker.take().unwrap().kill();
    let said = stack.run(&["status"]);
    said.refuses(4, &["webrtc-worker"]);
    assert!((15..30).contains(&said.took.as_secs()), "{:?}", said.took);
    assert!(said.events.iter().any(|event| event["type"] == "disconnected"), "{}", said.stdout);
}
