//! The runner's thread that looks after a step's checkpoint.
//!
//! It is a thread and not a task because it blocks, and because its priority can be lowered: the trainer's processes come first.

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use shared::domain::job::{Checkpoint, JobEvent};
use tokio::{sync::mpsc, time::timeout};

use super::copy::Model;
use crate::{
    domain::checkpoint::{CheckpointWatch, Copied, Found, Stamp, models},
    runtime::{now_ms, workspace::JobDir},
};

/// Copies that wait for the journal.
const WAITING: usize = 4;
/// How long the last look after a trainer's end may take.
const LAST_LOOK: Duration = Duration::from_secs(30);
/// The lowest priority there is; what the kernel reads and writes for it comes last, too.
#[cfg(target_os = "linux")]
const NICENESS: i32 = 19;

/// The checkpoints of one step.
pub(crate) struct Checkpoints {
    shared: Arc<Shared>,
    copied: mpsc::Receiver<JobEvent>,
}

struct Shared {
    began: Instant,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    watch: CheckpointWatch,
    end: Option<End>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// The trainer has ended: look once more.
    Settled,
    /// Nobody wants to know any more.
    Dropped,
}

impl Checkpoints {
    /// Looks after the model of a step, whose results are in this folder below the job's results, in these files.
    pub(crate) fn watch(dir: &JobDir, step: u32, run: &str, results: &[String]) -> Self {
        let state = State { watch: CheckpointWatch::new(), end: None };
        let shared = Arc::new(Shared { began: Instant::now(), state: Mutex::new(state), changed: Condvar::new() });
        let (sender, copied) = mpsc::channel(WAITING);
        let files = models(results);
        let home = dir.checkpoints().join(step.to_string());
        let model = Model { results: dir.results(), run: run.to_owned(), files, home };
        let worker = Worker { shared: shared.clone(), model, step, copied: sender, failed: false };
        if !worker.model.files.is_empty()
            && let Err(error) = std::thread::Builder::new().name("checkpoints".into()).spawn(move || worker.run())
        {
            tracing::error!(%error, "no checkpoint will be sent before the end");
        }
        Checkpoints { shared, copied }
    }

    /// Takes what the trainer has said. Never waits for a disk.
    pub(crate) fn handle_events(&self, events: &[JobEvent]) {
        let (now, at_ms) = (self.shared.now(), now_ms());
        let mut state = self.shared.state();
        let mut nearer = false;
        for event in events {
            nearer |= state.watch.handle_event(now, at_ms, event);
        }
        if nearer {
            self.shared.changed.notify_all();
        }
    }

    /// What the journal is to say; for ever pending or `None` while there is nothing. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Option<JobEvent> {
        self.copied.recv().await
    }

    /// The trainer has ended: looks once more, and gives what the journal is still to say.
    pub(crate) async fn finish(mut self) -> Vec<JobEvent> {
        self.shared.end(End::Settled);
        let mut events = Vec::new();
        let last = async {
            while let Some(event) = self.copied.recv().await {
                events.push(event);
            }
        };
        if timeout(LAST_LOOK, last).await.is_err() {
            tracing::warn!("the last look at the checkpoint took too long");
        }
        events
    }
}

impl Drop for Checkpoints {
    fn drop(&mut self) {
        self.shared.end(End::Dropped);
    }
}

impl Shared {
    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, end: End) {
        let now = self.now();
        let mut state = self.state();
        state.end = Some(end);
        if end == End::Settled {
            state.watch.handle_end(now);
        }
        self.changed.notify_all();
    }

    /// Waits for the time of the next look, and says whether the trainer has ended before it; `None`: nobody wants one.
    fn wait_for_look(&self) -> Option<bool> {
        let mut state = self.state();
        loop {
            let (now, at) = (self.now(), state.watch.deadline());
            if state.end == Some(End::Dropped) {
                return None;
            }
            if at <= now {
                state.watch.begin_look();
                return Some(state.end.is_some());
            }
            state = self.changed.wait_timeout(state, at - now).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

struct Worker {
    shared: Arc<Shared>,
    model: Model,
    step: u32,
    copied: mpsc::Sender<JobEvent>,
    /// Whether the last copy failed; said once.
    failed: bool,
}

impl Worker {
    fn run(mut self) {
        // On Linux this is about the calling thread, and the threads that it starts.
        #[cfg(target_os = "linux")]
        if let Err(error) = rustix::process::setpriority_process(None, NICENESS) {
            tracing::debug!(%error, "the priority of copying checkpoints could not be lowered");
        }
        while let Some(ended) = self.shared.wait_for_look() {
            let found = self.model.look();
            let now = self.shared.now();
            let wanted = self.shared.state().watch.handle_found(now, &found);
            if let (Found::There { stamps, .. }, true) = (&found, wanted)
                && let Some(event) = self.copy(stamps)
                && self.copied.blocking_send(event).is_err()
            {
                return;
            }
            // After the trainer's end nothing changes by itself any more: what is not whole will not be.
            let there = matches!(found, Found::There { .. });
            if ended && (!there || self.shared.state().watch.is_resting()) {
                return;
            }
        }
    }

    fn copy(&mut self, stamps: &[Stamp]) -> Option<JobEvent> {
        let began = self.shared.now();
        let origin = self.shared.state().watch.origin(stamps);
        let copy = std::fs::create_dir_all(&self.model.home)
            .map_err(|error| crate::runtime::workspace::failure("make", &self.model.home, &error))
            .and_then(|()| self.model.copy(stamps, self.step, origin));
        let (copied, event) = match copy {
            Ok(Some(checkpoint)) => (Copied::Whole, Some(self.announce(checkpoint))),
            Ok(None) => (Copied::Changed, None),
            Err(failure) => (Copied::Failed, self.complain(&failure.message)),
        };
        let now = self.shared.now();
        let mut state = self.shared.state();
        state.watch.handle_copied(now, stamps, copied, now.saturating_sub(began));
        drop(state);
        event
    }

    fn announce(&mut self, checkpoint: Checkpoint) -> JobEvent {
        self.failed = false;
        tracing::info!(step = self.step, epoch = checkpoint.epoch, bytes = checkpoint.bytes, "a checkpoint was copied");
        JobEvent::Checkpoint(checkpoint)
    }

    /// Said to people the first time.
    fn complain(&mut self, message: &str) -> Option<JobEvent> {
        tracing::warn!(message, "a checkpoint could not be copied");
        let message = format!("the best checkpoint cannot be sent before the end: {message}");
        (!std::mem::replace(&mut self.failed, true)).then_some(JobEvent::Notice { message })
    }
}
