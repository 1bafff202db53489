//! A signaling server that is not to be trusted: the real one behind a proxy that sees and changes what it relays.

use std::sync::{Arc, Mutex};

use futures_util::{SinkExt, StreamExt};
use serde_json::Value;
use tokio::{
    net::{TcpListener, TcpStream},
    runtime::Runtime,
};
use tokio_tungstenite::{accept_async, connect_async, tungstenite::Message};

/// Changes a message on its way, or only looks at it.
pub(crate) type Meddle = Box<dyn FnMut(&mut Value) + Send>;

/// The proxy; it ends with the test.
pub(crate) struct Proxy {
    /// Where it listens.
    pub(crate) url: String,
    seen: Arc<Mutex<Vec<Value>>>,
    _runtime: Runtime,
}

impl Proxy {
    /// In front of this server.
    pub(crate) fn start(server: &str, meddle: Meddle) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let route =
            Route { server: server.strip_prefix("http://").unwrap().to_owned(), meddle: Arc::new(Mutex::new(meddle)), seen: seen.clone() };
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(route.clone().serve(stream));
            }
        });
        Proxy { url, seen, _runtime: runtime }
    }

    /// The messages of this type so far, as they left the proxy.
    pub(crate) fn seen(&self, kind: &str) -> Vec<Value> {
        self.seen.lock().unwrap().iter().filter(|message| message["type"] == kind).cloned().collect()
    }
}

#[derive(Clone)]
struct Route {
    server: String,
    meddle: Arc<Mutex<Meddle>>,
    seen: Arc<Mutex<Vec<Value>>>,
}

impl Route {
    async fn serve(self, mut stream: TcpStream) {
        let mut head = [0; 8192];
        let len = loop {
            match stream.peek(&mut head).await {
                Ok(len) if len == 0 || head[..len].windows(4).any(|end| end == b"\r\n\r\n") => break len,
                Ok(_) => tokio::task::yield_now().await,
                Err(_) => return,
            }
        };
        if String::from_utf8_lossy(&head[..len]).to_lowercase().contains("upgrade: websocket") {
            return self.relay(stream).await;
        }
        if let Ok(mut upstream) = TcpStream::connect(&self.server).await {
            let _ = tokio::io::copy_bidirectional(&mut stream, &mut upstream).await;
        }
    }

    async fn relay(self, stream: TcpStream) {
        let mut peer = accept_async(stream).await.unwrap();
        let (mut server, _) = connect_async(format!("ws://{}/", self.server)).await.unwrap();
        loop {
            let sent = tokio::select! {
                Some(Ok(message)) = peer.next() => server.send(self.changed(message)).await,
                Some(Ok(message)) = server.next() => peer.send(self.changed(message)).await,
                else => return,
            };
            if sent.is_err() {
                return;
            }
        }
    }

    fn changed(&self, message: Message) -> Message {
        let Message::Text(text) = &message else { return message };
        let mut value: Value = serde_json::from_str(text).unwrap();
        (self.meddle.lock().unwrap())(&mut value);
        self.seen.lock().unwrap().push(value.clone());
        Message::text(value.to_string())
    }
}
