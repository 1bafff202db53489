//! The command line of `webrtc-server`: flags, then environment, then `webrtc-connect.toml`, then defaults, decided once.

use std::{
    convert::Infallible,
    fmt,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use clap::{ArgAction, Parser, ValueEnum};
use serde::Deserialize;
use shared::{
    domain::{
        error::{Code, Failure},
        ice::IceServers,
        id::Secret,
    },
    runtime::config,
};

use crate::{
    domain::grant,
    runtime::config::{Config, Limits},
};

const HTTP: &str = "0.0.0.0:8001";
const WS: &str = "0.0.0.0:8080";

/// The signaling server of webRTC-connect: rooms, admission, and the exchange of sealed offers. It never sees data.
///
/// Each option can also stand in `webrtc-connect.toml` (./ or the user's configuration directory), in its `server` section, with `_` for `-`.
#[derive(Debug, Parser)]
#[command(name = "webrtc-server", version)]
pub struct Args {
    /// Where REST is served (the WebSocket is served here, too) [default: 0.0.0.0:8001]
    #[arg(long, env = "WEBRTC_SERVER_HTTP", value_name = "ADDRESS")]
    http: Option<SocketAddr>,
    /// Where the WebSocket is served (REST is served here, too) [default: 0.0.0.0:8080]
    #[arg(long, env = "WEBRTC_SERVER_WS", value_name = "ADDRESS")]
    ws: Option<SocketAddr>,
    /// One address for everything, instead of --http and --ws
    #[arg(long, env = "WEBRTC_SERVER_LISTEN", value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// Where rooms and the signing key are kept [default: the user's data directory]
    #[arg(long, env = "WEBRTC_SERVER_DATA_DIR", value_name = "DIRECTORY")]
    data_dir: Option<PathBuf>,
    /// `redb` keeps rooms in a file; `memory` keeps rooms and signing key only as long as the process lives [default: redb]
    #[arg(long, env = "WEBRTC_SERVER_STORE")]
    store: Option<StoreKind>,
    /// STUN and TURN servers for peers: JSON in the browser's form such as [{"urls": "stun:HOST:3478"}], or @FILE with it
    #[arg(long, env = "ICE_SERVERS", value_name = "JSON", value_parser = secret, hide_env_values = true)]
    ice_servers: Option<Secret<String>>,
    /// How long a room admits peers unless renewed, in seconds [default: 7200]
    #[arg(long, env = "WEBRTC_SERVER_ROOM_TTL", value_name = "SECONDS")]
    room_ttl: Option<u64>,
    /// WebSockets from one address (IPv4, or IPv6 /64) [default: 20]
    #[arg(long, env = "WEBRTC_SERVER_SOCKETS_PER_ADDRESS", value_name = "COUNT")]
    sockets_per_address: Option<usize>,
    /// Sign-ins from one address in a minute [default: 30]
    #[arg(long, env = "WEBRTC_SERVER_SIGN_INS_PER_MINUTE", value_name = "COUNT")]
    sign_ins_per_minute: Option<u32>,
    /// A reverse proxy whose X-Forwarded-For is believed (repeatable)
    #[arg(long = "trusted-proxy", env = "WEBRTC_SERVER_TRUSTED_PROXIES", value_name = "IP", value_delimiter = ',')]
    trusted_proxies: Vec<IpAddr>,
    /// The configuration file
    #[arg(long, env = "WEBRTC_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// The environment of the configuration file that overlays it: [environments.NAME.server]
    #[arg(long, env = "WEBRTC_ENVIRONMENT", value_name = "NAME")]
    environment: Option<String>,
    /// Print the addresses as one JSON object
    #[arg(long)]
    pub json: bool,
    /// Log more; repeat for still more (WEBRTC_LOG takes filters)
    #[arg(short, long, action = ArgAction::Count)]
    pub verbose: u8,
}

/// Where rooms are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StoreKind {
    /// In a file.
    Redb,
    /// Nowhere.
    Memory,
}

/// The `[server]` section.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Section {
    http: Option<SocketAddr>,
    ws: Option<SocketAddr>,
    listen: Option<SocketAddr>,
    data_dir: Option<PathBuf>,
    store: Option<StoreKind>,
    ice_servers: IceServers,
    room_ttl: Option<u64>,
    trusted_proxies: Vec<IpAddr>,
    limits: Limits,
}

/// What the program needs to start.
#[derive(Debug)]
pub struct Start {
    /// For the server.
    pub config: Config,
    /// Where to listen.
    pub addresses: Addresses,
}

/// Where to listen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Addresses {
    /// On two ports.
    Two {
        /// REST.
        http: SocketAddr,
        /// WebSocket.
        ws: SocketAddr,
    },
    /// On one.
    One(SocketAddr),
}

impl Args {
    /// Reads the configuration file and decides.
    ///
    /// # Errors
    /// When the file or a value is wrong; the message names it.
    pub fn resolve(self) -> Result<Start, Failure> {
        let section: Section = config::load("server", self.config.as_deref(), self.environment.as_deref())?;
        self.with(section)
    }

