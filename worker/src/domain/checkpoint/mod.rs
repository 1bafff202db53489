//! When a step's best checkpoint is copied, so that it can be sent while training goes on.
//!
//! ```text
//!            an epoch ended, or SLOW has passed
//!   resting ────────────────────────────────────► look ──► missing, or the one that was copied last: rest
//!      ▲                                           │ ├───► not whole: look again, ever later
//!      │                                           │ └───► whole, but not seen like this for a moment: look again soon
//!      └──── a copy is announced ◄── unchanged ── copy ──► changed meanwhile: look again
//! ```
//! * a file that is just being written is never copied: it must be whole by its format ([`whole`]), and the same at two looks
//! * copies cost the machine at most a tenth of a thread's time, however often the trainer saves: the newest counts, nothing queues
//! * times are since any fixed start, except those of files and epochs, which are Unix times of the same machine

mod whole;

use std::{collections::VecDeque, time::Duration};

use shared::domain::job::{JobEvent, Metric, Metrics, Phase};

pub use whole::{HEAD, TAIL, Wholeness, wholeness};

/// Between two looks while the trainer says nothing.
const SLOW: Duration = Duration::from_secs(10);
/// How long a file whose format says that it is whole must have looked the same …
const QUIET: Duration = Duration::from_millis(100);
/// … and one whose format says nothing.
const QUIET_UNSURE: Duration = Duration::from_secs(1);
/// How soon a file that is not whole is looked at again, at first.
const RETRY: Duration = Duration::from_millis(250);
/// A copy that took a second is followed by so many seconds without one.
const REST_FACTOR: u32 = 9;
/// The longest such rest.
const MAX_REST: Duration = Duration::from_secs(60);
/// Epochs that are remembered: a file is never older than that when it is looked at.
const MAX_EPOCHS: usize = 64;

/// What tells that a file is still the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Its inode.
    pub inode: u64,
    /// Its length in bytes.
    pub size: u64,
    /// When it was modified, in Unix nanoseconds.
    pub modified_ns: i128,
}

/// What a look has found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// Not all files that make a model are there.
    Missing,
    /// One of them is not whole.
    Half,
    /// All are there.
    There {
        /// Of each, in a fixed order.
        stamps: Vec<Stamp>,
        /// Whether their formats say that they are whole.
        sure: bool,
    },
}

/// How a copy went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Copied {
    /// It is there.
    Whole,
    /// The files changed meanwhile, or turned out not to be whole: there is no copy.
    Changed,
    /// It was not possible.
    Failed,
}

/// The decisions about one step's checkpoint.
#[derive(Debug, Default)]
pub struct CheckpointWatch {
    epochs: VecDeque<Epoch>,
    /// What was copied last.
    copied: Option<Vec<Stamp>>,
    /// What the last look found, and since when it is so.
    seen: Option<(Vec<Stamp>, Duration)>,
    look_at: Duration,
    /// A look was asked for since the last one began.
    asked: bool,
    /// Nothing is to be done before something is said, or SLOW has passed.
    resting: bool,
    retry: Duration,
    not_before: Duration,
}

#[derive(Debug)]
struct Epoch {
    number: u32,
    began_ms: u64,
    metric: Option<Metric>,
}

impl CheckpointWatch {
    /// Nothing seen yet.
    pub fn new() -> Self {
        CheckpointWatch { look_at: SLOW, retry: RETRY, ..CheckpointWatch::default() }
    }

    /// Takes what the trainer has said, at `at_ms` (Unix milliseconds). `true`: [`deadline`](Self::deadline) may be nearer now.
    pub fn handle_event(&mut self, now: Duration, at_ms: u64, event: &JobEvent) -> bool {
        match event {
            JobEvent::EpochStarted { epoch, .. } => {
                if self.epochs.len() >= MAX_EPOCHS {
                    self.epochs.pop_front();
                }
                self.epochs.push_back(Epoch { number: *epoch, began_ms: at_ms, metric: None });
                false
            }
            JobEvent::EpochEnded { epoch, metrics, .. } => {
                if let Some(known) = self.epochs.iter_mut().rev().find(|known| known.number == *epoch) {
                    known.metric = validation_loss(metrics);
                }
                self.ask(now);
                true
            }
            JobEvent::PhaseEntered { phase: Phase::Evaluating, .. } => {
                self.ask(now);
                true
            }
            _ => false,
        }
    }

