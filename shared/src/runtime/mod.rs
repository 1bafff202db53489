//! What every program does with sockets, disk and signals.
//!
//! * every program (feature `process`): [`config`], [`shutdown`], [`telemetry`]
//! * peers (feature `runtime`), never the signaling server: `identity`, `seal`, `signal`, `peer`, `link`, `files`, `listing`, `store`, `transfer`, `probe`

pub mod config;
pub mod shutdown;
pub mod telemetry;

#[cfg(feature = "runtime")]
pub mod files;
#[cfg(feature = "runtime")]
pub mod identity;
#[cfg(feature = "runtime")]
pub mod link;
#[cfg(feature = "runtime")]
pub mod listing;
#[cfg(feature = "runtime")]
pub mod network_changes;
#[cfg(feature = "runtime")]
pub mod peer;
#[cfg(feature = "runtime")]
pub mod probe;
#[cfg(feature = "runtime")]
pub mod seal;
#[cfg(feature = "runtime")]
pub mod signal;
#[cfg(feature = "runtime")]
pub mod store;
#[cfg(feature = "runtime")]
pub mod transfer;
