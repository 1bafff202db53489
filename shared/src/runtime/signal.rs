//! The peers' side of the signaling server: its REST calls, and one WebSocket that comes back after every break.
//!
//! * [`Api`]: anonymous sign-in, no more often than needed; room creation
//! * [`Api::ice_servers`]: the STUN and TURN servers that it names, renewed as long as a socket is registered
//! * [`Api::health`], [`Api::greet`]: what doctor asks
//! * [`connect`]: a task that registers, relays both ways, and reconnects with full jitter; it gives up only when the server
//!   says that trying again is pointless (no such room, id taken, …)
//! * [`SignalSender::urge`]: somebody needs the server now, or there is reason to doubt the way to it
//!
//! How long it waits between tries is decided by what happens when a server comes back to all of its peers at once. The n-th wait is
//! uniform in `0..=min(13 s, 8 s · 2ⁿ)`: of 1,000 peers, fewer than 200 come in a second, and everybody is back after 13 s, however long
//! the server was away (a cap of a minute would leave some away for a minute). Trying so often is cheap: at a server that is down it
//! is one refused TCP connection a peer each 6 s or so. The first wait is as long because the peers of a server that dies lose it in the
//! same moment. A way to the server that broke somewhere else is each peer's own: the first try follows at once.

mod health;
mod token;

use std::{
    net::IpAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::{SinkExt, StreamExt};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    net::{TcpStream, lookup_host},
    sync::{Mutex, Notify, mpsc, watch},
    time::{Instant, MissedTickBehavior, interval_at, sleep, sleep_until, timeout},
};
use tokio_tungstenite::{
    Connector, MaybeTlsStream, WebSocketStream,
    tungstenite::{self, Message, protocol::WebSocketConfig},
};
use tokio_util::sync::CancellationToken;

use super::{identity::Identity, network_changes::is_ours, peer::turn::Trust, seal};
use crate::domain::{
    backoff::{Backoff, FIRST_WAIT, LONGEST_WAIT},
    error::{Code, Envelope, Failure},
    id::{PeerId, RoomId, Secret},
    signal::{self, CreateRoom, CreatedRoom, IceServer, MAX_MESSAGE, Metadata, PeerInfo, Role, ToPeer, ToServer},
};

pub use self::health::Health;
use self::token::{IdToken, Tokens};

const HTTP_TIMEOUT: Duration = Duration::from_secs(15);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a TCP connection to one address may take. The kernel repeats a lost SYN after 1, 3, 7, 15 s: to wait for the later ones is to
/// come back late to a path that is there again.
const REACH: Duration = Duration::from_secs(4);
/// A try that has got nowhere for so long is begun anew when somebody needs the server.
const STALE: Duration = Duration::from_secs(2);
/// Between two pings to the server, and how long it may take to say something after one.
const HEARTBEAT: Duration = Duration::from_secs(10);
const ANSWER: Duration = Duration::from_secs(5);
/// The same where there is reason to doubt the way to it.
const URGENT_ANSWER: Duration = Duration::from_secs(3);
/// The longest wait while somebody needs the server, and the time between the beginnings of two tries then, at least.
const URGENT_WAIT: Duration = Duration::from_secs(2);
const URGENT_PAUSE: Duration = Duration::from_secs(1);
const QUEUE: usize = 64;

/// The server's REST side.
pub struct Api {
    http: reqwest::Client,
    server: String,
    ice_servers: watch::Sender<Vec<IceServer>>,
    trust: Trust,
    /// How a WebSocket is secured.
    connector: Connector,
    /// Locked while signing in, so that all who need a token wait for the same one.
    tokens: Mutex<Tokens>,
}

impl Api {
    /// For the server at this base URL; with `https`, the system's certificates decide whom to trust.
    ///
    /// # Errors
    /// [`Code::InvalidRequest`] when it is not an `http(s)://` URL.
    pub fn new(server: &str) -> Result<Self, Failure> {
        Self::trusting(server, None)
    }

