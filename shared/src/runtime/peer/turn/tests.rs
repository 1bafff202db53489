//! Against a real coturn (`turnserver`; Debian: coturn), which each test starts on loopback.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use proptest::prelude::*;
use rcgen::{BasicConstraints, Certificate, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use webrtc::runtime::{Runtime, TokioRuntime};

use super::*;
use crate::{
    domain::{error::Code, id::Secret, signal::IceServer},
    runtime::peer::{Channel, ChannelSpec, PeerConnection, PeerEvent, PeerOptions},
};

/// A TURN server that is ended with its test.
struct Coturn {
    process: Child,
    dir: TempDir,
    port: u16,
    tls: u16,
}

impl Drop for Coturn {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Coturn {
    async fn start(udp: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        certificates(dir.path());
        let [port, tls] = [free_port(), free_port()];
        let mut command = Command::new("turnserver");
        command.current_dir(dir.path()).stdout(Stdio::null()).stderr(Stdio::null());
        command.args(["-n", "--listening-ip=127.0.0.1", "--relay-ip=127.0.0.1", "--allow-loopback-peers", "--no-cli", "--no-dtls"]);
        command.args(["--lt-cred-mech", "--user=u:p", "--realm=test", "--cert=cert.pem", "--pkey=key.pem", "--log-file=stdout"]);
        command.args(["--pidfile=pid", "--userdb=db", &format!("--listening-port={port}"), &format!("--tls-listening-port={tls}")]);
        command.args((!udp).then_some("--no-udp"));
        let process = command.spawn().expect("turnserver can be started: install the package coturn");
        let coturn = Coturn { process, dir, port, tls };
        timeout(Duration::from_secs(20), async {
            for port in [coturn.port, coturn.tls] {
                // It does not say when it listens.
                while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
                    sleep(Duration::from_millis(20)).await;
                }
            }
        })
        .await
        .expect("coturn listens");
        coturn
    }

    fn ca_file(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    fn options(&self, urls: &[String]) -> PeerOptions {
        PeerOptions { trust: Trust::with_file(&self.ca_file()).unwrap(), ..relay_only(urls) }
    }
}

/// A CA, and a certificate of it for `localhost` and 127.0.0.1.
fn certificates(dir: &Path) {
    let mut ca = CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate().unwrap()).unwrap();
    let authority: &Certificate = ca.as_ref();
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
    let cert = params.signed_by(&key, &ca).unwrap();
    for (name, text) in [("ca.pem", authority.pem()), ("cert.pem", cert.pem()), ("key.pem", key.serialize_pem())] {
        std::fs::write(dir.join(name), text).unwrap();
    }
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn relay_only(urls: &[String]) -> PeerOptions {
    let server = IceServer { urls: urls.into(), username: Some("u".into()), credential: Some(Secret::new("p".into())) };
    PeerOptions { ice_servers: vec![server], bind: vec!["127.0.0.1:0".parse().unwrap()], relay_only: true, ..PeerOptions::default() }
}

struct Pair {
    ends: [(PeerConnection, Channel); 2],
    took: Duration,
}

impl Pair {
    async fn connect(options: &PeerOptions) -> Self {
        const CHANNEL: ChannelSpec = ChannelSpec { id: 0, label: "data", capacity: 64 };
        let begun = Instant::now();
        let (a, mut a_events, mut a_channels) = PeerConnection::new(options, &[CHANNEL]).await.unwrap();
        let (b, mut b_events, mut b_channels) = PeerConnection::new(options, &[CHANNEL]).await.unwrap();
        a.accept_answer(b.answer(a.offer().await.unwrap()).await.unwrap()).await.unwrap();
        let senders = [&a_channels[0], &b_channels[0]].map(|channel| channel.sender().clone());
        let exchange = async {
            // Both: what reaches a side over a relay before its channel is open can be lost in the crate.
            let opened = async { tokio::try_join!(senders[0].opened(), senders[1].opened()) };
            tokio::pin!(opened);
            loop {
                tokio::select! {
                    result = &mut opened => {
                        result.unwrap();
                        return;
                    }
                    Some(event) = a_events.recv() => if let PeerEvent::Candidate(candidate) = event { b.add_candidate(candidate).await },
                    Some(event) = b_events.recv() => if let PeerEvent::Candidate(candidate) = event { a.add_candidate(candidate).await },
                }
            }
        };
        timeout(Duration::from_secs(20), exchange).await.expect("the two connect");
        Pair { ends: [(a, a_channels.remove(0)), (b, b_channels.remove(0))], took: begun.elapsed() }
    }

    /// Sends something one way, little at a time: coturn drops what it has for a client over TCP beyond 32 KiB.
    async fn carries_data(&mut self) {
        const MESSAGE: usize = 16_000;
        const MESSAGES: u8 = 12;
        let message = |number| {
            let mut message = BytesMut::new();
            message.resize(MESSAGE, number);
            message
        };
        let [(_, a), (_, b)] = &mut self.ends;
        let sender = a.sender().clone();
        let sending = async {
            for number in 0..MESSAGES {
                sender.send(message(number)).await.unwrap();
                sender.flush().await.unwrap();
            }
        };
        let receiving = async {
            for number in 0..MESSAGES {
                assert_eq!(b.recv().await.unwrap(), message(number));
            }
        };
        timeout(Duration::from_secs(30), async { tokio::join!(sending, receiving) }).await.expect("data flows");
    }

    /// The shortest of some round trips of a short message.
    async fn round_trip(&mut self) -> Duration {
        let [(_, a), (_, b)] = &mut self.ends;
        let mut shortest = Duration::MAX;
        for _ in 0..10 {
            let begun = Instant::now();
            a.sender().send_text("ping").await.unwrap();
            b.recv().await.unwrap();
            b.sender().send_text("pong").await.unwrap();
            a.recv().await.unwrap();
            shortest = shortest.min(begun.elapsed());
        }
        shortest
    }

    async fn routes(&self) -> [String; 2] {
        let route = |end: usize| async move { self.ends[end].0.route().await.unwrap().local };
        [route(0).await, route(1).await]
    }

    async fn close(self) {
        for (connection, _) in &self.ends {
            connection.close().await;
        }
    }
}

#[tokio::test]
async fn a_relay_is_reached_over_udp() {
    let coturn = Coturn::start(true).await;
    let mut pair = Pair::connect(&coturn.options(&[format!("turn:127.0.0.1:{}", coturn.port)])).await;
    pair.carries_data().await;
    assert!(pair.routes().await.iter().all(|route| route.starts_with("relay 127.0.0.1:")), "{:?}", pair.routes().await);
    pair.close().await;
}

/// It was answered when the next timer fired.
#[tokio::test]
async fn regression_what_comes_over_a_relay_is_answered_at_once() {
    let coturn = Coturn::start(true).await;
    let urls = [format!("turn:127.0.0.1:{}", coturn.port), format!("turn:127.0.0.1:{}?transport=tcp", coturn.port)];
    for url in urls {
        let mut pair = Pair::connect(&coturn.options(&[url])).await;
        let round_trip = pair.round_trip().await;
        assert!(round_trip < Duration::from_millis(50), "{round_trip:?}");
        pair.close().await;
    }
}

#[tokio::test]
async fn a_relay_is_reached_over_tcp_where_udp_is_blocked() {
    let coturn = Coturn::start(false).await;
    let mut pair = Pair::connect(&coturn.options(&[format!("turn:127.0.0.1:{}?transport=tcp", coturn.port)])).await;
    pair.carries_data().await;
    assert!(pair.routes().await.iter().all(|route| route.starts_with("relay/tcp 127.0.0.1:")), "{:?}", pair.routes().await);
    pair.close().await;
}

#[tokio::test]
async fn a_relay_is_reached_over_tls_by_its_name() {
    let coturn = Coturn::start(false).await;
    let mut pair = Pair::connect(&coturn.options(&[format!("turns:localhost:{}", coturn.tls)])).await;
    pair.carries_data().await;
    assert!(pair.routes().await.iter().all(|route| route.starts_with("relay/tls 127.0.0.1:")), "{:?}", pair.routes().await);
    pair.close().await;
}

#[tokio::test]
async fn slower_ways_come_in_when_the_faster_ones_do_not_answer() {
    let coturn = Coturn::start(false).await;
    // Nobody answers over UDP, and the server for TCP takes connections and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let urls = [
        format!("turns:127.0.0.1:{}", coturn.tls),
        format!("turn:127.0.0.1:{}?transport=tcp", silent.local_addr().unwrap().port()),
        format!("turn:127.0.0.1:{}", coturn.port),
    ];
    let options = coturn.options(&urls);
    let mut first = Pair::connect(&options).await;
    first.carries_data().await;
    assert!(first.routes().await[0].starts_with("relay/tls "));
    assert!(first.took < Duration::from_secs(8), "{:?}", first.took);
    // What the first connection found out, the second need not.
    let second = Pair::connect(&options).await;
    assert!(second.took < first.took, "{:?}, {:?}", first.took, second.took);
    first.close().await;
    second.close().await;
}

#[tokio::test]
async fn slower_ways_are_left_alone_when_the_faster_one_answers() {
    let coturn = Coturn::start(true).await;
    let unused = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let urls = [format!("turn:127.0.0.1:{}?transport=tcp", unused.local_addr().unwrap().port()), format!("turn:127.0.0.1:{}", coturn.port)];
    let pair = Pair::connect(&coturn.options(&urls)).await;
    assert!(timeout(2 * PATIENCE, unused.accept()).await.is_err(), "nobody calls");
    pair.close().await;
}

#[tokio::test]
async fn a_server_with_a_certificate_of_an_unknown_authority_is_refused() {
    let coturn = Coturn::start(false).await;
    let url: IceUrl = format!("turns:localhost:{}", coturn.tls).parse().unwrap();
    let failure = connect(&url, &Trust::default()).await.map(drop).unwrap_err();
    assert_eq!(failure.code, Code::NotAuthentic, "{failure}");
    assert!(failure.message.contains("not trusted") && failure.message.contains("--ca-file"), "{failure}");

    let trust = Trust::with_file(&coturn.ca_file()).unwrap();
    connect(&url, &trust).await.map(drop).unwrap();
    let nobody: IceUrl = format!("turn:127.0.0.1:{}?transport=tcp", free_port()).parse().unwrap();
    let failure = connect(&nobody, &trust).await.map(drop).unwrap_err();
    assert!(failure.code == Code::NoConnection && failure.message.contains("cannot be reached"), "{failure}");
}

#[test]
fn a_file_without_certificates_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ca.pem");
    std::fs::write(&path, "no certificate").unwrap();
    for path in [path, dir.path().join("missing.pem")] {
        let failure = Trust::with_file(&path).unwrap_err();
        assert!(failure.code == Code::BadFile && failure.message.contains(path.to_str().unwrap()), "{failure}");
    }
}

