//! What webRTC-connect's three programs share.
//!
//! * [`domain`]: values and decisions. No I/O, no clock, no randomness: what it needs of those it is handed.
//! * `runtime` (features `process` and `runtime`): what every program does with sockets, disk and signals.
//!
//! Calls go down (api → runtime → domain), values come up. `clippy.toml` and the walls test (`worker/tests/walls.rs`) keep it so.

pub mod domain;

#[cfg(feature = "process")]
pub mod runtime;
