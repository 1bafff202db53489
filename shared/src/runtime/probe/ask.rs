//! One question to one server.
//!
//! * [`Ear`]: a UDP socket from which many servers are asked
//! * [`Way`]: a socket or stream to one server
//! * [`allocate`]: asks for a relay with credentials (RFC 8656 §7.1), and gives it back

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    sync::oneshot,
    time::{sleep, timeout},
};
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{self, pki_types::ServerName},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{Answer, Target};
use crate::{
    domain::{
        error::Failure,
        ice::IceTransport,
        network::Host,
        probe::{Outcome, TlsFault, expiry_of},
        signal::IceServer,
    },
    runtime::peer::{
        PeerOptions,
        stun::{self, Credential, HEAD, Reply, Request, Transaction},
        turn::Trust,
    },
};

/// Before a question over UDP is repeated, and by how much longer the next time (RFC 8489 §6.2.1 with a shorter begin).
const FIRST_WAIT: Duration = Duration::from_millis(250);
const MAX_DATAGRAM: usize = 2048;
/// How long giving a relay back may take.
const GOODBYE: Duration = Duration::from_millis(400);

/// A server's answer and how long it took.
type Heard = (Reply, Duration);
type Waiting = Arc<Mutex<HashMap<Transaction, oneshot::Sender<Reply>>>>;

/// A UDP socket on this address.
pub(super) fn bind_udp(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = std::net::UdpSocket::bind(address)?;
    socket.set_nonblocking(true)?;
    UdpSocket::from_std(socket)
}

/// A UDP socket from which many servers are asked at the same time.
pub(super) struct Ear {
    socket: Arc<UdpSocket>,
    waiting: Waiting,
    _listening: DropGuard,
}

impl Ear {
    pub(super) fn open(address: SocketAddr) -> io::Result<Self> {
        let socket = Arc::new(bind_udp(address)?);
        let waiting = Waiting::default();
        let stop = CancellationToken::new();
        tokio::spawn(stop.clone().run_until_cancelled_owned(listen(socket.clone(), waiting.clone())));
        Ok(Ear { socket, waiting, _listening: stop.drop_guard() })
    }

    /// Asks until there is an answer.
    pub(super) async fn ask(&self, request: &Request, address: SocketAddr) -> Result<Answer, Outcome> {
        let (answered, mut answer) = oneshot::channel();
        self.waiting.lock().expect("no panic happens under this lock").insert(request.transaction, answered);
        let own = self.socket.local_addr().map_err(failed)?;
        let source = || source_of(address).ok().map(|source| SocketAddr::new(source.ip(), own.port()));
        let local = if own.ip().is_unspecified() { source() } else { Some(own) };
        let mut wait = FIRST_WAIT;
        loop {
            let sent = Instant::now();
            match self.socket.send_to(&request.bytes, address).await {
                Ok(_) => {}
                // A firewall of this machine says no in this way: as silent as one on the way.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
                Err(error) => return Err(failed(error)),
            }
            tokio::select! {
                reply = &mut answer => {
                    let reply = reply.map_err(|_| Outcome::Silent)?;
                    return match reply.error {
                        None => Ok(Answer { local, mapped: reply.mapped, relayed: None, rtt: sent.elapsed() }),
                        Some((code, reason)) => Err(Outcome::Error { code, reason }),
                    };
                }
                () = sleep(wait) => wait *= 2,
            }
        }
    }
}

async fn listen(socket: Arc<UdpSocket>, waiting: Waiting) {
    let mut buffer = [0; MAX_DATAGRAM];
    loop {
        match socket.recv_from(&mut buffer).await {
            Ok((length, _)) => {
                if let Some(reply) = stun::read(&buffer[..length])
                    && let Some(answered) = waiting.lock().expect("no panic happens under this lock").remove(&reply.transaction)
                {
                    // Whoever asked may have given up.
                    let _ = answered.send(reply);
                }
            }
            // An ICMP message about one of the servers; without a pause, in case it is the socket itself.
            Err(_) => tokio::task::yield_now().await,
        }
    }
}

/// The address that packets to this one leave from. Sends nothing.
fn source_of(address: SocketAddr) -> io::Result<SocketAddr> {
    let unspecified = if address.is_ipv4() { SocketAddr::from(([0; 4], 0)) } else { SocketAddr::from(([0_u16; 8], 0)) };
    let socket = std::net::UdpSocket::bind(unspecified)?;
    socket.connect(address)?;
    socket.local_addr()
}

