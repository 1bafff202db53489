//! Which way data takes between two peers.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The route in use: the selected ICE candidate pair (RFC 8445 §8), in words.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Route {
    /// Whether there is a relay in it.
    pub kind: RouteKind,
    /// The local candidate: its type and address.
    pub local: String,
    /// The remote candidate: its type and address.
    pub remote: String,
    /// The last measured round trip, in seconds; 0 before the first measurement.
    pub rtt: f64,
}

/// Whether a relay is in the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RouteKind {
    /// Straight from host to host.
    Direct,
    /// Straight, through at least one address translator.
    DirectThroughNat,
    /// Through a TURN server.
    Relayed,
}

impl fmt::Display for RouteKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            RouteKind::Direct => "direct",
            RouteKind::DirectThroughNat => "direct, through NAT",
            RouteKind::Relayed => "relayed",
        })
    }
}
