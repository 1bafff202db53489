//! The command line of `webrtc-server`: flags, then environment, then `webrtc-connect.toml`, then defaults, decided once.

mod users;

use std::{convert::Infallible, fmt, net::SocketAddr, path::PathBuf, str::FromStr};

use clap::{ArgAction, Parser, Subcommand, ValueEnum};
use serde::Deserialize;
use shared::{
    domain::{
        error::{Code, Failure},
        ice::IceServers,
        id::Secret,
    },
    runtime::config,
};

use self::users::{AuthKind, UserArgs, UserSection};
use super::health::HealthArgs;
use crate::{
    domain::{
        grant,
        proxies::Proxy,
        turn_credentials::{self, TurnUrl},
    },
    runtime::{
        config::{Config, Limits, SignInWay, without_aws},
        relay::NatsConfig,
        tls::TlsFiles,
        turn_credentials::TurnConfig,
    },
};

const HTTP: &str = "0.0.0.0:8001";
const WS: &str = "0.0.0.0:8080";
const TABLE: &str = "webrtc-connect-rooms";
const POOL: &str = "webrtc-connect";

const EXAMPLES: &str = r#"Examples:
  webrtc-server --ice-servers '[{"urls": "stun:stun.example.org:3478"}]'
      for a lab, on ports 8001 and 8080
  webrtc-server --listen 0.0.0.0:443 --tls-cert fullchain.pem --tls-key privkey.pem
      on the internet, with a certificate of its own; peers use https://HOST
  webrtc-server --listen 127.0.0.1:8001 --trusted-proxy 127.0.0.1
      behind a reverse proxy that adds TLS
  webrtc-server --turn-urls turn:turn.example.org:3478 --turn-secret-file turn-secret
      with a TURN server for peers behind strict firewalls (scripts/coturn starts one)
  webrtc-server init && webrtc-server --store dynamodb
      rooms in DynamoDB, so that several servers can share them
  webrtc-server --auth cognito --cognito-pool eu-central-1_AbCdEfGhI --cognito-client 1h57kf5cpq17m0eml12EXAMPLE
      anonymous users in an Amazon Cognito user pool, which webrtc-server init --cognito makes"#;