/// Carries connections to a port until it is cut, and again afterwards.
async fn proxy(to: u16, cut: Arc<Notify>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let cut = cut.clone();
            tokio::spawn(async move {
                let mut far = TcpStream::connect(("127.0.0.1", to)).await.unwrap();
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                    () = cut.notified() => {}
                }
            });
        }
    });
    port
}

#[tokio::test]
async fn after_a_stream_was_cut_new_connections_find_the_relay_again() {
    let coturn = Coturn::start(false).await;
    let cut = Arc::new(Notify::new());
    let port = proxy(coturn.port, cut.clone()).await;
    let options = coturn.options(&[format!("turn:127.0.0.1:{port}?transport=tcp")]);
    let mut first = Pair::connect(&options).await;
    first.carries_data().await;
    cut.notify_waiters();
    let [(_, a), (_, b)] = &mut first.ends;
    a.sender().send_text("lost").await.unwrap();
    assert!(timeout(Duration::from_millis(500), b.recv()).await.is_err(), "the stream is cut");
    let mut second = Pair::connect(&options).await;
    second.carries_data().await;
    first.close().await;
    second.close().await;
}

const REQUEST: [u8; 20] = [0, 3, 0, 0, 0x21, 0x12, 0xa4, 0x42, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];
const DATA: [u8; 7] = [0x40, 0, 0, 3, 1, 2, 3];

