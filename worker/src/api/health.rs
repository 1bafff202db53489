//! `webrtc-worker health`: whether the worker of a data directory is alive; for probes of containers.

use std::{path::PathBuf, time::SystemTime};

use clap::Args;
use serde_json::json;
use shared::domain::error::{Code, Failure};

use super::cli::{FileArgs, data_dir, print_line};
use crate::runtime::beat::{self, Beat};

/// The arguments of `health`.
#[derive(Debug, Args)]
pub(super) struct HealthArgs {
    /// Only healthy while clients can find it: it is registered in its room
    #[arg(long)]
    ready: bool,
    /// The worker's data directory [default: ~/.local/share/webrtc-connect/worker]
    #[arg(long, env = "WEBRTC_WORKER_DATA", value_name = "DIR")]
    data_dir: Option<PathBuf>,
    #[command(flatten)]
    file: FileArgs,
    /// One JSON object on stdout
    #[arg(long)]
    json: bool,
}

/// Looks once.
///
/// # Errors
/// Why it is not healthy.
pub(super) fn run(args: &HealthArgs) -> Result<(), Failure> {
    let section = args.file.load()?;
    let Beat { in_room, jobs } = beat::look(&data_dir(args.data_dir.clone().or(section.data_dir))?, SystemTime::now())?;
    if args.json {
        print_line(&json!({"type": "health", "in_room": in_room, "jobs": jobs}).to_string());
    } else {
        let room = if in_room { "in its room" } else { "without its room: no server answers" };
        print_line(&format!("alive, {room}, {jobs} jobs"));
    }
    if args.ready && !in_room {
        return Err(Failure::new(Code::Unavailable, "the worker is not in its room; clients do not find it"));
    }
    Ok(())
}
