//! Results on their way from the worker to a folder here.

use std::{path::PathBuf, sync::Arc};

use shared::{
    domain::{error::Failure, message::FileMeta, transfer::Progress},
    runtime::{
        listing::Listing,
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
    /// The files in it.
    pub(super) listing: Arc<Listing>,
}

/// Receives announced results; interrupted ones go on where they were, and what files in the `nearby` folders have is not sent.
pub(super) async fn receive_results(
    meta: FileMeta,
    fetch: FetchTo,
    nearby: Vec<PathBuf>,
    pool: Pool,
    steps: StepPort,
    progress: watch::Sender<Progress>,
) -> Result<Saved, Failure> {
    let destination = Destination::new(&fetch.output, fetch.overwrite).with_nearby(nearby);
    let summary = meta.manifest;
    let begun = tokio::task::spawn_blocking(move || destination.begin(&summary)).await;
    let begun = begun.map_err(|error| {
        Failure::new(shared::domain::error::Code::Internal, format!("looking at the folder ended unexpectedly: {error}"))
    })??;
    let package = receive(meta, begun, &pool, steps, progress).await?;
    Ok(Saved { path: fetch.output.display().to_string(), listing: package.listing().clone() })
}
