//! From signaling to a proven connection, on both sides.
//!
//! * `establish`: offer or answer, candidates both ways, until channel 0 is open and both certificates are known
//! * [`dial`]: the client's control connection: sealed offer through the server, then the handshake of [`super::seal`]
//! * [`Answerer`]: the worker's side of it, one task an offer, a bounded number at a time
//! * [`ask`], [`try_out`], [`Question`]: what doctor asks the worker through the server, and a connection for its own sake
//! * [`dial_bulk`], [`answer_bulk`]: a further connection for file bytes, described over the control connection
//! * [`Carrier`]: what keeps an established connection going, ICE restarts included
//!
//! No application byte is read from or written to a connection before its other side has proved itself.

mod carrier;
mod question;
mod trial;

use std::{collections::HashMap, pin::pin, sync::Arc, time::Duration};

use bytes::BytesMut;
use serde_json::{Value, json};
use tokio::{
    sync::{Semaphore, mpsc},
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use self::carrier::carry;
pub use self::{
    carrier::{Carrier, Way, Word},
    question::Question,
    trial::{Trial, ask, try_out},
};
use super::{
    identity::Identity,
    peer::{Channel, ChannelSpec, ConnectionState, PathMtu, PeerConnection, PeerEvent, PeerOptions},
    seal::{self, Binding, Context, Proven, Sealer, Side},
    signal::{SignalEvent, SignalSender},
};
use crate::domain::{
    error::{Code, Failure},
    frame::{FrameHeader, FrameKind, HEADER},
    id::{PeerId, RoomId, Secret, hex},
    invite::{Grant, Invite, RootSecret},
    signal::{ToPeer, ToServer},
    transfer::BULK_CONNECTIONS,
};

/// How long a connection may take from offer to open channel, where nothing is known of the path.
const ESTABLISH: Duration = Duration::from_secs(30);
/// A number that no transfer has.
const NO_TRANSFER: u32 = u32::MAX;
/// How long a probe of the path's packet length may take.
const PROBE: Duration = Duration::from_millis(1500);
/// The receive windows of bulk connections, in bytes: of the first place, of the three that join it on a long path, of the further ones, and
/// of those that only a lossy path needs, where little is under way on each: still more than a message is long. All together, what a receiver can be made to
/// hold stays within 64 MiB; how much of it is used is the sender's decision.
const FIRST_WINDOW: u32 = 8 << 20;
const EARLY_WINDOW: u32 = 4 << 20;
/// The first one's where the other side is near: more would only overrun the socket's buffer, and what is lost there takes long to repair.
const NEAR_WINDOW: u32 = 2 << 20;
const FURTHER_WINDOW: u32 = 1 << 20;
const LATE_WINDOW: u32 = 400 << 10;
/// What the sender may have under way on one bulk connection, at most; it holds back by itself long before.
const BULK_SEND_LIMIT: usize = 64 << 20;
/// Offers that are answered at the same time before their senders have proved anything.
const UNPROVEN: usize = 4;

const CONTROL_CHANNELS: [ChannelSpec; 3] = [
    ChannelSpec { id: 0, label: "auth", capacity: 4 },
    ChannelSpec { id: 1, label: "control", capacity: 256 },
    ChannelSpec { id: 2, label: "progress", capacity: 1024 },
];
const BULK_CHANNELS: [ChannelSpec; 2] =
    [ChannelSpec { id: 0, label: "auth", capacity: 4 }, ChannelSpec { id: 1, label: "bulk", capacity: 64 }];

/// A control connection whose other side has proved itself.
pub struct Link {
    /// Requests, replies, acknowledgements.
    pub control: Channel,
    /// Journal entries.
    pub progress: Channel,
    /// Who is on the other side and what it may do.
    pub proven: Proven,
    /// The connection itself.
    pub carrier: Carrier,
    /// How long packets its path seems to carry; for the options of its bulk connections.
    pub path_mtu: PathMtu,
    /// Whether the other side is near; for the same.
    pub near: bool,
}

/// A bulk connection whose other side has proved itself.
pub struct Bulk {
    /// The client's number for it.
    pub number: u32,
    /// Chunk and manifest pieces.
    pub channel: Channel,
    /// The connection itself.
    pub carrier: Carrier,
}

/// What two sides tell each other to connect.
#[derive(Debug, Clone)]
pub enum Description {
    /// The offer (SDP).
    Offer(String),
    /// The offer (SDP) of an ICE restart of an established connection.
    Restart(String),
    /// The answer (SDP).
    Answer(String),
    /// A candidate.
    Candidate(Value),
    /// The other side will not connect.
    Refused(Failure),
}

/// One end of the way that descriptions take.
pub struct Port {
    /// To the other side.
    pub tx: mpsc::Sender<Description>,
    /// From the other side.
    pub rx: mpsc::Receiver<Description>,
}

/// Two connected ports.
pub fn ports() -> (Port, Port) {
    let (a_tx, a_rx) = mpsc::channel(64);
    let (b_tx, b_rx) = mpsc::channel(64);
    (Port { tx: a_tx, rx: b_rx }, Port { tx: b_tx, rx: a_rx })
}

struct Established {
    carrier: Carrier,
    channels: Vec<Channel>,
    binding: Binding,
}

async fn offer(options: &PeerOptions, specs: &[ChannelSpec], port: Port) -> Result<Established, Failure> {
    let (connection, events, channels) = PeerConnection::new(options, specs).await?;
    let connection = CloseOnDrop(Some(connection));
    let sdp = connection.get().offer().await?;
    port.tx.send(Description::Offer(sdp)).await.map_err(|_| gone())?;
    establish(connection, events, channels, port, false).await
}

async fn answer(options: &PeerOptions, specs: &[ChannelSpec], sdp: String, port: Port) -> Result<Established, Failure> {
    let (connection, events, channels) = PeerConnection::new(options, specs).await?;
    let connection = CloseOnDrop(Some(connection));
    let sdp = connection.get().answer(sdp).await?;
    port.tx.send(Description::Answer(sdp)).await.map_err(|_| gone())?;
    establish(connection, events, channels, port, true).await
}

/// Closes a connection that came to nothing; one that is only dropped keeps its sockets and tasks.
struct CloseOnDrop(Option<PeerConnection>);

impl CloseOnDrop {
    fn get(&self) -> &PeerConnection {
        self.0.as_ref().expect("it is taken only at the end")
    }

    fn take(mut self) -> PeerConnection {
        self.0.take().expect("it is taken only once")
    }
}

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        if let Some(connection) = self.0.take() {
            tokio::spawn(async move { connection.close().await });
        }
    }
}

