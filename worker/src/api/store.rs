//! `webrtc-worker store`: what packages there are, and the removal of those that nobody uses; also beside a worker that runs.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use shared::{
    domain::{
        error::{Code, Failure},
        id::hex,
    },
    runtime::store::{Overview, Prune, Store, Stored, human},
};

use super::cli::{Section, data_dir, print_line};
use crate::{domain::size::Size, runtime::workspace::Workspace};

/// The arguments of `store`.
#[derive(Debug, Args)]
pub(super) struct StoreArgs {
    #[command(subcommand)]
    action: Option<Action>,
    /// The worker's data directory [default: ~/.local/share/webrtc-connect/worker]
    #[arg(long, env = "WEBRTC_WORKER_DATA", value_name = "DIR", global = true)]
    data_dir: Option<PathBuf>,
    /// The limit that the worker runs with, if it was given one
    #[arg(long, value_name = "SIZE", global = true)]
    quota: Option<Size>,
    /// Configuration file [default: ./webrtc-connect.toml, then the user's]
    #[arg(long, env = "WEBRTC_CONFIG", value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    /// Named environment of the configuration file
    #[arg(long, env = "WEBRTC_ENVIRONMENT", value_name = "NAME", global = true)]
    environment: Option<String>,
    /// One JSON object a line on stdout
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Lists the packages, the longest unused first, and what is free (the default)
    Show,
    /// Removes packages that nobody uses, the longest unused first; without options until the limit is kept
    Prune(PruneArgs),
}

#[derive(Debug, Clone, Copy, Args)]
struct PruneArgs {
    /// Removes what was not used for so many days
    #[arg(long, value_name = "DAYS")]
    older_than: Option<u32>,
    /// Removes the longest unused until the rest takes no more, such as 50GB
    #[arg(long, value_name = "SIZE")]
    to: Option<Size>,
    /// Removes everything that nobody uses
    #[arg(long)]
    all: bool,
    /// Only says what would be removed
    #[arg(long)]
    dry_run: bool,
}

/// Runs `store`.
///
/// # Errors
/// [`Code::BadFile`] when there is no store, or it cannot be read; [`Code::InvalidRequest`] for a wrong configuration.
pub(super) fn run(args: StoreArgs) -> Result<(), Failure> {
    let section: Section = shared::runtime::config::load("worker", args.config.as_deref(), args.environment.as_deref())?;
    let quota = args.quota.or(section.quota).map(|size| size.0);
    let data_dir = data_dir(args.data_dir.or(section.data_dir))?;
    let path = data_dir.join("store");
    let store = Store::existing(&path, quota)?.ok_or_else(|| {
        let message = format!("no worker keeps packages in {}: name its data directory with --data-dir", path.display());
        Failure::new(Code::BadFile, message)
    })?;
    let store = store.with_holds(Arc::new(Workspace::open(&data_dir)?));
    match args.action.unwrap_or(Action::Show) {
        Action::Show => show(&store.overview()?, args.json),
        Action::Prune(wish) => prune(&store, wish, args.json)?,
    }
    Ok(())
}

fn show(overview: &Overview, json: bool) {
    let now = SystemTime::now();
    let Overview { packages, used, limit, free } = overview;
    if json {
        packages.iter().for_each(|package| print_line(&as_json("package", package).to_string()));
        let line = json!({"type": "store", "packages": packages.len(), "used": used, "limit": limit, "disk_free": free});
        return print_line(&line.to_string());
    }
    if !packages.is_empty() {
        print_line(&row(["owner", "package", "files", "size", "here", "last used", "used by"]));
    }
    for package in packages {
        let (owner, id) = short(package);
        let [files, size, age] =
            [package.summary.files.to_string(), human(package.summary.bytes), format!("{} ago", ago(package.last_used, now))];
        print_line(&row([&owner, &id, &files, &size, &here(package), &age, &users(package)]));
    }
    let packages = count(packages.len());
    print_line(&format!("{packages}, {} of at most {}; {} of the disk are free", human(*used), human(*limit), human(*free)));
}

fn prune(store: &Store, args: PruneArgs, json: bool) -> Result<(), Failure> {
    let PruneArgs { older_than, to, all, dry_run } = args;
    let older_than = older_than.map(|days| Duration::from_secs(u64::from(days) * 24 * 3600));
    let to = match to {
        None if !all && older_than.is_none() => Some(store.overview()?.limit),
        to => to.map(|size| size.0),
    };
    let removed = store.prune(&Prune { all, older_than, to }, dry_run)?;
    let freed = removed.iter().fold(0u64, |sum, package| sum.saturating_add(package.size()));
    let now = SystemTime::now();
    if json {
        removed.iter().for_each(|package| print_line(&as_json("removed", package).to_string()));
        let line = json!({"type": "pruned", "packages": removed.len(), "freed": freed, "dry_run": dry_run});
        print_line(&line.to_string());
        return Ok(());
    }
    for package in &removed {
        let (owner, id) = short(package);
        print_line(&format!("{id} of {owner}: {}, unused for {}", human(package.size()), ago(package.last_used, now)));
    }
    let [packages, freed] = [count(removed.len()), human(freed)];
    print_line(&if dry_run { format!("{packages} would be removed, {freed} freed") } else { format!("{packages} removed, {freed} freed") });
    Ok(())
}

fn as_json(kind: &str, package: &Stored) -> Value {
    let Stored { owner, summary, whole, present, last_used, open, used_by, .. } = package;
    let last_used = last_used.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    json!({
        "type": kind, "owner": owner, "package": summary.id, "files": summary.files, "bytes": summary.bytes, "whole": whole,
        "present": present, "size": package.size(), "last_used": last_used, "open": open, "used_by": used_by, "in_use": package.in_use(),
    })
}

/// Columns: two ids, two numbers, three words.
fn row([owner, id, files, size, here, age, users]: [&str; 7]) -> String {
    format!("{owner:<8}  {id:<8}  {files:>7}  {size:>9}  {here:<6}  {age:<13}  {users}").trim_end().to_owned()
}

fn short(package: &Stored) -> (String, String) {
    let short = |text: &str| text.chars().take(8).collect::<String>();
    (short(&package.owner), short(&hex(&package.summary.id.0)))
}

fn here(package: &Stored) -> String {
    let Stored { whole, present, summary, .. } = package;
    if *whole { "whole".to_owned() } else { format!("{} %", u128::from(*present) * 100 / u128::from(summary.bytes.max(1))) }
}

fn users(package: &Stored) -> String {
    let jobs: Vec<String> = package.used_by.iter().map(|job| job.chars().take(8).collect()).collect();
    match (jobs.is_empty(), package.open) {
        (false, _) => format!("job {}", jobs.join(", ")),
        (true, true) => "a transfer".to_owned(),
        (true, false) => String::new(),
    }
}

fn count(packages: usize) -> String {
    if packages == 1 { "1 package".to_owned() } else { format!("{packages} packages") }
}

/// A span of time, roughly.
fn ago(then: SystemTime, now: SystemTime) -> String {
    let secs = now.duration_since(then).unwrap_or_default().as_secs();
    match secs {
        0..120 => format!("{secs} s"),
        120..7200 => format!("{} min", secs / 60),
        7200..172_800 => format!("{} h", secs / 3600),
        _ => format!("{} d", secs / 86_400),
    }
}
