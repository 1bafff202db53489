//! The transfers of one link: the package up, the results down, and what is told of them.

use std::time::Duration;

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
    task::JoinSet,
    time::{Instant, timeout},
};

use super::{Drive, FETCH, Submission};
use crate::{
    domain::{
        event::Event,
        growth::{Growth, Look},
    },
    runtime::{
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
            asked: false,
            planned: false,
            reported: Instant::now(),
            growth: Growth::default(),
        }
    }

    pub(super) fn start_upload(&mut self, submission: &Submission, job: JobId, talk: &Conversation) -> Result<(), Failure> {
        let reader = submission.source.reader(submission.places.manifest().clone())?;
        let outgoing = Outgoing {
            transfer: UPLOAD,
            job,
            summary: submission.summary,
            encoded: submission.encoded.clone(),
            places: submission.places.clone(),
            reader: Box::new(reader),
        };
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
            round_trip: talk.round_trip(),
        };
        talk.keep_bulk(self.growth.handle_look(look));
    }

    /// Waits for what is still under way: it ends by itself once its link is gone, and keeps what it has.
    pub(super) async fn end(mut self) {
        let ending = async { while self.tasks.join_next().await.is_some() {} };
        if timeout(Duration::from_secs(5), ending).await.is_err() {
            tracing::warn!("a transfer did not end with its link");
        }
    }
}

impl Drive {
    pub(super) fn start_download(&mut self, meta: FileMeta, talk: &Conversation, transfers: &mut Transfers) -> Result<(), Failure> {
        let Some(fetch) = self.fetch.clone().filter(|_| transfers.asked && transfers.downloading.is_none()) else {
            return Err(Failure::new(Code::InvalidRequest, "the worker sent results that were not asked for"));
        };
        transfers.downloading = Some(Instant::now());
        transfers.growth = Growth::default();
        let (progress_tx, progress) = watch::channel(Progress::default());
        transfers.download = progress;
        let (pool, steps) = (talk.pool(), talk.steps_of(meta.transfer));
        transfers.tasks.spawn(async move { download::receive_results(meta, fetch, pool, steps, progress_tx).await.map(Moved::Down) });
        Ok(())
    }

    pub(super) async fn moved(
        &mut self,
        moved: Result<Result<Moved, Failure>, tokio::task::JoinError>,
        transfers: &mut Transfers,
        talk: &Conversation,
    ) -> Result<(), Failure> {
        let moved = moved.map_err(|error| Failure::new(Code::Internal, format!("a transfer ended unexpectedly: {error}")))??;
        match moved {
            Moved::Up => {
                self.known.uploaded = true;
                self.report_upload_now(transfers).await;
                let began = transfers.uploading.take().unwrap_or_else(Instant::now);
                let bytes = transfers.upload.borrow().needed_bytes;
                self.tell(Event::Uploaded { bytes, elapsed_ms: began.elapsed().as_millis() as u64 }).await;
            }
            Moved::Down(saved) => {
                self.known.saved = true;
                let began = transfers.downloading.take().unwrap_or_else(Instant::now);
                let elapsed_ms = began.elapsed().as_millis() as u64;
                self.tell(Event::Downloaded { path: saved.path, files: saved.files, bytes: saved.bytes, elapsed_ms }).await;
                talk.tell(ToWorker::Fetched(JobRef { req: FETCH, job: self.job()? })).await?;
            }
        }
        Ok(())
    }

    pub(super) async fn report_upload(&mut self, transfers: &mut Transfers) {
        if !transfers.planned || transfers.reported.elapsed() >= REPORT {
            self.report_upload_now(transfers).await;
        }
    }

    async fn report_upload_now(&mut self, transfers: &mut Transfers) {
        transfers.reported = Instant::now();
        let progress = *transfers.upload.borrow();
        if !transfers.planned {
            transfers.planned = true;
            if let (Some(job), Some(submission)) = (&self.known.job, &self.submission) {
                let plan = Event::Plan {
                    job: job.clone(),
                    known: false,
                    files: submission.summary.files,
                    bytes: progress.total_bytes,
                    already_there: progress.total_bytes - progress.needed_bytes,
                    to_send: progress.needed_bytes,
                    disk_free: self.known.disk_free,
                };
                self.tell(plan).await;
            }
        }
        self.tell(Event::Uploading { done: progress.acked_bytes, total: progress.needed_bytes }).await;
    }

    pub(super) async fn report_download(&mut self, transfers: &mut Transfers) {
        if transfers.reported.elapsed() >= REPORT {
            transfers.reported = Instant::now();
            let progress = *transfers.download.borrow();
            self.tell(Event::Downloading { done: progress.acked_bytes, total: progress.needed_bytes }).await;
        }
    }
}