async fn establish(
    connection: CloseOnDrop,
    mut events: mpsc::Receiver<PeerEvent>,
    channels: Vec<Channel>,
    mut port: Port,
    answering: bool,
) -> Result<Established, Failure> {
    let opened = channels[0].sender().clone();
    let mut described = answering;
    let mut early = Vec::new();
    let work = async {
        let mut opened = pin!(opened.opened());
        loop {
            tokio::select! {
                result = &mut opened => return result,
                event = events.recv() => match event {
                    Some(PeerEvent::Candidate(candidate)) => port.tx.send(Description::Candidate(candidate)).await.map_err(|_| gone())?,
                    Some(PeerEvent::State(ConnectionState::Failed)) => return Err(no_path()),
                    Some(PeerEvent::State(_)) => channels[0].sender().nudge().await,
                    None => return Err(gone()),
                },
                description = port.rx.recv() => match description {
                    Some(Description::Answer(sdp)) if !described => {
                        connection.get().accept_answer(sdp).await?;
                        described = true;
                        for candidate in early.drain(..) {
                            connection.get().add_candidate(candidate).await;
                        }
                    }
                    Some(Description::Candidate(candidate)) if described => connection.get().add_candidate(candidate).await,
                    Some(Description::Candidate(candidate)) if early.len() < 64 => early.push(candidate),
                    Some(Description::Refused(failure)) => return Err(failure),
                    Some(_) => {}
                    None => return Err(gone()),
                },
            }
        }
    };
    timeout(ESTABLISH, work).await.unwrap_or_else(|_| Err(no_path()))?;
    let (local, remote) = connection.get().fingerprints().await?;
    let binding = if answering { Binding { offerer: remote, answerer: local } } else { Binding { offerer: local, answerer: remote } };
    Ok(Established { carrier: carry(connection.take(), events, port), channels, binding })
}

/// How long a dialed connection may take.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Until the worker says something.
    pub answer: Duration,
    /// Until there is a path.
    pub path: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Patience { answer: Duration::from_secs(10), path: ESTABLISH }
    }
}

