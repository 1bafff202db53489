//! Which local addresses and ports a connection binds.
//!
//! The crate binds what a [`ToSocketAddrs`] says, each time that it makes its sockets: at first, and again when ICE is restarted on another
//! network. So [`LocalAddrs`] looks at the interfaces then, and picks ports then.
//!
//! A port of a range is found by binding it, and closed again for the crate to bind; until it has (see [`bound`]), no other connection of
//! this process is given it.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket},
    sync::Mutex,
    time::{Duration, Instant},
};

use rtc::shared::ifaces::ifaces;

use crate::domain::network::{Interfaces, LocalAddress, PORTS_OF_A_SESSION, PortRange};

/// How long a port is kept for a connection that may never bind it.
const KEPT: Duration = Duration::from_secs(5);

/// What to bind, found out when it is asked.
#[derive(Debug, Clone)]
pub(super) struct LocalAddrs {
    /// Instead of the interfaces' addresses; an unspecified one means those of its family.
    pub(super) bind: Vec<SocketAddr>,
    pub(super) interfaces: Interfaces,
    pub(super) ports: Option<PortRange>,
    /// The other side may be on this machine.
    pub(super) here: bool,
}

impl ToSocketAddrs for LocalAddrs {
    type Iter = std::vec::IntoIter<SocketAddr>;

    fn to_socket_addrs(&self) -> io::Result<Self::Iter> {
        let wanted = self.wanted()?;
        let Some(ports) = self.ports else { return Ok(wanted.into_iter()) };
        let (mut found, mut refusal) = (Vec::new(), None);
        for address in wanted {
            if address.port() != 0 {
                found.push(address);
                continue;
            }
            match free_port(address.ip(), ports) {
                Ok(port) => found.push(SocketAddr::new(address.ip(), port)),
                Err(error) => {
                    tracing::warn!(ip = %address.ip(), %error, "no port on this address");
                    refusal = Some(error);
                }
            }
        }
        match refusal {
            Some(error) if found.is_empty() => Err(error),
            _ => Ok(found.into_iter()),
        }
    }
}

impl LocalAddrs {
    fn wanted(&self) -> io::Result<Vec<SocketAddr>> {
        if self.bind.is_empty() {
            let all = local_addresses();
            let chosen = self.interfaces.choose(&all, self.here);
            return if chosen.is_empty() { Err(self.nothing(&all)) } else { Ok(chosen.into_iter().map(|ip| (ip, 0).into()).collect()) };
        }
        let mut wanted: Vec<SocketAddr> = Vec::new();
        for address in &self.bind {
            if !address.ip().is_unspecified() {
                wanted.push(*address);
                continue;
            }
            let all = local_addresses();
            let chosen = self.interfaces.choose(&all, self.here);
            wanted.extend(chosen.iter().filter(|ip| ip.is_ipv4() == address.is_ipv4()).map(|ip| SocketAddr::new(*ip, address.port())));
            if wanted.is_empty() {
                return Err(self.nothing(&all));
            }
        }
        wanted.dedup();
        Ok(wanted)
    }

