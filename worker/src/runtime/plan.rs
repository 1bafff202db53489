//! The answer to "what would happen if I submitted this?": nothing is changed to find out.
//!
//! * no job, no place in the queue, nothing in the store; a look at the owner's own packages only, as for a submission
//! * the manifest comes as in a transfer, where the worker does not have it, and is forgotten with the answer
//! * afterwards the client may send probe frames, so many and for so long; they are counted and thrown away

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use shared::{
    domain::{
        error::{Code, Failure},
        frame::{FrameHeader, FrameKind},
        job::{JobSpec, JobState},
        manifest::{Manifest, ManifestSummary},
        message::{Plan, Probed, Refused, Req, Request, Submit, ToClient, WorkerInfo},
        transfer::ManifestAssembly,
    },
    runtime::{
        store::{Missing, Stock, Store},
        transfer::Inbound,
    },
};
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc},
    time::timeout,
};

use super::jobs::{Jobs, Outlook};
use crate::domain::{
    probe::Probe,
    trainer::{Trainer, likely},
};

/// Bytes of probe frames that are taken, at most …
const PROBE_BYTES: u64 = 8 << 20;
/// … for so long …
const PROBE_TIME: Duration = Duration::from_secs(1);
/// … if they begin to come so soon.
const PROBE_BEGIN: Duration = Duration::from_secs(5);
/// How long the next piece of the manifest may take.
const MANIFEST_PIECE: Duration = Duration::from_secs(30);

/// A plan that was asked for.
pub(super) struct Planning {
    pub(super) jobs: Jobs,
    pub(super) store: Arc<Store>,
    /// Who asks.
    pub(super) owner: String,
    pub(super) info: Arc<dyn Fn() -> WorkerInfo + Send + Sync>,
    /// The plan's frames.
    pub(super) inbound: mpsc::Receiver<Inbound>,
    pub(super) out: mpsc::Sender<ToClient>,
    /// One plan at a time over one link.
    pub(super) turn: OwnedSemaphorePermit,
}

impl Planning {
    /// Answers, and counts what follows.
    pub(super) async fn run(mut self, submit: Submit) {
        let req = submit.req;
        let answered = match self.plan(submit).await {
            Ok(plan) => {
                let probe = plan.probe;
                self.tell(ToClient::Plan(Box::new(plan))).await.map(|()| probe)
            }
            Err(failure) => self.tell(ToClient::Refused(Refused { req, failure })).await.map(|()| 0),
        };
        if let Ok(most @ 1..) = answered
            && let Some(probe) = self.count(most).await
        {
            let (bytes, took) = probe.pace();
            let _ = self.tell(ToClient::Probed(Probed { req, bytes, micros: took.as_micros() as u64 })).await;
        }
        drop(self.turn);
    }

    async fn plan(&mut self, submit: Submit) -> Result<Plan, Failure> {
        let Submit { req, spec, manifest: summary, .. } = submit;
        let outlook = self.jobs.outlook(&spec, &summary)?;
        let awaited = outlook.known.as_ref().is_none_or(|known| known.state == JobState::Uploading);
        let (store, owner) = (self.store.clone(), self.owner.clone());
        let stock = blocking(move || store.stock(&owner, &summary)).await?;
        let manifest = match &stock {
            Stock::Nothing if awaited && outlook.refused.is_none() => Some(Arc::new(self.manifest(req, summary).await?)),
            Stock::Listed(manifest) if awaited => Some(manifest.clone()),
            _ => None,
        };
        let look = Look { store: self.store.clone(), jobs: self.jobs.clone(), owner: self.owner.clone(), spec, summary, awaited };
        let seen = blocking(move || look.look(&stock, manifest.as_deref())).await?;
        Ok(self.answer(req, outlook, seen))
    }

    fn answer(&self, req: Req, outlook: Outlook, seen: Seen) -> Plan {
        let Outlook { job, known, ahead, running, refused } = outlook;
        let refused = refused.or(seen.refused);
        let Seen { missing: Missing { to_send, .. }, free, notices, .. } = seen;
        let probe = if to_send > 0 && refused.is_none() { PROBE_BYTES } else { 0 };
        Plan { req, job, known, to_send, free, ahead, running, worker: (self.info)(), notices, refused, probe }
    }

