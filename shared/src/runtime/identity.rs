//! Who we are: a long-lived X25519 key for the Noise handshake, and the Ed25519 key derived from it for the signaling server.
//!
//! Kept in one file of mode 0600 that is created whole or not at all.

use std::{
    fs,
    io::{ErrorKind, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use ed25519_dalek::{Signer, SigningKey};
use serde::{Deserialize, Serialize};

use super::seal;
use crate::domain::{
    error::{Code, Failure},
    id::{PeerId, RoomId, Secret},
    signal::proof_message,
};

/// A peer's keys.
pub struct Identity {
    private: Secret<[u8; 32]>,
    public: [u8; 32],
    signing: SigningKey,
}

#[derive(Serialize, Deserialize)]
struct KeyFile {
    private: Secret<String>,
    public: String,
}

impl Identity {
    /// A fresh one, kept nowhere.
    ///
    /// # Errors
    /// [`Code::Internal`] when the system gives no randomness.
    pub fn generate() -> Result<Self, Failure> {
        let (private, public) = seal::generate_keypair()?;
        Ok(Self::from_keys(private, public))
    }

    /// The one in this file, made on first use.
    ///
    /// # Errors
    /// [`Code::BadFile`] when the file cannot be read, written or understood.
    pub fn load_or_create(path: &Path) -> Result<Self, Failure> {
        let bad =
            |why: &dyn std::fmt::Display| Failure::new(Code::BadFile, format!("the key file {} cannot be used: {why}", path.display()));
        match fs::read(path) {
            Ok(bytes) => Self::parse(&bytes).ok_or_else(|| bad(&"it is damaged; move it away to get a new identity")),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let identity = Self::generate()?;
                if let Some(parent) = path.parent() {
                    fs::create_dir_all(parent).map_err(|error| bad(&error))?;
                }
                match identity.write(path) {
                    // Another process was faster: its key counts.
                    Err(error) if error.kind() == ErrorKind::AlreadyExists => Self::load_or_create(path),
                    Err(error) => Err(bad(&error)),
                    Ok(()) => Ok(identity),
                }
            }
            Err(error) => Err(bad(&error)),
        }
    }

    /// The static private key of the Noise handshake.
    pub fn private(&self) -> &Secret<[u8; 32]> {
        &self.private
    }

    /// The static public key of the Noise handshake: what invites and known-worker files name.
    pub fn public(&self) -> &[u8; 32] {
        &self.public
    }

    /// The public key shown to the signaling server: Ed25519, base64url.
    pub fn signing_public(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.signing.verifying_key().as_bytes())
    }

    /// The proof of that key for a registration.
    pub fn prove(&self, room: &RoomId, peer: &PeerId, nonce: &str) -> String {
        URL_SAFE_NO_PAD.encode(self.signing.sign(&proof_message(room, peer, nonce)).to_bytes())
    }

    fn from_keys(private: Secret<[u8; 32]>, public: [u8; 32]) -> Self {
        let seed = seal::derive(private.expose(), b"", b"webrtc-connect signing key");
        Identity { private, public, signing: SigningKey::from_bytes(&seed) }
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let file: KeyFile = serde_json::from_slice(bytes).ok()?;
        let key = |text: &str| URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok();
        Some(Self::from_keys(Secret::new(key(file.private.expose())?), key(&file.public)?))
    }

    fn write(&self, path: &Path) -> std::io::Result<()> {
        let file =
            KeyFile { private: Secret::new(URL_SAFE_NO_PAD.encode(self.private.expose())), public: URL_SAFE_NO_PAD.encode(self.public) };
        let temporary = path.with_extension(format!("new-{}", std::process::id()));
        let mut out = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        out.write_all(&serde_json::to_vec(&file).expect("strings always serialise"))?;
        out.sync_all()?;
        // A hard link, unlike a rename, never replaces a key that is there.
        let linked = fs::hard_link(&temporary, path);
        fs::remove_file(&temporary)?;
        linked
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_stays_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/identity.json");
        let first = Identity::load_or_create(&path).unwrap();
        let second = Identity::load_or_create(&path).unwrap();
        assert_eq!((first.public(), first.signing_public()), (second.public(), second.signing_public()));
        let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&path).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_damaged_key_file_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("identity.json");
        fs::write(&path, b"{").unwrap();
        assert_eq!(Identity::load_or_create(&path).err().unwrap().code, Code::BadFile);
        assert_eq!(fs::read(&path).unwrap(), b"{");
    }
}
