//! The newest checkpoint on its way to a client that asked for it.

use std::sync::Arc;

use shared::{
    domain::{
        error::{Code, Failure},
        manifest::Manifest,
        message::{CheckpointOffer, CheckpointWish, Refused, ToClient, TransferId},
        transfer::Progress,
    },
    runtime::{
        files::Source,
        listing::Listing,
        transfer::{Outgoing, Pool, StepPort, send as send_transfer},
    },
};
use tokio::sync::{mpsc, watch};

use super::{Held, hold_newest, remove_if_settled};
use crate::runtime::workspace::{JobDir, failure};

/// Answers a wish: the offer, and then the transfer; or that there is none.
pub(crate) async fn send(
    wish: CheckpointWish,
    dir: JobDir,
    transfer: TransferId,
    pool: Pool,
    steps: StepPort,
    out: mpsc::Sender<ToClient>,
) {
    let home = dir.checkpoints().join(wish.step.to_string());
    let (job, req, scratch) = (wish.job.clone(), wish.req, dir.root().to_owned());
    let opening = tokio::task::spawn_blocking(move || -> Result<(Held, Outgoing), Failure> {
        let held = hold_newest(&home).map_err(|error| failure("look for checkpoints in", &home, &error))?;
        let held = held.ok_or_else(|| Failure::new(Code::WrongState, "there is no checkpoint of this step that can be fetched"))?;
        let listing = Arc::new(Listing::new(&Manifest::decode(&held.manifest)?, &scratch));
        let reader = Box::new(Arc::new(Source::folder(&held.files)?).reader(listing.clone())?);
        Ok((held, Outgoing { transfer, job: wish.job, listing, reader, session: None }))
    });
    let opened = opening.await.unwrap_or_else(|error| Err(Failure::new(Code::Internal, format!("a checkpoint's task died: {error}"))));
    // Held until the transfer is over, so that it is not removed under its reader.
    let (held, outgoing) = match opened {
        Ok(opened) => opened,
        Err(failure) => {
            let _ = out.send(ToClient::Refused(Refused { req, failure })).await;
            return;
        }
    };
    let offer = CheckpointOffer { req, job, transfer, checkpoint: held.about.clone() };
    if out.send(ToClient::Checkpoint(offer)).await.is_err() {
        return;
    }
    let sent = send_transfer(outgoing, &pool, steps, &watch::Sender::new(Progress::default())).await;
    match sent {
        Ok(()) => tracing::info!(step = held.about.step, epoch = held.about.epoch, "a checkpoint was sent"),
        Err(failure) => tracing::debug!(%failure, "sending a checkpoint has ended early"),
    }
    drop(held);
    // What was not removed at the job's end because it was being sent.
    let _ = tokio::task::spawn_blocking(move || remove_if_settled(&dir)).await;
}
