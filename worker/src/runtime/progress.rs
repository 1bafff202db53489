//! The two ZeroMQ sockets of a step; the only file that names the crate.
//!
//! The trainer connects to both; they are bound to ports of their own on 127.0.0.1 before it starts.
//!
//! * progress: a SUB that takes everything; frames go to a bounded channel (when the runner does not keep up, TCP holds the trainer's
//!   sender back, whose own queue then drops: a hole in its numbers, which is told)
//! * control: an XPUB, because it hears when the trainer has subscribed. A stop is held until then, since before it would be lost, and
//!   is sent again to whoever subscribes later. The one message there is, is a constant: anything else would be decoded by jsonpickle,
//!   which runs code
//!
//! A hostile process on this machine can abort the crate (a frame that claims a huge length): the sockets live in the job's runner, never in
//! the agent.

use bytes::Bytes;
use futures_util::StreamExt;
use shared::domain::error::{Code, Failure};
use std::time::Duration;
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;
use zeromq::{Endpoint, Socket, SocketEvent, SocketRecv, SocketSend, SubSocket, XPubSocket, ZmqError};

use crate::domain::{command::Ports, progress::MAX_FRAME};

/// How many frames wait for the runner.
const FRAMES: usize = 1024;
/// The message that stops a trainer.
const STOP: &[u8] = br#"{"command": "stop"}"#;

/// The sockets of one step.
pub struct TrainerLink {
    ports: Ports,
    frames: mpsc::Receiver<Bytes>,
    peers: watch::Receiver<usize>,
    stop: CancellationToken,
    stop_sent: watch::Receiver<bool>,
    closing: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
}

impl TrainerLink {
    /// Binds both sockets to free ports.
    ///
    /// # Errors
    /// [`Code::Internal`] when the machine gives no port.
    pub async fn bind() -> Result<Self, Failure> {
        let failed = |error: ZmqError| Failure::new(Code::Internal, format!("no port for the trainer could be opened: {error}"));
        let mut progress = SubSocket::new();
        let monitor = progress.monitor();
        let publish = port(progress.bind("tcp://127.0.0.1:0").await.map_err(failed)?)?;
        progress.subscribe("").await.map_err(failed)?;
        let mut control = XPubSocket::new();
        let controller = port(control.bind("tcp://127.0.0.1:0").await.map_err(failed)?)?;

        let (frame_sender, frames) = mpsc::channel(FRAMES);
        let (peers_sender, peers) = watch::channel(0);
        let (sent_sender, stop_sent) = watch::channel(false);
        let (stop, closing) = (CancellationToken::new(), CancellationToken::new());
        let tasks = vec![
            tokio::spawn(receive(progress, monitor, frame_sender, peers_sender, closing.clone())),
            tokio::spawn(command(control, stop.clone(), sent_sender, closing.clone())),
        ];
        Ok(TrainerLink { ports: Ports { publish, controller }, frames, peers, stop, stop_sent, closing, tasks })
    }

    /// The ports that the trainer must connect to.
    pub fn ports(&self) -> Ports {
        self.ports
    }

    /// Waits for frames and moves those that are there into `into`, at most `limit`; the number of them.
    pub async fn receive(&mut self, into: &mut Vec<Bytes>, limit: usize) -> usize {
        self.frames.recv_many(into, limit).await
    }

