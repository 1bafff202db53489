//! Lists of jobs and of workers.

use shared::domain::{
    job::{JobState, JobStatus},
    message::WorkerInfo,
    route::Route,
};

use super::line::Line;
use crate::domain::{doctor, format, plan::Speed, select, text};

/// The widest that a column may become, in characters.
const MAX_COLUMN: usize = 48;

/// What `status` shows.
pub(super) fn jobs(worker: &WorkerInfo, jobs: &[JobStatus]) -> Vec<Line> {
    let head = format!("{}: {}, {} disk free", worker.name, select::gpus(&worker.gpus), format::bytes(worker.disk_free));
    let mut lines = vec![Line::plain(head)];
    if jobs.is_empty() {
        lines.push(Line::plain("no jobs yet"));
        return lines;
    }
    let row = |job: &JobStatus| {
        let results = job.results.map(|results| format::bytes(results.bytes)).unwrap_or_else(|| "-".into());
        [format::short(&job.job).to_owned(), job.name.clone(), state(job), results, format::date(job.submitted_at)]
    };
    lines.extend(table(["JOB", "NAME", "STATE", "RESULTS", "SUBMITTED"], [MAX_COLUMN; 5], jobs.iter().map(row)));
    lines
}

/// The way to the worker: `path: relayed, round trip 41 ms, 1.20 MB/s for the last package`, and below it why it is not a better one.
pub(super) fn path(route: Option<&Route>, speed: Option<Speed>, why: Option<&str>) -> Vec<Line> {
    let Some(route) = route else { return vec![] };
    let rate = speed.map(|speed| format!(", {}/s for the last package", format::bytes(speed.bytes_per_second))).unwrap_or_default();
    let mut lines = vec![Line::plain(format!("path: {}{rate}", doctor::path::words(route)))];
    lines.extend(why.map(|why| Line::warning(format!("      not direct: {why}"))));
    lines
}

/// What `workers` shows.
pub(super) fn workers(workers: &[WorkerInfo]) -> Vec<Line> {
    if workers.is_empty() {
        return vec![Line::plain("no worker is in the room at present")];
    }
    let row = |worker: &WorkerInfo| {
        [
            worker.name.clone(),
            worker.peer.to_string(),
            select::gpus_in_short(&worker.gpus, MAX_COLUMN),
            worker.jobs.to_string(),
            worker.trainers.join(", "),
            worker.version.clone(),
        ]
    };
    let limits = [MAX_COLUMN, MAX_COLUMN, usize::MAX, MAX_COLUMN, MAX_COLUMN, MAX_COLUMN];
    table(["NAME", "PEER", "GPU", "JOBS", "TRAINERS", "VERSION"], limits, workers.iter().map(row))
}

fn state(job: &JobStatus) -> String {
    match job.state {
        JobState::Uploading => "uploading".into(),
        JobState::Queued { ahead: 0 } => "queued, next".into(),
        JobState::Queued { ahead } => format!("queued, {ahead} ahead"),
        JobState::Running => "running".into(),
        JobState::Ended { outcome } => outcome.to_string(),
    }
}

fn table<const N: usize>(head: [&str; N], limits: [usize; N], rows: impl Iterator<Item = [String; N]>) -> Vec<Line> {
    let mut cells: Vec<[String; N]> = vec![head.map(str::to_owned)];
    cells.extend(rows.map(|row| std::array::from_fn(|column| text::shorten(&text::line(&row[column]), limits[column]))));
    let widths: [usize; N] = std::array::from_fn(|column| cells.iter().map(|row| row[column].chars().count()).max().unwrap_or(0));
    let join = |row: &[String; N]| {
        let padded = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    cells.iter().map(|row| Line::plain(join(row))).collect()
}