/// A TCP connection.
pub(super) async fn connect(address: SocketAddr) -> Result<TcpStream, Outcome> {
    let stream = TcpStream::connect(address).await.map_err(failed)?;
    // Small questions should not wait for more.
    let _ = stream.set_nodelay(true);
    Ok(stream)
}

/// A stream of either kind.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A way to one server.
pub(super) enum Way {
    /// A socket that only this server is heard on.
    Udp(UdpSocket),
    /// TCP, or TLS over it.
    Stream {
        /// The stream.
        stream: Box<dyn Stream>,
        /// Our end.
        local: Option<SocketAddr>,
    },
}

impl Way {
    /// Opens it.
    pub(super) async fn open(target: &Target<'_>, options: &PeerOptions) -> Result<Self, Outcome> {
        if target.url.transport == IceTransport::Udp {
            return Self::udp(target.address);
        }
        let stream = connect(target.address).await?;
        let local = stream.local_addr().ok();
        if target.url.transport == IceTransport::Tcp {
            return Ok(Way::Stream { stream: Box::new(stream), local });
        }
        let stream = secure(&options.trust, &target.url.host, stream).await?;
        Ok(Way::Stream { stream: Box::new(stream), local })
    }

    /// A socket for this address alone.
    pub(super) fn udp(address: SocketAddr) -> Result<Self, Outcome> {
        let unspecified = if address.is_ipv4() { SocketAddr::from(([0; 4], 0)) } else { SocketAddr::from(([0_u16; 8], 0)) };
        let socket = std::net::UdpSocket::bind(unspecified).map_err(failed)?;
        socket.connect(address).map_err(failed)?;
        socket.set_nonblocking(true).map_err(failed)?;
        Ok(Way::Udp(UdpSocket::from_std(socket).map_err(failed)?))
    }

    /// Our end.
    pub(super) fn local(&self) -> Option<SocketAddr> {
        match self {
            Way::Udp(socket) => socket.local_addr().ok(),
            Way::Stream { local, .. } => *local,
        }
    }

    /// Asks until there is an answer.
    pub(super) async fn ask(&mut self, request: &Request) -> Result<Heard, Outcome> {
        match self {
            Way::Udp(socket) => ask_udp(socket, request).await,
            Way::Stream { stream, .. } => ask_stream(&mut **stream, request).await,
        }
    }
}

async fn ask_udp(socket: &UdpSocket, request: &Request) -> Result<Heard, Outcome> {
    let mut wait = FIRST_WAIT;
    let mut buffer = [0; MAX_DATAGRAM];
    loop {
        let sent = Instant::now();
        match socket.send(&request.bytes).await {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
            Err(error) => return Err(failed(error)),
        }
        let heard = async {
            loop {
                let length = socket.recv(&mut buffer).await.map_err(failed)?;
                if let Some(reply) = stun::read(&buffer[..length]).filter(|reply| reply.transaction == request.transaction) {
                    return Ok((reply, sent.elapsed()));
                }
            }
        };
        match timeout(wait, heard).await {
            Ok(heard) => return heard,
            Err(_) => wait *= 2,
        }
    }
}

async fn ask_stream(stream: &mut dyn Stream, request: &Request) -> Result<Heard, Outcome> {
    let strange = |detail: &str| Outcome::Strange { detail: detail.to_owned() };
    let sent = Instant::now();
    stream.write_all(&request.bytes).await.map_err(failed)?;
    stream.flush().await.map_err(failed)?;
    loop {
        let mut message = vec![0; HEAD];
        stream.read_exact(&mut message).await.map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => strange("it hangs up when it is asked"),
            _ => failed(error),
        })?;
        let head = message[..].try_into().expect("it has the length of a head");
        let length = stun::length(head).ok_or_else(|| strange("what it says is not STUN"))?;
        message.resize(length, 0);
        stream.read_exact(&mut message[HEAD..]).await.map_err(failed)?;
        if let Some(reply) = stun::read(&message).filter(|reply| reply.transaction == request.transaction) {
            return Ok((reply, sent.elapsed()));
        }
    }
}

