//! TURN credentials in the REST form that coturn's `use-auth-secret` checks (draft-uberti-behave-turn-rest-00 §2.2).
//!
//! * the user name is `EXPIRY:PEER` (Unix seconds), the password the Base64 of HMAC-SHA1(secret, user name): nothing is stored, and the
//!   TURN server needs nothing but the secret
//! * [`TurnSecrets`]: one secret, or two while it is changed; the TURN server accepts both, the first one makes new credentials
//! * [`renew_after`]: when a peer gets new ones

use std::{fmt, str::FromStr, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use hmac::{Hmac, Mac};
use sha1::Sha1;
use shared::domain::{
    ice::{IceKind, IceUrl},
    id::{PeerId, Secret},
    signal::IceServer,
};

/// How long credentials are valid unless told otherwise, in seconds.
pub const DEFAULT_TTL: u64 = 600;
/// The shortest and the longest life that may be configured, in seconds.
pub const TTL_RANGE: std::ops::RangeInclusive<u64> = 30..=24 * 3600;
/// The shortest secret: 128 bits in hexadecimal digits have 32 characters, in Base64 22.
const SHORTEST_SECRET: usize = 20;
/// With coturn's own limit of a line.
const LONGEST_SECRET: usize = 256;

/// One secret, or two while it is changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TurnSecrets {
    current: Secret<String>,
    other: Option<Secret<String>>,
}

impl TurnSecrets {
    /// What this peer authenticates with at the TURN servers of `urls`, until `expires_at` (Unix seconds).
    pub fn server(&self, urls: &[TurnUrl], peer: &PeerId, expires_at: u64) -> IceServer {
        let username = format!("{expires_at}:{peer}");
        let credential = hmac_sha1(self.current.expose(), &username);
        IceServer {
            urls: urls.iter().map(TurnUrl::to_string).collect(),
            username: Some(username),
            credential: Some(Secret::new(STANDARD.encode(credential))),
        }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        1 + usize::from(self.other.is_some())
    }
}

/// What is wrong with a file of secrets; never the secret itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadSecrets {
    /// None at all.
    #[error("there is no secret in it; make one with: openssl rand -hex 32")]
    Empty,
    /// More than two.
    #[error("there are more than two secrets in it: the first line makes credentials, a second one is the one before or after it")]
    TooMany,
    /// Too short or too long, on this line.
    #[error("line {0} has less than {SHORTEST_SECRET} or more than {LONGEST_SECRET} characters; make a secret with: openssl rand -hex 32")]
    Length(usize),
    /// Characters that the TURN server's configuration may read otherwise, on this line.
    #[error("line {0} has other characters than letters, digits and + / = - _ . ~; make a secret with: openssl rand -hex 32")]
    Characters(usize),
}

impl FromStr for TurnSecrets {
    type Err = BadSecrets;
    /// One secret a line; empty lines and lines that begin with `#` are skipped.
    fn from_str(text: &str) -> Result<Self, BadSecrets> {
        let mut secrets = Vec::new();
        for (line, text) in (1..).zip(text.lines()).map(|(line, text)| (line, text.trim())) {
            if text.is_empty() || text.starts_with('#') {
                continue;
            }
            if !text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+/=-_.~".contains(&byte)) {
                return Err(BadSecrets::Characters(line));
            }
            if !(SHORTEST_SECRET..=LONGEST_SECRET).contains(&text.len()) {
                return Err(BadSecrets::Length(line));
            }
            secrets.push(Secret::new(text.to_owned()));
        }
        let mut secrets = secrets.into_iter();
        match (secrets.next(), secrets.next(), secrets.next()) {
            (None, ..) => Err(BadSecrets::Empty),
            (Some(current), other, None) => Ok(TurnSecrets { current, other }),
            (_, _, Some(_)) => Err(BadSecrets::TooMany),
        }
    }
}

fn hmac_sha1(key: &str, message: &str) -> [u8; 20] {
    let mut mac = Hmac::<Sha1>::new_from_slice(key.as_bytes()).expect("HMAC takes keys of any length");
    mac.update(message.as_bytes());
    mac.finalize().into_bytes().into()
}

/// When half of a credential's life is over it is replaced: then a clock that differs from the TURN server's by less than the other half
/// does no harm, and neither does a renewal that comes late.
pub fn renew_after(ttl: u64) -> Duration {
    Duration::from_millis(ttl.max(1) * 500)
}

