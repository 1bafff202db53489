//! webRTC-connect's worker, below its program.
//!
//! * [`domain`]: what a package asks for, how a trainer is called, what its messages mean, how a step ended. Pure.
//! * [`runtime`]: a job's directory, its journal, its runner (a process of its own), the trainer's process group.

pub mod domain;
pub mod runtime;
