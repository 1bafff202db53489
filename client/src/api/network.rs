//! Flags and variables about how peers are reached; the same in client and worker.

use std::{convert::Infallible, net::SocketAddr, path::PathBuf};

use clap::{
    Args,
    builder::{OsStringValueParser, TypedValueParser},
};
use shared::{
    domain::{
        error::Failure,
        id::Secret,
        network::{NetworkSettings, parse_bind, read_setting},
    },
    runtime::config,
};

/// How peers may be reached. An empty variable counts as none.
#[derive(Debug, Clone, Default, Args)]
pub struct NetworkArgs {
    /// STUN and TURN servers instead of the signaling server's: JSON in the browser's form, one object or a list, or @FILE with it
    ///
    /// Such as '[{"urls": "turn:turn.example.org:443?transport=tcp", "username": "u", "credential": "p"}]'. With a password in it, prefer
    /// @FILE, the environment variable or ice_servers in the configuration file to the command line, which others on this machine can see.
    #[arg(long, env = "ICE_SERVERS", value_name = "JSON", value_parser = secret, hide_env_values = true, global = true, help_heading = "Network")]
    pub ice_servers: Option<Secret<String>>,

    /// Go through TURN relays only, so that the peers do not learn each other's address
    #[arg(long, env = "WEBRTC_RELAY_ONLY", value_parser = switch, global = true, help_heading = "Network")]
    pub relay_only: bool,

    /// The IP address or DNS name at which others reach this machine, where it is not its own (a cloud's 1:1 NAT, a container)
    ///
    /// Host candidates carry it instead of the local address; the UDP ports must be the same outside as inside, so it usually goes with
    /// --udp-ports. A name is looked up for each connection.
    #[arg(long, env = "WEBRTC_ADVERTISE_IP", value_name = "HOST", global = true, help_heading = "Network")]
    pub advertise_ip: Option<String>,

    /// The UDP ports to use, such as 50000-50050 [default: any]
    ///
    /// Each connection needs a port of its own: a session has one control connection, and as many bulk connections as make its transfers
    /// faster, at most 32; with fewer ports there are fewer of those. Ports cannot be shared.
    #[arg(long, env = "WEBRTC_UDP_PORTS", value_name = "FIRST-LAST", global = true, help_heading = "Network")]
    pub udp_ports: Option<String>,

    /// The network interfaces to use, such as 'eth0,wlan*', or those not to use, such as '!tun0'
    ///
    /// [default: all but loopback and the bridges of containers and virtual machines; loopback, too, where the signaling server is on
    /// this machine]
    #[arg(long, env = "WEBRTC_INTERFACES", value_name = "NAMES", global = true, help_heading = "Network")]
    pub interfaces: Option<String>,

    /// A local address (IP or IP:PORT) to use instead of the interfaces'; may be given several times
    #[arg(long, value_name = "ADDR", value_parser = parse_bind, global = true, help_heading = "Network")]
    pub bind: Vec<SocketAddr>,

    /// Certificates (PEM) to trust in the signaling server (https) and in TURN servers over TLS, besides the system's
    #[arg(long, env = "WEBRTC_CA_FILE", value_name = "FILE", value_parser = OsStringValueParser::new().map(PathBuf::from), global = true, help_heading = "Network")]
    pub ca_file: Option<PathBuf>,
}

impl NetworkArgs {
    /// What they say.
    ///
    /// # Errors
    /// [`Code::InvalidRequest`](shared::domain::error::Code::InvalidRequest) with the reason, never with a password.
    pub fn settings(&self) -> Result<NetworkSettings, Failure> {
        Ok(NetworkSettings {
            ice_servers: config::ice_servers("--ice-servers (ICE_SERVERS)", self.ice_servers.as_ref())?,
            relay_only: self.relay_only.then_some(true),
            advertise_ip: read_setting("--advertise-ip (WEBRTC_ADVERTISE_IP)", self.advertise_ip.as_deref())?,
            udp_ports: read_setting("--udp-ports (WEBRTC_UDP_PORTS)", self.udp_ports.as_deref())?,
            interfaces: read_setting("--interfaces (WEBRTC_INTERFACES)", self.interfaces.as_deref())?,
            bind: self.bind.clone(),
            ca_file: self.ca_file.clone().filter(|path| !path.as_os_str().is_empty()),
        })
    }
}

/// Any text: clap's own errors would quote the password in it.
fn secret(text: &str) -> Result<Secret<String>, Infallible> {
    Ok(Secret::new(text.to_owned()))
}

fn switch(text: &str) -> Result<bool, &'static str> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "true" | "yes" | "on" => Ok(true),
        "" | "0" | "false" | "no" | "off" => Ok(false),
        _ => Err("it must be 1 or 0"),
    }
}
