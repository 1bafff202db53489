//! Which of a running job's checkpoints to ask for, and when.
//!
//! * asked for is the newest of a step, never one that a newer one has followed; one at a time
//! * nothing is asked before the journal has been caught up with: its history is full of checkpoints that are no more
//! * one that could not be saved is not tried again; the next one is
//! * once the results are asked for, no checkpoint is

use std::collections::BTreeMap;

use shared::domain::{
    job::{Checkpoint, JobEvent},
    manifest::Hash,
};

/// More steps than any package has: what a worker says beyond them is not kept.
const MAX_STEPS: usize = 256;

/// What is known of a job's checkpoints. It survives links.
#[derive(Debug, Default)]
pub struct Checkpoints {
    wanted: bool,
    newest: BTreeMap<u32, Hash>,
    /// Of each step: what is here, or is not to be tried again.
    settled: BTreeMap<u32, Hash>,
    last_seq: u64,
    caught_up_at: Option<u64>,
    asked: Option<u32>,
}

impl Checkpoints {
    /// Nothing known yet.
    pub fn new(wanted: bool) -> Self {
        Checkpoints { wanted, ..Checkpoints::default() }
    }

    /// A new link: what was asked over the one before is not coming.
    pub fn handle_link(&mut self) {
        self.asked = None;
        self.caught_up_at = None;
    }

    /// Takes a journal entry.
    pub fn handle_entry(&mut self, seq: u64, event: &JobEvent) {
        self.last_seq = seq;
        match event {
            JobEvent::Checkpoint(checkpoint) if self.newest.len() < MAX_STEPS || self.newest.contains_key(&checkpoint.step) => {
                self.newest.insert(checkpoint.step, checkpoint.id);
            }
            JobEvent::JobEnded { .. } => self.handle_end(),
            _ => {}
        }
    }

    /// The journal's end was at this entry when the worker looked. Entries may come after this word of them.
    pub fn handle_caught_up(&mut self, seq: u64) {
        self.caught_up_at = Some(seq);
    }

    /// The job is over, or its results are asked for.
    pub fn handle_end(&mut self) {
        self.wanted = false;
        self.asked = None;
    }

    /// The step whose checkpoint is to be asked for now; it counts as asked.
    pub fn ask(&mut self) -> Option<u32> {
        let caught_up = self.caught_up_at.is_some_and(|seq| self.last_seq >= seq);
        if !self.wanted || !caught_up || self.asked.is_some() {
            return None;
        }
        self.asked = self.newest.iter().find(|(step, id)| self.settled.get(step) != Some(id)).map(|(step, _)| *step);
        self.asked
    }

    /// Takes the worker's answer. `true`: the transfer is wanted.
    pub fn handle_offer(&mut self, checkpoint: &Checkpoint) -> bool {
        if self.asked != Some(checkpoint.step) {
            return false;
        }
        // Newer than what the journal has said so far, perhaps.
        let known = self.settled.get(&checkpoint.step) == Some(&checkpoint.id);
        if known {
            self.give_up(checkpoint.step);
        }
        !known
    }

    /// There is none, after all: it is not asked for again.
    pub fn handle_refusal(&mut self) {
        if let Some(step) = self.asked {
            self.give_up(step);
        }
    }

    /// The transfer is over; whether it brought anything does not matter.
    pub fn handle_settled(&mut self, checkpoint: &Checkpoint) {
        self.settled.insert(checkpoint.step, checkpoint.id);
        self.asked = None;
    }

