//! Values and decisions of the worker: no I/O, no clock, no randomness.
//!
//! * which trainers there are: [`trainer`]
//! * what jobs are in a package: [`package`], from its [`config`]urations and its [`script`]
//! * how a trainer is called: [`command`]
//! * what its messages mean: [`progress`]; what it prints: [`log`]
//! * when its best model is copied to be sent while it goes on: [`checkpoint`]
//! * how it ended: [`outcome`]
//! * how fast a path is, for a plan: [`probe`]; whether a client is still there: [`pulse`]
//! * when the worker leaves by itself: [`stay`]
//! * sizes and times as people write them: [`size`], [`span`]
//! * which GPUs a trainer sees: [`gpus`]
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod checkpoint;
pub mod command;
pub mod config;
pub mod gpus;
pub mod log;
pub mod outcome;
pub mod package;
pub mod probe;
pub mod progress;
pub mod pulse;
pub mod script;
pub mod size;
pub mod span;
pub mod stay;
pub mod trainer;
