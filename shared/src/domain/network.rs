//! How a peer may be reached: what flags, environment and configuration file say about it, in one value.
//!
//! * [`NetworkSettings`]: what one source says; [`NetworkSettings::or`] lays one over another, [`NetworkSettings::decide`] ends it
//! * [`Host`], [`PortRange`], [`Interfaces`]: the values, each read from text with the reason for a refusal
//! * [`Interfaces::choose`]: which of the machine's addresses are used

use core::{
    fmt,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    str::FromStr,
};
use std::path::PathBuf;

use serde::Deserialize;

use super::{
    error::{Code, Failure},
    signal::IceServer,
};

/// UDP sockets on one address that a session may have: its control connection's, and those of 32 bulk connections.
pub const PORTS_OF_A_SESSION: usize = 33;
/// Addresses that a connection uses at most; each has a socket and is tried with each of the other side's.
const MAX_ADDRESSES: usize = 8;
/// IPv6 addresses of one interface: the lasting and the temporary one (RFC 8981).
const MAX_IPV6: usize = 2;

/// Interfaces that lead to containers and virtual machines on this host; what is behind them has a way of its own to everybody else.
const BRIDGES: [&str; 13] = [
    "docker*",
    "br-????????????",
    "virbr*",
    "veth*",
    "vnet*",
    "lxcbr*",
    "lxdbr*",
    "podman*",
    "cni*",
    "flannel*",
    "cali*",
    "vmnet*",
    "vboxnet*",
];

/// How a peer may be reached.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Network {
    /// STUN and TURN servers; empty: those that the signaling server hands out.
    pub ice_servers: Vec<IceServer>,
    /// Use relays only, so that the other side does not learn our address.
    pub relay_only: bool,
    /// The address at which others reach us, where it is not the machine's own.
    pub advertise: Option<Host>,
    /// The UDP ports to use; absent: any.
    pub udp_ports: Option<PortRange>,
    /// The interfaces to use.
    pub interfaces: Interfaces,
    /// Local addresses to use instead of the interfaces'.
    pub bind: Vec<SocketAddr>,
    /// Certificates (PEM) to trust in the signaling server and in TURN servers, besides the system's.
    pub ca_file: Option<PathBuf>,
}

/// What one source says about [`Network`]; absent: nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NetworkSettings {
    /// See [`Network::ice_servers`].
    pub ice_servers: Option<Vec<IceServer>>,
    /// See [`Network::relay_only`].
    pub relay_only: Option<bool>,
    /// See [`Network::advertise`].
    pub advertise_ip: Option<Host>,
    /// See [`Network::udp_ports`].
    pub udp_ports: Option<PortRange>,
    /// See [`Network::interfaces`].
    pub interfaces: Option<Interfaces>,
    /// See [`Network::bind`].
    pub bind: Vec<SocketAddr>,
    /// See [`Network::ca_file`].
    pub ca_file: Option<PathBuf>,
}

impl NetworkSettings {
    /// These, and where they say nothing, those of a source that counts less.
    pub fn or(self, lower: NetworkSettings) -> NetworkSettings {
        NetworkSettings {
            ice_servers: self.ice_servers.or(lower.ice_servers),
            relay_only: self.relay_only.or(lower.relay_only),
            advertise_ip: self.advertise_ip.or(lower.advertise_ip),
            udp_ports: self.udp_ports.or(lower.udp_ports),
            interfaces: self.interfaces.or(lower.interfaces),
            bind: if self.bind.is_empty() { lower.bind } else { self.bind },
            ca_file: self.ca_file.or(lower.ca_file),
        }
    }

    /// With the defaults for what nobody said.
    ///
    /// # Errors
    /// [`Code::InvalidRequest`] for an address to advertise that cannot be that of one machine.
    pub fn decide(self) -> Result<Network, Failure> {
        if let Some(Host::Ip(ip)) = self.advertise_ip
            && (ip.is_unspecified() || ip.is_multicast())
        {
            return Err(Failure::new(Code::InvalidRequest, format!("{ip} is not the address of one machine, so it cannot be advertised")));
        }
        Ok(Network {
            ice_servers: self.ice_servers.unwrap_or_default(),
            relay_only: self.relay_only.unwrap_or_default(),
            advertise: self.advertise_ip,
            udp_ports: self.udp_ports,
            interfaces: self.interfaces.unwrap_or_default(),
            bind: self.bind,
            ca_file: self.ca_file,
        })
    }
}

/// Reads a flag's or a variable's text; an empty one counts as none. `origin` begins the error.
///
/// # Errors
/// [`Code::InvalidRequest`] with the reason.
pub fn read_setting<T: FromStr<Err = String>>(origin: &str, text: Option<&str>) -> Result<Option<T>, Failure> {
    let text = text.map(str::trim).filter(|text| !text.is_empty());
    text.map(|text| text.parse().map_err(|why| Failure::new(Code::InvalidRequest, format!("{origin}: {why}")))).transpose()
}

