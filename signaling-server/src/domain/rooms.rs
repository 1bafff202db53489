//! Who is connected to which room of this process, and what happens to each message.
//!
//! A pure machine: sockets are numbers, and what it wants done comes back as [`Output`]s.
//! * [`Rooms::join`]: after admission; the newest socket of a peer wins, the old one is closed
//! * [`Rooms::message`]: from a registered socket; the sender is whoever joined with that socket
//! * [`Rooms::leave`]: tells the peers that had exchanged messages with it
//! * [`Rooms::expel`]: when a peer or a room was deleted
//! * [`Rooms::fence`]: when the same peer has registered with another process
//!
//! # One peer, one socket, with several processes
//! Each registration has a number that the room's record gives out (`Room::sessions`): of two, the higher is the newer, whichever server it
//! was made with and whatever their clocks say. A process that has a peer, and hears of a registration with a higher number, closes its own
//! socket ([`Closing::Replaced`]); one that hears of a lower number says so, and the other one closes. A process takes questions about
//! a peer before it asks them, so that of two registrations at once one process at least hears of the other's. After a break
//! between the processes each asks about all of its peers again. So whatever the order, the highest number alone is left
//! (`one_socket_a_peer_is_left` below).
//!
//! Asking the room's record instead, before each message, would cost a read of the store a message; a lease in it would keep a peer whose
//! server was killed waiting until it ends.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use shared::domain::{
    error::{Code, Failure},
    id::{PeerId, RoomId},
    signal::{Filters, Metadata, PeerInfo, Role, ToPeer, ToServer},
};

use super::{
    grant::{Identity, Refusal},
    listing::Listing,
};

/// One socket of this process, never used twice.
pub type SocketId = u64;

/// The most bytes of a peer's metadata as JSON.
pub const MAX_METADATA: usize = 16 * 1024;
/// How many peers hear that one has left, at most.
pub const MAX_CONTACTS: usize = 200;

/// Why the server closes a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Closing {
    /// The peer went away by itself.
    Gone,
    /// The server is going down; come back soon.
    Restarting,
    /// The same peer has connected again.
    Replaced,
    /// The peer or its room was deleted.
    Expelled,
    /// No registration in time, or nothing heard for too long.
    Silent,
    /// The registration was refused too often.
    Refused,
    /// Too many messages.
    Flooding,
    /// It does not read what it is sent.
    Slow,
    /// A binary message.
    Binary,
    /// A message over the limit.
    TooLarge,
    /// A text that is not UTF-8.
    NotText,
    /// Not WebSocket.
    Protocol,
}

impl Closing {
    /// The close code: RFC 6455 §7.4.1 where it has one, 4000 + the nearest HTTP status where not.
    pub fn code(self) -> u16 {
        match self {
            Closing::Gone => 1000,
            Closing::Protocol => 1002,
            Closing::Binary => 1003,
            Closing::NotText => 1007,
            Closing::TooLarge => 1009,
            Closing::Restarting => 1012,
            Closing::Refused => 4403,
            Closing::Silent => 4408,
            Closing::Replaced => 4409,
            Closing::Expelled => 4410,
            Closing::Flooding => 4429,
            Closing::Slow => 4413,
        }
    }

    /// One short sentence for the peer.
    pub fn reason(self) -> &'static str {
        match self {
            Closing::Gone => "goodbye",
            Closing::Restarting => "the server restarts; reconnect",
            Closing::Replaced => "the same peer has connected again",
            Closing::Expelled => "the peer or its room was deleted",
            Closing::Silent => "nothing was heard for too long",
            Closing::Refused => "the registration was refused too often",
            Closing::Flooding => "too many messages",
            Closing::Slow => "messages were not read",
            Closing::Binary => "only text messages are spoken here",
            Closing::TooLarge => "the message is too large",
            Closing::NotText => "the text is not UTF-8",
            Closing::Protocol => "this is not WebSocket",
        }
    }
}

/// What a peer joins with.
#[derive(Debug, Clone, PartialEq)]
pub struct Member {
    /// Its id.
    pub peer: PeerId,
    /// What it is.
    pub role: Role,
    /// What it says about itself.
    pub metadata: Metadata,
    /// Who it is.
    pub owner: Identity,
}

