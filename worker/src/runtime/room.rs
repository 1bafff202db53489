//! The worker's room: opened once, kept in a file, so that a worker that is killed and restarted still is where its invites say.
//!
//! Workers that share the file (`--room-file` on a shared disk) share the room; each has its own id and key, for which the room's
//! secret vouches.

use std::{
    fs,
    io::{ErrorKind, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use shared::{
    domain::{
        error::{Code, Failure},
        id::{PeerId, RoomId, Secret, hex},
        invite::{Grant, Invite},
        signal::CreateRoom,
    },
    runtime::{identity::Identity, seal, signal::Api},
};

/// A room that this worker opened.
#[derive(Clone)]
pub struct Room {
    /// The room.
    pub id: RoomId,
    /// Its admission token.
    pub token: Secret<String>,
    /// The worker's id in it.
    pub peer: PeerId,
    /// What every grant is derived from; known to the worker alone.
    pub secret: Secret<[u8; 32]>,
    /// The server it is on.
    pub server: String,
}

#[derive(Serialize, Deserialize)]
struct RoomFile {
    server: String,
    room: RoomId,
    token: Secret<String>,
    secret: Secret<String>,
}

impl Room {
    /// The room in the file, if there is one and it is on this server.
    ///
    /// # Errors
    /// [`Code::BadFile`] when the file cannot be read; one that cannot be understood is no room.
    pub fn load(path: &Path, server: &str, peer: &PeerId) -> Result<Option<Self>, Failure> {
        let bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(bad(path, &error)),
        };
        let Ok(file) = serde_json::from_slice::<RoomFile>(&bytes) else {
            tracing::warn!(path = %path.display(), "the room file is damaged; a new room is opened");
            return Ok(None);
        };
        let secret = URL_SAFE_NO_PAD.decode(file.secret.expose()).ok().and_then(|bytes| bytes.try_into().ok());
        Ok(secret.filter(|_| file.server == server).map(|secret| Room {
            id: file.room,
            token: file.token,
            peer: peer.clone(),
            secret: Secret::new(secret),
            server: file.server,
        }))
    }

    /// Opens a new room and keeps it in the file.
    ///
    /// # Errors
    /// What the server says, [`Code::NoConnection`], or [`Code::BadFile`].
    pub async fn create(path: &Path, api: &Api, identity: &Identity, ttl_seconds: Option<u64>) -> Result<Self, Failure> {
        let request = CreateRoom { ttl_seconds, public_key: Some(identity.signing_public()) };
        let created = api.create_room(&request).await?;
        let room = Room {
            id: created.room_id,
            token: created.token,
            peer: peer_id(identity),
            secret: Secret::new(seal::random::<32>()?),
            server: api.server().to_owned(),
        };
        room.save(path)?;
        Ok(room)
    }

    /// The invite that grants this.
    pub fn invite(&self, grant: Grant, identity: &Identity) -> Invite {
        Invite {
            server: self.server.clone(),
            room: self.id.clone(),
            token: self.token.clone(),
            worker: self.peer.clone(),
            grant,
            secret: seal::root_of(&self.secret, &self.id, grant),
            worker_key: *identity.public(),
            room_key: seal::room_key(&self.secret),
        }
    }

    fn save(&self, path: &Path) -> Result<(), Failure> {
        let file = RoomFile {
            server: self.server.clone(),
            room: self.id.clone(),
            token: self.token.clone(),
            secret: Secret::new(URL_SAFE_NO_PAD.encode(self.secret.expose())),
        };
        write_private(path, &serde_json::to_vec(&file).expect("strings always serialise")).map_err(|error| bad(path, &error))
    }
}

/// A worker's id in every room: the beginning of its key's hash, so that it is the same after every restart.
pub fn peer_id(identity: &Identity) -> PeerId {
    let hash = shared::domain::manifest::Hash::of(identity.public());
    format!("worker-{}", hex(&hash.0[..8])).parse().expect("hexadecimal digits are an id")
}

/// Writes a file that only its owner may read, whole or not at all.
///
/// # Errors
/// What the system says.
pub fn write_private(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        fs::create_dir_all(parent)?;
    }
    let temporary = path.with_extension(format!("new-{}", std::process::id()));
    let mut out = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    out.write_all(bytes)?;
    out.sync_all()?;
    fs::rename(&temporary, path)
}

fn bad(path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(Code::BadFile, format!("the room file {} cannot be used: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restarted_worker_finds_its_room_again_on_the_same_server_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("room.json");
        let identity = Identity::generate().unwrap();
        let room = Room {
            id: "r1".parse().unwrap(),
            token: Secret::new("t".into()),
            peer: "w".parse().unwrap(),
            secret: Secret::new([3; 32]),
            server: "http://a".into(),
        };
        room.save(&path).unwrap();
        let again = Room::load(&path, "http://a", &room.peer).unwrap().unwrap();
        assert_eq!(again.invite(Grant::Submit, &identity), room.invite(Grant::Submit, &identity));
        assert!(Room::load(&path, "http://b", &room.peer).unwrap().is_none());
        fs::write(&path, b"{").unwrap();
        assert!(Room::load(&path, "http://a", &room.peer).unwrap().is_none());
    }
}
