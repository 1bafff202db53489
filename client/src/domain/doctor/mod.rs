//! What keeps a client and its worker apart: everything that was looked at → problems, each with cause and remedy → words.
//!
//! * [`Examination`]: what was measured, on both sides and between them
//! * [`rules`]: the table of rules, one a cause, the weightiest first; [`diagnose`] asks them all
//! * [`pairs`]: each pair of candidates in a sentence
//! * [`path`]: why a connection takes the way it takes, for `status`
//! * [`sheet`]: the whole as lines, the verdict first

pub mod pairs;
pub mod path;
pub mod rules;
pub mod sheet;

use serde::Serialize;
use shared::domain::{
    error::Failure,
    probe::{Candidate, Report, Step},
    route::{Route, RouteKind},
};

pub use self::rules::diagnose;

/// Everything that was looked at; absent: not come to.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Examination {
    /// Which settings there are and where each comes from.
    pub settings: Vec<Setting>,
    /// Why the settings cannot be used.
    pub unusable: Option<Failure>,
    /// The signaling server's URL.
    pub server: Option<String>,
    /// The signaling server, step by step.
    pub steps: Vec<Step>,
    /// Whether there is an invite.
    pub invited: bool,
    /// Why the room did not take us in.
    pub refused: Option<Failure>,
    /// Whether the room took us in.
    pub admitted: bool,
    /// Our end.
    pub client: Option<Report>,
    /// The worker's end, as it reports it.
    pub worker: Option<Report>,
    /// Why there is no report of the worker.
    pub no_report: Option<Failure>,
    /// A connection that was tried.
    pub trial: Option<Trial>,
    /// How long all that took, in milliseconds.
    pub took_ms: u64,
}

/// A setting, where it comes from, and its value if it is no secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Setting {
    /// Its name.
    pub name: String,
    /// Its value, in words where it is a secret.
    pub value: String,
    /// A flag, a variable, a file, or the default.
    pub origin: String,
}

/// A connection that was tried.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Trial {
    /// The route, where it succeeded.
    pub route: Option<Route>,
    /// Why not, where it did not.
    pub failure: Option<Failure>,
    /// Our candidates.
    pub local: Vec<Candidate>,
    /// The worker's.
    pub remote: Vec<Candidate>,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
}

/// Who is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// This end.
    Client,
    /// The other end.
    Worker,
    /// Both ends.
    Both,
    /// Neither: something in between.
    Between,
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Something is broken.
    Fault,
    /// It works, and could work better.
    Limit,
}

/// Something wrong, what to do, and who.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// A stable name for programs.
    pub cause: &'static str,
    /// How bad it is.
    pub level: Level,
    /// Whose it is.
    pub side: Side,
    /// What is wrong, in a sentence.
    pub says: String,
    /// What to do, in a sentence.
    pub remedy: String,
}

/// What came of it all.
#[derive(Debug, Clone, Serialize)]
pub struct Diagnosis {
    /// Whether nothing is broken.
    pub healthy: bool,
    /// One sentence.
    pub verdict: String,
    /// What to do first.
    pub remedy: Option<String>,
    /// What is wrong, the weightiest first.
    pub problems: Vec<Problem>,
}

impl Examination {
    /// Both reports, where there are both.
    pub fn reports(&self) -> Option<(&Report, &Report)> {
        Some((self.client.as_ref()?, self.worker.as_ref()?))
    }

    /// The reports that there are, and whose they are.
    pub fn sides(&self) -> impl Iterator<Item = (Side, &Report)> {
        let client = self.client.iter().map(|report| (Side::Client, report));
        client.chain(self.worker.iter().map(|report| (Side::Worker, report)))
    }

    /// Whether a connection was made.
    pub fn connected(&self) -> bool {
        self.trial.as_ref().is_some_and(|trial| trial.route.is_some())
    }

    /// Whether a connection was made without a relay.
    pub fn direct(&self) -> bool {
        self.route().is_some_and(|route| route.kind != RouteKind::Relayed)
    }

    /// The route of the connection that was made.
    pub fn route(&self) -> Option<&Route> {
        self.trial.as_ref()?.route.as_ref()
    }

    /// Whether a connection was tried and there was no path.
    pub fn no_path(&self) -> bool {
        use shared::domain::error::Code;
        self.trial.as_ref().is_some_and(|trial| trial.failure.as_ref().is_some_and(|failure| failure.code == Code::NoConnection))
    }
}

impl Side {
    /// The beginning of a sentence about what this side has (`your …`, `the worker's …`).
    pub fn whose(self) -> &'static str {
        match self {
            Side::Client => "your",
            Side::Worker => "the worker's",
            Side::Both => "both sides'",
            Side::Between => "the",
        }
    }

    /// The side where something is to be done.
    pub fn place(self) -> &'static str {
        match self {
            Side::Client => "here",
            Side::Worker => "at the worker",
            Side::Both => "on both sides",
            Side::Between => "between them",
        }
    }
}