/// What the machine wants done.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// Tell this socket. When it has no space left, it is closed.
    Send {
        /// Whom.
        to: SocketId,
        /// What.
        message: ToPeer,
    },
    /// Bring one peer's message to another. When that one has no space left, tell the sender.
    Deliver {
        /// Whose message it is.
        from: SocketId,
        /// The receiver's socket.
        to: SocketId,
        /// The receiver.
        target: PeerId,
        /// What.
        message: ToPeer,
    },
    /// The receiver is not connected here; perhaps to another process.
    Forward {
        /// Whose message it is.
        from: SocketId,
        /// The room of both.
        room: RoomId,
        /// The receiver.
        target: PeerId,
        /// What.
        message: ToPeer,
    },
    /// A contact that is not connected here is to know that a peer has left.
    Tell {
        /// The room of both.
        room: RoomId,
        /// Who has left.
        peer: PeerId,
        /// Whom to tell.
        to: PeerId,
    },
    /// List the room's peers for this socket, those of other processes, too.
    List {
        /// Whom to answer.
        to: SocketId,
        /// Which of them.
        filters: Filters,
    },
    /// Close this socket; it is no longer in a room.
    Close {
        /// Which.
        socket: SocketId,
        /// Why.
        why: Closing,
    },
}

/// What becomes of a peer that has registered elsewhere.
#[derive(Debug, Clone, PartialEq)]
pub enum Fenced {
    /// It is not here.
    Absent,
    /// Its registration here is newer; this is its number.
    Superseded(u64),
    /// It was given up.
    Given {
        /// Whom to tell when it leaves.
        contacts: Vec<PeerId>,
        /// What is to be done.
        outputs: Vec<Output>,
    },
}

struct Live {
    socket: SocketId,
    member: Member,
    /// The number of the registration.
    session: u64,
    metadata_bytes: usize,
    /// Who has exchanged messages with it and has not left; of two that are here, each is in the other's set.
    contacts: BTreeSet<PeerId>,
}

/// The connected peers of this process.
#[derive(Default)]
pub struct Rooms {
    /// In boxes: a map's node has space for eleven values, and most rooms have two peers.
    rooms: HashMap<RoomId, BTreeMap<PeerId, Box<Live>>>,
    sockets: HashMap<SocketId, (RoomId, PeerId)>,
    peers_per_room: usize,
}

impl Rooms {
    /// No rooms; each may have this many connected peers.
    pub fn new(peers_per_room: usize) -> Self {
        Rooms { peers_per_room, ..Self::default() }
    }

    /// How many rooms have a connected peer.
    pub fn len(&self) -> usize {
        self.rooms.len()
    }

    /// Whether nobody is connected.
    pub fn is_empty(&self) -> bool {
        self.rooms.is_empty()
    }

    /// The room and the peer of a socket.
    pub fn member(&self, socket: SocketId) -> Option<(&RoomId, &Member)> {
        let (room, peer) = self.sockets.get(&socket)?;
        Some((room, &self.rooms.get(room)?.get(peer)?.member))
    }

    /// The rooms in which `caller` is connected as `peer`.
    pub fn rooms_of(&self, peer: &PeerId, caller: &Identity) -> Vec<RoomId> {
        let is_callers = |live: &Live| live.member.owner.is(caller);
        self.rooms.iter().filter(|(_, peers)| peers.get(peer).is_some_and(|live| is_callers(live))).map(|(room, _)| room.clone()).collect()
    }

