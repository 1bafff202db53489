//! Messages between peers, and who hears that somebody has gone.

use serde_json::json;

use super::support::{Peer, TestServer, User};
use shared::domain::signal::CreatedRoom;

struct Pair {
    server: TestServer,
    owner: User,
    guest: User,
    room: CreatedRoom,
    worker: Peer,
    client: Peer,
}

async fn pair() -> Pair {
    pair_on(TestServer::start().await).await
}

async fn pair_on(server: TestServer) -> Pair {
    let (owner, guest) = (server.sign_in().await, server.sign_in().await);
    let room = server.create_room(&owner).await;
    let worker = server.join(&room, &owner, "w").await;
    let client = server.join(&room, &guest, "c").await;
    Pair { server, owner, guest, room, worker, client }
}

#[tokio::test]
async fn the_sender_is_the_sockets_owner_whatever_the_message_says() {
    let Pair { mut worker, mut client, .. } = pair().await;
    client.send(json!({"type": "offer", "sender": "w2", "from_peer_id": "w2", "target": "w", "sdp": 1})).await;
    assert_eq!(worker.receive().await["sender"], "c");
    client.send(json!({"type": "peer_message", "from_peer_id": "w2", "to_peer_id": "w", "payload": 1})).await;
    assert_eq!(worker.receive().await["from_peer_id"], "c");
}

#[tokio::test]
async fn what_peers_say_to_each_other_arrives_unchanged() {
    let Pair { mut worker, mut client, .. } = pair().await;
    let opaque = json!({"sealed": "äöü \u{0}\" ,", "n": [1, 2.5, -0.0, 18446744073709551615_u64, null, {"deep": {"er": true}}]});
    client.send(json!({"type": "answer", "target": "w", "sdp": opaque})).await;
    assert_eq!(worker.receive().await, json!({"type": "answer", "sender": "c", "sdp": opaque}));
    client.send(json!({"type": "candidate", "target": "w", "candidate": opaque})).await;
    assert_eq!(worker.receive().await, json!({"type": "candidate", "sender": "c", "candidate": opaque}));
    worker.send(json!({"type": "peer_message", "to_peer_id": "c", "payload": opaque})).await;
    assert_eq!(client.receive().await, json!({"type": "peer_message", "from_peer_id": "w", "to_peer_id": "c", "payload": opaque}));
}

#[tokio::test]
async fn messages_arrive_in_order() {
    let Pair { mut worker, mut client, .. } = pair().await;
    for n in 0..90 {
        client.send(json!({"type": "candidate", "target": "w", "candidate": n})).await;
    }
    for n in 0..90 {
        assert_eq!(worker.receive().await["candidate"], n);
    }
}

#[tokio::test]
async fn a_peer_of_another_room_is_not_there() {
    let Pair { server, mut worker, client: _client, .. } = pair().await;
    let other = server.sign_in().await;
    let room = server.create_room(&other).await;
    let mut stranger = server.join(&room, &other, "x").await;
    let answer = stranger.ask(json!({"type": "offer", "target": "w", "sdp": 1})).await;
    assert_eq!((&answer["code"], &answer["target"]), (&json!("PEER_NOT_FOUND"), &json!("w")));
    assert_eq!(stranger.ask(json!({"type": "discover_peers"})).await["count"], 0);
    assert_eq!(worker.ask(json!({"type": "discover_peers"})).await["count"], 1);
}

#[tokio::test]
async fn only_who_has_talked_with_a_peer_hears_that_it_left() {
    let Pair { server, room, mut worker, mut client, .. } = pair().await;
    let mut silent = server.join(&room, &server.sign_in().await, "d").await;
    client.send(json!({"type": "offer", "target": "w", "sdp": 1})).await;
    worker.expect("offer").await;
    client.leave().await;
    assert_eq!(worker.receive().await, json!({"type": "peer_left", "peer_id": "c"}));
    assert_eq!(silent.ask(json!({"type": "discover_peers"})).await["count"], 1, "the next it hears is the answer to this");
}

#[tokio::test]
async fn a_connection_that_breaks_is_a_peer_that_left() {
    let Pair { mut worker, mut client, .. } = pair().await;
    client.send(json!({"type": "offer", "target": "w", "sdp": 1})).await;
    worker.expect("offer").await;
    drop(client);
    worker.expect("peer_left").await;
}

#[tokio::test]
async fn deleting_a_peer_closes_it_and_frees_its_id() {
    let Pair { server, owner, guest, room, worker: _worker, mut client } = pair().await;
    let other = server.sign_in().await;
    let body = json!({"peer_id": "c", "room_id": room.room_id});
    assert_eq!(server.post("/delete-peer", &other, body.clone()).await.0, 404, "a stranger learns nothing");
    let workers = json!({"peer_id": "w", "room_id": room.room_id});
    assert_eq!(server.post("/delete-peer", &guest, workers).await.0, 403, "a member cannot delete another");
    assert_eq!(server.post("/delete-peer", &owner, body).await.0, 200, "the room's owner can");
    assert_eq!(client.closed().await, 4410);
    server.join(&room, &other, "c").await;
}

#[tokio::test]
async fn the_ancestors_deletions_name_a_peer_only() {
    let Pair { server, owner, guest, room, mut worker, mut client } = pair().await;
    assert_eq!(server.post("/delete-peer", &owner, json!({"peer_id": "c"})).await.0, 404, "not the caller's");
    let (status, answer) = server.post("/delete-peer", &guest, json!({"peer_id": "c"})).await;
    assert_eq!((status, &answer["room_id"]), (200, &json!(room.room_id)));
    assert_eq!(client.closed().await, 4410);
    assert_eq!(server.post("/delete-peers-and-room", &owner, json!({"peer_id": "w"})).await.0, 200);
    assert_eq!(worker.closed().await, 4410);
    assert_eq!(server.call("get", &format!("/rooms/{}", room.room_id), Some(&owner.token), None).await.0, 404);
}

#[tokio::test]
async fn a_shutdown_tells_every_socket_to_come_back_and_ends() {
    let Pair { server, mut worker, mut client, .. } = pair().await;
    let mut unregistered = server.connect().await;
    server.shutdown.token.cancel();
    assert_eq!((worker.closed().await, client.closed().await, unregistered.closed().await), (1012, 1012, 1012));
    drop((worker, client, unregistered));
    tokio::time::timeout(super::support::PATIENCE, server.task).await.unwrap().unwrap();
    assert!(server.shutdown.tracker.is_empty(), "nobody was left behind");
}
