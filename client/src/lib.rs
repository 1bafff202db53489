//! webRTC-connect's client: submits training packages to a worker, follows training live, gets the models back.
//!
//! * [`api`]: the command line, and what people see
//! * [`runtime`]: packages on disk, and everything that needs a worker
//! * [`domain`]: events, what people see of them, selection, submission

pub mod api;
pub mod domain;
pub mod runtime;