/// A DNS name or an IP address.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Deserialize)]
#[serde(try_from = "String")]
pub enum Host {
    /// To be resolved each time it is used.
    Name(String),
    /// An address.
    Ip(IpAddr),
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::Name(name) => f.write_str(name),
            Host::Ip(ip) => ip.fmt(f),
        }
    }
}

impl FromStr for Host {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("a host is missing".into());
        }
        let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
        if let Ok(ip) = bare.parse::<IpAddr>() {
            return Ok(Host::Ip(ip));
        }
        let name = text.strip_suffix('.').unwrap_or(text);
        let label = |label: &str| {
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
            (1..=63).contains(&label.len()) && label.bytes().all(plain) && !label.starts_with('-') && !label.ends_with('-')
        };
        if name.len() > 253 || !name.split('.').all(label) {
            return Err("the host must be a DNS name (letters, digits, '-', '.') or an IP address".into());
        }
        // A name whose last label is a number is taken for an IPv4 address everywhere (WHATWG URL, RFC 3986 §7.4).
        if name.rsplit('.').next().is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit())) {
            return Err("the host looks like an address and is no IPv4 address".into());
        }
        Ok(Host::Name(text.to_owned()))
    }
}

impl TryFrom<String> for Host {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// A local address to bind: an IP address, with or without a port.
///
/// # Errors
/// The reason for a refusal.
pub fn parse_bind(text: &str) -> Result<SocketAddr, String> {
    let bare = || text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 0));
    text.parse().or_else(|_| bare()).map_err(|_| "it must be an IP address, or IP:PORT".to_owned())
}

/// UDP ports, from the first to the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// Every port of it.
    pub fn ports(self) -> RangeInclusive<u16> {
        self.first..=self.last
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl FromStr for PortRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let port = |text: &str| {
            let text = text.trim();
            let digits = text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse()
                .ok()
                .filter(|&port: &u16| digits && port > 0)
                .ok_or("it must be FIRST-LAST with ports from 1 to 65535, such as 50000-50050")
        };
        let range = PortRange { first: port(first)?, last: port(last)? };
        if range.first > range.last {
            return Err(format!("the first port, {first}, is above the last, {last}"));
        }
        Ok(range)
    }
}

impl TryFrom<String> for PortRange {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// Which network interfaces are used: `eth0,wlan*` these only, `!tun0` all but this; without any, all but loopback and the bridges of
/// containers and virtual machines.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Interfaces {
    only: Vec<String>,
    not: Vec<String>,
}

impl FromStr for Interfaces {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut interfaces = Interfaces::default();
        for part in text.split(',').map(str::trim) {
            let (pattern, list) = match part.strip_prefix('!') {
                Some(rest) => (rest, &mut interfaces.not),
                None => (part, &mut interfaces.only),
            };
            let plain = |c: char| c.is_ascii_alphanumeric() || "-_.:@*?".contains(c);
            if pattern.is_empty() || !pattern.chars().all(plain) {
                return Err(
                    "it must be names of interfaces with commas between, such as eth0,wlan* or !tun0 (ip address lists them)".into()
                );
            }
            list.push(pattern.to_owned());
        }
        Ok(interfaces)
    }
}

impl TryFrom<String> for Interfaces {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl fmt::Display for Interfaces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let not = self.not.iter().map(|pattern| format!("!{pattern}"));
        let all: Vec<String> = self.only.iter().cloned().chain(not).collect();
        f.write_str(&all.join(","))
    }
}

/// One address of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalAddress {
    /// The interface's name.
    pub interface: String,
    /// The address.
    pub ip: IpAddr,
    /// Not for new connections (RFC 4862 §5.5.4), or not usable yet.
    pub deprecated: bool,
}

impl Interfaces {
    /// The addresses to use. With `here`, loopback is one of them: the other side may be on this machine.
    ///
    /// Link-local and deprecated addresses and, unless named, bridges of containers are taken only where there is nothing better.
    pub fn choose(&self, all: &[LocalAddress], here: bool) -> Vec<IpAddr> {
        let allowed: Vec<&LocalAddress> = all.iter().filter(|local| self.allows(local, here)).collect();
        let loopback = allowed.iter().filter(|local| local.ip.is_loopback()).map(|local| local.ip);
        let best = allowed.iter().filter_map(|local| self.rank(local)).min();
        let mut chosen: Vec<IpAddr> = Vec::new();
        let mut ipv6_of: Vec<&str> = Vec::new();
        for local in allowed.iter().filter(|local| best.is_some() && self.rank(local) == best) {
            let name = local.interface.as_str();
            let crowded = local.ip.is_ipv6() && ipv6_of.iter().filter(|&&known| known == name).count() >= MAX_IPV6;
            if !chosen.contains(&local.ip) && !crowded && chosen.len() < MAX_ADDRESSES {
                chosen.push(local.ip);
                ipv6_of.extend(local.ip.is_ipv6().then_some(name));
            }
        }
        for ip in loopback {
            if !chosen.contains(&ip) && chosen.len() < 2 * MAX_ADDRESSES {
                chosen.push(ip);
            }
        }
        chosen
    }

