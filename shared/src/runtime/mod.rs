//! What every program does with sockets, disk and signals.
//!
//! * every program (feature `process`): [`config`], [`shutdown`], [`telemetry`]

pub mod config;
pub mod shutdown;
pub mod telemetry;