    /// For the server at this base URL; the certificates in the file (PEM) are trusted, too.
    ///
    /// # Errors
    /// [`Code::InvalidRequest`] when it is not an `http(s)://` URL, [`Code::BadFile`] for certificates that cannot be read.
    pub fn trusting(server: &str, ca_file: Option<&Path>) -> Result<Self, Failure> {
        let server = server.trim_end_matches('/').to_owned();
        let parsed = reqwest::Url::parse(&server).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
        let Some(url) = parsed else {
            return Err(Failure::new(
                Code::InvalidRequest,
                format!("'{server}' is not the URL of a server: it must look like http://HOST:8001 or https://HOST"),
            ));
        };
        let trust = Trust::with(ca_file)?;
        let mut http = reqwest::Client::builder().timeout(HTTP_TIMEOUT).connect_timeout(CONNECT_TIMEOUT);
        let connector = if url.scheme() == "https" {
            let config = trust.config().map_err(|why| Failure::new(Code::Internal, format!("TLS cannot be used: {why}")))?;
            http = http.tls_backend_preconfigured(config.as_ref().clone());
            Connector::Rustls(config)
        } else {
            Connector::Plain
        };
        let http = http.build().map_err(|error| Failure::new(Code::Internal, format!("no HTTP client can be made: {error}")))?;
        let tokens = Mutex::new(Tokens::new(&server));
        Ok(Api { http, server, ice_servers: watch::Sender::new(Vec::new()), trust, connector, tokens })
    }

    /// Keeps the id token in this folder, so that the next run uses it until it expires.
    pub fn with_tokens_in(mut self, dir: &Path) -> Self {
        self.tokens.get_mut().keep_in(dir);
        self
    }

    /// Whom it trusts as a server over TLS.
    pub(super) fn trust(&self) -> &Trust {
        &self.trust
    }

    /// The server's base URL, without a slash at its end.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// Whether the server is on this machine's loopback interface.
    pub fn is_loopback(&self) -> bool {
        let host = reqwest::Url::parse(&self.server).ok().and_then(|url| url.host_str().map(str::to_owned)).unwrap_or_default();
        host == "localhost" || host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }

    /// The STUN and TURN servers that it named last to any socket of this value; none before the first registration. Credentials
    /// among them expire, so take them anew for each connection.
    pub fn ice_servers(&self) -> watch::Receiver<Vec<IceServer>> {
        self.ice_servers.subscribe()
    }

    /// Opens a room that this user owns.
    ///
    /// # Errors
    /// What the server says, or [`Code::NoConnection`].
    pub async fn create_room(&self, request: &CreateRoom) -> Result<CreatedRoom, Failure> {
        let token = self.id_token().await?;
        match self.post("/create-room", Some(&token.text), request).await {
            Err(failure) if self.has_outlived_itself(&token, &failure).await => {
                self.post("/create-room", Some(&self.id_token().await?.text), request).await
            }
            created => created,
        }
    }

    /// The token of this user; becomes an anonymous user when there is none that is still good.
    async fn id_token(&self) -> Result<IdToken, Failure> {
        let mut tokens = self.tokens.lock().await;
        if let Some(token) = tokens.usable() {
            return Ok(token);
        }
        let sign_in = self.post("/anonymous-signin", None, &serde_json::json!({})).await?;
        Ok(tokens.remember(sign_in))
    }

    /// Forgets a token that was refused. Whether it had been good before (the server has other keys now, or another clock), so that a new one is
    /// worth a try at once.
    async fn has_outlived_itself(&self, token: &IdToken, failure: &Failure) -> bool {
        if failure.code != Code::Unauthorized {
            return false;
        }
        self.tokens.lock().await.forget(token);
        token.reused
    }

    async fn post<T: DeserializeOwned>(&self, path: &str, bearer: Option<&Secret<String>>, body: &impl Serialize) -> Result<T, Failure> {
        let mut request = self.http.post(format!("{}{path}", self.server)).json(body);
        if let Some(token) = bearer {
            request = request.bearer_auth(token.expose());
        }
        let response = request.send().await.map_err(|error| self.unreachable(&error))?;
        let status = response.status();
        let body = response.bytes().await.map_err(|error| self.unreachable(&error))?;
        if status.is_success() {
            return serde_json::from_slice(&body).map_err(|_| self.strange(status.as_u16()));
        }
        Err(match serde_json::from_slice::<Envelope>(&body) {
            Ok(envelope) => Failure::new(envelope.error.code, envelope.error.message),
            Err(_) => self.strange(status.as_u16()),
        })
    }

