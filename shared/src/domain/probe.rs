//! What one side finds out about its own end: addresses, STUN and TURN servers, clock.
//!
//! * Client and worker make the same [`Report`]; the worker's travels sealed through the signaling server, so that it arrives where no
//!   path between the two exists
//! * It is what a peer says: [`Report::bounded`] before it is used; its texts are escaped like everything of a peer before a terminal
//! * [`Report::mapping`], [`Report::udp`], [`Report::relay`]: what follows from one report alone
//! * [`Candidate`]: one end of a candidate pair, as far as a person cares

use core::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

/// The most findings in a report that are used.
pub const MAX_FINDINGS: usize = 48;
/// The most addresses in a report that are used.
pub const MAX_ADDRESSES: usize = 32;
/// The longest text in a report, in characters.
pub const MAX_TEXT: usize = 200;

/// What one side found.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    /// The program's version.
    pub version: String,
    /// The addresses that connections are made from.
    pub addresses: Vec<IpAddr>,
    /// The addresses that are announced in their place, where that was configured.
    pub advertised: Vec<IpAddr>,
    /// Whether only relays may be used.
    pub relay_only: bool,
    /// What is wrong with the sockets here.
    pub faults: Vec<LocalFault>,
    /// How far the signaling server's clock is ahead of ours, in seconds.
    pub server_clock_ahead: Option<i64>,
    /// The signaling server, step by step.
    pub steps: Vec<Step>,
    /// Each STUN and TURN server over each of its transports and addresses.
    pub servers: Vec<Finding>,
    /// How long all that took, in milliseconds.
    pub took_ms: u64,
}

/// One step on the way to the signaling server, and what came of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Which.
    pub layer: Layer,
    /// What came of it.
    pub outcome: Outcome,
    /// How long it took, in milliseconds.
    pub took_ms: f64,
}

/// The steps to a server, each over the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layer {
    /// Its name.
    Dns,
    /// A connection.
    Tcp,
    /// Its certificate.
    Tls,
    /// `GET /health`.
    Http,
    /// The upgrade.
    WebSocket,
    /// Something newer.
    #[serde(other)]
    Unknown,
}

impl Layer {
    /// As people write it.
    pub fn name(self) -> &'static str {
        match self {
            Layer::Dns => "DNS",
            Layer::Tcp => "TCP",
            Layer::Tls => "TLS",
            Layer::Http => "HTTP",
            Layer::WebSocket => "WebSocket",
            Layer::Unknown => "other",
        }
    }
}

/// What keeps a side from making a socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "kebab-case")]
pub enum LocalFault {
    /// No address is left to make connections from.
    NoAddress {
        /// Why, as far as known.
        detail: String,
    },
    /// No port could be had.
    NoPort {
        /// What was tried.
        detail: String,
    },
    /// The range has fewer ports than one large transfer uses.
    FewPorts {
        /// Ports in the range.
        ports: u32,
    },
    /// The address to announce cannot be told.
    Advertise {
        /// Why.
        detail: String,
    },
    /// Something newer.
    #[serde(other)]
    Unknown,
}

/// What a server is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Service {
    /// Tells an address as seen from outside.
    Stun,
    /// Relays.
    Turn,
}

/// What carries the packets to a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// UDP.
    Udp,
    /// TCP.
    Tcp,
    /// TLS over TCP.
    Tls,
}

impl Transport {
    /// As people write it.
    pub fn name(self) -> &'static str {
        match self {
            Transport::Udp => "UDP",
            Transport::Tcp => "TCP",
            Transport::Tls => "TLS",
        }
    }
}

/// What came of asking one server at one address.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    /// The server's URL, as it was configured; no credential is in it.
    pub url: String,
    /// What it is for.
    pub service: Service,
    /// How it was asked.
    pub transport: Transport,
    /// Where it was asked, once the name was resolved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<SocketAddr>,
    /// Where it was asked from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local: Option<SocketAddr>,
    /// Our address as the server sees it (XOR-MAPPED-ADDRESS, RFC 8489 §14.2).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mapped: Option<SocketAddr>,
    /// The address that a TURN server gave us (XOR-RELAYED-ADDRESS, RFC 8656 §18.5).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relayed: Option<SocketAddr>,
    /// The round trip, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtt_ms: Option<f64>,
    /// It was not configured: asked besides, to tell a host that is away from a network that drops UDP.
    #[serde(default)]
    pub besides: bool,
    /// What came of it.
    pub outcome: Outcome,
}

