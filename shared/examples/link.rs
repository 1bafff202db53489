//! The engine of `scripts/link`: carries packets between two TUN devices as a link of given rate, delay, loss and queue would.
//!
//! * the devices come opened, as stdin and stdout: opening one takes an `ioctl`, which has no safe wrapper in the standard library,
//!   and namespaces and addresses are the caller's work anyway
//! * each direction has two threads: one reads and decides when a packet leaves or that it is lost, one waits and writes
//! * a packet leaves when those before it have left at the link's rate; one that would wait longer than the queue allows is dropped
//! * whoever connects to the Unix socket named last gets the counters so far as one JSON object
//!
//! `link RATE_BITS DELAY_US LOSS_PPM QUEUE_US SEED SOCKET <> TUN_A 1<> TUN_B`; a rate of 0 is none.

use std::{
    error::Error,
    fs::File,
    io::{ErrorKind, Read, Write},
    num::NonZero,
    os::{fd::AsFd, unix::net::UnixListener},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

/// The largest packet that a TUN device hands over.
const MAX_PACKET: usize = 65_535;
/// Packets under way in one direction; 1 Gbit/s of small datagrams for 0.5 s.
const UNDER_WAY: usize = 65_536;
/// The shortest wait. One for each packet would be 100,000 a second at 1 Gbit/s.
const STEP: Duration = Duration::from_micros(100);

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [rate, delay, loss, queue, seed, socket] = &arguments[..] else {
        return Err("usage: link RATE_BITS DELAY_US LOSS_PPM QUEUE_US SEED SOCKET <> TUN_A 1<> TUN_B; see scripts/link".into());
    };
    let settings = Settings {
        rate: NonZero::new(rate.parse()?),
        delay: Duration::from_micros(delay.parse()?),
        loss_ppm: loss.parse()?,
        queue: Duration::from_micros(queue.parse()?),
    };
    let seed: u64 = seed.parse()?;
    let listener = UnixListener::bind(socket)?;
    let a = File::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    let b = File::from(std::io::stdout().as_fd().try_clone_to_owned()?);
    let counters = [Arc::new(Counters::default()), Arc::new(Counters::default())];
    start(a.try_clone()?, b.try_clone()?, settings, seed, counters[0].clone());
    start(b, a, settings, !seed, counters[1].clone());
    for connection in listener.incoming() {
        let (a_to_b, b_to_a) = (counters[0].json(), counters[1].json());
        // Who asked may have gone again; that is theirs to notice.
        let _ = connection?.write_all(format!("{{\"a_to_b\": {a_to_b}, \"b_to_a\": {b_to_a}}}\n").as_bytes());
    }
    Ok(())
}

/// The link, the same in both directions.
#[derive(Clone, Copy)]
struct Settings {
    /// Bits a second, headers of IP included; `None`: no limit.
    rate: Option<NonZero<u64>>,
    /// From leaving the queue to arriving.
    delay: Duration,
    /// Packets lost at random, of a million.
    loss_ppm: u64,
    /// The longest wait in the queue.
    queue: Duration,
}

#[derive(Default)]
struct Counters {
    packets: AtomicU64,
    bytes: AtomicU64,
    lost: AtomicU64,
    dropped: AtomicU64,
}

impl Counters {
    fn json(&self) -> String {
        let Counters { packets, bytes, lost, dropped } = self;
        let [packets, bytes, lost, dropped] = [packets, bytes, lost, dropped].map(|counter| counter.load(Relaxed));
        format!("{{\"packets\": {packets}, \"bytes\": {bytes}, \"lost\": {lost}, \"dropped\": {dropped}}}")
    }
}

/// A packet and when it arrives.
type Due = (Instant, Box<[u8]>);

fn start(from: File, to: File, settings: Settings, seed: u64, counters: Arc<Counters>) {
    let (tx, rx) = sync_channel(UNDER_WAY);
    thread::spawn(move || end_with("reading", take(from, settings, seed, &counters, &tx)));
    thread::spawn(move || end_with("writing", give(to, &rx)));
}

/// A link with one dead direction would measure nonsense: the whole program ends.
fn end_with(what: &str, result: std::io::Result<()>) {
    if let Err(error) = result {
        eprintln!("link: {what} a packet failed: {error}");
    }
    std::process::exit(1);
}

fn take(mut from: File, settings: Settings, seed: u64, counters: &Counters, tx: &SyncSender<Due>) -> std::io::Result<()> {
    let mut dice = Dice(seed | 1);
    let mut wire = Wire { settings, free: Instant::now() };
    let mut buffer = vec![0; MAX_PACKET];
    loop {
        let length = match from.read(&mut buffer) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            read => read?,
        };
        counters.packets.fetch_add(1, Relaxed);
        counters.bytes.fetch_add(length as u64, Relaxed);
        // A packet that is lost on the way has had its time on the wire.
        let sent = wire.arrival(Instant::now(), length).is_some_and(|due| {
            if dice.throw(1_000_000) < settings.loss_ppm {
                counters.lost.fetch_add(1, Relaxed);
                return true;
            }
            tx.try_send((due, buffer[..length].into())).is_ok()
        });
        if !sent {
            counters.dropped.fetch_add(1, Relaxed);
        }
    }
}

fn give(mut to: File, rx: &Receiver<Due>) -> std::io::Result<()> {
    for (due, packet) in rx {
        let wait = due.saturating_duration_since(Instant::now());
        if !wait.is_zero() {
            thread::sleep(wait.max(STEP));
        }
        match to.write(&packet) {
            // The device is down, at the start or the end: as if nobody were there.
            Err(error) if error.raw_os_error() == Some(5) => {}
            written => drop(written?),
        }
    }
    Ok(())
}

/// When the link is free again, from the packets that have been put on it.
struct Wire {
    settings: Settings,
    free: Instant,
}

impl Wire {
    /// When a packet of this length arrives that comes now; `None`: the queue is full.
    fn arrival(&mut self, now: Instant, length: usize) -> Option<Instant> {
        if let Some(rate) = self.settings.rate {
            let begin = self.free.max(now);
            if begin - now > self.settings.queue {
                return None;
            }
            self.free = begin + Duration::from_nanos(length as u64 * 8 * 1_000_000_000 / rate);
        }
        Some(self.free.max(now) + self.settings.delay)
    }
}

/// Marsaglia's xorshift64: the same losses for the same seed.
struct Dice(u64);

impl Dice {
    fn throw(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % sides
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_leave_at_the_rate_and_a_full_queue_drops() {
        let settings =
            Settings { rate: NonZero::new(8_000_000), delay: Duration::from_millis(20), loss_ppm: 0, queue: Duration::from_millis(2) };
        let now = Instant::now();
        let mut wire = Wire { settings, free: now };
        // 1000 bytes take 1 ms at 8 Mbit/s.
        let arrivals = [(); 5].map(|()| wire.arrival(now, 1000).map(|due| (due - now).as_millis()));
        assert_eq!(arrivals, [Some(21), Some(22), Some(23), None, None]);
        let later = now + Duration::from_millis(10);
        assert_eq!(wire.arrival(later, 1000), Some(later + Duration::from_millis(21)));
    }

    #[test]
    fn losses_come_at_their_rate() {
        let mut dice = Dice(7);
        let lost = (0..1_000_000).filter(|_| dice.throw(1_000_000) < 500).count();
        assert!((400..600).contains(&lost), "{lost}");
    }
}
