//! The room record: who owns the room and each peer id in it, and when it stops admitting.
//!
//! All rules are here and pure, so that each store only has to read, apply and write atomically.
//! ```text
//!   created ──► admitting ──expires_at──► expired (owner may renew) ──GRACE──► gone (swept)
//!                   ▲                            │
//!                   └────────── renew ───────────┘
//! ```
//! An expired room admits nobody and looks like no room. Sockets that are connected stay: expiry is about admission.

use std::{collections::BTreeMap, fmt, str::FromStr};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use shared::domain::{
    error::{Code, Failure},
    id::{PeerId, RoomId},
};

/// How long a room admits peers unless its creator says otherwise, in seconds.
pub const DEFAULT_TTL: u64 = 2 * 3600;
/// The longest time to live that can be asked for, in seconds.
pub const MAX_TTL: u64 = 24 * 3600;
/// How long after its expiry a room can still be renewed by its owner, in seconds.
pub const GRACE: u64 = 3600;
/// How many peer ids a room remembers the owners of.
pub const MAX_PEERS: usize = 200;
/// A remembered peer id may give way to a new one when the room is full and it was not seen for this long, in seconds.
pub const FORGET_AFTER: u64 = 15 * 60;

/// An Ed25519 public key; as text base64url without padding.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// The 32 bytes.
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl FromStr for PublicKey {
    type Err = Failure;
    fn from_str(text: &str) -> Result<Self, Failure> {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok().and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
        bytes.map(PublicKey).ok_or_else(|| {
            Failure::new(Code::InvalidRequest, "not a public key: it must be 32 bytes (Ed25519) as base64url without padding")
        })
    }
}

impl TryFrom<String> for PublicKey {
    type Error = Failure;
    fn try_from(text: String) -> Result<Self, Failure> {
        text.parse()
    }
}

impl From<PublicKey> for String {
    fn from(key: PublicKey) -> String {
        URL_SAFE_NO_PAD.encode(key.0)
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&URL_SAFE_NO_PAD.encode(self.0))
    }
}

/// Who somebody is: the subject of a verified token and, where one was proven (or declared by a room's creator), a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The token's subject.
    pub subject: String,
    /// The key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<PublicKey>,
}

impl Identity {
    /// Whether what belongs to this identity belongs to `caller`: the same subject, or the same key.
    pub fn is(&self, caller: &Identity) -> bool {
        self.subject == caller.subject || (self.key.is_some() && self.key == caller.key)
    }
}

/// The SHA-256 of an admission token: all that is kept of it.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenHash([u8; 32]);

impl TokenHash {
    /// Of this token.
    pub fn of(token: &str) -> Self {
        TokenHash(Sha256::digest(token.as_bytes()).into())
    }

    /// Whether both are of the same token, in time that does not depend on where they differ.
    pub fn matches(&self, other: &TokenHash) -> bool {
        self.0.iter().zip(other.0).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
    }
}

impl fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// A peer id of a room and whose it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerRecord {
    /// Who registered it first.
    pub owner: Identity,
    /// When it last registered, Unix seconds.
    pub seen: u64,
}

/// A room as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Room {
    /// Its id.
    pub id: RoomId,
    /// Who made it.
    pub owner: Identity,
    /// What admits to it.
    pub token: TokenHash,
    /// What a renewal adds, in seconds.
    pub ttl: u64,
    /// When it stops admitting, Unix seconds.
    pub expires_at: u64,
    /// The peer ids that were registered in it.
    pub peers: BTreeMap<PeerId, PeerRecord>,
    /// How many registrations there have been: the number of the last one. Where several servers have a peer, the highest number has it.
    #[serde(default)]
    pub sessions: u64,
}

/// What can be done to a stored room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Lets it admit for longer, by its own time to live or by this one. For its owner.
    Renew {
        /// Seconds.
        ttl: Option<u64>,
    },
    /// Takes a peer id, or takes it again. For anybody whom the room admits.
    Claim {
        /// The id.
        peer: PeerId,
    },
    /// Gives a peer id up. For the owner of the peer or of the room.
    Release {
        /// The id.
        peer: PeerId,
    },
}

