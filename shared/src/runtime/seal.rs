//! What keeps the signaling server out: sealed session descriptions, and the Noise handshake on channel 0.
//!
//! ```text
//!   worker's room secret S ──► submit root ──► watch root        (HKDF-SHA256, salt = room: one way, downwards)
//!   each root ──► seal key (XChaCha20-Poly1305 over SDP and candidates) and psk (Noise XXpsk0)
//!
//!   client                       channel 0                       worker
//!                             ◄──────────────────────────────────   version byte
//!     grant byte + message 1  ──────────────────────────────────►   psk of that grant
//!                             ◄──────────────────────────────────   message 2
//!     message 3 { bulk key }  ──────────────────────────────────►
//! ```
//!
//! The handshake's prologue holds room, grant and the SHA-256 of both DTLS certificates as they were presented, so that whoever
//! swaps a fingerprint breaks it; psk0 refuses strangers at their first bytes; the client checks the worker's static key against
//! its invite. A bulk connection is proved with the key of message 3 over its own two fingerprints.
//!
//! The worker speaks first on every connection: its association is the one that is established last (it answers the offer, so it is
//! the DTLS client and sends COOKIE-ECHO), and `rtc` 0.21.1 drops a message that comes in one batch with the COOKIE-ACK.

use std::time::Duration;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::BytesMut;
use chacha20poly1305::{
    XChaCha20Poly1305, XNonce,
    aead::{Aead, KeyInit, Payload},
};
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use hkdf::Hkdf;
use hmac::{Hmac, Mac};
use serde_json::Value;
use sha2::Sha256;
use snow::{Builder, HandshakeState};

use super::peer::Channel;
use crate::domain::{
    error::{Code, Failure},
    id::{PeerId, RoomId, Secret},
    invite::{Grant, RootSecret},
};

const PATTERN: &str = "Noise_XXpsk0_25519_ChaChaPoly_BLAKE2s";
/// How long a handshake may take once its channel is open.
const DEADLINE: Duration = Duration::from_secs(10);
const MAX_HANDSHAKE_MESSAGE: usize = 1024;
/// The worker's first byte.
const VERSION: u8 = 1;
/// The worker's word for a handshake that failed, in the place of the next message.
const REFUSED: u8 = 0;
/// How long a refused client may take to close the connection.
const FAREWELL: Duration = Duration::from_secs(2);

/// SHA-256 of the two DTLS certificates: the offering side's, then the answering side's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Binding {
    /// Of the side that made the offer.
    pub offerer: [u8; 32],
    /// Of the side that answered.
    pub answerer: [u8; 32],
}

/// What a handshake leaves behind.
#[derive(Debug, Clone)]
pub struct Proven {
    /// The other side's static public key.
    pub remote_key: [u8; 32],
    /// What the client proved.
    pub grant: Grant,
    /// Proves further connections of the session.
    pub bulk_key: Secret<[u8; 32]>,
}

/// 32 bytes derived from a secret (HKDF-SHA256, RFC 5869).
pub fn derive(secret: &[u8], salt: &[u8], info: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    Hkdf::<Sha256>::new(Some(salt), secret).expand(info, &mut out).expect("32 bytes are a valid HKDF length");
    out
}

/// The root secret of a grant, from the worker's room secret.
pub fn root_of(room_secret: &Secret<[u8; 32]>, room: &RoomId, grant: Grant) -> RootSecret {
    let submit = derive(room_secret.expose(), room.as_str().as_bytes(), b"webrtc-connect submit");
    Secret::new(match grant {
        Grant::Submit => submit,
        Grant::Watch => watch_root(&submit, room),
    })
}

/// The weaker root that the holder of a submit root can hand on.
pub fn watch_root(submit: &[u8; 32], room: &RoomId) -> [u8; 32] {
    derive(submit, room.as_str().as_bytes(), b"webrtc-connect watch")
}

/// The room's public key (Ed25519), which every invite names: it vouches for the room's workers.
pub fn room_key(room_secret: &Secret<[u8; 32]>) -> [u8; 32] {
    vouching_key(room_secret).verifying_key().to_bytes()
}

