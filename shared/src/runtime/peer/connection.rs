//! One peer connection: its channels, its events, its route.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use rtc::{
    ice::mdns::MulticastDnsMode,
    peer_connection::configuration::{RTCOfferOptions, setting_engine::SctpMaxMessageSize},
};
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use webrtc::{
    data_channel::RTCDataChannelInit,
    peer_connection::{
        PeerConnection as Inner, PeerConnectionBuilder, PeerConnectionEventHandler, RTCConfigurationBuilder, RTCIceCandidate,
        RTCIceCandidateInit, RTCIceCandidateType, RTCIceServer, RTCIceTransportPolicy, RTCPeerConnectionIceEvent, RTCPeerConnectionState,
        RTCSessionDescription, SettingEngineBuilder, StatsSelector,
    },
};

use super::{
    candidates::{Announcer, without_candidates},
    channel::Channel,
    local::LocalAddrs,
    names,
    turn::{Patience, Streams, Trust},
    udp::{BufferedRuntime, Relays, granted_receive_buffer, route_mtu},
};
use crate::domain::{
    error::{Code, Failure},
    ice::{IceKind, IceTransport, IceUrl, check_ice_servers},
    network::{Host, Interfaces, Network, PortRange},
    route::{Route, RouteKind},
    signal::IceServer,
};

/// Bytes that may wait in one channel's send buffer.
const SEND_LIMIT: usize = 2 << 20;
/// The SCTP receive window of a connection that asks for none, in bytes.
const WINDOW: u32 = 2 << 20;
/// The socket's receive buffer below which the SCTP window is narrowed, and to what, in bytes: what overflows there is repaired slowly.
const NARROW_BUFFER: usize = 2 << 20;
const NARROW_WINDOW: u32 = 1 << 20;

/// The SCTP packet that every path carries (the crate's default): 1280 bytes of IPv6, less what is around it.
const EVERYWHERE_MTU: u32 = 1191;
/// The longest SCTP packet we make: it has to fit a DTLS record of 2¹⁴ bytes (RFC 6347 §4.1.1.1).
const WIDEST_MTU: u32 = 16_000;
/// A round trip shorter than this is near, in seconds.
const NEAR: f64 = 0.005;
/// What is around an SCTP packet: IPv6 and UDP headers (48 bytes), DTLS record with AES-GCM (37 bytes).
const OVERHEAD: u32 = 85;

/// How to reach the other side.
#[derive(Debug, Clone, Default)]
pub struct PeerOptions {
    /// STUN and TURN servers; empty: those of `server_ice`.
    pub ice_servers: Vec<IceServer>,
    /// What the signaling server names, renewed by it before credentials expire: each connection takes the newest.
    pub server_ice: Option<watch::Receiver<Vec<IceServer>>>,
    /// Addresses to bind UDP sockets to, instead of those of the interfaces.
    pub bind: Vec<SocketAddr>,
    /// The interfaces to use.
    pub interfaces: Interfaces,
    /// The UDP ports to use; absent: any.
    pub udp_ports: Option<PortRange>,
    /// The address that host candidates carry instead of the local one.
    pub advertise: Option<Host>,
    /// The other side may be on this machine, so loopback is a way to it.
    pub here: bool,
    /// Use relayed candidates only.
    pub relay_only: bool,
    /// Whom to trust as a TURN server over TLS.
    pub trust: Trust,
    /// Whether the faster ways to TURN servers have answered lately.
    pub patience: Patience,
    /// The SCTP receive window in bytes; narrower where the socket buffers are small.
    pub receive_window: Option<u32>,
    /// How long its packets may be.
    pub path_mtu: PathMtu,
    /// Whether the other side is near, so that little is under way at a time however fast the path is.
    pub near: bool,
    /// Bytes that may be under way on one channel; absent: little. Whoever sets it holds back by himself.
    pub send_limit: Option<usize>,
}