/// Why something was not done to a room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Also the answer to a wrong token and to an expired room.
    #[error("there is no such room, or its token is wrong, or it has expired; ask for a new invite")]
    NoRoom,
    /// The caller is not the owner.
    #[error("only the owner of the room (or of the peer) may do this")]
    NotOwner,
    /// The peer id is somebody else's.
    #[error("this peer id belongs to somebody else in the room; choose another one")]
    PeerTaken,
    /// The room does not know the peer id.
    #[error("the room knows no such peer")]
    NoPeer,
    /// The room's memory of peer ids is used up.
    #[error("the room has had too many peers in the last minutes; try again later")]
    Full,
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        let code = match refusal {
            Refusal::NoRoom => Code::RoomNotFound,
            Refusal::NotOwner => Code::Forbidden,
            Refusal::PeerTaken => Code::PeerIdTaken,
            Refusal::NoPeer => Code::PeerNotFound,
            Refusal::Full => Code::Unavailable,
        };
        Failure::new(code, refusal.to_string())
    }
}

impl Room {
    /// A new room without peers.
    pub fn new(id: RoomId, owner: Identity, token: TokenHash, now: u64, ttl: u64) -> Self {
        Room { id, owner, token, ttl, expires_at: now.saturating_add(ttl), peers: BTreeMap::new(), sessions: 0 }
    }

    /// Whether it has stopped admitting.
    pub fn is_expired(&self, now: u64) -> bool {
        self.expires_at <= now
    }

    /// Whether not even its owner can renew it.
    pub fn is_gone(&self, now: u64) -> bool {
        self.expires_at.saturating_add(GRACE) <= now
    }

    /// Whether somebody with this token may come in now.
    pub fn admits(&self, now: u64, token: &TokenHash) -> bool {
        // Both sides are evaluated, so that an expired room takes as long as another.
        !self.is_expired(now) & self.token.matches(token)
    }

    /// Whether the caller owns the room or a peer id in it.
    pub fn knows(&self, caller: &Identity) -> bool {
        self.owner.is(caller) || self.peers.values().any(|peer| peer.owner.is(caller))
    }

    /// The subjects of the users that belong to it: its owner's, and those of the peer ids that it remembers.
    pub fn subjects(&self) -> impl Iterator<Item = &str> {
        std::iter::once(&self.owner).chain(self.peers.values().map(|peer| &peer.owner)).map(|owner| owner.subject.as_str())
    }

    /// Refuses everybody but the owner, and everything once the room is gone. To somebody who never was in it, it is no room.
    ///
    /// # Errors
    /// [`Refusal::NoRoom`], [`Refusal::NotOwner`].
    pub fn check_owner(&self, now: u64, caller: &Identity) -> Result<(), Refusal> {
        self.check_known(now, caller)?;
        if self.owner.is(caller) { Ok(()) } else { Err(Refusal::NotOwner) }
    }

    fn check_known(&self, now: u64, caller: &Identity) -> Result<(), Refusal> {
        if self.is_gone(now) || !self.knows(caller) { Err(Refusal::NoRoom) } else { Ok(()) }
    }

    /// Makes one change, or says why not and leaves the room as it was. Applying a change twice is the same as once, but for the number of
    /// a registration, which is a higher one then.
    ///
    /// # Errors
    /// The [`Refusal`].
    pub fn apply(&mut self, now: u64, caller: &Identity, change: &Change) -> Result<(), Refusal> {
        match change {
            Change::Renew { ttl } => {
                self.check_owner(now, caller)?;
                self.expires_at = self.expires_at.max(now.saturating_add(ttl.unwrap_or(self.ttl)));
                Ok(())
            }
            Change::Claim { peer } => self.claim(now, caller, peer),
            Change::Release { peer } => {
                self.check_known(now, caller)?;
                let record = self.peers.get(peer).ok_or(Refusal::NoPeer)?;
                if !record.owner.is(caller) && !self.owner.is(caller) {
                    return Err(Refusal::NotOwner);
                }
                self.peers.remove(peer);
                Ok(())
            }
        }
    }

