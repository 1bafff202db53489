//! Rooms in one redb file: durable when a call returns, and safe against being killed. The only file that names `redb`.
//!
//! * `rooms`: id → the room as JSON
//! * `expiry`: (`expires_at`, id), so that a sweep reads only what has expired

use std::{path::Path, sync::Arc};

use ::redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, Table, TableDefinition, WriteTransaction};
use shared::domain::{
    error::{Code, Failure},
    id::RoomId,
};

use super::{Answer, Store, StoreError};
use crate::domain::grant::{Change, GRACE, Identity, Refusal, Room};

const ROOMS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("rooms");
const EXPIRY: TableDefinition<'_, (u64, &str), ()> = TableDefinition::new("expiry");
/// Rooms are few and small.
const CACHE_BYTES: usize = 1024 * 1024;
/// How many rooms one sweep removes at most, so that it never blocks the writer for long.
const SWEEP_BATCH: usize = 1000;

/// A redb file.
pub struct RedbStore(Arc<Database>);

impl RedbStore {
    /// Opens the file, or creates it; repairs it after a crash.
    ///
    /// # Errors
    /// [`Code::BadFile`] when it cannot be opened, or another process has it open.
    pub fn open(path: &Path) -> Result<Self, Failure> {
        let fail = |why: String| Failure::new(Code::BadFile, format!("cannot open the room store {}: {why}", path.display()));
        let database = Database::builder().set_cache_size(CACHE_BYTES).create(path).map_err(|error| match error {
            DatabaseError::DatabaseAlreadyOpen => fail("another server uses it; stop that one, or choose another --data-dir".to_owned()),
            error => fail(error.to_string()),
        })?;
        let create_tables = || -> Result<(), ::redb::Error> {
            let transaction = database.begin_write()?;
            transaction.open_table(ROOMS)?;
            transaction.open_table(EXPIRY)?;
            Ok(transaction.commit()?)
        };
        create_tables().map_err(|error| fail(error.to_string()))?;
        Ok(RedbStore(Arc::new(database)))
    }

    /// redb blocks (it waits for the disk and for the one writer), so that it runs on the blocking pool.
    fn on_disk<T: Send + 'static>(&self, work: impl FnOnce(&Database) -> Result<T, StoreError> + Send + 'static) -> Answer<'_, T> {
        let database = self.0.clone();
        Box::pin(async move { tokio::task::spawn_blocking(move || work(&database)).await.map_err(broken)? })
    }
}

fn broken(error: impl std::fmt::Display) -> StoreError {
    StoreError::Broken(error.to_string())
}

fn decode(bytes: &[u8]) -> Result<Room, StoreError> {
    serde_json::from_slice(bytes).map_err(|error| StoreError::Broken(format!("a stored room cannot be read: {error}")))
}

/// Both tables within one transaction; dropped without [`Writer::commit`] nothing of it happened.
struct Writer<'t> {
    rooms: Table<'t, &'static str, &'static [u8]>,
    expiry: Table<'t, (u64, &'static str), ()>,
}

impl<'t> Writer<'t> {
    fn new(transaction: &'t WriteTransaction) -> Result<Self, StoreError> {
        Ok(Writer { rooms: transaction.open_table(ROOMS).map_err(broken)?, expiry: transaction.open_table(EXPIRY).map_err(broken)? })
    }

    fn read(&self, id: &RoomId) -> Result<Option<Room>, StoreError> {
        self.rooms.get(id.as_str()).map_err(broken)?.map(|bytes| decode(bytes.value())).transpose()
    }

    fn remove(&mut self, room: &Room) -> Result<(), StoreError> {
        self.rooms.remove(room.id.as_str()).map_err(broken)?;
        self.expiry.remove((room.expires_at, room.id.as_str())).map_err(broken)?;
        Ok(())
    }

    fn replace(&mut self, old: Option<&Room>, new: &Room) -> Result<(), StoreError> {
        if let Some(old) = old {
            self.remove(old)?;
        }
        let bytes = serde_json::to_vec(new).map_err(broken)?;
        self.rooms.insert(new.id.as_str(), bytes.as_slice()).map_err(broken)?;
        self.expiry.insert((new.expires_at, new.id.as_str()), ()).map_err(broken)?;
        Ok(())
    }
}

