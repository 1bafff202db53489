//! The whole as lines of at most 80 columns: the verdict, the remedy, then the details.

use serde_json::{Value, json};
use shared::domain::probe::{Finding, LocalFault, Mapping, Outcome, Report, Step, Udp};

use super::{
    Diagnosis, Examination, Level, Side,
    pairs::{self, Pair, State},
    path::milliseconds,
};
use crate::domain::{
    format, text,
    view::{Line, Tone},
};

/// As wide as a line may be, in characters.
const WIDTH: usize = 80;
/// Where the second column begins.
const INDENT: usize = 10;

/// One JSON object: the diagnosis, and everything that it was made from.
pub fn json(seen: &Examination, diagnosis: &Diagnosis) -> Value {
    json!({
        "type": "doctor",
        "healthy": diagnosis.healthy,
        "verdict": diagnosis.verdict,
        "remedy": diagnosis.remedy,
        "problems": diagnosis.problems,
        "pairs": pairs::pairs(seen),
        "examination": seen,
    })
}

/// What a person sees.
pub fn lines(seen: &Examination, diagnosis: &Diagnosis) -> Vec<Line> {
    let mut sheet = Sheet(Vec::new());
    let tone = if diagnosis.healthy { Tone::Good } else { Tone::Bad };
    sheet.paragraph(tone, 0, &diagnosis.verdict);
    if let Some(remedy) = &diagnosis.remedy {
        sheet.paragraph(Tone::Plain, 2, remedy);
    }
    for problem in diagnosis.problems.iter().skip(1) {
        sheet.blank();
        let tone = if problem.level == Level::Fault { Tone::Bad } else { Tone::Warning };
        sheet.paragraph(tone, 0, &format!("Also: {}", problem.says));
        sheet.paragraph(Tone::Plain, 2, &problem.remedy);
    }
    sheet.blank();
    sheet.settings(seen);
    sheet.server(seen);
    for (side, report) in seen.sides() {
        sheet.report(if side == Side::Client { "here" } else { "worker" }, report);
    }
    sheet.trial(seen);
    sheet.0
}

struct Sheet(Vec<Line>);

impl Sheet {
    fn blank(&mut self) {
        self.0.push(Line::plain(""));
    }

    /// Words, broken where the line is full; all lines but the first are indented, too.
    fn paragraph(&mut self, tone: Tone, indent: usize, words: &str) {
        for line in wrap(&text::line(words), WIDTH - indent) {
            self.0.push(Line::new(tone, format!("{:indent$}{line}", "")));
        }
    }

    /// A line with a head; what does not fit goes on below.
    fn row(&mut self, tone: Tone, head: &str, words: &str) {
        for (index, line) in wrap(&text::line(words), WIDTH - INDENT).into_iter().enumerate() {
            let head = if index == 0 { head } else { "" };
            self.0.push(Line::new(tone, format!("{head:INDENT$}{line}")));
        }
    }

    fn settings(&mut self, seen: &Examination) {
        for (index, setting) in seen.settings.iter().enumerate() {
            let head = if index == 0 { "settings" } else { "" };
            self.row(Tone::Plain, head, &format!("{}: {} ({})", setting.name, setting.value, setting.origin));
        }
    }

    fn server(&mut self, seen: &Examination) {
        let Some(server) = &seen.server else { return };
        self.row(Tone::Plain, "server", server);
        for step in &seen.steps {
            let (tone, says) = step_words(step);
            self.row(tone, "", &says);
        }
        match (&seen.refused, seen.admitted) {
            (Some(failure), _) => self.row(Tone::Warning, "room", &failure.message),
            (None, true) => self.row(Tone::Plain, "room", "it took us in"),
            (None, false) => {}
        }
    }

    fn report(&mut self, head: &str, report: &Report) {
        self.row(Tone::Plain, head, &whereabouts(report));
        if let Some(ahead) = report.server_clock_ahead {
            let says = match ahead {
                -2..=2 => "the clock agrees with the server's".to_owned(),
                _ => {
                    let off = format::millis(ahead.unsigned_abs().saturating_mul(1000));
                    format!("the server's clock is {off} {}", if ahead > 0 { "ahead" } else { "behind" })
                }
            };
            self.row(Tone::Plain, "", &says);
        }
        for fault in &report.faults {
            self.row(Tone::Warning, "", &fault_words(fault));
        }
        if report.servers.is_empty() {
            self.row(Tone::Plain, "", "no STUN or TURN server is configured");
        }
        for finding in report.servers.iter().filter(|finding| !is_noise(report, finding)) {
            let (tone, says) = finding_words(finding);
            self.row(tone, "", &says);
        }
    }

