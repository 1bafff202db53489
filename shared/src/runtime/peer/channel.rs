//! One data channel as a sender and a receiver.
//!
//! A task of its own polls every channel, also those on which we only send: an event queue that nobody empties stalls all
//! channels of the connection. The task ends with the channel, or when the [`Channel`] is dropped.

use std::{sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use webrtc::data_channel::{DataChannel, DataChannelEvent};

use crate::domain::error::{Code, Failure};

/// Between two looks at what has been acknowledged.
const LOOK: Duration = Duration::from_millis(2);

/// The sending half; cheap to clone.
#[derive(Clone)]
pub struct ChannelSender {
    inner: Arc<dyn DataChannel>,
    open: watch::Receiver<bool>,
    label: &'static str,
}

/// A data channel: the sending half, and the messages that arrive.
pub struct Channel {
    sender: ChannelSender,
    messages: mpsc::Receiver<Bytes>,
    stop: CancellationToken,
}

impl Channel {
    /// Wraps a channel; `capacity` messages wait for their reader before the connection is held back.
    pub(super) fn new(inner: Arc<dyn DataChannel>, label: &'static str, capacity: usize) -> Self {
        let (open_tx, open) = watch::channel(false);
        let (message_tx, messages) = mpsc::channel(capacity);
        let stop = CancellationToken::new();
        let task = poll_events(inner.clone(), open_tx, message_tx, stop.clone());
        tokio::spawn(task);
        Channel { sender: ChannelSender { inner, open, label }, messages, stop }
    }

    /// The next message; `None` once the channel is closed.
    pub async fn recv(&mut self) -> Option<Bytes> {
        self.messages.recv().await
    }

    /// The sending half.
    pub fn sender(&self) -> &ChannelSender {
        &self.sender
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl ChannelSender {
    /// Waits until the channel is open.
    ///
    /// # Errors
    /// [`Code::NoConnection`] when it closed first.
    pub async fn opened(&self) -> Result<(), Failure> {
        self.open.clone().wait_for(|open| *open).await.map(drop).map_err(|_| self.closed())
    }

    /// Sends one binary message; waits while too much is under way.
    ///
    /// # Errors
    /// [`Code::NoConnection`] when the channel is closed.
    pub async fn send(&self, message: BytesMut) -> Result<(), Failure> {
        self.inner.send(message).await.map_err(|_| self.closed())
    }

    /// Sends one text message; waits while too much is under way.
    ///
    /// # Errors
    /// [`Code::NoConnection`] when the channel is closed.
    pub async fn send_text(&self, message: &str) -> Result<(), Failure> {
        self.inner.send_text(message).await.map_err(|_| self.closed())
    }

    /// Bytes that were sent and are not acknowledged yet; `None` when the channel is closed.
    pub async fn outstanding(&self) -> Option<u64> {
        self.inner.outstanding_bytes().await.ok().map(|bytes| bytes as u64)
    }

    /// Waits until the other side's transport has acknowledged everything that was sent.
    ///
    /// # Errors
    /// [`Code::NoConnection`] when the channel is closed.
    pub async fn flush(&self) -> Result<(), Failure> {
        // The crate tells of what it has sent, not of what was acknowledged: there is nothing to wait on but the number.
        let mut look = tokio::time::interval(LOOK);
        loop {
            look.tick().await;
            match self.outstanding().await {
                Some(0) => return Ok(()),
                Some(_) => {}
                None => return Err(self.closed()),
            }
        }
    }

    /// Lets the connection send what it has queued: after DTLS, `rtc` 0.21.1 leaves the SCTP handshake to the next timer, 200 ms later.
    pub async fn nudge(&self) {
        // Setting the threshold to its default changes nothing and wakes the driver.
        let _ = self.inner.set_buffered_amount_low_threshold(0).await;
    }

    fn closed(&self) -> Failure {
        Failure::new(Code::NoConnection, format!("the {} channel is closed", self.label))
    }
}

async fn poll_events(inner: Arc<dyn DataChannel>, open: watch::Sender<bool>, messages: mpsc::Sender<Bytes>, stop: CancellationToken) {
    loop {
        let event = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            event = inner.poll() => event,
        };
        match event {
            Some(DataChannelEvent::OnOpen) => {
                open.send_replace(true);
            }
            Some(DataChannelEvent::OnMessage(message)) => {
                // A message proves that the channel is open, whatever the order of the events.
                open.send_if_modified(|open| !std::mem::replace(open, true));
                tokio::select! {
                    () = stop.cancelled() => return,
                    sent = messages.send(message.data.freeze()) => if sent.is_err() { return },
                }
            }
            Some(DataChannelEvent::OnClose) | None => return,
            Some(_) => {}
        }
    }
}
