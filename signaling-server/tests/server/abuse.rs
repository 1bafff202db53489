//! Peers that misbehave are refused or cut, and nobody else notices.

use std::time::Duration;

use futures_util::SinkExt;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_tungstenite::{
    connect_async,
    tungstenite::{
        self, Message,
        protocol::frame::{
            Frame,
            coding::{Data, OpCode},
        },
    },
};

use super::support::{PATIENCE, Peer, TestServer, User};
use shared::domain::signal::CreatedRoom;

async fn room(server: &TestServer) -> (User, CreatedRoom, Peer) {
    let owner = server.sign_in().await;
    let room = server.create_room(&owner).await;
    let worker = server.join(&room, &owner, "w").await;
    (owner, room, worker)
}

#[tokio::test]
async fn a_socket_that_does_not_register_is_closed() {
    let server = TestServer::start_with(|config| config.timing.register = Duration::from_millis(100)).await;
    assert_eq!(server.connect().await.closed().await, 4408);
}

#[tokio::test]
async fn a_request_whose_head_does_not_come_is_cut() {
    let server = TestServer::start_with(|config| config.timing.head = Duration::from_millis(100)).await;
    let mut slow = TcpStream::connect(&server.address).await.unwrap();
    slow.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: ").await.unwrap();
    let mut rest = Vec::new();
    timeout(PATIENCE, slow.read_to_end(&mut rest)).await.unwrap().unwrap();
    assert!(!rest.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&rest));
}

#[tokio::test]
async fn a_huge_head_is_refused() {
    let server = TestServer::start().await;
    let mut greedy = TcpStream::connect(&server.address).await.unwrap();
    let head = format!("GET / HTTP/1.1\r\nHost: x\r\nX-Big: {}\r\n\r\n", "x".repeat(64 * 1024));
    // The server may close before all is written.
    let _ = greedy.write_all(head.as_bytes()).await;
    let mut answer = [0; 12];
    timeout(PATIENCE, greedy.read_exact(&mut answer)).await.unwrap().unwrap();
    assert_eq!(&answer, b"HTTP/1.1 431");
}

#[tokio::test]
async fn a_request_whose_body_does_not_come_is_answered_all_the_same() {
    let server = TestServer::start_with(|config| config.timing.request = Duration::from_millis(100)).await;
    let user = server.sign_in().await;
    let mut slow = TcpStream::connect(&server.address).await.unwrap();
    let head = format!("POST /create-room HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\nContent-Length: 9\r\n\r\n", user.token);
    slow.write_all(head.as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    timeout(PATIENCE, slow.read_exact(&mut answer)).await.unwrap().unwrap();
    assert_eq!(&answer, b"HTTP/1.1 503");
}

#[tokio::test]
async fn what_is_not_a_text_message_of_bearable_size_closes_the_socket() {
    let server = TestServer::start().await;
    let (owner, room, mut worker) = room(&server).await;
    let large = json!({"type": "peer_message", "to_peer_id": "w", "payload": "x".repeat(70 * 1024)});
    let not_utf8 = Frame::message(vec![0xff, 0xfe], OpCode::Data(Data::Text), true);
    let reserved = Frame::message(vec![1], OpCode::Data(Data::Reserved(3)), true);
    for (message, code) in [
        (Message::binary(vec![1, 2, 3]), 1003),
        (Message::text(large.to_string()), 1009),
        (Message::Frame(not_utf8), 1007),
        (Message::Frame(reserved), 1002),
    ] {
        let mut peer = server.connect().await;
        peer.send_raw(message.clone()).await;
        assert_eq!(peer.closed().await, code, "before the registration");
        let mut peer = server.join(&room, &owner, "c").await;
        peer.send_raw(message).await;
        assert_eq!(peer.closed().await, code, "after it");
    }
    assert_eq!(worker.ask(json!({"type": "discover_peers"})).await["type"], "peer_list");
}

/// A fragment of a text, of which more follow.
fn fragment(payload: &'static [u8], code: Data) -> Message {
    Message::Frame(Frame::message(payload, OpCode::Data(code), false))
}

#[tokio::test]
async fn small_fragments_of_a_large_message_close_the_socket() {
    let server = TestServer::start().await;
    let (_, room, mut worker) = room(&server).await;
    let mut peer = server.join(&room, &server.sign_in().await, "c").await;
    let piece: &[u8] = &[b'x'; 1000];
    peer.send_raw(fragment(piece, Data::Text)).await;
    for _ in 0..70 {
        // The server closes in the middle; what is written after that fails.
        if peer.socket.send(fragment(piece, Data::Continue)).await.is_err() {
            break;
        }
    }
    assert_eq!(peer.closed().await, 1009);
    assert_eq!(worker.ask(json!({"type": "discover_peers"})).await["count"], 0);
}

#[tokio::test]
async fn fragments_without_end_do_not_keep_a_socket_that_does_not_register() {
    let server = TestServer::start_with(|config| config.timing.register = Duration::from_millis(200)).await;
    let mut peer = server.connect().await;
    peer.send_raw(fragment(b"x", Data::Text)).await;
    for _ in 0..10_000 {
        if peer.socket.send(fragment(b"", Data::Continue)).await.is_err() {
            break;
        }
    }
    assert_eq!(peer.closed().await, 4408);
}

#[tokio::test]
async fn pings_count_as_messages() {
    let server = TestServer::start().await;
    let (_, room, mut worker) = room(&server).await;
    let mut flooder = server.join(&room, &server.sign_in().await, "c").await;
    for _ in 0..300 {
        if flooder.socket.send(Message::Ping(Default::default())).await.is_err() {
            break;
        }
    }
    assert_eq!(flooder.closed().await, 4429);
    assert_eq!(worker.ask(json!({"type": "discover_peers"})).await["count"], 0);
}

#[tokio::test]
async fn requests_that_stay_half_open_hold_up_honest_peers_no_longer_than_their_head_may_take() {
    let server = TestServer::start_with(|config| {
        config.timing.head = Duration::from_millis(200);
        config.limits.connections = 5;
    })
    .await;
    let mut slow = Vec::new();
    for _ in 0..20 {
        let mut half = TcpStream::connect(&server.address).await.unwrap();
        half.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n").await.unwrap();
        slow.push(half);
    }
    let (_, room, mut worker) = room(&server).await;
    let client = server.join(&room, &server.sign_in().await, "c").await;
    assert_eq!(worker.ask(json!({"type": "discover_peers"})).await["count"], 1);
    client.leave().await;
    for mut half in slow {
        let mut rest = Vec::new();
        timeout(PATIENCE, half.read_to_end(&mut rest)).await.unwrap().unwrap();
        assert!(!rest.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&rest));
    }
}

