//! What the server needs to know, decided once; nobody below the command line reads flags or the environment.

use std::{path::PathBuf, time::Duration};

use serde::Deserialize;
use shared::domain::{
    error::{Code, Failure},
    id::Secret,
    signal::IceServer,
};

use super::{clock::Clock, relay::NatsConfig, tls::TlsFiles, turn_credentials::TurnConfig};
use crate::domain::{grant::DEFAULT_TTL, proxies::TrustedProxies};

/// The whole configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where rooms and the signing key are kept; nowhere, and lost with the process, when absent.
    pub data_dir: Option<PathBuf>,
    /// Where the servers of one deployment meet, when there are several.
    pub nats: Option<NatsConfig>,
    /// The DynamoDB table where rooms are kept instead; the signing key stays in the data directory.
    pub dynamodb_table: Option<String>,
    /// Where AWS is, where the environment does not say.
    pub aws: AwsSettings,
    /// The user pool that anonymous users are made in; absent: they are ours, and we sign their tokens.
    pub cognito: Option<CognitoSettings>,
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
            dynamodb_table: None,
            aws: AwsSettings::default(),
            cognito: None,
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

/// What wins over the environment's AWS settings. The program sets none of it; whoever embeds the server may.
#[derive(Debug, Clone, Default)]
pub struct AwsSettings {
    /// The region.
    pub region: Option<String>,
    /// Where every AWS service is.
    pub endpoint_url: Option<String>,
    /// Who we are.
    pub keys: Option<AwsKeys>,
}

/// What is said to whoever asks for AWS and has a server without it.
pub fn without_aws() -> Failure {
    let message = "this webrtc-server was built without AWS; take a released one, or build it with the cargo feature `aws`";
    Failure::new(Code::InvalidRequest, message)
}

/// An access key.
#[derive(Debug, Clone)]
pub struct AwsKeys {
    /// Its id.
    pub id: String,
    /// Its secret.
    pub secret: Secret<String>,
}

/// Sign-ins in a second where users are ours: each is a signature.
pub const OWN_SIGN_INS_PER_SECOND: u32 = 50;
/// Sign-ins in a second where a user pool makes users: well below what an AWS account may do in a region, which all its programs share.
pub const POOL_SIGN_INS_PER_SECOND: u32 = 10;
/// Sign-ins in a day where a user pool makes users, each of which counts for the bill of the month.
pub const POOL_SIGN_INS_PER_DAY: u32 = 1000;

/// A Cognito user pool, and how it is used.
#[derive(Debug, Clone)]
pub struct CognitoSettings {
    /// The pool's id.
    pub pool: String,
    /// The app client's id.
    pub client: String,
    /// The app client's secret, if it has one.
    pub client_secret: Option<Secret<String>>,
    /// How users are made.
    pub way: SignInWay,
    /// Whose tokens the pool's are; absent: the pool's own name in its region.
    pub issuer: Option<String>,
    /// Where the keys of these tokens are published; absent: where the issuer has them.
    pub jwks_url: Option<String>,
    /// Calls in a second by which users are deleted.
    pub deletions_per_second: u32,
    /// How old a user must be to be deleted although nobody said that its room has ended, in seconds.
    pub sweep_after: u64,
    /// Between two looks for such users.
    pub sweep_every: Duration,
    /// Between two looks at the pool's keys.
    pub refresh_keys: Duration,
}

impl CognitoSettings {
    /// A pool and its app client, used as is usual.
    pub fn new(pool: &str, client: &str) -> Self {
        CognitoSettings {
            pool: pool.to_owned(),
            client: client.to_owned(),
            client_secret: None,
            way: SignInWay::Admin,
            issuer: None,
            jwks_url: None,
            // Of the 25 that an account may do.
            deletions_per_second: 10,
            // A day, which no id token lives longer than, and an hour.
            sweep_after: 25 * 3600,
            sweep_every: Duration::from_secs(3600),
            refresh_keys: Duration::from_secs(3600),
        }
    }
}

/// How users are made in a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SignInWay {
    /// With an administrator's rights: AdminCreateUser, AdminSetUserPassword, AdminInitiateAuth.
    Admin,
    /// As anybody: SignUp, AdminConfirmSignUp, InitiateAuth.
    SignUp,
}

impl std::str::FromStr for SignInWay {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        [SignInWay::Admin, SignInWay::SignUp]
            .into_iter()
            .find(|way| way.to_string() == text)
            .ok_or_else(|| "it is admin or sign-up".to_owned())
    }
}

impl std::fmt::Display for SignInWay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            SignInWay::Admin => "admin",
            SignInWay::SignUp => "sign-up",
        })
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
    /// Sign-ins from everywhere in a second; absent: [`OWN_SIGN_INS_PER_SECOND`], or [`POOL_SIGN_INS_PER_SECOND`] where a user pool makes users.
    pub sign_ins_per_second_in_all: Option<u32>,
    /// Sign-ins from everywhere in a day (UTC), counted by this process; absent: as many as come, or [`POOL_SIGN_INS_PER_DAY`] where a user
    /// pool makes users.
    pub sign_ins_per_day_in_all: Option<u32>,
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

impl Limits {
    /// Fills in what depends on who makes users.
    pub fn for_users_of(mut self, pool: bool) -> Self {
        let (second, day) = if pool { (POOL_SIGN_INS_PER_SECOND, Some(POOL_SIGN_INS_PER_DAY)) } else { (OWN_SIGN_INS_PER_SECOND, None) };
        self.sign_ins_per_second_in_all.get_or_insert(second);
        self.sign_ins_per_day_in_all = self.sign_ins_per_day_in_all.or(day);
        self
    }
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            sockets_per_address: 20,
            sockets: 10_000,
            connections: 12_000,
            peers_per_room: 100,
            sign_ins_per_minute: 30,
            sign_ins_per_second_in_all: None,
            sign_ins_per_day_in_all: None,
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
