//! Rooms that outlive the process, behind one small trait.
//!
//! The rules are [`Room::apply`]'s. A store only has to read, apply and write *atomically*, and to hide what has expired. One contract
//! suite (`tests/server/contract.rs`) runs over every implementation.

#[cfg(feature = "aws")]
pub mod dynamodb;
mod memory;
mod redb;

use futures_util::future::BoxFuture;
use shared::domain::{
    error::{Code, Failure},
    id::RoomId,
};

pub use self::{memory::MemoryStore, redb::RedbStore};
use crate::domain::grant::{Change, Identity, Refusal, Room};

/// Why a store did not do something.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The rules say no.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// A room with this id exists and has not expired.
    #[error("a room with this id exists")]
    Exists,
    /// The store cannot be asked now, as the failure says; whoever noticed first has told the log.
    #[error(transparent)]
    Away(Failure),
    /// The store does not work now; details for the log, not for the caller.
    #[error("{0}")]
    Broken(String),
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Refused(refusal) => refusal.into(),
            StoreError::Exists => Failure::new(Code::Unavailable, "no free room id was found; try again"),
            StoreError::Away(failure) => failure,
            StoreError::Broken(details) => {
                tracing::error!(details, "the room store does not work");
                Failure::new(Code::Unavailable, "the room store does not work now; try again later")
            }
        }
    }
}

/// What a store's methods return.
pub type Answer<'a, T> = BoxFuture<'a, Result<T, StoreError>>;

/// Where rooms are kept. `now` is Unix seconds; a room that has expired looks like none to [`Store::get`] and makes way for
/// [`Store::create`], and still takes its owner's [`Store::change`] until it is gone.
pub trait Store: Send + Sync {
    /// Stores a new room, unless one with its id exists that has not expired.
    fn create(&self, now: u64, room: Room) -> Answer<'_, ()>;

    /// The room, unless it has expired.
    fn get(&self, now: u64, id: &RoomId) -> Answer<'_, Option<Room>>;

    /// Applies one change atomically and returns the room as it then is. A refused change leaves it as it was.
    fn change(&self, now: u64, id: &RoomId, caller: &Identity, change: Change) -> Answer<'_, Room>;

    /// Deletes the room, for its owner; returns what it was.
    fn delete(&self, now: u64, id: &RoomId, caller: &Identity) -> Answer<'_, Room>;

    /// Removes rooms that are gone; returns what they were. One call may leave some for the next.
    fn sweep(&self, now: u64) -> Answer<'_, Vec<Room>>;
}
