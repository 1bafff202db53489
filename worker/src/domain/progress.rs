//! What a trainer's progress messages mean: one frame of almost-JSON in, journal events out.
//!
//! * bare `NaN`, `Infinity`, `-Infinity` are read; sorted keys and `batch_begin` (SLEAP ≤ 1.4), too
//! * nothing of the text goes further: numbers and short keys only; values that are no numbers and keys of jsonpickle (`py/…`) are dropped
//! * a frame that cannot be read is a rare notice, never an error
//! * holes in the trainer's own epoch and batch numbers become [`JobEvent::Gap`]
//!
//! ```text
//!   Starting ── train_begin (or any epoch or batch) ──► Training ── train_end ──► Evaluating
//! ```

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;
use shared::domain::job::{JobEvent, Metric, Metrics, Phase};

/// The longest frame that is looked at, in bytes.
pub const MAX_FRAME: usize = 256 * 1024;
/// The most metrics of one message that are kept.
const MAX_METRICS: usize = 128;
/// The longest metric name that is kept, in bytes.
const MAX_KEY: usize = 100;

/// What has been learned about a step from its messages; [`super::outcome`] judges by it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Facts {
    /// `train_begin` (or anything after it) was seen.
    pub train_begin: bool,
    /// `train_end` was seen.
    pub train_end: bool,
    /// How many losses were finite.
    pub finite_losses: u64,
    /// How many were not.
    pub bad_losses: u64,
    /// Whether the last one was finite.
    pub last_loss_finite: bool,
}

/// Reads the messages of one step, in order.
#[derive(Debug, Clone)]
pub struct Tracker {
    step: u32,
    phase: Phase,
    facts: Facts,
    /// `train_begin` itself was seen: the first epoch may then have any number (a run that is taken up again).
    announced: bool,
    /// The epoch that has begun, or ended, last.
    epoch: Option<u32>,
    /// The epoch that has ended last.
    ended: Option<u32>,
    /// The batch that has ended last, and its epoch.
    batch: Option<(Option<u32>, u32)>,
    /// The last value told of each metric.
    told: BTreeMap<String, Metric>,
    unreadable: u64,
}

#[derive(Deserialize)]
struct Message {
    event: String,
    #[serde(default)]
    logs: Value,
    #[serde(default)]
    epoch: Value,
    #[serde(default)]
    batch: Value,
}

impl Tracker {
    /// A tracker for a step whose trainer has not said anything.
    pub fn new(step: u32) -> Self {
        Tracker {
            step,
            phase: Phase::Starting,
            facts: Facts::default(),
            announced: false,
            epoch: None,
            ended: None,
            batch: None,
            told: BTreeMap::new(),
            unreadable: 0,
        }
    }

    /// What is known so far.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// What the step is doing.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Reads one frame.
    pub fn handle(&mut self, frame: &[u8]) -> Vec<JobEvent> {
        let mut events = Vec::new();
        let Some(message) = parse(frame) else {
            self.handle_unreadable(&mut events);
            return events;
        };
        let metrics = metrics(&message.logs);
        let (epoch, batch) = (number(&message.epoch), number(&message.batch));
        match message.event.as_str() {
            "train_begin" => {
                self.announced = true;
                self.enter(Phase::Training, &mut events);
            }
            "epoch_begin" => self.handle_epoch_begin(epoch, &mut events),
            "batch_start" | "batch_begin" => self.enter(Phase::Training, &mut events),
            "batch_end" => self.handle_batch_end(epoch, batch, metrics, &mut events),
            "epoch_end" => self.handle_epoch_end(epoch, metrics, &mut events),
            "train_end" => {
                self.facts.train_end = true;
                self.enter(Phase::Evaluating, &mut events);
            }
            _ => self.handle_unreadable(&mut events),
        }
        events
    }

    /// Tells of the 1st, 10th, 100th, … frame that cannot be read: a flood of them is a handful of notices.
    fn handle_unreadable(&mut self, events: &mut Vec<JobEvent>) {
        self.unreadable += 1;
        let count = self.unreadable;
        if count == 10u64.saturating_pow(count.ilog10()) {
            let which = if count == 1 { "a progress message".to_owned() } else { format!("{count} progress messages") };
            events.push(JobEvent::Notice { message: format!("{which} of the trainer could not be understood and was left out") });
        }
    }

    fn enter(&mut self, phase: Phase, events: &mut Vec<JobEvent>) {
        self.facts.train_begin = true;
        // Once training has ended, a late batch message does not bring it back.
        if self.phase != phase && self.phase != Phase::Evaluating {
            self.phase = phase;
            events.push(JobEvent::PhaseEntered { step: self.step, phase });
        }
    }

    fn handle_epoch_begin(&mut self, epoch: Option<u32>, events: &mut Vec<JobEvent>) {
        self.enter(Phase::Training, events);
        let Some(epoch) = epoch else { return };
        self.check_epoch(epoch, events);
        self.epoch = Some(epoch);
        events.push(JobEvent::EpochStarted { step: self.step, epoch });
    }