/// Runs `work` in a write transaction; commits durably when it succeeds, leaves everything as it was when not.
fn write<T>(database: &Database, work: impl FnOnce(&mut Writer<'_>) -> Result<T, StoreError>) -> Result<T, StoreError> {
    let transaction = database.begin_write().map_err(broken)?;
    let result = work(&mut Writer::new(&transaction)?);
    match result {
        Ok(_) => transaction.commit().map_err(broken)?,
        Err(_) => transaction.abort().map_err(broken)?,
    }
    result
}

impl Store for RedbStore {
    fn create(&self, now: u64, room: Room) -> Answer<'_, ()> {
        self.on_disk(move |database| {
            write(database, |writer| {
                let old = writer.read(&room.id)?;
                if old.as_ref().is_some_and(|old| !old.is_expired(now)) {
                    return Err(StoreError::Exists);
                }
                writer.replace(old.as_ref(), &room)
            })
        })
    }

    fn get(&self, now: u64, id: &RoomId) -> Answer<'_, Option<Room>> {
        let id = id.clone();
        self.on_disk(move |database| {
            let rooms = database.begin_read().map_err(broken)?.open_table(ROOMS).map_err(broken)?;
            let room = rooms.get(id.as_str()).map_err(broken)?.map(|bytes| decode(bytes.value())).transpose()?;
            Ok(room.filter(|room| !room.is_expired(now)))
        })
    }

    fn change(&self, now: u64, id: &RoomId, caller: &Identity, change: Change) -> Answer<'_, Room> {
        let (id, caller) = (id.clone(), caller.clone());
        self.on_disk(move |database| {
            write(database, |writer| {
                let old = writer.read(&id)?.ok_or(Refusal::NoRoom)?;
                let mut room = old.clone();
                room.apply(now, &caller, &change)?;
                writer.replace(Some(&old), &room)?;
                Ok(room)
            })
        })
    }

    fn delete(&self, now: u64, id: &RoomId, caller: &Identity) -> Answer<'_, Room> {
        let (id, caller) = (id.clone(), caller.clone());
        self.on_disk(move |database| {
            write(database, |writer| {
                let room = writer.read(&id)?.ok_or(Refusal::NoRoom)?;
                room.check_owner(now, &caller)?;
                writer.remove(&room)?;
                Ok(room)
            })
        })
    }

    fn sweep(&self, now: u64) -> Answer<'_, Vec<Room>> {
        self.on_disk(move |database| {
            let gone_before = now.saturating_sub(GRACE).saturating_add(1);
            if now < GRACE {
                return Ok(Vec::new());
            }
            write(database, |writer| {
                let mut gone = Vec::new();
                for entry in writer.expiry.range(..(gone_before, "")).map_err(broken)?.take(SWEEP_BATCH) {
                    let (key, _) = entry.map_err(broken)?;
                    let (expires_at, id) = key.value();
                    gone.push((expires_at, id.to_owned()));
                }
                let mut swept = Vec::with_capacity(gone.len());
                for (expires_at, id) in &gone {
                    // One that cannot be read any more goes, too.
                    let removed = writer.rooms.remove(id.as_str()).map_err(broken)?;
                    swept.extend(removed.and_then(|bytes| decode(bytes.value()).ok()));
                    writer.expiry.remove((*expires_at, id.as_str())).map_err(broken)?;
                }
                Ok(swept)
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_process_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rooms.redb");
        let _first = RedbStore::open(&path).unwrap();
        let failure = RedbStore::open(&path).err().unwrap();
        assert!(failure.message.contains("another server uses it"), "{}", failure.message);
    }

    #[test]
    fn a_file_that_is_no_store_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rooms.redb");
        std::fs::write(&path, "my diary".repeat(1000)).unwrap();
        assert_eq!(RedbStore::open(&path).err().unwrap().code, Code::BadFile);
        assert!(std::fs::read_to_string(&path).unwrap().starts_with("my diary"));
    }
}
