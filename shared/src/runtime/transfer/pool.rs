//! The bulk connections of a session.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use tokio::sync::{mpsc, watch};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::{TaskTracker, task_tracker::TaskTrackerToken},
};

use super::{
    control_lost,
    flow::{Flow, Flows},
};
use crate::{
    domain::{error::Failure, frame::FrameHeader, message::TransferId},
    runtime::{link::Bulk, peer::Channel},
};

/// Frames of one transfer that may wait for its receiver; with it a connection is held back, not the memory filled.
const INBOUND: usize = 64;

/// One bulk connection, as a sender sees it.
#[derive(Clone)]
pub struct Connection {
    /// Its number in the session.
    pub number: u32,
    /// Cancelled when it is gone, and by whoever gives it up.
    pub lost: CancellationToken,
    flow: Arc<Flow>,
    /// Cancelled when nothing more is to be sent on it.
    retired: CancellationToken,
    users: TaskTracker,
}

impl Connection {
    /// Waits until it has room for more; `false`: no more is to be sent on it, because it is lost or retired.
    pub async fn ready(&self) -> bool {
        tokio::select! {
            biased;
            () = self.gone() => false,
            _ = self.flow.credit() => true,
        }
    }

    /// Waits until no more is to be sent on it.
    pub async fn gone(&self) {
        tokio::select! {
            () = self.lost.cancelled() => {}
            () = self.retired.cancelled() => {}
        }
    }

    /// Waits until a piece may be sent; how long it should be at most.
    ///
    /// # Errors
    /// [`Code::NoConnection`](crate::domain::error::Code::NoConnection) when it is lost.
    pub async fn credit(&self) -> Result<usize, Failure> {
        tokio::select! {
            () = self.lost.cancelled() => Err(control_lost()),
            piece = self.flow.credit() => Ok(piece),
        }
    }

    /// Sends a frame that there was room for.
    ///
    /// # Errors
    /// [`Code::NoConnection`](crate::domain::error::Code::NoConnection) when it is lost.
    pub async fn send(&self, frame: BytesMut) -> Result<(), Failure> {
        tokio::select! {
            () = self.lost.cancelled() => Err(control_lost()),
            sent = self.flow.send(frame) => sent,
        }
    }

    /// As long as this lives, retiring the connection waits.
    pub fn in_use(&self) -> TaskTrackerToken {
        self.users.token()
    }
}

/// What arrives for one transfer.
pub enum Inbound {
    /// A frame.
    Frame {
        /// The number of the connection that it came on.
        connection: u32,
        /// Header and piece.
        frame: Bytes,
    },
    /// A connection is gone; what it had not brought whole is not coming.
    Lost(u32),
}

/// The bulk connections at hand. Clones share them.
#[derive(Clone)]
pub struct Pool {
    inner: Arc<Inner>,
    _stop: Arc<DropGuard>,
}

struct Inner {
    connections: watch::Sender<Vec<Connection>>,
    routes: Mutex<HashMap<TransferId, mpsc::Sender<Inbound>>>,
    flows: Arc<Flows>,
    /// Bytes of the frames that arrived.
    received: AtomicU64,
    stop: CancellationToken,
}

impl Default for Pool {
    fn default() -> Self {
        let stop = CancellationToken::new();
        let inner = Inner {
            connections: watch::Sender::new(Vec::new()),
            routes: Mutex::default(),
            flows: Arc::default(),
            received: AtomicU64::new(0),
            stop: stop.clone(),
        };
        Pool { inner: Arc::new(inner), _stop: Arc::new(stop.drop_guard()) }
    }
}

impl Pool {
    /// Puts a proven connection to use until it is lost.
    pub fn add(&self, bulk: Bulk) {
        let flow = Arc::new(Flow::new(bulk.number, bulk.channel.sender().clone(), self.inner.flows.clone()));
        let (lost, retired) = (CancellationToken::new(), CancellationToken::new());
        let connection = Connection { number: bulk.number, lost, flow, retired, users: TaskTracker::new() };
        self.inner.connections.send_modify(|connections| connections.push(connection.clone()));
        tracing::debug!(connection = bulk.number, "a bulk connection is in use");
        let inner = self.inner.clone();
        tokio::spawn(async move { inner.serve(bulk, connection).await });
    }

