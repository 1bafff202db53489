//! What the server needs to know, decided once; nobody below the command line reads flags or the environment.

use std::{path::PathBuf, time::Duration};

use serde::Deserialize;
use shared::domain::signal::IceServer;

use super::{clock::Clock, relay::NatsConfig, tls::TlsFiles, turn_credentials::TurnConfig};
use crate::domain::{grant::DEFAULT_TTL, proxies::TrustedProxies};

/// The whole configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where rooms and the signing key are kept; nowhere, and lost with the process, when absent.
    pub data_dir: Option<PathBuf>,
    /// Where the servers of one deployment meet, when there are several.
    pub nats: Option<NatsConfig>,
    /// What peers are told to use for connectivity.
    pub ice_servers: Vec<IceServer>,
    /// TURN servers that admitted peers get short-lived credentials for, beside those.
    pub turn: Option<TurnConfig>,
    /// How long a room admits peers unless its creator says otherwise, in seconds.
    pub room_ttl: u64,
    /// How long an anonymous user's token is valid, in seconds.
    pub token_ttl: u64,
    /// Reverse proxies whose `X-Forwarded-For` is believed.
    pub trusted_proxies: TrustedProxies,
    /// The certificate and key of its own listeners; absent: they speak plain HTTP.
    pub tls: Option<TlsFiles>,
    /// How much anybody may do.
    pub limits: Limits,
    /// How long anybody may take.
    pub timing: Timing,
    /// What time it is.
    pub clock: Clock,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            data_dir: None,
            nats: None,
            ice_servers: Vec::new(),
            turn: None,
            room_ttl: DEFAULT_TTL,
            // As long as the longest room, so that its creator can still delete it.
            token_ttl: 24 * 3600,
            trusted_proxies: TrustedProxies::default(),
            tls: None,
            limits: Limits::default(),
            timing: Timing::default(),
            clock: Clock::system(),
        }
    }
}

/// How much anybody may do. An address is an IPv4 address or an IPv6 /64 network.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Open WebSockets from one address.
    pub sockets_per_address: usize,
    /// Open WebSockets in all.
    pub sockets: usize,
    /// Open TCP connections in all.
    pub connections: usize,
    /// Connected peers of one room.
    pub peers_per_room: usize,
    /// Sign-ins from one address in a minute.
    pub sign_ins_per_minute: u32,
    /// Sign-ins from everywhere in a second.
    pub sign_ins_per_second_in_all: u32,
    /// Rooms created from one address in a minute.
    pub rooms_per_minute: u32,
    /// REST requests from one address in a minute.
    pub requests_per_minute: u32,
    /// Registrations tried from one address in a minute.
    pub registrations_per_minute: u32,
    /// Registrations tried for one room in a minute by users that are not known to it yet.
    pub strangers_per_minute: u32,
    /// Registrations tried on one socket.
    pub attempts_per_socket: u32,
    /// Messages of one socket in a second.
    pub messages_per_second: u32,
    /// Messages of one socket at once.
    pub message_burst: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            sockets_per_address: 20,
            sockets: 10_000,
            connections: 12_000,
            peers_per_room: 100,
            sign_ins_per_minute: 30,
            sign_ins_per_second_in_all: 50,
            rooms_per_minute: 60,
            requests_per_minute: 600,
            registrations_per_minute: 120,
            strangers_per_minute: 120,
            attempts_per_socket: 5,
            messages_per_second: 20,
            message_burst: 100,
        }
    }
}

/// How long anybody may take.
#[derive(Debug, Clone)]
pub struct Timing {
    /// For a TLS handshake, and to send a request's head.
    pub head: Duration,
    /// To send a request's body and be answered.
    pub request: Duration,
    /// To register on a new WebSocket.
    pub register: Duration,
    /// Between two pings.
    pub ping: Duration,
    /// Without hearing anything from a registered peer.
    pub silence: Duration,
    /// To take one message off our hands.
    pub send: Duration,
    /// To answer a close.
    pub close: Duration,
    /// For everybody to be gone after SIGTERM.
    pub drain: Duration,
    /// Between two sweeps of expired rooms.
    pub sweep: Duration,
    /// Between two looks at the TLS certificate's files.
    pub certificates: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Timing {
            head: Duration::from_secs(5),
            request: Duration::from_secs(10),
            register: Duration::from_secs(5),
            ping: Duration::from_secs(20),
            silence: Duration::from_secs(45),
            send: Duration::from_secs(10),
            close: Duration::from_secs(1),
            drain: Duration::from_secs(5),
            sweep: Duration::from_secs(60),
            certificates: Duration::from_secs(30),
        }
    }
}