    fn unreachable(&self, error: &reqwest::Error) -> Failure {
        let cause = root_cause(error);
        let advice = advice(&cause).unwrap_or("Check the address, and that webrtc-server runs there");
        Failure::new(Code::NoConnection, format!("the signaling server {} cannot be reached: {cause}. {advice}", self.server))
    }

    fn strange(&self, status: u16) -> Failure {
        Failure::new(
            Code::Unavailable,
            format!("{} answered (HTTP {status}), but not as a webRTC-connect signaling server; check the address", self.server),
        )
    }

    fn websocket_url(&self) -> String {
        // http → ws, https → wss: the same router answers on both of the server's ports.
        format!("ws{}/", self.server.strip_prefix("http").unwrap_or(&self.server))
    }
}

/// What helps where the server's certificate is the cause.
fn advice(cause: &str) -> Option<&'static str> {
    // reqwest and tungstenite hide rustls's error; its text begins so.
    cause
        .contains("invalid peer certificate")
        .then_some("If the server's certificate is from a CA of your own, name the CA's with --ca-file")
}

fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// Who registers where.
pub struct Registration {
    /// The room.
    pub room: RoomId,
    /// Its admission token.
    pub token: Secret<String>,
    /// The id to have in it.
    pub peer: PeerId,
    /// What the peer is.
    pub role: Role,
    /// What it says about itself.
    pub metadata: Metadata,
}

/// What the connection to the server tells its owner.
#[derive(Debug)]
pub enum SignalEvent {
    /// Registered, for the first time or again.
    Registered {
        /// When the room stops admitting: Unix seconds.
        expires_at: u64,
        /// Who else is here.
        peers: Vec<PeerInfo>,
        /// STUN and TURN servers to use.
        ice_servers: Vec<IceServer>,
    },
    /// The connection is gone; it is tried again after the wait.
    Lost {
        /// Why.
        failure: Failure,
        /// How long until the next try.
        retry_in: Duration,
    },
    /// Something from the server or from another peer.
    Message(ToPeer),
    /// There was reason to doubt the way to the server ([`SignalSender::urge`]), and it has answered.
    Alive,
    /// The server refuses for good; the task has ended.
    Refused(Failure),
}

/// Sends to the server; cheap to clone.
#[derive(Clone)]
pub struct SignalSender {
    queue: mpsc::Sender<ToServer>,
    urge: Arc<Urge>,
}

/// That somebody needs the server now.
#[derive(Default)]
struct Urge {
    /// Until there is a connection.
    lasting: AtomicBool,
    now: Notify,
}

impl SignalSender {
    #[cfg(test)]
    pub(crate) fn for_tests(queue: mpsc::Sender<ToServer>) -> Self {
        SignalSender { queue, urge: Arc::default() }
    }

    /// Hands a message over, to be sent as soon as there is a connection.
    ///
    /// # Errors
    /// [`Code::Unavailable`] when there is none for 10 s and the queue is full.
    pub async fn send(&self, message: ToServer) -> Result<(), Failure> {
        let sent = self.queue.send_timeout(message, Duration::from_secs(10)).await;
        sent.map_err(|_| Failure::new(Code::Unavailable, "the signaling server cannot be reached at present"))
    }

    /// Somebody needs the server now, or there is reason to doubt the way to it. Connected: it must answer within 3 s, and
    /// [`SignalEvent::Alive`] says that it has. Not connected: it is tried now, and at short intervals until that succeeds.
    pub fn urge(&self) {
        self.urge.lasting.store(true, Ordering::Relaxed);
        self.urge.now.notify_one();
    }
}