    fn claim(&mut self, now: u64, caller: &Identity, peer: &PeerId) -> Result<(), Refusal> {
        if self.is_expired(now) {
            return Err(Refusal::NoRoom);
        }
        if let Some(record) = self.peers.get_mut(peer) {
            if !record.owner.is(caller) {
                return Err(Refusal::PeerTaken);
            }
            record.seen = now;
        } else {
            if self.peers.len() >= MAX_PEERS {
                self.forget_one(now)?;
            }
            self.peers.insert(peer.clone(), PeerRecord { owner: caller.clone(), seen: now });
        }
        self.sessions = self.sessions.saturating_add(1);
        Ok(())
    }

    /// Forgets the peer id that was not seen for longest. The room owner's ids are never forgotten: a worker must find its own again.
    fn forget_one(&mut self, now: u64) -> Result<(), Refusal> {
        let oldest = self
            .peers
            .iter()
            .filter(|(_, record)| !self.owner.is(&record.owner) && record.seen.saturating_add(FORGET_AFTER) <= now)
            .min_by_key(|(_, record)| record.seen)
            .map(|(peer, _)| peer.clone())
            .ok_or(Refusal::Full)?;
        self.peers.remove(&oldest);
        Ok(())
    }
}

/// The time to live that was asked for, or the default; 1 second to [`MAX_TTL`].
///
/// # Errors
/// [`Code::InvalidRequest`] when it is out of bounds.
pub fn checked_ttl(asked: Option<u64>, default: u64) -> Result<u64, Failure> {
    match asked.unwrap_or(default) {
        ttl @ 1..=MAX_TTL => Ok(ttl),
        ttl => Err(Failure::new(Code::InvalidRequest, format!("ttl_seconds is {ttl}; it must be 1 to {MAX_TTL} (24 hours)"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn who(subject: &str, key: Option<u8>) -> Identity {
        Identity { subject: subject.into(), key: key.map(|byte| PublicKey([byte; 32])) }
    }

    fn room() -> Room {
        Room::new("r".parse().unwrap(), who("owner", Some(1)), TokenHash::of("t"), 1000, 100)
    }

    fn claim(peer: &str) -> Change {
        Change::Claim { peer: peer.parse().unwrap() }
    }

    #[test]
    fn admission_ends_with_the_room_and_needs_its_token() {
        for (now, token, admitted) in [(1000, "t", true), (1099, "t", true), (1100, "t", false), (1000, "u", false)] {
            assert_eq!(room().admits(now, &TokenHash::of(token)), admitted, "{now} {token}");
        }
    }

    #[test]
    fn renewal_is_the_owners_and_possible_until_the_grace_has_passed() {
        let renew = Change::Renew { ttl: None };
        for (now, caller, expected) in [
            (1050, who("owner", None), Ok(1150)),
            (1050, who("new sign-in", Some(1)), Ok(1150)),
            (1050, who("member", Some(2)), Err(Refusal::NotOwner)),
            (1050, who("stranger", Some(3)), Err(Refusal::NoRoom)),
            (2000, who("owner", None), Ok(2100)),
            (1100 + GRACE, who("owner", None), Err(Refusal::NoRoom)),
        ] {
            let mut room = room();
            room.apply(1000, &who("member", Some(2)), &claim("p")).unwrap();
            assert_eq!(room.apply(now, &caller, &renew).map(|()| room.expires_at), expected, "{now} {caller:?}");
        }
        let mut room = room();
        room.apply(1000, &who("owner", None), &Change::Renew { ttl: Some(5) }).unwrap();
        assert_eq!(room.expires_at, 1100, "a renewal never shortens");
    }

    #[test]
    fn a_peer_id_stays_with_who_registered_it_first() {
        let mut room = room();
        room.apply(1000, &who("a", Some(7)), &claim("p")).unwrap();
        assert_eq!(room.apply(1001, &who("b", None), &claim("p")), Err(Refusal::PeerTaken));
        assert_eq!(room.apply(1001, &who("b", Some(8)), &claim("p")), Err(Refusal::PeerTaken));
        room.apply(1002, &who("a", None), &claim("p")).unwrap();
        room.apply(1003, &who("b", Some(7)), &claim("p")).unwrap();
        assert_eq!(room.peers[&"p".parse().unwrap()].owner, who("a", Some(7)));
        assert_eq!(room.apply(1100, &who("a", None), &claim("p")), Err(Refusal::NoRoom));
    }

    #[test]
    fn a_released_peer_id_is_free() {
        let mut room = room();
        let release = Change::Release { peer: "p".parse().unwrap() };
        room.apply(1000, &who("a", None), &claim("p")).unwrap();
        room.apply(1000, &who("b", None), &claim("q")).unwrap();
        assert_eq!(room.apply(1000, &who("b", None), &release), Err(Refusal::NotOwner));
        assert_eq!(room.apply(1000, &who("stranger", None), &release), Err(Refusal::NoRoom));
        room.apply(1000, &who("owner", None), &release).unwrap();
        assert_eq!(room.apply(1000, &who("owner", None), &release), Err(Refusal::NoPeer));
        room.apply(1000, &who("b", None), &claim("p")).unwrap();
    }

    #[test]
    fn a_full_room_forgets_the_longest_unseen_but_never_its_owners() {
        let mut room = Room { expires_at: u64::MAX, ..room() };
        room.apply(0, &who("owner", None), &claim("worker")).unwrap();
        for n in 1..MAX_PEERS as u64 {
            room.apply(n, &who("a", None), &claim(&format!("p{n}"))).unwrap();
        }
        assert_eq!(room.apply(FORGET_AFTER, &who("b", None), &claim("new")), Err(Refusal::Full));
        room.apply(FORGET_AFTER + 1, &who("b", None), &claim("new")).unwrap();
        assert!(!room.peers.contains_key(&"p1".parse().unwrap()));
        assert!(room.peers.contains_key(&"worker".parse().unwrap()));
        assert_eq!(room.peers.len(), MAX_PEERS);
    }

    #[test]
    fn keys_and_hashes_are_read_strictly_and_written_discreetly() {
        let text: String = PublicKey([3; 32]).into();
        assert_eq!(text.parse::<PublicKey>().unwrap(), PublicKey([3; 32]));
        assert!("AAAA".parse::<PublicKey>().is_err() && format!("{text}=").parse::<PublicKey>().is_err());
        assert_eq!(format!("{:?}", TokenHash::of("t")), "[redacted]");
        assert!(checked_ttl(Some(0), 1).is_err() && checked_ttl(Some(MAX_TTL + 1), 1).is_err());
        assert_eq!(checked_ttl(None, 7).unwrap(), 7);
    }

    proptest! {
        /// Whatever is tried, a remembered peer id changes hands only through its release or after it was forgotten.
        #[test]
        fn ownership_never_moves_silently(steps in proptest::collection::vec((0u8..3, 0u8..3, 0u8..3), 0..60)) {
            let mut room = Room { expires_at: u64::MAX, ..room() };
            for (now, (subject, peer, action)) in steps.into_iter().enumerate() {
                let caller = who(&format!("s{subject}"), Some(10 + subject));
                let peer: PeerId = format!("p{peer}").parse().unwrap();
                let change = match action {
                    0 => Change::Release { peer: peer.clone() },
                    _ => Change::Claim { peer: peer.clone() },
                };
                let before = room.peers.get(&peer).map(|record| record.owner.clone());
                let done = room.apply(now as u64, &caller, &change).is_ok();
                match before {
                    Some(owner) => prop_assert_eq!(done, owner.is(&caller)),
                    None => prop_assert_eq!(done, action != 0),
                }
                if let Some(record) = room.peers.get(&peer) {
                    prop_assert!(!done || record.owner.is(&caller));
                }
            }
        }
    }
}