    /// Lets this connection go: nothing more is sent on it, and it is closed once what it carries has been acknowledged.
    pub fn retire(&self, number: u32) {
        for connection in self.inner.connections.borrow().iter().filter(|connection| connection.number == number) {
            connection.users.close();
            connection.retired.cancel();
        }
    }

    /// The way that all connections take is no more: what they carry goes over others.
    pub fn give_up(&self) {
        for connection in self.inner.connections.borrow().iter() {
            connection.lost.cancel();
        }
    }

    /// Bytes that were brought to the other side or came from it, on all connections that there have been.
    pub fn carried(&self) -> u64 {
        self.inner.flows.delivered() + self.inner.received.load(Ordering::Relaxed)
    }

    /// Whether a queue stood on the path lately, of what went from here to there.
    pub fn is_full(&self) -> bool {
        self.inner.flows.is_full()
    }

    /// The path's round trip without its queues, once bytes went from here to there.
    pub fn round_trip(&self) -> Option<Duration> {
        self.inner.flows.round_trip()
    }

    /// What fits on the path, once bytes went from here to there.
    pub(super) fn bandwidth_delay(&self) -> u64 {
        self.inner.flows.bandwidth_delay()
    }

    /// A connection that is not lost; waits until there is one.
    pub async fn first_connection(&self) -> Connection {
        let mut connections = self.connections();
        loop {
            let usable = connections.borrow_and_update().iter().find(|connection| !connection.lost.is_cancelled()).cloned();
            if let Some(connection) = usable {
                return connection;
            }
            connections.changed().await.expect("the pool is borrowed, so its sender lives");
        }
    }

    /// The connections at hand, and word of every change.
    pub fn connections(&self) -> watch::Receiver<Vec<Connection>> {
        self.inner.connections.subscribe()
    }

    /// From now on this transfer's frames come here; the latest route counts.
    pub fn route(&self, transfer: TransferId) -> mpsc::Receiver<Inbound> {
        let (tx, rx) = mpsc::channel(INBOUND);
        self.inner.routes.lock().expect("no panic happens under this lock").insert(transfer, tx);
        rx
    }
}

impl Inner {
    async fn serve(&self, mut bulk: Bulk, connection: Connection) {
        let unused = async {
            connection.retired.cancelled().await;
            connection.users.wait().await;
        };
        tokio::select! {
            () = self.stop.cancelled() => {}
            () = connection.lost.cancelled() => {}
            () = bulk.carrier.lost() => {}
            () = unused => {}
            () = connection.flow.follow() => {}
            () = self.receive(bulk.number, &mut bulk.channel) => {}
        }
        connection.lost.cancel();
        self.connections.send_modify(|connections| connections.retain(|other| other.number != bulk.number));
        tracing::debug!(connection = bulk.number, "a bulk connection is gone");
        let routes: Vec<_> = self.routes.lock().expect("no panic happens under this lock").values().cloned().collect();
        for route in routes {
            let _ = route.send(Inbound::Lost(bulk.number)).await;
        }
    }

    async fn receive(&self, connection: u32, channel: &mut Channel) {
        while let Some(frame) = channel.recv().await {
            self.received.fetch_add(frame.len() as u64, Ordering::Relaxed);
            self.deliver(connection, frame).await;
        }
    }

    async fn deliver(&self, connection: u32, frame: Bytes) {
        let Ok((header, _)) = FrameHeader::decode(&frame) else {
            tracing::warn!(connection, "a frame that is none was dropped");
            return;
        };
        let route = self.routes.lock().expect("no panic happens under this lock").get(&header.transfer).cloned();
        let delivered = match route {
            Some(route) => route.send(Inbound::Frame { connection, frame }).await.is_ok(),
            None => false,
        };
        if !delivered {
            tracing::debug!(transfer = header.transfer, "a frame of a transfer that has ended was dropped");
            self.routes.lock().expect("no panic happens under this lock").retain(|_, route| !route.is_closed());
        }
    }
}