/// Where a TURN server listens (RFC 7065): `turn:HOST[:PORT][?transport=udp|tcp]`, or `turns:` for TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TurnUrl(IceUrl);

impl FromStr for TurnUrl {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| format!("this is no TURN server: {why}; it must look like turn:HOST:3478?transport=udp or turns:HOST:443");
        let url: IceUrl = text.trim().parse().map_err(|why: String| wrong(&why))?;
        if url.kind == IceKind::Turn { Ok(TurnUrl(url)) } else { Err(wrong("it does not begin with turn: or turns:")) }
    }
}

impl fmt::Display for TurnUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "0123456789abcdef0123456789abcdef";

    fn secrets(text: &str) -> TurnSecrets {
        text.parse().unwrap()
    }

    fn urls(texts: &[&str]) -> Vec<TurnUrl> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn the_hmac_is_rfc_2202s() {
        assert_eq!(shared::domain::id::hex(&hmac_sha1("Jefe", "what do ya want for nothing?")), "effcdf6ae5eb2fa2d27416d5f184df9c259a7c79");
        assert_eq!(shared::domain::id::hex(&hmac_sha1(&"\u{b}".repeat(20), "Hi There")), "b617318655057264e28bc0b6fb378c8ef146be00");
    }

    #[test]
    fn credentials_are_those_that_openssl_makes() {
        // printf 1800000600:client-1 | openssl dgst -sha1 -hmac 0123456789abcdef0123456789abcdef -binary | base64
        let server = secrets(SECRET).server(&urls(&["turn:t.example:3478"]), &"client-1".parse().unwrap(), 1_800_000_600);
        assert_eq!(server.urls, ["turn:t.example:3478?transport=udp"]);
        assert_eq!(server.username.as_deref(), Some("1800000600:client-1"));
        assert_eq!(server.credential.unwrap().expose(), "JWtP4xorUiV2QrZbeHCER07WpC4=");
    }

    #[test]
    fn the_first_secret_makes_credentials() {
        let peer: PeerId = "p".parse().unwrap();
        let (first, second) = ("a".repeat(32), "b".repeat(32));
        let made = |text: &str| secrets(text).server(&[], &peer, 1).credential;
        assert_eq!(made(&format!("# of March\n{first}\n\n{second}\n")), made(&first));
        assert_ne!(made(&format!("{second}\n{first}")), made(&first));
        assert_eq!((secrets(&first).count(), secrets(&format!("{first}\n{second}")).count()), (1, 2));
    }

    #[test]
    fn what_is_no_secret_is_refused_without_showing_it() {
        for (text, wrong) in [
            ("", BadSecrets::Empty),
            ("# nothing\n\n", BadSecrets::Empty),
            ("canary", BadSecrets::Length(1)),
            (&format!("{SECRET}\ncanary"), BadSecrets::Length(2)),
            (&"c".repeat(257), BadSecrets::Length(1)),
            ("canary canary canary canary", BadSecrets::Characters(1)),
            ("static-auth-secret=\"canarycanarycanary\"", BadSecrets::Characters(1)),
            (&format!("{SECRET}\n{SECRET}\n{SECRET}"), BadSecrets::TooMany),
        ] {
            let error = text.parse::<TurnSecrets>().unwrap_err();
            assert_eq!(error, wrong, "{text}");
            assert!(!error.to_string().contains("canary"), "{error}");
        }
        let shown = format!("{:?}", secrets(SECRET).server(&[], &"p".parse().unwrap(), 1)) + &format!("{:?}", secrets(SECRET));
        assert!(!shown.contains(SECRET) && shown.matches("[redacted]").count() == 2, "{shown}");
    }

    #[test]
    fn renewal_is_at_half_time() {
        assert_eq!(renew_after(600), Duration::from_secs(300));
        assert_eq!(renew_after(1), Duration::from_millis(500));
        assert!(renew_after(0) > Duration::ZERO);
    }

    #[test]
    fn only_turn_servers_are_taken() {
        let url = |text: &str| text.parse::<TurnUrl>().map(|url| url.to_string());
        assert_eq!(url(" turns:turn.example:443 ").as_deref(), Ok("turns:turn.example:443?transport=tcp"));
        for (bad, says) in [("stun:turn.example", "turn: or turns:"), ("turn:turn.example:0", "port"), ("turn:", "turns:HOST:443")] {
            assert!(url(bad).unwrap_err().contains(says), "{bad}");
        }
    }
}
