//! Servers of a few lines on loopback: what they do is what is found.

use std::net::UdpSocket as Blocking;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, UdpSocket},
};

use super::*;
use crate::domain::{
    id::Secret,
    probe::{Mapping, TlsFault, Udp},
};

const COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = [kind.to_be_bytes(), (value.len() as u16).to_be_bytes()].concat();
    bytes.extend_from_slice(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// A message of this type that answers a question.
fn message(kind: u16, question: &[u8], attributes: &[Vec<u8>]) -> Vec<u8> {
    let body = attributes.concat();
    [&kind.to_be_bytes()[..], &(body.len() as u16).to_be_bytes(), &COOKIE, &question[8..20], &body].concat()
}

/// XOR-MAPPED-ADDRESS, or XOR-RELAYED-ADDRESS.
fn address(kind: u16, port: u16) -> Vec<u8> {
    let ip = [198, 51, 100, 7].iter().zip(COOKIE).map(|(byte, cookie)| byte ^ cookie);
    let value: Vec<u8> = [0, 1].into_iter().chain((port ^ 0x2112).to_be_bytes()).chain(ip).collect();
    attribute(kind, &value)
}

/// Maps us to this port.
fn maps_to(port: u16) -> impl Fn(&[u8]) -> Vec<u8> + Clone {
    move |question| message(0x0101, question, &[address(0x0020, port)])
}

/// Asks for credentials, and answers them with this error; 0: with a relay.
fn relays(error: u16) -> impl Fn(&[u8]) -> Vec<u8> + Clone {
    let refuses = |code: u16| attribute(0x0009, &[0, 0, (code / 100) as u8, (code % 100) as u8, b'n', b'o']);
    move |question| {
        let has_user = question.windows(4).any(|window| window == b"user");
        match (question[..2] == [0, 3], has_user, error) {
            (true, false, _) => message(0x0113, question, &[refuses(401), attribute(0x0014, b"lab"), attribute(0x0015, b"nonce")]),
            (true, true, 0) => message(0x0103, question, &[address(0x0016, 50_000), address(0x0020, 4000)]),
            (true, true, error) => message(0x0113, question, &[refuses(error), attribute(0x0014, b"lab"), attribute(0x0015, b"nonce")]),
            (false, ..) => message(0x0101, question, &[address(0x0020, 4000)]),
        }
    }
}

/// A server over UDP; its address.
async fn over_udp(answer: impl Fn(&[u8]) -> Vec<u8> + Send + 'static) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 2048];
        while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
            let _ = socket.send_to(&answer(&buffer[..length]), from).await;
        }
    });
    address
}

/// A server over TCP; its address.
async fn over_tcp(answer: impl Fn(&[u8]) -> Vec<u8> + Send + Sync + Clone + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let answer = answer.clone();
            tokio::spawn(async move {
                let mut buffer = [0; 2048];
                while let Ok(length @ 1..) = stream.read(&mut buffer).await {
                    let _ = stream.write_all(&answer(&buffer[..length])).await;
                }
            });
        }
    });
    address
}

async fn examined(servers: &[(String, Option<&str>)]) -> Report {
    let ice_servers = servers.iter().map(|(url, username)| IceServer {
        urls: vec![url.clone()],
        username: username.map(str::to_owned),
        credential: username.map(|_| Secret::new("password".to_owned())),
    });
    let options = PeerOptions { ice_servers: ice_servers.collect(), here: true, ..PeerOptions::default() };
    examine(&options, None).await
}

/// They were left out, and with them that UDP is blocked.
#[tokio::test]
async fn regression_servers_that_the_signaling_server_hands_out_are_examined() {
    let url = format!("stun:{}", over_udp(maps_to(4000)).await);
    let offered = IceServer { urls: vec![url.clone()], username: None, credential: None };
    let (_newest, server_ice) = tokio::sync::watch::channel(vec![offered]);
    let options = PeerOptions { server_ice: Some(server_ice), here: true, ..PeerOptions::default() };
    assert_eq!(of(&examine(&options, None).await, &url).outcome, Outcome::Ok);
}