    async fn manifest(&mut self, req: Req, summary: ManifestSummary) -> Result<Manifest, Failure> {
        let mut assembly = ManifestAssembly::new(summary)?;
        self.tell(ToClient::Planning(Request { req })).await?;
        loop {
            match timeout(MANIFEST_PIECE, self.inbound.recv()).await {
                Ok(Some(Inbound::Frame { frame, .. })) => {
                    let (header, piece) = FrameHeader::decode(&frame)?;
                    if header.kind == FrameKind::Manifest
                        && let Some(manifest) = assembly.accept_piece(header, piece)?
                    {
                        return Ok(manifest);
                    }
                }
                // The client starts over on another connection.
                Ok(Some(Inbound::Lost(_))) => assembly = ManifestAssembly::new(summary)?,
                Ok(None) => return Err(Failure::new(Code::NoConnection, "the connection was lost")),
                Err(_) => return Err(Failure::new(Code::NoConnection, "the package's list of files did not arrive in time")),
            }
        }
    }

    /// Counts probe frames; `None`: none came.
    async fn count(&mut self, most: u64) -> Option<Probe> {
        let first = timeout(PROBE_BEGIN, self.probe_frame()).await.ok()??;
        let (began, mut probe) = (Instant::now(), Probe::default());
        probe.handle_arrival(Duration::ZERO, first);
        while probe.bytes() < most
            && let Some(left) = PROBE_TIME.checked_sub(began.elapsed())
            && let Ok(Some(bytes)) = timeout(left, self.probe_frame()).await
        {
            probe.handle_arrival(began.elapsed(), bytes);
        }
        Some(probe)
    }

    async fn probe_frame(&mut self) -> Option<u64> {
        loop {
            if let Inbound::Frame { frame, .. } = self.inbound.recv().await?
                && matches!(FrameHeader::decode(&frame), Ok((FrameHeader { kind: FrameKind::Probe, .. }, _)))
            {
                return Some(frame.len() as u64);
            }
        }
    }

    async fn tell(&self, message: ToClient) -> Result<(), Failure> {
        self.out.send(message).await.map_err(|_| Failure::new(Code::NoConnection, "it closed the connection"))
    }
}

/// What is looked up on the disk.
struct Look {
    store: Arc<Store>,
    jobs: Jobs,
    owner: String,
    spec: JobSpec,
    summary: ManifestSummary,
    /// Whether a submission would wait for the package.
    awaited: bool,
}

/// What was found there.
struct Seen {
    missing: Missing,
    free: u64,
    notices: Vec<String>,
    refused: Option<Failure>,
}

impl Look {
    fn look(&self, stock: &Stock, manifest: Option<&Manifest>) -> Result<Seen, Failure> {
        let missing = match manifest {
            Some(manifest) => self.store.missing(&self.owner, &self.summary.id, manifest)?,
            None => Missing::default(),
        };
        let (free, fits) = self.store.room(&self.owner, &self.summary, stock, missing)?;
        let settings = self.jobs.settings();
        let (trainer, refused) = match (stock, manifest) {
            _ if !self.awaited => (None, None),
            (Stock::Whole(folder), _) => match self.jobs.preview(&self.spec, folder) {
                Ok(trainer) => (Some(trainer), None),
                Err(failure) => (None, Some(failure)),
            },
            (_, Some(manifest)) => (likely(manifest.entries.iter().map(|entry| &entry.path), &self.spec, settings), fits.err()),
            (_, None) => (None, fits.err()),
        };
        let notices = trainer.and_then(|trainer| self.notice(&trainer)).into_iter().collect();
        Ok(Seen { missing, free, notices, refused })
    }

    /// A word about a trainer that is not installed.
    fn notice(&self, trainer: &Trainer) -> Option<String> {
        let program = self.jobs.settings().program(trainer)?;
        let absent = !is_installed(program);
        absent.then(|| format!("{trainer} is not to be found on the worker ({program}): the job would fail; ask its operator"))
    }
}

/// Whether a trainer could be started by this name.
fn is_installed(program: &str) -> bool {
    if program.contains('/') {
        return Path::new(program).is_file();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Failure> + Send + 'static) -> Result<T, Failure> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| Failure::new(Code::Internal, format!("looking at the store ended unexpectedly: {error}")))?
}
