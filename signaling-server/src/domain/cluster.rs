//! What the servers that serve the same rooms say to each other, and which of them are there.
//!
//! A message is one line of JSON with a version; behind [`Ask::Deliver`] follows, on the lines after it, the text for the peer, which no
//! server reads. What is not understood is not answered.
//!
//! ```text
//!   about one peer, to whichever server has it:   Deliver, Left, Fence, Expel
//!   to every server:                              Expel, Peers, RoomsOf, Hello
//! ```

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use shared::domain::{
    id::{PeerId, RoomId},
    signal::{Filters, MAX_MESSAGE},
};

use super::{grant::Identity, listing::Listing};

/// The version of these messages. A server leaves others unanswered.
pub const VERSION: u32 = 1;
/// The largest of them, in bytes. Twice what a peer may send: written out anew, its numbers may be longer.
pub const MAX_PAYLOAD: usize = 2 * MAX_MESSAGE;
/// How many other servers are known at most.
pub const MAX_SERVERS: usize = 64;
/// How long after its last [`Ask::Hello`] a server is still asked.
pub const FORGET_AFTER: Duration = Duration::from_secs(20);

/// One running server: a new one each time that it is started.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ServerId(PeerId);

impl ServerId {
    /// From a random name.
    pub fn new(name: PeerId) -> Self {
        ServerId(name)
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

/// What one server asks of others.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
pub enum Ask {
    /// Give the text behind this to your peer.
    Deliver {
        /// The room of both.
        room: RoomId,
        /// Whose message it is.
        from: PeerId,
        /// Whose it will be.
        to: PeerId,
    },
    /// A contact of your peer has gone.
    Left {
        /// The room of both.
        room: RoomId,
        /// Who has gone.
        peer: PeerId,
        /// Who is to know.
        to: PeerId,
    },
    /// This peer is registered here now: give it up, unless its registration with you is newer.
    Fence {
        /// The room.
        room: RoomId,
        /// The peer.
        peer: PeerId,
        /// The number of its registration here.
        session: u64,
    },
    /// A peer was deleted, or a room with all of its peers: close what you have of it.
    Expel {
        /// The room.
        room: RoomId,
        /// The peer; all of them when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        peer: Option<PeerId>,
        /// Registrations with a higher number came after the deletion.
        up_to: u64,
    },
    /// Whom of this room do you have?
    Peers {
        /// The room.
        room: RoomId,
        /// Only these.
        filters: Filters,
    },
    /// In which rooms is the caller connected to you as this peer?
    RoomsOf {
        /// The peer.
        peer: PeerId,
        /// Who asks.
        caller: Identity,
    },
    /// I am here.
    Hello {
        /// Who says so.
        server: ServerId,
        /// It does not know the others yet, so that they are to say the same to it.
        first: bool,
    },
    /// Something newer.
    #[serde(other)]
    Unknown,
}

/// What a server answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum Reply {
    /// It is in the peer's queue.
    Delivered,
    /// The peer's queue is full.
    Busy,
    /// The peer was given up; those who exchanged messages with it are its contacts where it is now.
    Fenced {
        /// Whom to tell when it leaves.
        contacts: Vec<PeerId>,
    },
    /// The peer's registration here is newer.
    Superseded {
        /// Its number.
        session: u64,
    },
    /// Done.
    Done,
    /// Whom this server has.
    Peers {
        /// Them.
        listing: Listing,
    },
    /// The rooms; two at most, since more are as good as two.
    Rooms {
        /// Them.
        rooms: Vec<RoomId>,
    },
    /// Something newer.
    #[serde(other)]
    Unknown,
}

/// Why a message of another server is dropped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Over [`MAX_PAYLOAD`].
    #[error("it has {0} bytes; at most {MAX_PAYLOAD} are allowed")]
    TooLarge(usize),
    /// Of another version of these messages.
    #[error("it is of version {0} of the messages between servers, this server speaks {VERSION}; run the same release everywhere")]
    Version(u32),
    /// Not text.
    #[error("it is not UTF-8")]
    NotText,
    /// No message of these.
    #[error("it is not a message between servers: {0}")]
    Strange(String),
}

