//! What a job is: its specification, its states, and the events of its journal.
//!
//! ```text
//!                 upload whole          a runner is free            trainer gone, results listed
//!   Uploading ───────────────► Queued ───────────────► Running ─────────────────────────────────► Ended(outcome)
//!       │                         │                                                                    ▲
//!       └─────────────────────────┴─────────────── cancel ─────────────────────────────────────────────┘
//! ```

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::{
    error::{Code, Failure},
    id::{CommandId, JobId, hex},
    manifest::{Hash, ManifestSummary},
    path::RelPath,
};

/// What to do with a package: everything that a client may choose. There is no free argument in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobSpec {
    /// What people call it: the package's file name, at most 200 characters.
    pub name: String,
    /// The trainer adapter to use; absent: what the package's configurations call for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trainer: Option<String>,
    /// Configurations to run, in this order; empty: what the package says.
    #[serde(default)]
    pub configs: Vec<RelPath>,
    /// Labels to train on, instead of those that the configurations name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<RelPath>,
    /// 0, and one more for each `--again`.
    #[serde(default)]
    pub attempt: u32,
}

impl JobSpec {
    /// The one job that this specification of this package is: the same on every machine and at every time.
    ///
    /// `manifest` is the hash of the package's manifest ([`ManifestSummary::id`]).
    pub fn job_id(&self, manifest: &super::manifest::Hash) -> JobId {
        let mut hasher = blake3::Hasher::new_derive_key("webrtc-connect job id 1");
        hasher.update(&manifest.0);
        hasher.update(&serde_json::to_vec(self).expect("a job specification always serialises"));
        hex(&hasher.finalize().as_bytes()[..16]).parse().expect("32 hexadecimal digits are an id")
    }

    /// Refuses what no client of ours would send.
    ///
    /// # Errors
    /// [`Code::InvalidRequest`].
    pub fn check(&self) -> Result<(), Failure> {
        let refused = |what: &str| Err(Failure::new(Code::InvalidRequest, format!("the job's {what} is not acceptable")));
        if self.name.is_empty() || self.name.chars().count() > 200 || self.name.chars().any(char::is_control) {
            return refused("name (1 to 200 characters, none of them a control character)");
        }
        if self.configs.len() > 64 {
            return refused("list of configurations (64 at most)");
        }
        if self.trainer.as_ref().is_some_and(|name| name.is_empty() || name.len() > 64) {
            return refused("trainer name");
        }
        Ok(())
    }
}

/// How a job ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Trained to its own end.
    Completed,
    /// Stopped early on request; models are whole.
    Stopped,
    /// Ended on request without waiting for anything.
    Cancelled,
    /// Anything else.
    #[serde(other)]
    Failed,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Outcome::Completed => "completed",
            Outcome::Stopped => "stopped",
            Outcome::Cancelled => "cancelled",
            Outcome::Failed => "failed",
        })
    }
}

/// Where a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum JobState {
    /// Waits for the rest of its package.
    Uploading,
    /// Waits for the jobs before it.
    Queued {
        /// How many jobs run before this one.
        ahead: u32,
    },
    /// A runner works on it.
    Running,
    /// Over; results, where there are any, can be fetched.
    Ended {
        /// How.
        outcome: Outcome,
    },
}

/// What a training step is doing. Silence within any phase is normal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// The trainer has been started and has not said anything yet: importing, reading data.
    Starting,
    /// Between its `train_begin` and `train_end`.
    Training,
    /// After `train_end`: evaluation, until the process exits.
    Evaluating,
    /// Something newer.
    #[serde(other)]
    Unknown,
}

/// What a client may ask of a running job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// Finish the batch, validate, save the model, and end the whole job.
    Stop,
    /// End the whole job now.
    Cancel,
}

/// How far a command has come; each step is told once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CommandState {
    /// The worker has it, durably.
    Received,
    /// The trainer has been told (or signalled).
    Applied,
    /// Its effect has been seen: the step or job has ended for it.
    Observed,
    /// It cannot be done; the message says why.
    Refused,
}

/// A number that a trainer reported: finite or not. On the wire a non-finite one is the string `"NaN"`, `"Infinity"` or `"-Infinity"`.
#[derive(Debug, Clone, Copy)]
pub struct Metric(pub f64);

/// Two metrics are equal when they print the same; NaN equals NaN.
impl PartialEq for Metric {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0 || (self.0.is_nan() && other.0.is_nan())
    }
}

impl Serialize for Metric {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            value if value.is_finite() => serializer.serialize_f64(value),
            value if value.is_nan() => serializer.serialize_str("NaN"),
            value if value > 0.0 => serializer.serialize_str("Infinity"),
            _ => serializer.serialize_str("-Infinity"),
        }
    }
}

impl<'de> Deserialize<'de> for Metric {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Metric;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number, \"NaN\", \"Infinity\" or \"-Infinity\"")
            }
            fn visit_f64<E: de::Error>(self, value: f64) -> Result<Metric, E> {
                Ok(Metric(value))
            }
            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Metric, E> {
                Ok(Metric(value as f64))
            }
            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Metric, E> {
                Ok(Metric(value as f64))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Metric, E> {
                match text {
                    "NaN" => Ok(Metric(f64::NAN)),
                    "Infinity" => Ok(Metric(f64::INFINITY)),
                    "-Infinity" => Ok(Metric(f64::NEG_INFINITY)),
                    _ => Err(E::custom("not a metric")),
                }
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// What a trainer reported at one point, by the trainer's own names (`loss`, `val/loss`, `train/lr`, …).
pub type Metrics = BTreeMap<String, Metric>;

/// One line of a job's journal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JournalEntry {
    /// 1, 2, 3, … without a gap.
    pub seq: u64,
    /// When it was written: Unix milliseconds on the worker's clock; for people, never for ordering.
    pub at_ms: u64,
    /// What happened.
    pub event: JobEvent,
}

/// A copy of a step's best checkpoint, taken while training goes on. Its files have the paths that they will have in the results.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Which step.
    pub step: u32,
    /// The epoch whose validation it came from, from 0; absent where the trainer does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u32>,
    /// That epoch's validation loss, where the trainer says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metric: Option<Metric>,
    /// The total length of its files in bytes.
    pub bytes: u64,
    /// The id of its manifest: two checkpoints of the same id have the same content.
    pub id: Hash,
}