#[tokio::test]
async fn a_frame_that_only_announces_a_gigabyte_is_refused_at_once() {
    let server = TestServer::start().await;
    let mut socket = TcpStream::connect(&server.address).await.unwrap();
    let upgrade = "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    socket.write_all(upgrade.as_bytes()).await.unwrap();
    // A masked text frame of 2^30 bytes (RFC 6455 §5.2), of which none follows.
    socket.write_all(&[0x81, 0xff, 0, 0, 0, 0, 0x40, 0, 0, 0, 1, 2, 3, 4]).await.unwrap();
    let mut answer = Vec::new();
    timeout(PATIENCE, socket.read_to_end(&mut answer)).await.unwrap().unwrap();
    let close = answer.windows(4).any(|bytes| bytes[0] == 0x88 && bytes[2..4] == 1009_u16.to_be_bytes());
    assert!(close, "{answer:?}");
}

#[tokio::test]
async fn nonsense_is_answered_and_does_not_cost_the_socket() {
    let server = TestServer::start().await;
    let (_, _, mut worker) = room(&server).await;
    let deep = format!(r#"{{"type":"peer_message","to_peer_id":"w","payload":{}}}"#, "[".repeat(10_000));
    for nonsense in ["", "{", "null", "[]", r#"{"type":5}"#, r#"{"type":"offer"}"#, r#"{"type":"offer","target":"../..","sdp":1}"#, &deep] {
        worker.send_raw(Message::text(nonsense.to_owned())).await;
        worker.expect_error("INVALID_REQUEST").await;
    }
    let big = json!({"type": "update_metadata", "metadata": {"x": "x".repeat(20_000)}});
    worker.send(big).await;
    worker.expect_error("TOO_LARGE").await;
}

#[tokio::test]
async fn a_flood_is_cut_and_the_others_go_on() {
    let server = TestServer::start().await;
    let (_, room, mut worker) = room(&server).await;
    let mut flooder = server.join(&room, &server.sign_in().await, "c").await;
    for _ in 0..300 {
        // The server cuts in the middle; what is written after that fails.
        if flooder.socket.send(Message::text("{}")).await.is_err() {
            break;
        }
    }
    assert_eq!(flooder.closed().await, 4429);
    assert_eq!(worker.ask(json!({"type": "discover_peers"})).await["count"], 0);
}

#[tokio::test]
async fn a_peer_that_answers_no_ping_is_gone_soon() {
    let server = TestServer::start_with(|config| {
        config.timing.ping = Duration::from_millis(50);
        config.timing.silence = Duration::from_millis(120);
    })
    .await;
    let (_, room, mut worker) = room(&server).await;
    // Pongs are sent while reading, and this one does not read on.
    let mut dead = server.join(&room, &server.sign_in().await, "c").await;
    dead.send(json!({"type": "offer", "target": "w", "sdp": 1})).await;
    worker.expect("offer").await;
    worker.expect("peer_left").await;
    assert_eq!(dead.closed().await, 4408);
}

#[tokio::test]
async fn a_peer_that_does_not_read_is_busy_then_cut() {
    let server = TestServer::start_with(|config| {
        config.timing.send = Duration::from_millis(300);
        config.limits.messages_per_second = 100_000;
        config.limits.message_burst = 100_000;
    })
    .await;
    let (_, room, mut worker) = room(&server).await;
    let _deaf = server.join(&room, &server.sign_in().await, "c").await;
    let large = json!({"type": "peer_message", "to_peer_id": "c", "payload": "x".repeat(60_000)});
    let mut seen = std::collections::BTreeSet::new();
    while !seen.contains("PEER_NOT_FOUND") {
        worker.send(large.clone()).await;
        // Deliveries are not answered, so ask something that is: all before its answer belongs to the message.
        worker.send(json!({"type": "discover_peers"})).await;
        loop {
            let answer = worker.receive().await;
            match answer["type"].as_str() {
                Some("peer_list") => break,
                Some("peer_left") => {}
                _ => drop(seen.insert(answer["code"].as_str().unwrap().to_owned())),
            }
        }
    }
    assert!(seen.contains("PEER_BUSY"), "{seen:?}");
}

#[tokio::test]
async fn one_address_has_a_share_of_sockets() {
    let server = TestServer::start_with(|config| {
        config.limits.sockets_per_address = 2;
        config.limits.requests_per_minute = 1_000_000;
    })
    .await;
    let (_one, two) = (server.connect().await, server.connect().await);
    let refused = connect_async(format!("ws://{}/", server.address)).await.unwrap_err();
    assert!(matches!(&refused, tungstenite::Error::Http(response) if response.status() == 429), "{refused}");
    two.leave().await;
    while server.get("/health").await.1["details"]["sockets"] != 1 {}
    server.connect().await;
}

#[tokio::test]
async fn sign_ins_and_registrations_are_limited_by_address() {
    let server = TestServer::start_with(|config| {
        config.limits.sign_ins_per_minute = 2;
        config.limits.registrations_per_minute = 3;
    })
    .await;
    let (owner, room, _worker) = room(&server).await;
    server.sign_in().await;
    let (status, answer) = server.call("post", "/anonymous-signin", None, None).await;
    assert_eq!((status, &answer["error"]["code"]), (429, &json!("RATE_LIMITED")));
    let mut guesser = server.connect().await;
    let wrong = CreatedRoom { token: shared::domain::id::Secret::new("guess".to_owned()), ..room };
    for expected in ["ROOM_NOT_FOUND", "ROOM_NOT_FOUND", "RATE_LIMITED"] {
        assert_eq!(guesser.ask(super::support::register(&wrong, &owner, "c")).await["code"], expected);
    }
}

#[tokio::test]
async fn guessing_at_a_room_does_not_lock_its_peers_out() {
    let server = TestServer::start_with(|config| config.limits.strangers_per_minute = 3).await;
    let (owner, room, worker) = room(&server).await;
    let (member, guesser, late) = (server.sign_in().await, server.sign_in().await, server.sign_in().await);
    server.join(&room, &member, "c").await.leave().await;
    worker.leave().await;
    let wrong = CreatedRoom { token: shared::domain::id::Secret::new("guess".to_owned()), ..room.clone() };
    let mut attack = server.connect().await;
    for expected in ["ROOM_NOT_FOUND", "ROOM_NOT_FOUND", "RATE_LIMITED"] {
        assert_eq!(attack.ask(super::support::register(&wrong, &guesser, "x")).await["code"], expected);
    }
    assert_eq!(server.connect().await.ask(super::support::register(&room, &late, "d")).await["code"], "RATE_LIMITED");
    server.join(&room, &member, "c").await;
    server.join(&room, &owner, "w").await;
}
