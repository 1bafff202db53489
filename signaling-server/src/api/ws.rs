//! The WebSocket: one task a socket.
//!
//! ```text
//!   upgrade ──► registering ──registered_auth──► in the room ──► closed, with the reason as close code
//!                   │ 5 s, 5 tries                    │ ping, silence, rate, size, mailbox
//! ```

use std::{future::Future, sync::Arc};

use axum::{
    Extension,
    extract::{
        State,
        ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, rejection::WebSocketUpgradeRejection},
    },
    response::{IntoResponse, Response},
};
use futures_util::future::BoxFuture;
use governor::DefaultDirectRateLimiter;
use shared::domain::{
    error::{Code, Failure},
    id::RoomId,
    signal::{self, MAX_MESSAGE, ToPeer, ToServer},
};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, timeout, timeout_at};
use tokio_util::task::TaskTracker;

use super::error::ApiError;
use crate::{
    domain::{grant::Identity, rooms::Closing},
    runtime::{
        admission::{self, Admitted, Applicant, Next, Registration},
        rate::{self, Address},
        server::Server,
    },
};

/// With the default of 128 KiB a thousand idle sockets take 137 MB; with this, 9.
const READ_BUFFER: usize = 4096;
/// The most bytes that a peer leaves unread before it is closed.
const WRITE_BUFFER: usize = 256 * 1024;

