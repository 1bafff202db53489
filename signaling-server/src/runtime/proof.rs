//! Random names and numbers, and the proof that a peer holds the key it named.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use ed25519_dalek::{Signature, VerifyingKey};
use shared::domain::{
    error::{Code, Failure},
    id::{self, PeerId, RoomId},
    signal::proof_message,
};

use crate::domain::grant::PublicKey;

/// 128 random bits as hexadecimal digits.
///
/// # Errors
/// [`Code::Unavailable`] when the operating system has none.
pub fn random_name() -> Result<String, Failure> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| Failure::new(Code::Unavailable, format!("no randomness: {error}")))?;
    Ok(id::hex(&bytes))
}

/// 64 random bits for what need not be secret, such as waits; the middle when the operating system has none.
pub fn random_number() -> u64 {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_or(u64::MAX / 2, |()| u64::from_le_bytes(bytes))
}

/// Checks the answer to a challenge.
///
/// # Errors
/// [`Code::NotAuthentic`] when it is not a signature by this key over this room, peer and nonce.
pub fn check(key: &PublicKey, room: &RoomId, peer: &PeerId, nonce: &str, signature: &str) -> Result<(), Failure> {
    let verified = || {
        let key = VerifyingKey::from_bytes(key.bytes()).ok()?;
        let signature = Signature::from_slice(&URL_SAFE_NO_PAD.decode(signature).ok()?).ok()?;
        // Strict: refuses weak keys, under which one signature fits many messages.
        key.verify_strict(&proof_message(room, peer, nonce), &signature).ok()
    };
    verified().ok_or_else(|| Failure::new(Code::NotAuthentic, "the proof is not a signature by the named key over this challenge"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ed25519_dalek::{Signer, SigningKey};

    #[test]
    fn a_proof_holds_for_its_key_room_peer_and_nonce_only() {
        let signer = SigningKey::from_bytes(&[7; 32]);
        let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let key: PublicKey = encode(signer.verifying_key().as_bytes()).parse().unwrap();
        let other: PublicKey = encode(SigningKey::from_bytes(&[8; 32]).verifying_key().as_bytes()).parse().unwrap();
        let (room, peer): (RoomId, PeerId) = ("r".parse().unwrap(), "p".parse().unwrap());
        let signature = encode(&signer.sign(&proof_message(&room, &peer, "nonce")).to_bytes());
        check(&key, &room, &peer, "nonce", &signature).unwrap();
        for (key, peer, nonce, signature) in [
            (other, &peer, "nonce", &*signature),
            (key, &"q".parse().unwrap(), "nonce", &*signature),
            (key, &peer, "ecnon", &*signature),
            (key, &peer, "nonce", "AAAA"),
            (key, &peer, "nonce", "not base64!"),
        ] {
            assert_eq!(check(&key, &room, peer, nonce, signature).unwrap_err().code, Code::NotAuthentic);
        }
    }

    #[test]
    fn a_weak_key_proves_nothing() {
        // The curve's neutral element: with it a lax check accepts R = s·B for any message.
        let mut neutral = [0; 32];
        neutral[0] = 1;
        let key: PublicKey = URL_SAFE_NO_PAD.encode(neutral).parse().unwrap();
        let mut forged = [0; 64];
        forged[0] = 1;
        let signature = URL_SAFE_NO_PAD.encode(forged);
        assert!(check(&key, &"r".parse().unwrap(), &"p".parse().unwrap(), "n", &signature).is_err());
    }
}
