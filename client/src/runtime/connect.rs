//! From an invite to a proven link, again and again.
//!
//! Before the first success a refusal ends it, and so does an unreachable server: the user mistyped something and should know at
//! once; only an absent or busy worker is waited for, a while. After the first success nothing but a refusal for good ends it: the user is told
//! after some tries, and it goes on.
//!
//! While a link lives, [`Connector::attend`] says what the server and the network say of it.

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
        signal::{PeerInfo, Role, ToPeer},
    },
    runtime::{
        identity::Identity,
        link::{Link, Patience, Way, Word, dial},
        network_changes::NetworkChanges,
        peer::PeerOptions,
        seal,
        signal::{Api, Registration, SignalEvent, SignalSender, connect},
    },
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    known_speeds::KnownSpeeds,
    known_workers::{self, KnownWorkers, Trust},
};
use crate::domain::{event::Event, order::Remote, plan::Speed, select};

/// How long an absent worker is waited for before the first success.
const FIRST_PATIENCE: Duration = Duration::from_secs(20);
/// So many tries look for a path before the first success.
const PATH_TRIES: u32 = 2;
/// How long the first of them may. On a path that loses packets, a handshake may lose several in a row and then waits twice as long each
/// time: to begin again is quicker. The next has the whole time.
const FIRST_PATH: Duration = Duration::from_secs(15);
/// The longest wait between two tries: when a path comes back, the next try is soon.
const LONGEST_WAIT: Duration = Duration::from_secs(2);
/// How long the server may take to take us in again before it is tried anew.
const REGISTERED_AGAIN: Duration = Duration::from_secs(5);
/// How long a worker that we had a link to may take to answer, as long as that link took, and the path thrice as long, within these bounds: what
/// was sent into a broken path must be sent again soon.
const ANSWERED_AGAIN: [Duration; 2] = [Duration::from_secs(3), Duration::from_secs(10)];
const PATH_AGAIN: [Duration; 2] = [Duration::from_secs(6), Duration::from_secs(30)];
/// The user is told when so many tries have failed.
const MANY: u32 = 5;

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
    /// The way that the descriptions of the latest link take.
    way: Option<Way>,
    network: NetworkChanges,
    /// How long the last link took to make.
    took: Option<Duration>,
    backoff: Backoff,
    attempt: u32,
    ever: bool,
    /// How many tries have found no path, as long as none has found one.
    pathless: u32,
    /// Whether the worker has not yet taken us in over the latest link.
    unwelcome: bool,
    _stop: DropGuard,
}

struct Signal {
    sender: SignalSender,
    events: mpsc::Receiver<SignalEvent>,
    /// Whether we are registered, as far as the events that were taken say.
    registered: bool,
    _stop: DropGuard,
}

/// What the server and the network say while a link lives.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Attention {
    /// The worker has left the room: perhaps it has ended, perhaps only its way to the server.
    WorkerLeft,
    /// The worker's address has changed, at this time.
    WorkerMoved(Instant),
    /// This machine's network has changed, or it has slept.
    NetworkChanged,
    /// The server was reached after a change.
    Reachable,
}

