//! Rooms in DynamoDB: the contract, the table, and what AWS deletes or does not.

use std::sync::Arc;

use dynoxide::{Database, storage_backend::ManualClock};
use serde_json::json;
use shared::domain::error::Code;
use signaling_server::{
    domain::grant::{Change, GRACE, MAX_PEERS},
    runtime::{
        aws,
        store::{
            Store, StoreError,
            dynamodb::{DynamoStore, Made, make_table},
        },
    },
};
use tokio::task::JoinSet;

use super::{
    contract::{Fixture, claim, contract_over, every_rule, id, room, who},
    emulators::{Dynoxide, Moto, settings},
    proxy::Proxy,
    tools::call,
};

contract_over!(contract, super::on_dynoxide);

async fn on_dynoxide() -> Fixture {
    let dynoxide = Dynoxide::start();
    Fixture { store: Arc::new(store(&dynoxide.endpoint, "rooms").await), sweeps: false, home: Box::new(dynoxide) }
}

#[tokio::test]
async fn moto_keeps_the_contract_too() {
    let moto = Moto::start();
    every_rule(async |rule| Fixture { store: Arc::new(store(&moto.endpoint, rule).await), sweeps: false, home: Box::new(()) }).await;
}

/// A store in a new table.
pub(crate) async fn store(endpoint: &str, table: &str) -> DynamoStore {
    make(endpoint, table).await.unwrap();
    open(endpoint, table).await.unwrap()
}

pub(crate) async fn open(endpoint: &str, table: &str) -> Result<DynamoStore, shared::domain::error::Failure> {
    DynamoStore::open(&aws::load(&settings(endpoint)).await?, table).await
}

async fn make(endpoint: &str, table: &str) -> Result<Made, shared::domain::error::Failure> {
    make_table(&aws::load(&settings(endpoint)).await?, table).await
}

/// How many items there are, whatever they mean.
async fn items(endpoint: &str) -> u64 {
    let (_, answer) = call(endpoint, "DynamoDB_20120810.Scan", json!({"TableName": "rooms", "Select": "COUNT"})).await.unwrap();
    answer["Count"].as_u64().unwrap_or_else(|| panic!("{answer}"))
}

#[tokio::test]
async fn what_aws_has_not_deleted_yet_is_gone_all_the_same() {
    let dynoxide = Dynoxide::start();
    let store = store(&dynoxide.endpoint, "rooms").await;
    store.create(1000, room("r", 1000, 100)).await.unwrap();
    store.change(1000, &id("r"), &who("a"), claim("p")).await.unwrap();
    assert_eq!(store.get(1100, &id("r")).await.unwrap(), None);
    assert!(store.change(1100, &id("r"), &who("a"), claim("p")).await.is_err());
    assert_eq!(items(&dynoxide.endpoint).await, 1, "it is still there");
    store.create(1100, room("r", 1100, 100)).await.unwrap();
    assert!(store.get(1100, &id("r")).await.unwrap().unwrap().peers.is_empty(), "nothing of the old room is in the new one");
    assert_eq!(items(&dynoxide.endpoint).await, 1);
}

#[tokio::test]
async fn aws_deletes_a_room_only_when_its_owner_can_no_longer_renew_it() {
    let clock = Arc::new(ManualClock::new(1000));
    let dynoxide = Dynoxide::with(Database::memory_with_clock(clock.clone()).unwrap());
    let store = store(&dynoxide.endpoint, "rooms").await;
    store.create(1000, room("r", 1000, 100)).await.unwrap();
    clock.set(1100 + GRACE - 1);
    assert_eq!(dynoxide.database.sweep_ttl().unwrap(), 0);
    store.change(1100 + GRACE - 1, &id("r"), &who("owner"), Change::Renew { ttl: None }).await.unwrap();
    clock.set(1200 + GRACE);
    assert_eq!(dynoxide.database.sweep_ttl().unwrap(), 0, "the renewal counts");
    clock.set(1201 + 2 * GRACE);
    assert_eq!(dynoxide.database.sweep_ttl().unwrap(), 1);
}

#[tokio::test]
async fn init_makes_what_is_missing_and_nothing_twice() {
    for endpoint in [&Dynoxide::start() as &dyn Home, &Moto::start()] {
        let endpoint = endpoint.endpoint();
        let missing = open(endpoint, "rooms").await.err().unwrap();
        assert!(missing.code == Code::InvalidRequest && missing.message.contains("webrtc-server init --dynamodb-table rooms"), "{missing}");
        assert_eq!(make(endpoint, "rooms").await.unwrap(), Made { table: true, ttl: true });
        assert_eq!(make(endpoint, "rooms").await.unwrap(), Made { table: false, ttl: false });
        open(endpoint, "rooms").await.unwrap();
        let other = json!({
            "TableName": "other", "BillingMode": "PAY_PER_REQUEST",
            "AttributeDefinitions": [{"AttributeName": "k", "AttributeType": "S"}], "KeySchema": [{"AttributeName": "k", "KeyType": "HASH"}],
        });
        assert_eq!(call(endpoint, "DynamoDB_20120810.CreateTable", other).await.unwrap().0, 200);
        for refused in [make(endpoint, "other").await.err(), open(endpoint, "other").await.err()] {
            let message = refused.unwrap().message;
            assert!(message.contains("another program's"), "{message}");
        }
    }
}

