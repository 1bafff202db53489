//! Getting into a room, staying its owner, and keeping a peer id.

use serde_json::json;
use shared::domain::signal::CreatedRoom;

use super::support::{PeerKey, TestServer, register, text};

#[tokio::test]
async fn from_sign_in_to_a_relayed_offer() {
    let server = TestServer::start_with(|config| {
        config.ice_servers = serde_json::from_value(json!([{"urls": "stun:stun.example:3478"}])).unwrap();
    })
    .await;
    let (owner, guest) = (server.sign_in().await, server.sign_in().await);
    let room = server.create_room(&owner).await;
    assert_eq!((room.room_id.as_str().len(), room.token.expose().len(), room.expires_at), (32, 32, 1_800_007_200));

    let mut worker = server.connect().await;
    let mut message = register(&room, &owner, "w");
    message["metadata"] = json!({"gpu": "none"});
    let welcome = worker.ask(message).await;
    assert_eq!(welcome["type"], "registered_auth");
    assert_eq!(welcome["ice_servers"], json!([{"urls": ["stun:stun.example:3478"]}]));
    assert_eq!((&welcome["expires_at"], &welcome["peers"]), (&json!(room.expires_at), &json!([])));

    let mut client = server.connect().await;
    let here = json!([{"peer_id": "w", "role": "worker", "metadata": {"gpu": "none"}}]);
    assert_eq!(client.ask(register(&room, &guest, "c")).await["peers"], here);
    let list = client.ask(json!({"type": "discover_peers", "filters": {"role": "worker"}})).await;
    assert_eq!((&list["count"], &list["peers"]), (&json!(1), &here));
    client.send(json!({"type": "offer", "target": "w", "sdp": "sealed"})).await;
    assert_eq!(worker.receive().await, json!({"type": "offer", "sender": "c", "sdp": "sealed"}));
}

#[tokio::test]
async fn no_room_a_wrong_token_and_an_expired_room_get_the_same_answer() {
    let server = TestServer::start().await;
    let user = server.sign_in().await;
    let stranger = server.sign_in().await;
    let (room, expired) = (server.create_room(&user).await, server.create_room_with(&user, json!({"ttl_seconds": 10})).await);
    server.pass(10);
    let no_room = CreatedRoom { room_id: "0".repeat(32).parse().unwrap(), ..room.clone() };
    let wrong_token = CreatedRoom { token: expired.token.clone(), ..room };
    let mut answers = Vec::new();
    for room in [&no_room, &wrong_token, &expired] {
        answers.push(server.connect().await.ask(register(room, &stranger, "c")).await);
    }
    assert_eq!(answers[0]["code"], "ROOM_NOT_FOUND");
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
}

#[tokio::test]
async fn somebody_elses_peer_id_cannot_be_taken_neither_now_nor_later() {
    let server = TestServer::start().await;
    let (owner, thief) = (server.sign_in().await, server.sign_in().await);
    let room = server.create_room(&owner).await;
    let mut worker = server.join(&room, &owner, "w").await;
    let mut other = server.connect().await;
    assert_eq!(other.ask(register(&room, &thief, "w")).await["code"], "PEER_ID_TAKEN");
    assert_eq!(worker.ask(json!({"type": "discover_peers"})).await["count"], 0);
    worker.leave().await;
    assert_eq!(other.ask(register(&room, &thief, "w")).await["code"], "PEER_ID_TAKEN");
    assert_eq!(other.ask(register(&room, &thief, "c")).await["type"], "registered_auth");
}

#[tokio::test]
async fn the_owner_comes_back_and_its_old_socket_is_closed() {
    let server = TestServer::start().await;
    let (owner, guest) = (server.sign_in().await, server.sign_in().await);
    let room = server.create_room(&owner).await;
    let mut old = server.join(&room, &owner, "w").await;
    let mut client = server.join(&room, &guest, "c").await;
    let mut new = server.join(&room, &owner, "w").await;
    assert_eq!(old.closed().await, 4409);
    client.send(json!({"type": "offer", "target": "w", "sdp": 1})).await;
    assert_eq!(new.receive().await["sender"], "c");
}

