//! Who changes a room next, within this process, and what the room was like when it was last seen.
//!
//! Neither is needed for correctness, since every write has a condition: a place that was forgotten costs a call, a guess that is stale too.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use shared::domain::id::RoomId;

use super::item::Stored;

/// How many rooms one generation remembers; there are two.
const GENERATION: usize = 1024;

/// One room's place.
#[derive(Default)]
pub(super) struct Slot {
    /// Held while the room is changed.
    pub(super) turn: tokio::sync::Mutex<()>,
    last: Mutex<Option<Stored>>,
}

impl Slot {
    /// What the room was like when it was last seen.
    pub(super) fn guess(&self) -> Option<Stored> {
        self.last().clone()
    }

    /// What was read without a turn, and may be older than what is known.
    pub(super) fn offer(&self, seen: Stored) {
        let mut last = self.last();
        if last.as_ref().is_none_or(|last| last.revision <= seen.revision) {
            *last = Some(seen);
        }
    }

    /// What is known for certain; None when nothing is.
    pub(super) fn set(&self, seen: Option<Stored>) {
        *self.last() = seen;
    }

    fn last(&self) -> std::sync::MutexGuard<'_, Option<Stored>> {
        // Whole values are exchanged under it.
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The places of the rooms that were lately asked for.
#[derive(Default)]
pub(super) struct Turns(Mutex<Generations>);

#[derive(Default)]
struct Generations {
    young: HashMap<RoomId, Arc<Slot>>,
    old: HashMap<RoomId, Arc<Slot>>,
}

impl Turns {
    /// The room's place. When a generation is full it grows old, and what was old is forgotten unless it was asked for again.
    pub(super) fn slot(&self, id: &RoomId) -> Arc<Slot> {
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = places.young.get(id) {
            return slot.clone();
        }
        if places.young.len() >= GENERATION {
            places.old = std::mem::take(&mut places.young);
        }
        let slot = places.old.remove(id).unwrap_or_default();
        places.young.insert(id.clone(), slot.clone());
        slot
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::grant::{Identity, Room, TokenHash};

    fn stored(revision: u64) -> Stored {
        let owner = Identity { subject: "owner".into(), key: None };
        let room = Room::new("r".parse().unwrap(), owner, TokenHash::of("t"), 1000, 100);
        Stored { revision, ..Stored::first(room, "w".to_owned()) }
    }

    #[test]
    fn an_older_read_does_not_replace_a_newer_one() {
        let slot = Slot::default();
        for (offered, kept) in [(2, 2), (1, 2), (3, 3)] {
            slot.offer(stored(offered));
            assert_eq!(slot.guess().unwrap().revision, kept);
        }
        slot.set(Some(stored(1)));
        assert_eq!(slot.guess().unwrap().revision, 1, "what is certain counts");
    }

    #[test]
    fn who_is_asked_for_stays_and_the_rest_is_bounded() {
        let turns = Turns::default();
        let often: RoomId = "often".parse().unwrap();
        let first = turns.slot(&often);
        for n in 0..5 * GENERATION {
            turns.slot(&format!("r{n}").parse().unwrap());
            if n % 100 == 0 {
                assert!(Arc::ptr_eq(&turns.slot(&often), &first));
            }
        }
        let places = turns.0.lock().unwrap();
        assert!(places.young.len() + places.old.len() <= 2 * GENERATION);
    }
}
