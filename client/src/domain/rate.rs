//! How fast a transfer is, smoothed so that a burst does not make the remaining time jump. The caller tells the time.

use std::time::Duration;

/// How far back the rate looks.
const MEMORY: Duration = Duration::from_secs(5);
/// Shorter steps are gathered before they count: a rate over a millisecond means nothing.
const STEP: Duration = Duration::from_millis(200);

/// The rate of one transfer: an exponentially weighted mean over about five seconds.
#[derive(Debug, Clone, Default)]
pub struct Rate {
    last: Option<(Duration, u64)>,
    per_second: Option<f64>,
}

impl Rate {
    /// `done` bytes are through at `now`. A `done` that goes back starts anew.
    pub fn observe(&mut self, now: Duration, done: u64) {
        let Some((since, before)) = self.last.filter(|(since, before)| *before <= done && *since <= now) else {
            *self = Rate { last: Some((now, done)), per_second: None };
            return;
        };
        let step = now - since;
        if step < STEP {
            return;
        }
        let measured = (done - before) as f64 / step.as_secs_f64();
        self.per_second = Some(match self.per_second {
            None => measured,
            Some(old) => {
                let weight = decay(step);
                old * weight + measured * (1.0 - weight)
            }
        });
        self.last = Some((now, done));
    }

    /// Bytes a second; none before two observations. It sinks while nothing is observed.
    pub fn per_second(&self, now: Duration) -> Option<f64> {
        let (since, _) = self.last?;
        let idle = now.saturating_sub(since).saturating_sub(Duration::from_secs(1));
        Some(self.per_second? * decay(idle))
    }

    /// The time that `left` more bytes take at this rate; none where it would be no better than a guess.
    pub fn eta(&self, now: Duration, left: u64) -> Option<Duration> {
        let rate = self.per_second(now).filter(|rate| *rate >= 1.0)?;
        Duration::try_from_secs_f64(left as f64 / rate).ok().filter(|eta| *eta < Duration::from_secs(100 * 3600))
    }
}

fn decay(span: Duration) -> f64 {
    (-span.as_secs_f64() / MEMORY.as_secs_f64()).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_steady_transfer_has_its_rate_and_end() {
        let mut rate = Rate::default();
        assert_eq!(rate.eta(at(0), 1), None);
        for step in 0..=20 {
            rate.observe(at(step * 500), step * 5_000_000);
        }
        let shown = rate.per_second(at(10_000)).unwrap();
        assert!((shown - 10e6).abs() < 1e3, "{shown}");
        assert_eq!(rate.eta(at(10_000), 50_000_000).unwrap().as_secs_f64().round(), 5.0);
    }

    #[test]
    fn a_burst_moves_it_little_and_a_stall_lets_it_sink() {
        let mut rate = Rate::default();
        for step in 0..=20 {
            rate.observe(at(step * 500), step * 500_000);
        }
        rate.observe(at(10_500), 10_000_000 + 5_000_000);
        let after_burst = rate.per_second(at(10_500)).unwrap();
        assert!(after_burst < 2.5e6, "{after_burst}");
        assert!(rate.per_second(at(60_000)).unwrap() < 1e3);
        assert_eq!(rate.eta(at(600_000), 1_000_000), None);
    }

    #[test]
    fn going_back_starts_anew() {
        let mut rate = Rate::default();
        rate.observe(at(0), 100);
        rate.observe(at(1000), 200);
        rate.observe(at(2000), 50);
        assert_eq!(rate.per_second(at(2000)), None);
    }
}
