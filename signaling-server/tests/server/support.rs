//! What the tests say: a server, its users, their rooms and peers.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use ed25519_dalek::{Signer, SigningKey};
use futures_util::{SinkExt, StreamExt};
use reqwest::Method;
use serde_json::{Value, json};
use shared::{
    domain::signal::{CreatedRoom, proof_message},
    runtime::shutdown::Shutdown,
};
use signaling_server::{
    api,
    runtime::{
        clock::Clock,
        config::Config,
        server::{Common, Server},
    },
};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::timeout,
};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{self, Message},
};

/// Far more than anything here takes; a test that waits this long has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A server on a port of its own, whose clock the test turns.
pub(crate) struct TestServer {
    pub(crate) api: Api,
    clock: Arc<AtomicU64>,
    pub(crate) shutdown: Shutdown,
    pub(crate) task: JoinHandle<()>,
}

impl std::ops::Deref for TestServer {
    type Target = Api;
    fn deref(&self) -> &Api {
        &self.api
    }
}

impl TestServer {
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    /// With limits that tests do not hit unless they set them.
    pub(crate) async fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        Self::start_one_of(change, async |config| Common::open(config).await.unwrap()).await
    }

    /// One of several that have something in common.
    pub(crate) async fn start_one_of(change: impl FnOnce(&mut Config), common: impl AsyncFnOnce(&Config) -> Common) -> Self {
        let clock = Arc::new(AtomicU64::new(1_800_000_000));
        let shown = clock.clone();
        let mut config = Config { clock: Clock::from_fn(move || shown.load(Ordering::SeqCst)), ..Config::default() };
        config.limits.sign_ins_per_minute = 1000;
        config.limits.registrations_per_minute = 1000;
        change(&mut config);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let shutdown = Shutdown::new();
        let stop = shutdown.clone();
        let common = Box::pin(common(&config)).await;
        let server = Server::with(config, common, stop.token.clone()).await.unwrap();
        let task = tokio::spawn(api::serve(server, vec![listener], stop));
        TestServer { api: Api::at(address), clock, shutdown, task }
    }

    pub(crate) fn pass(&self, seconds: u64) {
        self.clock.fetch_add(seconds, Ordering::SeqCst);
    }
}

/// A server's address, and what can be done there.
pub(crate) struct Api {
    pub(crate) address: String,
    http: reqwest::Client,
}

pub(crate) struct User {
    pub(crate) token: String,
    pub(crate) name: String,
}

impl Api {
    pub(crate) fn at(address: String) -> Self {
        Api { address, http: reqwest::Client::builder().no_proxy().build().unwrap() }
    }

    pub(crate) async fn call(&self, method: &str, path: &str, user: Option<&str>, body: Option<Value>) -> (u16, Value) {
        let method: Method = method.to_uppercase().parse().unwrap();
        let mut request = self.http.request(method, format!("http://{}{path}", self.address));
        if let Some(token) = user {
            request = request.bearer_auth(token);
        }
        if let Some(body) = body {
            request = request.json(&body);
        }
        let response = timeout(PATIENCE, request.send()).await.unwrap().unwrap();
        let status = response.status().as_u16();
        let text = response.text().await.unwrap();
        (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    pub(crate) async fn post(&self, path: &str, user: &User, body: Value) -> (u16, Value) {
        self.call("post", path, Some(&user.token), Some(body)).await
    }

    pub(crate) async fn get(&self, path: &str) -> (u16, Value) {
        self.call("get", path, None, None).await
    }

    pub(crate) async fn sign_in(&self) -> User {
        let (status, answer) = self.call("post", "/anonymous-signin", None, None).await;
        assert_eq!(status, 200, "{answer}");
        User { token: text(&answer["id_token"]), name: text(&answer["username"]) }
    }

    pub(crate) async fn create_room(&self, owner: &User) -> CreatedRoom {
        self.create_room_with(owner, json!({})).await
    }

    pub(crate) async fn create_room_with(&self, owner: &User, body: Value) -> CreatedRoom {
        let (status, answer) = self.post("/create-room", owner, body).await;
        assert_eq!(status, 200, "{answer}");
        serde_json::from_value(answer).unwrap()
    }

    /// A WebSocket that has not registered.
    pub(crate) async fn connect(&self) -> Peer {
        let (socket, _) = timeout(PATIENCE, connect_async(format!("ws://{}/", self.address))).await.unwrap().unwrap();
        Peer { socket }
    }

    /// A registered peer; its role is worker when its id begins with `w`.
    pub(crate) async fn join(&self, room: &CreatedRoom, user: &User, peer: &str) -> Peer {
        let mut socket = self.connect().await;
        socket.send(register(room, user, peer)).await;
        socket.expect("registered_auth").await;
        socket
    }
}

pub(crate) fn register(room: &CreatedRoom, user: &User, peer: &str) -> Value {
    json!({
        "type": "register", "peer_id": peer, "room_id": room.room_id, "token": room.token, "id_token": user.token,
        "role": if peer.starts_with('w') { "worker" } else { "client" }, "metadata": {},
    })
}

pub(crate) fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("not a text: {value}")).to_owned()
}

