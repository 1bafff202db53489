//! The signing key's file: an Ed25519 key as PKCS#8 PEM (RFC 8410), which `openssl pkey -in` reads, too.
//!
//! * `signing-key.pem`: made at the first start, mode 0600, never overwritten
//! * `signing-key.previous.pem`: after a rotation (move the one to the other and restart), so that older tokens stay valid

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::Path,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use ed25519_dalek::SigningKey;
use shared::domain::error::{Code, Failure};

use super::proof::random_name;

const CURRENT: &str = "signing-key.pem";
const PREVIOUS: &str = "signing-key.previous.pem";
const HEAD: &str = "-----BEGIN PRIVATE KEY-----";
const TAIL: &str = "-----END PRIVATE KEY-----";
/// PKCS#8 version 1 (RFC 5208) around an Ed25519 seed (RFC 8410 §7); the seed's 32 bytes follow.
const DER_PREFIX: [u8; 16] = [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// The key to sign with, and the one before it when it is still to be accepted.
pub struct KeyPair {
    /// Signs and verifies.
    pub current: SigningKey,
    /// Verifies.
    pub previous: Option<SigningKey>,
}

impl KeyPair {
    /// A key that is lost with the process.
    ///
    /// # Errors
    /// [`Code::Unavailable`] without randomness.
    pub fn ephemeral() -> Result<Self, Failure> {
        Ok(KeyPair { current: generate()?, previous: None })
    }

    /// The keys in this directory; makes the current one when there is none.
    ///
    /// # Errors
    /// [`Code::BadFile`] when a file cannot be read or written, is no key, or can be read by others.
    pub fn load_or_create(dir: &Path) -> Result<Self, Failure> {
        let path = dir.join(CURRENT);
        let current = match load(&path)? {
            Some(key) => key,
            None => {
                create(&path)?;
                load(&path)?.ok_or_else(|| bad(&path, "it vanished"))?
            }
        };
        Ok(KeyPair { current, previous: load(&dir.join(PREVIOUS))? })
    }
}

/// An Ed25519 key as PKCS#8 version 1 DER.
pub fn to_der(key: &SigningKey) -> Vec<u8> {
    [DER_PREFIX.as_slice(), key.as_bytes()].concat()
}

fn generate() -> Result<SigningKey, Failure> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(|error| Failure::new(Code::Unavailable, format!("no randomness: {error}")))?;
    Ok(SigningKey::from_bytes(&seed))
}

fn bad(path: &Path, why: impl std::fmt::Display) -> Failure {
    Failure::new(Code::BadFile, format!("the signing key {}: {why}", path.display()))
}

fn load(path: &Path) -> Result<Option<SigningKey>, Failure> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(bad(path, error)),
    };
    let mode = fs::metadata(path).map_err(|error| bad(path, error))?.mode();
    if mode & 0o077 != 0 {
        return Err(bad(
            path,
            format!("others may read it (mode {:03o}); run chmod 600 on it, or delete it to have a new one", mode & 0o777),
        ));
    }
    let body: String = text.lines().map(str::trim).filter(|line| !line.is_empty() && *line != HEAD && *line != TAIL).collect();
    let der = STANDARD.decode(body).ok();
    let seed = der.as_deref().and_then(|der| der.strip_prefix(&DER_PREFIX)).and_then(|seed| <[u8; 32]>::try_from(seed).ok());
    match seed {
        Some(seed) => Ok(Some(SigningKey::from_bytes(&seed))),
        None => Err(bad(path, "it is not an Ed25519 key as PKCS#8 PEM; restore it, or delete it to have a new one")),
    }
}

/// Writes beside and links: a crash leaves no half key, and of two processes at once one wins and both read its key.
fn create(path: &Path) -> Result<(), Failure> {
    let key = generate()?;
    let beside = path.with_extension(random_name()?);
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
        file.write_all(format!("{HEAD}\n{}\n{TAIL}\n", STANDARD.encode(to_der(&key))).as_bytes())?;
        file.sync_all()?;
        match fs::hard_link(&beside, path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => Ok(()),
        }
    };
    let written = write();
    let _ = fs::remove_file(&beside);
    written.map_err(|error| bad(path, error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_key_is_made_once_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let first = KeyPair::load_or_create(dir.path()).unwrap().current;
        let mode = fs::metadata(dir.path().join(CURRENT)).unwrap().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert_eq!(KeyPair::load_or_create(dir.path()).unwrap().current, first);
    }

    #[test]
    fn a_rotated_key_is_still_known() {
        let dir = tempfile::tempdir().unwrap();
        let first = KeyPair::load_or_create(dir.path()).unwrap().current;
        fs::rename(dir.path().join(CURRENT), dir.path().join(PREVIOUS)).unwrap();
        let rotated = KeyPair::load_or_create(dir.path()).unwrap();
        assert_eq!(rotated.previous, Some(first.clone()));
        assert_ne!(rotated.current, first);
    }

    #[test]
    fn a_bad_or_open_key_file_is_refused_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(CURRENT);
        KeyPair::load_or_create(dir.path()).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(KeyPair::load_or_create(dir.path()).err().unwrap().message.contains("chmod 600"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, "garbage").unwrap();
        assert_eq!(KeyPair::load_or_create(dir.path()).err().unwrap().code, Code::BadFile);
        assert_eq!(fs::read_to_string(&path).unwrap(), "garbage");
    }

    #[test]
    fn the_file_is_standard_pkcs8() {
        // RFC 8410 §10.3's example key.
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(CURRENT);
        fs::write(&path, format!("{HEAD}\nMC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n{TAIL}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let key = KeyPair::load_or_create(dir.path()).unwrap().current;
        let public = STANDARD.encode(key.verifying_key().as_bytes());
        assert_eq!(public, "Gb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=");
    }
}
