//! What the signaling server decides: no I/O, no clock, no randomness.
//!
//! * [`breaker`]: when to stop asking a service that does not answer
//! * [`cluster`]: what several servers say to each other
//! * [`grant`]: the room record, who owns what in it, and when it ends
//! * [`listing`]: lists of a room's peers
//! * [`rooms`]: who is connected to which room right now, and what happens to each message
//! * [`proxies`]: whose word is believed about where a request comes from
//! * [`turn_credentials`]: what an admitted peer authenticates with at a TURN server
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod breaker;
pub mod cluster;
pub mod grant;
pub mod listing;
pub mod proxies;
pub mod rooms;
pub mod turn_credentials;
