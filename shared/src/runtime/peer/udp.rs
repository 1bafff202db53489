//! The crate's tokio runtime, with UDP socket buffers of our size.

use std::{
    future::Future,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use rustix::net::sockopt;
use webrtc::runtime::{AsyncInterval, AsyncTcpListener, AsyncTcpStream, AsyncUdpSocket, JoinHandle, Runtime, TokioRuntime};

use super::{
    batch::BatchSocket,
    local::bound,
    names, second_look,
    turn::{Streams, TurnSocket, virtual_addresses},
};
use crate::domain::network::Host;

/// What we ask the kernel for, in bytes; stock Linux gives 208 KiB of it.
const SOCKET_BUFFER: usize = 4 << 20;

/// [`TokioRuntime`] whose UDP sockets have large buffers, and lead to TURN servers over streams, too.
#[derive(Debug)]
pub(super) struct BufferedRuntime {
    tokio: TokioRuntime,
    streams: Arc<Streams>,
    relays: Relays,
}

/// Whether the connection may go over a TURN relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Relays {
    /// It has TURN servers, so its driver has to look twice; see [`second_look`].
    Perhaps,
    /// It has none.
    None,
}

impl BufferedRuntime {
    /// With the TURN servers over TCP and TLS, if there are any.
    pub(super) fn new(streams: Arc<Streams>, relays: Relays) -> Self {
        BufferedRuntime { tokio: TokioRuntime, streams, relays }
    }
}

/// The receive buffer that the kernel grants a UDP socket here, in bytes; asked once.
pub(super) fn granted_receive_buffer() -> usize {
    static GRANTED: AtomicUsize = AtomicUsize::new(0);
    let known = GRANTED.load(Ordering::Relaxed);
    if known != 0 {
        return known;
    }
    let granted = UdpSocket::bind(("127.0.0.1", 0))
        .and_then(|socket| {
            widen(&socket)?;
            socket2::SockRef::from(&socket).recv_buffer_size()
        })
        .unwrap_or(208 * 1024);
    tracing::debug!(asked = SOCKET_BUFFER, granted, "UDP receive buffer");
    GRANTED.store(granted, Ordering::Relaxed);
    granted
}

fn widen(socket: &UdpSocket) -> io::Result<()> {
    let socket = socket2::SockRef::from(socket);
    socket.set_recv_buffer_size(SOCKET_BUFFER)?;
    socket.set_send_buffer_size(SOCKET_BUFFER)
}

/// The largest IP packet that the way to this address carries as far as the kernel knows, in bytes: the interface's, or less where a
/// router has said so.
pub(super) fn route_mtu(remote: IpAddr) -> Option<u32> {
    let any: IpAddr = if remote.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    // Sends nothing: the kernel only chooses the way.
    socket.connect((remote, 9)).ok()?;
    if remote.is_ipv4() { sockopt::ip_mtu(&socket).ok() } else { sockopt::ipv6_mtu(&socket).ok() }
}

type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

impl Runtime for BufferedRuntime {
    fn spawn(&self, future: BoxFuture<'static, ()>) -> Box<dyn JoinHandle> {
        self.tokio.spawn(if self.relays == Relays::Perhaps { second_look::taking(future) } else { future })
    }

    fn spawn_reactor(&self, reactor_pool_size: usize, future: BoxFuture<'static, ()>) -> Box<dyn JoinHandle> {
        self.tokio.spawn_reactor(reactor_pool_size, if self.relays == Relays::Perhaps { second_look::taking(future) } else { future })
    }

    fn wrap_udp_socket(&self, socket: UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        bound(socket.local_addr()?);
        if let Err(error) = widen(&socket) {
            tracing::debug!(%error, "the UDP socket keeps its default buffers");
        }
        let socket: Arc<dyn AsyncUdpSocket> = Arc::new(BatchSocket::new(self.tokio.wrap_udp_socket(socket)?));
        if self.streams.is_empty() {
            return Ok(socket);
        }
        Ok(Arc::new(TurnSocket::new(socket, self.streams.clone())?))
    }

    fn wrap_tcp_listener(&self, listener: TcpListener) -> io::Result<Arc<dyn AsyncTcpListener>> {
        self.tokio.wrap_tcp_listener(listener)
    }

    fn connect_tcp<'a>(&'a self, remote_addr: SocketAddr) -> BoxFuture<'a, io::Result<Arc<dyn AsyncTcpStream>>> {
        self.tokio.connect_tcp(remote_addr)
    }

    fn resolve_host<'a>(&'a self, host: &'a str) -> BoxFuture<'a, io::Result<Vec<SocketAddr>>> {
        Box::pin(async move {
            // The crate asks for IPv6 addresses without their brackets.
            let (name, port) = host.rsplit_once(':').ok_or(io::ErrorKind::InvalidInput)?;
            let port = port.parse().map_err(|_| io::ErrorKind::InvalidInput)?;
            let host: Host = name.parse().map_err(|why: String| io::Error::new(io::ErrorKind::InvalidInput, why))?;
            match host {
                Host::Ip(ip) => Ok(virtual_addresses(ip, port).unwrap_or_else(|| vec![(ip, port).into()])),
                host => names::resolve(&host, port).await,
            }
        })
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        second_look::sleep(duration, |duration| self.tokio.sleep(duration))
    }

    fn interval(&self, period: Duration) -> Box<dyn AsyncInterval> {
        self.tokio.interval(period)
    }

    fn block_on(&self, future: Pin<Box<dyn Future<Output = ()> + '_>>) {
        self.tokio.block_on(future);
    }

    fn yield_now(&self) -> BoxFuture<'static, ()> {
        self.tokio.yield_now()
    }

    fn name(&self) -> &'static str {
        "tokio with wide sockets"
    }
}