/// A socket whose only server is this listener.
fn socket_for(listener: &TcpListener) -> (TurnSocket, SocketAddr) {
    let url: IceUrl = format!("turn:{}?transport=tcp", listener.local_addr().unwrap()).parse().unwrap();
    let streams = Arc::new(Streams::new(std::slice::from_ref(&url), &Trust::default(), &Patience::default()));
    let udp = TokioRuntime.wrap_udp_socket(std::net::UdpSocket::bind("127.0.0.1:0").unwrap()).unwrap();
    (TurnSocket::new(udp, streams).unwrap(), (virtual_ip(0, true), url.port).into())
}

#[tokio::test]
async fn a_stream_begins_with_an_allocation_and_again_after_it_was_cut() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (socket, server) = socket_for(&listener);
    socket.send_to(&DATA, server).await.unwrap();
    for _ in 0..2 {
        let accepted = async {
            loop {
                socket.send_to(&REQUEST, server).await.unwrap();
                // As the crate does, until there is an answer; the socket has to notice the cut first.
                if let Ok(accepted) = timeout(Duration::from_millis(20), listener.accept()).await {
                    return accepted.unwrap().0;
                }
            }
        };
        let mut stream = timeout(Duration::from_secs(5), accepted).await.expect("a stream comes");
        let mut got = [0; 20];
        stream.read_exact(&mut got).await.unwrap();
        assert_eq!(got, REQUEST);
    }
}

#[tokio::test]
async fn new_sockets_find_out_anew_what_answers() {
    let urls = ["turn:127.0.0.1:1", "turn:127.0.0.1:1?transport=tcp"].map(|url| url.parse::<IceUrl>().unwrap());
    let streams = Arc::new(Streams::new(&urls, &Trust::default(), &Patience::default()));
    let socket = || {
        let udp = TokioRuntime.wrap_udp_socket(std::net::UdpSocket::bind("127.0.0.1:0").unwrap()).unwrap();
        TurnSocket::new(udp, streams.clone()).unwrap()
    };
    let first = socket();
    streams.mark(IceTransport::Udp, Way::Answered);
    assert!(!streams.is_needed(IceTransport::Tcp).await);
    let second = socket();
    assert!(!streams.is_needed(IceTransport::Tcp).await, "the same generation");
    drop((first, second));
    let _third = socket();
    assert!(streams.is_needed(IceTransport::Tcp).await, "UDP does not answer now");
    assert_eq!(streams.patience.wait(), LITTLE_PATIENCE);
}