trait Home {
    fn endpoint(&self) -> &str;
}

impl Home for Dynoxide {
    fn endpoint(&self) -> &str {
        &self.endpoint
    }
}

impl Home for Moto {
    fn endpoint(&self) -> &str {
        &self.endpoint
    }
}

#[tokio::test]
async fn an_item_of_a_newer_server_is_left_alone() {
    let dynoxide = Dynoxide::start();
    let store = store(&dynoxide.endpoint, "rooms").await;
    let item = json!({"room_id": {"S": "r"}, "format": {"N": "2"}, "write_id": {"S": "w"}});
    let put = call(&dynoxide.endpoint, "DynamoDB_20120810.PutItem", json!({"TableName": "rooms", "Item": item})).await.unwrap();
    assert_eq!(put.0, 200);
    let refusals = [
        store.get(1000, &id("r")).await.unwrap_err(),
        store.change(1000, &id("r"), &who("owner"), claim("p")).await.unwrap_err(),
        store.delete(1000, &id("r"), &who("owner")).await.unwrap_err(),
    ];
    for refusal in refusals {
        assert!(matches!(&refusal, StoreError::Broken(why) if why.contains("format 2") && why.contains("update this server")), "{refusal}");
    }
    assert_eq!(store.create(1000, room("r", 1000, 100)).await, Err(StoreError::Exists));
}

#[tokio::test]
async fn two_servers_share_a_table_and_keep_its_rules() {
    let dynoxide = Dynoxide::start();
    let one = Arc::new(store(&dynoxide.endpoint, "rooms").await);
    let two = Arc::new(open(&dynoxide.endpoint, "rooms").await.unwrap());
    one.create(1000, room("r", 1000, 100)).await.unwrap();
    let mut tasks = JoinSet::new();
    for n in 0..MAX_PEERS + 10 {
        let store = if n % 2 == 0 { one.clone() } else { two.clone() };
        tasks.spawn(async move {
            loop {
                match store.change(1000, &id("r"), &who("a"), claim(&format!("p{n}"))).await {
                    Err(StoreError::Away(_)) => {}
                    answer => return answer.is_ok(),
                }
            }
        });
    }
    assert_eq!(tasks.join_all().await.into_iter().filter(|granted| *granted).count(), MAX_PEERS);
    let mut tasks = JoinSet::new();
    one.create(1000, room("s", 1000, 100)).await.unwrap();
    for n in 0..10 {
        let store = if n % 2 == 0 { one.clone() } else { two.clone() };
        tasks.spawn(async move { store.change(1000, &id("s"), &who(&format!("s{n}")), claim("p")).await.is_ok() });
    }
    assert_eq!(tasks.join_all().await.into_iter().filter(|granted| *granted).count(), 1);
    // What the one knew is stale when the other has deleted the room.
    one.get(1000, &id("s")).await.unwrap().unwrap();
    two.delete(1000, &id("s"), &who("owner")).await.unwrap();
    assert!(one.change(1000, &id("s"), &who("owner"), Change::Renew { ttl: None }).await.is_err());
}

#[tokio::test]
async fn a_peer_that_comes_back_costs_one_read_and_one_write() {
    const PEERS: usize = 60;
    let dynoxide = Dynoxide::start();
    make(&dynoxide.endpoint, "rooms").await.unwrap();
    let proxy = Proxy::before(&dynoxide.endpoint).await;
    let store = Arc::new(open(&proxy.endpoint, "rooms").await.unwrap());
    store.create(1000, room("r", 1000, 100)).await.unwrap();
    for round in 0..2 {
        proxy.forget();
        let mut tasks = JoinSet::new();
        for n in 0..PEERS {
            let store = store.clone();
            // As a registration does it: a look, then the claim.
            tasks.spawn(async move {
                store.get(1000, &id("r")).await.unwrap().unwrap();
                store.change(1000, &id("r"), &who("a"), claim(&format!("p{n}"))).await.unwrap();
            });
        }
        tasks.join_all().await;
        assert_eq!((proxy.count("GetItem"), proxy.count("PutItem"), proxy.count("")), (PEERS, PEERS, 2 * PEERS), "round {round}");
    }
}