/// Connects to the worker of an invite; the server in between sees sealed text only. The [`Way`] is needed for restarts.
///
/// # Errors
/// [`Code::PeerNotFound`] when the worker is not in the room or does not answer, [`Code::NotAuthentic`] when it cannot prove itself,
/// [`Code::NoConnection`] when there is no path to it, and what the server refuses.
pub async fn dial(
    invite: &Invite,
    me: &PeerId,
    identity: &Identity,
    options: &PeerOptions,
    patience: Patience,
    signal: &SignalSender,
    events: &mut mpsc::Receiver<SignalEvent>,
) -> Result<(Link, Way), Failure> {
    let sealer = Sealer::new(&invite.secret, &invite.room, invite.grant);
    let attempt = hex(&seal::random::<8>()?);
    let envelope = Envelope { sealer: &sealer, me, other: &invite.worker, attempt: &attempt };
    let (ours, mut theirs) = ports();
    let mut establishing = pin!(timeout(patience.path, offer(options, &CONTROL_CHANNELS, ours)));
    let unanswered = Instant::now() + patience.answer;
    let mut answered = false;
    let established = loop {
        tokio::select! {
            result = &mut establishing => break result.unwrap_or_else(|_| Err(no_path()))?,
            () = sleep_until(unanswered), if !answered => {
                // The server has not noticed yet that it is gone, or it is about to come back.
                return Err(Failure::new(Code::PeerNotFound, "the worker does not answer; is webrtc-worker still running?"));
            }
            Some(description) = theirs.rx.recv() => signal.send(envelope.seal(&description)?).await?,
            event = events.recv() => match event {
                Some(SignalEvent::Message(message)) => {
                    if let Some(description) = envelope.open(message)? {
                        answered = true;
                        let _ = theirs.tx.send(description).await;
                    }
                }
                Some(SignalEvent::Refused(failure)) => return Err(failure),
                // What was just sent may be lost with it.
                Some(SignalEvent::Lost { failure, .. }) => return Err(Failure::new(Code::Unavailable, failure.message)),
                Some(SignalEvent::Registered { .. } | SignalEvent::Alive) => {}
                None => return Err(Failure::new(Code::Unavailable, "the connection to the signaling server has ended")),
            },
        }
    };
    let Established { carrier, channels, binding } = established;
    let [mut auth, control, progress] = three(channels);
    let context = Context { room: &invite.room, grant: invite.grant, binding };
    let proven = seal::prove_as_client(&mut auth, identity.private(), &invite.secret, &invite.worker_key, &context).await?;
    let (path_mtu, near) = (carrier.connection.path_mtu().await, carrier.connection.is_near().await);
    let link = Link { control, progress, proven, carrier, path_mtu, near };
    Ok((link, Way { sealer, me: me.clone(), other: invite.worker.clone(), attempt, port: theirs }))
}

fn three(channels: Vec<Channel>) -> [Channel; 3] {
    channels.try_into().ok().expect("as many channels as were asked for")
}

/// Turns descriptions into sealed messages for one peer, and back.
struct Envelope<'a> {
    sealer: &'a Sealer,
    me: &'a PeerId,
    other: &'a PeerId,
    attempt: &'a str,
}

impl Envelope<'_> {
    fn seal(&self, description: &Description) -> Result<ToServer, Failure> {
        let seal = |value: Value| self.sealer.seal(self.me, self.other, &value).map(Value::String);
        let target = self.other.clone();
        Ok(match description {
            Description::Offer(sdp) => ToServer::Offer { target, sdp: seal(json!({"attempt": self.attempt, "sdp": sdp}))? },
            Description::Restart(sdp) => {
                ToServer::Offer { target, sdp: seal(json!({"attempt": self.attempt, "restart": true, "sdp": sdp}))? }
            }
            Description::Answer(sdp) => ToServer::Answer { target, sdp: seal(json!({"attempt": self.attempt, "sdp": sdp}))? },
            Description::Candidate(candidate) => {
                ToServer::Candidate { target, candidate: seal(json!({"attempt": self.attempt, "candidate": candidate}))? }
            }
            Description::Refused(failure) => ToServer::PeerMessage { to_peer_id: target, payload: json!({"refused": failure}) },
        })
    }

    /// The description in a message, if it belongs to this attempt.
    fn open(&self, message: ToPeer) -> Result<Option<Description>, Failure> {
        let open = |value: &Value| self.sealer.open(self.other, self.me, value.as_str().unwrap_or_default());
        match message {
            ToPeer::Answer { sender, sdp } if &sender == self.other => {
                let opened = open(&sdp)?;
                let ours = opened["attempt"] == self.attempt;
                Ok(opened["sdp"].as_str().filter(|_| ours).map(|sdp| Description::Answer(sdp.to_owned())))
            }
            ToPeer::Candidate { sender, candidate } if &sender == self.other => {
                let opened = open(&candidate)?;
                Ok((opened["attempt"] == self.attempt).then(|| Description::Candidate(opened["candidate"].clone())))
            }
            ToPeer::PeerMessage { from_peer_id, payload, .. } if &from_peer_id == self.other => {
                Ok(serde_json::from_value(payload["refused"].clone()).ok().map(Description::Refused))
            }
            ToPeer::Error { code: Code::PeerNotFound, .. } => {
                Err(Failure::new(Code::PeerNotFound, "the worker is not in the room at present; is webrtc-worker still running?"))
            }
            ToPeer::Error { code, message, .. } => Err(Failure::new(code, message)),
            _ => Ok(None),
        }
    }
}

