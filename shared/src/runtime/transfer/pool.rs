//! The bulk connections of a session.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use bytes::{Bytes, BytesMut};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::control_lost;
use crate::{
    domain::{
        error::Failure,
        frame::{FrameHeader, FrameKind},
        message::TransferId,
    },
    runtime::{link::Bulk, peer::ChannelSender},
};

/// Frames of one transfer that may wait for its receiver; with it a connection is held back, not the memory filled.
const INBOUND: usize = 64;

/// One bulk connection, as a sender sees it.
#[derive(Clone)]
pub struct Connection {
    /// Its number in the session.
    pub number: u32,
    /// Where frames go.
    pub sender: ChannelSender,
    /// Cancelled when it is gone, and by whoever gives it up.
    pub lost: CancellationToken,
}

impl Connection {
    /// Waits until it has room for more; `false`: no more is to be sent on it.
    pub async fn ready(&self) -> bool {
        !self.lost.is_cancelled()
    }

    /// Waits until no more is to be sent on it.
    pub async fn gone(&self) {
        self.lost.cancelled().await;
    }

    /// Waits until a piece may be sent; how long it should be at most.
    pub async fn credit(&self) -> Result<usize, Failure> {
        Ok(usize::MAX)
    }

    /// Bytes that were sent and have not arrived; `None` when it is closed.
    pub async fn outstanding(&self) -> Option<u64> {
        self.sender.outstanding().await
    }

    /// Sends a frame that there was room for.
    pub async fn send(&self, frame: BytesMut) -> Result<(), Failure> {
        tokio::select! {
            () = self.lost.cancelled() => Err(control_lost()),
            sent = self.sender.send(frame) => sent,
        }
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
    stop: CancellationToken,
}

impl Default for Pool {
    fn default() -> Self {
        let stop = CancellationToken::new();
        let inner = Inner { connections: watch::Sender::new(Vec::new()), routes: Mutex::default(), stop: stop.clone() };
        Pool { inner: Arc::new(inner), _stop: Arc::new(stop.drop_guard()) }
    }
}

impl Pool {
    /// Puts a proven connection to use until it is lost.
    pub fn add(&self, bulk: Bulk) {
        let lost = CancellationToken::new();
        let connection = Connection { number: bulk.number, sender: bulk.channel.sender().clone(), lost };
        self.inner.connections.send_modify(|connections| connections.push(connection.clone()));
        tracing::debug!(connection = bulk.number, "a bulk connection is in use");
        let inner = self.inner.clone();
        tokio::spawn(async move { inner.serve(bulk, connection).await });
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
        loop {
            tokio::select! {
                () = self.stop.cancelled() => break,
                () = bulk.carrier.lost() => break,
                () = connection.lost.cancelled() => break,
                frame = bulk.channel.recv() => match frame {
                    Some(frame) => self.deliver(bulk.number, frame).await,
                    None => break,
                },
            }
        }
        connection.lost.cancel();
        self.connections.send_modify(|connections| connections.retain(|other| other.number != bulk.number));
        tracing::debug!(connection = bulk.number, "a bulk connection is gone");
        let routes: Vec<_> = self.routes.lock().expect("no panic happens under this lock").values().cloned().collect();
        for route in routes {
            let _ = route.send(Inbound::Lost(bulk.number)).await;
        }
    }

    async fn deliver(&self, connection: u32, frame: Bytes) {
        let Ok((header, _)) = FrameHeader::decode(&frame) else {
            tracing::warn!(connection, "a frame that is none was dropped");
            return;
        };
        if header.kind == FrameKind::Probe {
            return;
        }
        let route = self.routes.lock().expect("no panic happens under this lock").get(&header.transfer).cloned();
        let delivered = match route {
            Some(route) => tokio::select! {
                () = self.stop.cancelled() => return,
                sent = route.send(Inbound::Frame { connection, frame }) => sent.is_ok(),
            },
            None => false,
        };
        if !delivered {
            tracing::debug!(transfer = header.transfer, "a frame of a transfer that has ended was dropped");
            self.routes.lock().expect("no panic happens under this lock").retain(|_, route| !route.is_closed());
        }
    }
}
