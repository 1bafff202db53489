//! From an invite to a proven link, again and again.
//!
//! Before the first success a refusal ends it, and so does an unreachable server: the user mistyped something and should know at
//! once; only an absent or busy worker is waited for, a while. After the first success nothing but a refusal for good ends it.

mod doctor;

use std::{sync::Arc, time::Duration};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use shared::{
    domain::{
        backoff::Backoff,
        error::{Code, Failure},
        id::{PeerId, hex},
        invite::Invite,
        message::WorkerInfo,
        signal::{PeerInfo, Role, SignIn, ToPeer},
    },
    runtime::{
        identity::Identity,
        link::{Link, dial},
        peer::PeerOptions,
        seal,
        signal::{Api, Registration, SignalEvent, SignalSender, connect},
    },
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    known_speeds::KnownSpeeds,
    known_workers::{self, KnownWorkers, Trust},
};
use crate::domain::{event::Event, order::Remote, plan::Speed, select};

/// How long an absent worker is waited for before the first success.
const FIRST_PATIENCE: Duration = Duration::from_secs(20);

/// Keeps a client registered in its room and makes links to its worker.
pub(super) struct Connector {
    invite: Invite,
    api: Arc<Api>,
    identity: Arc<Identity>,
    options: PeerOptions,
    me: PeerId,
    wanted: Option<String>,
    known: KnownWorkers,
    speeds: KnownSpeeds,
    signal: Option<Signal>,
    backoff: Backoff,
    attempt: u32,
    ever: bool,
    /// Whether the worker has not yet taken us in over the latest link.
    unwelcome: bool,
}

struct Signal {
    sender: SignalSender,
    events: mpsc::Receiver<SignalEvent>,
    _stop: DropGuard,
}

