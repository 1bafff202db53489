//! The client's values and decisions: no I/O, no clock.
//!
//! * [`event`]: what the runtime tells
//! * [`view`]: events → what people see of them, as lines; [`text`], [`format`] and [`rate`] are its parts
//! * [`checkpoints`]: which checkpoint of a running job to ask for, and when
//! * [`doctor`]: what keeps a client and its worker apart, and what to do about it
//! * [`growth`]: how many bulk connections a transfer should have
//! * [`plan`]: what a submission will be, or would be
//! * [`order`]: what a user wants, and how that ends
//! * [`submission`]: what a package is and what is wrong with one
//! * `vigil`: whether the worker is still there
//! * [`select`]: which worker of a room; [`job_choice`]: which job of a worker
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod checkpoints;
pub mod doctor;
pub mod event;
pub mod format;
pub mod growth;
pub mod job_choice;
pub mod order;
pub mod plan;
pub mod rate;
pub mod select;
pub mod submission;
pub mod text;
pub mod view;
pub(crate) mod vigil;
