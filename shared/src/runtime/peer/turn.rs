//! TURN over TCP and TLS, which the crate (0.21.1) does not have: it skips such servers.
//!
//! The crate is told of a TURN server over UDP at a *virtual* address, one that no network has. `TurnSocket`, which stands between the
//! crate and its UDP socket, takes what goes there and carries it over a stream to the real server (RFC 8656 §12.5: STUN messages frame
//! themselves, ChannelData is padded to four bytes); what comes back seems to come from the virtual address.
//!
//! ```text
//!  idle ──Allocate──► waiting its turn ──► connecting ──► open ──► idle      frames are dropped while idle: ICE finds out
//!                          └─ not needed ──► idle   └─ failed ──► idle       by itself, and a new allocation tries again
//! ```
//!
//! * all relay candidates have the same priority, so the slower ways come in only when the faster ones do not answer: TCP after UDP,
//!   TLS after TCP (`Streams::is_needed`)
//! * one stream for each server and connection, however many sockets the connection has: the route of a stream is the kernel's choice
//! * queues are bounded: out in bytes (more than the other side's receive window, so that nothing is dropped while the stream lives), in by
//!   the stream's own flow control

use std::{
    io::{self, IoSliceMut},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::{Buf, Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::{Notify, mpsc, watch},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use webrtc::runtime::{AsyncUdpSocket, RecvMeta, Transmit};

pub use self::stream::{Stream, Trust, connect};
use crate::domain::ice::{IceTransport, IceUrl};

mod stream;

/// How long the slower way waits for an answer over the faster one.
const PATIENCE: Duration = Duration::from_secs(1);
/// The same, once the faster one has not answered, for as long as [`IMPATIENT`].
const LITTLE_PATIENCE: Duration = Duration::from_millis(200);
const IMPATIENT: Duration = Duration::from_secs(60);
/// Between two streams to a server that cannot be reached: at first, and at most.
const RETRY: Duration = Duration::from_millis(500);
const RETRY_MOST: Duration = Duration::from_secs(15);
/// What may wait to be sent, in bytes: the other side's receive window (8 MiB) and what is around its content.
const OUT: usize = 12 << 20;
/// Frames that may wait to be received before the stream is held back.
const IN: usize = 512;
/// How long a closed connection may take to release its allocation.
const GOODBYE: Duration = Duration::from_secs(1);
/// Written at once to a stream, at most, in bytes.
const WRITE: usize = 256 << 10;

const STUN_HEADER: usize = 20;
const CHANNEL_HEADER: usize = 4;
const ALLOCATE: [u8; 2] = [0x00, 0x03];
const ALLOCATED: [u8; 2] = [0x01, 0x03];

/// That the faster ways did not answer lately. Clones share it: what one connection of a program finds out saves its others a second.
#[derive(Debug, Clone, Default)]
pub struct Patience(Arc<Mutex<Option<Instant>>>);

impl Patience {
    fn wait(&self) -> Duration {
        let lost = *self.0.lock().expect("no panic happens under this lock");
        if lost.is_some_and(|at| at.elapsed() < IMPATIENT) { LITTLE_PATIENCE } else { PATIENCE }
    }

    fn remember(&self, answered: bool) {
        *self.0.lock().expect("no panic happens under this lock") = (!answered).then(Instant::now);
    }
}

/// What is known of the TURN servers over one transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// There are none.
    Absent,
    /// No answer yet.
    Trying,
    /// One has given an allocation.
    Answered,
    /// One cannot be reached.
    Failed,
}

/// The TURN servers of a connection that are reached by a stream.
#[derive(Debug)]
pub(super) struct Streams {
    servers: Vec<Server>,
    /// By [`IceTransport`].
    ways: watch::Sender<[Way; 3]>,
    /// The sockets of the connection that there are now.
    sockets: AtomicUsize,
    trust: Trust,
    patience: Patience,
}

#[derive(Debug)]
struct Server {
    url: IceUrl,
    /// The number of the socket whose packets its stream carries; 0: none yet.
    socket: AtomicU64,
}

impl Streams {
    /// For the TURN servers over TCP and TLS among these.
    pub(super) fn new(turn: &[IceUrl], trust: &Trust, patience: &Patience) -> Self {
        let way = |transport| if turn.iter().any(|url| url.transport == transport) { Way::Trying } else { Way::Absent };
        let ways = [IceTransport::Udp, IceTransport::Tcp, IceTransport::Tls].map(way);
        let servers = turn.iter().filter(|url| url.transport != IceTransport::Udp);
        Streams {
            servers: servers.map(|url| Server { url: url.clone(), socket: AtomicU64::new(0) }).collect(),
            ways: watch::Sender::new(ways),
            sockets: AtomicUsize::new(0),
            trust: trust.clone(),
            patience: patience.clone(),
        }
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.servers.is_empty()
    }

    /// The URL under which the crate is to know a server of ours.
    pub(super) fn virtual_url(&self, url: &IceUrl) -> Option<String> {
        let number = self.servers.iter().position(|server| server.url == *url)?;
        Some(format!("turn:{}:{}?transport=udp", virtual_ipv4(number), url.port))
    }

    /// How the server with this virtual URL or address is really reached.
    pub(super) fn transport_of(&self, virtual_url: &str) -> Option<IceTransport> {
        let at = |server: &&Server| self.virtual_url(&server.url).as_deref() == Some(virtual_url);
        self.servers.iter().find(at).map(|server| server.url.transport)
    }

    /// One more socket. The first one begins anew: after a restart of ICE on another network, what has answered before may not any more.
    fn add_socket(&self) {
        if self.sockets.fetch_add(1, Ordering::Relaxed) == 0 {
            self.ways.send_modify(|ways| ways.iter_mut().filter(|way| **way != Way::Absent).for_each(|way| *way = Way::Trying));
        }
    }

    fn mark(&self, transport: IceTransport, way: Way) {
        self.ways.send_if_modified(|ways| std::mem::replace(&mut ways[transport as usize], way) != way);
    }

    /// Waits until the faster ways have answered (`false`), or had their time.
    async fn is_needed(&self, transport: IceTransport) -> bool {
        let mut ways = self.ways.subscribe();
        let faster = transport as usize;
        let answered = |ways: &[Way; 3]| ways[..faster].contains(&Way::Answered);
        for way in 0..faster {
            if ways.borrow()[way] == Way::Absent {
                continue;
            }
            let settled = ways.wait_for(|ways| answered(ways) || ways[way] == Way::Failed);
            match timeout(self.patience.wait(), settled).await {
                Ok(Ok(ways)) if answered(&ways) => {
                    self.patience.remember(true);
                    return false;
                }
                Ok(_) => {}
                Err(_) => self.patience.remember(false),
            }
        }
        true
    }
}

/// 240.0.0.0/4 is reserved (RFC 1112 §4), 100::/64 discards (RFC 6666): nobody can be there.
fn virtual_ipv4(number: usize) -> Ipv4Addr {
    Ipv4Addr::from(0xf000_0001_u32 + number as u32)
}

fn virtual_ip(number: usize, ipv4: bool) -> IpAddr {
    if ipv4 { virtual_ipv4(number).into() } else { Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, number as u16 + 1).into() }
}

