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

use super::local::bound;

/// What we ask the kernel for, in bytes; stock Linux gives 208 KiB of it.
const SOCKET_BUFFER: usize = 4 << 20;

/// [`TokioRuntime`] whose UDP sockets have large buffers.
#[derive(Debug)]
pub(super) struct BufferedRuntime(TokioRuntime);

impl BufferedRuntime {
    pub(super) fn new() -> Self {
        BufferedRuntime(TokioRuntime)
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
        self.0.spawn(future)
    }

    fn spawn_reactor(&self, reactor_pool_size: usize, future: BoxFuture<'static, ()>) -> Box<dyn JoinHandle> {
        self.0.spawn_reactor(reactor_pool_size, future)
    }

    fn wrap_udp_socket(&self, socket: UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        bound(socket.local_addr()?);
        if let Err(error) = widen(&socket) {
            tracing::debug!(%error, "the UDP socket keeps its default buffers");
        }
        self.0.wrap_udp_socket(socket)
    }

    fn wrap_tcp_listener(&self, listener: TcpListener) -> io::Result<Arc<dyn AsyncTcpListener>> {
        self.0.wrap_tcp_listener(listener)
    }

    fn connect_tcp<'a>(&'a self, remote_addr: SocketAddr) -> BoxFuture<'a, io::Result<Arc<dyn AsyncTcpStream>>> {
        self.0.connect_tcp(remote_addr)
    }

    fn resolve_host<'a>(&'a self, host: &'a str) -> BoxFuture<'a, io::Result<Vec<SocketAddr>>> {
        self.0.resolve_host(host)
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        self.0.sleep(duration)
    }

    fn interval(&self, period: Duration) -> Box<dyn AsyncInterval> {
        self.0.interval(period)
    }

    fn block_on(&self, future: Pin<Box<dyn Future<Output = ()> + '_>>) {
        self.0.block_on(future);
    }

    fn yield_now(&self) -> BoxFuture<'static, ()> {
        self.0.yield_now()
    }

    fn name(&self) -> &'static str {
        "tokio with wide sockets"
    }
}
