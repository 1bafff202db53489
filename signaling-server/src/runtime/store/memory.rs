//! Rooms in memory: for tests, and for servers that need not remember.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use shared::domain::id::RoomId;

use super::{Answer, Store, StoreError};
use crate::domain::grant::{Change, Identity, Refusal, Room};

/// Rooms in a map.
#[derive(Default)]
pub struct MemoryStore(Mutex<HashMap<RoomId, Room>>);

impl MemoryStore {
    /// No rooms.
    pub fn new() -> Self {
        Self::default()
    }

    fn rooms(&self) -> MutexGuard<'_, HashMap<RoomId, Room>> {
        // Each change replaces a whole room, so that a panic elsewhere leaves nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn create_now(&self, now: u64, room: Room) -> Result<(), StoreError> {
        let mut rooms = self.rooms();
        if rooms.get(&room.id).is_some_and(|old| !old.is_expired(now)) {
            return Err(StoreError::Exists);
        }
        rooms.insert(room.id.clone(), room);
        Ok(())
    }

    fn change_now(&self, now: u64, id: &RoomId, caller: &Identity, change: &Change) -> Result<Room, StoreError> {
        let mut rooms = self.rooms();
        let stored = rooms.get_mut(id).ok_or(Refusal::NoRoom)?;
        let mut room = stored.clone();
        room.apply(now, caller, change)?;
        stored.clone_from(&room);
        Ok(room)
    }

    fn delete_now(&self, now: u64, id: &RoomId, caller: &Identity) -> Result<Room, StoreError> {
        let mut rooms = self.rooms();
        rooms.get(id).ok_or(Refusal::NoRoom)?.check_owner(now, caller)?;
        Ok(rooms.remove(id).ok_or(Refusal::NoRoom)?)
    }

    fn sweep_now(&self, now: u64) -> Vec<Room> {
        self.rooms().extract_if(|_, room| room.is_gone(now)).map(|(_, room)| room).collect()
    }
}

fn ready<'a, T: Send + 'a>(result: Result<T, StoreError>) -> Answer<'a, T> {
    Box::pin(std::future::ready(result))
}

impl Store for MemoryStore {
    fn create(&self, now: u64, room: Room) -> Answer<'_, ()> {
        ready(self.create_now(now, room))
    }

    fn get(&self, now: u64, id: &RoomId) -> Answer<'_, Option<Room>> {
        ready(Ok(self.rooms().get(id).filter(|room| !room.is_expired(now)).cloned()))
    }

    fn change(&self, now: u64, id: &RoomId, caller: &Identity, change: Change) -> Answer<'_, Room> {
        ready(self.change_now(now, id, caller, &change))
    }

    fn delete(&self, now: u64, id: &RoomId, caller: &Identity) -> Answer<'_, Room> {
        ready(self.delete_now(now, id, caller))
    }

    fn sweep(&self, now: u64) -> Answer<'_, Vec<Room>> {
        ready(Ok(self.sweep_now(now)))
    }
}