/// Starts the task that keeps a peer registered until `stop`.
pub fn connect(
    api: Arc<Api>,
    registration: Registration,
    identity: Arc<Identity>,
    stop: CancellationToken,
) -> (SignalSender, mpsc::Receiver<SignalEvent>) {
    let (message_tx, outgoing) = mpsc::channel(QUEUE);
    let (events, event_rx) = mpsc::channel(QUEUE);
    let urge = Arc::<Urge>::default();
    let task = Task { api, registration, identity, outgoing, events, urge: urge.clone() };
    tokio::spawn(async move {
        stop.run_until_cancelled(Box::pin(task.run())).await;
    });
    (SignalSender { queue: message_tx, urge }, event_rx)
}

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

struct Task {
    api: Arc<Api>,
    registration: Registration,
    identity: Arc<Identity>,
    outgoing: mpsc::Receiver<ToServer>,
    events: mpsc::Sender<SignalEvent>,
    urge: Arc<Urge>,
}

/// How a socket that was registered came to its end.
enum Ended {
    /// Nobody wants it any more.
    Unwanted,
    /// By the server, or by something near it: others have lost it in the same moment, too.
    ThereToo(Failure),
    /// By something on the way to it.
    OnTheWay(Failure),
}

impl Task {
    async fn run(mut self) {
        let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
        loop {
            let began = Instant::now();
            let (failure, mut retry_in) = match self.session(&mut backoff).await {
                Ok(Ended::Unwanted) => return,
                Ok(Ended::OnTheWay(failure)) => (failure, Duration::ZERO),
                Ok(Ended::ThereToo(failure)) | Err(failure) => (failure, backoff.next_wait(random())),
            };
            if is_final(failure.code) {
                let _ = self.events.send(SignalEvent::Refused(failure)).await;
                return;
            }
            if self.urge.lasting.load(Ordering::Relaxed) {
                retry_in = retry_in.min(URGENT_WAIT);
            }
            tracing::info!(%failure, ?retry_in, "the signaling server is away");
            if self.events.send(SignalEvent::Lost { failure, retry_in }).await.is_err() {
                return;
            }
            tokio::select! {
                () = sleep(retry_in) => {}
                () = self.urge.now.notified() => {}
            }
            sleep_until(began + URGENT_PAUSE).await;
        }
    }

    /// One socket, from connecting to its loss.
    async fn session(&mut self, backoff: &mut Backoff) -> Result<Ended, Failure> {
        let (mut socket, registered) = self.enter().await?;
        backoff.reset();
        self.urge.lasting.store(false, Ordering::Relaxed);
        if self.events.send(registered).await.is_err() {
            return Ok(Ended::Unwanted);
        }
        Ok(self.relay(&mut socket).await)
    }

    /// A socket that is registered: with the token of last time, or, when the server does not know that any more, with a new one.
    async fn enter(&mut self) -> Result<(Socket, SignalEvent), Failure> {
        let token = self.api.id_token().await?;
        match self.enter_with(&token).await {
            Err(failure) if self.api.has_outlived_itself(&token, &failure).await => {
                let token = self.api.id_token().await?;
                self.enter_with(&token).await.map_err(may_pass)
            }
            entered => entered.map_err(may_pass),
        }
    }

    async fn enter_with(&mut self, token: &IdToken) -> Result<(Socket, SignalEvent), Failure> {
        let urged = async {
            sleep(STALE).await;
            self.urge.now.notified().await;
        };
        let mut socket = tokio::select! {
            socket = self.open() => socket?,
            () = urged => return Err(self.unreachable("no answer so far; trying anew")),
        };
        let registered = self.register(&mut socket, token.text.clone()).await?;
        Ok((socket, registered))
    }

    async fn open(&self) -> Result<Socket, Failure> {
        let config = WebSocketConfig::default()
            .max_message_size(Some(MAX_MESSAGE))
            .max_frame_size(Some(MAX_MESSAGE))
            .read_buffer_size(4096)
            .max_write_buffer_size(4 * MAX_MESSAGE);
        // The server does not need it; a load balancer before several can send the peers of one room to the same.
        let url = format!("{}?room={}", self.api.websocket_url(), self.registration.room);
        let stream = self.reach(&url).await?;
        let opening = tokio_tungstenite::client_async_tls_with_config(url, stream, Some(config), Some(self.api.connector.clone()));
        match timeout(CONNECT_TIMEOUT, opening).await {
            Ok(Ok((socket, _))) => Ok(socket),
            Ok(Err(tungstenite::Error::Http(response))) => {
                Err(self.unreachable(&format!("it answered HTTP {}", response.status().as_u16())))
            }
            Ok(Err(error)) => {
                let cause = root_cause(&error);
                Err(self.unreachable(&advice(&cause).map_or_else(|| cause.clone(), |advice| format!("{cause}. {advice}"))))
            }
            Err(_) => Err(self.unreachable("no answer in time")),
        }
    }

