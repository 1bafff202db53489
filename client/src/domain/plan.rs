//! What a submission will be, or would be: how much, how long, through what, behind whom.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use shared::domain::{
    error::Failure,
    id::JobId,
    job::JobStatus,
    message::{self, WorkerInfo},
    route::Route,
};

/// What an upload will be, as it begins; with `only`, what it would be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The job.
    pub job: JobId,
    /// What it is called.
    #[serde(default)]
    pub name: String,
    /// Whether the worker knows the job already.
    pub known: bool,
    /// Files of the package.
    pub files: u32,
    /// Bytes of the package.
    pub bytes: u64,
    /// Bytes of it that the worker has already.
    pub already_there: u64,
    /// Bytes to send.
    pub to_send: u64,
    /// Bytes that the worker has room for.
    pub disk_free: u64,
    /// How fast the path is, as far as that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub speed: Option<Speed>,
    /// How long sending takes at that speed, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_ms: Option<u64>,
    /// The route in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route: Option<Route>,
    /// Jobs that run before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ahead: Option<u32>,
    /// `true`: this is an answer to `--plan`, and nothing was changed at the worker.
    #[serde(default)]
    pub only: bool,
    /// What only an answer to `--plan` has.
    #[serde(default, flatten, skip_serializing_if = "Option::is_none")]
    pub outlook: Option<Outlook>,
}

/// What a worker says of a submission before it is one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outlook {
    /// The job's present state, where the worker knows it.
    pub status: Option<JobStatus>,
    /// The worker.
    pub worker: WorkerInfo,
    /// The names of the jobs that run there now.
    pub running: Vec<String>,
    /// What a person should know, each a sentence.
    pub notices: Vec<String>,
    /// Why the submission would be refused, where it would.
    pub refused: Option<Failure>,
}

/// How fast data goes to a worker, and how that is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Speed {
    /// Bytes a second.
    pub bytes_per_second: u64,
    /// How that is known.
    pub basis: Basis,
}

/// How a speed is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Basis {
    /// From a short probe, just now.
    Probe,
    /// From the last package that was sent to this worker.
    LastTransfer,
}

impl Speed {
    /// The speed of so many bytes in so long a time; none where that is no measurement.
    pub fn of(bytes: u64, took: Duration, basis: Basis) -> Option<Speed> {
        let rate = bytes as f64 / took.as_secs_f64();
        (rate.is_finite() && rate >= 1.0).then_some(Speed { bytes_per_second: rate as u64, basis })
    }

    /// How long so many bytes take, in milliseconds.
    pub fn millis(self, bytes: u64) -> u64 {
        (u128::from(bytes) * 1000).checked_div(self.bytes_per_second.into()).and_then(|ms| ms.try_into().ok()).unwrap_or(u64::MAX)
    }
}

impl Plan {
    /// What the worker answered about a package of so many files and bytes.
    pub fn of_answer(name: String, files: u32, bytes: u64, answer: message::Plan, speed: Option<Speed>, route: Option<Route>) -> Plan {
        let message::Plan { job, known, to_send, free, ahead, running, worker, notices, refused, .. } = answer;
        Plan {
            job,
            name,
            known: known.is_some(),
            files,
            bytes,
            already_there: bytes.saturating_sub(to_send),
            to_send,
            disk_free: free,
            speed,
            expected_ms: speed.filter(|_| to_send > 0).map(|speed| speed.millis(to_send)),
            route,
            ahead: Some(ahead),
            only: true,
            outlook: Some(Outlook { status: known, worker, running, notices, refused }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_speed_says_how_long() {
        let speed = Speed::of(6_000_000, Duration::from_millis(500), Basis::Probe).unwrap();
        assert_eq!((speed.bytes_per_second, speed.millis(480_000_000)), (12_000_000, 40_000));
        assert_eq!(speed.millis(0), 0);
        assert_eq!(Speed { bytes_per_second: 0, ..speed }.millis(1), u64::MAX);
        for (bytes, took) in [(0, 5), (100, 0), (0, 0), (1, 10_000)] {
            assert_eq!(Speed::of(bytes, Duration::from_secs(took), Basis::Probe), None, "{bytes} {took}");
        }
    }

    #[test]
    fn a_plan_reads_back() {
        let text = r#"{"job":"j","name":"n","known":false,"files":1,"bytes":2,"already_there":0,"to_send":2,"disk_free":9,"only":false}"#;
        let plan: Plan = serde_json::from_str(text).unwrap();
        assert_eq!(plan.outlook, None);
        assert_eq!(serde_json::to_string(&plan).unwrap(), text);
    }
}
