//! STUN and TURN servers.

use shared::domain::probe::{Finding, Outcome, Report, Service, Transport};

use super::{
    super::{Level, Side},
    Examination, Found, network,
    room::{certificate, remedy_for, sentence},
};

/// The first such finding, and on which sides there is one.
fn find<'a>(seen: &'a Examination, wanted: impl Fn(&Report, &Finding) -> bool) -> Option<(Side, &'a Finding)> {
    let on = |report: &'a Option<Report>| {
        let report = report.as_ref()?;
        report.configured().find(|finding| wanted(report, finding))
    };
    match (on(&seen.client), on(&seen.worker)) {
        (Some(finding), Some(_)) => Some((Side::Both, finding)),
        (Some(finding), None) => Some((Side::Client, finding)),
        (None, Some(finding)) => Some((Side::Worker, finding)),
        (None, None) => None,
    }
}

fn turn(seen: &Examination, wanted: impl Fn(&Outcome) -> bool) -> Option<(Side, &Finding)> {
    find(seen, |_, finding| finding.service == Service::Turn && wanted(&finding.outcome))
}

/// Where the servers come from that a side uses.
const WHERE: &str = "ICE_SERVERS (or --ice-servers, ice_servers) of that side, or of webrtc-server, which hands them out";

fn seen_from(side: Side) -> &'static str {
    match side {
        Side::Client => ", seen from here",
        Side::Worker => ", seen from the worker",
        Side::Both | Side::Between => "",
    }
}

pub(super) fn turn_name(seen: &Examination) -> Option<Found> {
    let (side, finding) = turn(seen, |outcome| matches!(outcome, Outcome::NoName { .. } | Outcome::BadUrl { .. }))?;
    name(side, finding, "TURN")
}

pub(super) fn stun_name(seen: &Examination) -> Option<Found> {
    let wanted = |outcome: &Outcome| matches!(outcome, Outcome::NoName { .. } | Outcome::BadUrl { .. });
    let (side, finding) = find(seen, |_, finding| finding.service == Service::Stun && wanted(&finding.outcome))?;
    name(side, finding, "STUN")
}

fn name(side: Side, finding: &Finding, kind: &str) -> Option<Found> {
    if let Outcome::BadUrl { detail } = &finding.outcome {
        return Found::fault(side, format!("the {kind} URL {} cannot be used: {detail}.", finding.url), format!("Correct it in {WHERE}."));
    }
    Found::fault(
        side,
        format!("the name of the {kind} server {} has no address{}.", finding.url, seen_from(side)),
        format!("Correct the name in {WHERE}, or the name servers of that machine."),
    )
}

pub(super) fn turn_certificate(seen: &Examination) -> Option<Found> {
    let (side, finding) = find(seen, |_, finding| matches!(finding.outcome, Outcome::Tls { .. }))?;
    let Outcome::Tls { fault, detail } = &finding.outcome else { return None };
    let says = format!("the certificate of the TURN server {} {}.", finding.url, certificate(*fault, detail));
    Found::fault(side, says, remedy_for(*fault))
}

pub(super) fn turn_expired(seen: &Examination) -> Option<Found> {
    let (side, finding) = turn(seen, |outcome| matches!(outcome, Outcome::Expired { .. }))?;
    let since = match finding.outcome {
        Outcome::Expired { since } if since > 0 => format!(" {} ago", crate::domain::format::millis(since.saturating_mul(1000))),
        _ => String::new(),
    };
    Found::fault(
        side,
        format!("the credentials for the TURN server {} expired{since}.", finding.url),
        "Let webrtc-server hand out fresh ones (it needs the TURN server's shared secret), or set new ones; check the clocks of both servers.",
    )
}

pub(super) fn turn_credentials(seen: &Examination) -> Option<Found> {
    let (side, finding) = turn(seen, |outcome| *outcome == Outcome::Unauthorized)?;
    Found::fault(
        side,
        format!("the TURN server {} refuses user name or password (401).", finding.url),
        format!(
            "Correct username and credential in {WHERE}; where webrtc-server makes them, its secret must be the TURN server's \
             (static-auth-secret)."
        ),
    )
}