/// The worker's side: answers sealed offers.
pub struct Answerer {
    room: RoomId,
    me: PeerId,
    room_secret: Secret<[u8; 32]>,
    identity: Arc<Identity>,
    signal: SignalSender,
    links: mpsc::Sender<(PeerId, Link)>,
    slots: Arc<Semaphore>,
    attempts: HashMap<(PeerId, String), Attempt>,
    questions: Option<mpsc::Sender<Question>>,
}

/// An offer that was taken: on its way to a link, or established.
struct Attempt {
    grant: Grant,
    tx: mpsc::Sender<Description>,
    /// Ends it, as long as it is not established.
    give_up: CancellationToken,
}

impl Answerer {
    /// For the worker `me` of this room; proven connections go to `links`.
    pub fn new(
        room: RoomId,
        me: PeerId,
        room_secret: Secret<[u8; 32]>,
        identity: Arc<Identity>,
        signal: SignalSender,
        links: mpsc::Sender<(PeerId, Link)>,
    ) -> Self {
        let slots = Arc::new(Semaphore::new(UNPROVEN));
        Answerer { room, me, room_secret, identity, signal, links, slots, attempts: HashMap::new(), questions: None }
    }

    /// Takes a message from the server; what is no offer or candidate of a client with an invite is refused or ignored.
    pub async fn handle(&mut self, message: ToPeer, options: &PeerOptions) {
        match message {
            ToPeer::Offer { sender, sdp } => {
                if let Err(failure) = self.handle_offer(&sender, &sdp, options) {
                    tracing::info!(peer = %sender, %failure, "an offer was refused");
                    let refusal = ToServer::PeerMessage { to_peer_id: sender, payload: json!({"refused": failure}) };
                    let _ = self.signal.send(refusal).await;
                }
            }
            ToPeer::Candidate { sender, candidate } => self.handle_candidate(sender, &candidate),
            ToPeer::PeerMessage { from_peer_id, payload, .. } => self.handle_question(from_peer_id, &payload, options).await,
            // What it began and did not end would hold its place until the deadline; what is established may need this way again.
            ToPeer::PeerLeft { peer_id } => self.give_up(&peer_id),
            _ => {}
        }
    }

    /// Tells a client that our address has changed, so long ago, so that it restarts its link.
    pub async fn tell_moved(&self, client: &PeerId, ago: Duration) {
        for ((_, attempt), Attempt { grant, .. }) in
            self.attempts.iter().filter(|((peer, _), attempt)| peer == client && !attempt.tx.is_closed())
        {
            let sealer = Sealer::new(&seal::root_of(&self.room_secret, &self.room, *grant), &self.room, *grant);
            if let Ok(message) = carrier::moved(&sealer, &self.me, client, attempt, ago) {
                let _ = self.signal.send(message).await;
            }
        }
    }