    /// A socket whose peer the room has admitted, with the number of this registration. An older socket of the same peer is closed; its
    /// contacts stay the peer's. If this is the older one, it is closed itself.
    ///
    /// # Errors
    /// [`Code::PeerIdTaken`], [`Code::TooLarge`] (metadata), [`Code::Unavailable`] (room full).
    pub fn join(&mut self, socket: SocketId, room: &RoomId, member: Member, session: u64) -> Result<Vec<Output>, Failure> {
        let metadata_bytes = checked_metadata(&member.metadata)?;
        let peers = self.rooms.entry(room.clone()).or_default();
        let full = peers.len() >= self.peers_per_room;
        let mut outputs = Vec::new();
        let contacts = match peers.get(&member.peer) {
            Some(old) if !old.member.owner.is(&member.owner) => return Err(Refusal::PeerTaken.into()),
            Some(old) if old.session > session => return Ok(vec![Output::Close { socket, why: Closing::Replaced }]),
            Some(old) => {
                self.sockets.remove(&old.socket);
                outputs.push(Output::Close { socket: old.socket, why: Closing::Replaced });
                old.contacts.clone()
            }
            None if full => return Err(Failure::new(Code::Unavailable, "the room is full; try again when a peer has left")),
            // It may have been a contact while it was connected to another process.
            None => peers.iter().filter(|(_, live)| live.contacts.contains(&member.peer)).map(|(peer, _)| peer.clone()).collect(),
        };
        self.sockets.insert(socket, (room.clone(), member.peer.clone()));
        peers.insert(member.peer.clone(), Box::new(Live { socket, member, session, metadata_bytes, contacts }));
        Ok(outputs)
    }

    /// A socket that has ended. Without effect when it was replaced or expelled before.
    pub fn leave(&mut self, socket: SocketId) -> Vec<Output> {
        let Some((room, peer)) = self.sockets.remove(&socket) else { return Vec::new() };
        self.remove(&room, &peer).map(|(_, outputs)| outputs).unwrap_or_default()
    }

    /// The same peer has registered with another process, under this number.
    pub fn fence(&mut self, room: &RoomId, peer: &PeerId, session: u64) -> Fenced {
        let Some(peers) = self.rooms.get_mut(room) else { return Fenced::Absent };
        match peers.get(peer) {
            None => return Fenced::Absent,
            Some(live) if live.session > session => return Fenced::Superseded(live.session),
            Some(_) => {}
        }
        let Some(gone) = peers.remove(peer) else { return Fenced::Absent };
        if peers.is_empty() {
            self.rooms.remove(room);
        }
        self.sockets.remove(&gone.socket);
        let outputs = vec![Output::Close { socket: gone.socket, why: Closing::Replaced }];
        Fenced::Given { contacts: gone.contacts.into_iter().collect(), outputs }
    }

    /// Two peers have exchanged messages, or had before one of them came here: if one leaves, the other is told.
    pub fn met(&mut self, room: &RoomId, a: &PeerId, b: &PeerId) {
        let Some(peers) = self.rooms.get_mut(room).filter(|_| a != b) else { return };
        let full = [a, b].iter().any(|peer| peers.get(peer).is_some_and(|live| live.contacts.len() >= MAX_CONTACTS));
        if full {
            return;
        }
        for (peer, other) in [(a, b), (b, a)] {
            if let Some(live) = peers.get_mut(peer) {
                live.contacts.insert(other.clone());
            }
        }
    }

    /// A peer that is connected to another process has left; `to` may have exchanged messages with it.
    pub fn left(&mut self, room: &RoomId, peer: &PeerId, to: &PeerId) -> Vec<Output> {
        let Some(peers) = self.rooms.get_mut(room).filter(|peers| !peers.contains_key(peer)) else { return Vec::new() };
        let Some(live) = peers.get_mut(to) else { return Vec::new() };
        if !live.contacts.remove(peer) {
            return Vec::new();
        }
        vec![Output::Send { to: live.socket, message: ToPeer::PeerLeft { peer_id: peer.clone() } }]
    }

    /// The number of a connected peer's registration.
    pub fn session(&self, room: &RoomId, peer: &PeerId) -> Option<u64> {
        Some(self.rooms.get(room)?.get(peer)?.session)
    }

    /// Everybody who is connected to this process.
    pub fn everybody(&self) -> Vec<(RoomId, PeerId)> {
        self.sockets.values().cloned().collect()
    }

