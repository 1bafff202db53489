//! Results on their way from the worker to a folder here.

use shared::{
    domain::{error::Failure, message::FileMeta, transfer::Progress},
    runtime::{
        store::Destination,
        transfer::{Pool, StepPort, receive},
    },
};
use tokio::sync::watch;

use crate::domain::order::FetchTo;

/// Results that are in place.
pub(super) struct Saved {
    /// The folder.
    pub(super) path: String,
    /// The files, relative to it.
    pub(super) files: Vec<String>,
    /// Bytes of all files.
    pub(super) bytes: u64,
}

/// Receives announced results; interrupted ones go on where they were.
pub(super) async fn receive_results(
    meta: FileMeta,
    fetch: FetchTo,
    pool: Pool,
    steps: StepPort,
    progress: watch::Sender<Progress>,
) -> Result<Saved, Failure> {
    let destination = Destination::new(&fetch.output, fetch.overwrite);
    let summary = meta.manifest;
    let begun = tokio::task::spawn_blocking(move || destination.begin(&summary)).await;
    let begun = begun.map_err(|error| {
        Failure::new(shared::domain::error::Code::Internal, format!("looking at the folder ended unexpectedly: {error}"))
    })??;
    let package = receive(meta, begun, &pool, steps, progress).await?;
    let files = package.manifest().entries.iter().map(|entry| entry.path.to_string()).collect();
    Ok(Saved { path: fetch.output.display().to_string(), files, bytes: package.manifest().bytes() })
}