impl PeerOptions {
    /// As the configuration has it. `here`: the signaling server is on this machine, so the other side may be, too.
    ///
    /// # Errors
    /// [`Code::BadFile`] for certificates that cannot be read.
    pub fn new(network: &Network, here: bool) -> Result<Self, Failure> {
        Ok(PeerOptions {
            ice_servers: network.ice_servers.clone(),
            bind: network.bind.clone(),
            interfaces: network.interfaces.clone(),
            udp_ports: network.udp_ports,
            advertise: network.advertise.clone(),
            here,
            relay_only: network.relay_only,
            trust: Trust::with(network.ca_file.as_deref())?,
            ..PeerOptions::default()
        })
    }

    /// The STUN and TURN servers of a connection that is made now.
    pub fn ice_servers(&self) -> Vec<IceServer> {
        match &self.server_ice {
            Some(newest) if self.ice_servers.is_empty() => newest.borrow().clone(),
            _ => self.ice_servers.clone(),
        }
    }

    /// The addresses and ports that a connection made now would bind.
    ///
    /// # Errors
    /// Why there are none.
    pub fn local_sockets(&self) -> std::io::Result<Vec<SocketAddr>> {
        std::net::ToSocketAddrs::to_socket_addrs(&self.local_addrs()).map(Iterator::collect)
    }

    fn local_addrs(&self) -> LocalAddrs {
        LocalAddrs { bind: self.bind.clone(), interfaces: self.interfaces.clone(), ports: self.udp_ports, here: self.here }
    }
}

/// The longest SCTP packet that a path carries, once something is known of it. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct PathMtu(Arc<Carried>);

#[derive(Debug, Default)]
struct Carried {
    longest: AtomicU32,
    /// How often packets of this length have arrived.
    proofs: AtomicU32,
}

impl PathMtu {
    /// In bytes; `None`: nothing is known, so packets are such that every path carries them.
    pub fn get(&self) -> Option<u32> {
        Some(self.0.longest.load(Ordering::Relaxed)).filter(|&mtu| mtu > EVERYWHERE_MTU)
    }

    /// It turned out not to carry so much: from now on nothing is known.
    pub fn forget(&self) {
        self.0.longest.store(0, Ordering::Relaxed);
    }

    /// Packets of this length have arrived.
    pub fn proved(&self) {
        self.0.proofs.fetch_add(1, Ordering::Relaxed);
    }

    /// How often that was so.
    pub fn proofs(&self) -> u32 {
        self.0.proofs.load(Ordering::Relaxed)
    }

    /// From the longest IP packet.
    fn of_route(mtu: u32) -> Self {
        let longest = AtomicU32::new(mtu.saturating_sub(OVERHEAD).min(WIDEST_MTU));
        PathMtu(Arc::new(Carried { longest, proofs: AtomicU32::new(0) }))
    }
}

/// A negotiated channel (RFC 8832 §4, without the handshake): both sides create it with the same id.
#[derive(Debug, Clone, Copy)]
pub struct ChannelSpec {
    /// The SCTP stream id.
    pub id: u16,
    /// Its name, for logs.
    pub label: &'static str,
    /// Messages that may wait for their reader before the whole connection is held back.
    pub capacity: usize,
}

/// What a peer connection tells its owner.
#[derive(Debug, Clone)]
pub enum PeerEvent {
    /// A local candidate to be sent to the other side (an `RTCIceCandidateInit`).
    Candidate(Value),
    /// The connection's state has changed.
    State(ConnectionState),
}

/// What matters of the connection's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectionState {
    /// Data can flow.
    Connected,
    /// Nothing was heard for 10 s; it may heal by itself.
    Disconnected,
    /// Lost for good: make a new one.
    Failed,
    /// Closed.
    Closed,
}

/// A WebRTC peer connection with negotiated data channels.
pub struct PeerConnection {
    inner: Arc<dyn Inner>,
    announcer: Arc<Announcer>,
}

struct Handler {
    events: mpsc::Sender<PeerEvent>,
    announcer: Arc<Announcer>,
}