#[derive(Serialize, Deserialize)]
struct Line<T> {
    v: u32,
    #[serde(flatten)]
    said: T,
}

/// A message as bytes; `text` is for the peer of an [`Ask::Deliver`].
///
/// # Errors
/// [`Malformed::TooLarge`].
pub fn encode<T: Serialize>(said: &T, text: Option<&str>) -> Result<Vec<u8>, Malformed> {
    let mut bytes = serde_json::to_vec(&Line { v: VERSION, said }).expect("these messages have string keys only");
    if let Some(text) = text {
        bytes.push(b'\n');
        bytes.extend_from_slice(text.as_bytes());
    }
    if bytes.len() > MAX_PAYLOAD { Err(Malformed::TooLarge(bytes.len())) } else { Ok(bytes) }
}

/// Reads a message, and the text behind it.
///
/// # Errors
/// The [`Malformed`].
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<(T, Option<&str>), Malformed> {
    if bytes.len() > MAX_PAYLOAD {
        return Err(Malformed::TooLarge(bytes.len()));
    }
    let whole = std::str::from_utf8(bytes).map_err(|_| Malformed::NotText)?;
    let (line, text) = whole.split_once('\n').map_or((whole, None), |(line, text)| (line, Some(text)));
    match serde_json::from_str::<Line<T>>(line) {
        Ok(Line { v: VERSION, said }) => Ok((said, text)),
        Ok(Line { v, .. }) => Err(Malformed::Version(v)),
        Err(error) => Err(match serde_json::from_str::<Line<serde::de::IgnoredAny>>(line) {
            Ok(Line { v, .. }) if v != VERSION => Malformed::Version(v),
            _ => Malformed::Strange(error.to_string()),
        }),
    }
}

/// The other servers. Who has gone may stay for a while, since nobody answers in its name; who is there must not be missing.
#[derive(Debug, Default)]
pub struct Roster(BTreeMap<ServerId, Duration>);

impl Roster {
    /// A server has said that it is there, at this time on a clock that only goes forward. True when it was not known.
    pub fn heard(&mut self, server: ServerId, now: Duration) -> bool {
        self.forget(now);
        if self.0.len() >= MAX_SERVERS && !self.0.contains_key(&server) {
            return false;
        }
        self.0.insert(server, now).is_none()
    }

    /// It has nobody listening any more.
    pub fn gone(&mut self, server: &ServerId) {
        self.0.remove(server);
    }

    /// Those to ask.
    pub fn alive(&mut self, now: Duration) -> Vec<ServerId> {
        self.forget(now);
        self.0.keys().cloned().collect()
    }

