//! One broken set-up for each rule, and what it says.

use shared::domain::{
    error::{Code, Failure},
    probe::{Candidate, Finding, Layer, LocalFault, Outcome, Report, Service, Step, TlsFault, Transport},
    route::{Route, RouteKind},
};

use super::{
    super::{Examination, Level, Side, Trial},
    RULES, diagnose,
};

fn finding(service: Service, transport: Transport, server: &str, outcome: Outcome) -> Finding {
    let (scheme, query) = match (service, transport) {
        (Service::Stun, _) => ("stun", ""),
        (Service::Turn, Transport::Udp) => ("turn", ""),
        (Service::Turn, Transport::Tcp) => ("turn", "?transport=tcp"),
        (Service::Turn, Transport::Tls) => ("turns", ""),
    };
    Finding {
        url: format!("{scheme}:{server}{query}"),
        service,
        transport,
        address: Some(server.parse().unwrap()),
        local: Some("10.0.0.2:5000".parse().unwrap()),
        mapped: None,
        relayed: None,
        rtt_ms: (outcome == Outcome::Ok).then_some(41.0),
        besides: false,
        outcome,
    }
}

fn stun(server: &str, mapped: &str) -> Finding {
    Finding { mapped: Some(mapped.parse().unwrap()), ..finding(Service::Stun, Transport::Udp, server, Outcome::Ok) }
}

fn turn(transport: Transport, outcome: Outcome) -> Finding {
    finding(Service::Turn, transport, "203.0.113.1:443", outcome)
}

/// A side behind a plain NAT, with two STUN servers.
fn side(address: &str, public: &str) -> Report {
    let mapped = format!("{public}:5000");
    Report {
        version: "1".into(),
        addresses: vec![address.parse().unwrap()],
        server_clock_ahead: Some(0),
        servers: vec![stun("203.0.113.1:3478", &mapped), stun("203.0.113.2:3478", &mapped)],
        ..Report::default()
    }
}

fn route(kind: RouteKind) -> Route {
    Route { kind, local: "host 10.0.0.2:5000".into(), remote: "srflx 198.51.100.7:5000".into(), rtt: 0.012 }
}

/// Everything as it should be.
fn well() -> Examination {
    let steps = [Layer::Dns, Layer::Tcp, Layer::Http, Layer::WebSocket];
    Examination {
        server: Some("http://signaling.lab:8001".into()),
        steps: steps.map(|layer| Step { layer, outcome: Outcome::Ok, took_ms: 1.0 }).into(),
        invited: true,
        admitted: true,
        client: Some(side("10.0.0.2", "198.51.100.1")),
        worker: Some(side("10.0.0.2", "198.51.100.7")),
        trial: Some(Trial { route: Some(route(RouteKind::DirectThroughNat)), ..Trial::default() }),
        ..Examination::default()
    }
}

/// As [`well`], but no connection was made.
fn no_path() -> Examination {
    let trial = Trial { failure: Some(Failure::new(Code::NoConnection, "no path")), ..Trial::default() };
    Examination { trial: Some(trial), ..well() }
}

fn relayed() -> Examination {
    Examination { trial: Some(Trial { route: Some(route(RouteKind::Relayed)), ..Trial::default() }), ..well() }
}

fn stopped_at(layer: Layer, outcome: Outcome) -> Examination {
    let steps = vec![Step { layer, outcome, took_ms: 1.0 }];
    let refused = Some(Failure::new(Code::NoConnection, "the server cannot be reached"));
    let server = Some("http://signaling.lab:8001".into());
    Examination { server, steps, refused, invited: true, client: Some(Report::default()), ..Examination::default() }
}

fn client(seen: Examination, change: impl FnOnce(&mut Report)) -> Examination {
    let mut seen = seen;
    change(seen.client.as_mut().unwrap());
    seen
}

fn worker(seen: Examination, change: impl FnOnce(&mut Report)) -> Examination {
    let mut seen = seen;
    change(seen.worker.as_mut().unwrap());
    seen
}

fn both(seen: Examination, change: impl Fn(&mut Report)) -> Examination {
    worker(client(seen, &change), &change)
}

fn symmetric(report: &mut Report) {
    report.servers[1].mapped.as_mut().unwrap().set_port(40_000);
}

fn silent_udp(report: &mut Report) {
    for finding in &mut report.servers {
        if finding.transport == Transport::Udp {
            (finding.outcome, finding.mapped) = (Outcome::Silent, None);
        }
    }
}

fn drops_udp(report: &mut Report) {
    silent_udp(report);
    report.servers.push(Finding { mapped: None, ..turn(Transport::Tcp, Outcome::Ok) });
}

