//! The peers that behave: two in each room, each a task with its socket, and the clock that tells them when to send.

use std::{
    net::SocketAddr,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;
use futures_util::{SinkExt, StreamExt, stream};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;
use tokio_util::sync::CancellationToken;

use super::{
    ledger::Ledger,
    wire::{Block, Pass, Room, Socket},
};

/// How many connect at a time.
const CONNECTING: usize = 32;
/// Orders that wait for one peer; more means that the generator is too slow.
const ORDERS: usize = 16;
/// The clock's step: messages that are due within one are due together.
const STEP: Duration = Duration::from_micros(500);
/// Stands before the number of a message, and nowhere else in it.
const MARK: char = '#';
const DIGITS: usize = 12;

/// What a peer sends.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    Offer,
    Answer,
    Candidate,
    Message,
}

struct Order {
    number: usize,
    kind: Kind,
}

/// The peers: the two of room n are 2n (the worker) and 2n + 1 (the client).
pub(crate) struct Crowd {
    orders: Vec<mpsc::Sender<Order>>,
    pub(crate) rooms: Vec<Room>,
    pub(crate) ledger: Arc<Ledger>,
    stop: CancellationToken,
}

impl Crowd {
    /// Everybody signs in, makes rooms, registers.
    pub(crate) async fn gather(server: SocketAddr, rooms: usize, bytes: usize, ledger: Arc<Ledger>) -> anyhow::Result<Crowd> {
        let stop = CancellationToken::new();
        let filler: Arc<str> = "aBcDeFgHiJkLmNoPqRsTuVwXyZ012345".repeat(bytes / 32 + 1)[..bytes.saturating_sub(DIGITS + 1)].into();
        let mut pairs = stream::iter((0..rooms).map(|number| pair(server, number))).buffer_unordered(CONNECTING);
        let mut crowd = Crowd { orders: Vec::new(), rooms: Vec::new(), ledger, stop };
        let mut orders: Vec<Option<mpsc::Sender<Order>>> = std::iter::repeat_with(|| None).take(2 * rooms).collect();
        while let Some(done) = pairs.next().await {
            let (number, room, sockets) = done.context("a peer of the crowd could not register")?;
            crowd.rooms.push(room);
            for (index, socket) in (2 * number..).zip(sockets) {
                let (sender, receiver) = mpsc::channel(ORDERS);
                orders[index] = Some(sender);
                let peer = Peer { index, socket, filler: filler.clone(), ledger: crowd.ledger.clone() };
                tokio::spawn(peer.run(receiver, crowd.stop.clone()));
            }
        }
        crowd.orders = orders.into_iter().flatten().collect();
        Ok(crowd)
    }

    /// Everybody goes.
    pub(crate) fn leave(&self) {
        self.stop.cancel();
    }

    /// Has `count` messages sent at `rate` a second, numbered from `first` on, each when it is due however the others fare. Blocks.
    pub(crate) fn pace(&self, first: usize, count: usize, rate: f64, plan: impl Fn(usize) -> (usize, Kind)) {
        let began = Instant::now();
        let offset = self.ledger.now();
        for number in 0..count {
            let steps = (number as f64 / rate / STEP.as_secs_f64()) as u32;
            let due = STEP * steps;
            if let Some(wait) = due.checked_sub(began.elapsed()) {
                thread::sleep(wait);
            }
            let (sender, kind) = plan(number);
            self.ledger.due(first + number, offset + due.as_micros() as u64, sender);
            if self.orders[sender].try_send(Order { number: first + number, kind }).is_err() {
                self.ledger.unsent();
            }
        }
    }
}

async fn pair(server: SocketAddr, number: usize) -> anyhow::Result<(usize, Room, [Socket; 2])> {
    let (pass, stream) = Pass::new(server, Block::Crowd.address(2 * number), "w", None).await?;
    let worker = pass.enter(stream).await?;
    let (pass, stream) = Pass::new(server, Block::Crowd.address(2 * number + 1), "c", Some(pass.room)).await?;
    let client = pass.enter(stream).await?;
    Ok((number, pass.room, [worker, client]))
}

struct Peer {
    index: usize,
    socket: Socket,
    filler: Arc<str>,
    ledger: Arc<Ledger>,
}

impl Peer {
    async fn run(mut self, mut orders: mpsc::Receiver<Order>, stop: CancellationToken) {
        let why = loop {
            tokio::select! {
                () = stop.cancelled() => return,
                order = orders.recv() => {
                    let Some(Order { number, kind }) = order else { return };
                    self.ledger.written(number);
                    if let Err(error) = self.socket.send(Message::text(self.text(number, kind))).await {
                        break error.to_string();
                    }
                }
                received = self.socket.next() => match received {
                    Some(Ok(Message::Text(text))) => self.hear(&text),
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                    Some(Ok(other)) => break format!("{other:?}"),
                    Some(Err(error)) => break error.to_string(),
                    None => break "the server hung up".to_owned(),
                },
            }
        };
        self.ledger.dropped(why);
    }

    fn text(&self, number: usize, kind: Kind) -> String {
        let other = if self.index.is_multiple_of(2) { "c" } else { "w" };
        let (name, target, field) = match kind {
            Kind::Offer => ("offer", "target", "sdp"),
            Kind::Answer => ("answer", "target", "sdp"),
            Kind::Candidate => ("candidate", "target", "candidate"),
            Kind::Message => ("peer_message", "to_peer_id", "payload"),
        };
        format!(r#"{{"type":"{name}","{target}":"{other}","{field}":"{MARK}{number:0DIGITS$}{}"}}"#, self.filler)
    }

    fn hear(&self, text: &str) {
        match text.split_once(MARK).and_then(|(_, rest)| rest.split_at_checked(DIGITS)) {
            Some((number, rest)) if rest.strip_suffix("\"}") == Some(&self.filler) => match number.parse() {
                Ok(number) => self.ledger.arrived(number),
                Err(_) => self.ledger.broken(),
            },
            _ if text.starts_with(r#"{"type":"error""#) => self.ledger.refused(self.index),
            _ => self.ledger.broken(),
        }
    }
}