pub(super) fn turn_quota(seen: &Examination) -> Option<Found> {
    let (side, finding) = turn(seen, |outcome| matches!(outcome, Outcome::Quota | Outcome::NoCapacity))?;
    let (what, remedy) = match finding.outcome {
        Outcome::Quota => {
            ("allows this user no further relay: the quota is reached (486)", "Raise user-quota or total-quota of the TURN server")
        }
        _ => ("has no relay left (508)", "Widen the TURN server's port range (min-port, max-port)"),
    };
    let remedy = format!("{remedy}, or wait until others have left.");
    Found::fault(side, format!("the TURN server {} {what}.", finding.url), remedy)
}

pub(super) fn turn_refuses(seen: &Examination) -> Option<Found> {
    let (side, finding) = turn(seen, |outcome| matches!(outcome, Outcome::Forbidden | Outcome::Error { .. } | Outcome::Strange { .. }))?;
    let what = match &finding.outcome {
        Outcome::Forbidden => "does not allow us a relay (403)".to_owned(),
        Outcome::Error { code, reason } => format!("refuses a relay: {code} {reason}"),
        Outcome::Strange { detail } => format!("answers as no TURN server does: {detail}"),
        _ => return None,
    };
    let remedy = "Check the address and port, and what the TURN server's configuration and log say.";
    Found::fault(side, sentence(&format!("the TURN server {} {what}", finding.url)), remedy)
}

fn unreachable(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Silent | Outcome::Refused | Outcome::NoRoute { .. })
}

/// Whether the same server was reached at another of its addresses.
fn reached_elsewhere(report: &Report, finding: &Finding) -> bool {
    let same = |other: &Finding| other.url == finding.url && other.transport == finding.transport;
    report.configured().any(|other| same(other) && other.outcome.answered())
}

pub(super) fn turn_unreachable(seen: &Examination) -> Option<Found> {
    not_reached(seen, Service::Turn, "TURN")
}

pub(super) fn stun_unreachable(seen: &Examination) -> Option<Found> {
    not_reached(seen, Service::Stun, "STUN")
}

fn not_reached(seen: &Examination, service: Service, kind: &str) -> Option<Found> {
    let blocked = network::blocked_side(seen);
    let explained = |report: &Report, finding: &Finding| {
        let side = if seen.client.as_ref().is_some_and(|client| std::ptr::eq(client, report)) { Side::Client } else { Side::Worker };
        finding.transport == Transport::Udp && blocked.is_some_and(|blocked| blocked == side || blocked == Side::Both)
    };
    let (side, finding) = find(seen, |report, finding| {
        finding.service == service
            && unreachable(&finding.outcome)
            && !explained(report, finding)
            && !reached_elsewhere(report, finding)
            && !report.addresses.is_empty()
    })?;
    let over = finding.transport.name();
    let (what, remedy) = match &finding.outcome {
        Outcome::Refused => (
            format!("nothing listens at the {kind} server {} ({over}){}", finding.url, seen_from(side)),
            format!("Start the {kind} server there, or correct address and port in {WHERE}."),
        ),
        Outcome::NoRoute { detail } => (
            format!("there is no route to the {kind} server {}{} ({detail})", finding.url, seen_from(side)),
            format!("Name a server in {WHERE} that this network reaches."),
        ),
        _ => (
            format!("the {kind} server {} does not answer over {over}{}", finding.url, seen_from(side)),
            format!("Check that it runs and that firewalls let {over} through to it; otherwise name another one in {WHERE}."),
        ),
    };
    let found = Found::fault(side, format!("{what}."), remedy)?;
    // One of several that does not answer is untidy, and nothing more where another does its work.
    let spare = seen.sides().all(|(_, report)| report.configured().any(|other| other.service == service && other.outcome == Outcome::Ok));
    Some(Found { level: if spare && seen.connected() { Level::Limit } else { found.level }, ..found })
}
