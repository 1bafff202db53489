//! The store of rooms while DynamoDB throttles, fails, resets, hangs and loses answers.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use signaling_server::{
    domain::grant::{Change, Refusal, Room},
    runtime::store::{Store, StoreError, dynamodb::DynamoStore},
};
use tokio::task::JoinSet;

use super::{
    contract::{claim, id, room, who},
    emulators::Dynoxide,
    proxy::{Fault, PROVISIONED, Proxy, THROTTLED},
    rooms,
};

/// The first failure is known within this; measured on a busy machine.
const IN_TIME: Duration = Duration::from_millis(3500);
/// Once it is known that DynamoDB does not answer.
const AT_ONCE: Duration = Duration::from_millis(500);

struct Scene {
    /// Through the proxy.
    store: Arc<DynamoStore>,
    /// Past it, as another server would be.
    other: DynamoStore,
    proxy: Proxy,
    _dynoxide: Dynoxide,
}

/// A room `r` with a peer `p` of `a`.
async fn scene() -> Scene {
    let dynoxide = Dynoxide::start();
    let other = rooms::store(&dynoxide.endpoint, "rooms").await;
    let proxy = Proxy::before(&dynoxide.endpoint).await;
    let store = Arc::new(rooms::open(&proxy.endpoint, "rooms").await.unwrap());
    other.create(1000, room("r", 1000, 100)).await.unwrap();
    other.change(1000, &id("r"), &who("a"), claim("p")).await.unwrap();
    Scene { store, other, proxy, _dynoxide: dynoxide }
}

impl Scene {
    /// What is stored, however the store under test sees it.
    async fn stored(&self, name: &str) -> Option<Room> {
        self.other.get(1000, &id(name)).await.unwrap()
    }

    async fn release(&self) -> Result<Room, StoreError> {
        self.store.change(1000, &id("r"), &who("owner"), Change::Release { peer: "p".parse().unwrap() }).await
    }

    /// Every operation once, as their callers do them; each must have happened exactly once.
    async fn every_operation_is_done_once(&self, fault: impl Fn()) {
        fault();
        assert_eq!(self.store.get(1000, &id("r")).await.unwrap(), self.stored("r").await);
        fault();
        self.store.create(1000, room("new", 1000, 100)).await.unwrap();
        assert_eq!(self.stored("new").await, Some(room("new", 1000, 100)));
        fault();
        assert_eq!(self.store.change(1000, &id("r"), &who("b"), claim("q")).await.unwrap().peers.len(), 2);
        assert_eq!(self.stored("r").await.unwrap().peers.len(), 2);
        fault();
        let renewed = self.store.change(1000, &id("r"), &who("owner"), Change::Renew { ttl: Some(500) }).await.unwrap();
        assert_eq!((renewed.expires_at, self.stored("r").await.unwrap().expires_at), (1500, 1500));
        fault();
        assert_eq!(self.release().await.unwrap().peers.len(), 1);
        assert_eq!(self.release().await, Err(Refusal::NoPeer.into()));
        fault();
        assert_eq!(self.store.delete(1000, &id("r"), &who("owner")).await.unwrap().peers.len(), 1);
        assert_eq!(self.stored("r").await, None);
        assert_eq!(self.store.delete(1000, &id("r"), &who("owner")).await, Err(Refusal::NoRoom.into()));
    }
}

#[tokio::test]
async fn a_passing_fault_is_not_noticed() {
    for fault in [PROVISIONED, THROTTLED, Fault::Status(500), Fault::Status(503), Fault::Reset] {
        let scene = scene().await;
        scene.every_operation_is_done_once(|| scene.proxy.fail_next(2, fault, "")).await;
        assert!(scene.proxy.count("") > 6 * 3, "{fault:?} was there");
    }
}

#[tokio::test]
async fn what_was_done_though_its_answer_was_lost_is_not_done_twice() {
    for times in [1, 2] {
        let scene = scene().await;
        scene
            .every_operation_is_done_once(|| {
                scene.proxy.heal();
                for target in ["GetItem", "PutItem", "DeleteItem"] {
                    scene.proxy.fail_next(times, Fault::Lost, target);
                }
            })
            .await;
    }
}

