//! The peers' side of the signaling server: its REST calls, and one WebSocket that comes back after every break.
//!
//! * [`Api`]: anonymous sign-in, room creation
//! * [`Api::health`], [`Api::greet`]: what doctor asks
//! * [`connect`]: a task that registers, relays both ways, and reconnects with full jitter; it gives up only when the server
//!   says that trying again is pointless (no such room, id taken, …)

mod health;

use std::{sync::Arc, time::Duration};

use futures_util::{SinkExt, StreamExt};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    net::TcpStream,
    sync::mpsc,
    time::{Instant, timeout},
};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream,
    tungstenite::{self, Message, protocol::WebSocketConfig},
};
use tokio_util::sync::CancellationToken;

use super::{identity::Identity, seal};
use crate::domain::{
    backoff::Backoff,
    error::{Code, Envelope, Failure},
    id::{PeerId, RoomId, Secret},
    signal::{self, CreateRoom, CreatedRoom, IceServer, MAX_MESSAGE, Metadata, PeerInfo, Role, SignIn, ToPeer, ToServer},
};

pub use self::health::Health;

const HTTP_TIMEOUT: Duration = Duration::from_secs(15);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// The server pings every 20 s; a socket that is silent for three of them is dead.
const SILENCE: Duration = Duration::from_secs(60);
/// A token is replaced when less than this is left of it.
const TOKEN_RESERVE: Duration = Duration::from_secs(60);
const QUEUE: usize = 64;

/// The server's REST side.
pub struct Api {
    http: reqwest::Client,
    server: String,
}

impl Api {
    /// For the server at this base URL.
    ///
    /// # Errors
    /// [`Code::InvalidRequest`] when it is not an `http(s)://` URL.
    pub fn new(server: &str) -> Result<Self, Failure> {
        let server = server.trim_end_matches('/').to_owned();
        let parsed = reqwest::Url::parse(&server).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
        if parsed.is_none() {
            return Err(Failure::new(
                Code::InvalidRequest,
                format!("'{server}' is not the URL of a server: it must look like http://HOST:8001 or https://HOST"),
            ));
        }
        let http = reqwest::Client::builder().timeout(HTTP_TIMEOUT).connect_timeout(CONNECT_TIMEOUT).build();
        let http = http.map_err(|error| Failure::new(Code::Internal, format!("no HTTP client can be made: {error}")))?;
        Ok(Api { http, server })
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

    /// Becomes an anonymous user.
    ///
    /// # Errors
    /// What the server says, or [`Code::NoConnection`].
    pub async fn sign_in(&self) -> Result<SignIn, Failure> {
        self.post("/anonymous-signin", None, &serde_json::json!({})).await
    }

    /// Opens a room that this user owns.
    ///
    /// # Errors
    /// What the server says, or [`Code::NoConnection`].
    pub async fn create_room(&self, id_token: &Secret<String>, request: &CreateRoom) -> Result<CreatedRoom, Failure> {
        self.post("/create-room", Some(id_token), request).await
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
        Failure::new(
            Code::NoConnection,
            format!(
                "the signaling server {} cannot be reached: {cause}. Check the address, and that webrtc-server runs there",
                self.server
            ),
        )
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
    /// The server refuses for good; the task has ended.
    Refused(Failure),
}

/// Sends to the server; cheap to clone.
#[derive(Clone)]
pub struct SignalSender(mpsc::Sender<ToServer>);

impl SignalSender {
    #[cfg(test)]
    pub(crate) fn for_tests(queue: mpsc::Sender<ToServer>) -> Self {
        SignalSender(queue)
    }

    /// Hands a message over, to be sent as soon as there is a connection.
    ///
    /// # Errors
    /// [`Code::Unavailable`] when there is none for 10 s and the queue is full.
    pub async fn send(&self, message: ToServer) -> Result<(), Failure> {
        let sent = self.0.send_timeout(message, Duration::from_secs(10)).await;
        sent.map_err(|_| Failure::new(Code::Unavailable, "the signaling server cannot be reached at present"))
    }
}

/// Starts the task that keeps a peer registered until `stop`. `id_token` is used first; later ones are fetched as needed.
pub fn connect(
    api: Arc<Api>,
    registration: Registration,
    identity: Arc<Identity>,
    id_token: Option<SignIn>,
    stop: CancellationToken,
) -> (SignalSender, mpsc::Receiver<SignalEvent>) {
    let (message_tx, outgoing) = mpsc::channel(QUEUE);
    let (events, event_rx) = mpsc::channel(QUEUE);
    let token = id_token.map(CachedToken::new);
    let task = Task { api, registration, identity, token, outgoing, events };
    tokio::spawn(async move {
        stop.run_until_cancelled(Box::pin(task.run())).await;
    });
    (SignalSender(message_tx), event_rx)
}

struct CachedToken {
    token: Secret<String>,
    until: Instant,
}

impl CachedToken {
    fn new(sign_in: SignIn) -> Self {
        let life = Duration::from_secs(sign_in.expires_in).saturating_sub(TOKEN_RESERVE);
        CachedToken { token: sign_in.id_token, until: Instant::now() + life }
    }
}

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

struct Task {
    api: Arc<Api>,
    registration: Registration,
    identity: Arc<Identity>,
    token: Option<CachedToken>,
    outgoing: mpsc::Receiver<ToServer>,
    events: mpsc::Sender<SignalEvent>,
}

impl Task {
    async fn run(mut self) {
        let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));
        loop {
            let failure = match self.session(&mut backoff).await {
                Ok(()) => return,
                Err(failure) => failure,
            };
            if is_final(failure.code) {
                let _ = self.events.send(SignalEvent::Refused(failure)).await;
                return;
            }
            let random = seal::random::<8>().map(u64::from_le_bytes).unwrap_or(u64::MAX / 2);
            let retry_in = backoff.next_wait(random);
            tracing::info!(%failure, ?retry_in, "the signaling server is away");
            if self.events.send(SignalEvent::Lost { failure, retry_in }).await.is_err() {
                return;
            }
            tokio::time::sleep(retry_in).await;
        }
    }

