//! What every program does with sockets, disk and signals.
//!
//! The modules behind the feature `runtime` are the peers'; the signaling server uses none of them.

#[cfg(feature = "runtime")]
pub mod files;
#[cfg(feature = "runtime")]
pub mod identity;
#[cfg(feature = "runtime")]
pub mod link;
#[cfg(feature = "runtime")]
pub mod peer;
#[cfg(feature = "runtime")]
pub mod seal;
#[cfg(feature = "runtime")]
pub mod signal;
#[cfg(feature = "runtime")]
pub mod store;