impl Connector {
    /// For what every command needs.
    pub(super) fn new(remote: &Remote) -> Result<Self, Failure> {
        let invite = remote.invite.clone();
        let api = Arc::new(Api::new(&invite.server)?);
        let identity = Arc::new(Identity::load_or_create(&remote.config_dir.join("identity.json"))?);
        let me = format!("client-{}", hex(&seal::random::<8>()?)).parse()?;
        let options = PeerOptions::new(&remote.network, api.is_loopback())?;
        let backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(5));
        let (wanted, known) = (remote.worker.clone(), KnownWorkers::new(&remote.config_dir));
        let speeds = KnownSpeeds::new(&remote.config_dir);
        Ok(Connector {
            invite,
            api,
            identity,
            options,
            me,
            wanted,
            known,
            speeds,
            signal: None,
            backoff,
            attempt: 0,
            ever: false,
            unwelcome: false,
        })
    }

    /// Remembers the worker's key under its name and room, or finds that it has changed. `true`: in another room a worker of this name
    /// had another key.
    pub(super) fn remember(&self, name: &str) -> Result<bool, Failure> {
        let (room, key) = (&self.invite.room, &self.invite.worker_key);
        let trust = self.known.verify(&known_workers::in_room(name, room), key)?;
        Ok(trust == Trust::New && self.known.differs_elsewhere(name, key)?)
    }

    /// How fast the last package went to the worker.
    pub(super) fn known_speed(&self) -> Option<Speed> {
        self.speeds.of(&self.invite.worker_key)
    }

    /// Remembers how fast a package went to the worker.
    pub(super) fn remember_speed(&self, bytes: u64, took: Duration) {
        self.speeds.remember(&self.invite.worker_key, bytes, took);
    }

    /// The workers that are in the room now, as they describe themselves.
    pub(super) async fn workers(&mut self) -> Result<Vec<WorkerInfo>, Failure> {
        let (signal, peers) = self.register().await?;
        self.signal = Some(signal);
        Ok(workers_of(&peers))
    }

    /// The options of every connection of this session.
    pub(super) fn options(&self) -> &PeerOptions {
        &self.options
    }

    /// The next link; how often it failed is told as events.
    pub(super) async fn link(&mut self, events: &mpsc::Sender<Event>) -> Result<Link, Failure> {
        let patience = Instant::now() + FIRST_PATIENCE;
        if self.unwelcome {
            // The last link was of no use: a worker that has no place closes it at once, and must not be asked all the time.
            sleep(self.next_wait()?).await;
        }
        loop {
            self.attempt += 1;
            let connecting =
                Event::Connecting { server: self.invite.server.clone(), room: self.invite.room.clone(), attempt: self.attempt };
            let _ = events.send(connecting).await;
            let failure = match self.try_link().await {
                Ok(link) => {
                    self.unwelcome = true;
                    return Ok(link);
                }
                Err(failure) => failure,
            };
            let worth_it = match failure.code {
                Code::PeerNotFound | Code::PeerBusy => self.ever || Instant::now() < patience,
                Code::NoConnection | Code::Unavailable | Code::RateLimited => self.ever,
                _ => false,
            };
            if !worth_it {
                return Err(failure);
            }
            let retry_in = self.next_wait()?;
            let retry_in_ms = retry_in.as_millis() as u64;
            let _ = events.send(Event::Disconnected { reason: failure.message, retry_in_ms }).await;
            sleep(retry_in).await;
        }
    }

    /// The worker has taken us in over the latest link.
    pub(super) fn welcomed(&mut self) {
        self.attempt = 0;
        self.backoff.reset();
        self.ever = true;
        self.unwelcome = false;
    }

    fn next_wait(&mut self) -> Result<Duration, Failure> {
        Ok(self.backoff.next_wait(seal::random::<8>().map(u64::from_le_bytes)?))
    }

    /// Waits until the server says that the worker has left the room: perhaps it has ended, perhaps only its way to the server.
    /// Takes whatever else the server says meanwhile; cancel-safe.
    pub(super) async fn worker_left(&mut self) {
        let Some(signal) = &mut self.signal else { return std::future::pending().await };
        loop {
            match signal.events.recv().await {
                Some(SignalEvent::Message(ToPeer::PeerLeft { peer_id })) if peer_id == self.invite.worker => return,
                Some(_) => {}
                None => return std::future::pending().await,
            }
        }
    }

    async fn try_link(&mut self) -> Result<Link, Failure> {
        if self.signal.as_ref().is_none_or(|signal| signal.events.is_closed()) {
            let (signal, peers) = self.register().await?;
            self.choose(&peers)?;
            self.signal = Some(signal);
        }
        let signal = self.signal.as_mut().expect("it was made above");
        while signal.events.try_recv().is_ok() {
            // What came while no link was being made is about earlier ones.
        }
        let dialed = dial(&self.invite, &self.me, &self.identity, &self.options, &signal.sender, &mut signal.events).await;
        if dialed.as_ref().is_err_and(|failure| failure.code == Code::RoomNotFound) {
            self.signal = None;
        }
        dialed
    }

    async fn register(&mut self) -> Result<(Signal, Vec<PeerInfo>), Failure> {
        let sign_in = self.api.sign_in().await?;
        let mut signal = self.start(Some(sign_in));
        loop {
            match signal.events.recv().await {
                Some(SignalEvent::Registered { ice_servers, peers, .. }) => {
                    if self.options.ice_servers.is_empty() {
                        self.options.ice_servers = ice_servers;
                    }
                    return Ok((signal, peers));
                }
                Some(SignalEvent::Refused(failure) | SignalEvent::Lost { failure, .. }) => return Err(self.explain(failure)),
                Some(SignalEvent::Message(_)) => {}
                None => return Err(Failure::new(Code::Unavailable, "the connection to the signaling server has ended")),
            }
        }
    }

    /// Takes another worker than the invite's own, if the user named one or the own one is not there; the room must vouch for it.
    fn choose(&mut self, peers: &[PeerInfo]) -> Result<(), Failure> {
        let own_is_here = peers.iter().any(|peer| peer.peer_id == self.invite.worker);
        if self.wanted.is_none() && (own_is_here || self.ever) {
            return Ok(());
        }
        let workers = workers_of(peers);
        let chosen = select::choose(&workers, self.wanted.as_deref(), &self.invite.worker)?;
        if chosen.peer == self.invite.worker {
            return Ok(());
        }
        let metadata = peers.iter().find(|peer| peer.peer_id == chosen.peer).map(|peer| &peer.metadata);
        let text = |name: &str| metadata.and_then(|metadata| metadata.get(name)?.as_str()).unwrap_or_default();
        let key: Option<[u8; 32]> = URL_SAFE_NO_PAD.decode(text("worker_key")).ok().and_then(|key| key.try_into().ok());
        let key = key.ok_or_else(|| Failure::new(Code::NotAuthentic, format!("the worker {} shows no key", chosen.peer)))?;
        seal::check_vouch(&self.invite.room_key, &self.invite.room, &chosen.peer, &key, text("vouch"))?;
        self.invite.worker = chosen.peer.clone();
        self.invite.worker_key = key;
        Ok(())
    }

    fn start(&self, sign_in: Option<SignIn>) -> Signal {
        let registration = Registration {
            room: self.invite.room.clone(),
            token: self.invite.token.clone(),
            peer: self.me.clone(),
            role: Role::Client,
            metadata: Default::default(),
        };
        let stop = CancellationToken::new();
        let (sender, events) = connect(self.api.clone(), registration, self.identity.clone(), sign_in, stop.clone());
        Signal { sender, events, _stop: stop.drop_guard() }
    }

    fn explain(&self, failure: Failure) -> Failure {
        if failure.code != Code::RoomNotFound {
            return failure;
        }
        let message = format!(
            "the room of this invite is gone or expired on {}; ask for the invite that webrtc-worker prints now",
            self.invite.server
        );
        Failure::new(Code::RoomNotFound, message)
    }
}

/// What the workers among these peers say about themselves.
fn workers_of(peers: &[PeerInfo]) -> Vec<WorkerInfo> {
    let described = |peer: &PeerInfo| {
        let info: WorkerInfo = serde_json::from_value(peer.metadata.get("worker")?.clone()).ok()?;
        (info.peer == peer.peer_id).then_some(info)
    };
    peers.iter().filter(|peer| peer.role == Role::Worker).filter_map(described).collect()
}
