//! Someone in the middle who controls the signaling server and holds a submit invite, so that every seal opens for him.

use super::*;

fn loopback() -> PeerOptions {
    PeerOptions { bind: vec!["127.0.0.1:0".parse().unwrap()], ..Default::default() }
}

/// A client, a worker, and between them the one in the middle: neither message nor candidate goes past him.
struct Middle {
    invite: Invite,
    client: PeerId,
    from_client: mpsc::Receiver<ToServer>,
    to_client: mpsc::Sender<SignalEvent>,
    from_worker: mpsc::Receiver<ToServer>,
    worker: Answerer,
    links: mpsc::Receiver<(PeerId, Link)>,
}

/// The client's end of it.
struct Client {
    invite: Invite,
    me: PeerId,
    signal: SignalSender,
    events: mpsc::Receiver<SignalEvent>,
}

impl Client {
    async fn dial(mut self) -> Failure {
        self.try_dial().await.err().expect("the client must not connect")
    }

    async fn try_dial(&mut self) -> Result<(Link, Way), Failure> {
        let identity = Identity::generate().unwrap();
        dial(&self.invite, &self.me, &identity, &loopback(), Patience::default(), &self.signal, &mut self.events).await
    }
}

impl Middle {
    fn new() -> (Self, Client) {
        let (room, peer, client): (RoomId, PeerId, PeerId) = ("r".parse().unwrap(), "w".parse().unwrap(), "c".parse().unwrap());
        let (secret, identity) = (Secret::new([5; 32]), Arc::new(Identity::generate().unwrap()));
        let invite = Invite {
            server: "http://127.0.0.1:1".into(),
            room: room.clone(),
            token: Secret::new("t".into()),
            worker: peer.clone(),
            grant: Grant::Submit,
            secret: seal::root_of(&secret, &room, Grant::Submit),
            worker_key: *identity.public(),
            room_key: seal::room_key(&secret),
        };
        let ((client_tx, from_client), (to_client, events)) = (mpsc::channel(64), mpsc::channel(64));
        let ((worker_tx, from_worker), (link_tx, links)) = (mpsc::channel(64), mpsc::channel(1));
        let worker = Answerer::new(room, peer, secret, identity, SignalSender::for_tests(worker_tx), link_tx);
        let signal = SignalSender::for_tests(client_tx);
        let middle = Middle { invite: invite.clone(), client: client.clone(), from_client, to_client, from_worker, worker, links };
        (middle, Client { invite, me: client, signal, events })
    }

    /// Answers the client in the worker's name; the connection, and the attempt's name.
    async fn answer_client(&mut self) -> (Established, String) {
        let sealer = Sealer::new(&self.invite.secret, &self.invite.room, self.invite.grant);
        let (me, other) = (self.invite.worker.clone(), self.client.clone());
        let Some(ToServer::Offer { sdp, .. }) = self.from_client.recv().await else { panic!("an offer comes first") };
        let opened = sealer.open(&other, &me, sdp.as_str().unwrap()).expect("whoever holds the invite can open it");
        let attempt = opened["attempt"].as_str().unwrap().to_owned();
        let envelope = Envelope { sealer: &sealer, me: &me, other: &other, attempt: &attempt };
        let (ours, mut theirs) = ports();
        let options = loopback();
        let mut answering = pin!(answer(&options, &CONTROL_CHANNELS, opened["sdp"].as_str().unwrap().to_owned(), ours));
        let established = loop {
            tokio::select! {
                result = &mut answering => break result.unwrap(),
                Some(description) = theirs.rx.recv() => {
                    let message = relayed(&me, envelope.seal(&description).unwrap());
                    self.to_client.send(SignalEvent::Message(message)).await.unwrap();
                }
                Some(message) = self.from_client.recv() => {
                    let description = envelope.open(relayed(&other, message)).unwrap().unwrap();
                    theirs.tx.send(description).await.unwrap();
                }
            }
        };
        (established, attempt)
    }

