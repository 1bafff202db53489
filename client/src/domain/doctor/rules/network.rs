//! Addresses, clocks, firewalls, address translators.

use core::net::IpAddr;

use shared::domain::{
    probe::{LocalFault, Mapping, Outcome, Report, Service, Transport, Udp},
    route::RouteKind,
};

use super::{
    super::{Level, Side, path},
    Examination, Found,
    room::sentence,
};
use crate::domain::format;

/// A clock that is further off than this is wrong, in seconds: TURN credentials are valid for ten minutes.
const SKEW: i64 = 60;
/// Two clocks within this of each other agree, in seconds.
const AGREE: i64 = 20;

/// The first fault of this kind, and whose it is.
fn fault<'a, T>(seen: &'a Examination, take: impl Fn(&'a LocalFault) -> Option<T>) -> Option<(Side, T)> {
    seen.sides().find_map(|(side, report)| report.faults.iter().find_map(&take).map(|found| (side, found)))
}

pub(super) fn no_address(seen: &Examination) -> Option<Found> {
    let (side, detail) = fault(seen, |fault| match fault {
        LocalFault::NoAddress { detail } => Some(detail),
        _ => None,
    })?;
    Found::fault(
        side,
        format!("no network address is left {} to make connections from ({detail}).", side.place()),
        format!("Correct --interfaces or --bind {} ('ip address' lists what there is).", side.place()),
    )
}

pub(super) fn no_port(seen: &Examination) -> Option<Found> {
    let (side, detail) = fault(seen, |fault| match fault {
        LocalFault::NoPort { detail } => Some(detail),
        _ => None,
    })?;
    Found::fault(
        side,
        format!("no UDP port can be had {}: {}", side.place(), sentence(detail)),
        format!("Widen --udp-ports {}, or end the programs that hold its ports ('ss -uan' lists them).", side.place()),
    )
}

pub(super) fn few_ports(seen: &Examination) -> Option<Found> {
    let (side, ports) = fault(seen, |fault| match fault {
        LocalFault::FewPorts { ports } => Some(*ports),
        _ => None,
    })?;
    Found::limit(
        side,
        format!("the range of UDP ports {} has {}; a large transfer opens up to 33 on each address.", side.place(), ports_word(ports)),
        format!("Widen --udp-ports {}, such as 50000-50050, and the firewall's rule with it.", side.place()),
    )
}

fn ports_word(ports: u32) -> String {
    format::count(ports.into(), "port")
}

pub(super) fn advertised(seen: &Examination) -> Option<Found> {
    if let Some((side, detail)) = fault(seen, |fault| match fault {
        LocalFault::Advertise { detail } => Some(detail),
        _ => None,
    }) {
        return Found::fault(
            side,
            format!("the address to advertise {} cannot be used: {}", side.place(), sentence(detail)),
            "Correct WEBRTC_ADVERTISE_IP (--advertise-ip): the address at which others reach that machine, or a name that has it.",
        );
    }
    let (side, report) = seen.sides().find(|(_, report)| is_wrongly_advertised(report))?;
    let list = |ips: &[IpAddr]| ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let says = format!("{} advertised address is {}, but servers see {}.", side.whose(), list(&report.advertised), list(&report.public()));
    let remedy = "Correct WEBRTC_ADVERTISE_IP (--advertise-ip), or leave it out: STUN servers tell the right one.";
    Found::fault(side, says, remedy).map(|found| Found { level: if seen.direct() { Level::Limit } else { found.level }, ..found })
}

fn is_wrongly_advertised(report: &Report) -> bool {
    let public = report.public();
    let same_family = |ip: &&IpAddr| public.iter().any(|seen| seen.is_ipv4() == ip.is_ipv4());
    let mut comparable = report.advertised.iter().filter(same_family).peekable();
    comparable.peek().is_some() && comparable.all(|ip| !public.contains(ip) && !report.addresses.contains(ip))
}

pub(super) fn relay_only(seen: &Examination) -> Option<Found> {
    let (side, _) = seen.sides().find(|(_, report)| report.relay_only && !report.has_turn())?;
    Found::fault(
        side,
        format!("only relays may be used {} (--relay-only), and no TURN server is configured.", side.place()),
        "Name a TURN server in ICE_SERVERS, or leave out --relay-only.",
    )
}

