//! Sockets ↔ rooms: gives each registered socket a bounded mailbox, and does what the pure [`Rooms`] wants done; what it takes other processes
//! for is in `far`.
//!
//! What happens when a mailbox is full ([`MAX_QUEUED`] messages or [`MAX_QUEUED_BYTES`]): a relayed message is refused with
//! `PEER_BUSY` to its sender; a notice of the server closes the socket, since it may not be lost silently.

mod far;

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use shared::domain::{
    error::{Code, Failure},
    id::{PeerId, RoomId},
    signal::{self, Filters, ToPeer, ToServer},
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use self::far::{ERRANDS, Errand};
use super::{
    metrics::Metrics,
    relay::{Delivery, Lease, Local, Relay},
};
use crate::domain::{
    cluster::Ask,
    rooms::{Closing, Member, Output, Rooms, SocketId},
};

/// Messages that wait for one socket.
pub const MAX_QUEUED: usize = 256;
/// Bytes that wait for one socket.
pub const MAX_QUEUED_BYTES: usize = 256 * 1024;

/// The sending end of a socket's queue.
struct Outbox {
    queue: mpsc::Sender<String>,
    waiting: Arc<AtomicUsize>,
    stop: Stop,
}

impl Outbox {
    /// False when there is no space. The bytes are counted before, so that two senders at once cannot both take the last space.
    fn push(&self, text: String) -> bool {
        let bytes = text.len();
        let before = self.waiting.fetch_add(bytes, Ordering::AcqRel);
        let pushed = before + bytes <= MAX_QUEUED_BYTES && self.queue.try_send(text).is_ok();
        if !pushed {
            self.waiting.fetch_sub(bytes, Ordering::AcqRel);
        }
        pushed
    }
}

/// Tells one socket's task to close, and why; the first reason counts.
#[derive(Clone)]
pub struct Stop {
    token: CancellationToken,
    why: Arc<OnceLock<Closing>>,
}

impl Stop {
    fn close(&self, why: Closing) {
        // A later reason loses; that is what OnceLock's error says.
        let _ = self.why.set(why);
        self.token.cancel();
    }

    /// Completes when the socket is to close.
    pub async fn stopped(&self) -> Closing {
        self.token.cancelled().await;
        self.why.get().copied().unwrap_or(Closing::Restarting)
    }
}

/// The receiving end, for the socket's task.
pub struct Mailbox {
    queue: mpsc::Receiver<String>,
    waiting: Arc<AtomicUsize>,
    /// When to close.
    pub stop: Stop,
}

impl Mailbox {
    /// The next message to send; pends for ever when the hub has dropped the other end, since `stop` says so then.
    pub async fn next(&mut self) -> String {
        match self.queue.recv().await {
            Some(text) => text,
            None => std::future::pending().await,
        }
    }

    /// Gives back the space of a message that was sent.
    pub fn sent(&self, bytes: usize) {
        self.waiting.fetch_sub(bytes, Ordering::AcqRel);
    }
}

/// A socket's place in its room; dropping it leaves the room.
pub struct Seat {
    hub: Arc<Hub>,
    socket: SocketId,
    room: RoomId,
    peer: PeerId,
    /// Other processes find the peer here.
    lease: Option<Lease>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.lease = None;
        let mut state = self.hub.state();
        state.outboxes.remove(&self.socket);
        let outputs = state.rooms.leave(self.socket);
        self.hub.perform(&mut state, outputs);
    }
}

impl Seat {
    /// Handles a message of this socket; returns the answers to itself.
    pub async fn handle(&self, message: ToServer) -> Vec<ToPeer> {
        let done = {
            let mut state = self.hub.state();
            let outputs = state.rooms.message(self.socket, message);
            self.hub.perform(&mut state, outputs)
        };
        let mut answers: Vec<ToPeer> = done.sends.into_iter().filter(|(to, _)| *to == self.socket).map(|(_, message)| message).collect();
        for (target, message) in done.forwards {
            let delivery = self.hub.forward(&self.room, &self.peer, &target, &message).await;
            answers.extend(refusal(delivery, target));
        }
        for filters in done.lists {
            let listing = self.hub.peers(&self.room, Some(&self.peer), filters).await;
            answers.push(ToPeer::PeerList { count: listing.count, peers: listing.peers });
        }
        answers
    }
}

#[derive(Default)]
struct Done {
    /// Answers for the socket whose message was handled.
    sends: Vec<(SocketId, ToPeer)>,
    forwards: Vec<(PeerId, ToPeer)>,
    lists: Vec<Filters>,
}

