//! How many bulk connections a transfer should have, found while it runs.
//!
//! Congestion control is each connection's own, and a lost packet halves one of them: on a lossy or long path several together carry
//! what one cannot; on others they only cost. So: begin with one; try more when the transfer goes on long enough for it; more still while that
//! carries more; back where it did not. What an attempt costs is small, because all connections share one window.
//!
//! On a long path a few are there from the start, and stay: a burst that overflows one socket's buffer or a queue on the way takes one of
//! several, and not the only one, for seconds; and each has a buffer of its own, so that it seldom comes to that.
//!
//! ```text
//!   Settling ──connections are open, slow start is over──► Measuring ──more helps──► Settling (with more)
//!                                                            │  ▲
//!                      it did not help, or all is tried      ▼  │ the rate fell, or it was long ago
//!                                                          Content
//! ```

use std::time::Duration;

use shared::domain::transfer::BULK_CONNECTIONS;

/// The most connections of a transfer; and on a path shorter than this, where a lost packet costs little.
const MOST: u32 = BULK_CONNECTIONS;
const MOST_SHORT: u32 = 4;
const SHORT: Duration = Duration::from_millis(2);
/// From one connection to so many: the step that costs little and helps most.
const FIRST_STEP: u32 = 4;
/// A path so long gets them at once, for a transfer of so many bytes: opening takes some ten round trips.
const LONG: Duration = Duration::from_millis(10);
const LARGE: u64 = 16 << 20;
/// On a very long one, more with the square of how many times this its round trip takes, up to a number, and up to one for so many bytes: what one
/// connection carries of a lossy path shrinks with the round trip, and so does the number of tries that there is time for.
const SPAN: Duration = Duration::from_millis(50);
const MOST_AT_ONCE: u32 = 64;
const WORTH_ONE: u64 = 1 << 20;
/// A connection of a path that is longer than that and has less than this under way is one of a narrow path or one that losses keep so: then the next
/// step is a large one. No queue stands on the path in the second case, and whatever a step seems to bring, no step is taken back but one that cost half: a
/// rate says little there, since a slow start that has not met its losses yet is twice as fast as all that comes after it.
const LITTLE: f64 = 32768.0;
const STARVED_HARM: f64 = 0.5;
/// The first connection has found its rate when it grew by less than this from one window to the next.
const RISING: f64 = 1.5;
/// What more connections must bring to be worth it.
const GAIN: f64 = 1.15;
/// A few that bring nothing stay on a path that is not short, unless they leave less than this: where one does as well, nothing has been lost so
/// far, and when something is, it costs one of several a part of its share and not the only one half of the path.
const HARM: f64 = 0.85;
/// What more than a few must bring to stay, if it is not enough to go on.
const HELPS: f64 = 1.04;
/// What they must bring for the next step to be as large as the first, and not only a doubling.
const MUCH: f64 = 1.6;
/// With less than this left at the present rate, nothing is tried any more: opening takes about as long.
const WORTHWHILE: Duration = Duration::from_millis(2500);
/// A rate that stays below this part of the best one means that something is lost now: more connections get another try.
const COLLAPSE: f64 = 0.85;
/// After a try that brought nothing, the next one waits for so long; after each further one for twice as long.
const PAUSE: Duration = Duration::from_millis(1500);
/// In a long transfer, one step more is tried again after so long.
const AGAIN: Duration = Duration::from_secs(30);
/// For opening connections; after that, those that are there are what can be had.
const OPENING: Duration = Duration::from_secs(5);

/// How a transfer goes.
#[derive(Debug, Clone, Copy)]
pub struct Look {
    /// Since the transfer began.
    pub now: Duration,
    /// Bytes that were carried since any one moment.
    pub carried: u64,
    /// Bytes that are still to come.
    pub left: u64,
    /// Connections that are open.
    pub open: u32,
    /// The path's round trip, as far as it is known.
    pub round_trip: Duration,
    /// Whether a queue stands on the path, as far as it is known: it carries what it can.
    pub full: bool,
}

/// Decides the number of connections from what has been acknowledged.
#[derive(Debug)]
pub struct Growth {
    connections: u32,
    /// The best rate that was measured since the last try that brought nothing, bytes a second.
    best: f64,
    /// How long the next try waits if this one brings nothing.
    pause: Duration,
    phase: Phase,
}

#[derive(Debug, Clone, Copy)]
enum Phase {
    /// The number was changed then; before that, this was carried.
    Settling { changed: Duration, open: Option<Duration>, before: Option<Before> },
    /// Counting since then what this number carries; the window before this one carried so much.
    Measuring { since: Duration, carried: u64, before: Option<Before>, last: Option<f64> },
    /// Nothing is tried while the rate is near the best one, at least until then; something in any case after so much time.
    Content { earliest: Duration, until: Duration, since: Duration, carried: u64 },
}

