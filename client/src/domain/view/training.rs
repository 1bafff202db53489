//! A job's journal as people see it: its steps, each with phase, epoch, batch and losses.

use std::collections::BTreeMap;

use shared::domain::job::{Command, CommandState, JobEvent, JournalEntry, Metric, Metrics, Outcome, Phase};

use super::line::{Line, Live, Tone};
use crate::domain::format;

/// More steps than any package has: what a worker says beyond them is not kept.
const MAX_STEPS: usize = 256;

/// The steps of one job.
#[derive(Debug, Default)]
pub(super) struct Training {
    planned: usize,
    current: Option<u32>,
    steps: BTreeMap<u32, Step>,
    /// Whether an entry has been seen.
    pub(super) begun: bool,
    /// Whether the job is over.
    pub(super) ended: bool,
}

#[derive(Debug, Default)]
struct Step {
    name: String,
    max_epochs: Option<u32>,
    phase: Option<Phase>,
    epoch: Option<u32>,
    epoch_began_at_ms: Option<u64>,
    batch: Option<u32>,
    loss: Option<Metric>,
    epochs_done: u32,
    last_loss: Option<Metric>,
    last_validation: Option<Metric>,
    best: Option<(f64, u32)>,
    outcome: Option<Outcome>,
}

impl Training {
    /// Takes an entry; gives the lines that stay.
    pub(super) fn handle(&mut self, entry: &JournalEntry, verbose: bool) -> Vec<Line> {
        self.begun = true;
        match &entry.event {
            JobEvent::JobStarted { trainer, steps } => {
                self.planned = steps.len().min(MAX_STEPS);
                let names = steps.iter().take(MAX_STEPS).map(String::as_str).collect::<Vec<_>>().join(", ");
                vec![Line::plain(format!("{trainer} trains {}: {names}", format::count(self.planned as u64, "model")))]
            }
            JobEvent::StepStarted { step, name, max_epochs, .. } => self.start_step(*step, name, *max_epochs),
            JobEvent::PhaseEntered { step, phase } => self.enter_phase(*step, *phase),
            JobEvent::EpochStarted { step, epoch } => {
                self.change(*step, |state| {
                    state.epoch = Some(*epoch);
                    state.epoch_began_at_ms = Some(entry.at_ms);
                    state.batch = None;
                });
                vec![]
            }
            JobEvent::BatchEnded { step, epoch, batch, metrics } => {
                self.change(*step, |state| {
                    state.epoch = epoch.or(state.epoch);
                    state.batch = Some(*batch);
                    state.loss = metrics.get("loss").copied().or(state.loss);
                });
                vec![]
            }
            JobEvent::EpochEnded { step, epoch, metrics } => self.end_epoch(*step, *epoch, entry.at_ms, metrics),
            JobEvent::Gap { step, what, from, to } => self.gap(*step, what, *from, *to, verbose),
            JobEvent::Log { line, .. } if verbose => vec![Line::new(Tone::Quiet, format!("  | {line}"))],
            JobEvent::Notice { message } => vec![Line::warning(format!("note: {message}"))],
            JobEvent::CommandAdvanced { command, state, message, .. } => vec![command_line(*command, *state, message)],
            JobEvent::StepEnded { step, outcome, message } => self.end_step(*step, *outcome, message),
            JobEvent::JobEnded { .. } => {
                self.ended = true;
                self.current = None;
                vec![]
            }
            // A checkpoint is told when it is here.
            JobEvent::Log { .. } | JobEvent::Checkpoint(_) | JobEvent::Unknown => vec![],
        }
    }

    /// What is going on now.
    pub(super) fn live(&self) -> Option<Live> {
        let number = self.current?;
        let step = self.steps.get(&number)?;
        let label = self.label(number);
        Some(match step.phase {
            Some(Phase::Training) => step.live_training(&label),
            Some(Phase::Evaluating) => Live::open(format!("{label}  evaluating")),
            Some(Phase::Starting) | None => Live::open(format!("{label}  starting: importing, reading data")),
            Some(Phase::Unknown) => Live::open(format!("{label}  at work")),
        })
    }

    /// What each step came to, once there is something to say.
    pub(super) fn summary(&self) -> Vec<Line> {
        let width = self.steps.values().map(|step| step.name.chars().count()).max().unwrap_or(0).min(40);
        self.steps.values().filter(|step| step.outcome.is_some() || step.epochs_done > 0).map(|step| step.summary(width)).collect()
    }

    fn start_step(&mut self, number: u32, name: &str, max_epochs: Option<u32>) -> Vec<Line> {
        self.change(number, |step| *step = Step { name: name.to_owned(), max_epochs, ..Step::default() });
        self.current = Some(number);
        let limit = max_epochs.map(|max| format!(", at most {}", format::count(max.into(), "epoch"))).unwrap_or_default();
        vec![Line::plain(format!("{}  starting{limit}", self.label(number)))]
    }

    fn enter_phase(&mut self, number: u32, phase: Phase) -> Vec<Line> {
        self.change(number, |step| step.phase = Some(phase));
        self.current = Some(number);
        let label = self.label(number);
        match phase {
            Phase::Training => vec![Line::plain(format!("{label}  training"))],
            Phase::Evaluating => vec![Line::plain(format!("{label}  evaluating"))],
            // Said by StepStarted already.
            Phase::Starting | Phase::Unknown => vec![],
        }
    }

