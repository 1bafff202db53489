//! An established peer connection while it lives: its candidates, its state, its restarts.
//!
//! An ICE restart moves the association to the interfaces that there are now, without a new handshake or proof. It is for the case
//! that we know to have moved, and only when that is noticed at once, for two reasons (measured, `rtc` 0.21.1):
//!
//! * it gives the old path up before the new one is there, so the other side must be reachable through signaling
//! * what was under way when the path broke is repeated by SCTP's timer alone, 1, 3, 7, 15, 31 s after the break, however soon the new path
//!   is there: restarted after 0, 0.5, 2.5 and 6 s, it arrived after 1.2, 1.0, 3.0 and 7.0 s, and what was sent later waited for it. A new
//!   connection is there 0.3 s after it was begun, and what was under way goes again at once.
//!
//! So a restart that has brought no path within [`RESTART`] is a failure, and so is one that a later break makes pointless: the owner dials
//! anew. Bulk connections are always dialed anew, over the restarted control connection.

use std::{net::IpAddr, sync::Arc, time::Duration};

use serde_json::json;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{Description, Envelope, Port};
use crate::{
    domain::{
        error::{Code, Failure},
        id::PeerId,
        signal::{ToPeer, ToServer},
    },
    runtime::{
        network_changes::{is_ours, source_for},
        peer::{ConnectionState, PeerConnection, PeerEvent},
        seal::Sealer,
    },
};

/// How long a restart may take until there is a path.
const RESTART: Duration = Duration::from_secs(5);

/// An established peer connection and the task that keeps its candidates and its state flowing.
pub struct Carrier {
    /// The connection.
    pub connection: Arc<PeerConnection>,
    /// Its state.
    pub state: watch::Receiver<ConnectionState>,
    restart: mpsc::Sender<()>,
    restarted: watch::Receiver<u32>,
    ends: watch::Receiver<Option<Ends>>,
    _trickle: DropGuard,
}

/// The other side's address, and ours on the way to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ends {
    ours: IpAddr,
    theirs: IpAddr,
}

impl Carrier {
    /// Waits until the connection has failed or been closed.
    pub async fn lost(&self) {
        let gone = |state: &ConnectionState| matches!(state, ConnectionState::Failed | ConnectionState::Closed);
        // An error means that the task behind it is gone: lost, too.
        let _ = self.state.clone().wait_for(gone).await;
    }

    /// Begins an ICE restart, for the side that made the offer.
    pub fn restart(&self) {
        // One that is asked for already serves.
        let _ = self.restart.try_send(());
    }

    /// Word of every restart that has brought a path, here or asked for by the other side.
    pub fn restarted(&self) -> watch::Receiver<u32> {
        self.restarted.clone()
    }

    /// Whether the address that we use is this machine's no longer.
    pub fn has_lost_address(&self) -> bool {
        self.ends.borrow().is_some_and(|ends| !is_ours(ends.ours))
    }

    /// Whether it is so, and another one leads to the other side.
    pub fn has_moved(&self) -> bool {
        self.has_lost_address() && self.ends.borrow().is_some_and(|ends| source_for(ends.theirs).is_some())
    }
}

/// Keeps candidates and state flowing for an established connection, restarts it when that is asked for, and closes it at the end.
pub(super) fn carry(connection: PeerConnection, events: mpsc::Receiver<PeerEvent>, port: Port) -> Carrier {
    let connection = Arc::new(connection);
    let (state_tx, state) = watch::channel(ConnectionState::Connected);
    let (restart, wishes) = mpsc::channel(1);
    let (restarted_tx, restarted) = watch::channel(0);
    let (ends_tx, ends) = watch::channel(None);
    let stop = CancellationToken::new();
    let task =
        Carrying { connection: connection.clone(), tx: port.tx, state: state_tx, restarted: restarted_tx, ends: ends_tx, restarting: None };
    let task_stop = stop.clone();
    tokio::spawn(async move {
        let connection = task.connection.clone();
        task_stop.run_until_cancelled(task.run(events, port.rx, wishes)).await;
        connection.close().await;
    });
    Carrier { connection, state, restart, restarted, ends, _trickle: stop.drop_guard() }
}

struct Carrying {
    connection: Arc<PeerConnection>,
    tx: mpsc::Sender<Description>,
    state: watch::Sender<ConnectionState>,
    restarted: watch::Sender<u32>,
    ends: watch::Sender<Option<Ends>>,
    /// By when the restart under way must have brought a path.
    restarting: Option<Instant>,
}

