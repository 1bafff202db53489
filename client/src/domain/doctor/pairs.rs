//! Each pair of candidates in a sentence: what it is, whether it was used, why not as far as known.
//!
//! The transport tells which pair it chose and nothing of the others, so what is said of those follows from what was measured besides.

use core::net::IpAddr;

use serde::Serialize;
use shared::domain::{
    probe::{Candidate, CandidateKind, Mapping, Report},
    route::RouteKind,
};

use super::{Examination, Side, Trial, rules::blocked_side};

/// The most pairs that are told.
const MAX_PAIRS: usize = 24;

/// What became of a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// It carries the connection.
    InUse,
    /// Another was chosen.
    NotChosen,
    /// Nothing came back.
    Failed,
}

/// A pair of candidates.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Pair {
    /// Ours.
    pub local: Candidate,
    /// The worker's.
    pub remote: Candidate,
    /// What became of it.
    pub state: State,
    /// The whole in a sentence.
    pub says: String,
}

/// The pairs of the connection that was tried: the one in use first, then by what promises most.
pub fn pairs(seen: &Examination) -> Vec<Pair> {
    let Some(trial) = &seen.trial else { return Vec::new() };
    let mut pairs = Vec::new();
    for local in &trial.local {
        // Our own address as others see it is reached through the socket behind it: the pair is that of the host candidate.
        for remote in trial.remote.iter().filter(|remote| remote.address.is_ipv4() == local.address.is_ipv4() && remote.tcp == local.tcp) {
            let state = state_of(trial, local, remote);
            let says = sentence(seen, local, remote, state);
            pairs.push(Pair { local: *local, remote: *remote, state, says });
        }
    }
    // What is in use may be an address that was never announced, or not yet.
    if !pairs.iter().any(|pair| pair.state == State::InUse)
        && let Some((local, remote)) = trial.route.as_ref().and_then(|route| Some((end_of(&route.local)?, end_of(&route.remote)?)))
    {
        pairs.push(Pair { local, remote, state: State::InUse, says: sentence(seen, &local, &remote, State::InUse) });
    }
    pairs.sort_by_key(|pair| (pair.state != State::InUse, rank(&pair.local) + rank(&pair.remote)));
    pairs.truncate(MAX_PAIRS);
    pairs
}

/// One end of a route, such as `host 10.0.0.2:5000` or `relay/tcp 203.0.113.1:50000`.
fn end_of(shown: &str) -> Option<Candidate> {
    let (kind, address) = shown.split_once(' ')?;
    let kind = match kind.split('/').next()? {
        "host" => CandidateKind::Host,
        "srflx" => CandidateKind::ServerReflexive,
        "prflx" => CandidateKind::PeerReflexive,
        "relay" => CandidateKind::Relayed,
        _ => return None,
    };
    Some(Candidate { kind, address: address.parse().ok()?, tcp: false })
}

fn rank(candidate: &Candidate) -> u8 {
    match candidate.kind {
        CandidateKind::Host => 0,
        CandidateKind::PeerReflexive | CandidateKind::ServerReflexive => 1,
        CandidateKind::Relayed => 3,
    }
}

fn state_of(trial: &Trial, local: &Candidate, remote: &Candidate) -> State {
    let Some(route) = &trial.route else { return State::Failed };
    let is = |shown: &str, candidate: &Candidate| shown.rsplit(' ').next() == Some(candidate.address.to_string().as_str());
    if is(&route.local, local) && is(&route.remote, remote) { State::InUse } else { State::NotChosen }
}

fn sentence(seen: &Examination, local: &Candidate, remote: &Candidate, state: State) -> String {
    let what = format!("{} → {}", end(local), end(remote));
    match state {
        State::InUse => format!("{what}: in use"),
        State::NotChosen => format!("{what}: not chosen, {}", not_chosen(seen, local, remote)),
        State::Failed => format!("{what}: {}", failed(seen, local, remote)),
    }
}

fn end(candidate: &Candidate) -> String {
    let kind = match candidate.kind {
        CandidateKind::Host => "host",
        CandidateKind::ServerReflexive => "public",
        CandidateKind::PeerReflexive => "seen",
        CandidateKind::Relayed => "relay",
    };
    format!("{kind} {}", candidate.address)
}

fn not_chosen(seen: &Examination, local: &Candidate, remote: &Candidate) -> &'static str {
    let relays = [local, remote].into_iter().any(|candidate| candidate.kind == CandidateKind::Relayed);
    match seen.route().map(|route| route.kind) {
        Some(RouteKind::Relayed) if !relays => "it carried nothing before the relay did",
        Some(RouteKind::Direct | RouteKind::DirectThroughNat) if relays => "the direct one is better",
        _ => "another was there first",
    }
}

fn failed(seen: &Examination, local: &Candidate, remote: &Candidate) -> String {
    if let Some(blocked) = blocked_side(seen) {
        let at_client = matches!(blocked, Side::Client | Side::Both) && local.kind != CandidateKind::Relayed;
        let at_worker = matches!(blocked, Side::Worker | Side::Both) && remote.kind != CandidateKind::Relayed;
        match (at_client, at_worker) {
            (true, true) => return "no answer, both networks drop UDP".into(),
            (true, false) => return "no answer, your network drops UDP".into(),
            (false, true) => return "no answer, the worker's network drops UDP".into(),
            (false, false) => {}
        }
    }
    if remote.kind == CandidateKind::Host && is_private(remote.address.ip()) && different_networks(seen) {
        return "no answer, a private address of another network".into();
    }
    if [local, remote].into_iter().any(|candidate| candidate.kind == CandidateKind::Relayed) {
        return "no answer through the relay; its server may not be allowed to send there".into();
    }
    let mapping = |report: &Option<Report>| report.as_ref().map_or(Mapping::Unknown, Report::mapping);
    match (mapping(&seen.client), mapping(&seen.worker)) {
        (Mapping::Dependent, Mapping::Dependent) => "no answer, both networks map ports anew for each destination".into(),
        (Mapping::Dependent, _) => "no answer, your network maps ports anew for each destination".into(),
        (_, Mapping::Dependent) => "no answer, the worker's network maps ports anew for each destination".into(),
        _ => "no answer".into(),
    }
}