    fn end_epoch(&mut self, number: u32, epoch: u32, at_ms: u64, metrics: &Metrics) -> Vec<Line> {
        let mut line = String::new();
        self.change(number, |step| {
            // `train/loss` is not asked: in sleap-nn it is the epoch before's.
            step.last_loss = metrics.get("loss").copied().or(step.loss);
            step.last_validation = metrics.get("val/loss").or_else(|| metrics.get("val_loss")).copied();
            step.epochs_done = step.epochs_done.saturating_add(1);
            step.epoch = Some(epoch);
            let best = step.note_best(epoch);
            let took = step.epoch_began_at_ms.take().map(|began| format::millis(at_ms.saturating_sub(began)));
            line = step.epoch_line(epoch, best, took);
        });
        if line.is_empty() { vec![] } else { vec![Line::plain(format!("{}  {line}", self.label(number)))] }
    }

    fn end_step(&mut self, number: u32, outcome: Outcome, message: &str) -> Vec<Line> {
        self.change(number, |step| step.outcome = Some(outcome));
        if self.current == Some(number) {
            self.current = None;
        }
        let tone = if matches!(outcome, Outcome::Completed | Outcome::Stopped) { Tone::Good } else { Tone::Warning };
        let why = if message.is_empty() { String::new() } else { format!(": {message}") };
        vec![Line::new(tone, format!("{}  {outcome}{why}", self.label(number)))]
    }

    fn gap(&self, number: u32, what: &str, from: u32, to: u32, verbose: bool) -> Vec<Line> {
        // A fast trainer drops batch messages now and then (ZMQ's high-water mark); only a lost epoch is news.
        if what != "epoch" && !verbose {
            return vec![];
        }
        let label = self.label(number);
        vec![Line::warning(format!("{label}  no word from the trainer between {what} {} and {}", human(from), human(to)))]
    }

    fn change(&mut self, number: u32, change: impl FnOnce(&mut Step)) {
        if self.steps.len() < MAX_STEPS || self.steps.contains_key(&number) {
            change(self.steps.entry(number).or_default());
        }
    }

    pub(super) fn label(&self, number: u32) -> String {
        let name = self.steps.get(&number).map(|step| step.name.as_str()).filter(|name| !name.is_empty()).unwrap_or("model");
        if self.planned > 1 { format!("[{}/{}] {name}", human(number), self.planned) } else { name.to_owned() }
    }
}

impl Step {
    fn live_training(&self, label: &str) -> Live {
        let mut text = label.to_owned();
        if let Some(epoch) = self.epoch {
            text.push_str(&format!("  {}", self.epoch_of(epoch)));
        }
        if let Some(batch) = self.batch {
            text.push_str(&format!("  batch {}", human(batch)));
        }
        if let Some(loss) = self.loss {
            text.push_str(&format!("  loss {}", format::metric(loss)));
        }
        if let Some(validation) = self.last_validation {
            text.push_str(&format!("  last val {}", format::metric(validation)));
        }
        match (self.epoch, self.max_epochs) {
            (Some(epoch), Some(max)) if max > 0 => Live::measured(text, epoch.min(max).into(), max.into()),
            _ => Live::open(text),
        }
    }

    fn epoch_line(&self, epoch: u32, best: bool, took: Option<String>) -> String {
        let mut line = self.epoch_of(epoch);
        if let Some(loss) = self.last_loss {
            line.push_str(&format!("  loss {}", format::metric(loss)));
        }
        if let Some(validation) = self.last_validation {
            line.push_str(&format!("  val {}{}", format::metric(validation), if best { " (best)" } else { "" }));
        }
        if let Some(took) = took {
            line.push_str(&format!("  {took}"));
        }
        line
    }

    fn epoch_of(&self, epoch: u32) -> String {
        match self.max_epochs {
            Some(max) => format!("epoch {}/{max}", human(epoch)),
            None => format!("epoch {}", human(epoch)),
        }
    }

    fn note_best(&mut self, epoch: u32) -> bool {
        let Some(Metric(value)) = self.last_validation.or(self.last_loss).filter(|metric| metric.0.is_finite()) else {
            return false;
        };
        let better = self.best.is_none_or(|(best, _)| value < best);
        if better {
            self.best = Some((value, epoch));
        }
        better
    }

    fn summary(&self, width: usize) -> Line {
        let outcome = self.outcome.map(|outcome| outcome.to_string()).unwrap_or_else(|| "not ended".into());
        let name = &self.name;
        let mut text = format!("  {name:width$}  {outcome}, {}", format::count(self.epochs_done.into(), "epoch"));
        if let Some((value, epoch)) = self.best {
            let what = if self.last_validation.is_some() { "best validation loss" } else { "best loss" };
            text.push_str(&format!(", {what} {} (epoch {})", format::metric(Metric(value)), human(epoch)));
        }
        Line::plain(text)
    }
}

/// How far a command has come, for people.
pub(super) fn command_line(command: Command, state: CommandState, message: &str) -> Line {
    let name = match command {
        Command::Stop => "stop",
        Command::Cancel => "cancel",
    };
    let text = match (command, state) {
        (_, CommandState::Received) => "the worker has it".into(),
        (Command::Stop, CommandState::Applied) => "the trainer finishes its batch, validates and saves".into(),
        (Command::Cancel, CommandState::Applied) => "the trainer is being ended".into(),
        (Command::Stop, CommandState::Observed) => "training has stopped".into(),
        (Command::Cancel, CommandState::Observed) => "the job has been cancelled".into(),
        (_, CommandState::Refused) => format!("refused: {message}"),
    };
    let tone = if state == CommandState::Refused { Tone::Warning } else { Tone::Plain };
    Line::new(tone, format!("{name}: {text}"))
}

/// A number that trainers count from 0, as people count it.
pub(super) fn human(n: u32) -> u64 {
    u64::from(n) + 1
}