    fn nothing(&self, all: &[LocalAddress]) -> io::Error {
        let mut names: Vec<&str> = all.iter().map(|local| local.interface.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        let (names, filter) = (names.join(", "), self.interfaces.to_string());
        io::Error::new(
            io::ErrorKind::AddrNotAvailable,
            if filter.is_empty() {
                format!("no network interface has an address that others could reach (there are: {names})")
            } else {
                format!("no network interface with an address is allowed by --interfaces {filter} (there are: {names})")
            },
        )
    }
}

/// The ports that connections of this process have been given and not bound yet.
static GIVEN: Mutex<Vec<(SocketAddr, Instant)>> = Mutex::new(Vec::new());

/// Says that the socket of a given port is bound.
pub(super) fn bound(address: SocketAddr) {
    GIVEN.lock().expect("no panic happens under this lock").retain(|(given, _)| *given != address);
}

/// A port of the range that nobody has on this address, by chance.
fn free_port(ip: IpAddr, ports: PortRange) -> io::Result<u16> {
    let mut candidates: Vec<u16> = ports.ports().collect();
    shuffle(&mut candidates);
    let mut given = GIVEN.lock().expect("no panic happens under this lock");
    let now = Instant::now();
    given.retain(|(_, at)| now.duration_since(*at) < KEPT);
    let mut other = None;
    for port in candidates {
        let address = SocketAddr::new(ip, port);
        if given.iter().any(|(taken, _)| *taken == address) {
            continue;
        }
        match UdpSocket::bind(address) {
            Ok(_) => {
                given.push((address, now));
                return Ok(port);
            }
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            Err(error) => {
                other = Some(error);
                break;
            }
        }
    }
    Err(other.unwrap_or_else(|| {
        let count = ports.ports().len();
        io::Error::new(
            io::ErrorKind::AddrInUse,
            format!(
                "all {count} UDP ports {ports} of {ip} are in use: widen --udp-ports (each connection needs one; a session has up to \
                 {PORTS_OF_A_SESSION})"
            ),
        )
    }))
}

/// Fisher–Yates; without randomness the order stays, which is no harm.
fn shuffle(ports: &mut [u16]) {
    let mut random = vec![0; ports.len() * 4];
    if getrandom::fill(&mut random).is_err() {
        return;
    }
    for at in (1..ports.len()).rev() {
        let bytes: [u8; 4] = random[at * 4..at * 4 + 4].try_into().expect("four bytes");
        ports.swap(at, u32::from_le_bytes(bytes) as usize % (at + 1));
    }
}

/// The machine's addresses, as they are now.
fn local_addresses() -> Vec<LocalAddress> {
    let listed = ifaces().unwrap_or_else(|error| {
        tracing::warn!(?error, "the network interfaces cannot be listed");
        Vec::new()
    });
    let unfit = unfit_ipv6();
    let local = |interface: rtc::shared::ifaces::Interface| {
        let ip = interface.addr?.ip();
        Some(LocalAddress { deprecated: unfit.contains(&ip), interface: interface.name, ip })
    };
    listed.into_iter().filter_map(local).collect()
}

/// The IPv6 addresses that are not for new connections: deprecated, or not (or not successfully) checked to be unique. Linux tells.
fn unfit_ipv6() -> Vec<IpAddr> {
    // rtnetlink's IFA_F_DADFAILED, IFA_F_DEPRECATED and IFA_F_TENTATIVE, in the fifth column of /proc/net/if_inet6.
    const UNFIT: u32 = 0x08 | 0x20 | 0x40;
    let table = std::fs::read_to_string("/proc/net/if_inet6").unwrap_or_default();
    let unfit = |line: &str| {
        let mut columns = line.split_ascii_whitespace();
        let ip = Ipv6Addr::from(u128::from_str_radix(columns.next()?, 16).ok()?);
        let flags = u32::from_str_radix(columns.nth(3)?, 16).ok()?;
        (flags & UNFIT != 0).then_some(IpAddr::V6(ip))
    };
    table.lines().filter_map(unfit).collect()
}

/// Whether an address is one of this machine alone.
pub(super) fn is_loopback(address: &str) -> bool {
    address.parse().is_ok_and(|ip: IpAddr| ip == IpAddr::V4(Ipv4Addr::LOCALHOST) || ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on_loopback(ports: Option<&str>) -> LocalAddrs {
        LocalAddrs {
            bind: vec!["127.0.0.1:0".parse().unwrap()],
            interfaces: Interfaces::default(),
            ports: ports.map(|text| text.parse().unwrap()),
            here: false,
        }
    }

    /// Ports that are free now: this many in a row.
    fn free_range(count: u16) -> String {
        loop {
            let first = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let Some(last) = first.checked_add(count - 1) else { continue };
            if (first..=last).all(|port| UdpSocket::bind(("127.0.0.1", port)).is_ok()) {
                return format!("{first}-{last}");
            }
        }
    }

    #[test]
    fn every_port_of_the_range_is_found_once_and_then_none() {
        let range = free_range(5);
        let local = on_loopback(Some(&range));
        let mut ports = Vec::new();
        for _ in 0..5 {
            // Nobody has bound them: they are kept for those who asked.
            ports.extend(local.to_socket_addrs().unwrap().map(|address| address.port()));
        }
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 5);
        let error = local.to_socket_addrs().unwrap_err().to_string();
        assert!(error.contains(&format!("all 5 UDP ports {range} of 127.0.0.1 are in use")) && error.contains("up to 33"), "{error}");
        bound((Ipv4Addr::LOCALHOST, ports[2]).into());
        assert_eq!(local.to_socket_addrs().unwrap().next().unwrap().port(), ports[2]);
    }

    #[test]
    fn a_port_that_another_program_has_is_not_taken() {
        let range = free_range(2);
        let (first, last) = range.split_once('-').unwrap();
        let _taken = UdpSocket::bind(("127.0.0.1", first.parse::<u16>().unwrap())).unwrap();
        assert_eq!(on_loopback(Some(&range)).to_socket_addrs().unwrap().next().unwrap().port().to_string(), last);
    }

    #[test]
    fn without_a_range_the_kernel_chooses() {
        assert_eq!(on_loopback(None).to_socket_addrs().unwrap().next().unwrap().to_string(), "127.0.0.1:0");
    }

    #[test]
    fn a_filter_that_leaves_nothing_says_what_there_is() {
        let local = LocalAddrs { bind: Vec::new(), interfaces: "no-such-interface".parse().unwrap(), ports: None, here: true };
        let error = local.to_socket_addrs().unwrap_err().to_string();
        assert!(error.contains("--interfaces no-such-interface (there are: ") && error.contains("lo"), "{error}");
    }

    #[test]
    fn loopback_is_used_where_the_other_side_may_be_here() {
        let local = |here| LocalAddrs { bind: Vec::new(), interfaces: Interfaces::default(), ports: None, here };
        let uses_loopback = |here| local(here).to_socket_addrs().is_ok_and(|mut found| found.any(|address| address.ip().is_loopback()));
        assert_eq!([uses_loopback(true), uses_loopback(false)], [true, false]);
    }
}