/// The room's word that this key is a worker's of the room: an Ed25519 signature, base64url. Only holders of the room secret can give it.
pub fn vouch(room_secret: &Secret<[u8; 32]>, room: &RoomId, worker: &PeerId, key: &[u8; 32]) -> String {
    URL_SAFE_NO_PAD.encode(vouching_key(room_secret).sign(&vouched(room, worker, key)).to_bytes())
}

/// Checks [`vouch`].
///
/// # Errors
/// [`Code::NotAuthentic`].
pub fn check_vouch(room_key: &[u8; 32], room: &RoomId, worker: &PeerId, key: &[u8; 32], signature: &str) -> Result<(), Failure> {
    let check = || {
        let bytes: [u8; 64] = URL_SAFE_NO_PAD.decode(signature).ok()?.try_into().ok()?;
        let signature = Signature::from_bytes(&bytes);
        VerifyingKey::from_bytes(room_key).ok()?.verify_strict(&vouched(room, worker, key), &signature).ok()
    };
    check()
        .ok_or_else(|| Failure::new(Code::NotAuthentic, format!("the room's owner does not vouch for the worker {worker}; do not use it")))
}

fn vouching_key(room_secret: &Secret<[u8; 32]>) -> SigningKey {
    SigningKey::from_bytes(&derive(room_secret.expose(), b"", b"webrtc-connect room key"))
}

fn vouched(room: &RoomId, worker: &PeerId, key: &[u8; 32]) -> Vec<u8> {
    [format!("webrtc-connect worker 1|{room}|{worker}|").as_bytes(), key].concat()
}

/// A fresh X25519 key pair: private, public.
///
/// # Errors
/// [`Code::Internal`] when the system gives no randomness.
pub fn generate_keypair() -> Result<(Secret<[u8; 32]>, [u8; 32]), Failure> {
    let pair = builder().generate_keypair().map_err(|_| internal("no key could be made"))?;
    let key = |bytes: Vec<u8>| <[u8; 32]>::try_from(bytes).map_err(|_| internal("no key could be made"));
    Ok((Secret::new(key(pair.private)?), key(pair.public)?))
}

/// 16, 24 or 32 random bytes.
///
/// # Errors
/// [`Code::Internal`] when the system gives no randomness.
pub fn random<const N: usize>() -> Result<[u8; N], Failure> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|_| internal("the system gives no randomness"))?;
    Ok(bytes)
}

/// Seals and opens what two peers tell each other through the signaling server.
pub struct Sealer {
    grant: Grant,
    room: RoomId,
    cipher: XChaCha20Poly1305,
}

impl Sealer {
    /// For the holders of this root.
    pub fn new(root: &RootSecret, room: &RoomId, grant: Grant) -> Self {
        let key = derive(root.expose(), room.as_str().as_bytes(), b"webrtc-connect seal");
        Sealer { grant, room: room.clone(), cipher: XChaCha20Poly1305::new(&key.into()) }
    }

    /// Seals a value for one peer; the text begins with the grant whose root opens it.
    ///
    /// # Errors
    /// [`Code::Internal`] when the system gives no randomness.
    pub fn seal(&self, from: &PeerId, to: &PeerId, value: &Value) -> Result<String, Failure> {
        let nonce = random::<24>()?;
        let plain = serde_json::to_vec(value).expect("a JSON value always serialises");
        let payload = Payload { msg: &plain, aad: &self.associated(from, to) };
        let sealed = self.cipher.encrypt(XNonce::from_slice(&nonce), payload).map_err(|_| internal("a message could not be sealed"))?;
        Ok(format!("sealed.{}.{}", self.grant, URL_SAFE_NO_PAD.encode([&nonce[..], &sealed].concat())))
    }