/// The signaling server of webRTC-connect: rooms, admission, and the exchange of sealed offers. It never sees data.
///
/// Most options can also stand in `webrtc-connect.toml` (./ or the user's configuration directory), in its section `[server]` with `_` for `-`;
/// limits in `[server.limits]`.
#[derive(Debug, Parser)]
#[command(name = "webrtc-server", version, after_help = EXAMPLES)]
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
    /// `redb` keeps rooms in a file; `dynamodb` in a table that several servers can share; `memory` keeps rooms and signing key only as long
    /// as the process lives [default: redb]
    #[arg(long, env = "WEBRTC_SERVER_STORE")]
    store: Option<StoreKind>,
    /// The table for --store dynamodb. AWS's own variables say where it is and who we are: AWS_REGION, AWS_PROFILE, … [default: webrtc-connect-rooms]
    #[arg(long, env = "WEBRTC_SERVER_DYNAMODB_TABLE", value_name = "NAME", global = true)]
    dynamodb_table: Option<TableName>,
    /// Where the servers of one deployment meet: NATS servers such as nats://HOST:4222 or tls://USER:PASSWORD@HOST:4222. They need one room
    /// store, and one signing key where it is local. One server alone needs none
    #[arg(long, env = "WEBRTC_SERVER_NATS", value_name = "URL,…", value_parser = secret, hide_env_values = true, help_heading = "Several servers")]
    nats: Option<Secret<String>>,
    /// The login at the NATS servers, in a file of mode 600: USER:PASSWORD, or a token
    #[arg(long, env = "WEBRTC_SERVER_NATS_CREDENTIALS_FILE", value_name = "FILE", help_heading = "Several servers")]
    nats_credentials_file: Option<PathBuf>,
    /// The certificates (PEM) that tls:// NATS servers are checked with [default: the system's]
    #[arg(long, env = "WEBRTC_SERVER_NATS_CA_FILE", value_name = "FILE", help_heading = "Several servers")]
    nats_ca_file: Option<PathBuf>,
    /// STUN and TURN servers for peers: JSON in the browser's form such as [{"urls": "stun:HOST:3478"}], or @FILE with it
    #[arg(long, env = "ICE_SERVERS", value_name = "JSON", value_parser = secret, hide_env_values = true, help_heading = "Ways between peers")]
    ice_servers: Option<Secret<String>>,
    /// TURN servers that admitted peers get short-lived credentials for, such as turn:HOST:3478,turns:HOST:443?transport=tcp
    #[arg(long, env = "WEBRTC_SERVER_TURN_URLS", value_name = "URL,…", value_delimiter = ',', help_heading = "Ways between peers")]
    turn_urls: Vec<TurnUrl>,
    /// The secret that these TURN servers have, too (coturn's static-auth-secret), in a file of mode 600. While it is being changed, a
    /// second line has the other one. The file is read each time
    #[arg(long, env = "WEBRTC_SERVER_TURN_SECRET_FILE", value_name = "FILE", help_heading = "Ways between peers")]
    turn_secret_file: Option<PathBuf>,
    /// How long TURN credentials are valid, in seconds; peers get new ones at half time [default: 600]
    #[arg(long, env = "WEBRTC_SERVER_TURN_TTL", value_name = "SECONDS", help_heading = "Ways between peers")]
    turn_ttl: Option<u64>,
    /// How long a room admits peers unless renewed, in seconds [default: 7200]
    #[arg(long, env = "WEBRTC_SERVER_ROOM_TTL", value_name = "SECONDS")]
    room_ttl: Option<u64>,
    /// WebSockets from one address (IPv4, or IPv6 /64) [default: 20]
    #[arg(long, env = "WEBRTC_SERVER_SOCKETS_PER_ADDRESS", value_name = "COUNT", help_heading = "Limits")]
    sockets_per_address: Option<usize>,
    /// Sign-ins from one address in a minute [default: 30]
    #[arg(long, env = "WEBRTC_SERVER_SIGN_INS_PER_MINUTE", value_name = "COUNT", help_heading = "Limits")]
    sign_ins_per_minute: Option<u32>,
    #[command(flatten)]
    users: UserArgs,
    /// A reverse proxy whose X-Forwarded-For is believed: its address, or a network such as 10.0.0.0/8 (repeatable)
    #[arg(long = "trusted-proxy", env = "WEBRTC_SERVER_TRUSTED_PROXIES", value_name = "IP", value_delimiter = ',')]
    trusted_proxies: Vec<Proxy>,
    /// Speak TLS (https, wss) on all ports, with this certificate and those between it and the root (PEM). It is read again when the file
    /// changes, and at SIGHUP
    #[arg(long, env = "WEBRTC_SERVER_TLS_CERT", value_name = "FILE", help_heading = "TLS")]
    tls_cert: Option<PathBuf>,
    /// The certificate's private key (PEM)
    #[arg(long, env = "WEBRTC_SERVER_TLS_KEY", value_name = "FILE", help_heading = "TLS")]
    tls_key: Option<PathBuf>,
    /// The configuration file
    #[arg(long, env = "WEBRTC_CONFIG", value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    /// The environment of the configuration file that overlays it: [environments.NAME.server]
    #[arg(long, env = "WEBRTC_ENVIRONMENT", value_name = "NAME", global = true)]
    environment: Option<String>,
    /// Print the addresses (or what `init` did) as one JSON object
    #[arg(long, global = true)]
    pub json: bool,
    /// Log more; repeat for still more (WEBRTC_LOG takes filters)
    #[arg(short, long, action = ArgAction::Count, global = true)]
    pub verbose: u8,
    /// What to do instead of serving
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What can be done instead of serving.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Ask the server that these options would start how it is; exits with 0 if it can serve
    Health(HealthArgs),
    /// Make what the server needs in AWS, once: the DynamoDB table and its TTL, and a Cognito user pool. What is there already stays as it is
    Init(Init),
}