    /// A TCP connection to the server, at the first of its addresses that answers.
    async fn reach(&self, url: &str) -> Result<TcpStream, Failure> {
        let lost = |error: &dyn std::error::Error| self.unreachable(&root_cause(error));
        let url = reqwest::Url::parse(url).map_err(|error| lost(&error))?;
        let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
        let addresses = timeout(CONNECT_TIMEOUT, lookup_host((host, url.port_or_known_default().unwrap_or_default()))).await;
        let addresses = addresses.map_err(|_| self.unreachable("its name was not resolved in time"))?.map_err(|error| lost(&error))?;
        let mut failure = self.unreachable("its name has no address");
        for address in addresses {
            match timeout(REACH, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => {
                    // Messages are small, and somebody waits for each.
                    let _ = stream.set_nodelay(true);
                    return Ok(stream);
                }
                Ok(Err(error)) => failure = lost(&error),
                Err(_) => failure = self.unreachable("no answer in time"),
            }
        }
        Err(failure)
    }

    fn unreachable(&self, why: &str) -> Failure {
        Failure::new(Code::NoConnection, format!("the signaling server {} cannot be reached: {why}", self.api.server()))
    }

    async fn register(&mut self, socket: &mut Socket, id_token: Secret<String>) -> Result<SignalEvent, Failure> {
        let Registration { room, token, peer, role, metadata } = &self.registration;
        let message = ToServer::Register {
            peer_id: peer.clone(),
            room_id: room.clone(),
            token: token.clone(),
            id_token,
            role: *role,
            metadata: metadata.clone(),
            public_key: Some(self.identity.signing_public()),
        };
        send(socket, &message).await?;
        loop {
            match receive(socket, CONNECT_TIMEOUT).await? {
                ToPeer::Challenge { nonce } => {
                    let signature = self.identity.prove(room, peer, &nonce);
                    send(socket, &ToServer::Prove { signature }).await?;
                }
                ToPeer::RegisteredAuth { expires_at, peers, ice_servers, .. } => {
                    self.api.ice_servers.send_replace(ice_servers.clone());
                    return Ok(SignalEvent::Registered { expires_at, peers, ice_servers });
                }
                ToPeer::Error { code, message, .. } => return Err(Failure::new(code, message)),
                _ => {}
            }
        }
    }

    async fn relay(&mut self, socket: &mut Socket) -> Ended {
        let local = local_address(socket);
        let mut beat = interval_at(Instant::now() + HEARTBEAT, HEARTBEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut due = Due::default();
        loop {
            let sent = tokio::select! {
                message = self.outgoing.recv() => {
                    let Some(message) = message else { return Ended::Unwanted };
                    if let ToServer::UpdateMetadata { metadata } = &message {
                        self.registration.metadata.clone_from(metadata);
                    }
                    send(socket, &message).await
                }
                _ = beat.tick() => due.ask(socket, ANSWER).await,
                () = self.urge.now.notified() => {
                    if local.is_some_and(|address| !is_ours(address)) {
                        return Ended::OnTheWay(broke("this machine's address has changed"));
                    }
                    due.urgent = true;
                    due.ask(socket, URGENT_ANSWER).await
                }
                () = due.missed() => return Ended::OnTheWay(broke("nothing was heard from it")),
                received = receive_any(socket) => {
                    let heard = match received {
                        Ok(message) => message,
                        Err(failure) => return Ended::ThereToo(failure),
                    };
                    self.urge.lasting.store(false, Ordering::Relaxed);
                    let news = match heard {
                        Some(ToPeer::IceServers { ice_servers }) => {
                            self.api.ice_servers.send_replace(ice_servers);
                            None
                        }
                        heard => heard.map(SignalEvent::Message),
                    };
                    let alive = std::mem::take(&mut due).urgent.then_some(SignalEvent::Alive);
                    for event in alive.into_iter().chain(news) {
                        if self.events.send(event).await.is_err() {
                            return Ended::Unwanted;
                        }
                    }
                    Ok(())
                }
            };
            if let Err(failure) = sent {
                return Ended::OnTheWay(failure);
            }
        }
    }
}

/// By when the server must have said something.
#[derive(Default)]
struct Due {
    by: Option<Instant>,
    /// Whether somebody waits for it.
    urgent: bool,
}

impl Due {
    async fn ask(&mut self, socket: &mut Socket, patience: Duration) -> Result<(), Failure> {
        let by = Instant::now() + patience;
        self.by = Some(self.by.map_or(by, |known| known.min(by)));
        send_message(socket, Message::Ping(Default::default())).await
    }