/// What came of one question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "kebab-case")]
pub enum Outcome {
    /// As it should be.
    Ok,
    /// The URL cannot be used.
    BadUrl {
        /// Why.
        detail: String,
    },
    /// The name has no address.
    NoName {
        /// What the resolver said.
        detail: String,
    },
    /// Nothing came back.
    Silent,
    /// The host is there, and nothing listens.
    Refused,
    /// There is no way to the address.
    NoRoute {
        /// What the system said.
        detail: String,
    },
    /// TLS failed.
    Tls {
        /// What is wrong with the certificate, or that it is something else.
        fault: TlsFault,
        /// What the library said.
        detail: String,
    },
    /// The user name or the password is wrong (401).
    Unauthorized,
    /// The user name's time is over (401, and the time in it is past).
    Expired {
        /// Since when, in seconds.
        since: u64,
    },
    /// The server does not allow it (403).
    Forbidden,
    /// The user has as many relays as allowed (486).
    Quota,
    /// The server has no relay left (508).
    NoCapacity,
    /// Another error (RFC 8489 §14.8).
    Error {
        /// The number.
        code: u16,
        /// The server's words.
        reason: String,
    },
    /// Something answered, and it was no such server.
    Strange {
        /// What came.
        detail: String,
    },
    /// Something newer.
    #[serde(other)]
    Unknown,
}

/// What is wrong with a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TlsFault {
    /// Nobody we trust has signed it.
    Untrusted,
    /// Its time is over.
    Expired,
    /// Its time has not begun.
    NotYetValid,
    /// It is for another name.
    WrongName,
    /// Something else.
    #[serde(other)]
    Other,
}

/// How a network gives addresses to packets that leave it (RFC 4787 §4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mapping {
    /// Packets keep their address: there is no translator.
    None,
    /// The same for every destination.
    Independent,
    /// Another for each destination ("symmetric").
    Dependent,
    /// Not known: it takes answers from two addresses.
    Unknown,
}

/// Whether UDP gets out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Udp {
    /// A server answered over UDP.
    Works,
    /// No server answered over UDP, and the host of one does over TCP.
    Blocked,
    /// No server answered over UDP; nothing is known of their hosts.
    Silent,
    /// No server was asked over UDP.
    Unknown,
}

impl Outcome {
    /// Whether whatever listens there has answered, if only with a refusal.
    pub fn answered(&self) -> bool {
        !matches!(
            self,
            Outcome::BadUrl { .. }
                | Outcome::NoName { .. }
                | Outcome::Silent
                | Outcome::Refused
                | Outcome::NoRoute { .. }
                | Outcome::Unknown
        )
    }
}

impl Outcome {
    fn shorten(&mut self) {
        match self {
            Outcome::BadUrl { detail: text }
            | Outcome::NoName { detail: text }
            | Outcome::NoRoute { detail: text }
            | Outcome::Tls { detail: text, .. }
            | Outcome::Error { reason: text, .. }
            | Outcome::Strange { detail: text } => shorten(text),
            _ => {}
        }
    }
}

impl Finding {
    /// Whether the host has shown that it is there.
    fn host_is_there(&self) -> bool {
        self.outcome.answered() || self.outcome == Outcome::Refused
    }
}

impl Report {
    /// The report as far as it may be used: a peer could send any number of anything.
    #[must_use]
    pub fn bounded(mut self) -> Self {
        self.servers.truncate(MAX_FINDINGS);
        self.addresses.truncate(MAX_ADDRESSES);
        self.advertised.truncate(MAX_ADDRESSES);
        self.faults.truncate(MAX_ADDRESSES);
        self.steps.truncate(MAX_ADDRESSES);
        shorten(&mut self.version);
        for step in &mut self.steps {
            step.outcome.shorten();
            step.took_ms = if step.took_ms.is_finite() { step.took_ms.max(0.0) } else { 0.0 };
        }
        for fault in &mut self.faults {
            match fault {
                LocalFault::NoAddress { detail } | LocalFault::NoPort { detail } | LocalFault::Advertise { detail } => shorten(detail),
                LocalFault::FewPorts { .. } | LocalFault::Unknown => {}
            }
        }
        for finding in &mut self.servers {
            shorten(&mut finding.url);
            finding.rtt_ms = finding.rtt_ms.filter(|rtt| rtt.is_finite() && *rtt >= 0.0);
            finding.outcome.shorten();
        }
        self
    }