pub(super) fn clock(seen: &Examination) -> Option<Found> {
    let ahead = |report: &Option<Report>| report.as_ref().and_then(|report| report.server_clock_ahead);
    let wrong = |skew: &i64| skew.abs() >= SKEW;
    let (client, worker) = (ahead(&seen.client), ahead(&seen.worker));
    let (side, skew) = match (client.filter(wrong), worker) {
        (Some(ours), Some(theirs)) if (ours - theirs).abs() <= AGREE => (Side::Between, ours),
        (Some(ours), Some(_)) => (Side::Client, ours),
        // Two clocks that differ, and no third to decide.
        (Some(ours), None) => (Side::Between, ours),
        (None, theirs) => (Side::Worker, theirs.filter(wrong)?),
    };
    let off = format::millis(skew.unsigned_abs().saturating_mul(1000));
    let says = match (side, skew > 0) {
        (Side::Client, true) => format!("your clock is {off} slow."),
        (Side::Client, false) => format!("your clock is {off} fast."),
        (Side::Worker, true) => format!("the worker's clock is {off} slow."),
        (Side::Worker, false) => format!("the worker's clock is {off} fast."),
        (_, true) => format!("the signaling server's clock is {off} ahead of yours."),
        (_, false) => format!("the signaling server's clock is {off} behind yours."),
    };
    Found::fault(
        side,
        says,
        "Set the clock that is wrong (timedatectl set-ntp true): tokens, TURN credentials and certificates are valid for a time.",
    )
}

/// On which sides UDP does not get out.
pub(in crate::domain::doctor) fn blocked_side(seen: &Examination) -> Option<Side> {
    if seen.direct() {
        return None;
    }
    let udp = |report: &Option<Report>| report.as_ref().map_or(Udp::Unknown, Report::udp);
    let (client, worker) = (udp(&seen.client), udp(&seen.worker));
    // A server that answers the other side is there: what keeps it from this one is on the way.
    let blocked = |own: Udp, other: Udp| own == Udp::Blocked || (own == Udp::Silent && other == Udp::Works && shares_a_server(seen));
    match (blocked(client, worker), blocked(worker, client)) {
        (true, true) => Some(Side::Both),
        (true, false) => Some(Side::Client),
        (false, true) => Some(Side::Worker),
        (false, false) => None,
    }
}

/// Whether both sides asked one server over UDP.
fn shares_a_server(seen: &Examination) -> bool {
    let Some((client, worker)) = seen.reports() else { return false };
    let asked = |report: &Report, address| {
        report.servers.iter().any(|finding| finding.transport == Transport::Udp && finding.address == Some(address))
    };
    client
        .servers
        .iter()
        .filter(|finding| finding.transport == Transport::Udp)
        .filter_map(|finding| finding.address)
        .any(|address| asked(worker, address))
}

pub(super) fn udp_blocked(seen: &Examination) -> Option<Found> {
    let side = blocked_side(seen)?;
    let whose = match side {
        Side::Client => "your network drops UDP",
        Side::Worker => "the worker's network drops UDP",
        Side::Both | Side::Between => "both networks drop UDP",
    };
    let report = if side == Side::Worker { seen.worker.as_ref() } else { seen.client.as_ref() };
    let relay = report.and_then(Report::relay);
    let both_reach = seen.sides().all(|(_, report)| report.relay().is_some());
    match relay {
        Some(relay) if seen.connected() || both_reach => {
            let rtt = relay.rtt_ms.map(|rtt| format!(", {}", path::milliseconds(rtt))).unwrap_or_default();
            let port = relay.address.map(|address| format!(" {}", address.port())).unwrap_or_default();
            let says = format!("{whose}; TURN on {}{port} works{rtt}.", relay.transport.name());
            if seen.connected() {
                return Found::limit(side, says, "Nothing must be done; a network that lets UDP through would be faster.");
            }
            Found::fault(side, format!("{says} No connection was made all the same."), "Run doctor again, and report it if it stays so.")
        }
        _ => Found::fault(
            side,
            format!("{whose}, and no TURN server is reached over TCP or TLS."),
            "Let UDP out, or set up a TURN server on TCP port 443 (just run-coturn) and name it in webrtc-server's --ice-servers.",
        ),
    }
}

