//! How fast probe frames arrive. The caller tells the time.

use std::time::Duration;

/// Arrivals this close together count as one, which bounds what is kept: the first of a group gives its time.
const TOGETHER: Duration = Duration::from_micros(250);

/// A stall after lost packets lasts some hundred milliseconds: the best stretch of this length has none, or what a stall held back.
const WINDOW: Duration = Duration::from_millis(250);
/// What arrives at once after a stall says nothing about the path.
const SHORTEST: Duration = Duration::from_millis(100);

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

    /// Bytes, and the time they took, while the path was in its swing: the best quarter second, or, where that is faster, the latter
    /// half, since congestion control begins slowly. No time when too little arrived to tell.
    pub fn pace(&self) -> (u64, Duration) {
        let half = self.latter_half();
        let Some(window) = self.best_window() else { return half.unwrap_or((0, Duration::ZERO)) };
        let rate = |(bytes, took): (u64, Duration)| bytes as f64 / took.as_secs_f64();
        half.filter(|half| half.1 >= SHORTEST && rate(*half) > rate(window)).unwrap_or(window)
    }

    fn best_window(&self) -> Option<(u64, Duration)> {
        let mut end = 0;
        let mut best = None;
        for &(since, before) in &self.arrivals {
            let until = since + WINDOW;
            if until > self.last {
                break;
            }
            while self.arrivals.get(end + 1).is_some_and(|(at, _)| *at <= until) {
                end += 1;
            }
            best = best.max(Some(self.arrivals[end].1 - before));
        }
        best.filter(|bytes| *bytes > 0).map(|bytes| (bytes, WINDOW))
    }

    fn latter_half(&self) -> Option<(u64, Duration)> {
        let &(since, before) = self.arrivals.iter().find(|(_, total)| *total >= self.bytes / 2)?;
        Some((self.bytes - before, self.last - since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAME: u64 = 16 * 1024;

    /// The rate of frames that arrive after these pauses, in frames a second.
    fn rate(pauses: impl Iterator<Item = u64>) -> f64 {
        let (mut probe, mut now) = (Probe::default(), Duration::ZERO);
        for pause in pauses {
            now += Duration::from_millis(pause);
            probe.handle_arrival(now, FRAME);
        }
        let (bytes, took) = probe.pace();
        bytes as f64 / FRAME as f64 / took.as_secs_f64()
    }

    #[test]
    fn a_path_that_starts_slowly_is_measured_once_it_runs() {
        let start = || std::iter::repeat_n(10, 25);
        assert_eq!(rate(start().chain(std::iter::repeat_n(2, 300))), 500.0);
        assert_eq!(rate(start().chain(std::iter::repeat_n(2, 100))), 500.0, "a short one");
    }

    #[test]
    fn a_stall_does_not_count() {
        let steady = |count| std::iter::repeat_n(2, count);
        let stalled = rate(steady(250).chain([200]).chain(steady(125)));
        assert!((490.0..=510.0).contains(&stalled), "{stalled}");
        let held_back = rate(steady(300).chain([200]).chain(std::iter::repeat_n(0, 100)).chain(steady(100)));
        assert!((490.0..=1000.0).contains(&held_back), "{held_back}: what a stall held back comes at once, and counts twice at most");
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