#[tokio::test]
async fn frames_go_both_ways_and_what_waits_is_sent_before_the_end() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (socket, server) = socket_for(&listener);
    socket.send_to(&REQUEST, server).await.unwrap();
    let mut stream = listener.accept().await.unwrap().0;
    let mut got = [0; 20];
    stream.read_exact(&mut got).await.unwrap();
    stream.write_all(&[0x40, 0, 0, 3, 1, 2, 3, 0, 0x40, 0, 0]).await.unwrap();
    stream.write_all(&[1, 9, 0, 0, 0]).await.unwrap();
    let mut buffer = [0; 100];
    for expected in [&DATA[..], &[0x40, 0, 0, 1, 9]] {
        let (length, from) = timeout(Duration::from_secs(5), socket.recv_from(&mut buffer)).await.unwrap().unwrap();
        assert_eq!((&buffer[..length], from), (expected, server));
    }
    for _ in 0..1000 {
        socket.send_to(&DATA, server).await.unwrap();
    }
    drop(socket);
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest.len(), 1000 * 8);
}

#[tokio::test]
async fn datagrams_for_others_and_from_them_pass() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (socket, _) = socket_for(&listener);
    let other = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(b"hello", other.local_addr().unwrap()).await.unwrap();
    let mut buffer = [0; 100];
    let (length, from) = other.recv_from(&mut buffer).await.unwrap();
    assert_eq!((&buffer[..length], from), (&b"hello"[..], socket.local_addr().unwrap()));
    for _ in 0..3 {
        other.send_to(b"back", from).await.unwrap();
        let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
        assert_eq!((&buffer[..length], from), (&b"back"[..], other.local_addr().unwrap()));
    }
}

#[test]
fn what_is_no_turn_is_neither_framed_nor_read() {
    let mut out = BytesMut::new();
    for bad in [&[][..], &[0x40], &[0x80, 0, 0, 0], &[0x40, 0, 0, 9, 1], &REQUEST[..19]] {
        assert!(!frame(bad, &mut out) && out.is_empty(), "{bad:?}");
    }
    assert!(next_frame(&mut BytesMut::from(&[0xff, 0, 0, 0][..])).is_err());
    assert_eq!(virtual_number([255, 255, 255, 255].into()), None);
    assert_eq!(virtual_number([10, 0, 0, 1].into()), None);
}

fn any_message() -> impl Strategy<Value = Vec<u8>> {
    let stun = (any::<[u8; 16]>(), 0usize..20).prop_map(|(rest, words)| {
        let mut message = vec![0x01, 0x03, 0, words as u8 * 4];
        message.extend(rest);
        message.resize(20 + words * 4, 7);
        message
    });
    let channel = (0u8..0x40, proptest::collection::vec(any::<u8>(), 0..200))
        .prop_map(|(number, data)| [&[0x40 | number, 1, 0, data.len() as u8][..], &data].concat());
    prop_oneof![stun, channel]
}

proptest! {
    #[test]
    fn frames_come_out_as_they_went_in_however_the_stream_is_cut(messages in proptest::collection::vec(any_message(), 0..12), piece in 1usize..50) {
        let mut wire = BytesMut::new();
        for message in &messages {
            prop_assert!(frame(message, &mut wire));
        }
        let (mut buffer, mut read) = (BytesMut::new(), Vec::new());
        for piece in wire.chunks(piece) {
            buffer.extend_from_slice(piece);
            while let Some(frame) = next_frame(&mut buffer).unwrap() {
                read.push(frame.to_vec());
            }
        }
        prop_assert_eq!(read, messages);
        prop_assert!(buffer.is_empty());
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
        let mut buffer = BytesMut::from(&bytes[..]);
        while let Ok(Some(_)) = next_frame(&mut buffer) {}
        let _ = frame(&bytes, &mut BytesMut::new());
    }

    #[test]
    fn virtual_addresses_lead_to_their_server(number in 0usize..32, port: u16) {
        for ipv4 in [true, false] {
            prop_assert_eq!(virtual_number(virtual_ip(number, ipv4)), Some(number));
            let both = virtual_addresses(virtual_ip(number, ipv4), port).unwrap();
            prop_assert_eq!(both.iter().map(|address| virtual_number(address.ip())).collect::<Vec<_>>(), [Some(number); 2]);
        }
    }
}
