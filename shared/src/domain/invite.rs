//! The invite: the one string that a worker prints and a client takes.
//!
//! `webrtc-connect:` + base64url (no padding) of a compact JSON object. It extends the ancestor's
//! `sleap-session:` string (`r` room, `t` token, `p` peer) with `s` server URL, `g` what it grants, `k` the root secret
//! of that grant, `w` the worker's static public key and `v` the key that vouches for other workers of the room. The ancestor's own form is read, too, so that the reason why it
//! does not suffice can be given: it carries no end-to-end secret.

use std::{fmt, str::FromStr};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};

use super::{
    error::{Code, Failure},
    id::{PeerId, RoomId, Secret},
};

const PREFIX: &str = "webrtc-connect:";
const ANCESTOR_PREFIX: &str = "sleap-session:";
const MAX_LEN: usize = 4096;

/// What the holder of an invite may do. A stronger grant includes the weaker one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Grant {
    /// See jobs and follow their progress.
    Watch,
    /// Watch, and submit, stop, cancel and fetch jobs.
    Submit,
}

impl fmt::Display for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Grant::Watch => "watch",
            Grant::Submit => "submit",
        })
    }
}

/// 32 secret bytes that prove a grant end to end; never sent to any server.
pub type RootSecret = Secret<[u8; 32]>;

/// What a client needs to reach one worker's room and to prove itself there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invite {
    /// Base URL of the signaling server, `http(s)://host[:port]`.
    pub server: String,
    /// The room.
    pub room: RoomId,
    /// Admission to the room; the server knows its hash.
    pub token: Secret<String>,
    /// The worker that printed the invite.
    pub worker: PeerId,
    /// What it grants.
    pub grant: Grant,
    /// The grant's root secret.
    pub secret: RootSecret,
    /// The worker's static public key (X25519, 32 bytes).
    pub worker_key: [u8; 32],
    /// The room's public key (Ed25519, 32 bytes): what it signs is a worker of this room, too.
    pub room_key: [u8; 32],
}

#[derive(Serialize, Deserialize)]
struct Wire {
    r: RoomId,
    t: Secret<String>,
    p: PeerId,
    #[serde(default)]
    s: String,
    #[serde(default)]
    g: Option<Grant>,
    #[serde(default)]
    k: Secret<String>,
    #[serde(default)]
    w: String,
    #[serde(default)]
    v: String,
}

impl Invite {
    /// The string to pass on. It holds secrets: print it for the user, never log it.
    pub fn expose(&self) -> String {
        let wire = Wire {
            r: self.room.clone(),
            t: self.token.clone(),
            p: self.worker.clone(),
            s: self.server.clone(),
            g: Some(self.grant),
            k: Secret::new(URL_SAFE_NO_PAD.encode(self.secret.expose())),
            w: URL_SAFE_NO_PAD.encode(self.worker_key),
            v: URL_SAFE_NO_PAD.encode(self.room_key),
        };
        let json = serde_json::to_vec(&wire).expect("ids and strings always serialise");
        format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(json))
    }
}

impl FromStr for Invite {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Self, Failure> {
        let text = text.trim();
        if text.starts_with(ANCESTOR_PREFIX) {
            return Err(refused(
                "this is a session string of the older Python system; it has no end-to-end secret. \
                 Ask for the worker's invite, which begins with 'webrtc-connect:'",
            ));
        }
        let Some(body) = text.strip_prefix(PREFIX) else {
            return Err(refused(
                "this is not an invite: it must begin with 'webrtc-connect:'. Copy the whole line that webrtc-worker printed",
            ));
        };
        let cut = || refused("the invite is damaged or cut short; copy the whole line that webrtc-worker printed");
        if text.len() > MAX_LEN {
            return Err(cut());
        }
        let json = URL_SAFE_NO_PAD.decode(body).map_err(|_| cut())?;
        let wire: Wire = serde_json::from_slice(&json).map_err(|_| cut())?;
        if !(wire.s.starts_with("http://") || wire.s.starts_with("https://")) {
            return Err(refused("the invite names no signaling server (http:// or https://); ask for a new one"));
        }
        Ok(Invite {
            server: wire.s.trim_end_matches('/').to_owned(),
            room: wire.r,
            token: wire.t,
            worker: wire.p,
            grant: wire.g.ok_or_else(cut)?,
            secret: Secret::new(key_bytes(wire.k.expose()).ok_or_else(cut)?),
            worker_key: key_bytes(&wire.w).ok_or_else(cut)?,
            room_key: key_bytes(&wire.v).ok_or_else(cut)?,
        })
    }
}

fn key_bytes(text: &str) -> Option<[u8; 32]> {
    URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok()
}

fn refused(message: &str) -> Failure {
    Failure::new(Code::NotAuthentic, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn invite() -> Invite {
        Invite {
            server: "http://127.0.0.1:8001".into(),
            room: "0123456789abcdef0123456789abcdef".parse().unwrap(),
            token: Secret::new("token-canary".into()),
            worker: "worker-1".parse().unwrap(),
            grant: Grant::Submit,
            secret: Secret::new([7; 32]),
            worker_key: [9; 32],
            room_key: [8; 32],
        }
    }

    #[test]
    fn an_invite_survives_copy_and_paste() {
        let text = format!("  {}\n", invite().expose());
        assert_eq!(text.parse::<Invite>().unwrap(), invite());
    }

    #[test]
    fn debug_shows_no_secret() {
        let shown = format!("{:?}", invite());
        assert!(!shown.contains("canary") && !shown.contains("7, 7"), "{shown}");
    }

    #[test]
    fn the_ancestors_form_is_named() {
        let failure = "sleap-session:eyJyIjoiYSJ9".parse::<Invite>().unwrap_err();
        assert!(failure.message.contains("older Python system"));
    }

    #[test]
    fn a_cut_invite_says_so() {
        let text = invite().expose();
        for cut in [20, text.len() / 2, text.len() - 1] {
            assert!(text[..cut].parse::<Invite>().unwrap_err().message.contains("cut short"));
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,200}") {
            let _ = text.parse::<Invite>();
            let _ = format!("{PREFIX}{text}").parse::<Invite>();
        }
    }
}