/// What can happen to a job. `step` counts its configurations from 0.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum JobEvent {
    /// A runner has taken the job up.
    JobStarted {
        /// The trainer adapter.
        trainer: String,
        /// The steps to come: the configurations' names, in order.
        steps: Vec<String>,
    },
    /// A trainer process has been started.
    StepStarted {
        /// Which step.
        step: u32,
        /// The configuration's name.
        name: String,
        /// The folder of its results below the results' root.
        run: String,
        /// How many epochs the configuration allows, where it says.
        max_epochs: Option<u32>,
    },
    /// A step has entered a phase.
    PhaseEntered {
        /// Which step.
        step: u32,
        /// Which phase.
        phase: Phase,
    },
    /// An epoch has begun.
    EpochStarted {
        /// Which step.
        step: u32,
        /// From 0.
        epoch: u32,
    },
    /// A batch has been trained.
    BatchEnded {
        /// Which step.
        step: u32,
        /// From 0; absent where the trainer does not say.
        epoch: Option<u32>,
        /// From 0.
        batch: u32,
        /// At least `loss`.
        metrics: Metrics,
    },
    /// An epoch has been trained and validated.
    EpochEnded {
        /// Which step.
        step: u32,
        /// From 0.
        epoch: u32,
        /// Whatever the trainer reported: `train/…` values are one epoch late in sleap-nn.
        metrics: Metrics,
    },
    /// A new best checkpoint has been copied: whoever wants it can fetch it while training goes on.
    Checkpoint(Checkpoint),
    /// Messages of the trainer are missing: its numbers jump.
    Gap {
        /// Which step.
        step: u32,
        /// `epoch` or `batch`.
        what: String,
        /// The last number seen before the hole.
        from: u32,
        /// The first number after it.
        to: u32,
    },
    /// A line that the trainer printed, escape sequences removed, at most 4 KiB.
    Log {
        /// Which step.
        step: u32,
        /// The text.
        line: String,
    },
    /// Something that the worker wants a person to know.
    Notice {
        /// One sentence.
        message: String,
    },
    /// A command has come a step further.
    CommandAdvanced {
        /// Which.
        id: CommandId,
        /// What it asks.
        command: Command,
        /// How far it is.
        state: CommandState,
        /// Why, where it was refused.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        message: String,
    },
    /// A step's process group is gone.
    StepEnded {
        /// Which step.
        step: u32,
        /// How.
        outcome: Outcome,
        /// One sentence: for a failure its cause and what to do.
        message: String,
    },
    /// The job is over; always the last entry.
    JobEnded {
        /// How.
        outcome: Outcome,
        /// One sentence: for a failure its cause and what to do.
        message: String,
    },
    /// Something newer.
    #[serde(other)]
    Unknown,
}

/// A job as a list shows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobStatus {
    /// Which job.
    pub job: JobId,
    /// What people call it.
    pub name: String,
    /// Where it is.
    #[serde(flatten)]
    pub state: JobState,
    /// The seq of the journal's last entry; 0: none.
    pub last_seq: u64,
    /// When it was submitted: Unix seconds on the worker's clock.
    pub submitted_at: u64,
    /// How it ended, in a sentence; empty before.
    #[serde(default)]
    pub message: String,
    /// What can be fetched, once it ended with something.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub results: Option<ManifestSummary>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> JobSpec {
        JobSpec { name: "fly.zip".into(), trainer: None, configs: vec![], labels: None, attempt: 0 }
    }

    #[test]
    fn the_same_package_and_configuration_are_the_same_job() {
        let id = spec().job_id(&Hash([1; 32]));
        assert_eq!(id, spec().job_id(&Hash([1; 32])));
        assert_ne!(id, spec().job_id(&Hash([2; 32])));
        assert_ne!(id, JobSpec { attempt: 1, ..spec() }.job_id(&Hash([1; 32])));
    }

    #[test]
    fn metrics_that_are_not_finite_survive_json() {
        for value in [0.5, f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let json = serde_json::to_string(&Metric(value)).unwrap();
            assert_eq!(serde_json::from_str::<Metric>(&json).unwrap(), Metric(value), "{json}");
        }
    }

    #[test]
    fn a_checkpoint_looks_like_this_in_a_journal() {
        let checkpoint = Checkpoint { step: 1, epoch: Some(4), metric: Some(Metric(f64::NAN)), bytes: 5, id: Hash([7; 32]) };
        let json = serde_json::to_string(&JobEvent::Checkpoint(checkpoint.clone())).unwrap();
        assert!(json.starts_with(r#"{"event":"checkpoint","step":1,"epoch":4,"metric":"NaN","bytes":5,"id":"0707"#), "{json}");
        assert_eq!(serde_json::from_str::<JobEvent>(&json).unwrap(), JobEvent::Checkpoint(checkpoint));
    }

    #[test]
    fn an_event_of_a_newer_worker_is_tolerated() {
        let entry: JournalEntry = serde_json::from_str(r#"{"seq":3,"at_ms":5,"event":{"event":"tea_break","cups":2}}"#).unwrap();
        assert_eq!(entry.event, JobEvent::Unknown);
    }
}
