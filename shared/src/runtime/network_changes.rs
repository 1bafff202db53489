//! Notices when this machine's network changes, and when it has slept.
//!
//! * the kernel tells of links, addresses and routes (rtnetlink(7)); what has changed is not read: whoever cares looks whether his own way
//!   is still there ([`source_for`], [`is_ours`])
//! * a sleep shows as a jump of the wall clock, which goes on meanwhile; that a clock that was set looks the same costs one sign of life

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket},
    os::unix::net::UnixDatagram as StdDatagram,
    time::{Duration, Instant, SystemTime},
};

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, netlink::SocketAddrNetlink, socket_with};
use tokio::{
    net::UnixDatagram,
    sync::watch,
    time::{MissedTickBehavior, interval, sleep},
};
use tokio_util::sync::CancellationToken;

/// `RTMGRP_LINK`, `RTMGRP_IPV4_IFADDR`, `RTMGRP_IPV4_ROUTE`, `RTMGRP_IPV6_IFADDR`, `RTMGRP_IPV6_ROUTE` (linux/rtnetlink.h).
const GROUPS: u32 = 0x1 | 0x10 | 0x40 | 0x100 | 0x400;
/// A change comes as several messages: they are taken together.
const SETTLE: Duration = Duration::from_millis(200);
/// Between two looks at the clocks.
const TICK: Duration = Duration::from_secs(2);
/// By how much the wall clock may go ahead of the other one between two looks.
const JUMP: Duration = Duration::from_secs(5);

/// Word of changes. Clones hear of the same ones.
#[derive(Debug, Clone)]
pub struct NetworkChanges(watch::Receiver<u64>);

impl NetworkChanges {
    /// Watches until `stop`. Where the kernel tells nothing, only sleep is noticed.
    pub fn watch(stop: CancellationToken) -> Self {
        let (changes, changed) = watch::channel(0);
        let socket = socket().inspect_err(|error| tracing::info!(%error, "changes of the network are not told here")).ok();
        let (told, slept) = (changes.clone(), stop.clone());
        tokio::spawn(async move { slept.run_until_cancelled(sleeps(changes)).await });
        if let Some(socket) = socket {
            tokio::spawn(async move { stop.run_until_cancelled(listen(socket, told)).await });
        }
        NetworkChanges(changed)
    }

    /// Waits for the next change; cancel-safe.
    pub async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            // Nobody watches any more.
            std::future::pending().await
        }
    }
}

/// The address that packets to this one would leave from now; `None`: there is no way to it.
pub fn source_for(remote: IpAddr) -> Option<IpAddr> {
    let any: IpAddr = if remote.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    // Sends nothing: the kernel only chooses the way.
    socket.connect((remote, 9)).ok()?;
    socket.local_addr().ok().map(|address| address.ip())
}

/// Whether an address is one of this machine's.
pub fn is_ours(address: IpAddr) -> bool {
    UdpSocket::bind((address, 0)).is_ok()
}

/// A datagram socket as any other, once it is bound: tokio's type for them knows how to wait for one.
fn socket() -> io::Result<UnixDatagram> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, None)?;
    bind(&socket, &SocketAddrNetlink::new(0, GROUPS))?;
    UnixDatagram::from_std(StdDatagram::from(socket))
}

async fn listen(socket: UnixDatagram, changes: watch::Sender<u64>) {
    // What it says is not read: a message that is longer is cut.
    let mut buffer = [0; 256];
    loop {
        // An error means that messages were lost: a change, too.
        let _ = socket.recv(&mut buffer).await;
        sleep(SETTLE).await;
        while socket.try_recv(&mut buffer).is_ok() {}
        changes.send_modify(|count| *count += 1);
    }
}

async fn sleeps(changes: watch::Sender<u64>) {
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut clocks = (Instant::now(), SystemTime::now());
    loop {
        tick.tick().await;
        let now = (Instant::now(), SystemTime::now());
        if jumped(now.0 - clocks.0, now.1.duration_since(clocks.1).unwrap_or_default()) {
            tracing::info!("this machine has slept, or its clock was set");
            changes.send_modify(|count| *count += 1);
        }
        clocks = now;
    }
}

/// Whether the wall clock went ahead of the other one.
fn jumped(passed: Duration, wall: Duration) -> bool {
    wall > passed + JUMP
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sleep_is_a_jump_of_the_wall_clock_and_a_busy_machine_is_none() {
        for (passed, wall, slept) in [(2, 2, false), (2, 7, false), (2, 8, true), (2, 3600, true), (60, 60, false), (2, 0, false)] {
            assert_eq!(jumped(Duration::from_secs(passed), Duration::from_secs(wall)), slept, "{passed} {wall}");
        }
    }

    #[test]
    fn an_address_of_this_machine_is_known_as_such() {
        assert!(is_ours(Ipv4Addr::LOCALHOST.into()));
        // Documentation addresses (RFC 5737) are nobody's.
        assert!(!is_ours("192.0.2.1".parse().unwrap()));
        assert_eq!(source_for("127.0.0.9".parse().unwrap()), Some(Ipv4Addr::LOCALHOST.into()));
    }

    #[tokio::test]
    async fn the_kernel_lets_us_listen() {
        let socket = socket().unwrap();
        assert_eq!(socket.try_recv(&mut [0; 64]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
}
