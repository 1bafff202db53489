//! webRTC-connect's client: submits training packages to a worker, follows training live, gets the models back.
//!
//! * `api`: the command line, and what people see
//! * `runtime`: connecting, submitting, following, fetching
//! * [`domain`]: events, selection, submission

pub mod domain;