    fn give_up(&mut self, step: u32) {
        if let Some(newest) = self.newest.get(&step) {
            self.settled.insert(step, *newest);
        }
        self.asked = None;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use shared::domain::job::Outcome;

    use super::*;

    fn checkpoint(step: u32, version: u8) -> Checkpoint {
        Checkpoint { step, epoch: None, metric: None, bytes: 1, id: Hash([version; 32]) }
    }

    fn event(step: u32, version: u8) -> JobEvent {
        JobEvent::Checkpoint(checkpoint(step, version))
    }

    #[test]
    fn history_is_not_asked_for_and_the_newest_of_each_step_is() {
        let mut checkpoints = Checkpoints::new(true);
        // The word that this is all may come before the entries.
        checkpoints.handle_caught_up(4);
        for (seq, event) in [(1, event(0, 1)), (2, event(0, 2)), (3, event(1, 3))] {
            checkpoints.handle_entry(seq, &event);
            assert_eq!(checkpoints.ask(), None);
        }
        checkpoints.handle_entry(4, &event(1, 4));
        assert_eq!((checkpoints.ask(), checkpoints.ask()), (Some(0), None), "one at a time");
        assert!(checkpoints.handle_offer(&checkpoint(0, 2)));
        checkpoints.handle_settled(&checkpoint(0, 2));
        assert_eq!(checkpoints.ask(), Some(1));
    }

    #[test]
    fn a_newer_one_is_asked_for_when_the_one_under_way_is_here() {
        let mut checkpoints = Checkpoints::new(true);
        checkpoints.handle_caught_up(0);
        checkpoints.handle_entry(1, &event(0, 1));
        assert_eq!(checkpoints.ask(), Some(0));
        for version in 2..9 {
            checkpoints.handle_entry(u64::from(version), &event(0, version));
            assert_eq!(checkpoints.ask(), None);
        }
        checkpoints.handle_settled(&checkpoint(0, 1));
        assert_eq!(checkpoints.ask(), Some(0));
        // The worker had a newer one already; its journal entry comes later.
        assert!(checkpoints.handle_offer(&checkpoint(0, 9)));
        checkpoints.handle_settled(&checkpoint(0, 9));
        assert_eq!(checkpoints.ask(), Some(0), "8 is not known to be older than 9");
        assert!(!checkpoints.handle_offer(&checkpoint(0, 9)), "it is here");
        checkpoints.handle_entry(9, &event(0, 9));
        assert_eq!(checkpoints.ask(), Some(0));
        assert!(checkpoints.handle_offer(&checkpoint(0, 9)), "what is here from before is found on the disk");
        checkpoints.handle_settled(&checkpoint(0, 9));
        assert_eq!(checkpoints.ask(), None);
    }

    #[test]
    fn a_new_link_asks_again_and_a_refusal_does_not() {
        let mut checkpoints = Checkpoints::new(true);
        checkpoints.handle_entry(1, &event(0, 1));
        checkpoints.handle_caught_up(1);
        assert_eq!(checkpoints.ask(), Some(0));
        checkpoints.handle_link();
        assert_eq!(checkpoints.ask(), None, "not before the journal's end is known again");
        checkpoints.handle_caught_up(1);
        assert_eq!(checkpoints.ask(), Some(0));
        checkpoints.handle_refusal();
        assert_eq!(checkpoints.ask(), None);
        checkpoints.handle_entry(2, &event(0, 2));
        assert_eq!(checkpoints.ask(), Some(0));
    }

    #[test]
    fn nothing_is_asked_for_unless_it_is_wanted_or_once_the_job_is_over() {
        let over = JobEvent::JobEnded { outcome: Outcome::Failed, message: String::new() };
        for (wanted, last) in [(false, None), (true, Some(over))] {
            let mut checkpoints = Checkpoints::new(wanted);
            checkpoints.handle_caught_up(1);
            checkpoints.handle_entry(1, &event(0, 1));
            if let Some(last) = &last {
                checkpoints.handle_entry(2, last);
            }
            assert_eq!(checkpoints.ask(), None);
            assert!(!checkpoints.handle_offer(&checkpoint(0, 1)), "nobody asked");
        }
    }

    proptest! {
        /// In whatever order: never two at a time, and in the end everything that is newest was asked for.
        #[test]
        fn the_newest_arrives_in_the_end(steps in proptest::collection::vec((0..5u8, 0..3u32, any::<u8>()), 0..100)) {
            let mut checkpoints = Checkpoints::new(true);
            let (mut seq, mut asked) = (0, None);
            for (what, step, version) in steps {
                match what {
                    0 => { seq += 1; checkpoints.handle_entry(seq, &event(step, version)); }
                    1 => checkpoints.handle_caught_up(seq),
                    2 => { checkpoints.handle_link(); asked = None; }
                    3 => if let Some(step) = checkpoints.ask() { prop_assert!(asked.replace(step).is_none()); },
                    _ => if let Some(step) = asked.take() {
                        let newest = Checkpoint { id: checkpoints.newest[&step], ..checkpoint(step, 0) };
                        if checkpoints.handle_offer(&newest) { checkpoints.handle_settled(&newest); }
                    },
                }
            }
            checkpoints.handle_link();
            checkpoints.handle_caught_up(seq);
            for _ in 0..3 {
                if let Some(step) = checkpoints.ask() {
                    let newest = Checkpoint { id: checkpoints.newest[&step], ..checkpoint(step, 0) };
                    prop_assert!(checkpoints.handle_offer(&newest));
                    checkpoints.handle_settled(&newest);
                }
            }
            prop_assert_eq!(checkpoints.ask(), None);
            prop_assert_eq!(&checkpoints.newest, &checkpoints.settled);
        }
    }
}