    /// What was configured, without what was asked besides.
    pub fn configured(&self) -> impl Iterator<Item = &Finding> {
        self.servers.iter().filter(|finding| !finding.besides)
    }

    /// The relay that works over the best transport, and of those the nearest.
    pub fn relay(&self) -> Option<&Finding> {
        let working = self.configured().filter(|finding| finding.service == Service::Turn && finding.outcome == Outcome::Ok);
        working.min_by(|a, b| a.transport.cmp(&b.transport).then(a.rtt_ms.unwrap_or(f64::MAX).total_cmp(&b.rtt_ms.unwrap_or(f64::MAX))))
    }

    /// Whether any TURN server was configured.
    pub fn has_turn(&self) -> bool {
        self.configured().any(|finding| finding.service == Service::Turn)
    }

    /// Whether UDP gets out, as far as servers tell.
    pub fn udp(&self) -> Udp {
        let asked: Vec<&Finding> =
            self.servers.iter().filter(|finding| finding.transport == Transport::Udp && finding.address.is_some()).collect();
        if asked.iter().any(|finding| finding.host_is_there()) {
            return Udp::Works;
        }
        if !asked.iter().any(|finding| finding.outcome == Outcome::Silent) {
            return Udp::Unknown;
        }
        let there = |udp: &&Finding| {
            let host = udp.address.map(|address| address.ip());
            let over_tcp = |other: &Finding| other.transport != Transport::Udp && other.host_is_there();
            self.servers.iter().any(|other| over_tcp(other) && other.address.map(|address| address.ip()) == host)
        };
        if asked.iter().any(there) { Udp::Blocked } else { Udp::Silent }
    }

    /// How the network maps addresses, from the answers of at least two server addresses to one socket.
    pub fn mapping(&self) -> Mapping {
        let seen = |finding: &Finding| Some((finding.local?, finding.address?, finding.mapped?));
        let asked = self.servers.iter().filter(|finding| finding.transport == Transport::Udp && finding.service == Service::Stun);
        let answers: Vec<_> = asked.filter_map(seen).collect();
        let ours = |mapped: &SocketAddr| self.addresses.contains(&mapped.ip());
        let translated: Vec<_> = answers.iter().filter(|(_, _, mapped)| !ours(mapped)).collect();
        if translated.is_empty() {
            return if answers.is_empty() { Mapping::Unknown } else { Mapping::None };
        }
        let mut mapping = Mapping::Unknown;
        for (index, (local, address, mapped)) in translated.iter().enumerate() {
            for (other_local, other_address, other_mapped) in &translated[..index] {
                if local != other_local || address == other_address {
                    continue;
                }
                if mapped != other_mapped {
                    return Mapping::Dependent;
                }
                mapping = Mapping::Independent;
            }
        }
        mapping
    }

    /// Our addresses as servers see them, each once.
    pub fn public(&self) -> Vec<IpAddr> {
        let mut seen: Vec<IpAddr> = Vec::new();
        for ip in self.servers.iter().filter_map(|finding| finding.mapped).map(|mapped| mapped.ip()) {
            if !seen.contains(&ip) {
                seen.push(ip);
            }
        }
        seen
    }
}

fn shorten(text: &mut String) {
    if let Some((at, _)) = text.char_indices().nth(MAX_TEXT) {
        text.truncate(at);
        text.push('…');
    }
}

/// Where an address of a candidate comes from (RFC 8445 §4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CandidateKind {
    /// An interface.
    Host,
    /// A STUN server saw it.
    ServerReflexive,
    /// The other side saw it.
    PeerReflexive,
    /// A TURN server gave it.
    Relayed,
}

/// One end of a candidate pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Candidate {
    /// Where it comes from.
    pub kind: CandidateKind,
    /// Its address.
    pub address: SocketAddr,
    /// Whether it is reached over TCP instead of UDP.
    #[serde(default)]
    pub tcp: bool,
}