    fn trial(&mut self, seen: &Examination) {
        let Some(trial) = &seen.trial else { return };
        let took = format::millis(trial.took_ms);
        match &trial.failure {
            Some(failure) => self.row(Tone::Warning, "attempt", &format!("no connection after {took}: {}", failure.message)),
            None => self.row(Tone::Plain, "attempt", &format!("a connection was made in {took}")),
        }
        let pairs = pairs::pairs(seen);
        for Pair { state, says, .. } in &pairs {
            let tone = match state {
                State::InUse => Tone::Good,
                State::NotChosen => Tone::Quiet,
                State::Failed => Tone::Warning,
            };
            self.row(tone, "", says);
        }
        if pairs.is_empty() {
            self.row(Tone::Warning, "", "no two addresses of the two sides fit together");
        }
    }
}

fn step_words(step: &Step) -> (Tone, String) {
    let layer = step.layer.name();
    match &step.outcome {
        Outcome::Ok => (Tone::Plain, format!("{layer:10}{}", milliseconds(step.took_ms))),
        other => (Tone::Warning, format!("{layer:10}{}", outcome_words(other))),
    }
}

fn whereabouts(report: &Report) -> String {
    let list = |ips: &[core::net::IpAddr]| ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let mut says = if report.addresses.is_empty() { "no address".to_owned() } else { list(&report.addresses) };
    if !report.advertised.is_empty() {
        says.push_str(&format!("; advertised as {}", list(&report.advertised)));
    }
    let public: Vec<_> = report.public().into_iter().filter(|ip| !report.addresses.contains(ip)).collect();
    if !public.is_empty() {
        says.push_str(&format!("; seen as {}", list(&public)));
    }
    says.push_str(match report.mapping() {
        Mapping::None => "; no address translation",
        Mapping::Independent => "; the NAT maps a port the same for every destination",
        Mapping::Dependent => "; the NAT maps a port anew for each destination (symmetric)",
        Mapping::Unknown => "",
    });
    if matches!(report.udp(), Udp::Blocked) {
        says.push_str("; UDP does not get out");
    }
    if report.relay_only {
        says.push_str("; relays only");
    }
    says
}

fn fault_words(fault: &LocalFault) -> String {
    match fault {
        LocalFault::NoAddress { detail } => format!("no address to use: {detail}"),
        LocalFault::NoPort { detail } => format!("no UDP port: {detail}"),
        LocalFault::FewPorts { ports } => format!("{} in the range", format::count((*ports).into(), "UDP port")),
        LocalFault::Advertise { detail } => format!("the address to advertise: {detail}"),
        LocalFault::Unknown => "something that this version does not know".into(),
    }
}

/// An address without a route, where another one of the same server has one: most networks have one family only.
fn is_noise(report: &Report, finding: &Finding) -> bool {
    let same = |other: &Finding| other.url == finding.url && other.transport == finding.transport;
    let otherwise = || report.servers.iter().any(|other| same(other) && !matches!(other.outcome, Outcome::NoRoute { .. }));
    matches!(finding.outcome, Outcome::NoRoute { .. }) && (finding.besides || otherwise())
}

fn finding_words(finding: &Finding) -> (Tone, String) {
    let mut says = format!("{} over {}", finding.url, finding.transport.name());
    if let Some(address) = finding.address.filter(|address| !finding.url.contains(&address.ip().to_string())) {
        says.push_str(&format!(" at {address}"));
    }
    if finding.besides {
        says.push_str(" (besides)");
    }
    says.push_str(": ");
    says.push_str(&outcome_words(&finding.outcome));
    if let Some(rtt) = finding.rtt_ms.filter(|_| finding.outcome == Outcome::Ok) {
        says.push_str(&format!(", {}", milliseconds(rtt)));
    }
    match (finding.relayed, finding.mapped) {
        (Some(relayed), _) => says.push_str(&format!(", relay at {relayed}")),
        (None, Some(mapped)) => says.push_str(&format!(", seen as {mapped}")),
        (None, None) => {}
    }
    let tone = match finding.outcome {
        Outcome::Ok => Tone::Plain,
        _ if finding.besides => Tone::Quiet,
        _ => Tone::Warning,
    };
    (tone, says)
}

fn outcome_words(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Ok => "works".into(),
        Outcome::BadUrl { detail } => format!("cannot be used: {detail}"),
        Outcome::NoName { detail } => format!("the name has no address ({detail})"),
        Outcome::Silent => "no answer".into(),
        Outcome::Refused => "nothing listens there".into(),
        Outcome::NoRoute { detail } => format!("no route ({detail})"),
        Outcome::Tls { detail, .. } => format!("TLS failed: {detail}"),
        Outcome::Unauthorized => "user name or password refused (401)".into(),
        Outcome::Expired { .. } => "the credentials have expired (401)".into(),
        Outcome::Forbidden => "not allowed (403)".into(),
        Outcome::Quota => "the user's quota is reached (486)".into(),
        Outcome::NoCapacity => "no relay left (508)".into(),
        Outcome::Error { code, reason } => format!("refused: {code} {reason}"),
        Outcome::Strange { detail } => format!("a strange answer: {detail}"),
        Outcome::Unknown => "an outcome that this version does not know".into(),
    }
}

