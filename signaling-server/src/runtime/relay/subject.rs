//! The NATS subjects that servers meet at. An id is one word of a subject: without dots, which part words, and wildcards.

use shared::domain::id::{PeerId, RoomId};

use crate::domain::cluster::ServerId;

/// Where a server says that it is there.
pub(super) const SERVERS: &str = "webrtc.servers";

/// Where whoever has this peer is asked.
pub(super) fn peer(room: &RoomId, peer: &PeerId) -> String {
    format!("webrtc.peer.{}.{}", word(room.as_str()), word(peer.as_str()))
}

/// Where one server is asked.
pub(super) fn server(server: &ServerId) -> String {
    format!("webrtc.server.{}", word(server.as_str()))
}

/// Ids have letters, digits, `-`, `_` and `.` only: of these the dot has a meaning in a subject, and `~` is free to stand for it.
fn word(id: &str) -> String {
    id.replace('.', "~")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Whatever the ids' one door lets in.
        #[test]
        fn no_id_leaves_its_word_and_no_two_have_the_same(a in "[!-~]{1,5}", b in "[A-Za-z0-9_.-]{1,64}", c in "[A-Za-z0-9_.-]{1,64}") {
            for (x, y) in [(&a, &b), (&b, &c), (&b, &a)] {
                let (Ok(room), Ok(id)) = (x.parse::<RoomId>(), y.parse::<PeerId>()) else { continue };
                let subject = peer(&room, &id);
                let words: Vec<&str> = subject.split('.').collect();
                prop_assert_eq!(words.len(), 4);
                prop_assert!(words.iter().all(|word| !word.is_empty() && !word.contains(['*', '>', ' ', '\t', '\r', '\n'])));
                prop_assert_eq!(x == y, words[2] == words[3]);
            }
        }
    }
}