    /// Dials the worker in the client's name.
    async fn dial_worker(&mut self, attempt: &str) -> Established {
        let sealer = Sealer::new(&self.invite.secret, &self.invite.room, self.invite.grant);
        let (me, other) = (self.client.clone(), self.invite.worker.clone());
        let envelope = Envelope { sealer: &sealer, me: &me, other: &other, attempt };
        let (ours, mut theirs) = ports();
        let options = loopback();
        let mut offering = pin!(offer(&options, &CONTROL_CHANNELS, ours));
        loop {
            tokio::select! {
                result = &mut offering => return result.unwrap(),
                Some(description) = theirs.rx.recv() => {
                    self.worker.handle(relayed(&me, envelope.seal(&description).unwrap()), &options).await;
                }
                Some(message) = self.from_worker.recv() => {
                    let description = envelope.open(relayed(&other, message)).unwrap().unwrap();
                    theirs.tx.send(description).await.unwrap();
                }
            }
        }
    }
}

impl Middle {
    /// Is honest for once, as long as it is polled.
    async fn relay(&mut self) {
        loop {
            tokio::select! {
                Some(message) = self.from_client.recv() => self.worker.handle(relayed(&self.client, message), &loopback()).await,
                Some(message) = self.from_worker.recv() => {
                    let _ = self.to_client.send(SignalEvent::Message(relayed(&self.invite.worker, message))).await;
                }
                else => std::future::pending().await,
            }
        }
    }
}

/// A message as the server hands it on.
fn relayed(sender: &PeerId, message: ToServer) -> ToPeer {
    let sender = sender.clone();
    match message {
        ToServer::Offer { sdp, .. } => ToPeer::Offer { sender, sdp },
        ToServer::Answer { sdp, .. } => ToPeer::Answer { sender, sdp },
        ToServer::Candidate { candidate, .. } => ToPeer::Candidate { sender, candidate },
        ToServer::PeerMessage { to_peer_id, payload } => ToPeer::PeerMessage { from_peer_id: sender, to_peer_id, payload },
        other => panic!("nothing else is sent: {other:?}"),
    }
}

#[tokio::test]
async fn another_invited_client_cannot_pose_as_the_worker() {
    let (mut middle, client) = Middle::new();
    let dialing = tokio::spawn(client.dial());
    let (established, _) = middle.answer_client().await;
    let Established { carrier: _carrier, channels, binding } = established;
    let [mut auth, _control, _progress] = three(channels);
    let (own, root) = (Identity::generate().unwrap(), middle.invite.secret.clone());
    let proving = seal::prove_as_worker(&mut auth, own.private(), |_| root.clone(), &middle.invite.room, binding);
    let (failure, posing) = tokio::join!(dialing, proving);
    assert_eq!(failure.unwrap().code, Code::NotAuthentic);
    assert!(posing.is_err(), "the client went on");
}

#[tokio::test]
async fn whoever_relays_the_handshake_between_two_connections_breaks_it() {
    let (mut middle, client) = Middle::new();
    let dialing = tokio::spawn(client.dial());
    let (to_client, attempt) = middle.answer_client().await;
    let to_worker = middle.dial_worker(&attempt).await;
    let [mut client_auth, _c1, _p1] = three(to_client.channels);
    let [mut worker_auth, _c2, _p2] = three(to_worker.channels);
    let relaying = async {
        loop {
            let (to, message) = tokio::select! {
                Some(message) = client_auth.recv() => (worker_auth.sender(), message),
                Some(message) = worker_auth.recv() => (client_auth.sender(), message),
                else => std::future::pending().await,
            };
            let _ = to.send(bytes::BytesMut::from(&message[..])).await;
        }
    };
    let failure = tokio::select! {
        failure = dialing => failure.unwrap(),
        () = relaying => unreachable!(),
    };
    assert!(failure.code == Code::NotAuthentic && failure.message.contains("tampered"), "{failure}");
    assert!(middle.links.try_recv().is_err(), "the worker must not have a link");
}