/// Words in lines of at most `width` characters; a longer word has a line of its own.
fn wrap(words: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    let mut used = 0;
    // Not every run of blanks: columns stay columns.
    for word in words.split_inclusive(' ') {
        let length = word.trim_end().chars().count();
        if used > 0 && used + length > width {
            lines.push(String::new());
            used = 0;
        }
        lines.last_mut().expect("it begins with one").push_str(word);
        used += word.chars().count();
    }
    lines.into_iter().map(|line| line.trim_end().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::doctor::{Trial, diagnose};
    use shared::domain::{
        error::{Code, Failure},
        probe::{Layer, Service, Transport},
    };

    fn seen() -> Examination {
        let finding = |transport, outcome| Finding {
            url: "turn:turn.lab.example:443?transport=tcp\u{1b}[31m".into(),
            service: Service::Turn,
            transport,
            address: Some("203.0.113.1:443".parse().unwrap()),
            local: None,
            mapped: Some("198.51.100.7:5000".parse().unwrap()),
            relayed: (outcome == Outcome::Ok).then(|| "203.0.113.1:50000".parse().unwrap()),
            rtt_ms: Some(41.2),
            besides: false,
            outcome,
        };
        let report = Report {
            addresses: vec!["10.0.0.2".parse().unwrap()],
            servers: vec![finding(Transport::Tcp, Outcome::Ok), finding(Transport::Udp, Outcome::Silent)],
            server_clock_ahead: Some(-600),
            ..Report::default()
        };
        Examination {
            server: Some("https://signaling.lab.example".into()),
            steps: vec![Step { layer: Layer::Tcp, outcome: Outcome::Ok, took_ms: 12.0 }],
            invited: true,
            admitted: true,
            client: Some(report.clone()),
            worker: Some(report),
            trial: Some(Trial { failure: Some(Failure::new(Code::NoConnection, "no path")), ..Trial::default() }),
            ..Examination::default()
        }
    }

    #[test]
    fn the_verdict_comes_first_and_nothing_is_wider_than_a_terminal() {
        let seen = seen();
        let diagnosis = diagnose(&seen);
        let lines = lines(&seen, &diagnosis);
        assert_eq!((lines[0].tone, lines[0].text()), (Tone::Bad, "The signaling server's clock is 10 min 00 s behind yours."));
        assert!(lines[1].text().starts_with("  Set the clock"), "{lines:?}");
        for line in &lines {
            assert!(line.text().chars().count() <= WIDTH && !line.text().contains('\u{1b}'), "{}", line.text());
        }
        let all = lines.iter().map(Line::text).collect::<Vec<_>>().join("\n");
        for says in ["works, 41 ms, relay at", "TCP       12 ms", "the server's clock is 10 min 00 s behind", "UDP does not get out"] {
            assert!(all.contains(says), "{says}: {all}");
        }
    }

    #[test]
    fn the_object_has_what_a_program_needs() {
        let seen = seen();
        let object = json(&seen, &diagnose(&seen));
        assert_eq!((object["type"].as_str(), object["healthy"].as_bool()), (Some("doctor"), Some(false)));
        assert_eq!(object["problems"][0]["cause"], "clock");
        assert_eq!(object["examination"]["worker"]["servers"][0]["outcome"]["is"], "ok");
    }

    #[test]
    fn a_family_that_the_network_lacks_is_left_out() {
        let mut seen = seen();
        let report = seen.client.as_mut().unwrap();
        let sixth = Finding {
            address: Some("[2001:db8::1]:443".parse().unwrap()),
            outcome: Outcome::NoRoute { detail: "unreachable".into() },
            ..report.servers[0].clone()
        };
        let alone = Finding { url: "stun:other".into(), ..sixth.clone() };
        report.servers.extend([sixth.clone(), alone, Finding { besides: true, url: "stun:x".into(), ..sixth }]);
        let lines = lines(&seen, &diagnose(&seen));
        let shown: Vec<&str> = lines.iter().map(Line::text).filter(|line| line.contains("2001:db8::1")).collect();
        assert!(matches!(shown[..], [only] if only.contains("stun:other")), "{shown:?}");
    }

    #[test]
    fn words_are_kept_whole() {
        assert_eq!(wrap("one two three", 8), ["one two", "three"]);
        assert_eq!(wrap("longer-than-that a", 5), ["longer-than-that", "a"]);
        assert_eq!(wrap("", 5), [""]);
    }
}