fn of<'a>(report: &'a Report, url: &str) -> &'a Finding {
    report.configured().find(|finding| finding.url == url).unwrap_or_else(|| panic!("{url}: {report:#?}"))
}

#[tokio::test]
async fn two_servers_tell_how_ports_are_mapped() {
    let (one, two, other) = (over_udp(maps_to(4000)).await, over_udp(maps_to(4000)).await, over_udp(maps_to(4001)).await);
    let same = examined(&[(format!("stun:{one}"), None), (format!("stun:{two}"), None)]).await;
    assert_eq!((same.mapping(), same.udp()), (Mapping::Independent, Udp::Works), "{same:#?}");
    let first = of(&same, &format!("stun:{one}"));
    assert_eq!((first.outcome.clone(), first.mapped), (Outcome::Ok, Some("198.51.100.7:4000".parse().unwrap())));
    assert!(first.rtt_ms.is_some_and(|rtt| rtt < 1000.0));
    let anew = examined(&[(format!("stun:{one}"), None), (format!("stun:{other}"), None)]).await;
    assert_eq!(anew.mapping(), Mapping::Dependent, "{anew:#?}");
}

#[tokio::test]
async fn what_a_relay_refuses_is_told_apart() {
    let long_ago = "1000000000:user";
    for (code, username, outcome) in [
        (0, "user", Outcome::Ok),
        (401, "user", Outcome::Unauthorized),
        (401, "9999999999:user", Outcome::Unauthorized),
        (441, "user", Outcome::Unauthorized),
        (403, "user", Outcome::Forbidden),
        (486, "user", Outcome::Quota),
        (508, "user", Outcome::NoCapacity),
        (300, "user", Outcome::Error { code: 300, reason: "no".to_owned() }),
    ] {
        let url = format!("turn:{}?transport=tcp", over_tcp(relays(code)).await);
        let report = examined(&[(url.clone(), Some(username))]).await;
        assert_eq!(of(&report, &url).outcome, outcome, "{code}");
        assert_eq!(of(&report, &url).relayed.is_some(), code == 0);
    }
    let url = format!("turn:{}?transport=udp", over_udp(relays(401)).await);
    let report = examined(&[(url.clone(), Some(long_ago))]).await;
    assert!(matches!(of(&report, &url).outcome, Outcome::Expired { since: 1.. }), "{report:#?}");
}

#[tokio::test]
async fn servers_that_are_none_are_told_apart() {
    let closed = Blocking::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let silent = Blocking::bind("127.0.0.1:0").unwrap();
    let babbling = over_tcp(|_| b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()).await;
    let urls = [
        format!("stun:{closed}"),
        format!("stun:{}", silent.local_addr().unwrap()),
        format!("turn:{babbling}?transport=tcp"),
        format!("turns:{babbling}?transport=tcp"),
        "stun:no-such-name.invalid:3478".to_owned(),
    ];
    let began = Instant::now();
    let report = examined(&urls.clone().map(|url| (url, Some("user")))).await;
    assert!(began.elapsed() < LONGEST, "{:?}", began.elapsed());
    let [closed, silent, babbling, secure, nameless] = urls.each_ref().map(|url| of(&report, url).outcome.clone());
    assert_eq!((closed, silent), (Outcome::Refused, Outcome::Silent));
    assert!(matches!(babbling, Outcome::Strange { .. }), "{babbling:?}");
    assert!(matches!(secure, Outcome::Tls { fault: TlsFault::Other, .. }), "{secure:?}");
    assert!(matches!(nameless, Outcome::NoName { .. }), "{nameless:?}");
}

#[tokio::test]
async fn an_address_that_this_machine_does_not_have_is_a_fault() {
    let options = PeerOptions { bind: vec!["192.0.2.1:0".parse().unwrap()], ..PeerOptions::default() };
    let report = examine(&options, None).await;
    assert!(matches!(report.faults[..], [LocalFault::NoAddress { .. }]), "{report:#?}");
}
