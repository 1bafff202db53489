//! The embedded stores keep the contract.

use std::sync::Arc;

use signaling_server::runtime::store::{MemoryStore, RedbStore, Store};

use super::contract::{Fixture, claim, contract_over, id, room, who};

contract_over!(memory, super::in_memory);
contract_over!(redb, super::in_a_file);

async fn in_memory() -> Fixture {
    Fixture { store: Arc::new(MemoryStore::new()), sweeps: true, home: Box::new(()) }
}

async fn in_a_file() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    Fixture { store: Arc::new(RedbStore::open(&dir.path().join("rooms.redb")).unwrap()), sweeps: true, home: Box::new(dir) }
}

#[tokio::test]
async fn redb_remembers_after_it_was_closed() {
    let Fixture { store, home, .. } = in_a_file().await;
    store.create(1000, room("r", 1000, 100)).await.unwrap();
    let claimed = store.change(1001, &id("r"), &who("a"), claim("p")).await.unwrap();
    drop(store);
    let dir = home.downcast_ref::<tempfile::TempDir>().unwrap();
    let reopened = RedbStore::open(&dir.path().join("rooms.redb")).unwrap();
    assert_eq!(reopened.get(1001, &id("r")).await.unwrap(), Some(claimed));
}