#[async_trait::async_trait]
impl PeerConnectionEventHandler for Handler {
    async fn on_ice_candidate(&self, event: RTCPeerConnectionIceEvent) {
        for candidate in self.announcer.announce(&event.candidate, &event.url) {
            let Ok(value) = candidate.to_json().map_err(drop).and_then(|init| serde_json::to_value(&init).map_err(drop)) else { continue };
            if self.events.try_send(PeerEvent::Candidate(value)).is_err() {
                tracing::debug!("a candidate was not sent: its reader is gone or far behind");
            }
        }
    }

    async fn on_connection_state_change(&self, state: RTCPeerConnectionState) {
        let state = match state {
            RTCPeerConnectionState::Connected => ConnectionState::Connected,
            RTCPeerConnectionState::Disconnected => ConnectionState::Disconnected,
            RTCPeerConnectionState::Failed => ConnectionState::Failed,
            RTCPeerConnectionState::Closed => ConnectionState::Closed,
            _ => return,
        };
        if self.events.try_send(PeerEvent::State(state)).is_err() {
            tracing::debug!(?state, "a state change was not told: its reader is gone or far behind");
        }
    }
}

impl PeerConnection {
    /// A new connection with these channels, in their order; its events; nothing is sent yet.
    ///
    /// # Errors
    /// [`Code::NoConnection`] when no socket can be bound, [`Code::InvalidRequest`] for an ICE server that cannot be used.
    pub async fn new(options: &PeerOptions, channels: &[ChannelSpec]) -> Result<(Self, mpsc::Receiver<PeerEvent>, Vec<Channel>), Failure> {
        let (event_tx, events) = mpsc::channel(256);
        let servers = options.ice_servers();
        let servers = usable(&servers);
        let urls: Vec<IceUrl> = servers.iter().map(|(_, url)| url.clone()).collect();
        names::prefetch(&urls).await;
        let turn: Vec<IceUrl> = urls.into_iter().filter(|url| url.kind == IceKind::Turn).collect();
        let streams = Arc::new(Streams::new(&turn, &options.trust, &options.patience));
        let announcer = Arc::new(Announcer::new(options.advertise.clone(), options.here, streams.clone()));
        let handler = Handler { events: event_tx, announcer: announcer.clone() };
        let relays = if turn.is_empty() { Relays::None } else { Relays::Perhaps };
        let builder = PeerConnectionBuilder::new()
            .with_configuration(configuration(&servers, &streams, options.relay_only))
            .with_setting_engine(settings(options))
            .with_handler(Arc::new(handler))
            .with_runtime(Arc::new(BufferedRuntime::new(streams, relays)))
            .with_udp_addrs(vec![options.local_addrs()])
            .with_data_channel_send_buffer_limit(options.send_limit.unwrap_or(SEND_LIMIT));
        // Boxed: the crate's future has 20 kB, and every future that awaits it would have them, too.
        let inner = Box::pin(builder.build()).await.map_err(|error| failed("a peer connection could not be made", &error))?;
        let inner: Arc<dyn Inner> = Arc::new(inner);
        let mut made = Vec::with_capacity(channels.len());
        for spec in channels {
            let init = RTCDataChannelInit { negotiated: Some(spec.id), ..Default::default() };
            let channel = inner
                .create_data_channel(spec.label, Some(init))
                .await
                .map_err(|error| failed("a data channel could not be made", &error))?;
            made.push(Channel::new(channel, spec.label, spec.capacity));
        }
        Ok((PeerConnection { inner, announcer }, events, made))
    }

    /// Makes the offer (SDP) and starts gathering candidates.
    ///
    /// # Errors
    /// [`Code::NoConnection`].
    pub async fn offer(&self) -> Result<String, Failure> {
        let offer = self.inner.create_offer(None).await.map_err(|error| failed("no offer could be made", &error))?;
        self.set_local(offer).await
    }

