//! The whole server over HTTP and WebSocket, with its rooms in DynamoDB.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use shared::domain::signal::CreatedRoom;

use super::{
    emulators::{Dynoxide, Moto, settings},
    proxy::{Fault, PROVISIONED, Proxy},
    rooms,
    support::{Api, PATIENCE, Peer, TestServer, User, register},
};

/// The first failure is known within this; measured on a busy machine.
const IN_TIME: Duration = Duration::from_millis(3500);
/// Once it is known that DynamoDB does not answer.
const AT_ONCE: Duration = Duration::from_millis(500);
const ROUNDS: usize = 200;

async fn server(endpoint: &str) -> TestServer {
    TestServer::start_with(|config| {
        config.dynamodb_table = Some("rooms".to_owned());
        config.aws = settings(endpoint);
        config.limits.rooms_per_minute = 10_000;
        config.limits.requests_per_minute = 10_000;
        config.limits.messages_per_second = 10_000;
        config.limits.message_burst = 10_000;
    })
    .await
}

/// A server whose every call to DynamoDB goes through a proxy.
struct Scene {
    server: TestServer,
    proxy: Proxy,
    _dynoxide: Dynoxide,
}

async fn scene() -> Scene {
    let dynoxide = Dynoxide::start();
    rooms::store(&dynoxide.endpoint, "rooms").await;
    let proxy = Proxy::before(&dynoxide.endpoint).await;
    Scene { server: server(&proxy.endpoint).await, proxy, _dynoxide: dynoxide }
}

#[tokio::test]
async fn a_room_lives_its_life_in_dynamodb() {
    let moto = Moto::start();
    rooms::store(&moto.endpoint, "rooms").await;
    let server = server(&moto.endpoint).await;
    let (owner, guest) = (server.sign_in().await, server.sign_in().await);
    let room = server.create_room(&owner).await;
    let mut worker = server.join(&room, &owner, "w").await;
    let mut client = server.join(&room, &guest, "c").await;
    client.send(json!({"type": "offer", "target": "w", "sdp": "sealed"})).await;
    assert_eq!(worker.expect("offer").await["sender"], "c");
    assert_eq!(worker.ask(json!({"type": "renew"})).await["type"], "renewed");
    let mut thief = server.connect().await;
    assert_eq!(thief.ask(register(&room, &guest, "w")).await["code"], "PEER_ID_TAKEN");
    // Another server on the same table knows the room, its token, and whose its peer ids are.
    let other = self::server(&moto.endpoint).await;
    let stranger = other.sign_in().await;
    let mut socket = other.connect().await;
    assert_eq!(socket.ask(register(&room, &stranger, "w")).await["code"], "PEER_ID_TAKEN");
    other.join(&room, &stranger, "x").await;
    let (status, _) = server.call("delete", &format!("/rooms/{}", room.room_id), Some(&owner.token), None).await;
    assert_eq!(status, 200);
    assert_eq!(socket.ask(register(&room, &stranger, "y")).await["code"], "ROOM_NOT_FOUND");
    assert_eq!(server.get("/health").await.1["status"], "healthy");
}

#[tokio::test]
async fn a_registration_is_two_calls() {
    let Scene { server, proxy, _dynoxide } = scene().await;
    let owner = server.sign_in().await;
    let room = server.create_room(&owner).await;
    assert_eq!(proxy.count("PutItem"), 1);
    for _ in 0..3 {
        proxy.forget();
        server.join(&room, &owner, "w").await.leave().await;
        assert_eq!((proxy.count("GetItem"), proxy.count("PutItem"), proxy.count("")), (1, 1, 2));
    }
}

/// What creating a room is answered, how long it took, and `Retry-After`.
async fn try_to_create(api: &Api, user: &User) -> (u16, Duration, Option<String>) {
    let http = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().unwrap();
    let began = Instant::now();
    let response = http.post(format!("http://{}/create-room", api.address)).bearer_auth(&user.token).send().await.unwrap();
    let retry = response.headers().get("retry-after").map(|value| value.to_str().unwrap().to_owned());
    (response.status().as_u16(), began.elapsed(), retry)
}

async fn try_to_register(api: &Api, room: &CreatedRoom, user: &User) -> (Value, Duration) {
    let mut socket = api.connect().await;
    let began = Instant::now();
    (socket.ask(register(room, user, "late")).await, began.elapsed())
}