    fn allows(&self, local: &LocalAddress, here: bool) -> bool {
        let listed = |patterns: &[String]| patterns.iter().any(|pattern| matches(pattern, &local.interface));
        let wanted = if self.only.is_empty() { !local.ip.is_loopback() || here } else { listed(&self.only) };
        // A link-local IPv6 address means nothing without its zone, which a candidate cannot carry.
        let zoned = matches!(local.ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
        wanted && !listed(&self.not) && !local.ip.is_unspecified() && !local.ip.is_multicast() && !zoned
    }

    /// Lower is better; none for loopback, which stands beside the others.
    fn rank(&self, local: &LocalAddress) -> Option<u8> {
        let bridge = self.only.is_empty() && BRIDGES.iter().any(|pattern| matches(pattern, &local.interface));
        let self_assigned = matches!(local.ip, IpAddr::V4(ip) if ip.is_link_local());
        match local.ip {
            ip if ip.is_loopback() => None,
            _ if local.deprecated => Some(3),
            _ if self_assigned => Some(2),
            _ if bridge => Some(1),
            _ => Some(0),
        }
    }
}

/// Whether a name is of this pattern: `*` stands for any text, `?` for one character.
fn matches(pattern: &str, name: &str) -> bool {
    match (pattern.chars().next(), name.chars().next()) {
        (None, None) => true,
        (Some('*'), first) => matches(&pattern[1..], name) || first.is_some_and(|first| matches(pattern, &name[first.len_utf8()..])),
        (Some('?'), Some(first)) => matches(&pattern[1..], &name[first.len_utf8()..]),
        (Some(wanted), Some(first)) if wanted == first => matches(&pattern[wanted.len_utf8()..], &name[first.len_utf8()..]),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_higher_source_wins_key_by_key() {
        let flags = NetworkSettings { udp_ports: Some("1-2".parse().unwrap()), relay_only: Some(false), ..NetworkSettings::default() };
        let file = NetworkSettings {
            udp_ports: Some("3-4".parse().unwrap()),
            relay_only: Some(true),
            interfaces: Some("eth0".parse().unwrap()),
            bind: vec!["10.0.0.1:0".parse().unwrap()],
            ..NetworkSettings::default()
        };
        let network = flags.or(file).decide().unwrap();
        assert_eq!((network.udp_ports.unwrap().ports(), network.relay_only), (1..=2, false));
        assert_eq!((network.interfaces.to_string().as_str(), network.bind.len()), ("eth0", 1));
        assert_eq!(NetworkSettings::default().decide().unwrap(), Network::default());
    }

    #[test]
    fn values_are_read_or_refused_with_the_reason() {
        let host = |text: &str| read_setting::<Host>("--advertise-ip", Some(text)).map(|host| host.map(|host| host.to_string()));
        assert_eq!(host(" 203.0.113.10 ").unwrap().unwrap(), "203.0.113.10");
        assert_eq!(host("[2001:db8::1]").unwrap().unwrap(), "2001:db8::1");
        assert_eq!(host("gpu-1.lab.example").unwrap().unwrap(), "gpu-1.lab.example");
        assert_eq!(host("").unwrap(), None);
        for bad in ["203.0.113.10:80", "1.2.3", "a..b", "-a", "gpu lab", "http://gpu", "1.2.3.4.5"] {
            assert!(host(bad).unwrap_err().message.starts_with("--advertise-ip: the host"), "{bad}");
        }
        let nowhere = NetworkSettings { advertise_ip: Some("0.0.0.0".parse().unwrap()), ..NetworkSettings::default() };
        assert!(nowhere.decide().unwrap_err().message.contains("one machine"));
        assert_eq!(parse_bind("10.0.0.1").unwrap(), SocketAddr::from(([10, 0, 0, 1], 0)));
        assert_eq!(parse_bind("[::1]:500").unwrap(), SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], 500)));
        assert!(parse_bind("lab").is_err());