    /// Completes when it has not.
    async fn missed(&self) {
        match self.by {
            Some(by) => sleep_until(by).await,
            None => std::future::pending().await,
        }
    }
}

fn random() -> u64 {
    seal::random::<8>().map(u64::from_le_bytes).unwrap_or(u64::MAX / 2)
}

fn local_address(socket: &Socket) -> Option<IpAddr> {
    socket.get_ref().get_ref().local_addr().ok().map(|address| address.ip())
}

/// A server that refuses a token which it has given out just now is in trouble, and not for ever.
fn may_pass(failure: Failure) -> Failure {
    if failure.code == Code::Unauthorized { Failure::new(Code::Unavailable, failure.message) } else { failure }
}

/// Whether trying the same again is pointless.
fn is_final(code: Code) -> bool {
    matches!(
        code,
        Code::RoomNotFound
            | Code::Forbidden
            | Code::PeerIdTaken
            | Code::Unauthorized
            | Code::InvalidRequest
            | Code::VersionMismatch
            | Code::TooLarge
    )
}

async fn send(socket: &mut Socket, message: &ToServer) -> Result<(), Failure> {
    send_message(socket, Message::text(signal::encode(message))).await
}

async fn send_message(socket: &mut Socket, message: Message) -> Result<(), Failure> {
    match timeout(CONNECT_TIMEOUT, socket.send(message)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(broke(&error.to_string())),
        Err(_) => Err(Failure::new(Code::NoConnection, "the signaling server does not read")),
    }
}

/// The next message.
async fn receive(socket: &mut Socket, silence: Duration) -> Result<ToPeer, Failure> {
    loop {
        let received = timeout(silence, receive_any(socket)).await.map_err(|_| broke("nothing was heard from it"))?;
        if let Some(message) = received? {
            return Ok(message);
        }
    }
}

/// The next sign of life: a message, or a ping or pong.
async fn receive_any(socket: &mut Socket) -> Result<Option<ToPeer>, Failure> {
    match socket.next().await {
        None => Err(broke("it was closed")),
        Some(Err(error)) => Err(broke(&error.to_string())),
        Some(Ok(Message::Text(text))) => signal::decode(text.as_str()).map(Some),
        Some(Ok(Message::Close(frame))) => Err(broke(frame.as_ref().map_or("it was closed", |frame| frame.reason.as_str()))),
        Some(Ok(_)) => Ok(None),
    }
}

fn broke(why: &str) -> Failure {
    Failure::new(Code::NoConnection, format!("the connection to the signaling server broke: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{domain::signal::SignIn, runtime::peer::PeerOptions};

    #[test]
    fn a_wrong_url_is_refused_with_the_right_form() {
        for bad in ["", "localhost:8001", "ftp://x", "http://"] {
            assert!(Api::new(bad).err().unwrap().message.contains("http://HOST:8001"), "{bad}");
        }
        let api = Api::new("https://host/").unwrap();
        assert_eq!((api.websocket_url().as_str(), api.is_loopback()), ("wss://host/", false));
        assert!(Api::new("http://[::1]:8001").unwrap().is_loopback());
    }

    fn turn(username: &str) -> Vec<IceServer> {
        let credential = Some(Secret::new("c".to_owned()));
        vec![IceServer { urls: vec!["turn:t.example".to_owned()], username: Some(username.to_owned()), credential }]
    }

    /// A server that registers one peer, names servers, renews them, and then says that somebody has left.
    async fn renewing_server(listener: tokio::net::TcpListener) -> Result<(), Box<dyn std::error::Error>> {
        let mut socket = tokio_tungstenite::accept_async(listener.accept().await?.0).await?;
        socket.next().await.ok_or("no registration")??;
        let (room_id, peer_id): (RoomId, PeerId) = ("r".parse()?, "p".parse()?);
        let welcome = ToPeer::RegisteredAuth {
            room_id,
            peer_id: peer_id.clone(),
            expires_at: 1,
            peers: Vec::new(),
            ice_servers: turn("600:p"),
            server_version: String::new(),
        };
        for message in [welcome, ToPeer::IceServers { ice_servers: turn("900:p") }, ToPeer::PeerLeft { peer_id }] {
            socket.send(Message::text(signal::encode(&message))).await?;
        }
        while socket.next().await.is_some() {}
        Ok(())
    }

    #[tokio::test]
    async fn each_new_connection_takes_the_newest_turn_credentials() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut api = Api::new(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
        let sign_in = SignIn { id_token: Secret::new("j".to_owned()), username: "u".to_owned(), expires_in: 600 };
        api.tokens.get_mut().remember(sign_in);
        let api = Arc::new(api);
        let server = tokio::spawn(async move { renewing_server(listener).await.unwrap() });
        let options = PeerOptions { server_ice: Some(api.ice_servers()), ..PeerOptions::default() };
        let fixed = PeerOptions { ice_servers: turn("mine"), ..options.clone() };
        assert_eq!(options.ice_servers(), []);

        let dir = tempfile::tempdir().unwrap();
        let identity = Arc::new(Identity::load_or_create(&dir.path().join("identity.json")).unwrap());
        let (room, peer) = ("r".parse().unwrap(), "p".parse().unwrap());
        let registration = Registration { room, token: Secret::new("t".to_owned()), peer, role: Role::Client, metadata: Metadata::new() };
        let stop = CancellationToken::new();
        let (_sender, mut events) = connect(api, registration, identity, stop.clone());
        let registered = events.recv().await.unwrap();
        assert!(matches!(registered, SignalEvent::Registered { ice_servers, .. } if ice_servers == turn("600:p")));
        // The renewal came before this one, and is nobody's event.
        assert!(matches!(events.recv().await.unwrap(), SignalEvent::Message(ToPeer::PeerLeft { .. })));
        assert_eq!(options.ice_servers(), turn("900:p"));
        assert_eq!(fixed.ice_servers(), turn("mine"));
        stop.cancel();
        server.await.unwrap();
    }

    /// When 1,000 peers come back, in milliseconds, that lose a server in the same moment which is away for so long.
    fn returns(away: u64) -> Vec<u64> {
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = || {
            // SplitMix64.
            random = random.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (random ^ (random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            mixed ^ (mixed >> 31)
        };
        let come_back = |_| {
            let (mut backoff, mut now) = (Backoff::new(FIRST_WAIT, LONGEST_WAIT), 0);
            loop {
                now += backoff.next_wait(next()).as_millis() as u64;
                if now >= away {
                    return now;
                }
            }
        };
        (0..1000).map(come_back).collect()
    }

    #[test]
    fn peers_come_back_to_a_server_soon_and_not_all_at_once() {
        for away in [0, 500, 3000, 60_000, 300_000] {
            let returns = returns(away);
            let in_second = |second: u64| returns.iter().filter(|at| (*at - away) / 1000 == second).count();
            let peak = (0..14).map(in_second).max().unwrap();
            assert!(peak <= 200, "{peak} a second after {away} ms");
            assert!(returns.iter().all(|at| at - away <= 13_000), "after {away} ms");
        }
    }

    #[tokio::test]
    async fn an_absent_server_is_named() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        drop(listener);
        let failure = Api::new(&url).unwrap().create_room(&CreateRoom::default()).await.unwrap_err();
        assert!(failure.code == Code::NoConnection && failure.message.contains(&url), "{failure}");
    }
}