/// There and back between two peers, again and again; the slowest but one in a hundred.
async fn relay(one: &mut Peer, other: &mut Peer, to: [&str; 2]) -> Duration {
    let mut times = Vec::new();
    for n in 0..ROUNDS {
        let began = Instant::now();
        one.send(json!({"type": "peer_message", "to_peer_id": to[0], "payload": n})).await;
        assert_eq!(other.expect("peer_message").await["payload"], n);
        other.send(json!({"type": "peer_message", "to_peer_id": to[1], "payload": n})).await;
        assert_eq!(one.expect("peer_message").await["payload"], n);
        times.push(began.elapsed());
    }
    times.sort();
    times[ROUNDS * 99 / 100 - 1]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connected_peers_do_not_notice_that_dynamodb_is_away() {
    for fault in [Fault::Hang, PROVISIONED, Fault::Status(503)] {
        let Scene { server, proxy, _dynoxide } = scene().await;
        let owner = server.sign_in().await;
        let room = server.create_room(&owner).await;
        let (mut worker, mut client) = (server.join(&room, &owner, "w").await, server.join(&room, &owner, "c").await);
        let before = relay(&mut client, &mut worker, ["w", "c"]).await;

        proxy.fail(fault);
        // One renewal is under way all the while; its peer's messages do not wait for it.
        worker.send(json!({"type": "renew"})).await;
        let asking = async {
            for _ in 0..4 {
                try_to_create(&server, &owner).await;
            }
        };
        let (during, ()) = tokio::join!(relay_beside_an_error(&mut client, &mut worker), asking);
        println!("{fault:?}: there and back, 99 in 100 within {before:?} before and {during:?} while DynamoDB is away");
        assert!(during < Duration::from_millis(100).max(4 * before), "{fault:?}: {before:?} before, {during:?} during");

        // By now it is known.
        let (status, took, retry) = try_to_create(&server, &owner).await;
        assert!(status == 503 && took < IN_TIME && retry.is_some(), "{fault:?}: {status} {took:?} {retry:?}");
        let (health, answer) = server.get("/health").await;
        assert_eq!(
            (health, &answer["status"], &answer["details"]["store"]),
            (200, &json!("degraded"), &json!("not answering")),
            "{fault:?}"
        );
    }
}

/// As [`relay`], while the other waits for the answer to a renewal, too: an error, at some time.
async fn relay_beside_an_error(one: &mut Peer, other: &mut Peer) -> Duration {
    let (mut times, mut failed) = (Vec::new(), false);
    for n in 0..ROUNDS {
        let began = Instant::now();
        one.send(json!({"type": "peer_message", "to_peer_id": "w", "payload": n})).await;
        let mut received = other.receive().await;
        if received["type"] == "error" {
            assert_eq!((failed, &received["code"]), (false, &json!("UNAVAILABLE")));
            (failed, received) = (true, other.receive().await);
        }
        assert_eq!(received["payload"], n);
        other.send(json!({"type": "peer_message", "to_peer_id": "c", "payload": n})).await;
        assert_eq!(one.expect("peer_message").await["payload"], n);
        times.push(began.elapsed());
        // Spread over the time in which others wait for DynamoDB.
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    if !failed {
        other.expect_error("UNAVAILABLE").await;
    }
    times.sort();
    times[ROUNDS * 99 / 100 - 1]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_needs_dynamodb_is_told_in_time_and_served_again_after_it() {
    for fault in [Fault::Hang, PROVISIONED, Fault::Reset] {
        let Scene { server, proxy, _dynoxide } = scene().await;
        let owner = server.sign_in().await;
        let room = server.create_room(&owner).await;
        proxy.fail(fault);
        let mut at_once = 0;
        for _ in 0..20 {
            let (status, took, retry) = try_to_create(&server, &owner).await;
            assert!(status == 503 && took < IN_TIME && retry.as_deref() == Some("5"), "{fault:?}: {status} {took:?} {retry:?}");
            let (answer, took_to_register) = try_to_register(&server, &room, &owner).await;
            assert_eq!(answer["code"], "UNAVAILABLE", "{fault:?}: {answer}");
            assert!(took_to_register < IN_TIME, "{fault:?}: {took_to_register:?}");
            at_once += usize::from(took < AT_ONCE) + usize::from(took_to_register < AT_ONCE);
        }
        // Three calls to notice it, and then one probe a second.
        assert!(at_once >= 30, "{fault:?}: {at_once} of 40 were told at once");

        proxy.heal();
        let healed = Instant::now();
        while try_to_create(&server, &owner).await.0 != 200 {
            assert!(healed.elapsed() < IN_TIME, "{fault:?}: it has ended and nobody noticed");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let _late = server.join(&room, &owner, "late").await;
        let (_, answer) = server.call("get", &format!("/rooms/{}", room.room_id), Some(&owner.token), None).await;
        assert_eq!(answer["peers"].as_array().map(Vec::len), Some(1), "{fault:?}: joined once, {answer}");
        assert_eq!(server.get("/health").await.1["status"], "healthy");
    }
}