#[tokio::test]
async fn another_server_may_write_between_a_lost_answer_and_the_next_attempt() {
    let peer = |name: &str| name.parse().unwrap();
    let changes =
        [(who("b"), claim("q")), (who("owner"), Change::Renew { ttl: Some(500) }), (who("owner"), Change::Release { peer: peer("p") })];
    for (caller, change) in changes {
        let scene = scene().await;
        scene.proxy.fail_next(1, Fault::Lost, "PutItem");
        scene.proxy.fail_next(1, Fault::Hang, "PutItem");
        let (store, asked) = (scene.store.clone(), change.clone());
        let changing = tokio::spawn(async move { store.change(1000, &id("r"), &caller, asked).await });
        while scene.proxy.count("PutItem") < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        scene.other.change(1000, &id("r"), &who("c"), claim("z")).await.unwrap();
        let changed = changing.await.unwrap().unwrap_or_else(|error| panic!("{change:?}: {error}"));
        let stored = scene.stored("r").await.unwrap();
        assert_eq!(changed, stored, "{change:?}");
        assert!(stored.peers.contains_key(&peer("z")), "{change:?}: the other server's write was overwritten");
        let expected = match change {
            Change::Claim { .. } => (stored.peers.len() == 3, stored.expires_at == 1100),
            Change::Renew { .. } => (stored.peers.len() == 2, stored.expires_at == 1500),
            Change::Release { .. } => (stored.peers.len() == 1, stored.expires_at == 1100),
        };
        assert_eq!(expected, (true, true), "{change:?}: {stored:?}");
    }
}

#[tokio::test]
async fn a_hanging_attempt_is_given_up_for_the_next() {
    let scene = scene().await;
    scene.proxy.fail_next(1, Fault::Hang, "PutItem");
    scene.store.create(1000, room("new", 1000, 100)).await.unwrap();
    assert!(scene.stored("new").await.is_some());
}

#[tokio::test]
async fn who_is_told_that_it_failed_may_simply_try_again() {
    let scene = scene().await;
    // Every answer of the first call is lost: it was done, and its caller cannot know.
    scene.proxy.fail_next(3, Fault::Lost, "PutItem");
    assert!(matches!(scene.store.change(1000, &id("r"), &who("b"), claim("q")).await, Err(StoreError::Broken(_))));
    assert_eq!(scene.stored("r").await.unwrap().peers.len(), 2);
    let again = scene.store.change(1001, &id("r"), &who("b"), claim("q")).await.unwrap();
    assert_eq!((again.peers.len(), again.peers[&"q".parse().unwrap()].seen), (2, 1001));
}

#[tokio::test]
async fn failures_come_in_time_then_at_once_and_end_with_the_fault() {
    for fault in [PROVISIONED, Fault::Status(500), Fault::Reset, Fault::Hang] {
        let scene = scene().await;
        scene.proxy.fail(fault);
        let started = Instant::now();
        let mut refused_at_once = 0;
        while refused_at_once < 3 {
            let began = Instant::now();
            let refusal = scene.store.create(1000, room("new", 1000, 100)).await.unwrap_err();
            let took = began.elapsed();
            if matches!(refusal, StoreError::Away(_)) {
                refused_at_once += 1;
                assert!(took < AT_ONCE, "{fault:?}: {took:?}");
            }
            assert!(took < IN_TIME, "{fault:?}: {took:?}");
            assert!(started.elapsed() < 4 * IN_TIME, "{fault:?}: it is never known that DynamoDB does not answer");
        }
        scene.proxy.heal();
        let healed = Instant::now();
        while scene.store.get(1000, &id("r")).await.is_err() {
            assert!(healed.elapsed() < IN_TIME, "{fault:?}: it has ended and nobody noticed");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(scene.stored("new").await, None, "{fault:?}: what was refused did not happen");
    }
}

#[tokio::test]
async fn a_crowd_through_faults_joins_once_each() {
    const PEERS: usize = 40;
    let scene = scene().await;
    for fault in [Fault::Lost, Fault::Reset, THROTTLED, Fault::Lost, Fault::Status(500), Fault::Lost] {
        scene.proxy.fail_next(6, fault, "PutItem");
    }
    let mut tasks = JoinSet::new();
    for n in 0..PEERS {
        let store = scene.store.clone();
        // Two want each peer id.
        tasks.spawn(async move {
            let (caller, change) = (who(&format!("s{n}")), claim(&format!("p{}", n / 2)));
            loop {
                match store.change(1000, &id("r"), &caller, change.clone()).await {
                    Ok(room) => return Some((room.peers[&format!("p{}", n / 2).parse().unwrap()].owner.clone(), caller)),
                    Err(StoreError::Refused(refusal)) => {
                        assert_eq!(refusal, Refusal::PeerTaken);
                        return None;
                    }
                    Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            }
        });
    }
    let joined: Vec<_> = tasks.join_all().await.into_iter().flatten().collect();
    assert_eq!(joined.len(), PEERS / 2, "one for each id");
    assert!(joined.iter().all(|(owner, caller)| owner == caller));
    let stored = scene.stored("r").await.unwrap();
    assert_eq!(stored.peers.len(), PEERS / 2 + 1);
    assert!(joined.iter().all(|(owner, _)| stored.peers.values().any(|peer| peer.owner == *owner)));
}