    fn handle_offer(&mut self, sender: &PeerId, sdp: &Value, options: &PeerOptions) -> Result<(), Failure> {
        self.attempts.retain(|_, attempt| !attempt.tx.is_closed());
        let (grant, opened) = self.open(sender, sdp)?;
        let attempt = opened["attempt"].as_str().filter(|text| text.len() <= 64).unwrap_or_default().to_owned();
        let offer = opened["sdp"].as_str().ok_or_else(|| Failure::new(Code::InvalidRequest, "an offer without a session description"))?;
        if opened["restart"] == true {
            let established = self.attempts.get(&(sender.clone(), attempt));
            let established = established.ok_or_else(|| Failure::new(Code::NoConnection, "the link that was to be restarted has ended"))?;
            let _ = established.tx.try_send(Description::Restart(offer.to_owned()));
            return Ok(());
        }
        // A client that dials anew has given up what it began before.
        self.give_up(sender);
        self.attempts.retain(|(peer, _), _| peer != sender);
        let slot = self.slots.clone().try_acquire_owned();
        let slot = slot.map_err(|_| Failure::new(Code::PeerBusy, "the worker is answering other clients; try again in a moment"))?;
        let (ours, theirs) = ports();
        let Port { tx, rx: mut theirs } = theirs;
        let give_up = CancellationToken::new();
        self.attempts.insert((sender.clone(), attempt.clone()), Attempt { grant, tx, give_up: give_up.clone() });
        let root = seal::root_of(&self.room_secret, &self.room, grant);
        let answering = Answering {
            room: self.room.clone(),
            me: self.me.clone(),
            sender: sender.clone(),
            attempt,
            sealer: Sealer::new(&root, &self.room, grant),
            room_secret: self.room_secret.clone(),
            identity: self.identity.clone(),
            signal: self.signal.clone(),
            options: options.clone(),
        };
        let links = self.links.clone();
        let offer = offer.to_owned();
        tokio::spawn(async move {
            let given_up = Err(Failure::new(Code::NoConnection, "it has left, or begun anew"));
            match give_up.run_until_cancelled(answering.run(offer, ours, &mut theirs)).await.unwrap_or(given_up) {
                Ok(link) => {
                    let _ = links.send((answering.sender.clone(), link)).await;
                    drop(slot);
                    answering.forward(theirs).await;
                }
                Err(failure) => tracing::info!(peer = %answering.sender, %failure, "a client did not connect"),
            }
        });
        Ok(())
    }

    /// Ends what this client has begun and not ended.
    fn give_up(&self, client: &PeerId) {
        for (_, attempt) in self.attempts.iter().filter(|((peer, _), _)| peer == client) {
            attempt.give_up.cancel();
        }
    }

    fn handle_candidate(&mut self, sender: PeerId, candidate: &Value) {
        let Ok((_, opened)) = self.open(&sender, candidate) else { return };
        let attempt = opened["attempt"].as_str().unwrap_or_default().to_owned();
        if let Some(attempt) = self.attempts.get(&(sender, attempt)) {
            let _ = attempt.tx.try_send(Description::Candidate(opened["candidate"].clone()));
        }
    }

    fn open(&self, sender: &PeerId, sealed: &Value) -> Result<(Grant, Value), Failure> {
        let text = sealed.as_str().unwrap_or_default();
        let grant = seal::sealed_grant(text).ok_or_else(|| {
            Failure::new(Code::NotAuthentic, "this worker takes sealed offers only: use webrtc-client with an invite (clients of the older Python system cannot prove themselves)")
        })?;
        let root = seal::root_of(&self.room_secret, &self.room, grant);
        Ok((grant, Sealer::new(&root, &self.room, grant).open(sender, &self.me, text)?))
    }
}

/// One offer on its way to a proven link.
struct Answering {
    room: RoomId,
    me: PeerId,
    sender: PeerId,
    attempt: String,
    sealer: Sealer,
    room_secret: Secret<[u8; 32]>,
    identity: Arc<Identity>,
    signal: SignalSender,
    options: PeerOptions,
}

impl Answering {
    async fn run(&self, sdp: String, ours: Port, theirs: &mut mpsc::Receiver<Description>) -> Result<Link, Failure> {
        let envelope = self.envelope();
        let mut establishing = pin!(answer(&self.options, &CONTROL_CHANNELS, sdp, ours));
        let established = loop {
            tokio::select! {
                result = &mut establishing => break result?,
                Some(description) = theirs.recv() => self.signal.send(envelope.seal(&description)?).await?,
            }
        };
        let Established { carrier, channels, binding } = established;
        let [mut auth, control, progress] = three(channels);
        let root_for = |grant| -> RootSecret { seal::root_of(&self.room_secret, &self.room, grant) };
        let proven = seal::prove_as_worker(&mut auth, self.identity.private(), root_for, &self.room, binding).await?;
        let (path_mtu, near) = (carrier.connection.path_mtu().await, carrier.connection.is_near().await);
        Ok(Link { control, progress, proven, carrier, path_mtu, near })
    }

