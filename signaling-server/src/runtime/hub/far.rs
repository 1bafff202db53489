//! The hub and the hubs of other processes: peers of a room are found wherever they are connected, and each has one socket in all.
//!
//! * [`Hub::admit`]: others find the peer here before it is told that it is registered; whoever had it before gives it up (see
//!   [`Rooms`](crate::domain::rooms) for which of two has it)
//! * [`Hub::forward`], [`Hub::peers`], [`Hub::rooms_of`], [`Hub::expel`]: here and elsewhere
//! * [`Hub::run`]: what nobody waits for, and what is to be caught up on when the way to the others is there again

use std::{sync::Arc, sync::PoisonError, time::Duration};

use futures_util::{StreamExt, future::join_all, stream};
use shared::domain::{
    error::{Code, Failure},
    id::{PeerId, RoomId},
    signal::{self, Filters, ToPeer},
};

use super::{Hub, Mailbox, Seat};
use crate::{
    domain::{
        cluster::{Ask, Reply},
        grant::Identity,
        listing::Listing,
        rooms::{Fenced, MAX_CONTACTS, Member},
    },
    runtime::relay::{Answer, Delivery, Link, Local},
};

/// What waits to be told to other processes.
pub(super) const ERRANDS: usize = 1024;
/// How many of them are told at once.
const AT_ONCE: usize = 64;
/// How many deletions are remembered for processes that cannot be reached.
const OWED: usize = 1024;
/// How long a list waits for servers that do not answer.
const LIST_PATIENCE: Duration = Duration::from_millis(500);
const PATIENCE: Duration = Duration::from_secs(2);

/// Something that nobody waits for.
pub(super) enum Errand {
    /// A contact that is connected elsewhere is to know that a peer has left.
    Tell { room: RoomId, peer: PeerId, to: PeerId },
    /// Other processes are to know that this peer is here.
    Announce { room: RoomId, peer: PeerId },
}

impl Hub {
    /// Gives an admitted peer its place, its mailbox, and the list of who else is there. When the same peer has registered once more
    /// meanwhile, here or elsewhere, the mailbox says so.
    ///
    /// # Errors
    /// As [`Rooms::join`](crate::domain::rooms::Rooms::join); [`Code::Unavailable`].
    pub async fn admit(self: &Arc<Self>, room: &RoomId, member: Member, session: u64) -> Result<(Seat, Mailbox, Listing), Failure> {
        let peer = member.peer.clone();
        let (mut seat, mailbox) = self.join(room, member, session)?;
        let lease = self.relay.lease(room, &peer).await;
        seat.lease = Some(lease.ok_or_else(|| Failure::new(Code::Unavailable, "the other servers cannot be told now; try again"))?);
        let ((), listing) = tokio::join!(self.announce(room, &peer), self.peers(room, Some(&peer), Filters::default()));
        Ok((seat, mailbox, listing))
    }

    /// Whom a room has, here and elsewhere. Servers that do not answer soon are left out.
    pub async fn peers(&self, room: &RoomId, asker: Option<&PeerId>, filters: Filters) -> Listing {
        let ours = self.state().rooms.peers(room, asker, &filters);
        let answers = self.relay.ask_all(Ask::Peers { room: room.clone(), filters }, LIST_PATIENCE).await;
        if answers.replies.is_empty() {
            return ours;
        }
        let theirs = answers.replies.into_iter().filter_map(|reply| match reply {
            Reply::Peers { listing } => Some(listing),
            _ => None,
        });
        Listing::merge(asker, std::iter::once(ours).chain(theirs).collect())
    }

    /// The rooms in which `caller` is connected as `peer`; not more than two of another server's.
    pub async fn rooms_of(&self, peer: &PeerId, caller: &Identity) -> Vec<RoomId> {
        let mut rooms = self.state().rooms.rooms_of(peer, caller);
        let answers = self.relay.ask_all(Ask::RoomsOf { peer: peer.clone(), caller: caller.clone() }, LIST_PATIENCE).await;
        for reply in answers.replies {
            if let Reply::Rooms { rooms: theirs } = reply {
                rooms.extend(theirs);
            }
        }
        rooms.sort();
        rooms.dedup();
        rooms
    }

    /// Closes the sockets of a deleted peer, or of a deleted room, unless they registered after number `up_to`. Processes that cannot be
    /// reached hear of it later.
    pub async fn expel(&self, room: &RoomId, peer: Option<&PeerId>, up_to: u64) {
        {
            let mut state = self.state();
            let outputs = state.rooms.expel(room, peer, up_to);
            self.perform(&mut state, outputs);
        }
        self.spread(Ask::Expel { room: room.clone(), peer: peer.cloned(), up_to }).await;
    }

    /// Tells all others of a deletion, now or later.
    async fn spread(&self, ask: Ask) {
        if self.relay.ask_all(ask.clone(), PATIENCE).await.complete {
            return;
        }
        let mut owed = self.owed.lock().unwrap_or_else(PoisonError::into_inner);
        if owed.len() >= OWED {
            tracing::warn!("a server that cannot be reached will not hear of a deletion; its sockets stay until they close by themselves");
            owed.pop_front();
        }
        owed.push_back(ask);
    }