    /// Begins an ICE restart (RFC 8445 §9): new sockets on the interfaces that there are now, new credentials and candidates, for the same DTLS
    /// and SCTP association. Gives the offer (SDP). The path in use is given up at once: until the answer comes, nothing flows.
    ///
    /// # Errors
    /// [`Code::NoConnection`].
    pub async fn restart(&self) -> Result<String, Failure> {
        let options = RTCOfferOptions { ice_restart: true };
        let offer = self.inner.create_offer(Some(options)).await.map_err(|error| failed("no offer could be made", &error))?;
        self.set_local(offer).await
    }

    /// Takes the other side's offer of a restart, restarts, too, and makes the answer.
    ///
    /// # Errors
    /// As [`PeerConnection::answer`].
    pub async fn answer_restart(&self, offer: String) -> Result<String, Failure> {
        self.answer(offer).await
    }

    /// Takes the other side's offer and makes the answer.
    ///
    /// # Errors
    /// [`Code::NotAuthentic`] for a description without exactly one SHA-256 fingerprint, [`Code::NoConnection`].
    pub async fn answer(&self, offer: String) -> Result<String, Failure> {
        fingerprint_of(&offer)?;
        let offer = RTCSessionDescription::offer(offer).map_err(|error| failed("the offer cannot be used", &error))?;
        self.inner.set_remote_description(offer).await.map_err(|error| failed("the offer cannot be used", &error))?;
        let answer = self.inner.create_answer(None).await.map_err(|error| failed("no answer could be made", &error))?;
        self.set_local(answer).await
    }

    /// Takes the other side's answer.
    ///
    /// # Errors
    /// [`Code::NotAuthentic`] for a description without exactly one SHA-256 fingerprint, [`Code::NoConnection`].
    pub async fn accept_answer(&self, answer: String) -> Result<(), Failure> {
        fingerprint_of(&answer)?;
        let answer = RTCSessionDescription::answer(answer).map_err(|error| failed("the answer cannot be used", &error))?;
        self.inner.set_remote_description(answer).await.map_err(|error| failed("the answer cannot be used", &error))
    }

    /// Takes a candidate of the other side. One that cannot be used is ignored: others may do.
    pub async fn add_candidate(&self, candidate: Value) {
        let Ok(init) = serde_json::from_value::<RTCIceCandidateInit>(candidate) else {
            tracing::debug!("a candidate that is not one was ignored");
            return;
        };
        if let Err(error) = self.inner.add_ice_candidate(init).await {
            tracing::debug!(%error, "a candidate was ignored");
        }
    }

    /// SHA-256 of the local certificate and of the one that the other side really presented.
    ///
    /// # Errors
    /// [`Code::NoConnection`] before DTLS has ended, [`Code::NotAuthentic`] when the presented certificate is not the described one.
    pub async fn fingerprints(&self) -> Result<(Fingerprint, Fingerprint), Failure> {
        let not_yet = || Failure::new(Code::NoConnection, "the connection is not secured yet");
        let local = fingerprint_of(&self.inner.local_description().await.ok_or_else(not_yet)?.sdp)?;
        let described = fingerprint_of(&self.inner.remote_description().await.ok_or_else(not_yet)?.sdp)?;
        let dtls = self.inner.sctp().await.ok_or_else(not_yet)?.transport();
        let certificates = dtls.get_remote_certificates().await.map_err(|_| not_yet())?;
        let presented: Fingerprint = {
            use sha2::Digest;
            sha2::Sha256::digest(certificates.first().ok_or_else(not_yet)?).into()
        };
        if presented != described {
            return Err(Failure::new(Code::NotAuthentic, "the other side's certificate is not the one it described"));
        }
        Ok((local, presented))
    }

