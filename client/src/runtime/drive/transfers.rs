//! The transfers of one link: the package up, the results down, and what is told of them.

use std::{collections::BTreeSet, time::Duration};

use shared::{
    domain::{
        error::{Code, Failure},
        id::JobId,
        message::{FileMeta, JobRef, ToWorker, TransferId},
        transfer::Progress,
    },
    runtime::transfer::{Outgoing, send},
};
use tokio::{
    sync::watch,
    task::{JoinHandle, JoinSet},
    time::{Instant, timeout},
};

use super::{Drive, FETCH, Submission, checkpoints::Arriving};
use crate::{
    domain::{
        event::Event,
        growth::{Growth, Look},
    },
    runtime::{
        checkpoints::{self, Place},
        conversation::Conversation,
        download::{self, Saved},
    },
};

/// Between two reports of a transfer's progress.
const REPORT: Duration = Duration::from_millis(100);
const UPLOAD: TransferId = 1;

/// The transfers of one link.
pub(super) struct Transfers {
    pub(super) tasks: JoinSet<Result<Moved, Failure>>,
    pub(super) upload: watch::Receiver<Progress>,
    pub(super) download: watch::Receiver<Progress>,
    pub(super) uploading: Option<Instant>,
    pub(super) downloading: Option<Instant>,
    /// The checkpoint that is arriving.
    pub(super) checkpoint: Option<Arriving>,
    /// Offered, and not wanted any more: their announcements are refused.
    pub(super) unwanted: BTreeSet<TransferId>,
    /// The task of one that the results have overtaken.
    pub(super) dropped: Option<JoinHandle<Result<checkpoints::Saved, Failure>>>,
    /// Whether this link has asked for the results.
    pub(super) asked: bool,
    planned: bool,
    reported: Instant,
    growth: Growth,
}

pub(super) enum Moved {
    Up,
    Down(Saved),
}

impl Transfers {
    pub(super) fn new() -> Self {
        let (_, upload) = watch::channel(Progress::default());
        let (_, download) = watch::channel(Progress::default());
        Transfers {
            tasks: JoinSet::new(),
            upload,
            download,
            uploading: None,
            downloading: None,
            checkpoint: None,
            unwanted: BTreeSet::new(),
            dropped: None,
            asked: false,
            planned: false,
            reported: Instant::now(),
            growth: Growth::default(),
        }
    }

    pub(super) fn start_upload(&mut self, submission: &Submission, job: JobId, talk: &Conversation) -> Result<(), Failure> {
        let reader = submission.source.reader(submission.listing.clone())?;
        let outgoing =
            Outgoing { transfer: UPLOAD, job, listing: submission.listing.clone(), reader: Box::new(reader), session: Some(talk.secret()) };
        let (progress_tx, progress) = watch::channel(Progress::default());
        self.upload = progress;
        self.uploading = Some(Instant::now());
        let (pool, steps) = (talk.pool(), talk.steps_of(UPLOAD));
        self.tasks.spawn(async move { send(outgoing, &pool, steps, &progress_tx).await.map(|()| Moved::Up) });
        Ok(())
    }

    /// Has as many bulk connections as the transfer under way needs.
    pub(super) fn grow(&mut self, talk: &Conversation) {
        let (began, progress) = match (self.uploading, self.downloading) {
            (Some(began), _) => (began, *self.upload.borrow()),
            (None, Some(began)) => (began, *self.download.borrow()),
            (None, None) => return,
        };
        if progress.needed_bytes == 0 {
            // Not known yet: so far, only the list of files has travelled.
            return;
        }
        let look = Look {
            now: began.elapsed(),
            carried: talk.carried(),
            left: progress.needed_bytes.saturating_sub(progress.acked_bytes),
            open: talk.open_bulk(),
            round_trip: talk.path_round_trip(),
            // Only the sender sees the queues.
            full: self.uploading.is_none() || talk.is_path_full(),
        };
        talk.keep_bulk(self.growth.handle_look(look));
    }

    /// Waits for what is still under way: it ends by itself once its link is gone, and keeps what it has.
    pub(super) async fn end(&mut self) {
        let ending = async {
            while self.tasks.join_next().await.is_some() {}
            for task in [self.checkpoint.take().and_then(|arriving| arriving.task), self.dropped.take()].into_iter().flatten() {
                let _ = task.await;
            }
        };
        if timeout(Duration::from_secs(5), ending).await.is_err() {
            tracing::warn!("a transfer did not end with its link");
        }
    }
}

