//! Peer connections: the only folder that names `webrtc` and `rtc`.
//!
//! * [`connection`]: one [`PeerConnection`] with its negotiated channels, its events and its route
//! * [`channel`]: one data channel as a sender and a receiver with back-pressure
//! * [`stun`]: STUN and TURN messages for probes
//! * `local`: which addresses and ports it binds
//! * `candidates`: what it tells the other side about them
//! * [`turn`]: TURN over TCP and TLS; `names`: the addresses of servers
//! * `udp`: the crate's runtime with socket buffers that fit the window; `batch`: with batches that the kernel takes
//!
//! The settings and their reasons (measured on 0.21.1): UDP socket buffers of 4 MiB, or as much as the kernel gives, because
//! overflow there costs a second each; an SCTP receive window of 2 MiB where nothing else is asked for, and of 1 MiB at
//! most where the kernel gives little; mDNS off, because its default fails where there is no multicast route; ICE time-outs of 10 s and
//! 180 s, so that an outage of minutes heals in place; candidates tried every 20 ms, and a direct pair taken as soon as it works (the
//! crate waits a second for a better one than a peer-reflexive candidate); a send limit of 2 MiB per channel (bulk
//! senders have a window of their own). `close()` drops what was not sent yet:
//! whoever uses a channel ends with an acknowledgement of its own.

mod batch;
mod candidates;
pub mod channel;
pub mod connection;
mod local;
mod names;
mod second_look;
pub mod stun;
pub mod turn;
mod udp;

pub use channel::{Channel, ChannelSender};
pub use connection::{ChannelSpec, ConnectionState, Fingerprint, PathMtu, PeerConnection, PeerEvent, PeerOptions};
