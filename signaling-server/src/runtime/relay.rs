//! Peers that are connected to another process of the same server.

use futures_util::future::BoxFuture;
use shared::domain::{
    id::{PeerId, RoomId},
    signal::ToPeer,
};

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// The peer's process has it in the peer's queue.
    Delivered,
    /// No process has that peer.
    Absent,
    /// The peer's queue is full.
    Busy,
    /// No answer in time.
    Unknown,
}

/// Brings messages to peers of other processes. The messages are opaque.
pub trait Relay: Send + Sync {
    /// Tries once; answers within seconds.
    fn deliver(&self, room: RoomId, target: PeerId, message: ToPeer) -> BoxFuture<'_, Delivery>;
}

/// There is only this process.
pub struct OneProcess;

impl Relay for OneProcess {
    fn deliver(&self, _: RoomId, _: PeerId, _: ToPeer) -> BoxFuture<'_, Delivery> {
        Box::pin(std::future::ready(Delivery::Absent))
    }
}
