//! Names of things: newtypes with one parsing door each, and the wrapper that keeps secrets out of logs.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::error::{Code, Failure};

/// The longest id accepted, in bytes.
pub const MAX_ID_LEN: usize = 64;

macro_rules! text_id {
    ($(#[$meta:meta])* $name:ident, $what:literal) => {
        $(#[$meta])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(String);

        impl $name {
            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = Failure;
            fn from_str(text: &str) -> Result<Self, Failure> {
                check_id(text, $what)?;
                Ok($name(text.to_owned()))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

text_id!(
    /// A room on the signaling server: 1 to 64 characters of `A–Z a–z 0–9 - _ .`; ours are 32 hexadecimal digits (128 bits).
    RoomId,
    "room id"
);
text_id!(
    /// A peer in a room: 1 to 64 characters of `A–Z a–z 0–9 - _ .`.
    PeerId,
    "peer id"
);
text_id!(
    /// A job, from upload to downloaded result: 32 hexadecimal digits derived from package and configuration.
    JobId,
    "job id"
);
text_id!(
    /// What outlives a connection: chosen by the client, 32 hexadecimal digits.
    SessionId,
    "session id"
);
text_id!(
    /// One request to stop or cancel; applied at most once.
    CommandId,
    "command id"
);

fn check_id(text: &str, what: &str) -> Result<(), Failure> {
    let ok = !text.is_empty()
        && text.len() <= MAX_ID_LEN
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        && !text.starts_with('.');
    if ok {
        return Ok(());
    }
    Err(Failure::new(
        Code::InvalidRequest,
        format!("not a {what}: it must be 1 to {MAX_ID_LEN} letters, digits, '-', '_' or '.', and not begin with a dot"),
    ))
}

/// 128 bits (or more) as lower-case hexadecimal digits: the text form of random ids and hashes.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        use fmt::Write;
        write!(text, "{byte:02x}").expect("writing to a String cannot fail");
        text
    })
}

/// A value that must not be seen: `Debug` and `Display` print `[redacted]`; serialising it (to the wire) writes it.
#[derive(Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret<T>(T);

impl<T> Secret<T> {
    /// Wraps a value.
    pub fn new(value: T) -> Self {
        Secret(value)
    }

    /// The value; each call is a place to check that it does not end in a log.
    pub fn expose(&self) -> &T {
        &self.0
    }
}

impl<T> fmt::Debug for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

impl<T> fmt::Display for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_have_one_door() {
        for good in ["a", "worker-1_x.y", &"f".repeat(64)] {
            assert_eq!(good.parse::<PeerId>().unwrap().as_str(), good);
        }
        for bad in ["", "a b", "../x", ".hidden", "é", "a/b", &"f".repeat(65)] {
            assert!(bad.parse::<JobId>().is_err(), "{bad:?}");
            assert!(serde_json::from_value::<JobId>(serde_json::json!(bad)).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn secrets_print_as_redacted() {
        let secret = Secret::new("canary".to_owned());
        assert_eq!(format!("{secret} {secret:?}"), "[redacted] [redacted]");
        assert_eq!(serde_json::to_string(&secret).unwrap(), "\"canary\"");
    }
}