/// Four that died while they connected kept everybody else out for half a minute.
#[tokio::test]
async fn a_client_that_left_the_room_frees_its_places_at_once() {
    let (mut middle, client) = Middle::new();
    let dialing = tokio::spawn(client.dial());
    let Some(ToServer::Offer { sdp, .. }) = middle.from_client.recv().await else { panic!("an offer comes first") };
    let sealer = Sealer::new(&middle.invite.secret, &middle.invite.room, middle.invite.grant);
    let (me, worker) = (middle.client.clone(), middle.invite.worker.clone());
    let sdp = sealer.open(&me, &worker, sdp.as_str().unwrap()).unwrap()["sdp"].clone();
    let clients: Vec<PeerId> = (0..=UNPROVEN).map(|n| format!("c{n}").parse().unwrap()).collect();
    for client in &clients {
        let offer = sealer.seal(client, &worker, &json!({"attempt": "1", "sdp": sdp})).unwrap();
        middle.worker.handle(ToPeer::Offer { sender: client.clone(), sdp: offer.into() }, &loopback()).await;
    }
    let refusal = loop {
        if let Some(ToServer::PeerMessage { payload, .. }) = middle.from_worker.recv().await {
            break payload;
        }
    };
    assert_eq!(refusal["refused"]["code"], "PEER_BUSY");
    for peer_id in clients {
        middle.worker.handle(ToPeer::PeerLeft { peer_id }, &loopback()).await;
    }
    let all = middle.worker.slots.acquire_many(UNPROVEN as u32);
    assert!(timeout(Duration::from_secs(10), all).await.is_ok(), "places are still taken");
    dialing.abort();
}

/// Hands on what the server brings for an established link, and what the link says; gives the worker's word.
async fn attend(client: &mut Client, way: &mut Way) -> Word {
    loop {
        tokio::select! {
            message = way.next() => client.signal.send(message).await.unwrap(),
            Some(SignalEvent::Message(message)) = client.events.recv() => {
                if let Some(word) = way.handle(message) {
                    return word;
                }
            }
        }
    }
}

#[tokio::test]
async fn an_established_link_is_restarted_through_the_server() {
    let (mut middle, mut client) = Middle::new();
    let (mut theirs, ours) = {
        let dialing = async { client.try_dial().await.unwrap() };
        tokio::select! {
            ours = dialing => (middle.links.recv().await.unwrap().1, ours),
            () = middle.relay() => unreachable!(),
        }
    };
    let (link, mut way) = ours;
    let before = link.carrier.connection.route().await.unwrap();
    link.carrier.restart();
    link.control.sender().send_text("sent while the path was away").await.unwrap();
    let (mut here, mut there) = (link.carrier.restarted(), theirs.carrier.restarted());
    let restarted = async {
        here.changed().await.unwrap();
        there.changed().await.unwrap();
        assert_eq!(&theirs.control.recv().await.unwrap()[..], b"sent while the path was away");
    };
    tokio::select! {
        () = restarted => {}
        _ = attend(&mut client, &mut way) => unreachable!(),
        () = middle.relay() => unreachable!(),
    }
    let after = link.carrier.connection.route().await.unwrap();
    assert_ne!(before.local, after.local);
    // The worker's word that it has moved arrives, too.
    middle.worker.tell_moved(&client.me.clone(), Duration::from_millis(700)).await;
    let word = tokio::select! {
        word = attend(&mut client, &mut way) => word,
        () = middle.relay() => unreachable!(),
    };
    assert_eq!(word, Word::Moved { ago: Duration::from_millis(700) });
}

#[tokio::test]
async fn a_link_that_has_ended_cannot_be_restarted() {
    let (mut middle, _client) = Middle::new();
    let sealer = Sealer::new(&middle.invite.secret, &middle.invite.room, middle.invite.grant);
    let (me, worker) = (middle.client.clone(), middle.invite.worker.clone());
    let offer = sealer.seal(&me, &worker, &json!({"attempt": "1", "restart": true, "sdp": "v=0"})).unwrap();
    middle.worker.handle(ToPeer::Offer { sender: me, sdp: offer.into() }, &loopback()).await;
    let Some(ToServer::PeerMessage { payload, .. }) = middle.from_worker.recv().await else { panic!("it is refused") };
    assert_eq!(payload["refused"]["code"], "NO_CONNECTION");
}

