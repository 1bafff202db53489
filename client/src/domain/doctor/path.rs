//! Why a connection takes the way it takes.

use shared::domain::{
    probe::{Mapping, Report, Udp},
    route::{Route, RouteKind},
};

/// A route in a few words: `direct, through NAT, round trip 12 ms`, `relayed over TCP, round trip 41 ms`.
pub fn words(route: &Route) -> String {
    // A local candidate of a relay says how the relay is reached, such as `relay/tcp 203.0.113.1:50000`.
    let over = route.local.split(' ').next().and_then(|kind| kind.strip_prefix("relay/"));
    let over = over.map(|transport| format!(" over {}", transport.to_uppercase())).unwrap_or_default();
    let round_trip = if route.rtt > 0.0 { format!(", round trip {}", milliseconds(route.rtt * 1000.0)) } else { String::new() };
    format!("{}{over}{round_trip}", route.kind)
}

/// A short time: `0.4 ms`, `41 ms`.
pub fn milliseconds(ms: f64) -> String {
    if ms < 1.0 { format!("{ms:.1} ms") } else { format!("{ms:.0} ms") }
}

/// What keeps these two from a direct path, in a clause.
pub fn why_relayed(client: &Report, worker: &Report) -> String {
    if client.relay_only || worker.relay_only {
        return match (client.relay_only, worker.relay_only) {
            (true, true) => "both sides use relays only (--relay-only)".into(),
            (true, false) => "this side uses relays only (--relay-only)".into(),
            _ => "the worker uses relays only (--relay-only)".into(),
        };
    }
    let blocked = |own: &Report, other: &Report| own.udp() == Udp::Blocked || (own.udp() == Udp::Silent && other.udp() == Udp::Works);
    match (blocked(client, worker), blocked(worker, client)) {
        (true, true) => return "both networks drop UDP".into(),
        (true, false) => return "your network drops UDP".into(),
        (false, true) => return "the worker's network drops UDP".into(),
        (false, false) => {}
    }
    match (client.mapping(), worker.mapping()) {
        (Mapping::Dependent, Mapping::Dependent) => "both networks map ports anew for each destination (symmetric NAT)".into(),
        (Mapping::Dependent, _) => "your network maps ports anew for each destination (symmetric NAT)".into(),
        (_, Mapping::Dependent) => "the worker's network maps ports anew for each destination (symmetric NAT)".into(),
        (Mapping::Unknown, Mapping::Unknown) => {
            "no direct packet got through; with two STUN servers it could be said how the networks map ports".into()
        }
        _ => "a firewall on one of the sides lets nothing in, not even where it was asked for".into(),
    }
}

/// Why the route in use is not a better one, in a clause; `None` where it is as good as it can be.
pub fn why_not_better(route: &Route, client: Option<&Report>, worker: Option<&Report>) -> Option<String> {
    match (route.kind, client, worker) {
        (RouteKind::Relayed, Some(client), Some(worker)) => Some(why_relayed(client, worker)),
        (RouteKind::Relayed, ..) => Some("no direct path was found; webrtc-client doctor looks for the cause".into()),
        (RouteKind::Direct | RouteKind::DirectThroughNat, ..) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::domain::probe::{Finding, Outcome, Service, Transport};

    fn seen_as(ports: &[u16]) -> Report {
        let servers = ports.iter().enumerate().map(|(index, port)| Finding {
            url: "stun:s".into(),
            service: Service::Stun,
            transport: Transport::Udp,
            address: Some(([203, 0, 113, 1 + index as u8], 3478).into()),
            local: Some(([10, 0, 0, 2], 5000).into()),
            mapped: Some(([198, 51, 100, 7], *port).into()),
            relayed: None,
            rtt_ms: Some(1.0),
            besides: false,
            outcome: Outcome::Ok,
        });
        Report { addresses: vec![[10, 0, 0, 2].into()], servers: servers.collect(), ..Report::default() }
    }

    #[test]
    fn the_cause_of_a_relay_is_named() {
        let (symmetric, plain, silent) = (seen_as(&[1, 2]), seen_as(&[1, 1]), {
            let mut report = seen_as(&[1]);
            report.servers[0].outcome = Outcome::Silent;
            report.servers[0].mapped = None;
            report
        });
        let only = Report { relay_only: true, ..plain.clone() };
        for (client, worker, says) in [
            (&symmetric, &symmetric, "both networks map ports anew"),
            (&symmetric, &plain, "your network maps ports anew"),
            (&plain, &symmetric, "the worker's network maps"),
            (&plain, &plain, "a firewall"),
            (&silent, &plain, "your network drops UDP"),
            (&plain, &silent, "the worker's network drops UDP"),
            (&only, &plain, "this side uses relays only"),
            (&Report::default(), &Report::default(), "two STUN servers"),
        ] {
            let why = why_relayed(client, worker);
            assert!(why.contains(says), "{why}");
        }
        let route = Route { kind: RouteKind::Direct, local: String::new(), remote: String::new(), rtt: 0.0412 };
        assert_eq!(why_not_better(&route, Some(&plain), Some(&plain)), None);
        assert_eq!(words(&route), "direct, round trip 41 ms");
        assert_eq!(words(&Route { rtt: 0.0004, ..route.clone() }), "direct, round trip 0.4 ms");
        let relayed = Route { kind: RouteKind::Relayed, local: "relay/tcp 203.0.113.1:5".into(), ..route };
        assert_eq!(words(&relayed), "relayed over TCP, round trip 41 ms");
        assert!(why_not_better(&relayed, None, None).unwrap().contains("doctor"));
    }
}