/// What so many connections carried, bytes a second.
#[derive(Debug, Clone, Copy)]
struct Before {
    connections: u32,
    rate: f64,
}

/// How many connections a transfer of so many bytes has from the start.
pub fn at_once(round_trip: Duration, bytes: u64) -> u32 {
    if round_trip < LONG || bytes < LARGE {
        return 1;
    }
    let spans = (round_trip.as_millis() / SPAN.as_millis()).min(u128::from(MOST_AT_ONCE)) as u32;
    let worth = (bytes / WORTH_ONE).min(u64::from(MOST_AT_ONCE)) as u32;
    (4 * spans * spans).clamp(FIRST_STEP, worth)
}

impl Default for Growth {
    fn default() -> Self {
        Growth { connections: 1, best: 0.0, pause: PAUSE, phase: Phase::Settling { changed: Duration::ZERO, open: None, before: None } }
    }
}

impl Growth {
    /// How many connections to have.
    pub fn handle_look(&mut self, look: Look) -> u32 {
        let Look { now, carried, round_trip, .. } = look;
        let first = at_once(round_trip, look.left);
        if self.connections == 1 && first > 1 {
            self.connections = first;
            self.phase = Phase::Settling { changed: now, open: None, before: None };
        }
        let window = (round_trip * 5).clamp(Duration::from_millis(250), Duration::from_millis(1500));
        match self.phase {
            Phase::Settling { changed, open: None, before } => {
                // On a lossy path there is always one that takes longer.
                if (look.open >= self.connections - self.connections / 8 || now >= changed + OPENING) && carried > 0 {
                    self.phase = Phase::Settling { changed, open: Some(now), before };
                }
            }
            Phase::Settling { open: Some(open), before, .. } => {
                let settle = if before.is_some() {
                    (round_trip * 5).clamp(Duration::from_millis(150), Duration::from_millis(1500))
                } else {
                    Duration::ZERO
                };
                if now >= open + settle {
                    self.phase = Phase::Measuring { since: now, carried, before, last: None };
                }
            }
            Phase::Measuring { since, carried: at, before, last } if now >= since + window => {
                let rate = carried.saturating_sub(at) as f64 / (now - since).as_secs_f64();
                let rising = before.is_none() && last.is_none_or(|last| rate > last * RISING);
                // What brought nothing may still be starting: it gets a second window.
                let unsure = last.is_none() && before.is_some_and(|before| rate < before.rate * GAIN);
                if rising || unsure {
                    self.phase = Phase::Measuring { since: now, carried, before, last: Some(rate) };
                } else {
                    self.handle_rate(look, rate, before);
                }
            }
            Phase::Content { earliest, until, since, carried: at } if now >= since + window * 4 => {
                let present = carried.saturating_sub(at) as f64 / (now - since).as_secs_f64();
                if now >= earliest && present < self.best * COLLAPSE || now >= until {
                    self.phase = Phase::Measuring { since: now, carried, before: None, last: Some(present) };
                } else {
                    self.best = self.best.max(present);
                    self.phase = Phase::Content { earliest, until, since: now, carried };
                }
            }
            Phase::Measuring { .. } | Phase::Content { .. } => {}
        }
        self.connections
    }

    fn handle_rate(&mut self, look: Look, rate: f64, before: Option<Before>) {
        let had = self.connections;
        let gain = before.map_or(f64::INFINITY, |before| rate / before.rate.max(1.0));
        let little = look.round_trip > SPAN && rate * look.round_trip.as_secs_f64() < LITTLE * f64::from(had);
        let starved = little && !look.full && gain > STARVED_HARM;
        if let Some(before) = before
            && gain < GAIN
            && !starved
        {
            let least = if had <= FIRST_STEP { HARM } else { HELPS };
            let harmless = look.round_trip >= SHORT && gain > least;
            if !harmless {
                self.connections = before.connections;
            }
            // The first try says little: where nothing was lost yet, one carries as much as several.
            self.best = if before.connections == 1 { self.best.max(before.rate).max(rate) } else { rate };
            self.rest(look, self.pause);
            self.pause = (self.pause * 2).min(AGAIN);
            return;
        }
        let soon = look.left as f64 <= rate * WORTHWHILE.as_secs_f64();
        let most = if look.round_trip < SHORT { MOST_SHORT } else { MOST };
        if soon || had >= most {
            self.best = self.best.max(rate);
            self.rest(look, Duration::ZERO);
            return;
        }
        let step = match before {
            None if had < FIRST_STEP => FIRST_STEP,
            Some(_) if gain >= MUCH => FIRST_STEP,
            _ if starved => FIRST_STEP,
            _ => 2,
        };
        self.connections = (had * step).min(most);
        self.phase = Phase::Settling { changed: look.now, open: None, before: Some(Before { connections: had, rate }) };
    }