    /// Closes the sockets of one peer of a room, or of all, unless their registration came after number `up_to`.
    pub fn expel(&mut self, room: &RoomId, peer: Option<&PeerId>, up_to: u64) -> Vec<Output> {
        let peers: Vec<PeerId> = match (peer, self.rooms.get(room)) {
            (Some(peer), _) => vec![peer.clone()],
            (None, Some(peers)) => peers.keys().cloned().collect(),
            (None, None) => Vec::new(),
        };
        let mut outputs = Vec::new();
        for peer in peers {
            if self.session(room, &peer).is_none_or(|session| session > up_to) {
                continue;
            }
            if let Some((socket, told)) = self.remove(room, &peer) {
                self.sockets.remove(&socket);
                outputs.extend(told);
                outputs.push(Output::Close { socket, why: Closing::Expelled });
            }
        }
        outputs
    }

    fn remove(&mut self, room: &RoomId, peer: &PeerId) -> Option<(SocketId, Vec<Output>)> {
        let peers = self.rooms.get_mut(room)?;
        let gone = peers.remove(peer)?;
        let mut outputs = Vec::new();
        for contact in &gone.contacts {
            if let Some(live) = peers.get_mut(contact) {
                live.contacts.remove(peer);
                outputs.push(Output::Send { to: live.socket, message: ToPeer::PeerLeft { peer_id: peer.clone() } });
            } else {
                outputs.push(Output::Tell { room: room.clone(), peer: peer.clone(), to: contact.clone() });
            }
        }
        if peers.is_empty() {
            self.rooms.remove(room);
        }
        Some((gone.socket, outputs))
    }

    /// A message from a registered socket. `renew` is not for this machine: it is about the stored room.
    pub fn message(&mut self, socket: SocketId, message: ToServer) -> Vec<Output> {
        let Some((room, sender)) = self.sockets.get(&socket).cloned() else { return Vec::new() };
        match message {
            ToServer::Offer { target, sdp } => self.relay(socket, room, &sender, target, ToPeer::Offer { sender: sender.clone(), sdp }),
            ToServer::Answer { target, sdp } => self.relay(socket, room, &sender, target, ToPeer::Answer { sender: sender.clone(), sdp }),
            ToServer::Candidate { target, candidate } => {
                self.relay(socket, room, &sender, target, ToPeer::Candidate { sender: sender.clone(), candidate })
            }
            ToServer::PeerMessage { to_peer_id, payload } => {
                let message = ToPeer::PeerMessage { from_peer_id: sender.clone(), to_peer_id: to_peer_id.clone(), payload };
                self.relay(socket, room, &sender, to_peer_id, message)
            }
            ToServer::DiscoverPeers { filters } => vec![Output::List { to: socket, filters }],
            ToServer::UpdateMetadata { metadata } => {
                let message = self.update_metadata(&room, &sender, metadata).map_or_else(error, |()| ToPeer::MetadataUpdated);
                vec![Output::Send { to: socket, message }]
            }
            ToServer::Register { .. } | ToServer::Prove { .. } => refuse(socket, "this socket is registered already; open another one"),
            ToServer::Renew | ToServer::DeleteRoom | ToServer::Unknown => refuse(socket, "no message type that this server knows"),
        }
    }

    fn relay(&mut self, from: SocketId, room: RoomId, sender: &PeerId, target: PeerId, message: ToPeer) -> Vec<Output> {
        let Some(to) = self.socket_of(&room, &target) else { return vec![Output::Forward { from, room, target, message }] };
        self.met(&room, sender, &target);
        vec![Output::Deliver { from, to, target, message }]
    }

    /// A message that came from another process for a peer that may be here: the socket to deliver it to.
    pub fn socket_of(&self, room: &RoomId, peer: &PeerId) -> Option<SocketId> {
        Some(self.rooms.get(room)?.get(peer)?.socket)
    }

    fn update_metadata(&mut self, room: &RoomId, peer: &PeerId, metadata: Metadata) -> Result<(), Failure> {
        let bytes = checked_metadata(&metadata)?;
        if let Some(live) = self.rooms.get_mut(room).and_then(|peers| peers.get_mut(peer)) {
            live.metadata_bytes = bytes;
            live.member.metadata = metadata;
        }
        Ok(())
    }