/// The number of the server at a virtual address.
fn virtual_number(ip: IpAddr) -> Option<usize> {
    match ip {
        IpAddr::V4(ip) if ip.octets()[0] >= 0xf0 && !ip.is_broadcast() => {
            Some((u32::from(ip) - 0xf000_0000) as usize).and_then(|at| at.checked_sub(1))
        }
        IpAddr::V6(ip) if ip.segments()[..4] == [0x100, 0, 0, 0] => (ip.segments()[7] as usize).checked_sub(1),
        _ => None,
    }
}

/// The addresses of a virtual server, for sockets of either family; `None` for a real one.
pub(super) fn virtual_addresses(ip: IpAddr, port: u16) -> Option<Vec<SocketAddr>> {
    virtual_number(ip).map(|number| [true, false].map(|ipv4| (virtual_ip(number, ipv4), port).into()).into())
}

/// A UDP socket that carries packets for virtual servers over streams.
#[derive(Debug)]
pub(super) struct TurnSocket {
    inner: Arc<dyn AsyncUdpSocket>,
    streams: Arc<Streams>,
    number: u64,
    tunnels: Vec<Arc<Tunnel>>,
    arrived: Mutex<mpsc::Receiver<(SocketAddr, Bytes)>>,
    /// Whether the streams are asked first, the next time: neither may starve the other.
    streams_first: AtomicBool,
    closed: CancellationToken,
}

