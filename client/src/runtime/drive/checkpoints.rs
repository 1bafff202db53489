//! Checkpoints of the job that is followed: asked for as they are made, saved, and told.

use std::path::{Path, PathBuf};

use shared::domain::{
    error::{Code, Failure},
    job::{Checkpoint, JobState, Outcome},
    message::{CheckpointOffer, CheckpointWish, FileMeta, FileRefused, Refused, Req, Step, ToWorker, TransferId},
};
use tokio::task::JoinHandle;

use super::{Drive, transfers::Transfers};
use crate::{
    domain::event::Event,
    runtime::{
        checkpoints::{self, Place, Saved},
        conversation::Conversation,
        download,
    },
};

const CHECKPOINT: Req = 5;

/// A checkpoint that was offered, and its task once it arrives.
pub(super) struct Arriving {
    checkpoint: Checkpoint,
    transfer: TransferId,
    pub(super) task: Option<JoinHandle<Result<Saved, Failure>>>,
}

/// The end of the transfer that is under way; pending while there is none. Cancel-safe.
pub(super) async fn arrived(arriving: &mut Option<Arriving>) -> Result<Saved, Failure> {
    match arriving.as_mut().and_then(|arriving| arriving.task.as_mut()) {
        Some(task) => task
            .await
            .unwrap_or_else(|error| Err(Failure::new(Code::Internal, format!("a checkpoint's transfer ended unexpectedly: {error}")))),
        None => std::future::pending().await,
    }
}

impl Drive {
    /// Asks for the newest checkpoint, if there is one that is not here and nothing is under way.
    pub(super) async fn ask_for_checkpoint(&mut self, talk: &Conversation) -> Result<(), Failure> {
        let Some(step) = self.checkpoints.ask() else { return Ok(()) };
        let _ = talk.pool();
        talk.tell(ToWorker::FetchCheckpoint(CheckpointWish { req: CHECKPOINT, job: self.job()?, step })).await
    }

    pub(super) fn checkpoint_offered(&mut self, offer: CheckpointOffer, transfers: &mut Transfers) {
        let CheckpointOffer { transfer, checkpoint, .. } = offer;
        if self.checkpoints.handle_offer(&checkpoint) {
            transfers.checkpoint = Some(Arriving { checkpoint, transfer, task: None });
        } else {
            transfers.unwanted.insert(transfer);
        }
    }

    /// `true`: the refusal is about a checkpoint, and nothing that anybody need know.
    pub(super) fn checkpoint_refused(&mut self, refused: &Refused) -> bool {
        if refused.req != CHECKPOINT {
            return false;
        }
        tracing::info!(failure = %refused.failure, "no checkpoint");
        self.checkpoints.handle_refusal();
        true
    }

    /// Takes the announcement of a transfer, if it is the one of a checkpoint that was offered; otherwise gives it back.
    pub(super) async fn start_checkpoint(
        &mut self,
        meta: FileMeta,
        talk: &Conversation,
        transfers: &mut Transfers,
    ) -> Result<Option<FileMeta>, Failure> {
        let transfer = meta.transfer;
        if transfers.unwanted.remove(&transfer) {
            let failure = Failure::new(Code::WrongState, "this checkpoint is not wanted any more");
            talk.tell(Step::Refused(FileRefused { transfer, failure }).into()).await?;
            return Ok(None);
        }
        let arriving = transfers.checkpoint.as_mut().filter(|arriving| arriving.transfer == transfer && arriving.task.is_none());
        let (Some(arriving), Some(fetch)) = (arriving, self.fetch.as_ref()) else { return Ok(Some(meta)) };
        let place = Place::new(&fetch.output, &self.job()?);
        let (pool, steps) = (talk.pool(), talk.steps_of(transfer));
        arriving.task = Some(tokio::spawn(place.receive(meta, arriving.checkpoint.clone(), pool, steps)));
        Ok(None)
    }

    pub(super) async fn checkpoint_arrived(
        &mut self,
        saved: Result<Saved, Failure>,
        talk: &Conversation,
        transfers: &mut Transfers,
    ) -> Result<(), Failure> {
        let Some(Arriving { checkpoint, transfer, .. }) = transfers.checkpoint.take() else { return Ok(()) };
        talk.forget(transfer);
        match saved {
            // The link is going; the next one asks again.
            Err(failure) if failure.code == Code::NoConnection => return Ok(()),
            // With its job its copy at the worker has gone; the results are coming.
            Err(failure) if self.known.ended.is_some() => tracing::info!(%failure, "a checkpoint was not saved"),
            Err(failure) => {
                let message = format!("a checkpoint was not saved: {}", failure.message);
                // What failed before the transfer began is not known to the worker.
                talk.tell(Step::Refused(FileRefused { transfer, failure }).into()).await?;
                self.tell(Event::Notice { message }).await;
            }
            Ok(Saved { path, already_here }) => {
                let Checkpoint { step, epoch, metric, bytes, .. } = checkpoint.clone();
                let path = path.display().to_string();
                self.tell(Event::CheckpointSaved { job: self.job()?, step, epoch, metric, path, bytes, already_here }).await;
            }
        }
        self.checkpoints.handle_settled(&checkpoint);
        self.ask_for_checkpoint(talk).await
    }

    /// The results are coming: a checkpoint that is under way is not wanted any more. What has arrived of it counts for them.
    pub(super) fn drop_checkpoint(&mut self, talk: &Conversation, transfers: &mut Transfers) {
        self.checkpoints.handle_end();
        if let Some(arriving) = transfers.checkpoint.take() {
            talk.forget(arriving.transfer);
            if arriving.task.is_none() {
                transfers.unwanted.insert(arriving.transfer);
            }
            transfers.dropped = arriving.task;
        }
    }

    /// The results are in place: removes the checkpoints that are in them, too; gives the others.
    pub(super) async fn clean_up_checkpoints(&self, saved: &download::Saved) -> Result<Vec<PathBuf>, Failure> {
        let state = self.known.status.as_ref().map(|status| status.state);
        let went_well = matches!(state, Some(JobState::Ended { outcome: Outcome::Completed | Outcome::Stopped }));
        let place = Place::new(Path::new(&saved.path), &self.job()?);
        Ok(checkpoints::clean_up(place, saved.listing.clone(), went_well).await)
    }
}
