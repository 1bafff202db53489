//! Lists of a room's peers: what a message has space for, of one server or of several.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use shared::domain::{
    id::PeerId,
    signal::{PeerInfo, Role},
};

/// The most peers that a list names.
pub const MAX_LISTED: usize = 100;
/// The most bytes of a list, so that it fits one message with room for the rest of it.
const MAX_LISTED_BYTES: usize = 48 * 1024;
/// Names and braces around a peer's metadata take less.
const AROUND: usize = 150;

/// How many peers there are, and the first of them, workers first: at most [`MAX_LISTED`], and as many as fit a message.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Listing {
    /// All that match.
    pub count: usize,
    /// Those that are named.
    pub peers: Vec<PeerInfo>,
}

impl Listing {
    /// Of these peers; `bytes` says how long a peer's metadata is as JSON.
    pub fn of<P>(mut peers: Vec<P>, role: impl Fn(&P) -> Role, bytes: impl Fn(&P) -> usize, info: impl Fn(P) -> PeerInfo) -> Self {
        let count = peers.len();
        peers.sort_by_key(|peer| role(peer) != Role::Worker);
        let mut budget = MAX_LISTED_BYTES;
        let fits = |peer: &P| {
            let size = bytes(peer).saturating_add(AROUND);
            let fits = size <= budget;
            budget = budget.saturating_sub(size);
            fits
        };
        Listing { count, peers: peers.into_iter().take(MAX_LISTED).take_while(fits).map(info).collect() }
    }

    /// What several servers know of one room, without `asker`. A peer that two of them name, since it has just gone from one to the
    /// other, counts once; the first listing knows best.
    pub fn merge(asker: Option<&PeerId>, listings: Vec<Listing>) -> Self {
        let mut known = BTreeSet::new();
        let (mut count, mut peers) = (0_usize, Vec::new());
        for listing in listings {
            count = count.saturating_add(listing.count);
            for peer in listing.peers {
                if Some(&peer.peer_id) == asker || !known.insert(peer.peer_id.clone()) {
                    count = count.saturating_sub(1);
                } else {
                    peers.push(peer);
                }
            }
        }
        let bytes = |peer: &PeerInfo| serde_json::to_string(&peer.metadata).map_or(usize::MAX, |text| text.len());
        Listing { count, ..Listing::of(peers, |peer| peer.role, bytes, |peer| peer) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use shared::domain::signal::{Metadata, ToPeer};

    fn peer(id: &str, note: usize) -> PeerInfo {
        let role = if id.starts_with('w') { Role::Worker } else { Role::Client };
        let metadata: Metadata = serde_json::from_value(json!({"note": "x".repeat(note)})).unwrap();
        PeerInfo { peer_id: id.parse().unwrap(), role, metadata }
    }

    fn listing(peers: &[&str]) -> Listing {
        Listing { count: peers.len(), peers: peers.iter().map(|id| peer(id, 1)).collect() }
    }

    fn names(listing: &Listing) -> Vec<&str> {
        listing.peers.iter().map(|peer| peer.peer_id.as_str()).collect()
    }

    #[test]
    fn several_servers_lists_are_one_with_workers_first_and_nobody_twice() {
        let asker = "a".parse().unwrap();
        let merged = Listing::merge(Some(&asker), vec![listing(&["c", "w1"]), listing(&["w2", "w1", "a"]), Listing::default()]);
        assert_eq!((merged.count, names(&merged)), (3, vec!["w1", "w2", "c"]));
        let all = Listing::merge(None, vec![listing(&["a"]), listing(&["b"])]);
        assert_eq!((all.count, names(&all)), (2, vec!["a", "b"]));
    }

    #[test]
    fn however_many_servers_answer_the_list_fits_a_message() {
        let full = |server: usize| Listing { count: 70, peers: (0..60).map(|n| peer(&format!("c{server}-{n}"), 600)).collect() };
        let Listing { count, peers } = Listing::merge(None, (0..64).map(full).collect());
        assert_eq!(count, 64 * 70);
        let encoded = shared::domain::signal::encode(&ToPeer::PeerList { count, peers });
        assert!(encoded.len() < shared::domain::signal::MAX_MESSAGE, "{}", encoded.len());
    }
}