impl Drive {
    /// The link is gone. Tells how far the upload was in the end, and what it had sent for that.
    pub(super) async fn interrupted(&mut self, mut transfers: Transfers) {
        transfers.end().await;
        let Progress { acked_bytes: done, needed_bytes: total, sent_bytes, .. } = *transfers.upload.borrow();
        self.known.sent += sent_bytes;
        if transfers.uploading.is_some() && transfers.planned {
            self.tell(Event::Uploading { done, total, sent: self.known.sent, round_trip_ms: None }).await;
        }
    }

    pub(super) fn start_download(&mut self, meta: FileMeta, talk: &Conversation, transfers: &mut Transfers) -> Result<(), Failure> {
        let Some(fetch) = self.fetch.clone().filter(|_| transfers.asked && transfers.downloading.is_none()) else {
            return Err(Failure::new(Code::InvalidRequest, "the worker sent results that were not asked for"));
        };
        transfers.downloading = Some(Instant::now());
        transfers.growth = Growth::default();
        let (progress_tx, progress) = watch::channel(Progress::default());
        transfers.download = progress;
        let (pool, steps) = (talk.pool(), talk.steps_of(meta.transfer));
        let (dropped, place) = (transfers.dropped.take(), Place::new(&fetch.output, &self.job()?));
        transfers.tasks.spawn(async move {
            if let Some(dropped) = dropped {
                // It ends in a moment, and leaves its folder alone from then on.
                let _ = dropped.await;
            }
            download::receive_results(meta, fetch, place.nearby(), pool, steps, progress_tx).await.map(Moved::Down)
        });
        Ok(())
    }

    pub(super) async fn moved(
        &mut self,
        moved: Result<Result<Moved, Failure>, tokio::task::JoinError>,
        transfers: &mut Transfers,
        talk: &Conversation,
    ) -> Result<(), Failure> {
        let moved = moved.map_err(|error| Failure::new(Code::Internal, format!("a transfer ended unexpectedly: {error}")))?;
        let moved = moved.map_err(|failure| match failure.code {
            // An earlier link's transfer was faster by a moment: asked again, the worker says how far the job is.
            Code::WrongState if transfers.uploading.is_some() => Failure::new(Code::NoConnection, failure.message),
            _ => failure,
        })?;
        match moved {
            Moved::Up => {
                self.known.uploaded = true;
                self.report_upload_now(transfers, talk).await;
                let began = transfers.uploading.take().unwrap_or_else(Instant::now);
                let Progress { needed_bytes: bytes, sent_bytes, .. } = *transfers.upload.borrow();
                let elapsed_ms = began.elapsed().as_millis() as u64;
                self.connector.remember_speed(bytes, began.elapsed());
                self.tell(Event::Uploaded { bytes, sent: self.known.sent + sent_bytes, elapsed_ms }).await;
            }
            Moved::Down(saved) => {
                self.known.saved = true;
                let began = transfers.downloading.take().unwrap_or_else(Instant::now);
                let elapsed_ms = began.elapsed().as_millis() as u64;
                let already_here = saved.listing.summary().bytes.saturating_sub(transfers.download.borrow().needed_bytes);
                let kept = self.clean_up_checkpoints(&saved).await?;
                let bytes = saved.listing.summary().bytes;
                let files = saved.listing.heads().iter().map(|head| head.path.to_string()).collect();
                self.tell(Event::Downloaded { path: saved.path, files, bytes, already_here, elapsed_ms }).await;
                for path in kept {
                    let message = format!("the checkpoint in {} is not among the results and is kept", path.display());
                    self.tell(Event::Notice { message }).await;
                }
                talk.tell(ToWorker::Fetched(JobRef { req: FETCH, job: self.job()? })).await?;
            }
        }
        Ok(())
    }

    pub(super) async fn report_upload(&mut self, transfers: &mut Transfers, talk: &Conversation) {
        if !transfers.planned || transfers.reported.elapsed() >= REPORT {
            self.report_upload_now(transfers, talk).await;
        }
    }

    async fn report_upload_now(&mut self, transfers: &mut Transfers, talk: &Conversation) {
        transfers.reported = Instant::now();
        let progress = *transfers.upload.borrow();
        if !transfers.planned {
            transfers.planned = true;
            let there = progress.total_bytes - progress.needed_bytes;
            self.tell_plan(false, there, progress.needed_bytes).await;
        }
        let round_trip_ms = talk.round_trip().map(|time| time.as_millis() as u64);
        let sent = self.known.sent + progress.sent_bytes;
        self.tell(Event::Uploading { done: progress.acked_bytes, total: progress.needed_bytes, sent, round_trip_ms }).await;
    }

    pub(super) async fn report_download(&mut self, transfers: &mut Transfers) {
        if transfers.reported.elapsed() >= REPORT {
            transfers.reported = Instant::now();
            let progress = *transfers.download.borrow();
            self.tell(Event::Downloading { done: progress.acked_bytes, total: progress.needed_bytes }).await;
        }
    }
}