    /// One socket, from connecting to its loss. `Ok` when the owner is gone.
    async fn session(&mut self, backoff: &mut Backoff) -> Result<(), Failure> {
        let id_token = self.id_token().await?;
        let mut socket = self.open().await?;
        let registered = match self.register(&mut socket, id_token).await {
            Err(failure) if failure.code == Code::Unauthorized && self.token.take().is_some_and(|token| token.until > Instant::now()) => {
                // The token was refused before its time: once more with a new one.
                return Err(Failure::new(Code::Unavailable, failure.message));
            }
            other => other?,
        };
        backoff.reset();
        if self.events.send(registered).await.is_err() {
            return Ok(());
        }
        self.relay(&mut socket).await
    }

    async fn id_token(&mut self) -> Result<Secret<String>, Failure> {
        if let Some(token) = self.token.as_ref().filter(|token| token.until > Instant::now()) {
            return Ok(token.token.clone());
        }
        let token = CachedToken::new(self.api.sign_in().await?);
        let text = token.token.clone();
        self.token = Some(token);
        Ok(text)
    }

    async fn open(&self) -> Result<Socket, Failure> {
        let config = WebSocketConfig::default()
            .max_message_size(Some(MAX_MESSAGE))
            .max_frame_size(Some(MAX_MESSAGE))
            .read_buffer_size(4096)
            .max_write_buffer_size(4 * MAX_MESSAGE);
        let connecting = tokio_tungstenite::connect_async_with_config(self.api.websocket_url(), Some(config), true);
        let lost =
            |why: String| Failure::new(Code::NoConnection, format!("the signaling server {} cannot be reached: {why}", self.api.server()));
        match timeout(CONNECT_TIMEOUT, connecting).await {
            Ok(Ok((socket, _))) => Ok(socket),
            Ok(Err(tungstenite::Error::Http(response))) => Err(lost(format!("it answered HTTP {}", response.status().as_u16()))),
            Ok(Err(error)) => Err(lost(root_cause(&error))),
            Err(_) => Err(lost("no answer in time".to_owned())),
        }
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
                    return Ok(SignalEvent::Registered { expires_at, peers, ice_servers });
                }
                ToPeer::Error { code, message, .. } => return Err(Failure::new(code, message)),
                _ => {}
            }
        }
    }

    async fn relay(&mut self, socket: &mut Socket) -> Result<(), Failure> {
        loop {
            tokio::select! {
                message = self.outgoing.recv() => {
                    let Some(message) = message else { return Ok(()) };
                    if let ToServer::UpdateMetadata { metadata } = &message {
                        self.registration.metadata.clone_from(metadata);
                    }
                    send(socket, &message).await?;
                }
                message = receive(socket, SILENCE) => {
                    if self.events.send(SignalEvent::Message(message?)).await.is_err() {
                        return Ok(());
                    }
                }
            }
        }
    }
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
    let sending = socket.send(Message::text(signal::encode(message)));
    match timeout(CONNECT_TIMEOUT, sending).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(Failure::new(Code::NoConnection, format!("the connection to the signaling server broke: {error}"))),
        Err(_) => Err(Failure::new(Code::NoConnection, "the signaling server does not read")),
    }
}

/// The next message; pings and pongs count as signs of life only.
async fn receive(socket: &mut Socket, silence: Duration) -> Result<ToPeer, Failure> {
    let lost = |why: &str| Failure::new(Code::NoConnection, format!("the connection to the signaling server broke: {why}"));
    loop {
        match timeout(silence, socket.next()).await {
            Err(_) => return Err(lost("nothing was heard from it")),
            Ok(None) => return Err(lost("it was closed")),
            Ok(Some(Err(error))) => return Err(lost(&error.to_string())),
            Ok(Some(Ok(Message::Text(text)))) => return signal::decode(text.as_str()),
            Ok(Some(Ok(Message::Close(frame)))) => return Err(lost(frame.as_ref().map_or("it was closed", |frame| frame.reason.as_str()))),
            Ok(Some(Ok(_))) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_url_is_refused_with_the_right_form() {
        for bad in ["", "localhost:8001", "ftp://x", "http://"] {
            assert!(Api::new(bad).err().unwrap().message.contains("http://HOST:8001"), "{bad}");
        }
        let api = Api::new("https://host/").unwrap();
        assert_eq!((api.websocket_url().as_str(), api.is_loopback()), ("wss://host/", false));
        assert!(Api::new("http://[::1]:8001").unwrap().is_loopback());
    }

    #[tokio::test]
    async fn an_absent_server_is_named() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        drop(listener);
        let failure = Api::new(&url).unwrap().sign_in().await.unwrap_err();
        assert!(failure.code == Code::NoConnection && failure.message.contains(&url), "{failure}");
    }
}