struct State {
    rooms: Rooms,
    outboxes: HashMap<SocketId, Outbox>,
}

/// All registered sockets of this process.
pub struct Hub {
    state: Mutex<State>,
    next: AtomicU64,
    relay: Arc<dyn Relay>,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
    errands: mpsc::Sender<Errand>,
    /// Taken by [`Hub::run`].
    to_do: Mutex<Option<mpsc::Receiver<Errand>>>,
    /// Deletions that other processes have yet to hear of.
    owed: Mutex<VecDeque<Ask>>,
}

impl Hub {
    /// No sockets. When `stop` is cancelled, every socket closes with [`Closing::Restarting`].
    pub fn new(peers_per_room: usize, relay: Arc<dyn Relay>, metrics: Arc<Metrics>, stop: CancellationToken) -> Arc<Self> {
        let state = Mutex::new(State { rooms: Rooms::new(peers_per_room), outboxes: HashMap::new() });
        let (errands, to_do) = mpsc::channel(ERRANDS);
        let (to_do, owed) = (Mutex::new(Some(to_do)), Mutex::default());
        let hub = Arc::new(Hub { state, next: AtomicU64::new(1), relay, metrics, stop, errands, to_do, owed });
        let local: Arc<dyn Local> = hub.clone();
        hub.relay.start(Arc::downgrade(&local));
        hub
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing under this lock panics on input; were it poisoned, serving on is better than taking every room down.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives an admitted peer its place and its mailbox; `session` is the number of its registration.
    ///
    /// # Errors
    /// As [`Rooms::join`].
    pub fn join(self: &Arc<Self>, room: &RoomId, member: Member, session: u64) -> Result<(Seat, Mailbox), Failure> {
        let socket = self.next.fetch_add(1, Ordering::Relaxed);
        let (queue, receiver) = mpsc::channel(MAX_QUEUED);
        let stop = Stop { token: self.stop.child_token(), why: Arc::default() };
        let waiting = Arc::new(AtomicUsize::new(0));
        let peer = member.peer.clone();
        let mut state = self.state();
        let outputs = state.rooms.join(socket, room, member, session)?;
        state.outboxes.insert(socket, Outbox { queue, waiting: waiting.clone(), stop: stop.clone() });
        self.perform(&mut state, outputs);
        let seat = Seat { hub: self.clone(), socket, room: room.clone(), peer, lease: None };
        Ok((seat, Mailbox { queue: receiver, waiting, stop }))
    }

    /// Gives a text to a peer of this process.
    fn deliver(&self, state: &mut State, room: &RoomId, from: &PeerId, to: &PeerId, text: String) -> Delivery {
        let delivery = match state.rooms.socket_of(room, to).and_then(|socket| state.outboxes.get(&socket)) {
            None => Delivery::Absent,
            Some(outbox) if outbox.push(text) => Delivery::Delivered,
            Some(_) => Delivery::Busy,
        };
        if delivery == Delivery::Delivered {
            state.rooms.met(room, from, to);
            self.metrics.relayed.increment(1);
        }
        delivery
    }

    /// Does what can be done without waiting; returns what cannot, and what is for the asking socket.
    fn perform(&self, state: &mut State, outputs: Vec<Output>) -> Done {
        let mut done = Done::default();
        for output in outputs {
            match output {
                Output::Send { to, message: message @ ToPeer::PeerLeft { .. } } => {
                    if let Some(outbox) = state.outboxes.get(&to).filter(|outbox| !outbox.push(signal::encode(&message))) {
                        outbox.stop.close(Closing::Slow);
                    }
                }
                Output::Send { to, message } => done.sends.push((to, message)),
                Output::Deliver { from, to, target, message } => {
                    let pushed = state.outboxes.get(&to).is_some_and(|outbox| outbox.push(signal::encode(&message)));
                    let delivery = if pushed { Delivery::Delivered } else { Delivery::Busy };
                    self.metrics.relayed.increment(u64::from(pushed));
                    done.sends.extend(refusal(delivery, target).map(|message| (from, message)));
                }
                Output::Forward { target, message, .. } => done.forwards.push((target, message)),
                Output::List { filters, .. } => done.lists.push(filters),
                Output::Tell { room, peer, to } => self.later(Errand::Tell { room, peer, to }),
                Output::Close { socket, why } => {
                    if let Some(outbox) = state.outboxes.remove(&socket) {
                        outbox.stop.close(why);
                    }
                }
            }
        }
        self.metrics.rooms.set(state.rooms.len() as f64);
        done
    }
}

fn refusal(delivery: Delivery, target: PeerId) -> Option<ToPeer> {
    let (code, message) = match delivery {
        Delivery::Delivered => return None,
        Delivery::Absent => (Code::PeerNotFound, format!("{target} is not connected to this room")),
        Delivery::Busy => (Code::PeerBusy, format!("{target} does not keep up; try again shortly")),
        Delivery::Unknown => (Code::Unavailable, format!("it is not known whether {target} was reached; try again")),
        Delivery::TooLarge => (Code::TooLarge, format!("the message is too large on its way to {target}; make it shorter")),
    };
    Some(ToPeer::Error { code, message, target: Some(target) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{domain::grant::Identity, runtime::relay::OneProcess};
    use serde_json::json;
    use shared::domain::signal::{Metadata, Role};

    fn hub() -> Arc<Hub> {
        Hub::new(10, Arc::new(OneProcess::default()), Arc::new(Metrics::new()), CancellationToken::new())
    }

    fn member(peer: &str) -> Member {
        let owner = Identity { subject: peer.into(), key: None };
        Member { peer: peer.parse().unwrap(), role: Role::Client, metadata: Metadata::new(), owner }
    }

    fn message(to: &str, bytes: usize) -> ToServer {
        ToServer::PeerMessage { to_peer_id: to.parse().unwrap(), payload: json!("x".repeat(bytes)) }
    }

    fn code(answers: &[ToPeer]) -> Option<Code> {
        match answers {
            [ToPeer::Error { code, .. }] => Some(*code),
            _ => None,
        }
    }

    #[tokio::test]
    async fn a_full_mailbox_refuses_and_takes_again_when_emptied() {
        let hub = hub();
        let room = "r".parse().unwrap();
        let (a, _) = hub.join(&room, member("a"), 1).unwrap();
        let (_b, mut mailbox, listing) = hub.admit(&room, member("b"), 2).await.unwrap();
        assert_eq!(listing.count, 1);
        for _ in 0..3 {
            assert_eq!(a.handle(message("b", 80_000)).await, []);
        }
        assert_eq!(code(&a.handle(message("b", 80_000)).await), Some(Code::PeerBusy));
        let text = mailbox.next().await;
        mailbox.sent(text.len());
        assert_eq!(a.handle(message("b", 80_000)).await, []);
    }

    #[tokio::test]
    async fn the_count_of_messages_is_bounded_too() {
        let hub = hub();
        let room = "r".parse().unwrap();
        let (a, _) = hub.join(&room, member("a"), 1).unwrap();
        let (_b, _mailbox) = hub.join(&room, member("b"), 2).unwrap();
        let mut busy = 0;
        for _ in 0..MAX_QUEUED + 5 {
            busy += usize::from(code(&a.handle(message("b", 1)).await) == Some(Code::PeerBusy));
        }
        assert_eq!(busy, 5);
    }

    #[tokio::test]
    async fn an_absent_peer_is_named_in_the_error() {
        let (a, _) = hub().join(&"r".parse().unwrap(), member("a"), 1).unwrap();
        let answers = a.handle(message("nobody", 1)).await;
        assert!(
            matches!(&answers[..], [ToPeer::Error { code: Code::PeerNotFound, target: Some(target), .. }] if target.as_str() == "nobody")
        );
    }

    #[tokio::test]
    async fn a_new_socket_of_the_same_peer_stops_the_old_one() {
        let hub = hub();
        let room = "r".parse().unwrap();
        let (old, old_mailbox) = hub.join(&room, member("a"), 1).unwrap();
        let (_new, mut mailbox) = hub.join(&room, member("a"), 2).unwrap();
        assert_eq!(old_mailbox.stop.stopped().await, Closing::Replaced);
        drop(old);
        let (b, _) = hub.join(&room, member("b"), 3).unwrap();
        assert_eq!(b.handle(message("a", 1)).await, []);
        assert!(mailbox.next().await.contains("\"from_peer_id\":\"b\""));
    }

    #[tokio::test]
    async fn leaving_tells_the_contacts() {
        let hub = hub();
        let room = "r".parse().unwrap();
        let (a, _) = hub.join(&room, member("a"), 1).unwrap();
        let (_b, mut mailbox) = hub.join(&room, member("b"), 2).unwrap();
        a.handle(message("b", 1)).await;
        drop(a);
        assert!(mailbox.next().await.contains("peer_message"));
        assert_eq!(mailbox.next().await, r#"{"type":"peer_left","peer_id":"a"}"#);
    }
}