/// The flags of `init`.
#[derive(Debug, Clone, clap::Args)]
pub struct Init {
    /// Make nothing; print the commands of the AWS CLI that would, and the least IAM policy for the server
    #[arg(long)]
    pub print: bool,
    /// Make a Cognito user pool and its app client, too, for --auth cognito; --cognito-sign-in says in which way
    #[arg(long)]
    pub cognito: bool,
    /// The user pool's name
    #[arg(long, value_name = "NAME", default_value = POOL, requires = "cognito", value_parser = pool_name)]
    pub cognito_pool_name: String,
    /// Make no table, for rooms in a file
    #[arg(long, requires = "cognito")]
    pub no_dynamodb: bool,
}

/// What `init` is to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The table's name.
    pub table: Option<String>,
    /// The user pool's name, and how users sign in there.
    pub pool: Option<(String, SignInWay)>,
}

/// Where rooms are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StoreKind {
    /// In a file.
    Redb,
    /// In a DynamoDB table.
    Dynamodb,
    /// Nowhere.
    Memory,
}

/// The name of a DynamoDB table.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct TableName(String);

impl FromStr for TableName {
    type Err = String;
    fn from_str(name: &str) -> Result<Self, String> {
        let fits = (3..=255).contains(&name.len());
        if fits && name.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c)) {
            return Ok(TableName(name.to_owned()));
        }
        Err("a DynamoDB table's name has 3 to 255 letters, digits, _, . or -".to_owned())
    }
}

impl TryFrom<String> for TableName {
    type Error = String;
    fn try_from(name: String) -> Result<Self, String> {
        name.parse()
    }
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
    nats: Option<Secret<String>>,
    nats_credentials_file: Option<PathBuf>,
    nats_ca_file: Option<PathBuf>,
    auth: Option<AuthKind>,
    cognito_pool: Option<String>,
    cognito_client: Option<String>,
    cognito_client_secret_file: Option<PathBuf>,
    cognito_sign_in: Option<SignInWay>,
    cognito_issuer: Option<String>,
    cognito_jwks_url: Option<String>,
    cognito_sweep_after: Option<u64>,
    cognito_deletions_per_second: Option<u32>,
    dynamodb_table: Option<TableName>,
    ice_servers: IceServers,
    turn_urls: Vec<String>,
    turn_secret_file: Option<PathBuf>,
    turn_ttl: Option<u64>,
    room_ttl: Option<u64>,
    trusted_proxies: Vec<Proxy>,
    tls_cert: Option<PathBuf>,
    tls_key: Option<PathBuf>,
    limits: Limits,
}

impl Section {
    fn users(&self) -> UserSection {
        UserSection {
            auth: self.auth,
            pool: self.cognito_pool.clone(),
            client: self.cognito_client.clone(),
            client_secret_file: self.cognito_client_secret_file.clone(),
            sign_in: self.cognito_sign_in,
            issuer: self.cognito_issuer.clone(),
            jwks_url: self.cognito_jwks_url.clone(),
            sweep_after: self.cognito_sweep_after,
            deletions_per_second: self.cognito_deletions_per_second,
        }
    }
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

impl Addresses {
    /// Where REST is served.
    pub fn http(self) -> SocketAddr {
        match self {
            Addresses::Two { http, .. } => http,
            Addresses::One(one) => one,
        }
    }
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

    /// What `init` is about.
    ///
    /// # Errors
    /// When the configuration file is wrong.
    pub fn resolve_init(self, init: &Init) -> Result<Wanted, Failure> {
        let section: Section = config::load("server", self.config.as_deref(), self.environment.as_deref())?;
        let way = self.users.way(&section.users());
        Ok(Wanted {
            table: (!init.no_dynamodb).then(|| table(self.dynamodb_table.or(section.dynamodb_table))),
            pool: init.cognito.then(|| (init.cognito_pool_name.clone(), way)),
        })
    }