/// What is wrong, which cause must come first, whose it is, and some of its words.
fn cases() -> Vec<(Examination, &'static str, Side, &'static str)> {
    let refused = |code| Examination { refused: Some(Failure::new(code, "no")), admitted: false, trial: None, worker: None, ..well() };
    let unanswered = |code| Examination { no_report: Some(Failure::new(code, "no")), trial: None, worker: None, ..well() };
    let detail = String::new;
    let tls = |fault| Outcome::Tls { fault, detail: "x".into() };
    let add = |finding: Finding| move |report: &mut Report| report.servers.push(finding.clone());
    vec![
        (
            Examination { unusable: Some(Failure::new(Code::InvalidRequest, "ICE_SERVERS: x")), ..Examination::default() },
            "settings",
            Side::Client,
            "ICE_SERVERS: x.",
        ),
        (stopped_at(Layer::Dns, Outcome::NoName { detail: detail() }), "server-name", Side::Client, "has no address"),
        (stopped_at(Layer::Tcp, Outcome::Refused), "server-unreachable", Side::Between, "Nothing listens"),
        (stopped_at(Layer::Tcp, Outcome::Silent), "server-unreachable", Side::Between, "does not answer"),
        (stopped_at(Layer::Tls, tls(TlsFault::Expired)), "server-certificate", Side::Between, "has expired"),
        (stopped_at(Layer::Http, Outcome::Strange { detail: "HTTP 404".into() }), "server-strange", Side::Between, "(HTTP 404)"),
        (
            stopped_at(Layer::WebSocket, Outcome::Strange { detail: "HTTP 400".into() }),
            "server-strange",
            Side::Between,
            "WebSockets do not get through",
        ),
        (refused(Code::RoomNotFound), "room-gone", Side::Client, "expired"),
        (refused(Code::PeerIdTaken), "not-admitted", Side::Between, "does not take us in: no."),
        (unanswered(Code::PeerNotFound), "worker-gone", Side::Worker, "not in it"),
        (unanswered(Code::NotAuthentic), "wrong-invite", Side::Client, "secret"),
        (unanswered(Code::PeerBusy), "worker-refuses", Side::Worker, "no."),
        (
            worker(no_path(), |report| report.faults.push(LocalFault::NoAddress { detail: "eth9".into() })),
            "no-address",
            Side::Worker,
            "eth9",
        ),
        (
            client(no_path(), |report| report.faults.push(LocalFault::NoPort { detail: "50000-50000".into() })),
            "no-port",
            Side::Client,
            "50000-50000",
        ),
        (
            worker(no_path(), |report| report.advertised.push("192.0.2.9".parse().unwrap())),
            "advertised-address",
            Side::Worker,
            "192.0.2.9, but servers see 198.51.100.7",
        ),
        (
            worker(no_path(), |report| report.faults.push(LocalFault::Advertise { detail: "no such name".into() })),
            "advertised-address",
            Side::Worker,
            "no such name",
        ),
        (client(no_path(), |report| report.relay_only = true), "relay-only-without-turn", Side::Client, "no TURN server is configured"),
        (client(well(), |report| report.server_clock_ahead = Some(600)), "clock", Side::Client, "Your clock is 10 min 00 s slow"),
        (worker(well(), |report| report.server_clock_ahead = Some(-600)), "clock", Side::Worker, "10 min 00 s fast"),
        (both(well(), |report| report.server_clock_ahead = Some(601)), "clock", Side::Between, "server's clock is 10 min 01 s ahead"),
        (
            both(well(), add(turn(Transport::Udp, Outcome::NoName { detail: detail() }))),
            "turn-name",
            Side::Both,
            "TURN server turn:203.0.113.1:443 has no address.",
        ),
        (both(relayed(), add(turn(Transport::Tls, tls(TlsFault::Untrusted)))), "turn-certificate", Side::Both, "signed by nobody"),
        (both(relayed(), add(turn(Transport::Tls, tls(TlsFault::WrongName)))), "turn-certificate", Side::Both, "another name"),
        (both(no_path(), add(turn(Transport::Udp, Outcome::Expired { since: 60 }))), "turn-expired", Side::Both, "expired 1 min 00 s ago"),
        (both(no_path(), add(turn(Transport::Udp, Outcome::Unauthorized))), "turn-credentials", Side::Both, "(401)"),
        (worker(no_path(), add(turn(Transport::Udp, Outcome::Quota))), "turn-quota", Side::Worker, "(486)"),
        (worker(no_path(), add(turn(Transport::Udp, Outcome::NoCapacity))), "turn-quota", Side::Worker, "(508)"),
        (worker(no_path(), add(turn(Transport::Udp, Outcome::Forbidden))), "turn-refuses", Side::Worker, "(403)"),
        (
            client(well(), add(turn(Transport::Tcp, Outcome::Refused))),
            "turn-unreachable",
            Side::Client,
            "Nothing listens at the TURN server",
        ),
        (
            both(well(), |report| report.servers[0].outcome = Outcome::NoName { detail: String::new() }),
            "stun-name",
            Side::Both,
            "has no address",
        ),
        (worker(relayed(), drops_udp), "udp-blocked", Side::Worker, "The worker's network drops UDP; TURN on TCP 443 works, 41 ms."),
        (client(relayed(), drops_udp), "udp-blocked", Side::Client, "Your network drops UDP; TURN on TCP 443 works, 41 ms."),
        (both(relayed(), drops_udp), "udp-blocked", Side::Both, "Both networks drop UDP"),
        (worker(no_path(), silent_udp), "udp-blocked", Side::Worker, "no TURN server is reached"),
        (both(well(), silent_udp), "stun-unreachable", Side::Both, "does not answer over UDP"),
        (
            client(no_path(), |report| report.addresses = vec!["2001:db8::2".parse().unwrap()]),
            "address-families",
            Side::Between,
            "only IPv6",
        ),
        (both(no_path(), symmetric), "symmetric-nat", Side::Both, "symmetric NAT"),
        (worker(no_path(), symmetric), "symmetric-nat", Side::Worker, "worker's network maps ports anew"),
        (both(no_path(), |report| report.servers.clear()), "no-stun", Side::Both, "different networks"),
        (no_path(), "no-path", Side::Between, "a firewall drops"),
        (worker(well(), |report| report.faults.push(LocalFault::FewPorts { ports: 3 })), "few-ports", Side::Worker, "has 3 ports"),
        (both(relayed(), symmetric), "relayed", Side::Between, "both networks map ports anew"),
        (unanswered(Code::NoConnection), "no-report", Side::Worker, "no report"),
    ]
}

