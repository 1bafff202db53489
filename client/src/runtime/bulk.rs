//! Bulk connections of a conversation, described over its control connection.
//!
//! As many are kept as were asked for: each place has a task that opens a connection, waits until it is lost, and opens the next. Places that
//! are no longer wanted let their connection go once what it carries is acknowledged.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use shared::{
    domain::{
        error::{Code, Failure},
        id::Secret,
        message::{BulkCandidate, BulkSdp, ToWorker},
    },
    runtime::{
        link::{Description, bulk_number, dial_bulk, ports},
        peer::PeerOptions,
        transfer::Pool,
    },
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Between two tries of a place.
const RETRY: Duration = Duration::from_secs(1);

/// Opens bulk connections.
pub(super) struct BulkDialer {
    key: Secret<[u8; 32]>,
    options: PeerOptions,
    out: mpsc::Sender<ToWorker>,
    pool: Pool,
    stop: CancellationToken,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Places that have a task; cancelled when one is no longer wanted.
    places: Vec<CancellationToken>,
    /// How many connections each place has had.
    had: HashMap<u32, u32>,
    /// Where descriptions for a connection go while it lives.
    ports: HashMap<u32, mpsc::Sender<Description>>,
}

impl BulkDialer {
    pub(super) fn new(
        key: Secret<[u8; 32]>,
        options: PeerOptions,
        out: mpsc::Sender<ToWorker>,
        pool: Pool,
        stop: CancellationToken,
    ) -> Self {
        BulkDialer { key, options, out, pool, stop, state: Mutex::default() }
    }

    /// What the worker says of a connection.
    pub(super) fn hand_over(&self, connection: u32, description: Description) {
        let port = self.with_state(|state| state.ports.get(&connection).cloned());
        if let Some(port) = port {
            let _ = port.try_send(description);
        }
    }

    /// Keeps one connection open, unless there are more.
    pub(super) fn begin(self: Arc<Self>) {
        if self.with_state(|state| state.places.is_empty()) {
            self.keep(1);
        }
    }

    /// From now on, so many connections are kept open until the conversation ends. Surplus ones, the latest first, carry nothing new.
    pub(super) fn keep(self: Arc<Self>, connections: u32) {
        let connections = connections as usize;
        let (surplus, new) = self.with_state(|state| {
            let surplus = state.places.split_off(connections.min(state.places.len()));
            let new: Vec<_> = (state.places.len()..connections).map(|place| (place as u32, CancellationToken::new())).collect();
            state.places.extend(new.iter().map(|(_, unwanted)| unwanted.clone()));
            (surplus, new)
        });
        if !(surplus.is_empty() && new.is_empty()) {
            tracing::info!(connections, "bulk connections wanted");
        }
        surplus.iter().for_each(CancellationToken::cancel);
        for (place, unwanted) in new {
            let (dialer, stop) = (self.clone(), self.stop.clone());
            tokio::spawn(async move { stop.run_until_cancelled(dialer.serve(place, unwanted)).await });
        }
    }

    async fn serve(&self, place: u32, unwanted: CancellationToken) {
        while !unwanted.is_cancelled() {
            let number = self.with_state(|state| {
                let had = state.had.entry(place).or_default();
                *had += 1;
                bulk_number(place, *had - 1)
            });
            let opened = self.open(number, &unwanted).await;
            self.with_state(|state| state.ports.remove(&number));
            match opened {
                Ok(()) => tracing::info!(number, "a bulk connection has ended"),
                Err(failure) => {
                    tracing::info!(number, %failure, "a bulk connection could not be opened");
                    unwanted.run_until_cancelled(tokio::time::sleep(RETRY)).await;
                }
            }
        }
    }

    /// Opens one connection and waits until it is lost, or was let go.
    async fn open(&self, number: u32, unwanted: &CancellationToken) -> Result<(), Failure> {
        let (ours, mut theirs) = ports();
        self.with_state(|state| state.ports.insert(number, theirs.tx.clone()));
        let forward = async {
            while let Some(description) = theirs.rx.recv().await {
                let message = match description {
                    Description::Offer(sdp) => ToWorker::BulkOffer(BulkSdp { connection: number, sdp }),
                    Description::Candidate(candidate) => ToWorker::BulkCandidate(BulkCandidate { connection: number, candidate }),
                    Description::Restart(_) | Description::Answer(_) | Description::Refused(_) => continue,
                };
                if self.out.send(message).await.is_err() {
                    break;
                }
            }
        };
        let mut forward = std::pin::pin!(forward);
        let bulk = tokio::select! {
            () = unwanted.cancelled() => return Ok(()),
            bulk = dial_bulk(number, &self.key, &self.options, ours) => bulk?,
            () = &mut forward => return Err(Failure::new(Code::NoConnection, "the control connection is gone")),
        };
        self.pool.add(bulk);
        // The connection's end of the port closes with the connection.
        if unwanted.run_until_cancelled(&mut forward).await.is_none() {
            self.pool.retire(number);
            forward.await;
        }
        Ok(())
    }

    fn with_state<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.lock().expect("no panic happens under this lock"))
    }
}
