//! The whole WebSocket protocol between a peer and the signaling server: JSON text messages tagged by `type`.
//!
//! It keeps the ancestor's message names and fields, so that existing peers can register, discover and exchange offers.
//! Two enums, one a direction. The server never looks into `sdp`, `candidate` and `payload`; it sets `sender` and
//! `from_peer_id` itself, from the socket.
//!
//! * `register` → (`challenge` → `prove`, where a public key was given) → `registered_auth`
//! * `discover_peers` → `peer_list`; `update_metadata` → `metadata_updated`; `renew` → `renewed`; `delete_room` → every socket is closed
//! * `offer`, `answer`, `candidate`, `peer_message` → the same to the target, or `error`
//! * `ice_servers` from time to time, before credentials in the last ones expire
//! * `peer_left` when a peer that had exchanged messages with this one goes

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{
    error::{Code, Failure},
    id::{PeerId, RoomId, Secret},
};

/// The largest message either side accepts, in bytes.
pub const MAX_MESSAGE: usize = 64 * 1024;

/// What a peer is in its room. The ancestor's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Runs trainers.
    Worker,
    /// Submits jobs or follows them.
    Client,
    /// Something newer.
    #[serde(other)]
    Unknown,
}

/// Free-form facts that a peer publishes about itself (tags, properties), at most 16 KiB as JSON.
pub type Metadata = Map<String, Value>;

/// From a peer to the server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToServer {
    /// The first message on a socket.
    Register {
        /// The id that the peer asks for.
        peer_id: PeerId,
        /// The room.
        room_id: RoomId,
        /// The room's admission token.
        token: Secret<String>,
        /// The token of an anonymous user (a JWT).
        id_token: Secret<String>,
        /// What the peer is.
        role: Role,
        /// Facts about the peer.
        #[serde(default)]
        metadata: Metadata,
        /// Ed25519 public key, base64url without padding; the server then asks for a proof. Absent in the ancestor.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        public_key: Option<String>,
    },
    /// The answer to [`ToPeer::Challenge`].
    Prove {
        /// Ed25519 signature over [`proof_message`], base64url without padding.
        signature: String,
    },
    /// Who is here?
    DiscoverPeers {
        /// Only peers that match.
        #[serde(default)]
        filters: Filters,
    },
    /// Replaces the peer's metadata.
    UpdateMetadata {
        /// The new facts.
        metadata: Metadata,
    },
    /// A session description for another peer.
    Offer {
        /// Whom it is for.
        target: PeerId,
        /// Opaque to the server.
        sdp: Value,
    },
    /// The answer to an offer.
    Answer {
        /// Whom it is for.
        target: PeerId,
        /// Opaque to the server.
        sdp: Value,
    },
    /// An ICE candidate.
    Candidate {
        /// Whom it is for.
        target: PeerId,
        /// Opaque to the server.
        candidate: Value,
    },
    /// Anything else for another peer.
    PeerMessage {
        /// Whom it is for.
        to_peer_id: PeerId,
        /// Opaque to the server.
        payload: Value,
    },
    /// Extends the room's life; for its owner.
    Renew,
    /// Deletes the room: it admits nobody any more, and every socket in it is closed; for its owner.
    DeleteRoom,
    /// Something newer.
    #[serde(other)]
    Unknown,
}

/// Which peers to list. The ancestor's filter names.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Filters {
    /// Only peers with this role.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
}

/// One peer of a room.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PeerInfo {
    /// Its id.
    pub peer_id: PeerId,
    /// What it is.
    pub role: Role,
    /// What it says about itself.
    #[serde(default)]
    pub metadata: Metadata,
}

/// One STUN or TURN server, in the browser's `RTCIceServer` form (W3C webrtc-pc §4.2.4).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IceServer {
    /// `stun:`, `stuns:`, `turn:` or `turns:` URLs; one string or a list.
    #[serde(deserialize_with = "one_or_many")]
    pub urls: Vec<String>,
    /// TURN user name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// TURN password.
    #[serde(default, deserialize_with = "password", skip_serializing_if = "Option::is_none")]
    pub credential: Option<Secret<String>>,
}

fn one_or_many<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum OneOrMany {
        One(String),
        Many(Vec<String>),
    }
    Ok(match OneOrMany::deserialize(deserializer)? {
        OneOrMany::One(url) => vec![url],
        OneOrMany::Many(urls) => urls,
    })
}

/// Text; the error does not quote what stands there instead, as serde's own would.
fn password<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Secret<String>>, D::Error> {
    Option::<Secret<String>>::deserialize(deserializer).map_err(|_| serde::de::Error::custom("the credential must be text"))
}