        let ports = |text: &str| text.parse::<PortRange>();
        assert_eq!(ports("50000-50050").unwrap().ports().len(), 51);
        assert_eq!(ports("7").unwrap().to_string(), "7-7");
        assert!(ports("9-8").unwrap_err().contains("above the last"));
        for bad in ["0-5", "x", "1-70000", "+1-2", "1-2-3", "-", "1:2"] {
            assert!(ports(bad).unwrap_err().contains("FIRST-LAST"), "{bad}");
        }
        assert_eq!("eth0, wlan*,!tun0".parse::<Interfaces>().unwrap().to_string(), "eth0,wlan*,!tun0");
        for bad in ["eth0,", "eth 0", "!", "../x"] {
            assert!(bad.parse::<Interfaces>().unwrap_err().contains("names of interfaces"), "{bad}");
        }
    }

    fn machine() -> Vec<LocalAddress> {
        [
            ("lo", "127.0.0.1", false),
            ("lo", "::1", false),
            ("eth0", "192.168.1.5", false),
            ("eth0", "fe80::1", false),
            ("eth0", "2001:db8::1", false),
            ("eth0", "2001:db8::2", true),
            ("docker0", "172.17.0.1", false),
            ("br-0123456789ab", "172.18.0.1", false),
            ("tun0", "10.8.0.2", false),
        ]
        .map(|(interface, ip, deprecated)| LocalAddress { interface: interface.into(), ip: ip.parse().unwrap(), deprecated })
        .into()
    }

    fn chosen(filter: &str, all: &[LocalAddress], here: bool) -> Vec<String> {
        let filter: Option<Interfaces> = read_setting("x", Some(filter)).unwrap();
        filter.unwrap_or_default().choose(all, here).iter().map(IpAddr::to_string).collect()
    }

    #[test]
    fn bridges_loopback_link_local_and_deprecated_addresses_are_left_out() {
        assert_eq!(chosen("", &machine(), false), ["192.168.1.5", "2001:db8::1", "10.8.0.2"]);
        assert_eq!(chosen("", &machine(), true), ["192.168.1.5", "2001:db8::1", "10.8.0.2", "127.0.0.1", "::1"]);
    }

    #[test]
    fn interfaces_are_named_or_excluded() {
        assert_eq!(chosen("eth*", &machine(), true), ["192.168.1.5", "2001:db8::1"]);
        assert_eq!(chosen("!eth0", &machine(), false), ["10.8.0.2"]);
        assert_eq!(chosen("docker0,tun0,!tun?", &machine(), false), ["172.17.0.1"]);
        assert_eq!(chosen("lo", &machine(), false), ["127.0.0.1", "::1"]);
        assert_eq!(chosen("wlan0", &machine(), true), Vec::<String>::new());
    }

    #[test]
    fn what_is_second_best_is_taken_where_there_is_nothing_else() {
        let only = |names: &[&str]| -> Vec<LocalAddress> {
            machine().into_iter().filter(|local| names.contains(&local.ip.to_string().as_str())).collect()
        };
        assert_eq!(chosen("", &only(&["127.0.0.1", "172.17.0.1"]), false), ["172.17.0.1"]);
        assert_eq!(chosen("", &only(&["2001:db8::2", "fe80::1"]), false), ["2001:db8::2"]);
        let cable = [LocalAddress { interface: "eth0".into(), ip: "169.254.3.4".parse().unwrap(), deprecated: false }];
        assert_eq!(chosen("", &cable, false), ["169.254.3.4"]);
        assert!(chosen("", &only(&["fe80::1"]), false).is_empty());
    }

    #[test]
    fn a_machine_with_many_addresses_uses_some() {
        let of = |ip: String, interface: usize| LocalAddress {
            interface: format!("eth{interface}"),
            ip: ip.parse().unwrap(),
            deprecated: false,
        };
        let many: Vec<LocalAddress> =
            (0..9).map(|at| of(format!("2001:db8::{at}"), 0)).chain((0..20).map(|at| of(format!("10.0.0.{at}"), at))).collect();
        let chosen = chosen("", &many, true);
        assert_eq!(chosen.len(), MAX_ADDRESSES);
        assert_eq!(chosen.iter().filter(|ip| ip.contains(':')).count(), MAX_IPV6);
    }

    proptest! {
        #[test]
        fn patterns_match_as_a_regular_expression_would(pattern in "[ab*?]{0,6}", name in "[ab]{0,6}") {
            let mut reachable = vec![false; name.len() + 1];
            reachable[0] = true;
            for wanted in pattern.bytes() {
                let mut next = vec![false; name.len() + 1];
                for at in 0..=name.len() {
                    match wanted {
                        b'*' if reachable[at] => next[at..].fill(true),
                        b'?' if at < name.len() => next[at + 1] |= reachable[at],
                        letter if at < name.len() && letter == name.as_bytes()[at] => next[at + 1] |= reachable[at],
                        _ => {}
                    }
                }
                reachable = next;
            }
            prop_assert_eq!(matches(&pattern, &name), reachable[name.len()]);
        }

        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,40}") {
            let _ = (text.parse::<Host>(), text.parse::<PortRange>(), text.parse::<Interfaces>());
        }
    }
}