impl Candidate {
    /// From a candidate attribute (RFC 8839 §5.1); `None` for what is none or has a name in the place of its address.
    pub fn parse(line: &str) -> Option<Candidate> {
        let line = line.trim().trim_start_matches("a=").strip_prefix("candidate:")?;
        let mut words = line.split_ascii_whitespace().skip(2);
        let tcp = words.next()?.eq_ignore_ascii_case("tcp");
        let ip: IpAddr = words.nth(1)?.parse().ok()?;
        let port: u16 = words.next()?.parse().ok()?;
        let kind = match (words.next()?, words.next()?) {
            ("typ", "host") => CandidateKind::Host,
            ("typ", "srflx") => CandidateKind::ServerReflexive,
            ("typ", "prflx") => CandidateKind::PeerReflexive,
            ("typ", "relay") => CandidateKind::Relayed,
            _ => return None,
        };
        Some(Candidate { kind, address: SocketAddr::new(ip, port), tcp })
    }
}

/// When the time in the user name of a TURN REST credential is over (`EXPIRY:NAME`, Unix seconds); `None` for a name without one.
pub fn expiry_of(username: &str) -> Option<u64> {
    let digits = username.split(':').next()?;
    // Anything shorter is a name that happens to be a number.
    (digits.len() >= 9 && digits.bytes().all(|byte| byte.is_ascii_digit())).then(|| digits.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn asked(transport: Transport, server: &str, outcome: Outcome) -> Finding {
        Finding {
            url: format!("stun:{server}"),
            service: Service::Stun,
            transport,
            address: Some(server.parse().unwrap()),
            local: None,
            mapped: None,
            relayed: None,
            rtt_ms: None,
            besides: false,
            outcome,
        }
    }

    fn mapped(server: &str, local: &str, mapped: &str) -> Finding {
        let (local, mapped) = (Some(local.parse().unwrap()), Some(mapped.parse().unwrap()));
        Finding { local, mapped, ..asked(Transport::Udp, server, Outcome::Ok) }
    }

    fn report(servers: Vec<Finding>) -> Report {
        Report { addresses: vec!["10.0.0.2".parse().unwrap()], servers, ..Report::default() }
    }

    #[test]
    fn a_mapping_takes_two_addresses_and_one_socket() {
        const HERE: &str = "10.0.0.2:5000";
        let first = mapped("203.0.113.1:3478", HERE, "198.51.100.7:5000");
        let same = mapped("203.0.113.2:3478", HERE, "198.51.100.7:5000");
        let other = mapped("203.0.113.1:3479", HERE, "198.51.100.7:41000");
        let elsewhere = mapped("203.0.113.2:3478", "10.0.0.2:6000", "198.51.100.7:6000");
        let untouched = mapped("203.0.113.1:3478", HERE, HERE);
        for (servers, mapping) in [
            (vec![], Mapping::Unknown),
            (vec![untouched.clone()], Mapping::None),
            (vec![first.clone()], Mapping::Unknown),
            (vec![first.clone(), first.clone()], Mapping::Unknown),
            (vec![first.clone(), elsewhere], Mapping::Unknown),
            (vec![first.clone(), same.clone()], Mapping::Independent),
            (vec![first.clone(), untouched], Mapping::Unknown),
            (vec![first, same, other], Mapping::Dependent),
        ] {
            assert_eq!(report(servers.clone()).mapping(), mapping, "{servers:?}");
        }
    }

    #[test]
    fn udp_is_blocked_where_the_host_is_there_and_only_udp_is_silent() {
        let udp = |outcome| asked(Transport::Udp, "203.0.113.1:3478", outcome);
        let tcp = |server, outcome| asked(Transport::Tcp, server, outcome);
        for (servers, expected) in [
            (vec![], Udp::Unknown),
            (vec![udp(Outcome::Ok)], Udp::Works),
            (vec![udp(Outcome::Refused)], Udp::Works),
            (vec![udp(Outcome::Unauthorized), udp(Outcome::Silent)], Udp::Works),
            (vec![udp(Outcome::Silent)], Udp::Silent),
            (vec![udp(Outcome::Silent), tcp("203.0.113.1:443", Outcome::Ok)], Udp::Blocked),
            (vec![udp(Outcome::Silent), tcp("203.0.113.1:443", Outcome::Refused)], Udp::Blocked),
            (vec![udp(Outcome::Silent), tcp("203.0.113.9:443", Outcome::Ok)], Udp::Silent),
            (vec![udp(Outcome::Silent), tcp("203.0.113.1:443", Outcome::Silent)], Udp::Silent),
            (vec![Finding { address: None, ..udp(Outcome::NoName { detail: String::new() }) }], Udp::Unknown),
        ] {
            assert_eq!(report(servers.clone()).udp(), expected, "{servers:?}");
        }
    }

    #[test]
    fn the_best_relay_is_the_one_over_udp_and_then_the_nearest() {
        let turn =
            |transport, rtt, outcome| Finding { service: Service::Turn, rtt_ms: Some(rtt), ..asked(transport, "203.0.113.1:443", outcome) };
        let report = report(vec![
            turn(Transport::Tls, 1.0, Outcome::Ok),
            turn(Transport::Tcp, 9.0, Outcome::Ok),
            turn(Transport::Tcp, 5.0, Outcome::Ok),
            turn(Transport::Udp, 1.0, Outcome::Quota),
        ]);
        assert_eq!(report.relay().map(|relay| (relay.transport, relay.rtt_ms)), Some((Transport::Tcp, Some(5.0))));
        assert!(report.has_turn());
    }

    #[test]
    fn a_newer_report_is_read_as_far_as_it_is_understood() {
        let json = r#"{"version": "9", "new": 1, "faults": [{"is": "gremlins", "x": 1}], "servers": [{"url": "stun:a", "service": "stun",
            "transport": "udp", "outcome": {"is": "haunted", "by": "x"}}]}"#;
        let report: Report = serde_json::from_str(json).unwrap();
        assert_eq!((report.servers[0].outcome.clone(), report.faults[0].clone()), (Outcome::Unknown, LocalFault::Unknown));
        assert!(!report.servers[0].outcome.answered());
    }

    #[test]
    fn a_report_without_end_ends() {
        let endless = Finding {
            url: "é".repeat(5000),
            rtt_ms: Some(-1.0),
            ..asked(Transport::Udp, "203.0.113.1:3478", Outcome::Strange { detail: "x".repeat(5000) })
        };
        let bounded = report(vec![endless; 500]).bounded();
        assert_eq!((bounded.servers.len(), bounded.servers[0].url.chars().count()), (MAX_FINDINGS, MAX_TEXT + 1));
        assert_eq!(bounded.servers[0].rtt_ms, None);
        // As JSON, sealed and in base64 it fits a message of the signaling protocol.
        assert!(serde_json::to_string(&bounded).unwrap().len() < 40_000);
    }

    #[test]
    fn candidates_are_read_from_their_attribute() {
        let parse = Candidate::parse;
        let host = parse("candidate:1 1 udp 2130706431 10.0.0.2 5000 typ host").unwrap();
        assert_eq!((host.kind, host.address, host.tcp), (CandidateKind::Host, "10.0.0.2:5000".parse().unwrap(), false));
        let relay = parse("a=candidate:7 1 UDP 1 2001:db8::1 9 typ relay raddr 0.0.0.0 rport 0").unwrap();
        assert_eq!((relay.kind, relay.address), (CandidateKind::Relayed, "[2001:db8::1]:9".parse().unwrap()));
        assert!(parse("candidate:1 1 tcp 1 10.0.0.2 9 typ host tcptype active").unwrap().tcp);
        for bad in ["", "candidate:", "candidate:1 1 udp 1 x.local 9 typ host", "candidate:1 1 udp 1 10.0.0.2 99999 typ host"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_rest_user_name_begins_with_its_end() {
        assert_eq!(expiry_of("1795166400:client-1"), Some(1_795_166_400));
        assert_eq!(expiry_of("1795166400"), Some(1_795_166_400));
        for none in ["", "user", "4711:x", "-1795166400:x", "99999999999999999999999:x"] {
            assert_eq!(expiry_of(none), None, "{none}");
        }
    }

    proptest! {
        #[test]
        fn no_line_is_too_odd(line in "\\PC{0,120}") {
            let _ = Candidate::parse(&line);
            let _ = expiry_of(&line);
        }
    }
}
