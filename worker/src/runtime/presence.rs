//! The sessions that have a link, or are held for a client that is away.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use shared::domain::id::SessionId;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The sessions of a worker. Clones share them.
#[derive(Clone, Default)]
pub struct Presence(Arc<Mutex<HashMap<SessionId, Present>>>);

struct Present {
    client: [u8; 32],
    replaced: CancellationToken,
    /// When it has no link: until when it is held.
    held_until: Option<Instant>,
    /// Whether its client is expected back, having said no goodbye.
    expected: bool,
}

/// A link's part in its session.
pub struct Entered {
    /// Cancelled when the same session has a newer link.
    pub replaced: CancellationToken,
    /// Whether the session was there before.
    pub resumed: bool,
}

impl Presence {
    /// A link of this session and client; the one before is replaced.
    pub fn enter(&self, session: SessionId, client: [u8; 32], now: Instant) -> Entered {
        let mut present = self.0.lock().expect("no panic happens under this lock");
        present.retain(|_, present| present.held_until.is_none_or(|until| now < until));
        let old = present.get(&session).filter(|old| old.client == client);
        let resumed = old.map(|old| old.replaced.cancel()).is_some();
        let replaced = CancellationToken::new();
        present.insert(session, Present { client, replaced: replaced.clone(), held_until: None, expected: true });
        Entered { replaced, resumed }
    }

    /// A link has ended: its session is held until then; `farewell`: its client has said that it leaves. `false`: it has a newer link, so its
    /// client has not left.
    pub fn leave(&self, session: &SessionId, replaced: &CancellationToken, held_until: Instant, farewell: bool) -> bool {
        if replaced.is_cancelled() {
            return false;
        }
        if let Some(own) = self.0.lock().expect("no panic happens under this lock").get_mut(session) {
            own.held_until = Some(held_until);
            own.expected = !farewell;
        }
        true
    }

    /// Clients that have lost their link and are still expected back.
    pub fn expected(&self, now: Instant) -> usize {
        let present = self.0.lock().expect("no panic happens under this lock");
        present.values().filter(|present| present.expected && present.held_until.is_some_and(|until| now < until)).count()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const ANNA: [u8; 32] = [1; 32];
    const BEN: [u8; 32] = [2; 32];

    fn session() -> SessionId {
        "s".parse().unwrap()
    }

    #[test]
    fn a_session_is_held_until_its_time() {
        for (away, resumed) in [(89, true), (91, false)] {
            let (presence, now) = (Presence::default(), Instant::now());
            let first = presence.enter(session(), ANNA, now);
            assert!(!first.resumed);
            assert!(presence.leave(&session(), &first.replaced, now + Duration::from_secs(90), false));
            assert_eq!(presence.enter(session(), ANNA, now + Duration::from_secs(away)).resumed, resumed, "{away} s");
        }
    }

    #[test]
    fn who_lost_the_link_is_expected_back_for_a_while_and_who_said_goodbye_is_not() {
        let (presence, now) = (Presence::default(), Instant::now());
        let after = |seconds| now + Duration::from_secs(seconds);
        let lost = presence.enter(session(), ANNA, now);
        assert_eq!(presence.expected(now), 0, "it is here");
        presence.leave(&session(), &lost.replaced, after(90), false);
        assert_eq!((presence.expected(after(89)), presence.expected(after(90))), (1, 0));
        let back = presence.enter(session(), ANNA, after(10));
        presence.leave(&session(), &back.replaced, after(90), true);
        assert_eq!(presence.expected(after(11)), 0);
    }

    #[test]
    fn another_client_does_not_get_a_session() {
        let (presence, now) = (Presence::default(), Instant::now());
        let first = presence.enter(session(), ANNA, now);
        assert!(!presence.enter(session(), BEN, now).resumed);
        assert!(!first.replaced.is_cancelled());
    }

    /// The end of a link that had been replaced counted as the departure of the client: its session and its uploads' places lapsed
    /// although it was there.
    #[test]
    fn regression_a_replaced_link_does_not_leave_for_its_successor() {
        let (presence, now) = (Presence::default(), Instant::now());
        let first = presence.enter(session(), ANNA, now);
        let second = presence.enter(session(), ANNA, now);
        assert!(second.resumed && first.replaced.is_cancelled());
        assert!(!presence.leave(&session(), &first.replaced, now + Duration::from_secs(90), false));
        assert!(presence.enter(session(), ANNA, now + Duration::from_secs(1000)).resumed);
    }
}