    fn with(self, section: Section) -> Result<Start, Failure> {
        let addresses = addresses(&self, &section)?;
        let data_dir = match self.store.or(section.store).unwrap_or(StoreKind::Redb) {
            StoreKind::Memory => None,
            StoreKind::Redb => Some(self.data_dir.or(section.data_dir).map_or_else(|| config::data_dir("server"), Ok)?),
        };
        let ice_servers = config::ice_servers("--ice-servers (ICE_SERVERS)", self.ice_servers.as_ref())?;
        let defaults = Config::default();
        let mut limits = section.limits;
        limits.sockets_per_address = self.sockets_per_address.unwrap_or(limits.sockets_per_address);
        limits.sign_ins_per_minute = self.sign_ins_per_minute.unwrap_or(limits.sign_ins_per_minute);
        let proxies = if self.trusted_proxies.is_empty() { section.trusted_proxies } else { self.trusted_proxies };
        let config = Config {
            data_dir,
            ice_servers: ice_servers.unwrap_or(section.ice_servers.0),
            room_ttl: grant::checked_ttl(self.room_ttl.or(section.room_ttl), defaults.room_ttl)?,
            trusted_proxies: proxies.into_iter().map(|ip| ip.to_canonical()).collect(),
            limits,
            ..defaults
        };
        Ok(Start { config, addresses })
    }
}

/// Any text: clap's own errors would quote the password in it.
fn secret(text: &str) -> Result<Secret<String>, Infallible> {
    Ok(Secret::new(text.to_owned()))
}

fn addresses(args: &Args, section: &Section) -> Result<Addresses, Failure> {
    let both = || Failure::new(Code::InvalidRequest, "--listen is one address for everything; give it, or --http and --ws, not both");
    // A flag or variable wins over the file as a whole: `--listen` on the command line sets the file's `http` aside.
    match (args.listen, args.http.is_some() || args.ws.is_some()) {
        (Some(_), true) => return Err(both()),
        (Some(one), false) => return Ok(Addresses::One(one)),
        (None, true) => {}
        (None, false) => match (section.listen, section.http.is_some() || section.ws.is_some()) {
            (Some(_), true) => return Err(both()),
            (Some(one), false) => return Ok(Addresses::One(one)),
            (None, _) => {}
        },
    }
    let or_default = |address: Option<SocketAddr>, default: &str| address.unwrap_or_else(|| default.parse().expect("a constant address"));
    Ok(Addresses::Two { http: or_default(args.http.or(section.http), HTTP), ws: or_default(args.ws.or(section.ws), WS) })
}

/// What was bound, for people and for programs.
#[derive(Debug)]
pub struct Listening {
    /// Where REST is served.
    pub http: SocketAddr,
    /// Where the WebSocket is served.
    pub ws: SocketAddr,
}

impl Listening {
    /// One JSON object.
    pub fn to_json(&self) -> String {
        serde_json::json!({"event": "listening", "http": format!("http://{}", self.http), "ws": format!("ws://{}", self.ws)}).to_string()
    }
}

impl fmt::Display for Listening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "REST:      http://{}\nWebSocket: ws://{}", self.http, self.ws)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(line: &[&str]) -> Args {
        Args::try_parse_from(std::iter::once("webrtc-server").chain(line.iter().copied())).unwrap()
    }

    fn section(text: &str) -> Section {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.toml");
        std::fs::write(&path, text).unwrap();
        config::load("server", Some(&path), None).unwrap()
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let file = "[server]\nhttp = '127.0.0.1:1'\nroom_ttl = 60\nstore = 'memory'\nice_servers = [{ urls = 'stun:s' }]\n\
                    [server.limits]\nsockets_per_address = 7\n";
        let start = args(&["--room-ttl", "90"]).with(section(file)).unwrap();
        assert_eq!(start.config.room_ttl, 90);
        assert_eq!(start.config.limits.sockets_per_address, 7);
        assert_eq!(start.config.limits.sockets, Limits::default().sockets);
        assert_eq!(start.config.ice_servers[0].urls, ["stun:s"]);
        assert_eq!(start.config.data_dir, None);
        assert_eq!(start.addresses, Addresses::Two { http: "127.0.0.1:1".parse().unwrap(), ws: WS.parse().unwrap() });
    }

    #[test]
    fn one_address_sets_two_aside() {
        let one = "127.0.0.1:5".parse().unwrap();
        let file = || section("[server]\nhttp = '127.0.0.1:1'\nstore = 'memory'\n");
        assert_eq!(args(&["--listen", "127.0.0.1:5"]).with(file()).unwrap().addresses, Addresses::One(one));
        assert!(args(&["--listen", "127.0.0.1:5", "--ws", "127.0.0.1:6"]).with(file()).is_err());
        assert!(args(&[]).with(section("[server]\nhttp = '127.0.0.1:1'\nlisten = '127.0.0.1:2'\n")).is_err());
    }

    #[test]
    fn wrong_values_die_at_the_door_without_their_secrets() {
        for json in [r#"[{"urls": "http://x", "credential": "canary"}]"#, r#"[{"credential": "canary"}]"#, "canary"] {
            let failure = args(&["--store", "memory", "--ice-servers", json]).with(Section::default()).unwrap_err();
            assert!(failure.message.starts_with("--ice-servers") && !failure.message.contains("canary"), "{failure}");
        }
        assert!(args(&["--room-ttl", "0", "--store", "memory"]).with(Section::default()).is_err());
        let parsed = args(&["--ice-servers", r#"[{"urls": "turn:t", "username": "u", "credential": "canary"}]"#]);
        assert!(!format!("{parsed:?}").contains("canary"));
    }
}
