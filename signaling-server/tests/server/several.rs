//! Several servers that meet at NATS: what peers of one server can do, peers of different ones can.

use std::{
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use serde_json::{Value, json};
use shared::domain::{
    error::{Code, Failure},
    id::Secret,
    signal::CreatedRoom,
};
use signaling_server::runtime::{
    config::Config,
    key::KeyPair,
    metrics::Metrics,
    relay::{Link, Nats, NatsConfig, Relay},
    server::Common,
    store::{MemoryStore, Store},
};
use tempfile::TempDir;

use super::{
    nats::{NatsServer, Wire, free_host},
    process,
    support::{PATIENCE, Peer, TestServer, User, register, text},
};

/// How long a question to a server that is away takes at most, and something for a busy machine.
const ANSWERED: Duration = Duration::from_millis(2500);

fn nats_config(url: &str) -> NatsConfig {
    NatsConfig::read(&Secret::new(url.to_owned()), None, None).unwrap()
}

/// Servers that share rooms and signing key.
struct Shared {
    store: Arc<dyn Store>,
    keys: TempDir,
}

impl Shared {
    fn new() -> Self {
        Shared { store: Arc::new(MemoryStore::new()), keys: tempfile::tempdir().unwrap() }
    }

    async fn server(&self, nats: &str) -> TestServer {
        let change = |config: &mut Config| {
            config.nats = Some(nats_config(nats));
            config.limits.message_burst = 2000;
            config.limits.sockets_per_address = 1000;
        };
        let common = async |_: &Config| Common { store: self.store.clone(), keys: KeyPair::load_or_create(self.keys.path()).unwrap() };
        TestServer::start_one_of(change, common).await
    }

    async fn servers<const N: usize>(&self, nats: &NatsServer) -> [TestServer; N] {
        let mut servers = Vec::new();
        for _ in 0..N {
            servers.push(self.server(&nats.url()).await);
        }
        servers.try_into().map_err(|_| "as many as were started").unwrap()
    }
}

/// A worker on one server and a client on another.
struct Pair {
    nats: NatsServer,
    one: TestServer,
    two: TestServer,
    owner: User,
    guest: User,
    room: CreatedRoom,
    worker: Peer,
    client: Peer,
    _shared: Shared,
}

async fn pair() -> Pair {
    let (nats, shared) = (NatsServer::start(), Shared::new());
    let [one, two] = shared.servers(&nats).await;
    let (owner, guest) = (one.sign_in().await, two.sign_in().await);
    let room = two.create_room(&owner).await;
    let worker = one.join(&room, &owner, "w").await;
    let client = two.join(&room, &guest, "c").await;
    Pair { nats, one, two, owner, guest, room, worker, client, _shared: shared }
}

/// Looks until the server's health is this; gives what it says about NATS.
async fn until_health_is(server: &TestServer, status: &str) -> Value {
    let end = Instant::now() + PATIENCE;
    loop {
        let (_, health) = server.get("/health").await;
        if health["status"] == status {
            return health["details"]["nats"].clone();
        }
        assert!(Instant::now() < end, "not {status}: {health}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The code that an offer to this peer is refused with.
async fn refusal_of(client: &mut Peer, target: &str) -> String {
    client.send(offer(target)).await;
    let refused = client.expect("error").await;
    assert!(["PEER_NOT_FOUND", "UNAVAILABLE"].contains(&refused["code"].as_str().unwrap()), "{refused}");
    text(&refused["code"])
}

async fn until_metric_is(server: &TestServer, line: &str) {
    let end = Instant::now() + PATIENCE;
    loop {
        let (_, metrics) = server.get("/metrics").await;
        if metrics.as_str().unwrap().contains(line) {
            return;
        }
        assert!(Instant::now() < end, "not {line}: {metrics}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn offer(target: &str) -> Value {
    json!({"type": "offer", "target": target, "sdp": "sealed"})
}

#[tokio::test]
async fn peers_on_different_servers_find_each_other_and_talk() {
    let Pair { nats: _nats, one, two, owner, guest, room, mut worker, mut client, .. } = pair().await;
    let late = two.connect().await.ask(register(&room, &guest, "d")).await;
    let names = |peers: &Value| peers.as_array().unwrap().iter().map(|peer| peer["peer_id"].clone()).collect::<Vec<_>>();
    assert_eq!(names(&late["peers"]), ["w", "c"], "the worker first, wherever it is");
    let list = client.ask(json!({"type": "discover_peers", "filters": {"role": "worker"}})).await;
    assert_eq!((&list["count"], names(&list["peers"])), (&json!(1), vec![json!("w")]));
    for server in [&one, &two] {
        let (_, found) = server.call("get", &format!("/rooms/{}", room.room_id), Some(&owner.token), None).await;
        assert!(names(&found["peers"]).contains(&json!("w")) && names(&found["peers"]).contains(&json!("c")), "{found}");
    }
    let opaque = json!({"sealed": "äöü \u{0}\" \n,", "n": [1, 2.5, -0.0, 18446744073709551615_u64, null, {"deep": {"er": true}}]});
    client.send(json!({"type": "offer", "target": "w", "sdp": opaque, "sender": "forged"})).await;
    assert_eq!(worker.receive().await, json!({"type": "offer", "sender": "c", "sdp": opaque}));
    worker.send(json!({"type": "answer", "target": "c", "sdp": opaque})).await;
    assert_eq!(client.receive().await, json!({"type": "answer", "sender": "w", "sdp": opaque}));
}

#[tokio::test]
async fn messages_between_servers_stay_in_order_and_absence_is_told_at_once() {
    let Pair { nats: _nats, mut worker, mut client, .. } = pair().await;
    for n in 0..90 {
        client.send(json!({"type": "candidate", "target": "w", "candidate": n})).await;
    }
    for n in 0..90 {
        assert_eq!(worker.receive().await["candidate"], n);
    }
    let asked = Instant::now();
    client.send(offer("nobody")).await;
    assert_eq!(client.expect_error("PEER_NOT_FOUND").await["target"], "nobody");
    assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
}

#[tokio::test]
async fn ids_with_dots_and_of_other_rooms_do_not_meet_by_accident() {
    let Pair { nats: _nats, one, two, owner, guest, room, .. } = pair().await;
    let other = one.create_room(&owner).await;
    let mut dotted = one.join(&room, &owner, "w.x..y-_").await;
    let mut client = two.join(&room, &guest, "a.b").await;
    let mut stranger = two.join(&other, &guest, "a.b").await;
    client.send(offer("w.x..y-_")).await;
    assert_eq!(dotted.receive().await["sender"], "a.b");
    stranger.send(offer("w.x..y-_")).await;
    stranger.expect_error("PEER_NOT_FOUND").await;
    client.send(offer("w.x")).await;
    client.expect_error("PEER_NOT_FOUND").await;
}

#[tokio::test]
async fn who_has_talked_with_a_peer_of_another_server_hears_that_it_left() {
    let Pair { nats: _nats, mut worker, mut client, .. } = pair().await;
    client.send(offer("w")).await;
    worker.expect("offer").await;
    client.leave().await;
    assert_eq!(worker.receive().await, json!({"type": "peer_left", "peer_id": "c"}));
}

#[tokio::test]
async fn a_peer_that_registers_elsewhere_is_replaced_and_keeps_its_contacts() {
    let Pair { nats: _nats, one, two, owner, guest, room, mut worker, mut client, .. } = pair().await;
    client.send(offer("w")).await;
    worker.expect("offer").await;
    let mut moved = two.join(&room, &owner, "w").await;
    assert_eq!(worker.closed().await, 4409);
    client.send(offer("w")).await;
    moved.expect("offer").await;
    let mut back = one.join(&room, &owner, "w").await;
    assert_eq!(moved.closed().await, 4409);
    let mut thief = two.connect().await;
    assert_eq!(thief.ask(register(&room, &guest, "w")).await["code"], "PEER_ID_TAKEN");
    client.send(offer("w")).await;
    back.expect("offer").await;
    back.leave().await;
    client.expect("peer_left").await;
}

#[tokio::test]
async fn of_registrations_at_once_on_three_servers_one_is_left() {
    let (nats, shared) = (NatsServer::start(), Shared::new());
    let servers: [TestServer; 3] = shared.servers(&nats).await;
    let owner = servers[0].sign_in().await;
    let room = servers[0].create_room(&owner).await;
    let mut client = servers[1].join(&room, &servers[2].sign_in().await, "c").await;
    for round in 0..20 {
        let mut sockets = Vec::new();
        for server in &servers {
            sockets.push(server.connect().await);
        }
        futures_util::future::join_all(sockets.iter_mut().map(|socket| socket.send(register(&room, &owner, "w")))).await;
        let (mut codes, mut losers) = (Vec::new(), Vec::new());
        {
            let mut ends: FuturesUnordered<_> =
                sockets.iter_mut().enumerate().map(|(index, socket)| async move { (index, socket.closed().await) }).collect();
            for _ in 0..2 {
                let (index, code) = ends.next().await.unwrap();
                codes.push(code);
                losers.push(index);
            }
        }
        assert_eq!(codes, [4409, 4409], "round {round}");
        let winner = (0..3).find(|index| !losers.contains(index)).unwrap();
        client.send(offer("w")).await;
        while sockets[winner].receive().await["type"] != "offer" {}
    }
}

#[tokio::test]
async fn after_a_break_between_servers_the_newest_registration_is_left() {
    let (nats, shared) = (NatsServer::start(), Shared::new());
    let wire = Wire::to(&nats).await;
    let (one, two) = (shared.server(&nats.url()).await, shared.server(&wire.url).await);
    let owner = one.sign_in().await;
    let room = one.create_room(&owner).await;
    let (mut old, mut untouched) = (two.join(&room, &owner, "w").await, two.join(&room, &owner, "v").await);
    let mut client = one.join(&room, &one.sign_in().await, "c").await;
    wire.cut();
    assert!(until_health_is(&two, "degraded").await.as_str().unwrap().contains("cannot be reached"));
    // A question that was under way when the NATS server noticed the break is not answered.
    while refusal_of(&mut client, "w").await != "PEER_NOT_FOUND" {}
    let mut new = one.join(&room, &owner, "w").await;
    assert_eq!(old.ask(json!({"type": "discover_peers"})).await["count"], 1, "both have it for now");
    wire.mend();
    assert_eq!(old.closed().await, 4409);
    until_health_is(&two, "healthy").await;
    client.send(offer("w")).await;
    new.expect("offer").await;
    client.send(offer("v")).await;
    untouched.expect("offer").await;
}

#[tokio::test]
async fn without_nats_each_server_serves_its_own_and_afterwards_all_again() {
    let Pair { mut nats, one, two, guest, room, mut worker, mut client, .. } = pair().await;
    nats.kill();
    until_health_is(&one, "degraded").await;
    until_health_is(&two, "degraded").await;
    let asked = Instant::now();
    client.send(offer("w")).await;
    assert_eq!(client.expect_error("UNAVAILABLE").await["target"], "w");
    assert!(asked.elapsed() < ANSWERED, "{:?}", asked.elapsed());
    let asked = Instant::now();
    let mut neighbour = one.join(&room, &guest, "d").await;
    neighbour.send(offer("w")).await;
    assert_eq!(worker.receive().await["sender"], "d");
    assert!(asked.elapsed() < ANSWERED, "{:?}", asked.elapsed());
    until_metric_is(&two, "webrtc_server_nats_up 0").await;
    nats.start_again();
    until_health_is(&one, "healthy").await;
    until_health_is(&two, "healthy").await;
    client.send(offer("w")).await;
    assert_eq!(worker.receive().await["sender"], "c", "what was asked meanwhile is not brought late");
    client.send(offer("d")).await;
    neighbour.expect("offer").await;
    assert_eq!(client.ask(json!({"type": "discover_peers"})).await["count"], 2);
}

/// So that a silent NATS server, or a path that swallows everything, does not hold up peers for longer.
#[tokio::test]
async fn a_server_that_hangs_is_answered_for_within_two_seconds_and_holds_up_nobody_else() {
    let Pair { nats, two, guest, room, worker: _worker, mut client, .. } = pair().await;
    let mut neighbour = two.join(&room, &guest, "d").await;
    nats.pause();
    let asked = Instant::now();
    client.send(offer("w")).await;
    neighbour.send(offer("c")).await;
    client.expect("offer").await;
    assert!(asked.elapsed() < Duration::from_secs(1), "its own mailbox goes on: {:?}", asked.elapsed());
    client.expect_error("UNAVAILABLE").await;
    assert!(asked.elapsed() < ANSWERED, "{:?}", asked.elapsed());
    nats.go_on();
}

#[tokio::test]
async fn deletions_reach_sockets_on_other_servers() {
    let Pair { nats: _nats, one, two, owner, guest, room, mut worker, mut client, .. } = pair().await;
    let peer = |peer: &str| json!({"peer_id": peer, "room_id": room.room_id});
    assert_eq!(one.post("/delete-peer", &guest, peer("w")).await.0, 403);
    assert_eq!(one.post("/delete-peer", &owner, peer("c")).await.0, 200);
    assert_eq!(client.closed().await, 4410);
    let mut client = one.join(&room, &owner, "c").await;
    let (status, answer) = two.post("/delete-peer", &owner, json!({"peer_id": "c"})).await;
    assert_eq!((status, &answer["room_id"]), (200, &json!(room.room_id)), "found on the other server by its name alone");
    assert_eq!(client.closed().await, 4410);
    assert_eq!(two.call("delete", &format!("/rooms/{}", room.room_id), Some(&owner.token), None).await.0, 200);
    assert_eq!(worker.closed().await, 4410);
}

#[tokio::test]
async fn a_deletion_during_a_break_is_caught_up_on_but_not_on_who_came_later() {
    let (nats, shared) = (NatsServer::start(), Shared::new());
    let wire = Wire::to(&nats).await;
    let (one, two) = (shared.server(&wire.url).await, shared.server(&nats.url()).await);
    let owner = one.sign_in().await;
    let room = one.create_room(&owner).await;
    let (mut old, mut later) = (two.join(&room, &owner, "old").await, two.join(&room, &owner, "later").await);
    wire.cut();
    until_health_is(&one, "degraded").await;
    for peer in ["old", "later"] {
        assert_eq!(one.post("/delete-peer", &owner, json!({"peer_id": peer, "room_id": room.room_id})).await.0, 200);
    }
    let mut again = two.join(&room, &owner, "later").await;
    assert_eq!(later.closed().await, 4409);
    wire.mend();
    assert_eq!(old.closed().await, 4410);
    until_health_is(&one, "healthy").await;
    assert_eq!(again.ask(json!({"type": "discover_peers"})).await["count"], 0, "it stays");
}

#[tokio::test]
async fn a_peer_of_another_server_that_does_not_read_is_busy() {
    let Pair { nats: _nats, mut client, worker, .. } = pair().await;
    let message = json!({"type": "offer", "target": "w", "sdp": "x".repeat(60_000)});
    let mut refused = None;
    for _ in 0..1500 {
        client.send(message.clone()).await;
        client.send(json!({"type": "discover_peers", "filters": {"role": "worker"}})).await;
        let answer = client.receive().await;
        if answer["type"] == "error" {
            refused = Some(answer);
            break;
        }
    }
    assert_eq!(refused.expect("its queue is full some time")["code"], "PEER_BUSY");
    drop(worker);
}

#[tokio::test]
async fn malformed_messages_between_servers_are_dropped_and_counted() {
    let Pair { nats, one, room, mut worker, mut client, .. } = pair().await;
    let subject = format!("webrtc.peer.{}.w", room.room_id);
    let deep = format!("{{\"v\":1,\"ask\":\"fence\",\"session\":{}", "[".repeat(50_000));
    let bad: [&[u8]; 6] = [b"", b"\xff\xfe", b"{\"v\":1}", b"{\"v\":9,\"ask\":\"fence\"}", deep.as_bytes(), &[b' '; 140_000]];
    for payload in bad {
        nats.say(&subject, payload).await;
        nats.say("webrtc.servers", payload).await;
    }
    nats.say(&subject, b"{\"v\":1,\"ask\":\"something newer\"}").await;
    client.send(offer("w")).await;
    worker.expect("offer").await;
    until_metric_is(&one, "webrtc_server_malformed_messages_total 12").await;
    nats.say(&subject, format!("{{\"v\":1,\"ask\":\"expel\",\"room\":\"{}\",\"up_to\":0}}", room.room_id).as_bytes()).await;
    assert_eq!(worker.ask(json!({"type": "discover_peers"})).await["count"], 1, "registered after that deletion");
}

#[tokio::test]
async fn a_server_starts_without_nats_and_joins_the_others_when_it_is_there() {
    let mut nats = NatsServer::start();
    nats.kill();
    let shared = Shared::new();
    let [one, two] = shared.servers(&nats).await;
    assert!(until_health_is(&one, "degraded").await.is_string());
    let owner = one.sign_in().await;
    let room = one.create_room(&owner).await;
    let mut worker = one.join(&room, &owner, "w").await;
    let mut client = two.join(&room, &owner, "c").await;
    nats.start_again();
    until_health_is(&one, "healthy").await;
    until_health_is(&two, "healthy").await;
    client.send(offer("w")).await;
    worker.expect("offer").await;
}

async fn refusal(config: NatsConfig) -> Failure {
    let opened = Nats::open(&config, Arc::new(Metrics::new())).await;
    opened.err().expect("it should not be accepted")
}

#[tokio::test]
async fn what_only_a_person_can_mend_is_said_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("nats.conf");
    std::fs::write(&file, "max_payload: 65536\n").unwrap();
    let low = NatsServer::start_with(&["-c", file.to_str().unwrap()]);
    let failure = refusal(nats_config(&low.url())).await;
    assert!(failure.message.contains("65536 bytes") && failure.message.contains("set its max_payload"), "{failure}");

    let closed = NatsServer::start_with(&["--user", "u", "--pass", "right"]);
    for login in ["u:canary@", "canary@", ""] {
        let failure = refusal(nats_config(&format!("nats://{login}{}", closed.address))).await;
        assert!(failure.code == Code::InvalidRequest && failure.message.contains("authorization violation"), "{failure}");
        assert!(!failure.message.contains("canary"), "{failure}");
    }
    Nats::open(&nats_config(&format!("nats://u:right@{}", closed.address)), Arc::new(Metrics::new())).await.unwrap();
}

/// A certificate and its key for this host, as files: certificate, key.
fn certificate(host: &str, dir: &Path) -> [String; 2] {
    let made = rcgen::generate_simple_self_signed([host.to_owned()]).unwrap();
    [("cert.pem", made.cert.pem()), ("key.pem", made.signing_key.serialize_pem())].map(|(name, text)| {
        let path = dir.join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    })
}

#[tokio::test]
async fn the_way_to_nats_can_be_encrypted_with_a_certificate_of_ones_own() {
    let dir = tempfile::tempdir().unwrap();
    let host = free_host();
    let [cert, key] = certificate(&host, dir.path());
    let nats = NatsServer::start_at(&host, &["--tls", "--tlscert", &cert, "--tlskey", &key, "--user", "u", "--pass", "p@:/"]);
    let login = dir.path().join("login");
    std::fs::write(&login, "u:p@:/").unwrap();
    std::fs::set_permissions(&login, std::fs::Permissions::from_mode(0o600)).unwrap();
    let config = |ca_file| NatsConfig::read(&Secret::new(format!("tls://{}", nats.address)), Some(&login), ca_file).unwrap();
    let status = async |config: NatsConfig| Nats::open(&config, Arc::new(Metrics::new())).await.unwrap().link().borrow().clone();
    assert_eq!(status(config(Some(cert.into()))).await, Link::Up(1));
    assert!(matches!(status(config(None)).await, Link::Down(_)), "the system does not know this certificate");
}

#[tokio::test]
async fn the_login_at_nats_reaches_no_log_not_even_at_trace() {
    let dir = tempfile::tempdir().unwrap();
    let nats = NatsServer::start_with(&["--user", "u", "--pass", "canary-nats"]);
    let url = format!("nats://u:canary-nats@{}", nats.address);
    let mut program = process::start(dir.path(), &["--nats", &url]);
    let (_, health) = program.api.get("/health").await;
    assert_eq!((&health["status"], &health["details"]["nats"]), (&json!("healthy"), &json!("connected")));
    program.signal("TERM");
    assert!(program.ended().await.success());
    let log = program.log();
    assert!(log.contains("connected with the other servers") && !log.contains("canary"), "{log}");
}

/// Prints what `docs` quote; the bound is loose, since other tests run beside it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_between_servers_takes_a_moment() {
    let Pair { nats: _nats, mut worker, mut client, .. } = pair().await;
    let mut taken = Vec::new();
    for _ in 0..1000 {
        let sent = Instant::now();
        client.send(json!({"type": "offer", "target": "w", "sdp": "x".repeat(3000)})).await;
        worker.expect("offer").await;
        taken.push(sent.elapsed());
    }
    taken.sort();
    let [p50, p99] = [500, 990].map(|index| taken[index]);
    println!("relay between servers, 3 KB, one at a time: p50 {p50:?}, p99 {p99:?}");
    assert!(p50 < Duration::from_millis(50), "{p50:?}");
}
