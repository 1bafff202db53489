//! Values and decisions that all three programs share: no I/O, no clock.
//!
//! * names: [`id`], [`path`]
//! * what people pass on: [`invite`]
//! * what goes over the WebSocket: [`signal`]
//! * what goes over the data channels: [`message`], [`frame`]
//! * what a job is: [`job`]
//! * what travels and how: [`manifest`], [`transfer`], and on which [`route`]
//! * what a side finds out about its own end, for `doctor`: [`probe`]
//! * how peers may be reached: [`network`], and over which servers: [`ice`]
//! * how long to wait before trying again: [`backoff`]
//! * what went wrong: [`error`]
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod backoff;
pub mod error;
pub mod frame;
pub mod ice;
pub mod id;
pub mod invite;
pub mod job;
pub mod manifest;
pub mod message;
pub mod network;
pub mod path;
pub mod probe;
pub mod route;
pub mod signal;
pub mod transfer;
