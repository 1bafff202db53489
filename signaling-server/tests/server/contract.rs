//! What every store of rooms must do. `contract_over!` makes a test of each rule over one store.

use std::{any::Any, sync::Arc};

use shared::domain::id::RoomId;
use signaling_server::{
    domain::grant::{Change, GRACE, Identity, MAX_PEERS, Refusal, Room, TokenHash},
    runtime::store::{Store, StoreError},
};

/// A store, and what it lives in.
pub(crate) struct Fixture {
    pub(crate) store: Arc<dyn Store>,
    /// Whether it removes what is gone itself, or leaves that to somebody else.
    pub(crate) sweeps: bool,
    /// Ended after the store.
    #[allow(dead_code, reason = "most only keep it")]
    pub(crate) home: Box<dyn Any + Send + Sync>,
}

macro_rules! rules {
    ($($name:ident),* $(,)?) => {
        /// One module of tests over the stores that the function makes.
        macro_rules! contract_over {
            ($module:ident, $fixture:path) => {
                mod $module { $(#[tokio::test] async fn $name() { crate::contract::$name(&$fixture().await).await; })* }
            };
        }
        pub(crate) use contract_over;

        /// Every rule, one after the other, each over a store of its own: where it takes long to make the first.
        #[allow(dead_code, reason = "for stores in other processes only")]
        pub(crate) async fn every_rule(mut fixture: impl AsyncFnMut(&str) -> Fixture) {
            $(println!("{}", stringify!($name)); $name(&fixture(stringify!($name)).await).await;)*
        }
    };
}

rules!(
    a_created_room_is_found_until_it_expires,
    a_room_id_is_free_again_once_its_room_has_expired,
    only_the_owner_renews_and_also_shortly_after_expiry,
    only_the_owner_deletes,
    a_claim_is_idempotent_and_refused_to_others,
    a_released_peer_id_is_free_once,
    a_refused_change_leaves_the_room_as_it_was,
    concurrent_claims_of_one_peer_id_have_one_winner,
    concurrent_claims_stop_at_the_cap,
    members_come_back_to_a_full_room_and_nobody_else,
    a_sweep_takes_what_is_gone_and_nothing_else,
    a_renewed_room_is_not_swept_by_its_old_expiry,
);

pub(crate) fn who(subject: &str) -> Identity {
    Identity { subject: subject.into(), key: None }
}

pub(crate) fn id(text: &str) -> RoomId {
    text.parse().unwrap()
}

pub(crate) fn room(name: &str, now: u64, ttl: u64) -> Room {
    Room::new(id(name), who("owner"), TokenHash::of("t"), now, ttl)
}

pub(crate) fn claim(peer: &str) -> Change {
    Change::Claim { peer: peer.parse().unwrap() }
}

pub(crate) async fn a_created_room_is_found_until_it_expires(Fixture { store, .. }: &Fixture) {
    let made = room("r", 1000, 100);
    store.create(1000, made.clone()).await.unwrap();
    assert_eq!(store.get(1099, &id("r")).await.unwrap(), Some(made));
    assert_eq!(store.get(1100, &id("r")).await.unwrap(), None);
    assert_eq!(store.get(1000, &id("s")).await.unwrap(), None);
}

pub(crate) async fn a_room_id_is_free_again_once_its_room_has_expired(Fixture { store, .. }: &Fixture) {
    store.create(1000, room("r", 1000, 100)).await.unwrap();
    assert_eq!(store.create(1099, room("r", 1099, 100)).await, Err(StoreError::Exists));
    store.create(1100, room("r", 1100, 50)).await.unwrap();
    assert_eq!(store.get(1100, &id("r")).await.unwrap().unwrap().expires_at, 1150);
    assert_eq!(store.sweep(1100 + GRACE).await.unwrap(), [], "the first room's expiry is forgotten");
}

pub(crate) async fn only_the_owner_renews_and_also_shortly_after_expiry(Fixture { store, .. }: &Fixture) {
    let renew = Change::Renew { ttl: None };
    store.create(1000, room("r", 1000, 100)).await.unwrap();
    store.change(1000, &id("r"), &who("member"), claim("p")).await.unwrap();
    assert_eq!(store.change(1050, &id("r"), &who("member"), renew.clone()).await, Err(Refusal::NotOwner.into()));
    assert_eq!(store.change(1050, &id("r"), &who("stranger"), renew.clone()).await, Err(Refusal::NoRoom.into()));
    assert_eq!(store.change(1500, &id("r"), &who("owner"), renew.clone()).await.unwrap().expires_at, 1600);
    assert!(store.get(1599, &id("r")).await.unwrap().is_some());
    assert_eq!(store.change(1600 + GRACE, &id("r"), &who("owner"), renew.clone()).await, Err(Refusal::NoRoom.into()));
    assert_eq!(store.change(1000, &id("s"), &who("owner"), renew).await, Err(Refusal::NoRoom.into()));
}

pub(crate) async fn only_the_owner_deletes(Fixture { store, .. }: &Fixture) {
    store.create(1000, room("r", 1000, 100)).await.unwrap();
    let stored = store.change(1000, &id("r"), &who("member"), claim("p")).await.unwrap();
    assert_eq!(store.delete(1000, &id("r"), &who("member")).await, Err(Refusal::NotOwner.into()));
    assert_eq!(store.delete(1000, &id("r"), &who("stranger")).await, Err(Refusal::NoRoom.into()));
    assert_eq!(store.delete(1000, &id("r"), &who("owner")).await.unwrap(), stored);
    assert_eq!(store.get(1000, &id("r")).await.unwrap(), None);
    assert_eq!(store.delete(1000, &id("r"), &who("owner")).await, Err(Refusal::NoRoom.into()));
}

pub(crate) async fn a_claim_is_idempotent_and_refused_to_others(Fixture { store, .. }: &Fixture) {
    store.create(1000, room("r", 1000, 100)).await.unwrap();
    for now in [1000, 1001] {
        let claimed = store.change(now, &id("r"), &who("a"), claim("p")).await.unwrap();
        assert_eq!((claimed.peers.len(), claimed.expires_at), (1, 1100));
    }
    assert_eq!(store.change(1002, &id("r"), &who("b"), claim("p")).await, Err(Refusal::PeerTaken.into()));
    assert_eq!(store.change(1100, &id("r"), &who("a"), claim("p")).await, Err(Refusal::NoRoom.into()));
}

pub(crate) async fn a_refused_change_leaves_the_room_as_it_was(Fixture { store, .. }: &Fixture) {
    store.create(1000, room("r", 1000, 100)).await.unwrap();
    store.change(1000, &id("r"), &who("a"), claim("p")).await.unwrap();
    let before = store.get(1000, &id("r")).await.unwrap();
    let release = Change::Release { peer: "p".parse().unwrap() };
    store.change(1001, &id("r"), &who("b"), release).await.unwrap_err();
    store.change(1001, &id("r"), &who("b"), Change::Renew { ttl: Some(9999) }).await.unwrap_err();
    assert_eq!(store.get(1000, &id("r")).await.unwrap(), before);
}

/// Runs the claims at once and says how many were granted.
async fn claim_at_once(store: &Arc<dyn Store>, claims: impl Iterator<Item = (Identity, Change)>) -> usize {
    let mut tasks = tokio::task::JoinSet::new();
    for (caller, change) in claims {
        let store = store.clone();
        tasks.spawn(async move {
            loop {
                match store.change(1000, &id("r"), &caller, change.clone()).await {
                    // A crowd may be told to come again.
                    Err(StoreError::Away(_)) => {}
                    answer => return answer.is_ok(),
                }
            }
        });
    }
    tasks.join_all().await.into_iter().filter(|granted| *granted).count()
}

pub(crate) async fn concurrent_claims_of_one_peer_id_have_one_winner(Fixture { store, .. }: &Fixture) {
    store.create(1000, room("r", 1000, 100)).await.unwrap();
    let claims = (0..20).map(|n| (who(&format!("s{n}")), claim("p")));
    assert_eq!(claim_at_once(store, claims).await, 1);
}

pub(crate) async fn concurrent_claims_stop_at_the_cap(Fixture { store, .. }: &Fixture) {
    store.create(1000, room("r", 1000, 100)).await.unwrap();
    let claims = (0..MAX_PEERS + 20).map(|n| (who("a"), claim(&format!("p{n}"))));
    assert_eq!(claim_at_once(store, claims).await, MAX_PEERS);
    assert_eq!(store.get(1000, &id("r")).await.unwrap().unwrap().peers.len(), MAX_PEERS);
}

pub(crate) async fn a_sweep_takes_what_is_gone_and_nothing_else(Fixture { store, sweeps, .. }: &Fixture) {
    store.create(1000, room("short", 1000, 100)).await.unwrap();
    store.create(1000, room("long", 1000, 500)).await.unwrap();
    let ours = |rooms: Vec<Room>| if *sweeps { rooms } else { Vec::new() };
    assert_eq!(store.sweep(1099 + GRACE).await.unwrap(), []);
    assert_eq!(store.sweep(1100 + GRACE).await.unwrap(), ours(vec![room("short", 1000, 100)]));
    assert_eq!(store.sweep(1100 + GRACE).await.unwrap(), []);
    store.change(1000, &id("long"), &who("owner"), Change::Renew { ttl: None }).await.unwrap();
    // Swept or not: it is gone.
    let late = store.change(1100 + GRACE, &id("short"), &who("owner"), Change::Renew { ttl: None }).await;
    assert_eq!(late, Err(Refusal::NoRoom.into()));
}

pub(crate) async fn a_renewed_room_is_not_swept_by_its_old_expiry(Fixture { store, sweeps, .. }: &Fixture) {
    store.create(1000, room("r", 1000, 100)).await.unwrap();
    store.change(1050, &id("r"), &who("owner"), Change::Renew { ttl: Some(1000) }).await.unwrap();
    assert_eq!(store.sweep(1100 + GRACE).await.unwrap(), []);
    assert_eq!(store.sweep(2050 + GRACE).await.unwrap().len(), usize::from(*sweeps));
    assert_eq!(store.get(2050 + GRACE, &id("r")).await.unwrap(), None);
}

pub(crate) async fn a_released_peer_id_is_free_once(Fixture { store, .. }: &Fixture) {
    let release = Change::Release { peer: "p".parse().unwrap() };
    store.create(1000, room("r", 1000, 100)).await.unwrap();
    store.change(1000, &id("r"), &who("a"), claim("p")).await.unwrap();
    assert_eq!(store.change(1001, &id("r"), &who("a"), release.clone()).await.unwrap().peers.len(), 0);
    assert_eq!(store.change(1001, &id("r"), &who("owner"), release).await, Err(Refusal::NoPeer.into()));
    store.change(1002, &id("r"), &who("b"), claim("p")).await.unwrap();
    assert_eq!(store.change(1002, &id("r"), &who("a"), claim("p")).await, Err(Refusal::PeerTaken.into()));
}

pub(crate) async fn members_come_back_to_a_full_room_and_nobody_else(Fixture { store, .. }: &Fixture) {
    store.create(1000, room("r", 1000, 100)).await.unwrap();
    let members = || (0..MAX_PEERS).map(|n| (who("a"), claim(&format!("p{n}"))));
    assert_eq!(claim_at_once(store, members()).await, MAX_PEERS);
    let strangers = (0..20).map(|n| (who("b"), claim(&format!("q{n}"))));
    assert_eq!(claim_at_once(store, members().take(20).chain(strangers)).await, 20);
    assert_eq!(store.change(1000, &id("r"), &who("b"), claim("q")).await, Err(Refusal::Full.into()));
    assert_eq!(store.get(1000, &id("r")).await.unwrap().unwrap().peers.len(), MAX_PEERS);
}