#[test]
fn every_cause_is_found_first_in_its_own_set_up() {
    for (seen, cause, side, says) in cases() {
        let diagnosis = diagnose(&seen);
        let first = diagnosis.problems.first().unwrap_or_else(|| panic!("{cause}: nothing was found"));
        assert_eq!((first.cause, first.side), (cause, side), "{diagnosis:#?}");
        assert!(first.says.contains(says), "{cause}: {}", first.says);
        assert!(diagnosis.verdict.contains(&first.says), "{}", diagnosis.verdict);
        assert_eq!(diagnosis.healthy, first.level == Level::Limit);
    }
}

#[test]
fn every_rule_has_a_set_up() {
    let shown: Vec<&str> = cases().iter().map(|(_, cause, ..)| *cause).collect();
    for rule in RULES {
        assert!(shown.contains(&rule.cause), "{}", rule.cause);
    }
}

#[test]
fn where_all_is_well_nothing_is_found() {
    let diagnosis = diagnose(&well());
    assert!(diagnosis.healthy && diagnosis.problems.is_empty(), "{diagnosis:#?}");
    assert_eq!(diagnosis.verdict, "All is well: a connection works, direct, through NAT, round trip 12 ms.");
    let alone = Examination { worker: None, trial: None, invited: false, admitted: false, ..well() };
    assert!(diagnose(&alone).verdict.contains("without an invite"));
}

#[test]
fn a_server_that_only_lacks_ipv6_is_no_fault() {
    let mut sixth = finding(Service::Stun, Transport::Udp, "203.0.113.1:3478", Outcome::NoRoute { detail: "unreachable".into() });
    sixth.address = Some("[2001:db8::1]:3478".parse().unwrap());
    assert!(diagnose(&both(well(), |report| report.servers.push(sixth.clone()))).problems.is_empty());
}

#[test]
fn what_one_cause_explains_is_not_said_again() {
    let diagnosis = diagnose(&worker(relayed(), drops_udp));
    assert_eq!(diagnosis.problems.len(), 1, "{diagnosis:#?}");
    let diagnosis = diagnose(&both(no_path(), symmetric));
    assert_eq!(diagnosis.problems.len(), 1, "{diagnosis:#?}");
    let diagnosis = diagnose(&both(no_path(), |report| report.servers.truncate(1)));
    assert_eq!(diagnosis.problems[0].cause, "no-path", "{diagnosis:#?}");
    let diagnosis = diagnose(&both(no_path(), |report| {
        silent_udp(report);
        report.servers.truncate(1);
    }));
    assert_eq!(diagnosis.problems.iter().map(|problem| problem.cause).collect::<Vec<_>>(), ["stun-unreachable"], "{diagnosis:#?}");
    let diagnosis = diagnose(&client(no_path(), |report| {
        report.faults.push(LocalFault::NoAddress { detail: "eth9".into() });
        report.addresses.clear();
        report.servers[0].outcome = Outcome::NoRoute { detail: "no address of this family here".into() };
    }));
    assert_eq!(diagnosis.problems.len(), 1, "{diagnosis:#?}");
    let diagnosis = diagnose(&stopped_at(Layer::Tcp, Outcome::Refused));
    assert_eq!(diagnosis.problems.len(), 1, "{diagnosis:#?}");
}

#[test]
fn a_candidate_of_the_other_side_changes_no_verdict() {
    let mut seen = well();
    seen.trial.as_mut().unwrap().remote = vec![Candidate::parse("candidate:1 1 udp 1 10.0.0.9 5 typ host").unwrap()];
    assert!(diagnose(&seen).healthy);
}