#[tokio::test]
async fn a_proven_key_keeps_its_peer_id_across_sign_ins() {
    let server = TestServer::start().await;
    let (first, second, thief) = (server.sign_in().await, server.sign_in().await, server.sign_in().await);
    let room = server.create_room(&first).await;
    let key = PeerKey::new(1);
    let mut old = server.connect().await;
    assert_eq!(old.register_with_key(&room, &first, "w", &key).await["type"], "registered_auth");
    let mut taken = server.connect().await;
    assert_eq!(taken.register_with_key(&room, &thief, "w", &PeerKey::new(2)).await["code"], "PEER_ID_TAKEN");
    let mut new = server.connect().await;
    assert_eq!(new.register_with_key(&room, &second, "w", &key).await["type"], "registered_auth");
    assert_eq!(old.closed().await, 4409);
}

#[tokio::test]
async fn a_proof_by_another_key_or_for_another_nonce_is_refused() {
    let server = TestServer::start().await;
    let user = server.sign_in().await;
    let room = server.create_room(&user).await;
    let key = PeerKey::new(1);
    let mut peer = server.connect().await;
    let mut message = register(&room, &user, "w");
    message["public_key"] = json!(key.public());
    let nonce = text(&peer.ask(message.clone()).await["nonce"]);
    assert_eq!(peer.ask(PeerKey::new(2).prove(&room, "w", &nonce)).await["code"], "NOT_AUTHENTIC");
    let fresh = text(&peer.ask(message.clone()).await["nonce"]);
    assert_ne!(fresh, nonce);
    assert_eq!(peer.ask(key.prove(&room, "w", &nonce)).await["code"], "NOT_AUTHENTIC");
    peer.ask(message.clone()).await;
    assert_eq!(peer.ask(register(&room, &user, "w")).await["code"], "NOT_AUTHENTIC", "a challenge cannot be walked around");
    message["public_key"] = json!("short");
    assert_eq!(peer.ask(message).await["code"], "INVALID_REQUEST");
}

#[tokio::test]
async fn expiry_keeps_newcomers_out_and_the_connected_owner_renews() {
    let server = TestServer::start().await;
    let (owner, guest, late) = (server.sign_in().await, server.sign_in().await, server.sign_in().await);
    let room = server.create_room_with(&owner, json!({"ttl_seconds": 60})).await;
    let mut worker = server.join(&room, &owner, "w").await;
    let mut client = server.join(&room, &guest, "c").await;
    server.pass(60);
    assert_eq!(server.connect().await.ask(register(&room, &late, "d")).await["code"], "ROOM_NOT_FOUND");
    client.send(json!({"type": "offer", "target": "w", "sdp": 1})).await;
    worker.expect("offer").await;
    assert_eq!(client.ask(json!({"type": "renew"})).await["code"], "FORBIDDEN");
    assert_eq!(worker.ask(json!({"type": "renew"})).await, json!({"type": "renewed", "expires_at": room.expires_at + 60}));
    server.join(&room, &late, "d").await;
}

