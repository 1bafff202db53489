//! Whether a client is still there: when it was last heard, and what is done when there is reason to doubt it.
//!
//! ```text
//!   quiet ── doubt ──► in doubt ── pong ──► quiet
//!     │ 30 s of silence    │ 3 s of silence (a ping each second)
//!     └──────► gone ◄──────┘
//! ```
//!
//! Times are ages of the link. A message alone does not end a doubt: it may have been under way when the client went. But it puts off
//! the end, so that a client whose answer waits behind a long queue is not taken for a dead one.

use std::time::Duration;

/// Silence after which a client counts as gone; it pings every 5 s.
pub const SILENCE: Duration = Duration::from_secs(30);
/// The same for a client in doubt.
pub const DOUBTED: Duration = Duration::from_secs(3);
/// Between two pings to a client in doubt: one may be lost on the way.
const AGAIN: Duration = Duration::from_secs(1);

/// The signs of life of one client, which was heard when its link was new.
#[derive(Debug, Default)]
pub struct Pulse {
    heard: Duration,
    pings: u64,
    doubt: Option<Doubt>,
}

#[derive(Debug)]
struct Doubt {
    since: Duration,
    /// The first ping whose answer ends it.
    first: u64,
    next_ping: Duration,
}

/// What is to be done now.
#[derive(Debug, PartialEq, Eq)]
pub enum Due {
    /// Send a ping with this number.
    Ping(u64),
    /// The client is gone.
    Gone,
}

impl Pulse {
    /// The client has sent something.
    pub fn heard(&mut self, now: Duration) {
        self.heard = now;
    }

    /// The client has answered a ping.
    pub fn answered(&mut self, ping: u64) {
        self.doubt.take_if(|doubt| ping >= doubt.first);
    }

    /// There is reason to think that the client is gone.
    pub fn doubt(&mut self, now: Duration) {
        let first = self.pings + 1;
        self.doubt.get_or_insert(Doubt { since: now, first, next_ping: now });
    }

    /// When to ask [`Pulse::due`] again, unless something happens before.
    pub fn deadline(&self) -> Duration {
        match &self.doubt {
            None => self.end(),
            Some(doubt) => self.end().min(doubt.next_ping),
        }
    }

    /// What is due.
    pub fn due(&mut self, now: Duration) -> Option<Due> {
        if now >= self.end() {
            return Some(Due::Gone);
        }
        let doubt = self.doubt.as_mut().filter(|doubt| now >= doubt.next_ping)?;
        doubt.next_ping = now + AGAIN;
        self.pings += 1;
        Some(Due::Ping(self.pings))
    }

    fn end(&self) -> Duration {
        let silence = self.heard + SILENCE;
        self.doubt.as_ref().map_or(silence, |doubt| silence.min(self.heard.max(doubt.since) + DOUBTED))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// Asks at each deadline; gives the pings that were due, and when it was over.
    fn until_gone(pulse: &mut Pulse) -> (Vec<(u64, Duration)>, Duration) {
        let mut pings = Vec::new();
        loop {
            let now = pulse.deadline();
            match pulse.due(now) {
                Some(Due::Ping(n)) => pings.push((n, now)),
                Some(Due::Gone) => return (pings, now),
                None => panic!("nothing is due at a deadline of {pulse:?}"),
            }
        }
    }

    #[test]
    fn a_quiet_client_is_gone_after_30_s_and_is_not_pinged() {
        let mut pulse = Pulse::default();
        assert_eq!(until_gone(&mut pulse), (vec![], ms(30_000)));
        pulse.heard(ms(20_000));
        assert_eq!(pulse.due(ms(30_000)), None);
        assert_eq!(until_gone(&mut pulse), (vec![], ms(50_000)));
    }

    #[test]
    fn a_doubted_client_is_pinged_each_second_and_gone_after_three() {
        let mut pulse = Pulse::default();
        pulse.doubt(ms(10_000));
        pulse.doubt(ms(10_500));
        let pings = vec![(1, ms(10_000)), (2, ms(11_000)), (3, ms(12_000))];
        assert_eq!(until_gone(&mut pulse), (pings, ms(13_000)), "a second doubt does not put it off");
    }

    #[test]
    fn an_answer_ends_the_doubt() {
        let mut pulse = Pulse::default();
        pulse.doubt(ms(10_000));
        assert_eq!(pulse.due(ms(10_000)), Some(Due::Ping(1)));
        pulse.heard(ms(10_020));
        pulse.answered(1);
        assert_eq!(until_gone(&mut pulse), (vec![], ms(40_020)));
    }

    #[test]
    fn an_answer_to_an_earlier_doubt_does_not_end_the_next_one() {
        let mut pulse = Pulse::default();
        pulse.doubt(ms(1000));
        assert_eq!(pulse.due(ms(1000)), Some(Due::Ping(1)));
        pulse.answered(1);
        pulse.doubt(ms(2000));
        pulse.answered(1);
        assert_eq!(until_gone(&mut pulse).1, ms(5000));
    }

    #[test]
    fn a_message_that_was_under_way_puts_the_end_off_and_no_more() {
        let mut pulse = Pulse::default();
        pulse.doubt(ms(10_000));
        pulse.heard(ms(11_500));
        assert_eq!(until_gone(&mut pulse).1, ms(14_500));
    }

    #[test]
    fn a_doubt_never_makes_a_silence_longer() {
        let mut pulse = Pulse::default();
        pulse.doubt(ms(29_000));
        assert_eq!(until_gone(&mut pulse).1, ms(30_000));
    }
}