    /// Opens what [`Sealer::seal`] made.
    ///
    /// # Errors
    /// [`Code::NotAuthentic`] when it was not made by a holder of the root, for these two peers of this room.
    pub fn open(&self, from: &PeerId, to: &PeerId, text: &str) -> Result<Value, Failure> {
        let refused = || {
            Failure::new(
                Code::NotAuthentic,
                "the invite does not fit this worker, or the signaling server tampered with its messages; ask for a new invite",
            )
        };
        let body = text.strip_prefix(&format!("sealed.{}.", self.grant)).ok_or_else(refused)?;
        let bytes = URL_SAFE_NO_PAD.decode(body).map_err(|_| refused())?;
        let (nonce, sealed) = bytes.split_at_checked(24).ok_or_else(refused)?;
        let payload = Payload { msg: sealed, aad: &self.associated(from, to) };
        let plain = self.cipher.decrypt(XNonce::from_slice(nonce), payload).map_err(|_| refused())?;
        serde_json::from_slice(&plain).map_err(|_| refused())
    }

    fn associated(&self, from: &PeerId, to: &PeerId) -> Vec<u8> {
        format!("{}|{}|{from}|{to}", self.room, self.grant).into_bytes()
    }
}

/// The grant that a sealed text names, before it is opened.
pub fn sealed_grant(text: &str) -> Option<Grant> {
    let (grant, _) = text.strip_prefix("sealed.")?.split_once('.')?;
    [Grant::Submit, Grant::Watch].into_iter().find(|known| known.to_string() == grant)
}

/// The client's side of the handshake; the worker must hold `worker_key`.
///
/// # Errors
/// [`Code::NotAuthentic`] when the other side cannot prove itself, [`Code::NoConnection`] when it goes away.
pub async fn prove_as_client(
    channel: &mut Channel,
    private: &Secret<[u8; 32]>,
    root: &RootSecret,
    worker_key: &[u8; 32],
    context: &Context<'_>,
) -> Result<Proven, Failure> {
    within_deadline(async {
        let mut noise = handshake(private, root, context, Side::Client)?;
        if receive(channel).await?[..] != [VERSION] {
            return Err(Failure::new(
                Code::VersionMismatch,
                "the worker begins the handshake in another way; install the same version on both sides",
            ));
        }
        send(channel, &mut noise, &[grant_byte(context.grant)], &[]).await?;
        read(&mut noise, &receive(channel).await?)?;
        if noise.get_remote_static() != Some(&worker_key[..]) {
            return Err(tampered());
        }
        let bulk_key = Secret::new(random::<32>()?);
        send(channel, &mut noise, &[], bulk_key.expose()).await?;
        Ok(Proven { remote_key: *worker_key, grant: context.grant, bulk_key })
    })
    .await
}

/// The worker's side of the handshake: `root_for` gives the root of the grant that the client claims.
///
/// # Errors
/// [`Code::NotAuthentic`] when the client cannot prove its grant, [`Code::NoConnection`] when it goes away.
pub async fn prove_as_worker(
    channel: &mut Channel,
    private: &Secret<[u8; 32]>,
    root_for: impl Fn(Grant) -> RootSecret,
    room: &RoomId,
    binding: Binding,
) -> Result<Proven, Failure> {
    within_deadline(async {
        let proven = prove_to_client(channel, private, root_for, room, binding).await;
        if proven.as_ref().is_err_and(|failure| failure.code == Code::NotAuthentic) {
            refuse(channel).await;
        }
        proven
    })
    .await
}

async fn prove_to_client(
    channel: &mut Channel,
    private: &Secret<[u8; 32]>,
    root_for: impl Fn(Grant) -> RootSecret,
    room: &RoomId,
    binding: Binding,
) -> Result<Proven, Failure> {
    channel.sender().send(BytesMut::from(&[VERSION][..])).await?;
    let first = receive(channel).await?;
    let (&byte, message) = first.split_first().ok_or_else(tampered)?;
    let grant = grant_of(byte).ok_or_else(tampered)?;
    let context = Context { room, grant, binding };
    let mut noise = handshake(private, &root_for(grant), &context, Side::Worker)?;
    read(&mut noise, message)?;
    send(channel, &mut noise, &[], &[]).await?;
    let payload = read(&mut noise, &receive(channel).await?)?;
    let bulk_key = Secret::new(<[u8; 32]>::try_from(payload).map_err(|_| tampered())?);
    let remote_key = noise.get_remote_static().and_then(|key| key.try_into().ok()).ok_or_else(tampered)?;
    Ok(Proven { remote_key, grant, bulk_key })
}

