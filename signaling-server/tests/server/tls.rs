//! TLS on the server's own ports: who gets in, who does not, and certificates that change.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{SinkExt, StreamExt};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use serde_json::{Value, json};
use signaling_server::runtime::tls::TlsFiles;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        ClientConfig, RootCertStore, SupportedProtocolVersion,
        crypto::aws_lc_rs,
        pki_types::ServerName,
        version::{TLS12, TLS13},
    },
};
use tokio_tungstenite::{client_async, tungstenite::Message};

use super::support::{PATIENCE, TestServer};

/// A CA of the test's own, and the files of a certificate of it.
pub(crate) struct Authority {
    ca: CertifiedIssuer<'static, KeyPair>,
    dir: TempDir,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut ca = CertificateParams::new(Vec::new()).unwrap();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate().unwrap()).unwrap();
        let authority = Authority { ca, dir: tempfile::tempdir().unwrap() };
        authority.issue();
        authority
    }

    pub(crate) fn files(&self) -> TlsFiles {
        TlsFiles { cert: self.dir.path().join("cert.pem"), key: self.dir.path().join("key.pem") }
    }

    /// A new certificate in place of the one before, as certbot and Kubernetes do it; gives it as DER.
    pub(crate) fn issue(&self) -> Vec<u8> {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(["127.0.0.1".to_owned(), "localhost".to_owned()]).unwrap();
        let cert = params.signed_by(&key, &self.ca).unwrap();
        let files = self.files();
        replace(&files.key, &key.serialize_pem());
        replace(&files.cert, &cert.pem());
        cert.der().to_vec()
    }

    fn config(&self, version: &'static SupportedProtocolVersion) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.ca.as_ref().der().clone()).unwrap();
        ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth()
    }

    pub(crate) async fn connect(&self, address: &str) -> TlsStream<TcpStream> {
        self.connect_with(address, self.config(&TLS13)).await.unwrap()
    }

    async fn connect_with(&self, address: &str, config: ClientConfig) -> std::io::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(address).await.unwrap();
        let name = ServerName::try_from("127.0.0.1").unwrap();
        timeout(PATIENCE, TlsConnector::from(Arc::new(config)).connect(name, stream)).await.unwrap()
    }

    /// Until new connections get this certificate.
    pub(crate) async fn await_served(&self, address: &str, wanted: &[u8]) {
        let began = Instant::now();
        while certificate(&self.connect(address).await) != wanted {
            assert!(began.elapsed() < PATIENCE, "the new certificate is not served");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    std::fs::write(&new, text).unwrap();
    std::fs::rename(&new, path).unwrap();
}

fn certificate(stream: &TlsStream<TcpStream>) -> Vec<u8> {
    stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

async fn start(authority: &Authority) -> TestServer {
    TestServer::start_with(|config| {
        config.tls = Some(authority.files());
        config.timing.certificates = Duration::from_millis(20);
    })
    .await
}

/// One request over a stream of its own; the answer as it came.
async fn request(mut stream: TlsStream<TcpStream>, line: &str, more: &str) -> String {
    stream.write_all(format!("{line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{more}\r\n").as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap().unwrap();
    String::from_utf8(answer).unwrap()
}

fn body(answer: &str) -> Value {
    serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
}

#[tokio::test]
async fn rest_and_websocket_are_served_over_tls() {
    let authority = Authority::new();
    let server = start(&authority).await;
    for version in [&TLS12, &TLS13] {
        let mut config = authority.config(version);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let stream = authority.connect_with(&server.address, config).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
        assert_eq!(stream.get_ref().1.protocol_version(), Some(version.version));
        assert!(request(stream, "GET /health", "").await.starts_with("HTTP/1.1 200"), "{version:?}");
    }
    let sign_in = body(&request(authority.connect(&server.address).await, "POST /anonymous-signin", "Content-Length: 0\r\n").await);
    let bearer = format!("Authorization: Bearer {}\r\nContent-Length: 0\r\n", sign_in["id_token"].as_str().unwrap());
    let room = body(&request(authority.connect(&server.address).await, "POST /create-room", &bearer).await);

    let (mut socket, _) = client_async(format!("wss://{}/", server.address), authority.connect(&server.address).await).await.unwrap();
    let message = json!({
        "type": "register", "peer_id": "w", "room_id": room["room_id"], "token": room["token"], "id_token": sign_in["id_token"],
        "role": "worker", "metadata": {},
    });
    socket.send(Message::text(message.to_string())).await.unwrap();
    let answer = timeout(PATIENCE, socket.next()).await.unwrap().unwrap().unwrap();
    assert!(answer.to_text().unwrap().contains("registered_auth"), "{answer}");
}

#[tokio::test]
async fn a_new_certificate_is_served_without_a_restart() {
    let authority = Authority::new();
    let server = start(&authority).await;
    let mut before = authority.connect(&server.address).await;
    let second = authority.issue();
    authority.await_served(&server.address, &second).await;
    assert_ne!(certificate(&before), second);
    // A connection of before is as good as it was.
    before.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut answer = [0; 12];
    before.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
}

#[tokio::test]
async fn a_handshake_that_does_not_come_to_an_end_is_cut_and_holds_nobody_up() {
    let authority = Authority::new();
    let server = TestServer::start_with(|config| {
        config.tls = Some(authority.files());
        config.timing.head = Duration::from_millis(200);
        config.limits.connections = 2;
    })
    .await;
    let mut silent = TcpStream::connect(&server.address).await.unwrap();
    let mut slow = TcpStream::connect(&server.address).await.unwrap();
    // The beginning of a record that never ends.
    slow.write_all(&[22, 3, 1, 2, 0, 1]).await.unwrap();
    // All connections are taken: who comes now waits until these have been cut.
    assert!(request(authority.connect(&server.address).await, "GET /health", "").await.starts_with("HTTP/1.1 200"));
    for stream in [&mut silent, &mut slow] {
        let mut rest = Vec::new();
        // A reset says the same.
        let _ = timeout(PATIENCE, stream.read_to_end(&mut rest)).await.unwrap();
    }
}

#[tokio::test]
async fn whoever_speaks_plain_http_to_it_is_told_so() {
    let authority = Authority::new();
    let server = start(&authority).await;
    let (status, answer) = server.get("/health").await;
    assert_eq!(status, 400);
    assert!(answer["error"]["message"].as_str().unwrap().contains("use https://"), "{answer}");
    let strange = authority.connect_with(&server.address, {
        let mut config = authority.config(&TLS13);
        config.alpn_protocols = vec![b"h2".to_vec()];
        config
    });
    assert!(strange.await.unwrap_err().to_string().contains("NoApplicationProtocol"));
}

#[tokio::test]
async fn peers_over_tls_see_the_end_like_others() {
    let authority = Authority::new();
    let server = start(&authority).await;
    let (mut socket, _) = client_async(format!("wss://{}/", server.address), authority.connect(&server.address).await).await.unwrap();
    server.shutdown.token.cancel();
    let closed = timeout(PATIENCE, socket.next()).await.unwrap().unwrap().unwrap();
    assert!(matches!(closed, Message::Close(Some(frame)) if u16::from(frame.code) == 1012));
}
