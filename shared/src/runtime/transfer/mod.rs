//! Transfers over a session's bulk connections, in either direction.
//!
//! * [`Pool`]: the bulk connections at hand; frames in, routed by transfer; connections come and go at any time
//! * [`send`]: announce, say which chunks go, one pump a connection, within the receiver's window
//! * `feed`: one blocking thread that reads ahead, and compresses where that pays
//! * `flow`: how many bytes each connection may have under way
//! * [`send_plan`], [`probe`]: what a client sends that only wants to know
//! * before anything is sent, a proof that we have what others have sent (`proof`), where the receiver asks for it
//! * [`receive`]: one blocking thread that verifies, writes, syncs in groups and acknowledges
//!
//! What is decided (what to send next, what has arrived, what is missing) is [`crate::domain::transfer`]'s. A transfer ends with
//! the control connection it was announced on; the next one continues it, because only what is missing travels.

mod feed;
mod flow;
mod plan;
mod pool;
mod proof;
#[cfg(test)]
mod proof_tests;
mod receive;
mod send;
#[cfg(test)]
mod tests;

use tokio::sync::mpsc;

pub use plan::{probe, send_plan};
pub use pool::{Connection, Inbound, Pool};
pub use receive::{WINDOW, receive};
pub use send::{Outgoing, ReadChunk, send};

use crate::domain::{
    error::{Code, Failure},
    message::Step,
};

/// The way that a transfer's steps take over the control connection.
pub struct StepPort {
    /// To the other side.
    pub tx: mpsc::Sender<Step>,
    /// From the other side; steps of this transfer only.
    pub rx: mpsc::Receiver<Step>,
}

fn control_lost() -> Failure {
    Failure::new(Code::NoConnection, "the connection was lost during the transfer")
}
