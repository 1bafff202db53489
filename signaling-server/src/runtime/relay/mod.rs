//! Peers that are connected to another process of the same deployment.
//!
//! * [`Relay`]: asks the other processes, and brings what they ask to a [`Local`]
//! * [`OneProcess`]: there are none; [`Nats`]: they meet at a NATS server

mod nats;
mod nats_config;
mod subject;

use std::{sync::Weak, time::Duration};

use futures_util::future::BoxFuture;
use shared::domain::id::{PeerId, RoomId};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

pub use self::{
    nats::Nats,
    nats_config::{Login, NatsConfig},
};
use crate::domain::cluster::{Ask, Reply};

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// The peer's process has it in the peer's queue.
    Delivered,
    /// No process has that peer.
    Absent,
    /// The peer's queue is full.
    Busy,
    /// No answer in time, or no way to the other processes.
    Unknown,
    /// Written out for another process it is over the limit.
    TooLarge,
}

/// What came of a question about one peer.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// The process that has the peer says this.
    Reply(Reply),
    /// No process has it.
    Absent,
    /// No answer in time, or no way to the other processes.
    Unknown,
    /// The question is over the limit.
    TooLarge,
}

/// What came of a question to all.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Answers {
    /// One a process.
    pub replies: Vec<Reply>,
    /// Whether all have answered.
    pub complete: bool,
}

/// The way to the other processes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Link {
    /// There are none.
    Alone,
    /// It is there, for the n-th time.
    Up(u64),
    /// It is not; why, for people.
    Down(String),
}

/// What a process does for others. Called from the relay's tasks; must not block.
pub trait Local: Send + Sync {
    /// Answers a question; `None` leaves it to whoever else was asked. `text` is that behind an [`Ask::Deliver`].
    fn asked(&self, ask: Ask, text: Option<&str>) -> Option<Reply>;
}

/// That questions about one peer come here, until dropped.
#[must_use]
pub struct Lease {
    _task: Option<AbortOnDropHandle<()>>,
}

/// The other processes.
pub trait Relay: Send + Sync {
    /// From now on, what others ask goes to `local`.
    fn start(&self, local: Weak<dyn Local>);

    /// Has questions about a peer come here. What is asked later over this relay finds it in force. `None` when that cannot be had now.
    fn lease(&self, room: &RoomId, peer: &PeerId) -> BoxFuture<'_, Option<Lease>>;

    /// Asks whichever other process has this peer, once; answers within two seconds.
    fn ask(&self, room: &RoomId, peer: &PeerId, ask: Ask, text: Option<String>) -> BoxFuture<'_, Answer>;

    /// Asks every other process, once; waits so long for those that do not answer.
    fn ask_all(&self, ask: Ask, patience: Duration) -> BoxFuture<'_, Answers>;

    /// The way to the others, and its changes.
    fn link(&self) -> watch::Receiver<Link>;
}

/// There is only this process.
pub struct OneProcess(watch::Sender<Link>);

impl Default for OneProcess {
    fn default() -> Self {
        OneProcess(watch::Sender::new(Link::Alone))
    }
}

impl Relay for OneProcess {
    fn start(&self, _: Weak<dyn Local>) {}

    fn lease(&self, _: &RoomId, _: &PeerId) -> BoxFuture<'_, Option<Lease>> {
        Box::pin(std::future::ready(Some(Lease { _task: None })))
    }

    fn ask(&self, _: &RoomId, _: &PeerId, _: Ask, _: Option<String>) -> BoxFuture<'_, Answer> {
        Box::pin(std::future::ready(Answer::Absent))
    }

    fn ask_all(&self, _: Ask, _: Duration) -> BoxFuture<'_, Answers> {
        Box::pin(std::future::ready(Answers { replies: Vec::new(), complete: true }))
    }

    fn link(&self) -> watch::Receiver<Link> {
        self.0.subscribe()
    }
}
