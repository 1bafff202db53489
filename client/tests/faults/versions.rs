//! Programs of different versions: each side says so, whichever is the newer one.

use std::sync::Arc;

use shared::{
    domain::{
        error::{Code, Failure},
        id::{PeerId, Secret},
        invite::{Grant, Invite},
        message::{HELD, Hello, PROTOCOL, ToClient, ToWorker, Welcome, WorkerInfo},
        signal::{CreateRoom, Role},
    },
    runtime::{
        identity::Identity,
        link::{Answerer, Link, Patience, dial},
        peer::PeerOptions,
        seal,
        signal::{Api, Registration, SignalEvent, SignalSender, connect},
    },
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::stack::{Plan, Trainer};

const OTHER: u32 = PROTOCOL + 41;

fn loopback() -> PeerOptions {
    PeerOptions { bind: vec!["127.0.0.1:0".parse().unwrap()], ..Default::default() }
}

/// A peer in the invite's room that speaks for itself.
async fn register(invite: &Invite, peer: &PeerId, role: Role, identity: Arc<Identity>) -> Seat {
    let (room, token) = (invite.room.clone(), invite.token.clone());
    let registration = Registration { room, token, peer: peer.clone(), role, metadata: Default::default() };
    let stop = CancellationToken::new();
    let api = Arc::new(Api::new(&invite.server).unwrap());
    let (sender, mut events) = connect(api, registration, identity, stop.clone());
    assert!(matches!(events.recv().await, Some(SignalEvent::Registered { .. })));
    Seat { sender, events, _stop: stop.drop_guard() }
}

struct Seat {
    sender: SignalSender,
    events: mpsc::Receiver<SignalEvent>,
    _stop: tokio_util::sync::DropGuard,
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_another_version_is_told_both_versions() {
    let stack = Plan::new(Trainer::Missing).start();
    let (invite, me, identity) = (stack.invite(), "client-old".parse().unwrap(), Arc::new(Identity::generate().unwrap()));
    let mut seat = register(&invite, &me, Role::Client, identity.clone()).await;
    let dialed = dial(&invite, &me, &identity, &loopback(), Patience::default(), &seat.sender, &mut seat.events).await;
    let (mut link, _way) = dialed.unwrap();
    let hello = Hello { protocol: OTHER, version: "9.9.9".into(), session: "s".parse().unwrap() };
    link.control.sender().send_text(&ToWorker::Hello(hello).encode()).await.unwrap();
    let answer = link.control.recv().await.expect("the refusal arrives before the connection ends");
    let ToClient::Refused(refused) = ToClient::decode(str::from_utf8(&answer).unwrap()).unwrap() else { panic!("{answer:?}") };
    let Failure { code, message } = refused.failure;
    assert_eq!(code, Code::VersionMismatch);
    for word in [env!("CARGO_PKG_VERSION"), "9.9.9", &PROTOCOL.to_string(), &OTHER.to_string(), "install the same version"] {
        assert!(message.contains(word), "no {word:?} in: {message}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_of_another_version_is_refused_with_both_versions() {
    let stack = Plan::new(Trainer::Missing).start_server();
    let worker = FutureWorker::open(&stack.url).await;
    stack.file("invite.txt", worker.invite.expose());
    let serving = tokio::spawn(worker.welcome());
    let said = tokio::task::spawn_blocking(move || stack.run(&["status"])).await.unwrap();
    said.refuses(9, &["9.9.9", &format!("protocol {PROTOCOL}"), &OTHER.to_string(), "install the same version"]);
    serving.abort();
}

/// A worker that speaks a protocol of the future.
struct FutureWorker {
    invite: Invite,
    seat: Seat,
    answerer: Answerer,
    links: mpsc::Receiver<(PeerId, Link)>,
}

impl FutureWorker {
    async fn open(server: &str) -> Self {
        let api = Api::new(server).unwrap();
        let (identity, peer) = (Arc::new(Identity::generate().unwrap()), "worker-new".parse::<PeerId>().unwrap());
        let request = CreateRoom { ttl_seconds: None, public_key: Some(identity.signing_public()) };
        let created = api.create_room(&request).await.unwrap();
        let secret = Secret::new([5; 32]);
        let invite = Invite {
            server: server.to_owned(),
            room: created.room_id.clone(),
            token: created.token,
            worker: peer.clone(),
            grant: Grant::Submit,
            secret: seal::root_of(&secret, &created.room_id, Grant::Submit),
            worker_key: *identity.public(),
            room_key: seal::room_key(&secret),
        };
        let seat = register(&invite, &peer, Role::Worker, identity.clone()).await;
        let (link_tx, links) = mpsc::channel(1);
        let answerer = Answerer::new(invite.room.clone(), peer, secret, identity, seat.sender.clone(), link_tx);
        FutureWorker { invite, seat, answerer, links }
    }

    /// Welcomes a client in its own way.
    async fn welcome(mut self) {
        let mut link = loop {
            tokio::select! {
                Some(SignalEvent::Message(message)) = self.seat.events.recv() => self.answerer.handle(message, &loopback()).await,
                Some((_, link)) = self.links.recv() => break link,
            }
        };
        link.control.recv().await.unwrap();
        let peer = self.invite.worker.clone();
        let (name, version) = ("demo".to_owned(), "9.9.9".to_owned());
        let worker = WorkerInfo { peer, name, version, gpus: vec![], trainers: vec![], jobs: 0, disk_free: 0 };
        let welcome = ToClient::Welcome(Welcome { protocol: OTHER, grant: Grant::Submit, worker, resumed: false, held: HELD });
        link.control.sender().send_text(&welcome.encode()).await.unwrap();
        while link.control.recv().await.is_some() {}
    }
}