    /// Asks the trainer to stop, as soon as it listens.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// Waits until the stop has been sent to a trainer that listens; for ever, if there is none.
    pub fn stop_sent(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut sent = self.stop_sent.clone();
        async move {
            if sent.wait_for(|sent| *sent).await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Whether the stop has been sent to a trainer that listens.
    pub fn was_stop_sent(&self) -> bool {
        *self.stop_sent.borrow()
    }

    /// After the trainer's end: whatever it still sent, until its connections are closed and read empty, or nothing has come for `patience`.
    pub async fn drain(&mut self, into: &mut Vec<Bytes>, patience: Duration) -> bool {
        /// A connection may still be in its handshake.
        const QUIET: Duration = Duration::from_millis(50);
        let mut waited = Duration::ZERO;
        loop {
            match tokio::time::timeout(QUIET, self.frames.recv_many(into, FRAMES)).await {
                Ok(0) => return false,
                Ok(_) => return true,
                Err(_) if *self.peers.borrow() == 0 || waited >= patience => return false,
                Err(_) => waited += QUIET,
            }
        }
    }

    /// Gives the ports back. A plain drop often would not.
    pub async fn close(mut self) {
        self.closing.cancel();
        self.frames.close();
        for task in self.tasks.drain(..) {
            if tokio::time::timeout(Duration::from_secs(2), task).await.is_err() {
                tracing::warn!("a socket to the trainer did not close in time");
            }
        }
    }
}

impl Drop for TrainerLink {
    fn drop(&mut self) {
        self.closing.cancel();
    }
}

fn port(endpoint: Endpoint) -> Result<u16, Failure> {
    match endpoint {
        Endpoint::Tcp(_, port) => Ok(port),
        other => Err(Failure::new(Code::Internal, format!("bound to {other} instead of a TCP port"))),
    }
}

async fn receive(
    mut socket: SubSocket,
    mut monitor: impl StreamExt<Item = SocketEvent> + Unpin,
    frames: mpsc::Sender<Bytes>,
    peers: watch::Sender<usize>,
    closing: CancellationToken,
) {
    'socket: loop {
        tokio::select! {
            biased;
            () = closing.cancelled() => break,
            Some(event) = monitor.next() => match event {
                SocketEvent::Accepted(..) => peers.send_modify(|count| *count += 1),
                SocketEvent::Disconnected(..) => peers.send_modify(|count| *count = count.saturating_sub(1)),
                _ => {}
            },
            message = socket.recv() => match message {
                // What is too long is cut to a length that the reader refuses: it is counted there, like all that cannot be read.
                Ok(message) => for mut frame in message.into_vec() {
                    frame.truncate(MAX_FRAME + 1);
                    tokio::select! {
                        () = closing.cancelled() => break 'socket,
                        sent = frames.send(frame) => if sent.is_err() { break 'socket },
                    }
                },
                // One peer broke the protocol and is gone; the others are not.
                Err(error) => {
                    tracing::debug!(%error, "a connection of the trainer ended");
                    tokio::task::yield_now().await;
                }
            },
        }
    }
    for error in socket.close().await {
        tracing::debug!(%error, "closing the progress socket");
    }
}

async fn command(mut socket: XPubSocket, stop: CancellationToken, sent: watch::Sender<bool>, closing: CancellationToken) {
    let mut subscribed = false;
    loop {
        let asked = stop.is_cancelled();
        tokio::select! {
            biased;
            () = closing.cancelled() => break,
            () = stop.cancelled(), if !asked => if subscribed { send_stop(&mut socket, &sent).await },
            message = socket.recv() => match message {
                Ok(message) if message.get(0).is_some_and(|frame| frame.first() == Some(&1)) => {
                    subscribed = true;
                    if asked { send_stop(&mut socket, &sent).await }
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::debug!(%error, "a connection of the trainer ended");
                    tokio::task::yield_now().await;
                }
            },
        }
    }
    for error in socket.close().await {
        tracing::debug!(%error, "closing the control socket");
    }
}

async fn send_stop(socket: &mut XPubSocket, sent: &watch::Sender<bool>) {
    match tokio::time::timeout(Duration::from_secs(5), socket.send(Bytes::from_static(STOP).into())).await {
        Ok(Ok(())) => drop(sent.send_replace(true)),
        Ok(Err(error)) => tracing::warn!(%error, "the trainer could not be told to stop"),
        Err(_) => tracing::warn!("the trainer does not take its stop"),
    }
}

#[cfg(test)]
mod tests {
    use zeromq::PubSocket;

    use super::*;

    async fn trainer_listens(port: u16) -> SubSocket {
        let mut socket = SubSocket::new();
        socket.connect(&format!("tcp://127.0.0.1:{port}")).await.unwrap();
        socket.subscribe("").await.unwrap();
        socket
    }

    #[tokio::test]
    async fn a_stop_is_held_until_the_trainer_listens_and_told_to_late_ones_too() {
        let link = TrainerLink::bind().await.unwrap();
        link.stop();
        assert!(!*link.stop_sent.borrow());
        for _ in 0..2 {
            let mut trainer = trainer_listens(link.ports().controller).await;
            let message = trainer.recv().await.unwrap();
            assert_eq!(message.get(0).unwrap().as_ref(), STOP);
            link.stop_sent().await;
        }
        link.close().await;
    }

    #[tokio::test]
    async fn a_stop_after_the_subscription_goes_at_once() {
        let link = TrainerLink::bind().await.unwrap();
        let mut trainer = trainer_listens(link.ports().controller).await;
        link.stop();
        assert_eq!(trainer.recv().await.unwrap().get(0).unwrap().as_ref(), STOP);
        link.close().await;
    }

    #[tokio::test]
    async fn all_that_was_sent_is_received_and_the_end_is_seen() {
        let mut link = TrainerLink::bind().await.unwrap();
        let mut trainer = zeromq::XPubSocket::new();
        trainer.connect(&format!("tcp://127.0.0.1:{}", link.ports().publish)).await.unwrap();
        assert_eq!(trainer.recv().await.unwrap().get(0).unwrap().as_ref(), b"\x01");
        for n in 0..5000u32 {
            trainer.send(n.to_string().into()).await.unwrap();
        }
        trainer.send(vec![b'x'; MAX_FRAME * 2].into()).await.unwrap();
        drop(trainer);
        let mut frames = Vec::new();
        while link.drain(&mut frames, Duration::from_secs(10)).await {}
        assert_eq!(frames.len(), 5001);
        assert!((0..5000).all(|n| frames[n] == n.to_string()));
        assert_eq!(frames[5000].len(), MAX_FRAME + 1);
        link.close().await;
    }

    #[tokio::test]
    async fn ports_are_free_again_after_closing() {
        let link = TrainerLink::bind().await.unwrap();
        let ports = link.ports();
        let mut trainer = PubSocket::new();
        trainer.connect(&format!("tcp://127.0.0.1:{}", ports.publish)).await.unwrap();
        link.close().await;
        for port in [ports.publish, ports.controller] {
            std::net::TcpListener::bind(("127.0.0.1", port)).expect("the port is free");
        }
    }
}