    /// Brings a message to a peer that was not connected here.
    pub(super) async fn forward(&self, room: &RoomId, from: &PeerId, to: &PeerId, message: &ToPeer) -> Delivery {
        let (ask, text) = (Ask::Deliver { room: room.clone(), from: from.clone(), to: to.clone() }, signal::encode(message));
        let delivery = match self.relay.ask(room, to, ask, Some(text.clone())).await {
            Answer::Reply(Reply::Delivered) => Delivery::Delivered,
            Answer::Reply(Reply::Busy) => Delivery::Busy,
            // Perhaps it has just come here.
            Answer::Absent => return self.deliver(&mut self.state(), room, from, to, text),
            Answer::TooLarge => Delivery::TooLarge,
            Answer::Reply(_) | Answer::Unknown => Delivery::Unknown,
        };
        match delivery {
            Delivery::Delivered => self.state().rooms.met(room, from, to),
            _ => self.metrics.undelivered.increment(1),
        }
        delivery
    }

    /// Has every other process give up this peer, or gives it up.
    async fn announce(&self, room: &RoomId, peer: &PeerId) {
        let Some(session) = self.state().rooms.session(room, peer) else { return };
        match self.relay.ask(room, peer, Ask::Fence { room: room.clone(), peer: peer.clone(), session }, None).await {
            Answer::Reply(Reply::Fenced { contacts }) => {
                let mut state = self.state();
                for contact in contacts.iter().take(MAX_CONTACTS) {
                    state.rooms.met(room, peer, contact);
                }
            }
            Answer::Reply(Reply::Superseded { session }) => drop(self.fence(room, peer, session)),
            // Whoever could not be asked announces its own peers when it can be.
            Answer::Reply(_) | Answer::Absent | Answer::Unknown | Answer::TooLarge => {}
        }
    }

    fn fence(&self, room: &RoomId, peer: &PeerId, session: u64) -> Reply {
        let mut state = self.state();
        match state.rooms.fence(room, peer, session) {
            Fenced::Absent => Reply::Fenced { contacts: Vec::new() },
            Fenced::Superseded(session) => Reply::Superseded { session },
            Fenced::Given { contacts, outputs } => {
                self.perform(&mut state, outputs);
                self.metrics.fenced.increment(1);
                tracing::info!(%room, %peer, "the peer has registered with another server");
                Reply::Fenced { contacts }
            }
        }
    }

    pub(super) fn later(&self, errand: Errand) {
        if self.errands.try_send(errand).is_err() {
            tracing::warn!("too much is to be told to other servers; something of it is left out");
        }
    }

    /// The way to the other processes.
    pub fn link(&self) -> Link {
        self.relay.link().borrow().clone()
    }

    /// Does what nobody waits for, until the server goes down.
    pub async fn run(self: Arc<Self>) {
        let Some(mut to_do) = self.to_do.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
        let mut link = self.relay.link();
        link.mark_changed();
        let mut batch = Vec::with_capacity(AT_ONCE);
        loop {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                Ok(()) = link.changed() => {
                    let is_up = matches!(*link.borrow_and_update(), Link::Up(_));
                    if is_up {
                        self.stop.run_until_cancelled(self.catch_up()).await;
                    }
                }
                _ = to_do.recv_many(&mut batch, AT_ONCE) => drop(join_all(batch.drain(..).map(|errand| self.do_errand(errand))).await),
            }
        }
    }

    async fn do_errand(&self, errand: Errand) {
        match errand {
            Errand::Announce { room, peer } => self.announce(&room, &peer).await,
            Errand::Tell { room, peer, to } => {
                let ask = Ask::Left { room: room.clone(), peer, to: to.clone() };
                // Who is not reached has left, too, or its server is away; it is not told later, since the peer may be back by then.
                let _ = self.relay.ask(&room, &to, ask, None).await;
            }
        }
    }

    /// The way to the others is there again: deletions that they have missed, and peers that may have registered twice meanwhile.
    async fn catch_up(&self) {
        let owed = std::mem::take(&mut *self.owed.lock().unwrap_or_else(PoisonError::into_inner));
        stream::iter(owed).for_each_concurrent(AT_ONCE, |ask| self.spread(ask)).await;
        let everybody = self.state().rooms.everybody();
        stream::iter(everybody).for_each_concurrent(AT_ONCE, async |(room, peer)| self.announce(&room, &peer).await).await;
    }
}

impl Local for Hub {
    fn asked(&self, ask: Ask, text: Option<&str>) -> Option<Reply> {
        match ask {
            // Silence where the peer is no longer here: it may be with another server by now, which was asked, too.
            Ask::Deliver { room, from, to } => match self.deliver(&mut self.state(), &room, &from, &to, text?.to_owned()) {
                Delivery::Delivered => Some(Reply::Delivered),
                Delivery::Busy => Some(Reply::Busy),
                Delivery::Absent | Delivery::Unknown | Delivery::TooLarge => None,
            },
            Ask::Left { room, peer, to } => {
                let mut state = self.state();
                let outputs = state.rooms.left(&room, &peer, &to);
                self.perform(&mut state, outputs);
                Some(Reply::Done)
            }
            Ask::Fence { room, peer, session } => {
                let reply = self.fence(&room, &peer, session);
                if matches!(reply, Reply::Superseded { .. }) {
                    // The asker takes the first answer, which may be another server's.
                    self.later(Errand::Announce { room, peer });
                }
                Some(reply)
            }
            Ask::Expel { room, peer, up_to } => {
                let mut state = self.state();
                let outputs = state.rooms.expel(&room, peer.as_ref(), up_to);
                self.perform(&mut state, outputs);
                Some(Reply::Done)
            }
            Ask::Peers { room, filters } => Some(Reply::Peers { listing: self.state().rooms.peers(&room, None, &filters) }),
            Ask::RoomsOf { peer, caller } => {
                let mut rooms = self.state().rooms.rooms_of(&peer, &caller);
                rooms.truncate(2);
                Some(Reply::Rooms { rooms })
            }
            Ask::Hello { .. } | Ask::Unknown => None,
        }
    }
}