    /// Sends what an established link says of its restarts, until it ends.
    async fn forward(&self, mut theirs: mpsc::Receiver<Description>) {
        while let Some(description) = theirs.recv().await {
            let Ok(message) = self.envelope().seal(&description) else { return };
            if self.signal.send(message).await.is_err() {
                tracing::info!(peer = %self.sender, "a description of a restart was not sent: the server is away");
            }
        }
    }

    fn envelope(&self) -> Envelope<'_> {
        Envelope { sealer: &self.sealer, me: &self.me, other: &self.sender, attempt: &self.attempt }
    }
}

/// The number of a bulk connection: of the place's first one, its second, and so on. Numbers are never used again, and tell both sides the
/// place, and so the receive window.
pub fn bulk_number(place: u32, before: u32) -> u32 {
    (before.wrapping_mul(BULK_CONNECTIONS)).wrapping_add(place % BULK_CONNECTIONS).wrapping_add(1)
}

/// Opens a bulk connection from the client's side; `port` leads over the control connection.
///
/// # Errors
/// [`Code::NoConnection`], [`Code::NotAuthentic`].
pub async fn dial_bulk(number: u32, key: &Secret<[u8; 32]>, options: &PeerOptions, port: Port) -> Result<Bulk, Failure> {
    let established = offer(&bulk_options(number, options), &BULK_CHANNELS, port).await?;
    prove_bulk(established, number, key, &options.path_mtu, Side::Client).await
}

/// Answers a bulk connection on the worker's side.
///
/// # Errors
/// [`Code::NoConnection`], [`Code::NotAuthentic`].
pub async fn answer_bulk(number: u32, key: &Secret<[u8; 32]>, options: &PeerOptions, sdp: String, port: Port) -> Result<Bulk, Failure> {
    let established = answer(&bulk_options(number, options), &BULK_CHANNELS, sdp, port).await?;
    prove_bulk(established, number, key, &options.path_mtu, Side::Worker).await
}

fn bulk_options(number: u32, options: &PeerOptions) -> PeerOptions {
    let receive_window = Some(match number.wrapping_sub(1) % BULK_CONNECTIONS {
        0 if options.near => NEAR_WINDOW,
        0 => FIRST_WINDOW,
        1..4 => EARLY_WINDOW,
        4..16 => FURTHER_WINDOW,
        _ => LATE_WINDOW,
    });
    PeerOptions { receive_window, send_limit: Some(BULK_SEND_LIMIT), ..options.clone() }
}

async fn prove_bulk(
    established: Established,
    number: u32,
    key: &Secret<[u8; 32]>,
    path_mtu: &PathMtu,
    side: Side,
) -> Result<Bulk, Failure> {
    let Established { carrier, channels, binding } = established;
    let [mut auth, channel] = <[Channel; 2]>::try_from(channels).ok().expect("as many channels as were asked for");
    seal::prove_bulk(&mut auth, key, side, number, binding).await?;
    if let Some(mtu) = path_mtu.get() {
        let before = path_mtu.proofs();
        match probe(&channel, mtu).await {
            Ok(()) => path_mtu.proved(),
            // It was lost, and comes again: meanwhile, packets of its length have arrived on other connections.
            Err(_) if path_mtu.proofs() != before => {}
            Err(failure) => {
                path_mtu.forget();
                return Err(failure);
            }
        }
    }
    Ok(Bulk { number, channel, carrier })
}

/// Sees whether the path really carries packets of this length: a router on the way may not, and say nothing.
async fn probe(channel: &Channel, mtu: u32) -> Result<(), Failure> {
    let header = FrameHeader { transfer: NO_TRANSFER, kind: FrameKind::Probe, offset: 0 };
    let mut frame = BytesMut::zeroed(2 * mtu as usize);
    frame[..HEADER].copy_from_slice(&header.encode());
    channel.sender().opened().await?;
    channel.sender().send(frame).await?;
    let too_long = || Failure::new(Code::NoConnection, format!("the path does not carry packets of {mtu} bytes; shorter ones are used"));
    timeout(PROBE, channel.sender().flush()).await.map_err(|_| too_long())?
}

fn gone() -> Failure {
    Failure::new(Code::NoConnection, "the other side went away while connecting")
}

fn no_path() -> Failure {
    Failure::new(
        Code::NoConnection,
        "no direct path to the other side was found; both may be behind firewalls that need a TURN server (see ICE_SERVERS in the README)",
    )
}

#[cfg(test)]
mod tests;