impl Carrying {
    async fn run(
        mut self,
        mut events: mpsc::Receiver<PeerEvent>,
        mut descriptions: mpsc::Receiver<Description>,
        mut wishes: mpsc::Receiver<()>,
    ) {
        let mut described = true;
        self.note_ends().await;
        loop {
            let overdue = async {
                match self.restarting {
                    Some(by) => sleep_until(by).await,
                    None => std::future::pending().await,
                }
            };
            let done = tokio::select! {
                () = overdue => Err(Failure::new(Code::NoConnection, "the restart brought no path")),
                event = events.recv() => match event {
                    Some(PeerEvent::Candidate(candidate)) => {
                        let _ = self.tx.try_send(Description::Candidate(candidate));
                        Ok(())
                    }
                    Some(PeerEvent::State(state)) => self.handle_state(state).await,
                    None => return,
                },
                description = descriptions.recv(), if described => match description {
                    Some(description) => self.handle_description(description).await,
                    None => {
                        described = false;
                        Ok(())
                    }
                },
                Some(()) = wishes.recv() => self.begin_restart().await,
            };
            if let Err(failure) = done {
                tracing::info!(%failure, "a connection is given up");
                self.restarting = None;
                self.state.send_replace(ConnectionState::Failed);
            }
        }
    }

    async fn begin_restart(&mut self) -> Result<(), Failure> {
        if self.restarting.is_some() {
            return Ok(());
        }
        tracing::info!("an ICE restart begins");
        self.restarting = Some(Instant::now() + RESTART);
        let offer = self.connection.restart().await?;
        self.tx.try_send(Description::Restart(offer)).map_err(|_| super::gone())
    }

    async fn handle_description(&mut self, description: Description) -> Result<(), Failure> {
        match description {
            Description::Candidate(candidate) => self.connection.add_candidate(candidate).await,
            Description::Answer(sdp) if self.restarting.is_some() => self.connection.accept_answer(sdp).await?,
            Description::Restart(sdp) => {
                tracing::info!("the other side restarts ICE");
                self.restarting = Some(Instant::now() + RESTART);
                let answer = self.connection.answer_restart(sdp).await?;
                self.tx.try_send(Description::Answer(answer)).map_err(|_| super::gone())?;
            }
            Description::Refused(failure) if self.restarting.is_some() => return Err(failure),
            Description::Offer(_) | Description::Answer(_) | Description::Refused(_) => {}
        }
        Ok(())
    }

    async fn handle_state(&mut self, state: ConnectionState) -> Result<(), Failure> {
        self.state.send_replace(state);
        if state == ConnectionState::Connected && self.restarting.take().is_some() {
            self.note_ends().await;
            self.restarted.send_modify(|count| *count += 1);
        }
        Ok(())
    }

    async fn note_ends(&self) {
        let theirs = self.connection.remote_ip().await;
        self.ends.send_replace(theirs.and_then(|theirs| Some(Ends { ours: source_for(theirs)?, theirs })));
    }
}

/// The way that descriptions of an established link take on the client's side: a restart needs it.
pub struct Way {
    pub(super) sealer: Sealer,
    pub(super) me: PeerId,
    pub(super) other: PeerId,
    pub(super) attempt: String,
    pub(super) port: Port,
}

/// What the other side says of an established link through signaling.
#[derive(Debug, PartialEq, Eq)]
pub enum Word {
    /// Its address has changed, so long ago: a restart is wanted.
    Moved {
        /// How long.
        ago: Duration,
    },
}

impl Way {
    /// Takes what the server brought, if it is about this link.
    pub fn handle(&self, message: ToPeer) -> Option<Word> {
        if let ToPeer::PeerMessage { from_peer_id, payload, .. } = &message
            && *from_peer_id == self.other
            && let Some(sealed) = payload["moved"].as_str()
        {
            let opened = self.sealer.open(&self.other, &self.me, sealed).ok()?;
            let ago = Duration::from_millis(opened["ago_ms"].as_u64()?);
            return (opened["attempt"] == self.attempt).then_some(Word::Moved { ago });
        }
        if let Ok(Some(description)) = self.envelope().open(message) {
            // A full queue means that this connection does not keep up with candidates: it is judged by its bytes.
            let _ = self.port.tx.try_send(description);
        }
        None
    }

    /// The next message for the other side; cancel-safe.
    pub async fn next(&mut self) -> ToServer {
        loop {
            match self.port.rx.recv().await {
                Some(description) => {
                    if let Ok(message) = self.envelope().seal(&description) {
                        return message;
                    }
                }
                None => std::future::pending().await,
            }
        }
    }

    fn envelope(&self) -> Envelope<'_> {
        Envelope { sealer: &self.sealer, me: &self.me, other: &self.other, attempt: &self.attempt }
    }
}

/// Tells the client of an established link that our address has changed.
pub(super) fn moved(sealer: &Sealer, me: &PeerId, other: &PeerId, attempt: &str, ago: Duration) -> Result<ToServer, Failure> {
    let sealed = sealer.seal(me, other, &json!({ "attempt": attempt, "ago_ms": ago.as_millis() as u64 }))?;
    Ok(ToServer::PeerMessage { to_peer_id: other.clone(), payload: json!({ "moved": sealed }) })
}
