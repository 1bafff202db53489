//! webRTC-connect's worker: opens a room, receives training packages, runs trainers, sends progress and models back.
//!
//! * [`api`]: the command line and what it prints
//! * [`runtime`]: the agent in its room, sessions with clients, the queue; a job's directory, journal and runner (a process of its
//!   own), the trainer's process group
//! * [`domain`]: what a package asks for, how a trainer is called, what its messages mean, how a step ended. Pure.

pub mod api;
pub mod domain;
pub mod runtime;