    /// The route in use, once there is one.
    pub async fn route(&self) -> Option<Route> {
        let ice = self.inner.sctp().await?.transport().ice_transport();
        let pair = ice.get_selected_candidate_pair().await.ok()??;
        let local = announced(pair.local(), &ice.get_local_candidates().await.unwrap_or_default());
        let remote = announced(pair.remote(), &ice.get_remote_candidates().await.unwrap_or_default());
        let report = self.inner.get_stats(Instant::now(), StatsSelector::None).await;
        // The selected pair is the one that carries bytes; the report has no link between the two.
        let rtt =
            report.candidate_pairs().max_by_key(|pair| pair.bytes_sent + pair.bytes_received).map(|pair| pair.current_round_trip_time);
        let mut route = route_of(&local, &remote, rtt.unwrap_or_default());
        if let Some(transport) = self.announcer.relay_transport(&local) {
            // How we reach the relay matters to whoever wonders why it is slow.
            route.local = format!("{}/{} {}", local.typ, transport.to_string().to_lowercase(), socket_of(&local));
        }
        Some(route)
    }

    /// What the path in use carries, if it is direct, and as far as the kernel knows its way: a local network or this machine itself. A
    /// path through the Internet has routers that the kernel knows nothing of.
    pub async fn path_mtu(&self) -> PathMtu {
        let Some(route) = self.route().await.filter(|route| route.kind == RouteKind::Direct) else { return PathMtu::default() };
        ip_of(&route.remote).and_then(route_mtu).map(PathMtu::of_route).unwrap_or_default()
    }

    /// The other side's address on the path in use.
    pub async fn remote_ip(&self) -> Option<IpAddr> {
        ip_of(&self.route().await?.remote)
    }

    /// Whether the path in use is so short that a narrow receive window fills it.
    pub async fn is_near(&self) -> bool {
        self.route().await.is_some_and(|route| route.rtt > 0.0 && route.rtt < NEAR)
    }

    /// Closes the connection; what was not acknowledged is lost.
    pub async fn close(&self) {
        if let Err(error) = self.inner.close().await {
            tracing::debug!(%error, "closing a peer connection");
        }
    }

    async fn set_local(&self, description: RTCSessionDescription) -> Result<String, Failure> {
        // This is what starts gathering.
        self.announcer.look_up().await;
        self.announcer.begin();
        self.inner.set_local_description(description).await.map_err(|error| failed("the session description cannot be used", &error))?;
        let local = self.inner.local_description().await;
        local
            .map(|description| without_candidates(&description.sdp))
            .ok_or_else(|| Failure::new(Code::Internal, "there is no local description"))
    }
}

/// The address in a candidate as a route shows it.
fn ip_of(candidate: &str) -> Option<IpAddr> {
    let (ip, _port) = candidate.rsplit(' ').next()?.rsplit_once(':')?;
    ip.trim_matches(['[', ']']).parse().ok()
}

/// SHA-256 of a DTLS certificate.
pub type Fingerprint = [u8; 32];

/// The servers that can be used, each with its URL as we read it and as the crate is told it.
///
/// Those that the signaling server handed out are somebody else's input: what is wrong with one is its own loss.
fn usable(servers: &[IceServer]) -> Vec<(&IceServer, IceUrl)> {
    let mut usable = Vec::new();
    for server in servers {
        if let Err(why) = check_ice_servers(std::slice::from_ref(server)) {
            tracing::warn!(why, "a STUN or TURN server cannot be used");
            continue;
        }
        let urls = server.urls.iter().filter_map(|url| url.parse::<IceUrl>().ok());
        // STUN over TCP or TLS tells nothing about UDP.
        usable.extend(urls.filter(|url| url.kind == IceKind::Turn || url.transport == IceTransport::Udp).map(|url| (server, url)));
    }
    usable
}

