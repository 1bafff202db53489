//! Has what goes over a TURN relay leave at once.
//!
//! The crate's driver (webrtc 0.21.1, `driver.rs`, `poll_writes` and `poll_reads`) sends in each turn of its loop first what its TURN
//! client holds, then hands that client the packets of this turn, and then reads what has come over the relay. So a packet leaves one
//! turn late, and an answer to one two turns late; the next turn comes with the next packet or timer: after up to 200 ms on a quiet
//! connection, several times in each handshake. Here the timer that the driver waits for at the end of a turn rings early, twice; then
//! everything has left, and it waits as long as it should. Under load packets come sooner than that, and nothing changes.
//!
//! Obsolete when the crate reads before it writes, and sends after it has handed over.

use std::{cell::Cell, future::Future, pin::Pin, time::Duration};

/// How long after a turn the next one is; tokio's timers count milliseconds.
const SOON: Duration = Duration::from_millis(1);
/// Turns that a packet may need to leave.
const LOOKS: u8 = 2;

tokio::task_local! {
    /// How many early turns the driver whose task this is has had since something happened.
    static LOOKED: Cell<u8>;
}

/// The driver's future, which looks again when it goes to sleep by [`sleep`].
pub(super) fn taking<'a>(driver: impl Future<Output = ()> + Send + 'a) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>> {
    Box::pin(LOOKED.scope(Cell::new(0), driver))
}

/// A timer of this length; a shorter one first where the driver's task waits for it.
pub(super) fn sleep(
    duration: Duration,
    timer: impl Fn(Duration) -> Pin<Box<dyn Future<Output = ()> + Send>>,
) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    let looked = LOOKED.try_with(|looked| looked.replace(0)).unwrap_or(LOOKS);
    if looked >= LOOKS || duration <= SOON {
        return timer(duration);
    }
    let soon = timer(SOON);
    Box::pin(async move {
        soon.await;
        // Dropped before: something happened, and the looks after that are still to come.
        let _ = LOOKED.try_with(|now| now.set(looked + 1));
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    const LONG: Duration = Duration::from_secs(3600);

    /// The timer that a wait is made with; `rings`: it is waited for until it does, otherwise something else comes first.
    async fn made(rings: bool) -> Duration {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let mut waiting = sleep(LONG, |duration| {
            asked.lock().unwrap().push(duration);
            Box::pin(std::future::ready(()))
        });
        if rings {
            waiting.as_mut().await;
        }
        let asked = asked.lock().unwrap();
        assert_eq!(asked.len(), 1);
        asked[0]
    }

    #[tokio::test]
    async fn the_driver_looks_again_and_then_waits() {
        taking(async {
            for _ in 0..3 {
                assert_eq!([made(true).await, made(true).await, made(true).await], [SOON, SOON, LONG]);
            }
        })
        .await;
    }

    #[tokio::test]
    async fn a_turn_that_something_else_begins_is_followed_by_looks_too() {
        taking(async {
            assert_eq!([made(true).await, made(true).await], [SOON, SOON]);
            assert_eq!(made(false).await, LONG, "it waits, and a packet comes");
            for _ in 0..5 {
                assert_eq!(made(false).await, SOON, "under load packets come before the look");
            }
            assert_eq!([made(true).await, made(false).await], [SOON, SOON], "a packet comes between the looks");
            assert_eq!([made(true).await, made(true).await, made(true).await], [SOON, SOON, LONG]);
        })
        .await;
    }

    #[tokio::test]
    async fn others_wait_as_long_as_they_ask_for() {
        assert_eq!(made(true).await, LONG);
        taking(async {
            assert_eq!(tokio::spawn(made(true)).await.unwrap(), LONG);
            assert_eq!(made(true).await, SOON);
        })
        .await;
    }
}
