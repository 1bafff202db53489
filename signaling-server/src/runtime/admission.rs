//! How a socket gets into a room.
//!
//! ```text
//!   register ──token, room, rates──► [challenge ──prove──►] applicant ──claim──► admitted
//! ```
//! Whether the room does not exist, has expired or has another token: the answer and the work for it are the same.

use shared::domain::{
    error::{Code, Failure},
    id::{PeerId, RoomId, Secret},
    signal::{Metadata, PeerInfo, Role, ToPeer},
};

use super::{
    hub::{Mailbox, Seat},
    proof,
    rate::Address,
    server::Server,
};
use crate::domain::{
    grant::{Change, Identity, PublicKey, Refusal, TokenHash},
    rooms::{self, Member},
};

/// What a socket registers with.
pub struct Registration {
    /// The peer id that is asked for.
    pub peer: PeerId,
    /// The room.
    pub room: RoomId,
    /// The room's admission token.
    pub token: Secret<String>,
    /// The user's token.
    pub id_token: Secret<String>,
    /// What the peer is.
    pub role: Role,
    /// What it says about itself.
    pub metadata: Metadata,
    /// The key that it will prove.
    pub public_key: Option<String>,
}

/// Where an accepted registration goes on.
pub enum Next {
    /// A key was named: it has to be proven.
    Challenge(Challenge),
    /// No key was named, as the ancestor's peers do.
    Admit(Applicant),
}

/// Somebody whom the room lets in, if the peer id is free or theirs.
pub struct Applicant {
    room: RoomId,
    member: Member,
}

/// An applicant who has yet to prove a key.
pub struct Challenge {
    applicant: Applicant,
    key: PublicKey,
    /// What is to be signed, with room and peer.
    pub nonce: String,
}

impl Challenge {
    /// Checks the signature.
    ///
    /// # Errors
    /// [`Code::NotAuthentic`].
    pub fn prove(mut self, signature: &str) -> Result<Applicant, Failure> {
        proof::check(&self.key, &self.applicant.room, &self.applicant.member.peer, &self.nonce, signature)?;
        self.applicant.member.owner.key = Some(self.key);
        Ok(self.applicant)
    }
}

/// A registered socket.
pub struct Admitted {
    /// Its place; dropping it leaves the room.
    pub seat: Seat,
    /// What others send to it.
    pub mailbox: Mailbox,
    /// Its room.
    pub room: RoomId,
    /// Its id.
    pub peer: PeerId,
    /// Who it is.
    pub identity: Identity,
    /// What to tell it first.
    pub welcome: ToPeer,
}

impl Server {
    /// Checks everything about a registration but the key's proof and the peer id's owner.
    ///
    /// # Errors
    /// [`Code::RateLimited`], [`Code::Unauthorized`], [`Code::InvalidRequest`], [`Code::TooLarge`], [`Code::RoomNotFound`],
    /// [`Code::Unavailable`].
    pub async fn apply(&self, from: Address, registration: Registration) -> Result<Next, Failure> {
        self.rates.registration(from)?;
        let subject = self.auth.verify(registration.id_token.expose(), self.now()).await?.username;
        let owner = Identity { subject, key: None };
        rooms::checked_metadata(&registration.metadata)?;
        let key = registration.public_key.as_deref().map(str::parse::<PublicKey>).transpose()?;
        let token = TokenHash::of(registration.token.expose());
        let room = self.store.get(self.now(), &registration.room).await?;
        // Before the verdict, so that guessing costs the same whatever it hits; the room's own peers are not held up by it.
        if !room.as_ref().is_some_and(|room| room.knows(&owner)) {
            self.rates.stranger(&registration.room)?;
        }
        if !room.is_some_and(|room| room.admits(self.now(), &token)) {
            return Err(Refusal::NoRoom.into());
        }
        let Registration { peer, role, metadata, .. } = registration;
        let applicant = Applicant { room: registration.room, member: Member { peer, role, metadata, owner } };
        Ok(match key {
            Some(key) => Next::Challenge(Challenge { applicant, key, nonce: proof::random_name()? }),
            None => Next::Admit(applicant),
        })
    }

    /// Takes the peer id and the place in the room.
    ///
    /// # Errors
    /// [`Code::PeerIdTaken`], [`Code::RoomNotFound`] (expired meanwhile), [`Code::Unavailable`].
    pub async fn admit(&self, Applicant { room, member }: Applicant) -> Result<Admitted, Failure> {
        let claim = Change::Claim { peer: member.peer.clone() };
        let stored = self.store.change(self.now(), &room, &member.owner, claim).await?;
        let (peer, identity) = (member.peer.clone(), member.owner.clone());
        let (seat, mailbox, listing) = self.hub.admit(&room, member, stored.sessions).await?;
        self.metrics.registrations.increment(1);
        let welcome = self.welcome(&room, &peer, stored.expires_at, listing.peers).await;
        Ok(Admitted { seat, mailbox, room, peer, identity, welcome })
    }

    async fn welcome(&self, room: &RoomId, peer: &PeerId, expires_at: u64, peers: Vec<PeerInfo>) -> ToPeer {
        ToPeer::RegisteredAuth {
            room_id: room.clone(),
            peer_id: peer.clone(),
            expires_at,
            peers,
            ice_servers: self.ice_servers(peer).await,
            server_version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

/// The failure that is told to somebody who sends anything else than a registration first.
pub fn not_registered() -> Failure {
    Failure::new(Code::InvalidRequest, "register first: this socket is not in a room")
}
