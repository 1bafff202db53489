//! What the worker does with sockets, disk and processes.
//!
//! ```text
//!   agent ── spawn, attach ──► runner (a process of its own session) ──► trainer (a process group of its own)
//!     ▲                          │ journal, outcome.json                    │
//!     └── reads the journal ◄────┘◄──────────── ZMQ, trainer.log ───────────┘
//! ```
//!
//! * a job's directory: [`workspace`]; its journal: [`journal`]
//! * the runner, and the agent's handle to it: [`runner`]
//! * the trainer's process group: [`trainer`], [`processes`]; its output: [`tail`]; its sockets: [`progress`]
//! * its best models while it goes on: [`checkpoint`]
//! * what the machine has: [`gpu`]; that the agent is alive: [`beat`]
//! * the agent: [`agent`] keeps the worker in its [`room`]; [`jobs`] is the queue; [`session`] serves one client's link,
//!   which has one of its [`places`] and is of a session in [`presence`]; [`plan`] answers what a submission would do,
//!   `doctor` how this end of the network looks

pub mod agent;
pub mod beat;
mod checkpoint;
mod doctor;
mod follow;
pub mod gpu;
mod holds;
pub mod jobs;
pub mod journal;
pub mod places;
pub mod plan;
pub mod presence;
pub mod processes;
pub mod progress;
pub mod room;
pub mod runner;
pub mod session;
pub mod tail;
pub mod trainer;
pub mod upload;
pub mod workspace;

/// Unix milliseconds; for people, never for ordering.
pub fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