#[test]
fn the_receive_windows_of_all_places_stay_within_64_mib_and_a_place_keeps_its_own() {
    let window = |number| bulk_options(number, &loopback()).receive_window.unwrap();
    let all: u64 = (0..BULK_CONNECTIONS).map(|place| u64::from(window(bulk_number(place, 0)))).sum();
    assert!(all <= 64 << 20, "{all}");
    let numbers: std::collections::BTreeSet<u32> =
        (0..BULK_CONNECTIONS).flat_map(|place| (0..5).map(move |before| bulk_number(place, before))).collect();
    assert_eq!(numbers.len(), 5 * BULK_CONNECTIONS as usize, "none is used again");
    assert_eq!(bulk_number(0, 0), 1);
    for before in 1..5 {
        assert_eq!([0, 3, 95].map(|place| window(bulk_number(place, before))), [0, 3, 95].map(|place| window(bulk_number(place, 0))));
    }
}

/// What the worker says to a question that is sealed with this secret, as it goes over the server.
async fn asked(middle: &mut Middle, sealer: &Sealer, questions: Option<mpsc::Sender<Question>>) {
    let (me, worker) = (middle.client.clone(), middle.invite.worker.clone());
    let ToServer::PeerMessage { payload, .. } = question::question(sealer, &me, &worker, "a1").unwrap() else { panic!("it is one") };
    middle.worker.questions = questions;
    let message = ToPeer::PeerMessage { from_peer_id: me, to_peer_id: worker, payload };
    middle.worker.handle(message, &loopback()).await;
}

#[tokio::test]
async fn a_worker_reports_to_whoever_holds_the_invite_and_to_nobody_else() {
    let (mut middle, client) = Middle::new();
    let sealer = Sealer::new(&middle.invite.secret, &middle.invite.room, middle.invite.grant);
    let (questions, mut asking) = mpsc::channel(1);
    let read = |sealer: &Sealer, message| {
        let ToServer::PeerMessage { payload, .. } = message else { panic!("no message to the client: {message:?}") };
        question::answer(sealer, &client.me, &client.invite.worker, "a1", &payload)
    };

    asked(&mut middle, &sealer, Some(questions.clone())).await;
    let report = crate::domain::probe::Report { version: "9".into(), ..Default::default() };
    asking.recv().await.unwrap().answer(&report).await.unwrap();
    let message = middle.from_worker.recv().await.unwrap();
    assert!(!serde_json::to_string(&message).unwrap().contains("version"), "the server could read it");
    assert_eq!(read(&sealer, message).unwrap().unwrap(), report);

    let stranger = Sealer::new(&Secret::new([9; 32]), &middle.invite.room, middle.invite.grant);
    asked(&mut middle, &stranger, Some(questions.clone())).await;
    let refused = read(&sealer, middle.from_worker.recv().await.unwrap()).unwrap().unwrap_err();
    assert_eq!(refused.code, Code::NotAuthentic);

    asked(&mut middle, &sealer, Some(questions.clone())).await;
    asked(&mut middle, &sealer, Some(questions)).await;
    let busy = read(&sealer, middle.from_worker.recv().await.unwrap()).unwrap().unwrap_err();
    assert_eq!(busy.code, Code::PeerBusy);
}

#[tokio::test]
async fn the_longest_report_fits_a_message() {
    let (mut middle, _client) = Middle::new();
    let sealer = Sealer::new(&middle.invite.secret, &middle.invite.room, middle.invite.grant);
    let (questions, mut asking) = mpsc::channel(1);
    asked(&mut middle, &sealer, Some(questions)).await;
    let finding = r#"{"url": "stun:a", "service": "stun", "transport": "udp", "outcome": {"is": "strange", "detail": "\u0001"}}"#;
    let mut finding: crate::domain::probe::Finding = serde_json::from_str(finding).unwrap();
    finding.outcome = crate::domain::probe::Outcome::Strange { detail: "\u{1}".repeat(200) };
    let report = crate::domain::probe::Report { servers: vec![finding; 48], ..Default::default() }.bounded();
    asking.recv().await.unwrap().answer(&report).await.unwrap();
    let message = middle.from_worker.recv().await.unwrap();
    assert!(crate::domain::signal::encode(&message).len() < crate::domain::signal::MAX_MESSAGE);
}