/// From the server to a peer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToPeer {
    /// Prove that you hold the key you named.
    Challenge {
        /// Random text, fresh for each socket.
        nonce: String,
    },
    /// You are in.
    RegisteredAuth {
        /// The room.
        room_id: RoomId,
        /// Your id in it.
        peer_id: PeerId,
        /// When the room stops admitting, unless renewed: Unix seconds.
        expires_at: u64,
        /// Who else is here (at most 100).
        #[serde(default)]
        peers: Vec<PeerInfo>,
        /// STUN and TURN servers to use.
        #[serde(default)]
        ice_servers: Vec<IceServer>,
        /// The server's version.
        #[serde(default)]
        server_version: String,
    },
    /// The answer to `discover_peers`.
    PeerList {
        /// How many there are.
        count: usize,
        /// Them, at most 100.
        peers: Vec<PeerInfo>,
    },
    /// STUN and TURN servers to use for new connections from now on: credentials are renewed before they expire.
    IceServers {
        /// All of them, in the place of those before.
        ice_servers: Vec<IceServer>,
    },
    /// The answer to `update_metadata`.
    MetadataUpdated,
    /// From another peer.
    Offer {
        /// Who sent it, as the server knows it.
        sender: PeerId,
        /// Opaque to the server.
        sdp: Value,
    },
    /// From another peer.
    Answer {
        /// Who sent it, as the server knows it.
        sender: PeerId,
        /// Opaque to the server.
        sdp: Value,
    },
    /// From another peer.
    Candidate {
        /// Who sent it, as the server knows it.
        sender: PeerId,
        /// Opaque to the server.
        candidate: Value,
    },
    /// From another peer.
    PeerMessage {
        /// Who sent it, as the server knows it.
        from_peer_id: PeerId,
        /// Whom it is for.
        to_peer_id: PeerId,
        /// Opaque to the server.
        payload: Value,
    },
    /// A peer that exchanged messages with this one has gone.
    PeerLeft {
        /// Which.
        peer_id: PeerId,
    },
    /// The answer to `renew`.
    Renewed {
        /// Unix seconds.
        expires_at: u64,
    },
    /// The last request could not be done.
    Error {
        /// The stable code.
        code: Code,
        /// What was wrong and what to do.
        message: String,
        /// The peer that it concerns, when it is about delivery.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        target: Option<PeerId>,
    },
    /// Something newer.
    #[serde(other)]
    Unknown,
}

/// What a peer signs to prove its key: domain separator, room, peer id and the server's nonce.
pub fn proof_message(room: &RoomId, peer: &PeerId, nonce: &str) -> Vec<u8> {
    format!("webrtc-connect register 1\n{room}\n{peer}\n{nonce}").into_bytes()
}

/// Reads one message; refuses what is over [`MAX_MESSAGE`] or not of the protocol.
///
/// # Errors
/// [`Code::TooLarge`] or [`Code::InvalidRequest`].
pub fn decode<T: for<'de> Deserialize<'de>>(text: &str) -> Result<T, Failure> {
    if text.len() > MAX_MESSAGE {
        return Err(Failure::new(Code::TooLarge, format!("the message has {} bytes; at most {MAX_MESSAGE} are allowed", text.len())));
    }
    serde_json::from_str(text)
        .map_err(|error| Failure::new(Code::InvalidRequest, format!("not a message of the signaling protocol: {error}")))
}

/// One message as text.
pub fn encode<T: Serialize>(message: &T) -> String {
    serde_json::to_string(message).expect("protocol messages have string keys only")
}

/// `POST /anonymous-signin` answers with this.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignIn {
    /// A JWT.
    pub id_token: Secret<String>,
    /// The anonymous user's name, the token's subject.
    pub username: String,
    /// Seconds until the token expires.
    pub expires_in: u64,
}

/// `POST /create-room` takes this (a missing or empty body means the defaults).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateRoom {
    /// How long the room admits peers unless renewed; 2 h by default, at most 24 h.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<u64>,
    /// Ed25519 public key (base64url) whose holder owns the room, too, whatever its token's subject.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_key: Option<String>,
}

/// `POST /create-room` answers with this.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreatedRoom {
    /// The new room.
    pub room_id: RoomId,
    /// Its admission token, told only once.
    pub token: Secret<String>,
    /// Unix seconds.
    pub expires_at: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn the_ancestors_messages_are_read() {
        let register: ToServer = decode(
            r#"{"type":"register","peer_id":"p","room_id":"r","token":"t","id_token":"j","role":"worker","is_admin":true,
                "metadata":{"tags":["sleap-rtc"],"properties":{"status":"available"}}}"#,
        )
        .unwrap();
        assert!(matches!(register, ToServer::Register { role: Role::Worker, public_key: None, .. }));
        let offer: ToServer = decode(r#"{"type":"offer","sender":"forged","target":"w","sdp":"v=0"}"#).unwrap();
        assert_eq!(offer, ToServer::Offer { target: "w".parse().unwrap(), sdp: json!("v=0") });
        assert_eq!(decode::<ToServer>(r#"{"type":"election"}"#).unwrap(), ToServer::Unknown);
    }

    #[test]
    fn ice_servers_take_one_url_or_many() {
        let servers: Vec<IceServer> =
            serde_json::from_value(json!([{"urls": "stun:s:3478"}, {"urls": ["turn:t"], "username": "u", "credential": "p"}])).unwrap();
        assert_eq!(servers[0].urls, ["stun:s:3478"]);
        assert!(!format!("{servers:?}").contains("\"p\""));
    }

    #[test]
    fn oversized_and_deep_messages_are_refused() {
        let big = format!(r#"{{"type":"renew","x":"{}"}}"#, "x".repeat(MAX_MESSAGE));
        assert_eq!(decode::<ToServer>(&big).unwrap_err().code, Code::TooLarge);
        let deep = format!(r#"{{"type":"peer_message","to_peer_id":"p","payload":{}}}"#, "[".repeat(10_000));
        assert_eq!(decode::<ToServer>(&deep).unwrap_err().code, Code::InvalidRequest);
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,300}") {
            let _ = decode::<ToServer>(&text);
            let _ = decode::<ToPeer>(&text);
        }
    }
}
