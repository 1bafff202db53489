//! The WebSocket: one task a socket.
//!
//! ```text
//!   upgrade ──► registering ──registered_auth──► in the room ──► closed, with the reason as close code
//!                   │ 5 s, 5 tries                    │ ping, silence, rate, size, mailbox
//! ```

use std::{sync::Arc, time::Duration};

use axum::{
    Extension,
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use futures_util::{FutureExt, future::BoxFuture};
use governor::DefaultDirectRateLimiter;
use shared::domain::{
    error::{Code, Failure},
    id::RoomId,
    signal::{self, ToPeer, ToServer},
};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, timeout, timeout_at};
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};
use tokio_util::task::TaskTracker;

use super::{
    error::ApiError,
    socket::{self, Socket},
};
use crate::{
    domain::{grant::Identity, rooms::Closing},
    runtime::{
        admission::{self, Admitted, Applicant, Next, Registration},
        hub::{Seat, Stop},
        rate::{self, Address},
        server::Server,
    },
};

/// `GET /`: the WebSocket; to a browser's plain request one line that says so.
pub async fn connect(
    State(server): State<Arc<Server>>,
    Extension(tracker): Extension<TaskTracker>,
    Extension(from): Extension<Address>,
    mut request: Request,
) -> Response {
    let Some((response, upgraded)) = socket::upgrade(&mut request) else {
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
    // Tracked from now on, so that a shutdown waits for it.
    tracker.spawn(async move {
        match upgraded.await {
            Ok(upgraded) => {
                let (socket, messages) = (Socket::new(upgraded).await, rate::messages(&server.config.limits));
                Connection { server, socket, from, messages }.run().await;
            }
            Err(error) => tracing::debug!(%from, %error, "no WebSocket came of the upgrade"),
        }
        drop(ticket);
    });
    response
}

struct Connection {
    server: Arc<Server>,
    socket: Socket,
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
            // In a box, since it is large and soon over.
            registered = timeout_at(deadline, Box::pin(self.register())) => registered.map_err(|_| Closing::Silent)??,
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
    async fn relay(&mut self, admitted: Admitted) -> Result<std::convert::Infallible, Closing> {
        let server = self.server.clone();
        let timing = &server.config.timing;
        let Admitted { seat, mut mailbox, room, peer, identity, welcome } = admitted;
        let stop = mailbox.stop.clone();
        self.tell(&stop, signal::encode(&welcome)).await?;
        drop(welcome);
        let mut ping = interval_at(Instant::now() + timing.ping, timing.ping);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut renewal = server.turn.as_ref().map(|turn| interval_at(Instant::now() + turn.renew_after(), turn.renew_after()));
        let mut heard = Instant::now();
        let asker = Asker { server: &server, seat: &seat, room: &room, identity: &identity };
        // One message at a time, so that they stay in order; until it is handled, which may take another server, nothing else waits.
        let mut handling = None;
        // Beside them: the store may take its time, and nobody's messages wait for it.
        let mut renewing = None;
        loop {
            tokio::select! {
                biased;
                why = stop.stopped() => return Err(why),
                queued = mailbox.next() => {
                    let bytes = queued.len();
                    self.tell(&stop, queued).await?;
                    mailbox.sent(bytes);
                }
                _ = ping.tick() => {
                    if handling.is_none() && heard.elapsed() > timing.silence {
                        return Err(Closing::Silent);
                    }
                    or_stop(&stop, in_time(timing.send, self.socket.ping())).await?;
                }
                () = due(&mut renewal) => {
                    let ice_servers = server.ice_servers(&peer).await;
                    self.tell(&stop, signal::encode(&ToPeer::IceServers { ice_servers })).await?;
                }
                renewed = ready(&mut renewing) => {
                    renewing = None;
                    self.answer(&stop, vec![renewed]).await?;
                }
                answers = ready(&mut handling) => {
                    (handling, heard) = (None, Instant::now());
                    self.answer(&stop, answers).await?;
                }
                received = self.socket.receive(), if handling.is_none() => {
                    heard = Instant::now();
                    let Some(text) = self.accept(received)? else { continue };
                    match signal::decode::<ToServer>(&text) {
                        Ok(ToServer::Renew) if renewing.is_none() => renewing = Some(asker.renewed().boxed()),
                        message => handling = Some(asker.answers(message).boxed()),
                    }
                }
            }
        }
    }

    /// Tells a registered peer what came of its messages.
    async fn answer(&mut self, stop: &Stop, answers: Vec<ToPeer>) -> Result<(), Closing> {
        for answer in answers {
            if let ToPeer::Error { code, .. } = &answer {
                self.server.metrics.refused(*code);
            }
            self.tell(stop, signal::encode(&answer)).await?;
        }
        Ok(())
    }

    /// The next text; the outer error is a reason to close, the inner one a message that is not of the protocol.
    async fn next_message(&mut self) -> Result<Result<ToServer, Failure>, Closing> {
        loop {
            let received = self.socket.receive().await;
            if let Some(text) = self.accept(received)? {
                return Ok(signal::decode(&text));
            }
        }
    }

    /// The text of what was received, if it is one, or the reason to close. Control frames count as messages, too.
    fn accept(&self, received: Result<Message, Closing>) -> Result<Option<Utf8Bytes>, Closing> {
        let message = received?;
        self.messages.check().map_err(|_| Closing::Flooding)?;
        match message {
            Message::Text(text) => Ok(Some(text)),
            Message::Binary(_) => Err(Closing::Binary),
            Message::Close(_) => Err(Closing::Gone),
            Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => Ok(None),
        }
    }

    async fn refuse(&mut self, failure: Failure) -> Result<(), Closing> {
        self.server.metrics.refused(failure.code);
        tracing::debug!(from = %self.from, code = ?failure.code, "registration refused");
        self.send(&error(failure)).await
    }

    async fn send(&mut self, message: &ToPeer) -> Result<(), Closing> {
        let limit = self.server.config.timing.send;
        in_time(limit, self.socket.send(signal::encode(message))).await
    }

    /// Sends, unless there is a reason to stop first. In a box, which an idle socket does not have: there are thousands of those.
    fn tell<'a>(&'a mut self, stop: &'a Stop, text: String) -> BoxFuture<'a, Result<(), Closing>> {
        let limit = self.server.config.timing.send;
        Box::pin(or_stop(stop, in_time(limit, self.socket.send(text))))
    }

    /// Whoever does not answer the close in time is simply disconnected.
    async fn close(&mut self, why: Closing) {
        let _ = timeout(self.server.config.timing.close, self.socket.close(why)).await;
    }
}

/// Whose message is handled.
#[derive(Clone, Copy)]
struct Asker<'a> {
    server: &'a Server,
    seat: &'a Seat,
    room: &'a RoomId,
    identity: &'a Identity,
}

