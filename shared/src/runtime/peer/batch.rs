//! Batches of datagrams that the kernel takes.
//!
//! The crate (0.21.1) hands over up to 65,535 bytes at once to be cut into datagrams (UDP GSO). The kernel counts the headers, too, and
//! refuses a batch that it could not send as one datagram; the crate then drops all of it. On an Ethernet path that is 46 packets lost in a row, which
//! keep SCTP busy with repairs for a second or more, whenever a message ends in the right place of a batch.
//!
//! And the crate makes a batch only of 16 datagrams, or of as many as the socket says that it can cut. Of those that are 16 kB long, as between two programs
//! of one machine, 16 never fit into a batch, and each costs a system call on both sides. So the socket says what fits.
//!
//! What has arrived is taken until nothing is left, and only then acknowledged: on a fast path that is the whole window of the sender, who waits meanwhile,
//! and what is sent at once then is too much for the processor's cache. So the socket pauses after a while, for as long as it takes to acknowledge.

use std::{
    io::{self, IoSliceMut},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
};

use webrtc::runtime::{AsyncUdpSocket, RecvMeta, Transmit};

/// What fits into one datagram beside the headers of IP and UDP, in bytes.
const MOST_V4: usize = 65_535 - 20 - 8;
const MOST_V6: usize = 65_535 - 40 - 8;

/// After so many bytes that were taken one after the other, it is time to acknowledge them.
const BURST: usize = 1 << 20;

/// A UDP socket that says how many datagrams fit into a batch, sends what is too much for one as two, and pauses to let what has arrived be acknowledged.
#[derive(Debug)]
pub(super) struct BatchSocket {
    inner: Arc<dyn AsyncUdpSocket>,
    /// The longest datagram that was sent, in bytes: a socket carries one connection, whose packets are all cut for the same path.
    longest: AtomicUsize,
    /// Bytes that have arrived since there was nothing or a pause.
    burst: AtomicUsize,
}

impl BatchSocket {
    pub(super) fn new(inner: Arc<dyn AsyncUdpSocket>) -> Self {
        BatchSocket { inner, longest: AtomicUsize::new(0), burst: AtomicUsize::new(0) }
    }
}

impl AsyncUdpSocket for BatchSocket {
    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn poll_send(&self, cx: &mut Context<'_>, transmit: &Transmit<'_>) -> Poll<io::Result<usize>> {
        self.longest.fetch_max(transmit.segment_size.unwrap_or(transmit.contents.len()), Ordering::Relaxed);
        let most = if transmit.destination.is_ipv4() { MOST_V4 } else { MOST_V6 };
        let Some(size) = transmit.segment_size.filter(|&size| size > 0 && size <= most && transmit.contents.len() > most) else {
            return self.inner.poll_send(cx, transmit);
        };
        let part = |contents| Transmit {
            destination: transmit.destination,
            ecn: transmit.ecn,
            contents,
            segment_size: Some(size),
            src_ip: transmit.src_ip,
        };
        // In order, or the other side would take those behind for lost. Where the socket has no room for all, those that went go again with the rest: who
        // asks again cannot be told from who asks anew, and a datagram that comes twice is dropped where it is decrypted.
        for contents in transmit.contents.chunks(most - most % size) {
            ready!(self.inner.poll_send(cx, &part(contents)))?;
        }
        Poll::Ready(Ok(transmit.contents.len()))
    }