pub(super) fn families(seen: &Examination) -> Option<Found> {
    let (client, worker) = seen.reports().filter(|_| seen.no_path() && !both_have_a_relay(seen))?;
    let has = |report: &Report, v4: bool| report.addresses.iter().any(|ip| ip.is_ipv4() == v4 && !ip.is_loopback());
    let only = |report: &Report, v4: bool| has(report, v4) && !has(report, !v4);
    let (v6, v4) = if only(client, false) && only(worker, true) {
        ("you have only IPv6", "the worker only IPv4")
    } else if only(client, true) && only(worker, false) {
        ("you have only IPv4", "the worker only IPv6")
    } else {
        return None;
    };
    Found::fault(
        Side::Between,
        format!("{v6} and {v4}, and no TURN server is between them."),
        "Give one side an address of the other's family, or set up a TURN server that has both (just run-coturn).",
    )
}

fn both_have_a_relay(seen: &Examination) -> bool {
    seen.client.as_ref().is_some_and(|report| report.relay().is_some())
        && seen.worker.as_ref().is_some_and(|report| report.relay().is_some())
}

pub(super) fn symmetric(seen: &Examination) -> Option<Found> {
    let (client, worker) = seen.reports().filter(|_| seen.no_path() && blocked_side(seen).is_none())?;
    let (says, side) = match (client.mapping(), worker.mapping()) {
        (Mapping::Dependent, Mapping::Dependent) => {
            ("both networks map ports anew for each destination (symmetric NAT), so neither side can be addressed", Side::Both)
        }
        (Mapping::Dependent, _) => (
            "your network maps ports anew for each destination (symmetric NAT), and the worker's lets in only what it has asked for",
            Side::Client,
        ),
        (_, Mapping::Dependent) => (
            "the worker's network maps ports anew for each destination (symmetric NAT), and yours lets in only what it has asked for",
            Side::Worker,
        ),
        _ => return None,
    };
    let turn = seen.sides().any(|(_, report)| report.has_turn());
    let lacks = if turn { "no TURN server works" } else { "there is no TURN server" };
    Found::fault(
        side,
        format!("{says}; and {lacks}."),
        "Set up a TURN server (just run-coturn) and name it in webrtc-server's --ice-servers; or open a UDP port range at one side \
         (--udp-ports and --advertise-ip).",
    )
}

pub(super) fn no_stun(seen: &Examination) -> Option<Found> {
    let (client, worker) = seen.reports().filter(|_| seen.no_path())?;
    let empty = |report: &Report| report.configured().next().is_none();
    if !(empty(client) && empty(worker)) {
        return None;
    }
    Found::fault(
        Side::Both,
        "the two sides are in different networks, and no STUN or TURN server is configured.",
        "Name a STUN server, and a TURN server for difficult networks, in webrtc-server's --ice-servers.",
    )
}

pub(super) fn no_path(seen: &Examination) -> Option<Found> {
    seen.trial.as_ref().filter(|_| seen.no_path())?;
    let broken =
        |report: &Report| !report.faults.is_empty() && report.faults.iter().any(|fault| !matches!(fault, LocalFault::FewPorts { .. }));
    let told = blocked_side(seen).is_some()
        || families(seen).is_some()
        || symmetric(seen).is_some()
        || no_stun(seen).is_some()
        || relay_only(seen).is_some()
        || seen.sides().any(|(_, report)| broken(report));
    if told {
        return None;
    }
    let says = match seen.reports() {
        Some((client, worker)) if relays_apart(client, worker) => "each side reaches a TURN server, and still no connection was made",
        _ => "no path between the two sides was found; a firewall drops what they send to each other",
    };
    Found::fault(
        Side::Between,
        format!("{says}."),
        "Set up a TURN server that both sides reach (just run-coturn), and allow it to relay to the other side's addresses.",
    )
}

fn relays_apart(client: &Report, worker: &Report) -> bool {
    client.relay().is_some() && worker.relay().is_some()
}

pub(super) fn relayed(seen: &Examination) -> Option<Found> {
    let route = seen.route().filter(|route| route.kind == RouteKind::Relayed)?;
    if blocked_side(seen).is_some() {
        return None;
    }
    let (client, worker) = (seen.client.as_ref()?, seen.worker.as_ref()?);
    let why = path::why_relayed(client, worker);
    let all_well = |report: &Report| {
        let mut turn = report.configured().filter(|finding| finding.service == Service::Turn);
        turn.any(|finding| finding.outcome == Outcome::Ok)
    };
    let remedy = match route.kind {
        _ if client.relay_only || worker.relay_only => "Nothing must be done: it was asked for (--relay-only).",
        _ if all_well(client) || all_well(worker) => {
            "Nothing must be done; for a direct path, open a UDP port range at one side (--udp-ports, --advertise-ip)."
        }
        _ => "",
    };
    Found::limit(Side::Between, format!("the way is relayed: {why}."), remedy)
}