    /// The trainer has ended: what it left is looked at once more, without regard to costs.
    pub fn handle_end(&mut self, now: Duration) {
        self.not_before = now;
        self.ask(now);
    }

    /// Whether there is nothing that is to be looked at again soon.
    pub fn is_resting(&self) -> bool {
        self.resting
    }

    /// When to look next.
    pub fn deadline(&self) -> Duration {
        self.look_at
    }

    /// A look begins; what is said from now on asks for another one.
    pub fn begin_look(&mut self) {
        self.asked = false;
        self.resting = false;
    }

    /// Takes what a look has found. `true`: it is to be copied now.
    pub fn handle_found(&mut self, now: Duration, found: &Found) -> bool {
        let Found::There { stamps, sure } = found else {
            self.seen = None;
            match found {
                Found::Half => self.look_later(now),
                _ => self.rest(now),
            }
            return false;
        };
        if self.copied.as_ref() == Some(stamps) {
            self.rest(now);
            return false;
        }
        let quiet = if *sure { QUIET } else { QUIET_UNSURE };
        match &self.seen {
            Some((seen, since)) if seen == stamps => {
                if now >= *since + quiet && now >= self.not_before {
                    return true;
                }
                self.look_at = (*since + quiet).max(self.not_before);
            }
            _ => {
                self.seen = Some((stamps.clone(), now));
                self.look_at = (now + quiet).max(self.not_before);
            }
        }
        false
    }

    /// Takes how a copy of these files went, and how long it took.
    pub fn handle_copied(&mut self, now: Duration, stamps: &[Stamp], copied: Copied, took: Duration) {
        self.not_before = now + (took * REST_FACTOR).min(MAX_REST);
        match copied {
            Copied::Whole => {
                self.copied = Some(stamps.to_vec());
                self.retry = RETRY;
                self.rest(now);
            }
            Copied::Changed => {
                self.seen = None;
                self.look_later(now);
            }
            Copied::Failed => {
                self.asked = false;
                self.rest(now);
            }
        }
    }

    /// The epoch that these files were written in, and its validation loss, as far as they are known.
    pub fn origin(&self, stamps: &[Stamp]) -> (Option<u32>, Option<Metric>) {
        let Some(written) = stamps.iter().map(|stamp| stamp.modified_ns).max() else { return (None, None) };
        let epoch = self.epochs.iter().rev().find(|epoch| i128::from(epoch.began_ms) * 1_000_000 <= written);
        (epoch.map(|epoch| epoch.number), epoch.and_then(|epoch| epoch.metric))
    }

    fn ask(&mut self, now: Duration) {
        self.asked = true;
        self.retry = RETRY;
        self.look_at = self.look_at.min(now.max(self.not_before));
    }

    fn rest(&mut self, now: Duration) {
        self.resting = !self.asked;
        self.look_at = if self.asked { now.max(self.not_before) } else { now + SLOW };
    }

    fn look_later(&mut self, now: Duration) {
        self.look_at = (now + self.retry).max(self.not_before);
        self.retry = (self.retry * 2).min(SLOW);
    }
}

fn validation_loss(metrics: &Metrics) -> Option<Metric> {
    metrics.get("val/loss").or_else(|| metrics.get("val_loss")).copied()
}

/// Of the files that a successful run leaves, those that are a model; the others are read by people and at its loading.
pub fn models(results: &[String]) -> Vec<String> {
    results.iter().filter(|name| !is_configuration(name)).cloned().collect()
}

/// Whether a file is one of those that say how to use a model.
pub fn is_configuration(name: &str) -> bool {
    let extension = name.rsplit_once('.').map(|(_, extension)| extension.to_ascii_lowercase());
    matches!(extension.as_deref(), Some("yaml" | "yml" | "json" | "toml"))
}

#[cfg(test)]
mod tests;