    fn poll_recv(&self, cx: &mut Context<'_>, bufs: &mut [IoSliceMut<'_>], meta: &mut [RecvMeta]) -> Poll<io::Result<usize>> {
        if self.burst.load(Ordering::Relaxed) >= BURST {
            self.burst.store(0, Ordering::Relaxed);
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let received = self.inner.poll_recv(cx, bufs, meta);
        match &received {
            Poll::Ready(Ok(messages)) => {
                self.burst.fetch_add(meta[..*messages].iter().map(|meta| meta.len).sum(), Ordering::Relaxed);
            }
            _ => self.burst.store(0, Ordering::Relaxed),
        }
        received
    }

    fn max_gso_segments(&self) -> usize {
        let fit = MOST_V6 / self.longest.load(Ordering::Relaxed).max(1);
        self.inner.max_gso_segments().min(fit).max(1)
    }

    fn max_gro_segments(&self) -> usize {
        self.inner.max_gro_segments()
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, net::UdpSocket, task::Wake, time::Duration};

    use webrtc::runtime::{Runtime, TokioRuntime};

    use super::*;

    /// Sends so many bytes in datagrams of `size` through a socket at this address; the lengths that arrive.
    async fn arriving(address: &str, bytes: usize, size: usize) -> Vec<usize> {
        let receiver = UdpSocket::bind(address).unwrap();
        socket2::SockRef::from(&receiver).set_recv_buffer_size(1 << 20).unwrap();
        receiver.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let sender = UdpSocket::bind(address).unwrap();
        sender.set_nonblocking(true).unwrap();
        let sender = BatchSocket::new(TokioRuntime.wrap_udp_socket(sender).unwrap());
        assert!(sender.max_gso_segments() > 1, "this kernel cuts no batches, so there is nothing to test");
        let contents: Vec<u8> = (0..bytes).map(|at| (at / size) as u8).collect();
        let destination = receiver.local_addr().unwrap();
        let transmit = Transmit { destination, ecn: None, contents: &contents, segment_size: Some(size), src_ip: None };
        assert_eq!(poll_fn(|cx| sender.poll_send(cx, &transmit)).await.unwrap(), bytes);
        let mut buffer = [0; 4096];
        (0..bytes.div_ceil(size))
            .map(|number| {
                let length = receiver.recv(&mut buffer).unwrap();
                assert!(buffer[..length].iter().all(|&byte| byte == number as u8), "datagram {number} is another one");
                length
            })
            .collect()
    }

    #[tokio::test]
    async fn a_batch_that_is_longer_than_a_datagram_arrives_whole() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            // 46 packets as they are on Ethernet, the last one short: 65,520 bytes, which the crate takes for one batch.
            let lengths = arriving(address, 45 * 1440 + 720, 1440).await;
            assert_eq!((lengths.len(), lengths[44], lengths[45]), (46, 1440, 720), "{address}");
            assert_eq!(arriving(address, 65_535, 4000).await.len(), 17, "{address}");
        }
    }

    #[tokio::test]
    async fn long_datagrams_go_in_batches_too() {
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        sender.set_nonblocking(true).unwrap();
        let sender = BatchSocket::new(TokioRuntime.wrap_udp_socket(sender).unwrap());
        let destination = receiver.local_addr().unwrap();
        let mut fit = vec![sender.max_gso_segments()];
        for size in [200, 1440, 16_000, 60, 60_000] {
            let transmit = Transmit { destination, ecn: None, contents: &vec![0; size], segment_size: None, src_ip: None };
            poll_fn(|cx| sender.poll_send(cx, &transmit)).await.unwrap();
            fit.push(sender.max_gso_segments());
        }
        assert_eq!(fit, [64, 64, 45, 4, 4, 1]);
    }

    /// Always has a message of 64 KiB.
    #[derive(Debug)]
    struct Busy;

    impl AsyncUdpSocket for Busy {
        fn local_addr(&self) -> io::Result<SocketAddr> {
            Ok(SocketAddr::from(([127, 0, 0, 1], 9)))
        }

        fn poll_send(&self, _: &mut Context<'_>, transmit: &Transmit<'_>) -> Poll<io::Result<usize>> {
            Poll::Ready(Ok(transmit.contents.len()))
        }

        fn poll_recv(&self, _: &mut Context<'_>, _: &mut [IoSliceMut<'_>], meta: &mut [RecvMeta]) -> Poll<io::Result<usize>> {
            meta[0].len = 64 << 10;
            Poll::Ready(Ok(1))
        }
    }

    #[test]
    fn a_long_burst_pauses_and_goes_on_by_itself() {
        struct Count(AtomicUsize);
        impl Wake for Count {
            fn wake(self: Arc<Self>) {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }
        let woken = Arc::new(Count(AtomicUsize::new(0)));
        let waker = woken.clone().into();
        let socket = BatchSocket::new(Arc::new(Busy));
        let receive = || {
            let (mut buffer, mut meta) = ([0; 8], [RecvMeta::default()]);
            socket.poll_recv(&mut Context::from_waker(&waker), &mut [IoSliceMut::new(&mut buffer)], &mut meta).is_ready()
        };
        for pauses in 1..4 {
            assert!((0..16).all(|_| receive()) && !receive());
            assert_eq!(woken.0.load(Ordering::Relaxed), pauses, "whoever waits is woken at once");
        }
    }
}