    fn forget(&mut self, now: Duration) {
        self.0.retain(|_, heard| heard.saturating_add(FORGET_AFTER) > now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn id<T: std::str::FromStr>(text: &str) -> T
    where
        T::Err: std::fmt::Debug,
    {
        text.parse().unwrap()
    }

    fn server(name: &str) -> ServerId {
        ServerId::new(id(name))
    }

    #[test]
    fn a_message_is_a_line_and_the_text_behind_it() {
        let deliver = Ask::Deliver { room: id("r"), from: id("a"), to: id("b") };
        let bytes = encode(&deliver, Some("{\"any\":\n\"text\"}")).unwrap();
        assert_eq!(bytes, b"{\"v\":1,\"ask\":\"deliver\",\"room\":\"r\",\"from\":\"a\",\"to\":\"b\"}\n{\"any\":\n\"text\"}");
        assert_eq!(decode::<Ask>(&bytes).unwrap(), (deliver, Some("{\"any\":\n\"text\"}")));
        let fenced = Reply::Fenced { contacts: vec![id("c")] };
        assert_eq!(decode::<Reply>(&encode(&fenced, None).unwrap()).unwrap(), (fenced, None));
    }

    #[test]
    fn every_question_and_answer_survives_the_way() {
        let caller = Identity { subject: "s".into(), key: None };
        for ask in [
            Ask::Left { room: id("r"), peer: id("a"), to: id("b") },
            Ask::Fence { room: id("r"), peer: id("a"), session: u64::MAX },
            Ask::Expel { room: id("r"), peer: None, up_to: u64::MAX },
            Ask::Expel { room: id("r"), peer: Some(id("a")), up_to: 3 },
            Ask::Peers { room: id("r"), filters: Filters::default() },
            Ask::RoomsOf { peer: id("a"), caller },
            Ask::Hello { server: server("s"), first: true },
        ] {
            assert_eq!(decode::<Ask>(&encode(&ask, None).unwrap()).unwrap(), (ask, None));
        }
        for reply in [
            Reply::Delivered,
            Reply::Superseded { session: 7 },
            Reply::Peers { listing: Listing { count: 1, peers: Vec::new() } },
            Reply::Rooms { rooms: vec![id("r")] },
        ] {
            assert_eq!(decode::<Reply>(&encode(&reply, None).unwrap()).unwrap(), (reply, None));
        }
    }

    #[test]
    fn what_is_newer_or_malformed_is_told_apart() {
        let read = |value: serde_json::Value| decode::<Ask>(value.to_string().as_bytes()).map(|(ask, _)| ask);
        assert_eq!(read(json!({"v": 1, "ask": "dance", "steps": 3})), Ok(Ask::Unknown));
        assert_eq!(read(json!({"v": 2, "ask": "hello", "server": "s", "first": false})), Err(Malformed::Version(2)));
        assert_eq!(read(json!({"v": 2, "asks": []})), Err(Malformed::Version(2)));
        for bad in [
            json!({"v": 1}),
            json!({"ask": "hello", "server": "s", "first": false}),
            json!({"v": 1, "ask": "hello", "server": "a.b > *", "first": false}),
            json!({"v": 1, "ask": "fence", "room": "r", "peer": "p", "session": -1}),
            json!([]),
        ] {
            assert!(matches!(read(bad.clone()), Err(Malformed::Strange(_))), "{bad}");
        }
        assert_eq!(decode::<Ask>(&[0xff, 0xfe]), Err(Malformed::NotText));
        assert_eq!(decode::<Ask>(&vec![b' '; MAX_PAYLOAD + 1]), Err(Malformed::TooLarge(MAX_PAYLOAD + 1)));
        let long = "x".repeat(MAX_PAYLOAD);
        assert!(matches!(encode(&Reply::Done, Some(&long)), Err(Malformed::TooLarge(_))));
    }

    #[test]
    fn a_server_is_known_until_it_is_gone_or_silent() {
        let (mut roster, at) = (Roster::default(), Duration::from_secs);
        assert!(roster.heard(server("a"), at(0)));
        assert!(!roster.heard(server("a"), at(5)));
        assert!(roster.heard(server("b"), at(6)));
        assert_eq!(roster.alive(at(24)), [server("a"), server("b")]);
        assert_eq!(roster.alive(at(25)), [server("b")]);
        roster.gone(&server("b"));
        assert_eq!(roster.alive(at(25)), []);
        for n in 0..MAX_SERVERS + 9 {
            roster.heard(server(&n.to_string()), at(30));
        }
        assert_eq!(roster.alive(at(30)).len(), MAX_SERVERS);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300), tail in "\\PC{0,100}") {
            let _ = decode::<Ask>(&bytes);
            let _ = decode::<Reply>(&[br#"{"v":1,"reply":"#.as_slice(), tail.as_bytes()].concat());
            let _ = decode::<Ask>(&[br#"{"v":1,"ask":"deliver","room":"#.as_slice(), tail.as_bytes()].concat());
        }
    }
}