    /// The peers of a room that match, but not `asker`.
    pub fn peers(&self, room: &RoomId, asker: Option<&PeerId>, filters: &Filters) -> Listing {
        let others = self.rooms.get(room).into_iter().flatten().filter(|(peer, _)| Some(*peer) != asker).map(|(_, live)| &**live);
        let matching: Vec<&Live> = others.filter(|live| filters.role.is_none_or(|role| role == live.member.role)).collect();
        Listing::of(matching, |live| live.member.role, |live| live.metadata_bytes, info)
    }
}

fn info(live: &Live) -> PeerInfo {
    PeerInfo { peer_id: live.member.peer.clone(), role: live.member.role, metadata: live.member.metadata.clone() }
}

/// The size of the metadata as JSON.
///
/// # Errors
/// [`Code::TooLarge`] when it is over [`MAX_METADATA`].
pub fn checked_metadata(metadata: &Metadata) -> Result<usize, Failure> {
    let bytes = serde_json::to_string(metadata).map_or(usize::MAX, |text| text.len());
    if bytes > MAX_METADATA {
        return Err(Failure::new(Code::TooLarge, format!("the metadata has {bytes} bytes as JSON; at most {MAX_METADATA} are allowed")));
    }
    Ok(bytes)
}

fn error(failure: Failure) -> ToPeer {
    ToPeer::Error { code: failure.code, message: failure.message, target: None }
}

