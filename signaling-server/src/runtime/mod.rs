//! What the signaling server does with sockets, disk, keys and the clock.
//!
//! * [`server`]: every operation, one method each; [`admission`]: how a socket gets into a room
//! * [`hub`]: sockets ↔ rooms; [`relay`]: peers that are connected to another process
//! * [`store`]: rooms that outlive the process; [`auth`], [`key`], [`proof`]: tokens and keys
//! * [`turn_credentials`]: for admitted peers, from a secret that is shared with the TURN server
//! * [`rate`]: limits; [`metrics`]; [`listen`]: TCP and HTTP connections; [`descriptors`]: how many of them; [`clock`], [`config`]

pub mod admission;
pub mod auth;
pub mod clock;
pub mod config;
pub mod descriptors;
pub mod hub;
pub mod key;
pub mod listen;
pub mod metrics;
pub mod proof;
pub mod rate;
pub mod relay;
pub mod server;
pub mod store;
pub mod turn_credentials;