fn configuration(servers: &[(&IceServer, IceUrl)], streams: &Streams, relay_only: bool) -> webrtc::peer_connection::RTCConfiguration {
    let servers = servers
        .iter()
        .map(|(server, url)| RTCIceServer {
            urls: vec![streams.virtual_url(url).unwrap_or_else(|| url.to_string())],
            username: server.username.clone().unwrap_or_default(),
            credential: server.credential.as_ref().map(|secret| secret.expose().clone()).unwrap_or_default(),
        })
        .collect();
    let policy = if relay_only { RTCIceTransportPolicy::Relay } else { RTCIceTransportPolicy::All };
    RTCConfigurationBuilder::new().with_ice_servers(servers).with_ice_transport_policy(policy).build()
}

fn settings(options: &PeerOptions) -> webrtc::peer_connection::SettingEngine {
    let widest = if granted_receive_buffer() >= NARROW_BUFFER { u32::MAX } else { NARROW_WINDOW };
    let window = options.receive_window.unwrap_or(WINDOW).min(widest);
    SettingEngineBuilder::new()
        .with_sctp_mtu(options.path_mtu.get().unwrap_or(EVERYWHERE_MTU))
        .with_multicast_dns_mode(MulticastDnsMode::Disabled)
        .with_sctp_max_receive_buffer_size(window)
        .with_sctp_max_message_size(SctpMaxMessageSize::Bounded(256 * 1024))
        .with_ice_timeouts(Some(Duration::from_secs(10)), Some(Duration::from_secs(180)), Some(Duration::from_secs(2)))
        .with_ice_connection_attempts(Some(Duration::from_millis(20)), Some(150))
        .with_host_acceptance_min_wait(Some(Duration::ZERO))
        // Otherwise 0.5 s: a pair on the local network is there first anyway.
        .with_srflx_acceptance_min_wait(Some(Duration::ZERO))
        .with_prflx_acceptance_min_wait(Some(Duration::ZERO))
        .with_discard_local_candidates_during_ice_restart(true)
        // Otherwise 2 s, in which a direct path may turn up.
        .with_relay_acceptance_min_wait(options.relay_only.then_some(Duration::ZERO))
        .build()
}

/// The one SHA-256 fingerprint that a session description names (RFC 8122 §5).
fn fingerprint_of(sdp: &str) -> Result<Fingerprint, Failure> {
    let refused = |why: &str| Failure::new(Code::NotAuthentic, format!("the session description {why}"));
    let mut found: Option<&str> = None;
    for line in sdp.lines() {
        let Some(value) = line.strip_prefix("a=fingerprint:") else { continue };
        let (algorithm, digest) = value.trim().split_once(' ').ok_or_else(|| refused("has a fingerprint that cannot be read"))?;
        if !algorithm.eq_ignore_ascii_case("sha-256") {
            return Err(refused("names a fingerprint that is not SHA-256"));
        }
        if found.is_some_and(|first| !first.eq_ignore_ascii_case(digest)) {
            return Err(refused("names two certificates"));
        }
        found = Some(digest);
    }
    let digest = found.ok_or_else(|| refused("names no certificate"))?;
    let bytes: Option<Vec<u8>> = digest.split(':').map(|pair| u8::from_str_radix(pair, 16).ok()).collect();
    bytes.and_then(|bytes| bytes.try_into().ok()).ok_or_else(|| refused("has a fingerprint that cannot be read"))
}

/// A peer-reflexive candidate is one whose check came before its announcement; once announced, it is what it was announced as.
fn announced(candidate: &RTCIceCandidate, known: &[RTCIceCandidate]) -> RTCIceCandidate {
    let same = |other: &&RTCIceCandidate| {
        (&other.address, other.port) == (&candidate.address, candidate.port) && other.typ != RTCIceCandidateType::Prflx
    };
    known.iter().find(same).unwrap_or(candidate).clone()
}

/// Address and port, an IPv6 address in brackets.
fn socket_of(candidate: &RTCIceCandidate) -> String {
    match candidate.address.parse() {
        Ok(ip) => SocketAddr::new(ip, candidate.port).to_string(),
        Err(_) => format!("{}:{}", candidate.address, candidate.port),
    }
}