/// An Ed25519 key that a peer proves.
pub(crate) struct PeerKey(SigningKey);

impl PeerKey {
    pub(crate) fn new(seed: u8) -> Self {
        PeerKey(SigningKey::from_bytes(&[seed; 32]))
    }

    pub(crate) fn public(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.0.verifying_key().as_bytes())
    }

    pub(crate) fn prove(&self, room: &CreatedRoom, peer: &str, nonce: &str) -> Value {
        let message = proof_message(&room.room_id, &peer.parse().unwrap(), nonce);
        json!({"type": "prove", "signature": URL_SAFE_NO_PAD.encode(self.0.sign(&message).to_bytes())})
    }
}

pub(crate) struct Peer {
    pub(crate) socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
}

impl Peer {
    pub(crate) async fn send(&mut self, message: Value) {
        self.send_raw(Message::text(message.to_string())).await;
    }

    pub(crate) async fn send_raw(&mut self, message: Message) {
        timeout(PATIENCE, self.socket.send(message)).await.unwrap().unwrap();
    }

    /// The next message of the protocol; panics when the socket ends.
    pub(crate) async fn receive(&mut self) -> Value {
        loop {
            match self.next().await {
                Some(Ok(Message::Text(text))) => return serde_json::from_str(&text).unwrap(),
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                other => panic!("expected a message, got {other:?}"),
            }
        }
    }

    async fn next(&mut self) -> Option<Result<Message, tungstenite::Error>> {
        timeout(PATIENCE, self.socket.next()).await.expect("the server should have said something")
    }

    pub(crate) async fn expect(&mut self, kind: &str) -> Value {
        let message = self.receive().await;
        assert_eq!(message["type"], kind, "{message}");
        message
    }

    pub(crate) async fn expect_error(&mut self, code: &str) -> Value {
        let message = self.expect("error").await;
        assert_eq!(message["code"], code, "{message}");
        message
    }

    /// Sends, and returns the answer.
    pub(crate) async fn ask(&mut self, message: Value) -> Value {
        self.send(message).await;
        self.receive().await
    }

    /// Registers with a key and its proof; returns what the server says at last.
    pub(crate) async fn register_with_key(&mut self, room: &CreatedRoom, user: &User, peer: &str, key: &PeerKey) -> Value {
        let mut message = register(room, user, peer);
        message["public_key"] = json!(key.public());
        let challenge = self.ask(message).await;
        assert_eq!(challenge["type"], "challenge", "{challenge}");
        self.ask(key.prove(room, peer, &text(&challenge["nonce"]))).await
    }

    /// Closes, and waits until the server has answered.
    pub(crate) async fn leave(mut self) {
        timeout(PATIENCE, self.socket.close(None)).await.unwrap().unwrap();
        while let Some(Ok(_)) = self.next().await {}
    }

    /// Reads on until the server closes; the close code.
    pub(crate) async fn closed(&mut self) -> u16 {
        loop {
            match self.next().await {
                Some(Ok(Message::Close(Some(frame)))) => return frame.code.into(),
                Some(Ok(_)) => {}
                other => panic!("expected a close frame, got {other:?}"),
            }
        }
    }
}