fn refuse(socket: SocketId, why: &str) -> Vec<Output> {
    vec![Output::Send { to: socket, message: error(Failure::new(Code::InvalidRequest, why)) }]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn id<T: std::str::FromStr<Err = Failure>>(text: &str) -> T {
        text.parse().unwrap()
    }

    fn member(peer: &str, subject: &str) -> Member {
        let role = if peer.starts_with('w') { Role::Worker } else { Role::Client };
        Member { peer: id(peer), role, metadata: Metadata::new(), owner: Identity { subject: subject.into(), key: None } }
    }

    /// Worker `w` (socket 1) and client `c` (socket 2) in room `r`.
    fn pair() -> Rooms {
        let mut rooms = Rooms::new(3);
        rooms.join(1, &id("r"), member("w", "ws"), 1).unwrap();
        rooms.join(2, &id("r"), member("c", "cs"), 2).unwrap();
        rooms
    }

    fn offer(target: &str) -> ToServer {
        ToServer::Offer { target: id(target), sdp: json!("sealed") }
    }

    fn left(to: SocketId, peer: &str) -> Output {
        Output::Send { to, message: ToPeer::PeerLeft { peer_id: id(peer) } }
    }

    #[test]
    fn the_sender_is_whoever_holds_the_socket() {
        let message = ToPeer::Offer { sender: id("c"), sdp: json!("sealed") };
        assert_eq!(pair().message(2, offer("w")), [Output::Deliver { from: 2, to: 1, target: id("w"), message }]);
    }

    #[test]
    fn rooms_do_not_see_each_other() {
        let mut rooms = pair();
        rooms.join(3, &id("other"), member("x", "xs"), 3).unwrap();
        assert!(matches!(rooms.message(3, offer("w"))[..], [Output::Forward { from: 3, .. }]));
        assert_eq!(rooms.peers(&id("other"), Some(&id("x")), &Filters::default()), Listing::default());
    }

    #[test]
    fn only_peers_that_talked_hear_that_one_left() {
        let mut rooms = pair();
        rooms.join(3, &id("r"), member("d", "ds"), 3).unwrap();
        rooms.message(2, offer("w"));
        assert_eq!(rooms.leave(1), [left(2, "w")]);
        assert_eq!(rooms.leave(2), []);
        assert_eq!(rooms.leave(2), []);
        rooms.leave(3);
        assert!(rooms.is_empty());
    }

    #[test]
    fn the_owners_new_socket_closes_the_old_one_and_keeps_the_contacts() {
        let mut rooms = pair();
        rooms.message(2, offer("w"));
        let outputs = rooms.join(9, &id("r"), member("w", "ws"), 9).unwrap();
        assert_eq!(outputs, [Output::Close { socket: 1, why: Closing::Replaced }]);
        assert_eq!(rooms.leave(1), [], "the replaced socket takes nobody with it");
        assert_eq!(rooms.message(1, offer("c")), []);
        assert_eq!(rooms.leave(9), [left(2, "w")]);
    }

    #[test]
    fn somebody_else_cannot_take_a_connected_peer_id() {
        let mut rooms = pair();
        assert_eq!(rooms.join(3, &id("r"), member("w", "thief"), 3).unwrap_err().code, Code::PeerIdTaken);
        assert_eq!(rooms.socket_of(&id("r"), &id("w")), Some(1));
    }

    #[test]
    fn a_full_room_takes_nobody_new_and_its_own_again() {
        let mut rooms = pair();
        rooms.join(3, &id("r"), member("d", "ds"), 3).unwrap();
        assert_eq!(rooms.join(4, &id("r"), member("e", "es"), 4).unwrap_err().code, Code::Unavailable);
        rooms.join(5, &id("r"), member("d", "ds"), 5).unwrap();
    }

    #[test]
    fn expelling_tells_the_others_and_closes_the_socket() {
        let mut rooms = pair();
        rooms.message(2, offer("w"));
        assert_eq!(rooms.expel(&id("r"), Some(&id("c")), 9), [left(1, "c"), Output::Close { socket: 2, why: Closing::Expelled }]);
        assert_eq!(rooms.expel(&id("r"), None, 9), [Output::Close { socket: 1, why: Closing::Expelled }]);
        assert!(rooms.is_empty() && rooms.member(1).is_none());
    }

    #[test]
    fn lists_name_workers_first_and_fit_a_message() {
        let mut rooms = Rooms::new(1000);
        let text = "x".repeat(MAX_METADATA - 20);
        for n in 0..20 {
            let mut big = member(&format!("c{n}"), "s");
            big.metadata.insert("note".into(), json!(text));
            rooms.join(n, &id("r"), big, n).unwrap();
        }
        rooms.join(50, &id("r"), member("w", "ws"), 50).unwrap();
        let Listing { count, peers } = rooms.peers(&id("r"), Some(&id("c0")), &Filters::default());
        assert_eq!((count, peers[0].peer_id.as_str()), (20, "w"));
        let encoded = shared::domain::signal::encode(&ToPeer::PeerList { count, peers });
        assert!(encoded.len() < shared::domain::signal::MAX_MESSAGE, "{}", encoded.len());
        let workers = rooms.peers(&id("r"), Some(&id("c0")), &Filters { role: Some(Role::Worker) });
        assert_eq!(workers.count, 1);
    }

    #[test]
    fn metadata_is_replaced_unless_it_is_too_large() {
        let mut rooms = pair();
        let metadata: Metadata = serde_json::from_value(json!({"status": "busy"})).unwrap();
        let answer = rooms.message(1, ToServer::UpdateMetadata { metadata: metadata.clone() });
        assert_eq!(answer, [Output::Send { to: 1, message: ToPeer::MetadataUpdated }]);
        let big = serde_json::from_value(json!({"x": "x".repeat(MAX_METADATA)})).unwrap();
        let answer = rooms.message(1, ToServer::UpdateMetadata { metadata: big });
        assert!(matches!(&answer[..], [Output::Send { message: ToPeer::Error { code: Code::TooLarge, .. }, .. }]));
        assert_eq!(rooms.peers(&id("r"), Some(&id("c")), &Filters::default()).peers[0].metadata, metadata);
    }

    #[test]
    fn of_two_registrations_the_higher_number_has_the_peer() {
        let mut rooms = pair();
        rooms.join(7, &id("r"), member("w", "ws"), 7).unwrap();
        let late = rooms.join(8, &id("r"), member("w", "ws"), 6).unwrap();
        assert_eq!(late, [Output::Close { socket: 8, why: Closing::Replaced }]);
        assert_eq!((rooms.socket_of(&id("r"), &id("w")), rooms.session(&id("r"), &id("w"))), (Some(7), Some(7)));
        assert_eq!(rooms.fence(&id("r"), &id("w"), 6), Fenced::Superseded(7));
        assert_eq!(rooms.fence(&id("r"), &id("x"), 6), Fenced::Absent);
        let outputs = vec![Output::Close { socket: 7, why: Closing::Replaced }];
        assert_eq!(rooms.fence(&id("r"), &id("w"), 8), Fenced::Given { contacts: vec![], outputs });
        assert_eq!(rooms.expel(&id("r"), Some(&id("c")), 1), [], "registered after the deletion");
    }

    #[test]
    fn contacts_of_other_processes_hear_that_a_peer_left_and_are_heard_of() {
        let mut rooms = pair();
        rooms.met(&id("r"), &id("w"), &id("far"));
        assert_eq!(rooms.left(&id("r"), &id("far"), &id("c")), [], "a stranger to it");
        assert_eq!(rooms.left(&id("r"), &id("far"), &id("w")), [left(1, "far")]);
        assert_eq!(rooms.left(&id("r"), &id("far"), &id("w")), [], "told once");
        rooms.met(&id("r"), &id("w"), &id("far"));
        assert_eq!(rooms.leave(1), [Output::Tell { room: id("r"), peer: id("w"), to: id("far") }]);
    }

    #[test]
    fn a_peer_takes_its_contacts_along_to_another_process() {
        let (mut one, mut two) = (pair(), Rooms::new(3));
        one.message(2, offer("w"));
        two.join(9, &id("r"), member("w", "ws"), 9).unwrap();
        let Fenced::Given { contacts, .. } = one.fence(&id("r"), &id("w"), 9) else { panic!("it was here") };
        assert_eq!(contacts, [id("c")]);
        for contact in &contacts {
            two.met(&id("r"), &id("w"), contact);
        }
        assert_eq!(two.leave(9), [Output::Tell { room: id("r"), peer: id("w"), to: id("c") }]);
        assert_eq!(one.left(&id("r"), &id("w"), &id("c")), [left(2, "w")]);
    }

    /// What must hold between any two calls.
    fn check(rooms: &Rooms) {
        for (socket, (room, peer)) in &rooms.sockets {
            assert_eq!(rooms.rooms[room][peer].socket, *socket);
        }
        let live = rooms.rooms.values().map(BTreeMap::len).sum::<usize>();
        assert_eq!(live, rooms.sockets.len());
        for peers in rooms.rooms.values() {
            assert!(!peers.is_empty());
            for (peer, live) in peers {
                let is_mutual = |contact: &PeerId| peers.get(contact).is_none_or(|other| other.contacts.contains(peer));
                assert!(live.contacts.iter().all(is_mutual) && !live.contacts.contains(peer), "contacts that are here are mutual");
            }
        }
    }

    proptest! {
        #[test]
        fn whatever_happens_sockets_and_contacts_agree(steps in proptest::collection::vec((0u8..8, 0u8..2, 0u8..4, 0u8..4), 0..80)) {
            let mut rooms = Rooms::new(3);
            for (socket, (action, room, a, b)) in (1..).zip(steps) {
                let (room, peer, other): (RoomId, PeerId, PeerId) = (id(&format!("r{room}")), id(&format!("p{a}")), id(&format!("p{b}")));
                let held = rooms.socket_of(&room, &peer);
                let outputs = match (action, held) {
                    (0 | 1, _) => rooms.join(socket, &room, member(peer.as_str(), peer.as_str()), socket).unwrap_or_default(),
                    (2, Some(held)) => rooms.message(held, offer(other.as_str())),
                    (3, Some(held)) => rooms.leave(held),
                    (5, _) => {
                        rooms.met(&room, &peer, &other);
                        Vec::new()
                    }
                    (6, _) => rooms.left(&room, &other, &peer),
                    (7, _) => match rooms.fence(&room, &peer, u64::from(a) * 30) {
                        Fenced::Given { outputs, .. } => outputs,
                        _ => Vec::new(),
                    },
                    (4, _) => rooms.expel(&room, (b > 0).then_some(&peer), u64::MAX),
                    _ => Vec::new(),
                };
                check(&rooms);
                for output in outputs {
                    match output {
                        Output::Send { to, .. } | Output::Deliver { to, .. } => {
                            let gone_in_the_same_step = action == 4;
                            prop_assert!(rooms.member(to).is_some() || gone_in_the_same_step);
                        }
                        Output::Close { socket, .. } => prop_assert!(rooms.member(socket).is_none()),
                        Output::Forward { target, .. } => prop_assert!(rooms.socket_of(&room, &target).is_none()),
                        Output::Tell { room, to, .. } => prop_assert!(rooms.socket_of(&room, &to).is_none()),
                        Output::List { .. } => {}
                    }
                }
            }
        }
    }

    #[derive(Clone, Copy)]
    enum Said {
        Fence(u64),
        Superseded(u64),
    }

    /// Several processes and what is under way between them, for one peer of one room.
    struct Processes {
        rooms: Vec<Rooms>,
        /// Whether questions about the peer reach it.
        listens: Vec<bool>,
        cut: Vec<bool>,
        under_way: Vec<(usize, usize, Said)>,
        to_announce: Vec<usize>,
        last_session: u64,
    }

    impl Processes {
        fn new(count: usize) -> Self {
            let rooms = (0..count).map(|_| Rooms::new(3)).collect();
            let (listens, cut) = (vec![false; count], vec![false; count]);
            Processes { rooms, listens, cut, under_way: vec![], to_announce: vec![], last_session: 0 }
        }

        fn register(&mut self, at: usize) {
            self.last_session += 1;
            self.rooms[at].join(self.last_session, &id("r"), member("p", "s"), self.last_session).unwrap();
            self.to_announce.push(at);
        }

        fn announce(&mut self, at: usize) {
            self.listens[at] = true;
            let Some(session) = self.rooms[at].session(&id("r"), &id("p")).filter(|_| !self.cut[at]) else { return };
            let others = (0..self.rooms.len()).filter(|&other| other != at && self.listens[other] && !self.cut[other]);
            self.under_way.extend(others.map(|other| (at, other, Said::Fence(session))));
        }

        fn mend(&mut self, at: usize) {
            self.cut[at] = false;
            self.to_announce.push(at);
        }

        fn deliver(&mut self, (from, at, said): (usize, usize, Said), answer_is_lost: bool) {
            if self.cut[at] {
                return;
            }
            let (Said::Fence(session) | Said::Superseded(session)) = said;
            let fenced = self.rooms[at].fence(&id("r"), &id("p"), session);
            if let (Fenced::Superseded(newer), Said::Fence(_)) = (fenced, said) {
                self.to_announce.push(at);
                if !answer_is_lost && !self.cut[from] {
                    self.under_way.push((at, from, Said::Superseded(newer)));
                }
            }
        }

        /// One thing happens, which is up to `choice`. False when there is nothing left.
        fn step(&mut self, choice: usize) -> bool {
            let (waiting, under_way) = (self.to_announce.len(), self.under_way.len());
            if waiting + under_way == 0 {
                return false;
            }
            match choice % (waiting + under_way) {
                n if n < waiting => {
                    let at = self.to_announce.swap_remove(n);
                    self.announce(at);
                }
                n => {
                    let message = self.under_way.swap_remove(n - waiting);
                    self.deliver(message, choice % 7 < 3);
                }
            }
            true
        }
    }

    proptest! {
        #[test]
        fn one_socket_a_peer_is_left(
            steps in proptest::collection::vec((0usize..6, 0usize..3, any::<usize>()), 1..60),
            order in proptest::collection::vec(any::<usize>(), 1..20),
        ) {
            let mut processes = Processes::new(3);
            for (action, at, choice) in steps {
                match action {
                    0 => processes.register(at),
                    1 => processes.cut[at] = true,
                    2 => processes.mend(at),
                    _ => drop(processes.step(choice)),
                }
            }
            for at in 0..3 {
                processes.mend(at);
            }
            let mut choices = order.iter().cycle();
            let mut left = 10_000;
            while processes.step(*choices.next().unwrap()) {
                left -= 1;
                prop_assert!(left > 0, "they never come to an end");
            }
            let holders: Vec<u64> = processes.rooms.iter().filter_map(|rooms| rooms.session(&id("r"), &id("p"))).collect();
            let expected: Vec<u64> = (processes.last_session > 0).then_some(processes.last_session).into_iter().collect();
            prop_assert_eq!(holders, expected);
        }
    }
}