impl Connector {
    /// For what every command needs.
    pub(super) fn new(remote: &Remote) -> Result<Self, Failure> {
        let invite = remote.invite.clone();
        let api = Api::trusting(&invite.server, remote.network.ca_file.as_deref())?.with_tokens_in(&remote.config_dir);
        let api = Arc::new(api);
        let identity = Arc::new(Identity::load_or_create(&remote.config_dir.join("identity.json"))?);
        let me = format!("client-{}", hex(&seal::random::<8>()?)).parse()?;
        let options = PeerOptions { server_ice: Some(api.ice_servers()), ..PeerOptions::new(&remote.network, api.is_loopback())? };
        let backoff = Backoff::new(Duration::from_millis(500), LONGEST_WAIT);
        let stop = CancellationToken::new();
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
            way: None,
            network: NetworkChanges::watch(stop.clone()),
            took: None,
            backoff,
            attempt: 0,
            ever: false,
            pathless: 0,
            unwelcome: false,
            _stop: stop.drop_guard(),
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
            self.pathless += u32::from(failure.code == Code::NoConnection);
            if !is_worth_another_try(failure.code, self.ever, Instant::now() < patience, self.pathless) {
                return Err(failure);
            }
            let retry_in = self.next_wait()?;
            let retry_in_ms = retry_in.as_millis() as u64;
            let _ = events.send(Event::Disconnected { reason: failure.message, retry_in_ms }).await;
            if self.ever && self.attempt == MANY {
                let message = format!(
                    "{MANY} tries to reach the worker have failed, and it is tried on; a job that it has goes on without us. Ctrl-C leaves it, and the same command takes it up again"
                );
                let _ = events.send(Event::Notice { message }).await;
            }
            tokio::select! {
                () = sleep(retry_in) => {}
                () = self.network.changed() => {}
                () = registered_again(self.signal.as_mut()) => {}
            }
        }
    }

    /// The worker has taken us in over the latest link.
    pub(super) fn welcomed(&mut self) {
        self.attempt = 0;
        self.backoff.reset();
        self.ever = true;
        self.pathless = 0;
        self.unwelcome = false;
    }

    fn next_wait(&mut self) -> Result<Duration, Failure> {
        Ok(self.backoff.next_wait(seal::random::<8>().map(u64::from_le_bytes)?))
    }

    /// The link may be lost, and the way to the server with it: that is found out now, since a new link would need it.
    pub(super) fn doubt(&self) {
        if let Some(signal) = &self.signal {
            signal.sender.urge();
        }
    }

    /// What the server or the network says of the link; hands on what its restarts need. Cancel-safe.
    pub(super) async fn attend(&mut self) -> Attention {
        loop {
            let Some(signal) = &mut self.signal else {
                self.network.changed().await;
                return Attention::NetworkChanged;
            };
            let description = async {
                match &mut self.way {
                    Some(way) => way.next().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.network.changed() => {
                    signal.sender.urge();
                    return Attention::NetworkChanged;
                }
                message = description => {
                    if let Err(failure) = signal.sender.send(message).await {
                        tracing::info!(%failure, "a description of a restart was not sent");
                    }
                }
                event = signal.events.recv() => {
                    let Some(event) = event else {
                        self.signal = None;
                        continue;
                    };
                    if let Some(attention) = self.handle(event) {
                        return attention;
                    }
                }
            }
        }
    }

    fn handle(&mut self, event: SignalEvent) -> Option<Attention> {
        let signal = self.signal.as_mut()?;
        match event {
            SignalEvent::Registered { .. } | SignalEvent::Alive => {
                signal.registered = true;
                Some(Attention::Reachable)
            }
            SignalEvent::Lost { .. } | SignalEvent::Refused(_) => {
                signal.registered = false;
                None
            }
            SignalEvent::Message(ToPeer::PeerLeft { peer_id }) if peer_id == self.invite.worker => Some(Attention::WorkerLeft),
            SignalEvent::Message(message) => match self.way.as_ref()?.handle(message)? {
                Word::Moved { ago } => Some(Attention::WorkerMoved(Instant::now().checked_sub(ago)?)),
            },
        }
    }

    async fn try_link(&mut self) -> Result<Link, Failure> {
        if self.signal.as_ref().is_none_or(|signal| signal.events.is_closed()) {
            let (signal, peers) = self.register().await?;
            self.choose(&peers)?;
            self.signal = Some(signal);
        }
        self.way = None;
        self.be_registered().await?;
        let patience = self.patience();
        let signal = self.signal.as_mut().expect("it was made above");
        let began = Instant::now();
        let dialed = dial(&self.invite, &self.me, &self.identity, &self.options, patience, &signal.sender, &mut signal.events).await;
        match dialed {
            Ok((link, way)) => {
                self.took = Some(began.elapsed());
                self.way = Some(way);
                Ok(link)
            }
            Err(failure) => {
                match failure.code {
                    Code::RoomNotFound => self.signal = None,
                    Code::Unavailable => signal.registered = false,
                    _ => {}
                }
                Err(failure)
            }
        }
    }

    /// Waits until the server knows us, and has it prove that it is there.
    async fn be_registered(&mut self) -> Result<(), Failure> {
        let signal = self.signal.as_mut().expect("it is made before");
        if self.ever {
            signal.sender.urge();
        }
        while let Ok(event) = signal.events.try_recv() {
            // What came while no link was being made is about earlier ones.
            signal.note(&event)?;
        }
        let again = async {
            while !signal.registered {
                match signal.events.recv().await {
                    Some(event) => signal.note(&event)?,
                    None => return Err(Failure::new(Code::Unavailable, "the connection to the signaling server has ended")),
                }
            }
            Ok(())
        };
        let away = || Err(Failure::new(Code::Unavailable, "the signaling server cannot be reached at present"));
        timeout(REGISTERED_AGAIN, again).await.unwrap_or_else(|_| away())
    }

    /// At first, whoever is far away gets the time that it takes.
    fn patience(&self) -> Patience {
        match self.took.filter(|_| self.ever) {
            Some(took) => {
                Patience { answer: took.clamp(ANSWERED_AGAIN[0], ANSWERED_AGAIN[1]), path: (3 * took).clamp(PATH_AGAIN[0], PATH_AGAIN[1]) }
            }
            None if self.pathless == 0 => Patience { path: FIRST_PATH, ..Patience::default() },
            None => Patience::default(),
        }
    }

    async fn register(&mut self) -> Result<(Signal, Vec<PeerInfo>), Failure> {
        let mut signal = self.start();
        loop {
            match signal.events.recv().await {
                Some(SignalEvent::Registered { peers, .. }) => return Ok((signal, peers)),
                Some(SignalEvent::Refused(failure) | SignalEvent::Lost { failure, .. }) => return Err(self.explain(failure)),
                Some(SignalEvent::Message(_) | SignalEvent::Alive) => {}
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

    fn start(&self) -> Signal {
        let registration = Registration {
            room: self.invite.room.clone(),
            token: self.invite.token.clone(),
            peer: self.me.clone(),
            role: Role::Client,
            metadata: Default::default(),
        };
        let stop = CancellationToken::new();
        let (sender, events) = connect(self.api.clone(), registration, self.identity.clone(), stop.clone());
        Signal { sender, events, registered: true, _stop: stop.drop_guard() }
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

impl Signal {
    /// # Errors
    /// What the server refuses for good.
    fn note(&mut self, event: &SignalEvent) -> Result<(), Failure> {
        match event {
            SignalEvent::Registered { .. } | SignalEvent::Alive => self.registered = true,
            SignalEvent::Lost { .. } => self.registered = false,
            SignalEvent::Refused(failure) => return Err(failure.clone()),
            SignalEvent::Message(_) => {}
        }
        Ok(())
    }
}

/// Waits until the server, which was away, is there again; cancel-safe.
async fn registered_again(signal: Option<&mut Signal>) {
    let Some(signal) = signal.filter(|signal| !signal.registered) else { return std::future::pending().await };
    while let Some(event) = signal.events.recv().await {
        if signal.note(&event).is_err() || signal.registered {
            return;
        }
    }
}

/// Whether another try may find what the last one did not: within its `patience`, an absent worker; a path, until enough tries have found none
/// (`pathless` counts them); and whatever there was before.
fn is_worth_another_try(code: Code, ever: bool, patience: bool, pathless: u32) -> bool {
    match code {
        Code::PeerNotFound | Code::PeerBusy => ever || patience,
        Code::NoConnection => ever || pathless < PATH_TRIES,
        Code::Unavailable | Code::RateLimited => ever,
        _ => false,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_is_not_found_at_first_is_looked_for_once_more() {
        for (code, ever, patience, pathless, another) in [
            (Code::NoConnection, false, true, 1, true),
            (Code::NoConnection, false, false, 1, true),
            (Code::NoConnection, false, true, 2, false),
            (Code::NoConnection, true, false, 7, true),
            (Code::PeerNotFound, false, true, 0, true),
            (Code::PeerNotFound, false, false, 1, false),
            (Code::PeerBusy, true, false, 0, true),
            (Code::Unavailable, false, true, 0, false),
            (Code::Unavailable, true, false, 0, true),
            (Code::NotAuthentic, true, true, 0, false),
        ] {
            assert_eq!(is_worth_another_try(code, ever, patience, pathless), another, "{code:?}, {ever}, {patience}, {pathless}");
        }
    }
}