impl Asker<'_> {
    async fn answers(self, message: Result<ToServer, Failure>) -> Vec<ToPeer> {
        match message {
            Ok(ToServer::Renew) => vec![error(Failure::new(Code::PeerBusy, "the room is being renewed; wait for the answer"))],
            Ok(ToServer::DeleteRoom) => match self.server.delete_room(self.identity, self.room).await {
                // The socket is closed with the others.
                Ok(()) => Vec::new(),
                Err(failure) => vec![error(failure)],
            },
            Ok(message) => self.seat.handle(message).await,
            Err(failure) => vec![error(failure)],
        }
    }

    async fn renewed(self) -> ToPeer {
        match self.server.renew(self.identity, self.room, None).await {
            Ok(expires_at) => ToPeer::Renewed { expires_at },
            Err(failure) => error(failure),
        }
    }
}

/// Waits until it is done; while there is nothing to do, for ever.
async fn ready<T>(work: &mut Option<BoxFuture<'_, T>>) -> T {
    match work {
        Some(work) => work.await,
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
async fn or_stop(stop: &Stop, work: impl Future<Output = Result<(), Closing>>) -> Result<(), Closing> {
    tokio::select! {
        biased;
        why = stop.stopped() => Err(why),
        done = work => done,
    }
}

/// A peer that does not take a message in time does not read.
async fn in_time(limit: Duration, sending: impl Future<Output = Result<(), Closing>>) -> Result<(), Closing> {
    timeout(limit, sending).await.unwrap_or(Err(Closing::Slow))
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
