//! The client's values and decisions: no I/O, no clock.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod event;
pub mod job_choice;