    fn with(self, section: Section) -> Result<Start, Failure> {
        let addresses = addresses(&self, &section)?;
        let turn = turn(&self, &section)?;
        let tls = tls(&self, &section)?;
        let nats = nats(&self, &section)?;
        let users = section.users();
        let store = self.store.or(section.store).unwrap_or(StoreKind::Redb);
        if store == StoreKind::Dynamodb && !cfg!(feature = "aws") {
            return Err(without_aws());
        }
        let data_dir = match store {
            StoreKind::Memory => None,
            // With DynamoDB only the signing key is kept here.
            StoreKind::Redb | StoreKind::Dynamodb => {
                Some(self.data_dir.or(section.data_dir).map_or_else(|| config::data_dir("server"), Ok)?)
            }
        };
        let dynamodb_table = (store == StoreKind::Dynamodb).then(|| table(self.dynamodb_table.or(section.dynamodb_table)));
        let ice_servers = config::ice_servers("--ice-servers (ICE_SERVERS)", self.ice_servers.as_ref())?;
        let defaults = Config::default();
        let mut limits = section.limits;
        limits.sockets_per_address = self.sockets_per_address.unwrap_or(limits.sockets_per_address);
        limits.sign_ins_per_minute = self.sign_ins_per_minute.unwrap_or(limits.sign_ins_per_minute);
        self.users.limit(&mut limits);
        let proxies = if self.trusted_proxies.is_empty() { section.trusted_proxies } else { self.trusted_proxies };
        let config = Config {
            data_dir,
            nats,
            cognito: self.users.decide(users)?,
            dynamodb_table,
            ice_servers: ice_servers.unwrap_or(section.ice_servers.0),
            turn,
            room_ttl: grant::checked_ttl(self.room_ttl.or(section.room_ttl), defaults.room_ttl)?,
            trusted_proxies: proxies.into_iter().collect(),
            tls,
            limits,
            ..defaults
        };
        Ok(Start { config, addresses })
    }
}

/// Fewer characters than Cognito takes: none of them needs quoting in a shell.
fn pool_name(name: &str) -> Result<String, String> {
    let fits = (1..=128).contains(&name.len()) && !name.starts_with('-');
    if fits && name.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c)) {
        return Ok(name.to_owned());
    }
    Err("a user pool's name has 1 to 128 letters, digits, _, . or -".to_owned())
}

fn table(named: Option<TableName>) -> String {
    named.map_or_else(|| TABLE.to_owned(), |name| name.0)
}

/// Any text: clap's own errors would quote the password in it.
fn secret(text: &str) -> Result<Secret<String>, Infallible> {
    Ok(Secret::new(text.to_owned()))
}

fn nats(args: &Args, section: &Section) -> Result<Option<NatsConfig>, Failure> {
    let credentials = args.nats_credentials_file.as_deref().or(section.nats_credentials_file.as_deref());
    let ca_file = args.nats_ca_file.clone().or_else(|| section.nats_ca_file.clone());
    match args.nats.as_ref().or(section.nats.as_ref()) {
        Some(urls) => Ok(Some(NatsConfig::read(urls, credentials, ca_file)?)),
        None if credentials.is_none() && ca_file.is_none() => Ok(None),
        None => {
            Err(Failure::new(Code::InvalidRequest, "--nats-credentials-file and --nats-ca-file need --nats, the NATS servers' addresses"))
        }
    }
}

fn turn(args: &Args, section: &Section) -> Result<Option<TurnConfig>, Failure> {
    let wrong = |message: String| Failure::new(Code::InvalidRequest, message);
    let urls = match &args.turn_urls[..] {
        [] => section.turn_urls.iter().map(|url| url.parse()).collect::<Result<_, String>>().map_err(wrong)?,
        urls => urls.to_vec(),
    };
    let ttl = args.turn_ttl.or(section.turn_ttl).unwrap_or(turn_credentials::DEFAULT_TTL);
    let range = turn_credentials::TTL_RANGE;
    if !range.contains(&ttl) {
        return Err(wrong(format!("--turn-ttl is {ttl} seconds; it can be {} to {}", range.start(), range.end())));
    }
    match (urls.is_empty(), args.turn_secret_file.as_ref().or(section.turn_secret_file.as_ref())) {
        (true, None) => Ok(None),
        (false, Some(file)) => Ok(Some(TurnConfig { urls, secret_file: file.clone(), ttl })),
        (false, None) => Err(wrong("--turn-urls needs --turn-secret-file, the secret that credentials for them are made with".into())),
        (true, Some(_)) => Err(wrong("--turn-secret-file needs --turn-urls, the TURN servers that have this secret".into())),
    }
}

