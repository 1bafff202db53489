//! What the signaling server decides: no I/O, no clock, no randomness.
//!
//! * [`breaker`]: when to stop asking a service that does not answer
//! * [`grant`]: the room record, who owns what in it, and when it ends
//! * [`rooms`]: who is connected to which room right now, and what happens to each message
//! * [`turn_credentials`]: what an admitted peer authenticates with at a TURN server
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod breaker;
pub mod grant;
pub mod rooms;
pub mod turn_credentials;
