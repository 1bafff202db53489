//! What one bulk connection may send at present: [`Windows`] with a clock, and with what the channel says was delivered.
//!
//! While anything is under way, a task of each connection looks at the channel every few milliseconds; whoever waits for room is woken then.

use std::{
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::BytesMut;
use tokio::{
    sync::Notify,
    time::{Instant, sleep},
};

use crate::{
    domain::{error::Failure, frame::HEADER, transfer::Windows},
    runtime::peer::ChannelSender,
};

/// What a transfer may have in memory on its way: in the sender's and the receiver's SCTP, in bytes.
pub(super) const BUDGET: u64 = 64 << 20;

/// The windows that the connections of a pool share.
pub(super) struct Flows {
    windows: Mutex<Windows>,
    began: Instant,
    /// Tenths of seconds since then for which the path has been traced.
    traced: AtomicU64,
}

impl Default for Flows {
    fn default() -> Self {
        Flows { windows: Mutex::new(Windows::new(BUDGET)), began: Instant::now(), traced: AtomicU64::new(0) }
    }
}

impl Flows {
    /// The windows, and now as they count time.
    fn with<T>(&self, act: impl FnOnce(&mut Windows, Duration) -> T) -> T {
        let now = self.began.elapsed();
        act(&mut self.windows.lock().expect("no panic happens under this lock"), now)
    }

    /// Ten times a second, for whoever asks for traces: what is known of the path and of each connection.
    fn trace(&self) {
        let tenths = (self.began.elapsed().as_millis() / 100) as u64;
        if tracing::enabled!(tracing::Level::TRACE) && self.traced.fetch_max(tenths, Ordering::Relaxed) < tenths {
            let (path, flows) = self.with(|windows, _| (windows.to_string(), windows.flows()));
            tracing::trace!(%path, %flows, "the path");
        }
    }

    /// Bytes that were delivered, on all connections that there have been.
    pub(super) fn delivered(&self) -> u64 {
        self.with(|windows, _| windows.delivered())
    }

    /// Rate × round trip of the path, in bytes.
    pub(super) fn bandwidth_delay(&self) -> u64 {
        self.with(|windows, _| windows.bandwidth_delay())
    }

    /// Whether the path lately had as much to carry as it can.
    pub(super) fn is_full(&self) -> bool {
        self.with(|windows, now| windows.is_full(now))
    }

    /// The shortest round trip of late, once bytes went this way.
    pub(super) fn round_trip(&self) -> Option<Duration> {
        self.with(|windows, _| windows.round_trip())
    }
}

/// One connection's share.
pub(super) struct Flow {
    number: u32,
    sender: ChannelSender,
    flows: Arc<Flows>,
    /// Woken when there may be more room.
    room: Notify,
    /// Woken when something was sent.
    sent: Notify,
}

impl Flow {
    pub(super) fn new(number: u32, sender: ChannelSender, flows: Arc<Flows>) -> Self {
        flows.with(|windows, _| windows.opened(number));
        Flow { number, sender, flows, room: Notify::new(), sent: Notify::new() }
    }

    /// Waits until a piece may be sent; how long it should be at most.
    pub(super) async fn credit(&self) -> usize {
        loop {
            let mut room = pin!(self.room.notified());
            room.as_mut().enable();
            let mut bytes = self.room();
            if bytes == 0 {
                self.look().await;
                bytes = self.room();
            }
            if bytes > 0 {
                return bytes - HEADER;
            }
            room.await;
        }
    }

    /// Sends a frame that there was room for.
    pub(super) async fn send(&self, frame: BytesMut) -> Result<(), Failure> {
        let bytes = frame.len();
        // Its round trip begins now: on a busy machine, it may be on its way long before this task goes on.
        let begun = self.flows.with(|_, now| now);
        self.sender.send(frame).await?;
        self.flows.with(|windows, _| windows.handle_sent(begun, self.number, bytes));
        self.sent.notify_one();
        Ok(())
    }

    /// Follows what is delivered, until the channel is closed or stuck.
    pub(super) async fn follow(&self) {
        loop {
            match self.look().await {
                None => return,
                Some(0) => self.sent.notified().await,
                Some(outstanding) if self.flows.with(|windows, _| windows.is_stuck(self.number)) => {
                    tracing::info!(connection = self.number, outstanding, "a bulk connection is stuck repairing losses; others take over");
                    return;
                }
                Some(_) => {}
            }
            self.room.notify_waiters();
            sleep(self.flows.with(|windows, _| windows.look_again())).await;
        }
    }

    fn room(&self) -> usize {
        self.flows.with(|windows, _| windows.room(self.number).min(windows.piece()))
    }

    /// What has not been delivered yet; `None`: the channel is closed.
    async fn look(&self) -> Option<u64> {
        // In this order: another task may be sending. What it sends after the first line may be outstanding and must not count as
        // delivered, and a round trip that seems shorter than it is would narrow the window for all.
        let sent = self.flows.with(|windows, _| windows.sent(self.number));
        let outstanding = self.sender.outstanding().await?;
        self.flows.with(|windows, now| windows.handle_delivered(now, self.number, sent.saturating_sub(outstanding)));
        self.flows.trace();
        Some(outstanding)
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        tracing::debug!(connection = self.number, path = %self.flows.with(|windows, _| windows.to_string()), "a connection's window closes");
        self.flows.with(|windows, _| windows.closed(self.number));
    }
}