    /// The epoch before this one must have been seen to end.
    fn check_epoch(&self, epoch: u32, events: &mut Vec<JobEvent>) {
        if self.announced && self.epoch.is_none() {
            return;
        }
        let expected = self.ended.map_or(0, |ended| ended.saturating_add(1));
        if epoch > expected {
            let from = self.epoch.max(self.ended).unwrap_or(0);
            events.push(JobEvent::Gap { step: self.step, what: "epoch".into(), from, to: epoch });
        }
    }

    fn handle_batch_end(&mut self, epoch: Option<u32>, batch: Option<u32>, metrics: Metrics, events: &mut Vec<JobEvent>) {
        self.enter(Phase::Training, events);
        let Some(batch) = batch else { return };
        let epoch = epoch.or(self.epoch);
        let (last, expected) = match self.batch {
            Some((same, last)) if same == epoch => (last, last.saturating_add(1)),
            Some((_, last)) => (last, 0),
            None => (0, 0),
        };
        if batch > expected {
            events.push(JobEvent::Gap { step: self.step, what: "batch".into(), from: last, to: batch });
        }
        self.batch = Some((epoch, batch));
        self.weigh(&metrics);
        // From epoch 1 on every batch repeats all metrics of the epoch: only what has changed is worth a line in the journal.
        let told = &self.told;
        let fresh: Metrics = metrics.into_iter().filter(|(key, value)| key == "loss" || told.get(key) != Some(value)).collect();
        self.remember(&fresh);
        events.push(JobEvent::BatchEnded { step: self.step, epoch, batch, metrics: fresh });
    }

    fn handle_epoch_end(&mut self, epoch: Option<u32>, metrics: Metrics, events: &mut Vec<JobEvent>) {
        self.enter(Phase::Training, events);
        let Some(epoch) = epoch.or(self.epoch) else { return };
        if self.epoch != Some(epoch) {
            self.check_epoch(epoch, events);
        }
        self.epoch = Some(epoch);
        self.ended = Some(epoch);
        self.weigh(&metrics);
        self.remember(&metrics);
        events.push(JobEvent::EpochEnded { step: self.step, epoch, metrics });
    }

    fn weigh(&mut self, metrics: &Metrics) {
        for key in ["loss", "val/loss", "val_loss"] {
            let Some(loss) = metrics.get(key) else { continue };
            self.facts.last_loss_finite = loss.0.is_finite();
            *if loss.0.is_finite() { &mut self.facts.finite_losses } else { &mut self.facts.bad_losses } += 1;
        }
    }

    fn remember(&mut self, metrics: &Metrics) {
        for (key, value) in metrics {
            if self.told.len() < MAX_METRICS || self.told.contains_key(key) {
                self.told.insert(key.clone(), *value);
            }
        }
    }
}

fn parse(frame: &[u8]) -> Option<Message> {
    if frame.len() > MAX_FRAME {
        return None;
    }
    serde_json::from_slice(&quote_bare(frame)).ok()
}

/// Puts the numbers that JSON does not have into quotes, where they stand outside of a string.
fn quote_bare(frame: &[u8]) -> Vec<u8> {
    const WORDS: [&[u8]; 3] = [b"-Infinity", b"Infinity", b"NaN"];
    let mut out = Vec::with_capacity(frame.len() + 64);
    let mut in_string = false;
    let mut at = 0;
    while at < frame.len() {
        let byte = frame[at];
        if in_string && byte == b'\\' {
            out.extend(&frame[at..frame.len().min(at + 2)]);
            at += 2;
            continue;
        }
        if byte == b'"' {
            in_string = !in_string;
        } else if !in_string && let Some(word) = WORDS.iter().find(|word| frame[at..].starts_with(word)) {
            out.push(b'"');
            out.extend(*word);
            out.push(b'"');
            at += word.len();
            continue;
        }
        out.push(byte);
        at += 1;
    }
    out
}

fn number(value: &Value) -> Option<u32> {
    let number = value.as_f64()?;
    (number.fract() == 0.0 && (0.0..=f64::from(u32::MAX)).contains(&number)).then_some(number as u32)
}

fn metrics(logs: &Value) -> Metrics {
    let Value::Object(logs) = logs else { return Metrics::new() };
    logs.iter().filter(|(key, _)| is_name(key)).filter_map(|(key, value)| Some((key.clone(), metric(value)?))).take(MAX_METRICS).collect()
}

fn is_name(key: &str) -> bool {
    !key.is_empty() && key.len() <= MAX_KEY && !key.starts_with("py/") && !key.chars().any(char::is_control)
}

fn metric(value: &Value) -> Option<Metric> {
    match value {
        Value::Number(number) => number.as_f64().map(Metric),
        Value::String(text) => match text.as_str() {
            "NaN" => Some(Metric(f64::NAN)),
            "Infinity" => Some(Metric(f64::INFINITY)),
            "-Infinity" => Some(Metric(f64::NEG_INFINITY)),
            _ => None,
        },
        _ => None,
    }
}

#[cfg(test)]
#[path = "progress_tests.rs"]
mod tests;
