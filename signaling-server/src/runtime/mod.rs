//! What the signaling server does with sockets, disk, keys and the clock.
//!
//! * [`server`]: every operation, one method each; [`admission`]: how a socket gets into a room
//! * [`hub`]: sockets ↔ rooms; [`relay`]: peers that are connected to another process
//! * [`store`]: rooms that outlive the process; [`auth`], [`key`], [`proof`]: tokens and keys
//! * [`guard`]: what keeps a service that is away from holding us up; `aws`: what all AWS clients share
//! * `user_pool`: anonymous users elsewhere: `users` (making and deleting them), `cognito` (where), `jwks` (the keys of their tokens)
//! * [`turn_credentials`]: for admitted peers, from a secret that is shared with the TURN server
//! * [`rate`]: limits; [`metrics`]; [`listen`]: TCP and HTTP connections; [`tls`]; [`descriptors`]: how many of them; [`clock`], [`config`]

pub mod admission;
pub mod auth;
#[cfg(feature = "aws")]
pub mod aws;
pub mod clock;
#[cfg(feature = "aws")]
pub mod cognito;
pub mod config;
pub mod descriptors;
pub mod guard;
pub mod hub;
#[cfg(feature = "aws")]
pub mod jwks;
pub mod key;
pub mod listen;
pub mod metrics;
pub mod proof;
pub mod rate;
pub mod relay;
pub mod server;
pub mod store;
pub mod tls;
pub mod turn_credentials;
#[cfg(feature = "aws")]
pub mod user_pool;
#[cfg(feature = "aws")]
pub mod users;