fn different_networks(seen: &Examination) -> bool {
    let Some((client, worker)) = seen.reports() else { return false };
    let (ours, theirs) = (client.public(), worker.public());
    !ours.is_empty() && !theirs.is_empty() && ours.iter().all(|ip| !theirs.contains(ip))
}

/// An address that means something in one network only (RFC 1918, RFC 6598, RFC 4193, link-local).
fn is_private(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            let shared = ip.octets()[0] == 100 && ip.octets()[1] & 0xc0 == 64;
            ip.is_private() || ip.is_link_local() || shared
        }
        IpAddr::V6(ip) => ip.is_unique_local() || ip.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::domain::{
        error::{Code, Failure},
        probe::{Finding, Outcome, Service, Transport},
        route::Route,
    };

    fn candidate(kind: CandidateKind, address: &str) -> Candidate {
        Candidate { kind, address: address.parse().unwrap(), tcp: false }
    }

    fn behind(public: &str, outcome: Outcome) -> Report {
        let ok = outcome == Outcome::Ok;
        Report {
            servers: vec![
                Finding {
                    url: "stun:s".into(),
                    service: Service::Stun,
                    transport: Transport::Udp,
                    address: Some("203.0.113.1:3478".parse().unwrap()),
                    local: Some("10.0.0.2:1".parse().unwrap()),
                    mapped: ok.then(|| public.parse().unwrap()),
                    relayed: None,
                    rtt_ms: None,
                    besides: false,
                    outcome,
                },
                Finding {
                    url: "turn:s?transport=tcp".into(),
                    service: Service::Turn,
                    transport: Transport::Tcp,
                    address: Some("203.0.113.1:443".parse().unwrap()),
                    local: None,
                    mapped: Some(public.parse().unwrap()),
                    relayed: None,
                    rtt_ms: None,
                    besides: false,
                    outcome: Outcome::Unauthorized,
                },
            ],
            ..Report::default()
        }
    }

    fn tried(route: Option<Route>) -> Examination {
        let failure = route.is_none().then(|| Failure::new(Code::NoConnection, "no path"));
        let trial = Trial {
            route,
            failure,
            local: vec![
                candidate(CandidateKind::Relayed, "203.0.113.9:50000"),
                candidate(CandidateKind::Host, "10.0.0.2:5000"),
                candidate(CandidateKind::Host, "[2001:db8::2]:5000"),
            ],
            remote: vec![
                candidate(CandidateKind::Host, "192.168.1.7:6000"),
                candidate(CandidateKind::ServerReflexive, "198.51.100.7:6000"),
            ],
            took_ms: 1,
        };
        Examination { trial: Some(trial), ..Examination::default() }
    }

    #[test]
    fn the_pair_in_use_is_first_and_families_do_not_mix() {
        let route = Route {
            kind: RouteKind::DirectThroughNat,
            local: "host 10.0.0.2:5000".into(),
            remote: "srflx 198.51.100.7:6000".into(),
            rtt: 0.01,
        };
        let pairs = pairs(&tried(Some(route)));
        assert_eq!(pairs.len(), 4);
        assert_eq!((pairs[0].state, pairs[0].says.as_str()), (State::InUse, "host 10.0.0.2:5000 → public 198.51.100.7:6000: in use"));
        assert!(pairs[3].says.ends_with("not chosen, the direct one is better"), "{}", pairs[3].says);
    }

    #[test]
    fn a_pair_in_use_that_was_never_announced_is_told_all_the_same() {
        let route = Route {
            kind: RouteKind::Relayed,
            local: "relay/tcp 203.0.113.9:50001".into(),
            remote: "prflx [2001:db8::7]:6001".into(),
            rtt: 0.01,
        };
        let pairs = pairs(&tried(Some(route)));
        assert_eq!((pairs.len(), pairs[0].says.as_str()), (5, "relay 203.0.113.9:50001 → seen [2001:db8::7]:6001: in use"));
        assert!(pairs[4].says.ends_with("not chosen, another was there first"), "{}", pairs[4].says);
    }

    #[test]
    fn what_failed_is_said_with_its_reason() {
        let says = |client: Option<Report>, worker: Option<Report>| {
            let seen = Examination { client, worker, ..tried(None) };
            pairs(&seen).into_iter().map(|pair| pair.says).collect::<Vec<_>>()
        };
        let plain = says(Some(behind("198.51.100.1:1", Outcome::Ok)), Some(behind("198.51.100.7:1", Outcome::Ok)));
        assert!(plain[0].ends_with("192.168.1.7:6000: no answer, a private address of another network"), "{plain:?}");
        assert!(plain[1].ends_with("198.51.100.7:6000: no answer"), "{plain:?}");
        let blocked = says(Some(behind("198.51.100.1:1", Outcome::Ok)), Some(behind("198.51.100.7:1", Outcome::Silent)));
        assert!(blocked.iter().all(|says| says.ends_with("the worker's network drops UDP")), "{blocked:?}");
        let unknown = says(None, None);
        assert!(unknown[3].contains("through the relay"), "{unknown:?}");
    }
}