/// Tells the client that this is no accident: a byte that is no message of the handshake, until it has left.
async fn refuse(channel: &mut Channel) {
    if channel.sender().send(BytesMut::from(&[REFUSED][..])).await.is_ok() {
        let _ = tokio::time::timeout(FAREWELL, async { while channel.recv().await.is_some() {} }).await;
    }
}

/// What both sides must agree on before a handshake can succeed.
pub struct Context<'a> {
    /// The room.
    pub room: &'a RoomId,
    /// What the client claims.
    pub grant: Grant,
    /// The certificates of the connection.
    pub binding: Binding,
}

/// Which side of a bulk connection proves itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The side that made the offer.
    Client,
    /// The side that answered.
    Worker,
}

/// Proves a bulk connection both ways: each side sends a MAC over its role, the connection's number and both certificates, the worker
/// first.
///
/// # Errors
/// [`Code::NotAuthentic`] when the other side's MAC is wrong, [`Code::NoConnection`] when it goes away.
pub async fn prove_bulk(
    channel: &mut Channel,
    key: &Secret<[u8; 32]>,
    side: Side,
    connection: u32,
    binding: Binding,
) -> Result<(), Failure> {
    within_deadline(async {
        let other = if side == Side::Client { Side::Worker } else { Side::Client };
        let ours = BytesMut::from(&bulk_mac(key, side, connection, binding).finalize().into_bytes()[..]);
        let check = |theirs: &[u8]| bulk_mac(key, other, connection, binding).verify_slice(theirs).map_err(|_| tampered());
        match side {
            Side::Worker => {
                channel.sender().send(ours).await?;
                check(&receive(channel).await?)
            }
            Side::Client => {
                check(&receive(channel).await?)?;
                channel.sender().send(ours).await
            }
        }
    })
    .await
}

fn bulk_mac(key: &Secret<[u8; 32]>, side: Side, connection: u32, binding: Binding) -> Hmac<Sha256> {
    let mut mac = <Hmac<Sha256> as Mac>::new_from_slice(key.expose()).expect("HMAC takes a key of any length");
    mac.update(match side {
        Side::Client => b"webrtc-connect bulk client",
        Side::Worker => b"webrtc-connect bulk worker",
    });
    mac.update(&connection.to_be_bytes());
    mac.update(&binding.offerer);
    mac.update(&binding.answerer);
    mac
}

fn builder<'a>() -> Builder<'a> {
    Builder::new(PATTERN.parse().expect("the pattern is a valid constant"))
}

fn handshake(private: &Secret<[u8; 32]>, root: &RootSecret, context: &Context<'_>, side: Side) -> Result<HandshakeState, Failure> {
    let psk = derive(root.expose(), context.room.as_str().as_bytes(), b"webrtc-connect noise");
    let head = format!("webrtc-connect/1|{}|{}|", context.room, context.grant);
    let prologue = [head.as_bytes(), &context.binding.offerer, &context.binding.answerer].concat();
    let build = || {
        let ready = builder().local_private_key(private.expose())?.psk(0, &psk)?.prologue(&prologue)?;
        if side == Side::Client { ready.build_initiator() } else { ready.build_responder() }
    };
    build().map_err(|_| internal("the handshake cannot begin"))
}

fn grant_byte(grant: Grant) -> u8 {
    match grant {
        Grant::Watch => 1,
        Grant::Submit => 2,
    }
}

fn grant_of(byte: u8) -> Option<Grant> {
    [Grant::Watch, Grant::Submit].into_iter().find(|&grant| grant_byte(grant) == byte)
}