#[tokio::test]
async fn the_key_named_at_creation_owns_the_room_whoever_signed_in() {
    let server = TestServer::start().await;
    let (creator, later) = (server.sign_in().await, server.sign_in().await);
    let key = PeerKey::new(1);
    let room = server.create_room_with(&creator, json!({"ttl_seconds": 60, "public_key": key.public()})).await;
    let mut worker = server.connect().await;
    worker.register_with_key(&room, &later, "w", &key).await;
    assert_eq!(worker.ask(json!({"type": "renew"})).await["type"], "renewed");
    // Naming the key without proving it does not help.
    let mut liar = server.join(&room, &server.sign_in().await, "c").await;
    assert_eq!(liar.ask(json!({"type": "renew"})).await["code"], "FORBIDDEN");
    assert_eq!(liar.ask(json!({"type": "delete_room"})).await["code"], "FORBIDDEN");
    // Its owner deletes it where it is, without the token of the one who created it; everybody's socket is closed.
    worker.send(json!({"type": "delete_room"})).await;
    assert_eq!((worker.closed().await, liar.closed().await), (4410, 4410));
    let mut late = server.connect().await;
    assert_eq!(late.ask(register(&room, &creator, "w2")).await["code"], "ROOM_NOT_FOUND");
}

#[tokio::test]
async fn an_expired_or_foreign_id_token_is_refused_before_the_room_is_looked_at() {
    let (server, elsewhere) = (TestServer::start_with(|config| config.token_ttl = 100).await, TestServer::start().await);
    let (user, foreign) = (server.sign_in().await, elsewhere.sign_in().await);
    let room = server.create_room(&user).await;
    let mut peer = server.connect().await;
    assert_eq!(peer.ask(register(&room, &foreign, "c")).await["code"], "UNAUTHORIZED");
    server.pass(131);
    assert_eq!(peer.ask(register(&room, &user, "c")).await["code"], "UNAUTHORIZED");
}

#[tokio::test]
async fn the_ancestors_peers_can_register_discover_and_exchange_offers() {
    let server = TestServer::start().await;
    let (owner, guest) = (server.sign_in().await, server.sign_in().await);
    let room = server.create_room(&owner).await;
    let mut worker = server.connect().await;
    let welcome = worker
        .ask(json!({
            "type": "register", "peer_id": owner.name, "room_id": room.room_id, "token": room.token, "id_token": owner.token,
            "role": "worker", "is_admin": true,
            "metadata": {"tags": ["sleap-rtc"], "properties": {"gpu_memory_mb": 8192, "status": "available"}},
        }))
        .await;
    assert_eq!(welcome["type"], "registered_auth");
    let mut client = server.connect().await;
    client.send(register(&room, &guest, &guest.name)).await;
    client.expect("registered_auth").await;
    let query = json!({"type": "discover_peers", "from_peer_id": guest.name, "filters": {"role": "worker", "tags": ["sleap-rtc"]}});
    assert_eq!(client.ask(query).await["peers"][0]["metadata"]["properties"]["gpu_memory_mb"], 8192);
    client.send(json!({"type": "offer", "sender": guest.name, "target": owner.name, "sdp": "v=0"})).await;
    assert_eq!(worker.receive().await, json!({"type": "offer", "sender": guest.name, "sdp": "v=0"}));
    let busy = json!({"type": "update_metadata", "peer_id": owner.name, "metadata": {"properties": {"status": "busy"}}});
    assert_eq!(worker.ask(busy).await["type"], "metadata_updated");
}

#[tokio::test]
async fn a_socket_is_not_in_a_room_before_it_registers_and_has_five_tries() {
    let server = TestServer::start().await;
    let user = server.sign_in().await;
    let room = server.create_room(&user).await;
    let mut worker = server.join(&room, &user, "w").await;
    let mut peer = server.connect().await;
    for message in [
        json!({"type": "offer", "target": "w", "sdp": 1}),
        json!({"type": "discover_peers"}),
        json!({"type": "prove", "signature": "x"}),
        json!({"type": "election"}),
        json!({"type": "register", "peer_id": "../x"}),
    ] {
        assert_eq!(peer.ask(message).await["code"], "INVALID_REQUEST");
    }
    assert_eq!(peer.closed().await, 4403);
    assert_eq!(worker.ask(json!({"type": "discover_peers"})).await["type"], "peer_list", "the offer did not arrive");
    assert_eq!(worker.ask(register(&room, &user, "w")).await["code"], "INVALID_REQUEST", "one registration a socket");
}