fn route_of(local: &RTCIceCandidate, remote: &RTCIceCandidate, rtt: f64) -> Route {
    let show = |candidate: &RTCIceCandidate| format!("{} {}", candidate.typ, socket_of(candidate));
    let kinds = [local.typ, remote.typ];
    let kind = if kinds.contains(&RTCIceCandidateType::Relay) {
        RouteKind::Relayed
    } else if kinds == [RTCIceCandidateType::Host; 2] {
        RouteKind::Direct
    } else {
        RouteKind::DirectThroughNat
    };
    Route { kind, local: show(local), remote: show(remote), rtt }
}

fn failed(what: &str, error: &dyn std::error::Error) -> Failure {
    Failure::new(Code::NoConnection, format!("{what}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The pair in use was not found again among the announced ones.
    #[test]
    fn regression_a_route_over_ipv6_has_its_addresses_in_brackets() {
        let end =
            |address: &str| RTCIceCandidate { typ: RTCIceCandidateType::Host, address: address.into(), port: 5000, ..Default::default() };
        let route = route_of(&end("2001:db8::1"), &end("192.0.2.1"), 0.1);
        assert_eq!([&route.local[..], &route.remote], ["host [2001:db8::1]:5000", "host 192.0.2.1:5000"]);
        assert_eq!(ip_of(&route.local), Some("2001:db8::1".parse().unwrap()));
    }

    #[test]
    fn exactly_one_certificate_is_accepted() {
        let digest = ["AB"; 32].join(":");
        let other = ["cd"; 32].join(":");
        assert_eq!(fingerprint_of(&format!("v=0\r\na=fingerprint:sha-256 {digest}\r\n")).unwrap(), [0xab; 32]);
        for bad in [
            "v=0\r\n".to_owned(),
            format!("a=fingerprint:sha-256 {digest}\r\na=fingerprint:sha-256 {other}\r\n"),
            format!("a=fingerprint:sha-1 {digest}\r\n"),
            "a=fingerprint:sha-256 zz\r\n".to_owned(),
        ] {
            assert_eq!(fingerprint_of(&bad).unwrap_err().code, Code::NotAuthentic);
        }
    }

    #[test]
    fn packets_are_as_long_as_the_route_allows_and_a_record_holds() {
        let longest = |route: u32| PathMtu::of_route(route).get();
        assert_eq!([longest(1500), longest(9000), longest(65_536)], [Some(1415), Some(8915), Some(16_000)]);
        assert_eq!([longest(1280), longest(1276), longest(60)], [Some(1195), None, None]);
        let mtu = PathMtu::of_route(9000);
        mtu.clone().forget();
        assert_eq!(mtu.get(), None);
    }

    const CHANNELS: [ChannelSpec; 2] =
        [ChannelSpec { id: 0, label: "auth", capacity: 8 }, ChannelSpec { id: 1, label: "data", capacity: 64 }];

    async fn connect() -> [(PeerConnection, Vec<Channel>); 2] {
        let options = PeerOptions { bind: vec!["127.0.0.1:0".parse().unwrap()], ..Default::default() };
        let (a, mut a_events, a_channels) = PeerConnection::new(&options, &CHANNELS).await.unwrap();
        let (b, mut b_events, b_channels) = PeerConnection::new(&options, &CHANNELS).await.unwrap();
        let answer = b.answer(a.offer().await.unwrap()).await.unwrap();
        a.accept_answer(answer).await.unwrap();
        for _ in 0..2 {
            tokio::select! {
                Some(PeerEvent::Candidate(candidate)) = a_events.recv() => b.add_candidate(candidate).await,
                Some(PeerEvent::Candidate(candidate)) = b_events.recv() => a.add_candidate(candidate).await,
            }
        }
        [(a, a_channels), (b, b_channels)]
    }

    #[tokio::test]
    async fn two_peers_meet_on_loopback_and_see_each_others_certificate() {
        let [(a, a_channels), (b, mut b_channels)] = connect().await;
        a_channels[1].sender().opened().await.unwrap();
        a_channels[1].sender().send_text("hello").await.unwrap();
        assert_eq!(&b_channels[1].recv().await.unwrap()[..], b"hello");
        let (a_local, a_remote) = a.fingerprints().await.unwrap();
        assert_eq!(b.fingerprints().await.unwrap(), (a_remote, a_local));
        assert_ne!(a_local, a_remote);
        for peer in [&a, &b] {
            assert_eq!(peer.route().await.unwrap().kind, RouteKind::Direct);
        }
        a.close().await;
        b.close().await;
    }

    /// Hands the candidates of both sides on for as long as it is polled.
    async fn trickle(peers: [&PeerConnection; 2], [a, b]: &mut [mpsc::Receiver<PeerEvent>; 2]) {
        loop {
            let (event, other) = tokio::select! {
                event = a.recv() => (event, peers[1]),
                event = b.recv() => (event, peers[0]),
            };
            if let Some(PeerEvent::Candidate(candidate)) = event {
                other.add_candidate(candidate).await;
            }
        }
    }

    #[tokio::test]
    async fn a_restart_moves_an_association_to_other_sockets_and_what_was_under_way_arrives() {
        let options = PeerOptions { bind: vec!["127.0.0.1:0".parse().unwrap()], ..Default::default() };
        let (a, a_events, mut a_channels) = PeerConnection::new(&options, &CHANNELS).await.unwrap();
        let (b, b_events, mut b_channels) = PeerConnection::new(&options, &CHANNELS).await.unwrap();
        let mut events = [a_events, b_events];
        a.accept_answer(b.answer(a.offer().await.unwrap()).await.unwrap()).await.unwrap();
        let established = async {
            b_channels[1].sender().opened().await.unwrap();
            b_channels[1].sender().send_text("hello").await.unwrap();
            a_channels[1].recv().await.unwrap();
        };
        tokio::select! {
            () = established => {}
            () = trickle([&a, &b], &mut events) => {}
        }
        let (before, binding) = (a.route().await.unwrap(), a.fingerprints().await.unwrap());
        // Candidates count once the description that they belong to is known.
        let offer = a.restart().await.unwrap();
        a_channels[1].sender().send_text("under way").await.unwrap();
        a.accept_answer(b.answer_restart(offer).await.unwrap()).await.unwrap();
        tokio::select! {
            message = b_channels[1].recv() => assert_eq!(&message.unwrap()[..], b"under way"),
            () = trickle([&a, &b], &mut events) => {}
        }
        let after = a.route().await.unwrap();
        assert!(before.local != after.local && before.remote != after.remote, "{before:?} {after:?}");
        assert_eq!(a.fingerprints().await.unwrap(), binding);
        a.close().await;
        b.close().await;
    }

    #[tokio::test]
    async fn candidates_carry_the_advertised_address_and_a_port_of_the_range() {
        let taken = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let options = PeerOptions {
            bind: vec!["127.0.0.1:0".parse().unwrap()],
            udp_ports: Some(port.to_string().parse().unwrap()),
            advertise: Some("203.0.113.10".parse().unwrap()),
            ..Default::default()
        };
        let failure = PeerConnection::new(&options, &CHANNELS).await.map(drop).unwrap_err();
        assert!(failure.message.contains(&format!("all 1 UDP ports {port}-{port} of 127.0.0.1 are in use")), "{failure}");
        drop(taken);
        let (connection, mut events, _channels) = PeerConnection::new(&options, &CHANNELS).await.unwrap();
        let sdp = connection.offer().await.unwrap();
        assert!(!sdp.contains("127.0.0.1") && !sdp.contains("a=candidate"), "{sdp}");
        let Some(PeerEvent::Candidate(candidate)) = events.recv().await else { panic!("no candidate") };
        assert!(candidate["candidate"].as_str().unwrap().contains(&format!(" 203.0.113.10 {port} typ host")), "{candidate}");
        connection.close().await;
    }
}