fn tls(args: &Args, section: &Section) -> Result<Option<TlsFiles>, Failure> {
    // Flags win over the file as a pair: a certificate from here and a key from there do not belong together.
    let (cert, key) = match (&args.tls_cert, &args.tls_key) {
        (None, None) => (&section.tls_cert, &section.tls_key),
        pair => pair,
    };
    match (cert, key) {
        (None, None) => Ok(None),
        (Some(cert), Some(key)) => Ok(Some(TlsFiles { cert: cert.clone(), key: key.clone() })),
        _ => Err(Failure::new(Code::InvalidRequest, "TLS needs both --tls-cert and --tls-key, the certificate and its private key")),
    }
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
    /// Whether with TLS.
    pub tls: bool,
}

impl Listening {
    /// One JSON object.
    pub fn to_json(&self) -> String {
        let (http, ws) = self.urls();
        serde_json::json!({"event": "listening", "http": http, "ws": ws}).to_string()
    }

    fn urls(&self) -> (String, String) {
        let s = if self.tls { "s" } else { "" };
        (format!("http{s}://{}", self.http), format!("ws{s}://{}", self.ws))
    }
}

impl fmt::Display for Listening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (http, ws) = self.urls();
        write!(f, "REST:      {http}\nWebSocket: {ws}")
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
    fn rooms_in_dynamodb_have_a_table_and_still_a_data_directory() {
        let config = |line: &[&str], file: &str| args(line).with(section(file)).map(|start| start.config);
        let file = "[server]\nstore = 'dynamodb'\ndynamodb_table = 'lab-rooms'\ndata_dir = '/d'\n";
        if cfg!(feature = "aws") {
            let named = config(&[], file).unwrap();
            assert_eq!((named.dynamodb_table.as_deref(), named.data_dir), (Some("lab-rooms"), Some("/d".into())));
            assert_eq!(config(&["--dynamodb-table", "other"], file).unwrap().dynamodb_table.as_deref(), Some("other"));
            let unnamed = config(&["--store", "dynamodb", "--data-dir", "/d"], "[server]\n").unwrap();
            assert_eq!(unnamed.dynamodb_table.as_deref(), Some(TABLE));
        } else {
            assert!(config(&[], file).unwrap_err().message.contains("built without AWS"));
        }
        assert_eq!(config(&["--store", "memory"], file).unwrap().dynamodb_table, None);
        for name in ["ab", "a b", "'; rm", ""] {
            assert!(Args::try_parse_from(["webrtc-server", "--dynamodb-table", name]).is_err(), "{name}");
        }
        let init = args(&["init", "--print", "--dynamodb-table", "lab-rooms"]);
        assert!(matches!(init.command, Some(Command::Init(Init { print: true, .. }))));
        assert_eq!(init.dynamodb_table, Some("lab-rooms".parse().unwrap()));
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
    fn turn_servers_and_their_secret_come_together() {
        let turn = |line: &[&str], file: &str| {
            let section = if file.is_empty() { Section::default() } else { section(&format!("[server]\n{file}")) };
            args(&[&["--store", "memory"], line].concat()).with(section).map(|start| start.config.turn)
        };
        let urls = "turn:t.example:3478?transport=udp,turns:t.example:443?transport=tcp";
        let config =
            turn(&["--turn-urls", urls, "--turn-secret-file", "f"], "turn_urls = ['turn:other']\nturn_ttl = 60\n").unwrap().unwrap();
        assert_eq!(config.urls.iter().map(ToString::to_string).collect::<Vec<_>>().join(","), urls);
        assert_eq!((config.secret_file.to_str(), config.ttl), (Some("f"), 60));
        let config = turn(&[], "turn_urls = ['turn:t']\nturn_secret_file = 'f'\n").unwrap().unwrap();
        assert_eq!((config.urls.len(), config.ttl), (1, 600));
        assert!(turn(&[], "").unwrap().is_none());
        for (line, file, says) in [
            (&["--turn-urls", "turn:t"][..], "", "needs --turn-secret-file"),
            (&["--turn-secret-file", "f"], "", "needs --turn-urls"),
            (&["--turn-urls", "turn:t", "--turn-secret-file", "f", "--turn-ttl", "5"], "", "30 to 86400"),
            (&[], "turn_urls = ['stun:t']\nturn_secret_file = 'f'\n", "this is no TURN server: it does not begin with turn: or turns:"),
        ] {
            let failure = turn(line, file).unwrap_err();
            assert!(failure.code == Code::InvalidRequest && failure.message.contains(says), "{failure}");
        }
        assert!(Args::try_parse_from(["webrtc-server", "--turn-urls", "http://t"]).is_err());
    }

    #[test]
    fn a_certificate_and_its_key_come_together() {
        let tls = |line: &[&str], file: &str| {
            let section = if file.is_empty() { Section::default() } else { section(&format!("[server]\n{file}")) };
            args(&[&["--store", "memory"], line].concat()).with(section).map(|start| start.config.tls)
        };
        let pair = |cert: &str, key: &str| Some(TlsFiles { cert: cert.into(), key: key.into() });
        let file = "tls_cert = 'c'\ntls_key = 'k'\n";
        assert_eq!(tls(&[], "").unwrap(), None);
        assert_eq!(tls(&[], file).unwrap(), pair("c", "k"));
        assert_eq!(tls(&["--tls-cert", "a", "--tls-key", "b"], file).unwrap(), pair("a", "b"));
        for line in [&["--tls-cert", "a"][..], &["--tls-key", "b"]] {
            assert!(tls(line, file).unwrap_err().message.contains("both --tls-cert and --tls-key"), "{line:?}");
        }
        let listening = Listening { http: "[::1]:1".parse().unwrap(), ws: "127.0.0.1:2".parse().unwrap(), tls: true };
        assert_eq!(listening.to_string(), "REST:      https://[::1]:1\nWebSocket: wss://127.0.0.1:2");
    }

    #[test]
    fn proxies_are_addresses_and_networks() {
        let proxies =
            |line: &[&str], file: &str| args(&[&["--store", "memory"], line].concat()).with(section(file)).unwrap().config.trusted_proxies;
        let file = "[server]\ntrusted_proxies = ['192.0.2.1']\n";
        assert!(proxies(&[], file).contains("192.0.2.1".parse().unwrap()));
        let named = proxies(&["--trusted-proxy", "10.0.0.0/8,127.0.0.1"], file);
        assert!(
            ["10.2.3.4", "127.0.0.1"].iter().all(|ip| named.contains(ip.parse().unwrap())) && !named.contains("192.0.2.1".parse().unwrap())
        );
        let refused = Args::try_parse_from(["webrtc-server", "--trusted-proxy", "proxy.example"]).unwrap_err().to_string();
        assert!(refused.contains("neither an address such as"), "{refused}");
    }

    #[test]
    fn nats_servers_come_from_flag_or_file_and_their_passwords_are_not_shown() {
        let nats = |line: &[&str], file: &str| {
            let section = if file.is_empty() { Section::default() } else { section(&format!("[server]\n{file}")) };
            args(&[&["--store", "memory"], line].concat()).with(section).map(|start| start.config.nats)
        };
        assert_eq!(nats(&[], "").unwrap(), None);
        assert_eq!(nats(&["--nats", "nats://a"], "nats = 'nats://b'\n").unwrap().unwrap().servers, ["nats://a"]);
        let config = nats(&[], "nats = 'tls://u:canary@b'\nnats_ca_file = 'ca.pem'\n").unwrap().unwrap();
        assert_eq!((&config.servers[..], config.ca_file.as_deref()), (&["tls://b".to_owned()][..], Some(std::path::Path::new("ca.pem"))));
        assert!(!format!("{:?} {config:?}", args(&["--nats", "nats://u:canary@a"])).contains("canary"));
        for (line, file) in
            [(&["--nats", "http://u:canary@a"][..], ""), (&["--nats-ca-file", "f"], ""), (&[], "nats_credentials_file = 'f'\n")]
        {
            let failure = nats(line, file).unwrap_err();
            assert!(failure.code == Code::InvalidRequest && !failure.message.contains("canary"), "{failure}");
        }
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
