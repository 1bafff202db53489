//! When to stop asking a service that does not answer, and when to ask again.
//!
//! ```text
//!   closed ──TRIP failures in a row──► open ──PAUSE──► probing (one call asks)
//!     ▲                                 ▲                │
//!     │                                 └── it failed ───┤
//!     └───────────── any success ────────────────────────┘
//! ```
//! Time is an argument: how long something has been running, whatever its beginning.

use std::time::Duration;

/// So many failures in a row open it. Each of them is a call that was tried several times already.
pub const TRIP: u32 = 3;
/// How long nobody asks after it has opened.
pub const PAUSE: Duration = Duration::from_secs(1);

/// Counts failures in a row and keeps callers away after too many.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Breaker(State);

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Closed { failures: u32 },
    Open { until: Duration },
    Probing,
}

/// How a call was let through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// As one of many.
    Normal,
    /// As the only one, to find out whether the service answers again.
    Probe,
}

/// What a report changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// Callers are kept away from now on.
    Opened,
    /// Callers are let through again.
    Closed,
}

impl Default for Breaker {
    fn default() -> Self {
        Breaker(State::Closed { failures: 0 })
    }
}

impl Breaker {
    /// Whether callers are kept away, but for one that probes.
    pub fn is_open(&self) -> bool {
        !matches!(self.0, State::Closed { .. })
    }

    /// Lets a call through, or not. Who is let through reports once: [`Breaker::succeeded`], [`Breaker::failed`] or [`Breaker::abandoned`].
    pub fn admit(&mut self, now: Duration) -> Option<Admission> {
        match self.0 {
            State::Closed { .. } => Some(Admission::Normal),
            State::Open { until } if until <= now => {
                self.0 = State::Probing;
                Some(Admission::Probe)
            }
            State::Open { .. } | State::Probing => None,
        }
    }

    /// The service answered: also a call that was let through long ago is proof that it does.
    pub fn succeeded(&mut self) -> Option<Turn> {
        let was_open = self.is_open();
        self.0 = State::Closed { failures: 0 };
        was_open.then_some(Turn::Closed)
    }

    /// The service did not answer. Calls from before it opened prolong nothing.
    pub fn failed(&mut self, admission: Admission, now: Duration) -> Option<Turn> {
        match (&mut self.0, admission) {
            (State::Closed { failures }, _) => {
                *failures += 1;
                (*failures >= TRIP).then(|| {
                    self.0 = State::Open { until: now.saturating_add(PAUSE) };
                    Turn::Opened
                })
            }
            (State::Probing, Admission::Probe) => {
                self.0 = State::Open { until: now.saturating_add(PAUSE) };
                None
            }
            (State::Open { .. } | State::Probing, _) => None,
        }
    }