/// `GET /`: the WebSocket; to a browser's plain request one line that says so.
pub async fn connect(
    State(server): State<Arc<Server>>,
    Extension(tracker): Extension<TaskTracker>,
    Extension(from): Extension<Address>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Response {
    let Ok(upgrade) = upgrade else {
        return concat!(
            "webRTC-connect signaling server ",
            env!("CARGO_PKG_VERSION"),
            ": peers connect here by WebSocket; see /openapi.json\n"
        )
        .into_response();
    };
    let ticket = match server.sockets.open(from, &server.config.limits) {
        Ok(ticket) => ticket,
        Err(failure) => return ApiError::from(failure).into_response(),
    };
    // Held from now on, so that a shutdown between upgrade and callback waits, too.
    let tracked = tracker.token();
    upgrade
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(READ_BUFFER)
        .max_write_buffer_size(WRITE_BUFFER)
        .max_message_size(MAX_MESSAGE)
        .max_frame_size(MAX_MESSAGE)
        .on_upgrade(move |socket| async move {
            let messages = rate::messages(&server.config.limits);
            Connection { server, socket, from, messages }.run().await;
            drop((ticket, tracked));
        })
}

struct Connection {
    server: Arc<Server>,
    socket: WebSocket,
    from: Address,
    messages: DefaultDirectRateLimiter,
}

impl Connection {
    async fn run(mut self) {
        let why = match self.serve().await {
            Ok(never) => match never {},
            Err(why) => why,
        };
        self.server.metrics.closed(why);
        tracing::debug!(from = %self.from, ?why, "socket closed");
        self.close(why).await;
    }

    /// Ends only with a reason to close.
    async fn serve(&mut self) -> Result<std::convert::Infallible, Closing> {
        let deadline = Instant::now() + self.server.config.timing.register;
        let stop = self.server.stop.clone();
        let admitted = tokio::select! {
            biased;
            () = stop.cancelled() => return Err(Closing::Restarting),
            registered = timeout_at(deadline, self.register()) => registered.map_err(|_| Closing::Silent)??,
        };
        tracing::info!(room = %admitted.room, peer = %admitted.peer, from = %self.from, "peer registered");
        let (room, peer) = (admitted.room.clone(), admitted.peer.clone());
        let ended = self.relay(admitted).await;
        tracing::info!(%room, %peer, ?ended, "peer left");
        ended
    }

    /// Lets the socket try to register, a few times.
    async fn register(&mut self) -> Result<Admitted, Closing> {
        for _ in 0..self.server.config.limits.attempts_per_socket {
            match self.try_register().await? {
                Ok(admitted) => return Ok(admitted),
                Err(failure) => self.refuse(failure).await?,
            }
        }
        Err(Closing::Refused)
    }

    async fn try_register(&mut self) -> Result<Result<Admitted, Failure>, Closing> {
        let registration = match self.next_message().await?.and_then(registration) {
            Ok(registration) => registration,
            Err(failure) => return Ok(Err(failure)),
        };
        let next = match self.server.apply(self.from, registration).await {
            Ok(next) => next,
            Err(failure) => return Ok(Err(failure)),
        };
        let applicant = match next {
            Next::Admit(applicant) => Ok(applicant),
            Next::Challenge(challenge) => {
                self.send(&ToPeer::Challenge { nonce: challenge.nonce.clone() }).await?;
                self.next_message().await?.and_then(|message| proven(challenge, message))
            }
        };
        match applicant {
            Ok(applicant) => Ok(self.server.admit(applicant).await),
            Err(failure) => Ok(Err(failure)),
        }
    }

    /// A registered socket: brings messages both ways until there is a reason to stop.
    async fn relay(&mut self, mut admitted: Admitted) -> Result<std::convert::Infallible, Closing> {
        let timing = self.server.config.timing.clone();
        let stop = admitted.mailbox.stop.clone();
        or_stop(stop.stopped(), self.send(&admitted.welcome)).await?;
        let mut ping = interval_at(Instant::now() + timing.ping, timing.ping);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut renewal = self.server.turn.as_ref().map(|turn| interval_at(Instant::now() + turn.renew_after(), turn.renew_after()));
        let mut heard = Instant::now();
        // Beside the relay: the store may take its time, and nobody's messages wait for it.
        let mut room_renewal: Option<BoxFuture<'static, ToPeer>> = None;
        loop {
            tokio::select! {
                biased;
                why = stop.stopped() => return Err(why),
                text = admitted.mailbox.next() => {
                    let bytes = text.len();
                    or_stop(stop.stopped(), self.send_message(Message::text(text))).await?;
                    admitted.mailbox.sent(bytes);
                }
                _ = ping.tick() => {
                    if heard.elapsed() > timing.silence {
                        return Err(Closing::Silent);
                    }
                    or_stop(stop.stopped(), self.send_message(Message::Ping(Default::default()))).await?;
                }
                () = due(&mut renewal) => {
                    let ice_servers = self.server.ice_servers(&admitted.peer).await;
                    or_stop(stop.stopped(), self.send(&ToPeer::IceServers { ice_servers })).await?;
                }
                renewed = ready(&mut room_renewal) => {
                    room_renewal = None;
                    count_refusal(&self.server, &renewed);
                    or_stop(stop.stopped(), self.send(&renewed)).await?;
                }
                received = self.socket.recv() => {
                    heard = Instant::now();
                    let Some(text) = self.accept(received)? else { continue };
                    let answers = match signal::decode::<ToServer>(&text) {
                        Ok(ToServer::Renew) if room_renewal.is_none() => {
                            room_renewal = Some(Box::pin(renew(self.server.clone(), admitted.identity.clone(), admitted.room.clone())));
                            continue;
                        }
                        Ok(ToServer::Renew) => vec![error(Failure::new(Code::PeerBusy, "the room is being renewed; wait for the answer"))],
                        Ok(message) => admitted.seat.handle(message).await,
                        Err(failure) => vec![error(failure)],
                    };
                    for answer in answers {
                        count_refusal(&self.server, &answer);
                        or_stop(stop.stopped(), self.send(&answer)).await?;
                    }
                }
            }
        }
    }

    /// The next text; the outer error is a reason to close, the inner one a message that is not of the protocol.
    async fn next_message(&mut self) -> Result<Result<ToServer, Failure>, Closing> {
        loop {
            let received = self.socket.recv().await;
            if let Some(text) = self.accept(received)? {
                return Ok(signal::decode(&text));
            }
        }
    }

    /// The text of what was received, if it is one, or the reason to close. Control frames count as messages, too.
    fn accept(&self, received: Option<Result<Message, axum::Error>>) -> Result<Option<String>, Closing> {
        let message = received.ok_or(Closing::Gone)?.map_err(|error| closing_for(&error))?;
        self.messages.check().map_err(|_| Closing::Flooding)?;
        match message {
            Message::Text(text) => Ok(Some(text.as_str().to_owned())),
            Message::Binary(_) => Err(Closing::Binary),
            Message::Close(_) => Err(Closing::Gone),
            Message::Ping(_) | Message::Pong(_) => Ok(None),
        }
    }

    async fn refuse(&mut self, failure: Failure) -> Result<(), Closing> {
        self.server.metrics.refused(failure.code);
        tracing::debug!(from = %self.from, code = ?failure.code, "registration refused");
        self.send(&error(failure)).await
    }

    async fn send(&mut self, message: &ToPeer) -> Result<(), Closing> {
        self.send_message(Message::text(signal::encode(message))).await
    }

    async fn send_message(&mut self, message: Message) -> Result<(), Closing> {
        match timeout(self.server.config.timing.send, self.socket.send(message)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Closing::Gone),
            Err(_) => Err(Closing::Slow),
        }
    }

    /// Says why, and reads on for a moment: a TCP reset for unread bytes would overtake the close frame.
    async fn close(&mut self, why: Closing) {
        let goodbye = async {
            if why != Closing::Gone {
                let frame = CloseFrame { code: why.code(), reason: why.reason().into() };
                if self.socket.send(Message::Close(Some(frame))).await.is_err() {
                    return;
                }
            }
            while let Some(Ok(_)) = self.socket.recv().await {}
        };
        // Whoever does not answer the close in time is simply disconnected.
        let _ = timeout(self.server.config.timing.close, goodbye).await;
    }
}

