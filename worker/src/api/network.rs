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
    #[arg(long, env = "ICE_SERVERS", value_name = "JSON", value_parser = secret, hide_env_values = true, help_heading = "Network")]
    pub ice_servers: Option<Secret<String>>,

    /// Go through TURN relays only, so that the peers do not learn each other's address
    #[arg(long, env = "WEBRTC_RELAY_ONLY", value_parser = switch, help_heading = "Network")]
    pub relay_only: bool,

    /// The IP address or DNS name at which others reach this machine, where it is not its own (a cloud's 1:1 NAT, a container)
    ///
    /// Host candidates carry it instead of the local address; the UDP ports must be the same outside as inside, so it usually goes with
    /// --udp-ports. A name is looked up for each connection.
    #[arg(long, env = "WEBRTC_ADVERTISE_IP", value_name = "HOST", help_heading = "Network")]
    pub advertise_ip: Option<String>,

    /// The UDP ports to use, such as 50000-50050 [default: any]
    ///
    /// Each connection needs a port of its own: a session has one control connection, and as many bulk connections as make its transfers
    /// faster, at most 32; with fewer ports there are fewer of those. Ports cannot be shared.
    #[arg(long, env = "WEBRTC_UDP_PORTS", value_name = "FIRST-LAST", help_heading = "Network")]
    pub udp_ports: Option<String>,

    /// The network interfaces to use, such as 'eth0,wlan*', or those not to use, such as '!tun0'
    ///
    /// [default: all but loopback and the bridges of containers and virtual machines; loopback, too, where the signaling server is on
    /// this machine]
    #[arg(long, env = "WEBRTC_INTERFACES", value_name = "NAMES", help_heading = "Network")]
    pub interfaces: Option<String>,

    /// A local address (IP or IP:PORT) to use instead of the interfaces'; may be given several times
    #[arg(long, value_name = "ADDR", value_parser = parse_bind, help_heading = "Network")]
    pub bind: Vec<SocketAddr>,

    /// Certificates (PEM) to trust in the signaling server (https) and in TURN servers over TLS, besides the system's
    #[arg(long, env = "WEBRTC_CA_FILE", value_name = "FILE", value_parser = OsStringValueParser::new().map(PathBuf::from), help_heading = "Network")]
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

pub(super) fn switch(text: &str) -> Result<bool, &'static str> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "true" | "yes" | "on" => Ok(true),
        "" | "0" | "false" | "no" | "off" => Ok(false),
        _ => Err("it must be 1 or 0"),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use shared::domain::error::Code;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        network: NetworkArgs,
    }

    fn settings(line: &[&str]) -> Result<NetworkSettings, Failure> {
        Line::try_parse_from(std::iter::once("x").chain(line.iter().copied())).unwrap().network.settings()
    }

    #[test]
    fn flags_become_settings_and_wrong_ones_are_refused_by_name() {
        let read =
            settings(&["--udp-ports", "5-9", "--advertise-ip", "gpu.example", "--relay-only", "--bind", "10.0.0.1", "--ca-file", ""])
                .unwrap();
        assert_eq!((read.udp_ports.unwrap().ports(), read.advertise_ip.unwrap().to_string().as_str()), (5..=9, "gpu.example"));
        assert_eq!((read.relay_only, read.bind.len(), read.ca_file), (Some(true), 1, None));
        assert_eq!(settings(&["--ice-servers", ""]).unwrap(), NetworkSettings::default());
        for (line, says) in [
            (["--ice-servers", r#"{"urls": "turn:t", "credential": "canary"}"#], "--ice-servers (ICE_SERVERS): server 1: turn:t"),
            (["--udp-ports", "9-5"], "--udp-ports (WEBRTC_UDP_PORTS): the first port, 9, is above"),
            (["--advertise-ip", "a b"], "--advertise-ip (WEBRTC_ADVERTISE_IP): the host must be"),
            (["--interfaces", "eth 0"], "--interfaces (WEBRTC_INTERFACES): it must be"),
        ] {
            let failure = settings(&line).unwrap_err();
            assert!(
                failure.code == Code::InvalidRequest && failure.message.starts_with(says) && !failure.message.contains("canary"),
                "{failure}"
            );
        }
        assert_eq!((switch("Yes"), switch("")), (Ok(true), Ok(false)));
        assert!(switch("maybe").is_err());
        let secret = format!("{:?}", Line::try_parse_from(["x", "--ice-servers", "canary"]).unwrap());
        assert!(!secret.contains("canary"), "{secret}");
    }
}
