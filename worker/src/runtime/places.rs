//! The places for clients: a bounded number, and who has them.
//!
//! A client that was killed, or whose machine lost power, says no goodbye; its place would stay taken until silence ends its link.
//!
//! * when the server says that a peer has left, its link is doubted: what does not answer within 3 s ends ([`crate::domain::pulse`])
//! * when all places are taken, the other links of the same client are doubted, and it waits for what comes of it
//! * a doubted client that is there answers and stays: that its connection to the server broke says nothing about this one

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use shared::domain::id::PeerId;
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use crate::domain::pulse::DOUBTED;

/// Links that wait for a place at the same time.
const WAITING: usize = 8;
/// How long one waits: until others have been found dead and have been closed.
const PATIENCE: Duration = DOUBTED.saturating_add(Duration::from_secs(2));

/// The places of a worker. Clones share them.
#[derive(Clone)]
pub struct Places {
    slots: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
    guests: Arc<Mutex<Guests>>,
    patience: Duration,
}

#[derive(Default)]
struct Guests {
    next: u64,
    all: HashMap<u64, Guest>,
}

struct Guest {
    peer: PeerId,
    client: [u8; 32],
    doubt: Arc<Notify>,
}

/// A link that has asked for a place; dropped, it is nobody any more.
pub struct Asking {
    places: Places,
    id: u64,
    client: [u8; 32],
    doubt: Arc<Notify>,
}

/// A place that is taken; dropped, it is free.
pub struct Place {
    asking: Asking,
    _slot: OwnedSemaphorePermit,
}

impl Places {
    /// So many.
    pub fn new(count: usize) -> Self {
        Places {
            slots: Arc::new(Semaphore::new(count)),
            waiting: Arc::new(Semaphore::new(WAITING)),
            guests: Arc::default(),
            patience: PATIENCE,
        }
    }

    /// A link of this client. Asked before anything is waited for, so that no departure of its peer is missed.
    pub fn ask(&self, peer: PeerId, client: [u8; 32]) -> Asking {
        let doubt = Arc::new(Notify::new());
        let mut guests = self.guests.lock().expect("no panic happens under this lock");
        guests.next += 1;
        let id = guests.next;
        guests.all.insert(id, Guest { peer, client, doubt: doubt.clone() });
        Asking { places: self.clone(), id, client, doubt }
    }

    /// Links that have a place or have asked for one.
    pub fn taken(&self) -> usize {
        self.guests.lock().expect("no panic happens under this lock").all.len()
    }

    /// The server says that this peer has left: perhaps it has ended, perhaps only its way to the server.
    pub fn left(&self, peer: &PeerId) {
        self.doubt(|_, guest| guest.peer == *peer);
    }

    fn doubt(&self, wanted: impl Fn(u64, &Guest) -> bool) {
        let guests = self.guests.lock().expect("no panic happens under this lock");
        for (_, guest) in guests.all.iter().filter(|(id, guest)| wanted(**id, guest)) {
            tracing::info!(peer = %guest.peer, "a client may be gone; it is asked for a sign of life");
            guest.doubt.notify_one();
        }
    }
}

impl Asking {
    /// A place; where all are taken, links that turn out to be dead make room within some seconds. `None`: there is none.
    pub async fn place(self) -> Option<Place> {
        if let Ok(slot) = self.places.slots.clone().try_acquire_owned() {
            return Some(Place { asking: self, _slot: slot });
        }
        let turn = self.places.waiting.clone().try_acquire_owned().ok()?;
        self.places.doubt(|id, guest| id != self.id && guest.client == self.client);
        let slot = timeout(self.places.patience, self.places.slots.clone().acquire_owned()).await.ok()?.ok()?;
        drop(turn);
        Some(Place { asking: self, _slot: slot })
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        self.places.guests.lock().expect("no panic happens under this lock").all.remove(&self.id);
    }
}

impl Place {
    /// Told when there is reason to think that its client is gone.
    pub fn doubt(&self) -> Arc<Notify> {
        self.asking.doubt.clone()
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;

    use tokio::{task::yield_now, time::sleep};

    use super::*;

    const ANNA: [u8; 32] = [1; 32];
    const BEN: [u8; 32] = [2; 32];

    fn ask(places: &Places, peer: &str, client: [u8; 32]) -> impl Future<Output = Option<Place>> + use<> {
        places.ask(peer.parse().unwrap(), client).place()
    }

    async fn doubted(place: &Place) -> bool {
        timeout(Duration::from_millis(1), place.doubt().notified()).await.is_ok()
    }

    /// Frees the place as a session does: when it is doubted and its client does not answer.
    fn dead(place: Place) {
        tokio::spawn(async move {
            place.doubt().notified().await;
            sleep(Duration::from_millis(20)).await;
            drop(place);
        });
    }

    #[tokio::test]
    async fn a_place_is_free_again_when_it_is_dropped() {
        let places = Places::new(1);
        drop(ask(&places, "p1", ANNA).await.unwrap());
        let _second = ask(&places, "p2", ANNA).await.unwrap();
        assert_eq!(places.taken(), 1);
    }

    #[tokio::test]
    async fn a_peer_that_left_is_doubted_and_no_other() {
        let places = Places::new(2);
        let (gone, other) = (ask(&places, "p1", ANNA).await.unwrap(), ask(&places, "p2", ANNA).await.unwrap());
        places.left(&"p1".parse().unwrap());
        assert!(doubted(&gone).await);
        assert!(!doubted(&other).await);
    }

    #[tokio::test]
    async fn a_departure_while_it_waits_is_not_missed() {
        let places = Places::new(1);
        let first = ask(&places, "p1", ANNA).await.unwrap();
        let second = ask(&places, "p2", BEN);
        places.left(&"p2".parse().unwrap());
        drop(first);
        assert!(doubted(&second.await.unwrap()).await);
    }

    #[tokio::test]
    async fn dead_links_of_the_same_client_make_room() {
        let places = Places::new(2);
        dead(ask(&places, "p1", ANNA).await.unwrap());
        let other = ask(&places, "p2", BEN).await.unwrap();
        assert!(ask(&places, "p3", ANNA).await.is_some());
        assert!(!doubted(&other).await, "another client's link is left alone");
    }

    #[tokio::test]
    async fn living_links_keep_their_places() {
        let places = Places { patience: Duration::from_millis(20), ..Places::new(1) };
        let alive = ask(&places, "p1", ANNA).await.unwrap();
        assert!(ask(&places, "p2", ANNA).await.is_none());
        assert!(doubted(&alive).await, "it was asked");
        assert_eq!(places.guests.lock().unwrap().all.len(), 1, "who was turned away is forgotten");
    }

    #[tokio::test]
    async fn not_all_the_world_can_wait() {
        let places = Places::new(1);
        let alive = ask(&places, "p1", ANNA).await.unwrap();
        let crowd: Vec<_> = (0..WAITING).map(|_| tokio::spawn(ask(&places, "p2", BEN))).collect();
        while places.waiting.available_permits() > 0 {
            yield_now().await;
        }
        assert!(timeout(Duration::from_secs(1), ask(&places, "p3", BEN)).await.unwrap().is_none(), "it is told at once");
        drop(alive);
        for waiting in crowd {
            // Each has the place in its turn.
            assert!(waiting.await.unwrap().is_some());
        }
    }
}