impl TurnSocket {
    pub(super) fn new(inner: Arc<dyn AsyncUdpSocket>, streams: Arc<Streams>) -> io::Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let ipv4 = inner.local_addr()?.is_ipv4();
        let (arriving, arrived) = mpsc::channel(IN);
        let closed = CancellationToken::new();
        let tunnel = |(number, server): (usize, &Server)| {
            Arc::new(Tunnel {
                url: server.url.clone(),
                address: (virtual_ip(number, ipv4), server.url.port).into(),
                streams: streams.clone(),
                outgoing: Mutex::default(),
                wake: Notify::new(),
                arriving: arriving.clone(),
                closed: closed.clone(),
            })
        };
        let tunnels = streams.servers.iter().enumerate().map(tunnel).collect();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        streams.add_socket();
        Ok(TurnSocket { inner, streams, number, tunnels, arrived: Mutex::new(arrived), streams_first: AtomicBool::default(), closed })
    }

    fn poll_streams(&self, cx: &mut Context<'_>, bufs: &mut [IoSliceMut<'_>], meta: &mut [RecvMeta]) -> Poll<io::Result<usize>> {
        let (Some(buf), Some(meta)) = (bufs.first_mut(), meta.first_mut()) else { return Poll::Ready(Ok(0)) };
        let mut arrived = self.arrived.lock().expect("no panic happens under this lock");
        loop {
            match arrived.poll_recv(cx) {
                // A frame that no datagram could be is nothing that the crate could read.
                Poll::Ready(Some((_, frame))) if frame.len() > buf.len() => {}
                Poll::Ready(Some((address, frame))) => {
                    buf[..frame.len()].copy_from_slice(&frame);
                    *meta = RecvMeta::default();
                    (meta.addr, meta.len, meta.stride) = (address, frame.len(), frame.len().max(1));
                    return Poll::Ready(Ok(1));
                }
                // Never: this socket holds senders itself.
                Poll::Ready(None) | Poll::Pending => return Poll::Pending,
            }
        }
    }

    fn poll_datagrams(&self, cx: &mut Context<'_>, bufs: &mut [IoSliceMut<'_>], meta: &mut [RecvMeta]) -> Poll<io::Result<usize>> {
        let polled = self.inner.poll_recv(cx, bufs, meta);
        if let Poll::Ready(Ok(count)) = polled
            && bufs.iter().take(count).any(|buf| buf.starts_with(&ALLOCATED))
        {
            self.streams.mark(IceTransport::Udp, Way::Answered);
        }
        polled
    }
}

impl AsyncUdpSocket for TurnSocket {
    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn poll_send(&self, cx: &mut Context<'_>, transmit: &Transmit<'_>) -> Poll<io::Result<usize>> {
        let Some(number) = virtual_number(transmit.destination.ip()) else { return self.inner.poll_send(cx, transmit) };
        if let (Some(tunnel), Some(server)) = (self.tunnels.get(number), self.streams.servers.get(number)) {
            let claimed = server.socket.compare_exchange(0, self.number, Ordering::Relaxed, Ordering::Relaxed);
            if claimed.is_ok() || claimed == Err(self.number) {
                let size = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
                transmit.contents.chunks(size).for_each(|datagram| tunnel.offer(datagram));
            }
        }
        Poll::Ready(Ok(transmit.contents.len()))
    }

