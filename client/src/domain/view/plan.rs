//! A plan: one line as an upload begins, a short table where only the plan was wanted.

use shared::domain::{
    error::Code,
    job::{JobState, JobStatus},
    route::Route,
};

use super::line::{Line, Tone};
use crate::domain::{
    format,
    plan::{Basis, Outlook, Plan, Speed},
    select, text,
};

/// As an upload begins.
pub(super) fn begins(plan: &Plan) -> Vec<Line> {
    let known = if plan.known { " (the worker knows this job: going on with it)" } else { "" };
    // Of a moment nothing need be said.
    let time = time(plan).filter(|_| plan.expected_ms >= Some(1000)).map(|time| format!(", {time}")).unwrap_or_default();
    let queue = match plan.ahead {
        Some(ahead @ 1..) => format!("; {}", before(ahead)),
        _ => String::new(),
    };
    let mut lines = vec![Line::plain(format!("job {}{known}: {}; {}{time}{queue}", format::short(&plan.job), what(plan), to_send(plan)))];
    if plan.to_send > plan.disk_free {
        lines.push(Line::warning(format!("the worker has only {} of free disk space", format::bytes(plan.disk_free))));
    }
    lines
}

/// The answer to `--plan`, for stdout.
pub(super) fn table(plan: &Plan, outlook: &Outlook) -> Vec<Line> {
    let name = if plan.name.is_empty() { String::new() } else { format!("{}, ", plan.name) };
    let time = time(plan).map(|time| format!(", {time}")).unwrap_or_default();
    let no_space = outlook.refused.as_ref().is_some_and(|failure| failure.code == Code::NoSpace);
    let too_little = if no_space { ", too little for it" } else { "" };
    let rows = [
        ("package", format!("{name}{}", what(plan)), Tone::Plain),
        ("job", format!("{}, {}", format::short(&plan.job), state(outlook.status.as_ref())), Tone::Plain),
        ("worker", format!("{}, {}", outlook.worker.name, select::gpus(&outlook.worker.gpus)), Tone::Plain),
        ("path", plan.route.as_ref().map_or_else(|| "unknown".to_owned(), path), Tone::Plain),
        ("there", amount(plan.already_there), Tone::Plain),
        ("to send", format!("{}{time}", amount(plan.to_send)), Tone::Plain),
        ("space", format!("{} free{too_little}", format::bytes(plan.disk_free)), if no_space { Tone::Warning } else { Tone::Plain }),
        ("queue", queue(plan, outlook), Tone::Plain),
    ];
    let width = rows.iter().map(|(head, ..)| head.len()).max().unwrap_or(0);
    let mut lines: Vec<Line> =
        rows.iter().map(|(head, cell, tone)| Line::new(*tone, format!("{head:width$}  {}", text::line(cell)))).collect();
    lines.extend(outlook.notices.iter().map(|notice| Line::warning(format!("{:width$}  {}", "note", text::line(notice)))));
    let verdict = match &outlook.refused {
        Some(_) => Line::warning(format!("{:width$}  the worker would refuse it", "verdict")),
        None => Line::good(format!("{:width$}  {}", "verdict", accepted(outlook.status.as_ref()))),
    };
    lines.push(verdict);
    lines
}

fn amount(bytes: u64) -> String {
    if bytes == 0 { "nothing".into() } else { format::bytes(bytes) }
}

fn what(plan: &Plan) -> String {
    format!("{}, {}", format::count(plan.files.into(), "file"), format::bytes(plan.bytes))
}

fn to_send(plan: &Plan) -> String {
    match (plan.to_send, plan.already_there) {
        (0, _) => "the worker has all of it".to_owned(),
        (to_send, 0) => format!("{} to send", format::bytes(to_send)),
        (to_send, there) => format!("the worker has {} of it, {} to send", format::bytes(there), format::bytes(to_send)),
    }
}

fn time(plan: &Plan) -> Option<String> {
    let (Speed { bytes_per_second, basis }, ms) = (plan.speed?, plan.expected_ms?);
    let span = if ms < 1000 { "less than a second".to_owned() } else { format!("about {}", format::millis(ms)) };
    let basis = if basis == Basis::LastTransfer { " (as the last time)" } else { "" };
    Some(format!("{span} at {}/s{basis}", format::bytes(bytes_per_second)))
}

/// A route in a few words.
pub(super) fn path(route: &Route) -> String {
    if route.rtt > 0.0 { format!("{}, round trip {:.0} ms", route.kind, (route.rtt * 1000.0).max(1.0)) } else { route.kind.to_string() }
}

fn before(ahead: u32) -> String {
    format!("{} before it", format::count(ahead.into(), "job"))
}

fn queue(plan: &Plan, outlook: &Outlook) -> String {
    let place = match outlook.status.as_ref().map(|status| status.state) {
        Some(JobState::Running) => "it runs already".to_owned(),
        Some(JobState::Ended { .. }) => "it has run already".to_owned(),
        _ => match plan.ahead.unwrap_or_default() {
            0 => "next in line".to_owned(),
            ahead => before(ahead),
        },
    };
    if outlook.running.is_empty() { place } else { format!("{place}; running now: {}", outlook.running.join(", ")) }
}

fn state(status: Option<&JobStatus>) -> String {
    match status.map(|status| status.state) {
        None => "new to the worker".into(),
        Some(JobState::Uploading) => "begun before, its upload is not complete".into(),
        Some(JobState::Queued { .. }) => "in the worker's queue already".into(),
        Some(JobState::Running) => "running already".into(),
        Some(JobState::Ended { outcome }) => format!("{outcome} already"),
    }
}

fn accepted(status: Option<&JobStatus>) -> &'static str {
    match status.map(|status| status.state) {
        None => "the worker would take it",
        Some(JobState::Uploading) => "the worker would go on with it",
        Some(JobState::Queued { .. } | JobState::Running) => "train would follow it",
        Some(JobState::Ended { .. }) => "train would show how it went and fetch its models; --again trains once more",
    }
}
