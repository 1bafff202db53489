//! How fast probe frames arrive. The caller tells the time.

use std::time::Duration;

/// Arrivals this close together count as one, which bounds what is kept: the first of a group gives its time.
const TOGETHER: Duration = Duration::from_micros(250);

/// Arrivals so far: by when so many bytes were there.
#[derive(Debug, Clone, Default)]
pub struct Probe {
    arrivals: Vec<(Duration, u64)>,
    bytes: u64,
    last: Duration,
}

impl Probe {
    /// So many bytes have arrived at `now` (since any fixed start).
    pub fn handle_arrival(&mut self, now: Duration, bytes: u64) {
        self.bytes += bytes;
        self.last = now;
        match self.arrivals.last_mut() {
            Some((since, total)) if now < *since + TOGETHER => *total = self.bytes,
            _ => self.arrivals.push((now, self.bytes)),
        }
    }

    /// Bytes that have arrived.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes, and the time they took, of the latter half of what arrived: before, the path was only getting into its swing. No time
    /// when too little arrived to tell.
    pub fn pace(&self) -> (u64, Duration) {
        let half = self.arrivals.iter().find(|(_, total)| *total >= self.bytes / 2);
        half.map_or((0, Duration::ZERO), |&(since, total)| (self.bytes - total, self.last.saturating_sub(since)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAME: u64 = 16 * 1024;

    #[test]
    fn a_path_that_starts_slowly_is_measured_once_it_runs() {
        let mut probe = Probe::default();
        let mut now = Duration::ZERO;
        for frame in 0..200 {
            now += Duration::from_millis(if frame < 50 { 10 } else { 2 });
            probe.handle_arrival(now, FRAME);
        }
        let (bytes, took) = probe.pace();
        assert_eq!((bytes, took), (100 * FRAME, Duration::from_millis(200)));
        assert_eq!(probe.bytes(), 200 * FRAME);
    }

    #[test]
    fn a_burst_keeps_little_and_counts_everything() {
        let mut probe = Probe::default();
        for frame in 0..8000 {
            probe.handle_arrival(Duration::from_micros(frame), 1);
        }
        assert!(probe.arrivals.len() <= 32, "{}", probe.arrivals.len());
        let (bytes, took) = probe.pace();
        let rate = bytes as f64 / took.as_secs_f64();
        assert!((0.8e6..1.2e6).contains(&rate), "{rate}");
    }

    #[test]
    fn too_little_tells_nothing() {
        assert_eq!(Probe::default().pace(), (0, Duration::ZERO));
        let mut probe = Probe::default();
        probe.handle_arrival(Duration::from_secs(1), FRAME);
        assert_eq!(probe.pace(), (0, Duration::ZERO));
    }
}
