//! TURN credentials: for whom, until when, made with which secret.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use serde_json::{Value, json};
use signaling_server::{
    domain::turn_credentials::TurnSecrets,
    runtime::{clock::Clock, config::Config, turn_credentials::TurnConfig},
};

use super::support::{PeerKey, TestServer, register, text};

const OLD: &str = "old-canary-old-canary-old-canary";
const NEW: &str = "new-canary-new-canary-new-canary";
const URL: &str = "turn:turn.example:3478?transport=udp";
const TTL: u64 = 600;
/// What the tests' clock shows at first.
const START: u64 = 1_800_000_000;

fn write_secrets(path: &Path, secrets: &str) {
    fs::write(path, secrets).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

fn secret_file(dir: &Path) -> PathBuf {
    let path = dir.join("turn-secret");
    write_secrets(&path, OLD);
    path
}

fn with_turn(dir: &Path, ttl: u64) -> impl FnOnce(&mut Config) {
    let turn = TurnConfig { urls: vec![URL.parse().unwrap()], secret_file: secret_file(dir), ttl };
    |config| config.turn = Some(turn)
}

/// The TURN server that the server should name to this peer.
fn expected(secret: &str, peer: &str, expires_at: u64) -> Value {
    let secrets: TurnSecrets = secret.parse().unwrap();
    serde_json::to_value(secrets.server(&[URL.parse().unwrap()], &peer.parse().unwrap(), expires_at)).unwrap()
}

fn unix() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn expiry(ice_server: &Value) -> u64 {
    text(&ice_server["username"]).split_once(':').unwrap().0.parse().unwrap()
}

#[tokio::test]
async fn each_admitted_peer_gets_its_own_beside_the_fixed_servers() {
    let dir = tempfile::tempdir().unwrap();
    let turn = with_turn(dir.path(), TTL);
    let server = TestServer::start_with(|config| {
        turn(config);
        config.ice_servers = serde_json::from_value(json!([{"urls": "stun:stun.example:3478"}])).unwrap();
    })
    .await;
    let (owner, guest) = (server.sign_in().await, server.sign_in().await);
    let room = server.create_room(&owner).await;
    let stun = json!({"urls": ["stun:stun.example:3478"]});
    let welcome = server.connect().await.ask(register(&room, &owner, "w")).await;
    assert_eq!(welcome["ice_servers"], json!([stun, expected(OLD, "w", START + TTL)]));
    server.pass(7);
    let welcome = server.connect().await.ask(register(&room, &guest, "c")).await;
    assert_eq!(welcome["ice_servers"], json!([stun, expected(OLD, "c", START + 7 + TTL)]));
    let (_, metrics) = server.get("/metrics").await;
    assert!(text(&metrics).contains("webrtc_server_turn_credentials_total 2"), "{metrics}");
}

#[tokio::test]
async fn nobody_gets_any_before_admission() {
    let dir = tempfile::tempdir().unwrap();
    let server = TestServer::start_with(with_turn(dir.path(), TTL)).await;
    let (owner, stranger) = (server.sign_in().await, server.sign_in().await);
    let (room, other) = (server.create_room(&owner).await, server.create_room(&owner).await);
    let _worker = server.join(&room, &owner, "w").await;
    let mut heard = Vec::new();

    let mut socket = server.connect().await;
    heard.push(socket.ask(json!({"type": "discover_peers"})).await);
    let mut wrong_token = register(&room, &stranger, "c");
    wrong_token["token"] = json!(other.token);
    heard.push(socket.ask(wrong_token).await);
    heard.push(socket.ask(register(&room, &stranger, "w")).await);
    let mut message = register(&room, &stranger, "c");
    message["public_key"] = json!(PeerKey::new(1).public());
    let challenge = socket.ask(message).await;
    let forged = PeerKey::new(2).prove(&room, "c", &text(&challenge["nonce"]));
    heard.extend([challenge, socket.ask(forged).await]);

    let kinds: Vec<_> = heard.iter().map(|message| message["code"].as_str().or(message["type"].as_str()).unwrap()).collect();
    assert_eq!(kinds, ["INVALID_REQUEST", "ROOM_NOT_FOUND", "PEER_ID_TAKEN", "challenge", "NOT_AUTHENTIC"]);
    assert!(heard.iter().all(|message| !message.to_string().contains(URL)), "{heard:?}");
    let (_, metrics) = server.get("/metrics").await;
    assert!(text(&metrics).contains("webrtc_server_turn_credentials_total 1"), "{metrics}");
}

#[tokio::test]
async fn they_are_renewed_on_the_socket_before_they_expire() {
    let dir = tempfile::tempdir().unwrap();
    let turn = with_turn(dir.path(), 6);
    let server = TestServer::start_with(|config| {
        turn(config);
        config.clock = Clock::system();
    })
    .await;
    let owner = server.sign_in().await;
    let room = server.create_room(&owner).await;
    let mut worker = server.connect().await;
    let welcome = worker.ask(register(&room, &owner, "w")).await;
    let mut latest = welcome["ice_servers"][0].clone();
    for _ in 0..2 {
        let renewed = worker.expect("ice_servers").await["ice_servers"][0].clone();
        assert!(unix() < expiry(&latest), "the renewal came too late: {latest}");
        assert!(expiry(&renewed) >= expiry(&latest) + 2, "{latest} {renewed}");
        assert_eq!(renewed, expected(OLD, "w", expiry(&renewed)));
        latest = renewed;
    }
}

#[tokio::test]
async fn a_server_without_turn_servers_makes_none() {
    let server = TestServer::start().await;
    let owner = server.sign_in().await;
    let room = server.create_room(&owner).await;
    let welcome = server.connect().await.ask(register(&room, &owner, "w")).await;
    assert_eq!(welcome["ice_servers"], json!([]));
    let (_, metrics) = server.get("/metrics").await;
    assert!(text(&metrics).contains("webrtc_server_turn_credentials_total 0"), "{metrics}");
}

#[tokio::test]
async fn the_secret_is_changed_without_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let server = TestServer::start_with(with_turn(dir.path(), TTL)).await;
    let owner = server.sign_in().await;
    let room = server.create_room(&owner).await;
    let path = dir.path().join("turn-secret");
    let join = async |secrets: Option<&str>| {
        if let Some(secrets) = secrets {
            write_secrets(&path, secrets);
        }
        server.connect().await.ask(register(&room, &owner, "w")).await["ice_servers"][0].clone()
    };
    let (by_old, by_new) = (expected(OLD, "w", START + TTL), expected(NEW, "w", START + TTL));
    assert_eq!(join(None).await, by_old);
    assert_eq!(join(Some(&format!("{OLD}\n{NEW}\n"))).await, by_old, "the first line makes them");
    assert_eq!(join(Some(&format!("{NEW}\n{OLD}\n"))).await, by_new);
    assert_eq!(join(Some(NEW)).await, by_new);
    // Neither half-done nor open files are used, and nobody is left without.
    assert_eq!(join(Some("")).await, by_new);
    fs::write(&path, OLD).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(join(None).await, by_new);
}
