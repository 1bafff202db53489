//! How long to wait before trying again: exponential with full jitter, capped.

use std::time::Duration;

/// The longest first wait of a peer whose connection the signaling server has ended, and the longest of all: a thousand peers that lose it
/// in the same moment come back at some 125 a second.
pub const FIRST_WAIT: Duration = Duration::from_secs(8);
/// See [`FIRST_WAIT`].
pub const LONGEST_WAIT: Duration = Duration::from_secs(13);

/// Exponential back-off with full jitter: the n-th wait is uniform in `0..=min(cap, base · 2ⁿ)`.
#[derive(Debug, Clone)]
pub struct Backoff {
    base: Duration,
    cap: Duration,
    attempt: u32,
}

impl Backoff {
    /// Waits grow from `base` and never exceed `cap`.
    pub fn new(base: Duration, cap: Duration) -> Self {
        Backoff { base, cap, attempt: 0 }
    }

    /// The next wait; `random` is any 64 random bits.
    pub fn next_wait(&mut self, random: u64) -> Duration {
        let ceiling = self.base.saturating_mul(1u32.checked_shl(self.attempt.min(20)).unwrap_or(u32::MAX)).min(self.cap);
        self.attempt = self.attempt.saturating_add(1);
        ceiling.mul_f64(random as f64 / u64::MAX as f64)
    }

    /// How many waits were taken since the last [`Backoff::reset`].
    pub fn attempts(&self) -> u32 {
        self.attempt
    }

    /// Starts over, after a success.
    pub fn reset(&mut self) {
        self.attempt = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_cap_and_start_over() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
        let waits: Vec<u64> = (0..8).map(|_| backoff.next_wait(u64::MAX).as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(backoff.next_wait(0), Duration::ZERO);
        backoff.reset();
        assert_eq!(backoff.next_wait(u64::MAX).as_secs(), 1);
    }
}
