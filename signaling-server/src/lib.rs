//! webRTC-connect's signaling server: rooms, admission, relay of sealed offers. It never sees data.
//!
//! * [`api`]: the command line, the REST routes and the WebSocket; [`api::run`] is the whole server as one future
//! * [`runtime`]: sockets, stores, tokens, limits, metrics
//! * [`domain`]: who owns what, who is where, and what happens to a message
//!
//! Calls go down (api → runtime → domain), values come up.

pub mod api;
pub mod domain;
pub mod runtime;