async fn send(channel: &Channel, noise: &mut HandshakeState, head: &[u8], payload: &[u8]) -> Result<(), Failure> {
    let mut buffer = [0; MAX_HANDSHAKE_MESSAGE];
    let len = noise.write_message(payload, &mut buffer).map_err(|_| internal("the handshake cannot go on"))?;
    channel.sender().send(BytesMut::from(&[head, &buffer[..len]].concat()[..])).await
}

fn read(noise: &mut HandshakeState, message: &[u8]) -> Result<Vec<u8>, Failure> {
    let mut buffer = [0; MAX_HANDSHAKE_MESSAGE];
    let len = noise.read_message(message, &mut buffer).map_err(|_| tampered())?;
    Ok(buffer[..len].to_vec())
}

async fn receive(channel: &mut Channel) -> Result<bytes::Bytes, Failure> {
    let message = channel.recv().await.ok_or_else(|| Failure::new(Code::NoConnection, "the connection closed during the handshake"))?;
    if message.len() > MAX_HANDSHAKE_MESSAGE { Err(tampered()) } else { Ok(message) }
}

async fn within_deadline<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::time::timeout(DEADLINE, work)
        .await
        .unwrap_or_else(|_| Err(Failure::new(Code::NoConnection, "the other side did not end the handshake in time")))
}

fn tampered() -> Failure {
    Failure::new(
        Code::NotAuthentic,
        "the other side could not prove itself: the invite is wrong or the signaling server tampered with the connection; ask for a new invite",
    )
}

fn internal(message: &str) -> Failure {
    Failure::new(Code::Internal, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_rooms_owner_can_vouch_for_a_worker() {
        let (secret, other) = (Secret::new([1; 32]), Secret::new([2; 32]));
        let (room, worker): (RoomId, PeerId) = ("r".parse().unwrap(), "w".parse().unwrap());
        let word = vouch(&secret, &room, &worker, &[7; 32]);
        let check = |word: &str, worker: &PeerId, key: &[u8; 32]| check_vouch(&room_key(&secret), &room, worker, key, word).is_ok();
        assert!(check(&word, &worker, &[7; 32]));
        assert!(!check(&word, &worker, &[8; 32]));
        assert!(!check(&word, &"x".parse().unwrap(), &[7; 32]));
        assert!(!check(&vouch(&other, &room, &worker, &[7; 32]), &worker, &[7; 32]));
        assert!(!check("", &worker, &[7; 32]));
    }

    #[test]
    fn a_stronger_root_gives_the_weaker_and_never_the_other_way() {
        let room: RoomId = "r".parse().unwrap();
        let secret = Secret::new([1; 32]);
        let submit = root_of(&secret, &room, Grant::Submit);
        assert_eq!(watch_root(submit.expose(), &room), *root_of(&secret, &room, Grant::Watch).expose());
        assert_ne!(submit, root_of(&secret, &"other".parse().unwrap(), Grant::Submit));
    }

    #[test]
    fn what_is_sealed_opens_for_its_two_peers_only() {
        let room: RoomId = "r".parse().unwrap();
        let (a, b): (PeerId, PeerId) = ("a".parse().unwrap(), "b".parse().unwrap());
        let sealer = Sealer::new(&Secret::new([1; 32]), &room, Grant::Submit);
        let text = sealer.seal(&a, &b, &serde_json::json!({"sdp": "v=0"})).unwrap();
        assert_eq!(sealed_grant(&text), Some(Grant::Submit));
        assert_eq!(sealer.open(&a, &b, &text).unwrap()["sdp"], "v=0");
        assert!(sealer.open(&b, &a, &text).is_err());
        assert!(Sealer::new(&Secret::new([2; 32]), &room, Grant::Submit).open(&a, &b, &text).is_err());
        assert!(Sealer::new(&Secret::new([1; 32]), &room, Grant::Watch).open(&a, &b, &text).is_err());
        assert!(sealer.open(&a, &b, &text[..text.len() - 1]).is_err());
    }
}
