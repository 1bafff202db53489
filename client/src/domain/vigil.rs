//! Whether the worker is still there: when it was last heard, what is done when there is reason to doubt it, and when its link is given up.
//!
//! ```text
//!   at peace ── doubt, 7 s of silence (3 s); restart (4 s) ──► must answer ── pong ──► at peace
//!                                                                  │ its time is over (a ping each second)
//!                                                                  └──► lost
//! ```
//!
//! Bytes decide, whatever the state of the ICE agent. Times are ages of the link. A message alone does not answer a doubt: it may have been
//! under way when the worker went.

use std::time::Duration;

/// Silence that is reason to doubt; the worker answers a ping each 5 s.
const SILENCE: Duration = Duration::from_secs(7);
/// How long the answer may take where there is reason to doubt.
const DOUBTED: Duration = Duration::from_secs(3);
/// The same once a restart of the path has begun: what was under way is repeated 1 or 3 s after the break.
const RESTARTED: Duration = Duration::from_secs(4);
/// Between two pings that must be answered.
const AGAIN: Duration = Duration::from_secs(1);
/// An address change that is noticed later is not worth a restart: what was under way would be repeated 7 s after it, or later still.
const EARLY: Duration = Duration::from_secs(2);

/// The signs of life of a worker, which was heard when its link was new.
#[derive(Debug, Default)]
pub(crate) struct Vigil {
    heard: Duration,
    must_answer: Option<MustAnswer>,
}

#[derive(Debug)]
struct MustAnswer {
    /// The first ping whose answer counts.
    first: u64,
    by: Duration,
    next_ping: Duration,
}

/// What is to be done now.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Due {
    /// Send a ping.
    Ping,
    /// The link is lost.
    Lost,
}

impl Vigil {
    /// The worker has sent something.
    pub(crate) fn heard(&mut self, now: Duration) {
        self.heard = now;
    }

    /// It has answered this ping.
    pub(crate) fn answered(&mut self, ping: u64) {
        self.must_answer.take_if(|must| ping >= must.first);
    }

    /// There is reason to think that it is gone; the next ping has this number.
    pub(crate) fn doubt(&mut self, now: Duration, next_ping: u64) {
        self.must_answer.get_or_insert(MustAnswer { first: next_ping, by: now + DOUBTED, next_ping: now });
    }

    /// The path's end here or there has moved, so long ago. Whether to restart it; otherwise the link is lost.
    pub(crate) fn moved(&mut self, now: Duration, ago: Duration, next_ping: u64) -> bool {
        let early = ago <= EARLY;
        if early {
            self.must_answer = Some(MustAnswer { first: next_ping, by: now + RESTARTED, next_ping: now });
        }
        early
    }

    /// When to ask [`Vigil::due`] again, unless something happens before.
    pub(crate) fn deadline(&self) -> Duration {
        self.must_answer.as_ref().map_or(self.heard + SILENCE, |must| must.by.min(must.next_ping))
    }

    /// What is due; the next ping has this number.
    pub(crate) fn due(&mut self, now: Duration, next_ping: u64) -> Option<Due> {
        if self.must_answer.is_none() && now >= self.heard + SILENCE {
            self.doubt(now, next_ping);
        }
        let must = self.must_answer.as_mut()?;
        if now >= must.by {
            return Some(Due::Lost);
        }
        (now >= must.next_ping).then(|| {
            must.next_ping = now + AGAIN;
            Due::Ping
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// Asks at each deadline; gives when pings were due, and when it was over.
    fn until_lost(vigil: &mut Vigil) -> (Vec<Duration>, Duration) {
        let mut pings = Vec::new();
        loop {
            let now = vigil.deadline();
            match vigil.due(now, 100) {
                Some(Due::Ping) => pings.push(now),
                Some(Due::Lost) => return (pings, now),
                None => panic!("nothing is due at a deadline of {vigil:?}"),
            }
        }
    }

    #[test]
    fn a_silent_worker_is_asked_after_7_s_and_lost_after_10() {
        let mut vigil = Vigil::default();
        vigil.heard(ms(4000));
        assert_eq!(vigil.due(ms(10_999), 3), None);
        assert_eq!(until_lost(&mut vigil), (vec![ms(11_000), ms(12_000), ms(13_000)], ms(14_000)));
    }

    #[test]
    fn a_doubted_worker_has_3_s_to_answer_what_is_asked_from_now_on() {
        for (answer, end) in [(None, 13_000), (Some(4), 13_000), (Some(5), 20_000), (Some(6), 20_000)] {
            let mut vigil = Vigil::default();
            vigil.heard(ms(10_000));
            vigil.doubt(ms(10_000), 5);
            vigil.doubt(ms(11_000), 6);
            assert_eq!(vigil.due(ms(10_000), 5), Some(Due::Ping));
            answer.into_iter().for_each(|ping| vigil.answered(ping));
            assert_eq!(until_lost(&mut vigil).1, ms(end), "{answer:?}");
        }
    }

    #[test]
    fn what_was_under_way_when_the_worker_went_is_no_answer() {
        let mut vigil = Vigil::default();
        vigil.doubt(ms(1000), 1);
        vigil.heard(ms(2000));
        assert_eq!(until_lost(&mut vigil).1, ms(4000));
    }

    #[test]
    fn a_restart_is_for_what_is_noticed_early_and_has_4_s() {
        for (ago, restart, end) in [(0, true, 14_000), (2000, true, 14_000), (2001, false, 20_000)] {
            let mut vigil = Vigil::default();
            vigil.heard(ms(10_000));
            assert_eq!(vigil.moved(ms(10_000), ms(ago), 1), restart);
            assert_eq!(until_lost(&mut vigil).1, ms(end));
        }
    }

    #[test]
    fn a_restart_gives_a_doubted_worker_more_time() {
        let mut vigil = Vigil::default();
        vigil.heard(ms(10_000));
        vigil.doubt(ms(10_000), 1);
        assert!(vigil.moved(ms(11_000), ms(500), 2));
        assert_eq!(vigil.due(ms(14_000), 3), Some(Due::Ping));
        vigil.heard(ms(14_500));
        vigil.answered(2);
        assert_eq!(until_lost(&mut vigil).1, ms(24_500));
    }
}
