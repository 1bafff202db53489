//! The table of rules: one a cause, the weightiest first.
//!
//! * [`room`]: settings, signaling server, room, invite
//! * [`servers`]: STUN and TURN servers
//! * [`network`]: addresses, clocks, firewalls, address translators
//!
//! A rule sees everything and says at most one thing. It keeps silent where another rule's cause explains what it sees.

mod network;
mod room;
mod servers;
#[cfg(test)]
mod tests;

pub(super) use network::blocked_side;

use super::{Diagnosis, Examination, Level, Problem, Side, path};

/// One cause and how it is found.
struct Rule {
    cause: &'static str,
    find: fn(&Examination) -> Option<Found>,
}

/// What a rule says.
struct Found {
    level: Level,
    side: Side,
    says: String,
    remedy: String,
}

impl Found {
    fn fault(side: Side, says: impl Into<String>, remedy: impl Into<String>) -> Option<Found> {
        Some(Found { level: Level::Fault, side, says: says.into(), remedy: remedy.into() })
    }

    fn limit(side: Side, says: impl Into<String>, remedy: impl Into<String>) -> Option<Found> {
        Some(Found { level: Level::Limit, side, says: says.into(), remedy: remedy.into() })
    }
}

/// In the order of their weight, among those of one level.
const RULES: &[Rule] = &[
    Rule { cause: "settings", find: room::settings },
    Rule { cause: "server-name", find: room::server_name },
    Rule { cause: "server-unreachable", find: room::server_unreachable },
    Rule { cause: "server-certificate", find: room::server_certificate },
    Rule { cause: "server-strange", find: room::server_strange },
    Rule { cause: "room-gone", find: room::room_gone },
    Rule { cause: "not-admitted", find: room::not_admitted },
    Rule { cause: "worker-gone", find: room::worker_gone },
    Rule { cause: "wrong-invite", find: room::wrong_invite },
    Rule { cause: "worker-refuses", find: room::worker_refuses },
    Rule { cause: "no-address", find: network::no_address },
    Rule { cause: "no-port", find: network::no_port },
    Rule { cause: "advertised-address", find: network::advertised },
    Rule { cause: "relay-only-without-turn", find: network::relay_only },
    Rule { cause: "clock", find: network::clock },
    Rule { cause: "turn-name", find: servers::turn_name },
    Rule { cause: "turn-certificate", find: servers::turn_certificate },
    Rule { cause: "turn-expired", find: servers::turn_expired },
    Rule { cause: "turn-credentials", find: servers::turn_credentials },
    Rule { cause: "turn-quota", find: servers::turn_quota },
    Rule { cause: "turn-refuses", find: servers::turn_refuses },
    Rule { cause: "turn-unreachable", find: servers::turn_unreachable },
    Rule { cause: "stun-name", find: servers::stun_name },
    Rule { cause: "udp-blocked", find: network::udp_blocked },
    Rule { cause: "stun-unreachable", find: servers::stun_unreachable },
    Rule { cause: "address-families", find: network::families },
    Rule { cause: "symmetric-nat", find: network::symmetric },
    Rule { cause: "no-stun", find: network::no_stun },
    Rule { cause: "no-path", find: network::no_path },
    Rule { cause: "few-ports", find: network::few_ports },
    Rule { cause: "relayed", find: network::relayed },
    Rule { cause: "no-report", find: room::no_report },
];

/// What came of an examination.
pub fn diagnose(seen: &Examination) -> Diagnosis {
    let found = RULES.iter().filter_map(|rule| Some((rule.cause, (rule.find)(seen)?)));
    let mut problems: Vec<Problem> = found
        .map(|(cause, Found { level, side, says, remedy })| Problem { cause, level, side, says: capital(&says), remedy: capital(&remedy) })
        .collect();
    problems.sort_by_key(|problem| problem.level);
    let server =
        |problem: &Problem| problem.level == Level::Fault && (problem.cause.starts_with("stun-") || problem.cause.starts_with("turn-"));
    if problems.iter().any(server) {
        // A server that is missing explains why there is no path.
        problems.retain(|problem| problem.cause != "no-path");
    }
    let healthy = problems.iter().all(|problem| problem.level != Level::Fault);
    let first = problems.first();
    let verdict = match (first, seen.route()) {
        (Some(Problem { level: Level::Fault, says, .. }), Some(route)) => {
            format!("{} (A connection works all the same: {}.)", says, path::words(route))
        }
        (Some(Problem { level: Level::Fault, says, .. }), None) => says.clone(),
        (Some(Problem { says, .. }), Some(route)) => format!("A connection works, {}. {says}", path::words(route)),
        (None, Some(route)) => format!("All is well: a connection works, {}.", path::words(route)),
        (Some(Problem { says, .. }), None) => says.clone(),
        (None, None) => "All is well, as far as it can be told without an invite.".to_owned(),
    };
    let remedy = first.map(|problem| problem.remedy.clone()).filter(|remedy| !remedy.is_empty());
    Diagnosis { healthy, verdict, remedy, problems }
}

fn capital(sentence: &str) -> String {
    let mut chars = sentence.chars();
    chars.next().map(|first| first.to_uppercase().chain(chars).collect()).unwrap_or_default()
}
