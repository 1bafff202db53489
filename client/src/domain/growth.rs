//! How many bulk connections a transfer should have, found while it runs.
//!
//! Congestion control is each connection's own, and a lost packet halves one of them: on a lossy or long path several together carry
//! what one cannot; on a short one they only cost. So: begin with one, go to four when the transfer turns out to be long, double as long as
//! that carries more, stop where it does not.

use std::time::Duration;

/// The most connections of a transfer.
const MOST: u32 = 16;
/// After a change, the rate is looked at from here on: connecting and slow start are over.
const SETTLE: Duration = Duration::from_millis(750);
/// For so long.
const WINDOW: Duration = Duration::from_millis(1000);
/// From one connection to so many: the step that costs little and helps most.
const FIRST_STEP: u32 = 4;
/// What doubling must bring to be worth it.
const GAIN: f64 = 1.15;
/// A rate that falls to this part of the best one means that the path has changed: more connections get another try.
const COLLAPSE: f64 = 0.5;

/// Decides the number of connections from what has been acknowledged.
#[derive(Debug)]
pub struct Growth {
    connections: u32,
    /// The rate before the last doubling, bytes a second.
    before: Option<f64>,
    best: f64,
    settled: bool,
    /// When the last change was made, or the last window ended.
    changed: Duration,
    /// Where the present window began.
    window: Option<(Duration, u64)>,
}

impl Default for Growth {
    fn default() -> Self {
        Growth { connections: 1, before: None, best: 0.0, settled: false, changed: Duration::ZERO, window: None }
    }
}

impl Growth {
    /// How many connections to have, `now` after the transfer's begin, with so many bytes acknowledged.
    pub fn handle_progress(&mut self, now: Duration, acked: u64) -> u32 {
        let Some((since, bytes)) = self.window else {
            if now >= self.changed + SETTLE {
                self.window = Some((now, acked));
            }
            return self.connections;
        };
        if now < since + WINDOW {
            return self.connections;
        }
        let rate = acked.saturating_sub(bytes) as f64 / (now - since).as_secs_f64();
        self.window = Some((now, acked));
        self.handle_rate(now, rate);
        self.connections
    }

    fn handle_rate(&mut self, now: Duration, rate: f64) {
        if self.settled {
            if rate >= self.best * COLLAPSE {
                self.best = self.best.max(rate);
                return;
            }
            self.best = rate;
            self.before = None;
            self.settled = false;
        }
        self.best = self.best.max(rate);
        let worth_it = self.before.is_none_or(|before| rate > before * GAIN);
        if !worth_it || self.connections >= MOST {
            self.settled = true;
            return;
        }
        self.before = Some(rate);
        self.connections = if self.connections == 1 { FIRST_STEP } else { self.connections * 2 };
        self.changed = now;
        self.window = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a transfer over a path that gives this rate (bytes a second) to so many connections.
    fn run(seconds: u64, rate: impl Fn(u64, u32) -> f64) -> u32 {
        let (mut growth, mut acked, mut connections) = (Growth::default(), 0.0, 1);
        for step in 0..seconds * 10 {
            acked += rate(step / 10, connections) / 10.0;
            connections = growth.handle_progress(Duration::from_millis(step * 100), acked as u64);
        }
        connections
    }

    #[test]
    fn a_lossy_path_gets_as_many_as_help() {
        assert_eq!(run(60, |_, n| 1.4e6 * f64::from(n)), 16);
        assert_eq!(run(60, |_, n| (1.8e6 * f64::from(n)).min(11e6)), 16);
    }

    #[test]
    fn a_path_that_one_connection_fills_gets_one_try_more() {
        assert_eq!(run(60, |_, _| 110e6), 4);
        assert_eq!(run(1, |_, _| 110e6), 1, "a short transfer stays as it is");
    }

    #[test]
    fn a_path_that_turns_bad_gets_another_try() {
        assert_eq!(run(20, |_, _| 100e6), 4);
        assert_eq!(run(120, |second, n| if second < 20 { 100e6 } else { 1e6 * f64::from(n) }), 16);
    }
}
