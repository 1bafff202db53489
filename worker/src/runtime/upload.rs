//! Packages on their way in.
//!
//! A package has one receiver at a time. The latest session of its owner takes over: the one before may belong to a link that is
//! dead without our knowing, or to a client that was killed and run again.

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
    sync::{Arc, Mutex},
};

use shared::{
    domain::{
        error::{Code, Failure},
        id::{JobId, Secret},
        manifest::Hash,
        message::{FileMeta, FileRefused, Step},
        transfer::Progress,
    },
    runtime::{
        store::Store,
        transfer::{Pool, StepPort, receive},
    },
};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::jobs::Jobs;

/// Which package: its owner, and the hash of its manifest.
type Key = (String, Hash);
/// Ends an upload and tells its client why.
type GiveWay = Box<dyn FnOnce(Failure) + Send>;

/// The uploads of all sessions.
#[derive(Clone, Default)]
pub struct Uploads {
    under_way: Arc<Mutex<HashMap<Key, UnderWay>>>,
}

struct UnderWay {
    give_way: GiveWay,
    ended: CancellationToken,
}

/// The right to receive a package, once the one before has let go of it.
pub(super) struct Turn {
    before: Option<CancellationToken>,
    _ended: DropGuard,
}

impl Uploads {
    /// Takes a package over from whoever receives it now. `give_way` is called when the next one does so.
    pub(super) fn take_over(&self, key: Key, give_way: GiveWay) -> Turn {
        let ended = CancellationToken::new();
        let before = {
            let mut under_way = self.under_way.lock().expect("no panic happens under this lock");
            under_way.retain(|other, upload| *other == key || !upload.ended.is_cancelled());
            under_way.insert(key, UnderWay { give_way, ended: ended.clone() })
        };
        let before = before.map(|UnderWay { give_way, ended }| {
            if !ended.is_cancelled() {
                give_way(Failure::new(
                    Code::PeerBusy,
                    "the same package is now being sent by another client of yours, which goes on with it",
                ));
            }
            ended
        });
        Turn { before, _ended: ended.drop_guard() }
    }
}

/// A package on its way in.
pub(super) struct Upload {
    pub(super) store: Arc<Store>,
    pub(super) jobs: Jobs,
    /// Whose package it is.
    pub(super) owner: String,
    /// The session's secret.
    pub(super) secret: Secret<[u8; 32]>,
    pub(super) pool: Pool,
    /// The unfinished uploads of its session.
    pub(super) uploading: Arc<Mutex<HashSet<JobId>>>,
}

impl Upload {
    /// Receives it, and hands the job on.
    pub(super) async fn run(self, meta: FileMeta, steps: StepPort, turn: Turn) {
        let job = meta.job.clone();
        if let Some(before) = &turn.before {
            before.cancelled().await;
        }
        match self.receive(meta, steps).await {
            Ok(()) => {
                self.uploading.lock().expect("no panic happens under this lock").remove(&job);
                tracing::info!(%job, "the package is whole");
            }
            Err(failure) => tracing::info!(%job, %failure, "the upload has ended early"),
        }
    }

    async fn receive(&self, meta: FileMeta, steps: StepPort) -> Result<(), Failure> {
        let (store, owner, secret) = (self.store.clone(), self.owner.clone(), self.secret.clone());
        let (summary, transfer, job) = (meta.manifest, meta.transfer, meta.job.clone());
        let begun = tokio::task::spawn_blocking(move || store.begin_proving(&owner, &summary, secret)).await;
        let begun = match begun.map_err(|error| Failure::new(Code::Internal, format!("beginning a package ended unexpectedly: {error}")))? {
            Ok(begun) => begun,
            Err(failure) => {
                let _ = steps.tx.send(Step::Refused(FileRefused { transfer, failure: failure.clone() })).await;
                return Err(failure);
            }
        };
        let package = receive(meta, begun, &self.pool, steps, watch::Sender::new(Progress::default())).await?;
        let path: PathBuf = package.path().to_owned();
        self.jobs.uploaded(&job, &path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(owner: &str) -> Key {
        (owner.to_owned(), Hash([7; 32]))
    }

    #[tokio::test]
    async fn the_latest_session_takes_over_once_the_one_before_has_let_go() {
        let uploads = Uploads::default();
        let told = Arc::new(Mutex::new(Vec::new()));
        let take = |owner: &str, name: &'static str| {
            let told = told.clone();
            uploads.take_over(key(owner), Box::new(move |failure: Failure| told.lock().unwrap().push((name, failure.code))))
        };
        let first = take("anna", "first");
        let other = take("ben", "other");
        assert!(first.before.is_none() && other.before.is_none(), "each owner has packages of their own");
        let second = take("anna", "second");
        assert_eq!(*told.lock().unwrap(), [("first", Code::PeerBusy)]);
        let before = second.before.clone().unwrap();
        assert!(!before.is_cancelled());
        drop(first);
        before.cancelled().await;
        drop(second);
        let third = take("anna", "third");
        assert!(third.before.as_ref().is_some_and(CancellationToken::is_cancelled), "nobody is in the way");
        assert_eq!(told.lock().unwrap().len(), 1, "who has ended is told nothing");
    }
}