    fn poll_recv(&self, cx: &mut Context<'_>, bufs: &mut [IoSliceMut<'_>], meta: &mut [RecvMeta]) -> Poll<io::Result<usize>> {
        let first = if self.streams_first.fetch_xor(true, Ordering::Relaxed) {
            self.poll_streams(cx, bufs, meta)
        } else {
            let polled = self.poll_datagrams(cx, bufs, meta);
            if polled.is_ready() { polled } else { self.poll_streams(cx, bufs, meta) }
        };
        if first.is_ready() { first } else { self.poll_datagrams(cx, bufs, meta) }
    }

    fn max_gso_segments(&self) -> usize {
        self.inner.max_gso_segments()
    }

    fn max_gro_segments(&self) -> usize {
        self.inner.max_gro_segments()
    }
}

impl Drop for TurnSocket {
    fn drop(&mut self) {
        self.closed.cancel();
        self.streams.sockets.fetch_sub(1, Ordering::Relaxed);
        for server in &self.streams.servers {
            let _ = server.socket.compare_exchange(self.number, 0, Ordering::Relaxed, Ordering::Relaxed);
        }
    }
}

/// The packets between a socket and one server, and the task that carries them.
#[derive(Debug)]
struct Tunnel {
    url: IceUrl,
    address: SocketAddr,
    streams: Arc<Streams>,
    outgoing: Mutex<Outgoing>,
    wake: Notify,
    arriving: mpsc::Sender<(SocketAddr, Bytes)>,
    closed: CancellationToken,
}

#[derive(Debug, Default)]
struct Outgoing {
    state: State,
    /// Frames, one after the other, as the stream has them.
    frames: BytesMut,
    dropped: u64,
    failures: u32,
    not_before: Option<Instant>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    /// No task runs.
    #[default]
    Idle,
    /// A task waits its turn, or connects.
    Connecting,
    /// A task carries frames.
    Open,
}