    /// The caller went away before there was an answer. A probe that nobody waited for is no reason to let the next one in sooner.
    pub fn abandoned(&mut self, admission: Admission, now: Duration) {
        if self.0 == State::Probing && admission == Admission::Probe {
            self.0 = State::Open { until: now.saturating_add(PAUSE) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: Duration = Duration::from_secs(100);

    fn open() -> Breaker {
        let mut breaker = Breaker::default();
        for n in 1..=TRIP {
            assert_eq!(breaker.admit(NOW), Some(Admission::Normal));
            assert_eq!(breaker.failed(Admission::Normal, NOW), (n == TRIP).then_some(Turn::Opened));
        }
        breaker
    }

    #[test]
    fn a_success_in_between_starts_the_count_anew() {
        let mut breaker = Breaker::default();
        for _ in 0..10 {
            for _ in 1..TRIP {
                assert_eq!(breaker.failed(Admission::Normal, NOW), None);
            }
            assert_eq!(breaker.succeeded(), None);
        }
        assert!(!breaker.is_open());
    }

    #[test]
    fn after_the_pause_one_call_probes_and_its_end_decides() {
        let mut breaker = open();
        assert_eq!(breaker.admit(NOW + PAUSE - Duration::from_nanos(1)), None);
        let later = NOW + PAUSE;
        assert_eq!(breaker.admit(later), Some(Admission::Probe));
        assert_eq!(breaker.admit(later + PAUSE), None, "one at a time");
        assert_eq!(breaker.failed(Admission::Probe, later), None, "it is still open: no news");
        assert_eq!(breaker.admit(later), None);
        assert_eq!(breaker.admit(later + PAUSE), Some(Admission::Probe));
        assert_eq!(breaker.succeeded(), Some(Turn::Closed));
        assert_eq!(breaker.admit(later), Some(Admission::Normal));
    }

    #[test]
    fn a_probe_that_was_given_up_makes_way_for_the_next() {
        let mut breaker = open();
        assert_eq!(breaker.admit(NOW + PAUSE), Some(Admission::Probe));
        breaker.abandoned(Admission::Normal, NOW + PAUSE);
        assert_eq!(breaker.admit(NOW + 3 * PAUSE), None, "it is still under way");
        breaker.abandoned(Admission::Probe, NOW + 3 * PAUSE);
        assert_eq!(breaker.admit(NOW + 3 * PAUSE), None, "after a pause");
        assert_eq!(breaker.admit(NOW + 4 * PAUSE), Some(Admission::Probe));
    }

    #[test]
    fn calls_from_before_it_opened_prolong_nothing_and_may_close_it() {
        let mut breaker = open();
        assert_eq!(breaker.failed(Admission::Normal, NOW + PAUSE), None);
        assert_eq!(breaker.admit(NOW + PAUSE), Some(Admission::Probe));
        assert_eq!(breaker.failed(Admission::Normal, NOW + PAUSE), None);
        assert_eq!(breaker.admit(NOW + PAUSE), None, "the probe is still under way");
        assert_eq!(breaker.succeeded(), Some(Turn::Closed));
    }

    #[derive(Debug, Clone)]
    enum Step {
        Call,
        Report { which: usize, works: Option<bool> },
        Wait(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            3 => Just(Step::Call),
            4 => (any::<usize>(), prop_oneof![3 => Just(Some(false)), 1 => Just(Some(true)), 1 => Just(None)])
                .prop_map(|(which, works)| Step::Report { which, works }),
            2 => (0..2000_u64).prop_map(Step::Wait),
        ];
        proptest::collection::vec(step, 0..200)
    }

    proptest! {
        /// Whatever happens in whatever order: at most one call probes, nobody is let through within the pause, and once everybody has
        /// reported somebody is let through again after it.
        #[test]
        fn it_never_lets_a_crowd_through_and_never_stays_shut(steps in steps()) {
            let (mut breaker, mut now, mut calls) = (Breaker::default(), NOW, Vec::new());
            let mut opened_at = None;
            for step in steps {
                match step {
                    Step::Call => {
                        let admitted = breaker.admit(now);
                        if let Some(Admission::Probe) = admitted {
                            prop_assert!(!calls.contains(&Admission::Probe));
                            prop_assert!(opened_at.is_none_or(|at| now >= at + PAUSE));
                        }
                        calls.extend(admitted);
                    }
                    Step::Report { which, works } if !calls.is_empty() => {
                        let call = calls.swap_remove(which % calls.len());
                        match works {
                            Some(true) => {
                                breaker.succeeded();
                                prop_assert!(!breaker.is_open());
                                // A probe that is still under way has nothing to decide any more.
                                calls.iter_mut().for_each(|call| *call = Admission::Normal);
                                opened_at = None;
                            }
                            Some(false) => {
                                let turn = breaker.failed(call, now);
                                if turn == Some(Turn::Opened) || call == Admission::Probe {
                                    opened_at = Some(now);
                                }
                            }
                            None => {
                                breaker.abandoned(call, now);
                                if call == Admission::Probe {
                                    opened_at = Some(now);
                                }
                            }
                        }
                    }
                    Step::Report { .. } => {}
                    Step::Wait(millis) => now += Duration::from_millis(millis),
                }
            }
            for call in calls {
                breaker.abandoned(call, now);
            }
            prop_assert!(breaker.admit(now + PAUSE).is_some());
        }
    }
}