    fn rest(&mut self, look: Look, pause: Duration) {
        let Look { now, carried, .. } = look;
        self.phase = Phase::Content { earliest: now + pause, until: now + AGAIN, since: now, carried };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a transfer over a path that gives this rate (bytes a second) to so many connections; the numbers it had, in order.
    fn run(bytes: f64, round_trip: u64, rate: impl Fn(u64, u32) -> f64) -> Vec<u32> {
        let (mut growth, mut carried, mut had) = (Growth::default(), 0.0, vec![1]);
        for step in 0..200 * 20 {
            let connections = *had.last().unwrap();
            carried += rate(step / 20, connections) / 20.0;
            if carried >= bytes {
                break;
            }
            let wanted = growth.handle_look(Look {
                now: Duration::from_millis(step * 50),
                carried: carried as u64,
                left: (bytes - carried) as u64,
                open: connections,
                round_trip: Duration::from_millis(round_trip),
                full: rate(step / 20, connections) >= rate(step / 20, connections * 2),
            });
            if wanted != connections {
                had.push(wanted);
            }
        }
        had
    }

    #[test]
    fn a_lossy_path_gets_as_many_as_help() {
        assert_eq!(run(2e9, 50, |_, n| 1.4e6 * f64::from(n)), [1, 4, 8, 32, 96]);
        assert_eq!(run(250e6, 30, |_, n| (1.8e6 * f64::from(n)).min(11e6)), [1, 4, 8, 16, 8], "the last step is taken back");
    }

    #[test]
    fn a_very_long_lossy_path_gets_many_at_once_and_all_in_the_next_step() {
        assert_eq!(run(250e6, 200, |_, n| 0.08e6 * f64::from(n)), [1, 64, 96]);
        assert_eq!(run(250e6, 100, |_, n| 0.16e6 * f64::from(n)), [1, 16, 64, 96]);
        assert_eq!([1, 20, 99, 150, 3000].map(|ms| at_once(Duration::from_millis(ms), 1 << 30)), [1, 4, 4, 36, 64]);
        assert_eq!([LARGE - 1, LARGE, 32 << 20].map(|bytes| at_once(Duration::from_millis(200), bytes)), [1, 16, 32]);
    }

    #[test]
    fn a_slow_start_before_the_first_losses_does_not_take_connections_back() {
        let rate = |second, n| if second < 4 { 0.15e6 * f64::from(n) } else { 0.07e6 * f64::from(n) };
        assert_eq!(run(250e6, 200, rate), [1, 64, 96]);
        assert_eq!(run(100e6, 200, |_, _| 6e6), [1, 64, 96, 64], "one that is only narrow keeps what it began with");
    }

    #[test]
    fn a_path_that_one_connection_fills_gets_a_few_if_it_is_long_and_one_if_it_is_short() {
        assert_eq!(run(3e9, 50, |_, _| 110e6), [1, 4, 8, 4]);
        assert_eq!(run(2e9, 50, |_, n| if n == 1 { 110e6 } else { 80e6 }), [1, 4, 8, 4], "one alone would not last");
        assert_eq!(run(3e9, 1, |_, _| 110e6), [1, 4, 1]);
    }

    #[test]
    fn a_short_transfer_stays_as_it_is() {
        assert_eq!(run(67e6, 1, |_, _| 110e6), [1]);
        assert_eq!(run(1.5e6, 40, |_, n| 1e6 * f64::from(n)), [1]);
    }

    #[test]
    fn a_path_that_turns_bad_gets_another_try() {
        let had = run(20e9, 30, |second, n| if second < 20 { 100e6 } else { 1e6 * f64::from(n) });
        assert_eq!(had, [1, 4, 8, 4, 8, 32, 96]);
    }

    #[test]
    fn connections_that_cannot_be_opened_do_not_hold_it_up() {
        let mut growth = Growth::default();
        let mut wanted = 1;
        for step in 0..280u64 {
            let now = Duration::from_millis(step * 50);
            let look = Look { now, carried: step * 50_000, left: 1 << 30, open: 1, round_trip: Duration::from_millis(50), full: false };
            wanted = growth.handle_look(look);
        }
        // After 14 s it has tried twice, waited 5 s for more each time, found that one carries what one carries, and goes on with that.
        assert_eq!(wanted, 4);
        assert!(matches!(growth.phase, Phase::Content { .. }), "{growth:?}");
    }
}