async fn renew(server: Arc<Server>, caller: Identity, room: RoomId) -> ToPeer {
    match server.renew(&caller, &room, None).await {
        Ok(expires_at) => ToPeer::Renewed { expires_at },
        Err(failure) => error(failure),
    }
}

fn count_refusal(server: &Server, answer: &ToPeer) {
    if let ToPeer::Error { code, .. } = answer {
        server.metrics.refused(*code);
    }
}

/// Waits for the answer; when there is none to come, for ever.
async fn ready(answer: &mut Option<BoxFuture<'static, ToPeer>>) -> ToPeer {
    match answer {
        Some(answer) => answer.await,
        None => std::future::pending().await,
    }
}

/// Waits for the timer's next tick; without a timer for ever.
async fn due(timer: &mut Option<Interval>) {
    match timer {
        Some(timer) => drop(timer.tick().await),
        None => std::future::pending().await,
    }
}

/// Does `work`, unless there is a reason to stop first.
async fn or_stop<T>(stopped: impl Future<Output = Closing>, work: impl Future<Output = Result<T, Closing>>) -> Result<T, Closing> {
    tokio::select! {
        biased;
        why = stopped => Err(why),
        done = work => done,
    }
}

fn registration(message: ToServer) -> Result<Registration, Failure> {
    match message {
        ToServer::Register { peer_id, room_id, token, id_token, role, metadata, public_key } => {
            Ok(Registration { peer: peer_id, room: room_id, token, id_token, role, metadata, public_key })
        }
        _ => Err(admission::not_registered()),
    }
}

fn proven(challenge: admission::Challenge, message: ToServer) -> Result<Applicant, Failure> {
    match message {
        ToServer::Prove { signature } => challenge.prove(&signature),
        _ => Err(Failure::new(Code::NotAuthentic, "answer the challenge with prove")),
    }
}

fn error(failure: Failure) -> ToPeer {
    ToPeer::Error { code: failure.code, message: failure.message, target: None }
}

/// The close code for what the WebSocket library found wrong. Its error type is not public through axum, its text is; a test over a real
/// socket holds this to it.
fn closing_for(error: &axum::Error) -> Closing {
    let text = error.to_string();
    if text.contains("Space limit exceeded") {
        Closing::TooLarge
    } else if text.contains("UTF-8") {
        Closing::NotText
    } else if text.contains("protocol error") && !text.contains("without closing handshake") {
        Closing::Protocol
    } else {
        Closing::Gone
    }
}