impl Tunnel {
    fn outgoing(&self) -> MutexGuard<'_, Outgoing> {
        self.outgoing.lock().expect("no panic happens under this lock")
    }

    /// Takes one datagram; drops it where there is no stream, or too much waits for it.
    fn offer(self: &Arc<Self>, datagram: &[u8]) {
        let mut outgoing = self.outgoing();
        match outgoing.state {
            State::Idle => {
                // Nothing else makes sense to a server that does not know this stream.
                let may = outgoing.not_before.is_none_or(|at| Instant::now() >= at);
                if !datagram.starts_with(&ALLOCATE) || !may {
                    return;
                }
                outgoing.state = State::Connecting;
                outgoing.frames.clear();
                tokio::spawn(self.clone().run());
            }
            // The request, repeated: over a stream once is enough.
            State::Connecting => outgoing.frames.clear(),
            State::Open => {}
        }
        if outgoing.frames.len() + datagram.len() > OUT || !frame(datagram, &mut outgoing.frames) {
            outgoing.dropped += 1;
            return;
        }
        drop(outgoing);
        self.wake.notify_one();
    }

    async fn run(self: Arc<Self>) {
        let connected = async {
            if !self.streams.is_needed(self.url.transport).await {
                return None;
            }
            Some(connect(&self.url, &self.streams.trust).await)
        };
        match self.closed.run_until_cancelled(connected).await {
            Some(Some(Ok(stream))) => self.carry(stream).await,
            Some(Some(Err(failure))) => {
                tracing::warn!(server = %self.url, %failure, "no relay over this TURN server");
                self.streams.mark(self.url.transport, Way::Failed);
                self.rest(true);
            }
            Some(None) => {
                tracing::debug!(server = %self.url, "not needed: a faster relay has answered");
                self.rest(true);
            }
            None => self.rest(false),
        }
    }

    /// No task runs from now on; after a failure none is begun for a while.
    fn rest(&self, failed: bool) {
        let mut outgoing = self.outgoing();
        let failures = if failed { outgoing.failures + 1 } else { 0 };
        let wait = failed.then(|| (RETRY * 2u32.pow(failures.min(8))).min(RETRY_MOST));
        let dropped = outgoing.dropped;
        *outgoing = Outgoing { failures, not_before: wait.map(|wait| Instant::now() + wait), dropped, ..Outgoing::default() };
    }

    async fn carry(&self, stream: Box<dyn Stream>) {
        tracing::debug!(server = %self.url, "a stream to the TURN server is open");
        self.outgoing().state = State::Open;
        let (reader, writer) = tokio::io::split(stream);
        let late = async {
            self.closed.cancelled().await;
            sleep(GOODBYE).await;
        };
        let result = tokio::select! {
            result = self.read(reader) => result,
            result = self.write(writer) => result,
            () = late => Ok(()),
        };
        let dropped = self.outgoing().dropped;
        match result {
            Ok(()) => tracing::debug!(server = %self.url, dropped, "the stream to the TURN server has ended"),
            Err(error) => tracing::warn!(server = %self.url, %error, dropped, "the stream to the TURN server broke"),
        }
        self.rest(false);
    }

    async fn read(&self, mut reader: impl AsyncRead + Unpin) -> io::Result<()> {
        let mut buffer = BytesMut::with_capacity(64 << 10);
        loop {
            buffer.reserve(16 << 10);
            if reader.read_buf(&mut buffer).await? == 0 {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed it"));
            }
            while let Some(frame) = next_frame(&mut buffer)? {
                if frame.starts_with(&ALLOCATED) {
                    self.streams.mark(self.url.transport, Way::Answered);
                }
                if self.arriving.send((self.address, frame)).await.is_err() {
                    return Ok(());
                }
            }
        }
    }

    async fn write(&self, mut writer: impl AsyncWrite + Unpin) -> io::Result<()> {
        loop {
            let frames = {
                let mut outgoing = self.outgoing();
                let length = outgoing.frames.len().min(WRITE);
                outgoing.frames.split_to(length)
            };
            if !frames.is_empty() {
                writer.write_all(&frames).await?;
                writer.flush().await?;
                continue;
            }
            if self.closed.is_cancelled() {
                return writer.shutdown().await;
            }
            tokio::select! {
                () = self.wake.notified() => {}
                () = self.closed.cancelled() => {}
            }
        }
    }
}

/// Appends a datagram as a frame; `false` if it is no TURN message.
fn frame(datagram: &[u8], out: &mut BytesMut) -> bool {
    let Some(length) = frame_length(datagram).ok().flatten() else { return false };
    let Some(message) = datagram.get(..length) else { return false };
    out.extend_from_slice(message);
    out.resize(out.len() + length.next_multiple_of(4) - length, 0);
    true
}

/// The next frame of a stream, without padding, once it has arrived.
fn next_frame(buffer: &mut BytesMut) -> io::Result<Option<Bytes>> {
    let Some(length) = frame_length(buffer)? else { return Ok(None) };
    let padded = length.next_multiple_of(4);
    if buffer.len() < padded {
        return Ok(None);
    }
    let frame = buffer.split_to(length).freeze();
    buffer.advance(padded - length);
    Ok(Some(frame))
}

/// The length of the message that begins here, without padding; `None` while its header is not there (RFC 8656 §12.5, RFC 8489 §5).
fn frame_length(bytes: &[u8]) -> io::Result<Option<usize>> {
    let [first, _, high, low, ..] = bytes else { return Ok(None) };
    let length = usize::from(u16::from_be_bytes([*high, *low]));
    match first >> 6 {
        0b00 => Ok(Some(STUN_HEADER + length)),
        0b01 => Ok(Some(CHANNEL_HEADER + length)),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "what the server sends is not TURN")),
    }
}

#[cfg(test)]
mod tests;