/// Asks for a relay, and gives it back.
pub(super) async fn allocate(way: &mut Way, server: &IceServer, now: u64) -> Result<Answer, Outcome> {
    let ipv6 = false;
    let (mut reply, mut rtt) = way.ask(&stun::allocate(ipv6, None).map_err(internal)?).await?;
    // At first realm and nonce are told (401); a nonce may go stale on the way (438).
    for _ in 0..2 {
        let Some((401 | 438, _)) = reply.error else { break };
        let (Some(username), Some(password)) = (&server.username, &server.credential) else { return Err(Outcome::Unauthorized) };
        let (Some(realm), Some(nonce)) = (reply.realm.clone(), reply.nonce.clone()) else {
            return Err(Outcome::Strange { detail: "it asks for credentials and names no realm".to_owned() });
        };
        let credential = Credential { username, password, realm: &realm, nonce: &nonce };
        let stale = matches!(reply.error, Some((438, _)));
        (reply, rtt) = way.ask(&stun::allocate(ipv6, Some(&credential)).map_err(internal)?).await?;
        if reply.error.is_none() {
            let release = stun::release(&Credential { nonce: &nonce, ..credential }).map_err(internal)?;
            // One that is not given back ends by itself.
            let _ = timeout(GOODBYE, way.ask(&release)).await;
            break;
        }
        if !stale && matches!(reply.error, Some((401, _))) {
            break;
        }
    }
    match reply.error {
        None => Ok(Answer { local: way.local(), mapped: reply.mapped, relayed: reply.relayed, rtt }),
        Some((401 | 441, _)) => Err(refused(server, now)),
        Some((403, _)) => Err(Outcome::Forbidden),
        Some((486, _)) => Err(Outcome::Quota),
        Some((508, _)) => Err(Outcome::NoCapacity),
        Some((code, reason)) => Err(Outcome::Error { code, reason }),
    }
}

/// Credentials that are refused: because their time is over, or for another reason.
fn refused(server: &IceServer, now: u64) -> Outcome {
    match server.username.as_deref().and_then(expiry_of) {
        Some(expiry) if expiry <= now => Outcome::Expired { since: now - expiry },
        _ => Outcome::Unauthorized,
    }
}

/// What the system said, as an outcome.
pub(super) fn failed(error: io::Error) -> Outcome {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Outcome::Refused,
        io::ErrorKind::TimedOut => Outcome::Silent,
        io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted | io::ErrorKind::BrokenPipe | io::ErrorKind::UnexpectedEof => {
            Outcome::Strange { detail: "the connection was broken off".to_owned() }
        }
        // A router or a firewall that says that it lets nothing through is no more than one that does not say so.
        io::ErrorKind::PermissionDenied => Outcome::Silent,
        _ => Outcome::NoRoute { detail: error.to_string() },
    }
}

/// What should not happen, as an outcome.
pub(super) fn internal(failure: Failure) -> Outcome {
    Outcome::Strange { detail: failure.message }
}

/// TLS over a connection, with the certificate checked.
pub(super) async fn secure(trust: &Trust, host: &Host, stream: TcpStream) -> Result<TlsStream<TcpStream>, Outcome> {
    let strange = |detail: String| Outcome::Tls { fault: TlsFault::Other, detail };
    let trust = trust.clone();
    // Files are read, the first time.
    let config = tokio::task::spawn_blocking(move || trust.config()).await.map_err(|error| strange(error.to_string()))?;
    let name = match host {
        Host::Ip(ip) => ServerName::IpAddress((*ip).into()),
        Host::Name(name) => ServerName::try_from(name.trim_end_matches('.').to_owned()).map_err(|error| strange(error.to_string()))?,
    };
    let connecting = TlsConnector::from(config.map_err(strange)?).connect(name, stream);
    connecting.await.map_err(|error| match error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>()) {
        Some(error) => Outcome::Tls { fault: fault_of(error), detail: error.to_string() },
        None if error.kind() == io::ErrorKind::UnexpectedEof => strange("the server breaks off the handshake".to_owned()),
        None => failed(error),
    })
}

fn fault_of(error: &rustls::Error) -> TlsFault {
    use rustls::CertificateError as Certificate;
    let rustls::Error::InvalidCertificate(certificate) = error else { return TlsFault::Other };
    match certificate {
        Certificate::Expired | Certificate::ExpiredContext { .. } => TlsFault::Expired,
        Certificate::NotValidYet | Certificate::NotValidYetContext { .. } => TlsFault::NotYetValid,
        Certificate::NotValidForName | Certificate::NotValidForNameContext { .. } => TlsFault::WrongName,
        // Another authority of the same name has signed it.
        Certificate::UnknownIssuer | Certificate::BadSignature => TlsFault::Untrusted,
        _ => TlsFault::Other,
    }
}
