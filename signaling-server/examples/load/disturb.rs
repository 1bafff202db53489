//! Peers that misbehave while the crowd goes on: slow ones, silent ones, floods, non-readers, guessers.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::Context;
use futures_util::{SinkExt, StreamExt, future::join_all, stream};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};
use tokio_tungstenite::tungstenite::Message;
use tokio_util::sync::CancellationToken;

use super::{
    ledger::spread,
    wire::{Block, Pass, Room, ask, connect, upgrade},
};

/// Rooms for each guesser, who has an address of its own and a guess a second: few enough that no room's limit of new peers is hit.
const ROOMS_PER_GUESSER: usize = 5;
/// Messages a second of the flood.
const FLOOD: u32 = 10_000;
/// Guesses on a socket, a second apart: the server takes five, in five seconds.
const GUESSES: usize = 3;
/// A relayed message of the largest kind.
const LARGE: usize = 60_000;

/// Where the server is, and when to stop.
#[derive(Clone)]
pub(crate) struct Scene {
    pub(crate) server: SocketAddr,
    pub(crate) stop: CancellationToken,
}

/// Does it until the scene ends.
async fn until_stopped<T>(scene: &Scene, work: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        () = scene.stop.cancelled() => None,
        done = work => Some(done),
    }
}

#[derive(Default)]
struct Times(Mutex<Vec<f64>>);

impl Times {
    fn add(&self, since: Instant) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(since.elapsed().as_secs_f64() * 1e3);
    }

    fn spread(&self) -> Value {
        spread(self.0.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

/// Passes for peers that join meanwhile.
pub(crate) async fn passes(server: SocketAddr, block: Block, peers: usize) -> anyhow::Result<Vec<Pass>> {
    let make = |number| async move { Pass::new(server, block.address(number), "w", None).await.map(|(pass, _)| pass) };
    let made: Vec<_> = stream::iter(0..peers).map(make).buffer_unordered(32).collect().await;
    made.into_iter().collect::<anyhow::Result<_>>().context("no pass for a peer")
}

/// Honest peers that join one after the other: the time from TCP's first packet to `registered_auth`.
pub(crate) async fn joins(scene: Scene, passes: Vec<Pass>, every: Duration) -> Value {
    let (times, failed) = (Arc::new(Times::default()), Arc::new(Mutex::new(Vec::new())));
    let (mut tick, mut joining) = (interval(every), JoinSet::new());
    for pass in passes {
        if until_stopped(&scene, tick.tick()).await.is_none() {
            break;
        }
        let (server, times, failed) = (scene.server, times.clone(), failed.clone());
        joining.spawn(async move {
            let began = Instant::now();
            match pass.join(server).await {
                Ok(mut socket) => {
                    times.add(began);
                    // Goodbye; the answer is of no interest.
                    let _ = socket.close(None).await;
                }
                Err(error) => failed.lock().unwrap_or_else(PoisonError::into_inner).push(format!("{error:#}")),
            }
        });
    }
    joining.join_all().await;
    let failed = failed.lock().unwrap_or_else(PoisonError::into_inner).clone();
    json!({"join_ms": times.spread(), "joins_failed": failed})
}

/// Registered peers that never read on, so that they answer no ping.
pub(crate) async fn silent(server: SocketAddr, peers: usize) -> anyhow::Result<Vec<TcpStream>> {
    let make = |number: usize| async move {
        let (pass, stream) = Pass::new(server, Block::Silent.address(number), "w", None).await?;
        anyhow::Ok(pass.enter(stream).await?.into_inner())
    };
    let made: Vec<_> = stream::iter(0..peers).map(make).buffer_unordered(32).collect().await;
    made.into_iter().collect::<anyhow::Result<_>>().context("a silent peer could not register")
}

/// How many of them the server has closed.
pub(crate) async fn closed(silent: Vec<TcpStream>) -> usize {
    let ended = silent.into_iter().map(|mut stream| async move {
        let mut unread = Vec::new();
        timeout(Duration::from_millis(500), stream.read_to_end(&mut unread)).await.is_ok()
    });
    join_all(ended).await.into_iter().filter(|closed| *closed).count()
}

/// Upgrades whose head comes a byte a second; what the server cuts begins anew.
pub(crate) async fn half_open(scene: Scene, count: usize) -> Value {
    let open_ms = Arc::new(Times::default());
    let refused = Arc::new(AtomicU64::new(0));
    let mut slots = JoinSet::new();
    for number in 0..count {
        let (scene, open_ms, refused) = (scene.clone(), open_ms.clone(), refused.clone());
        slots.spawn(async move {
            // Not all at once, so that the second beat of each is its own.
            until_stopped(&scene, sleep(Duration::from_millis(number as u64 % 1000))).await;
            while !scene.stop.is_cancelled() {
                let began = Instant::now();
                match until_stopped(&scene, drip(scene.server, Block::HalfOpen.address(number))).await {
                    Some(Ok(())) => open_ms.add(began),
                    Some(Err(_)) => drop(refused.fetch_add(1, Relaxed)),
                    None => break,
                }
            }
        });
    }
    slots.join_all().await;
    json!({"half_open": count, "cut_after_ms": open_ms.spread(), "not_connected": refused.load(Relaxed)})
}

/// Returns when the server has closed.
async fn drip(server: SocketAddr, from: std::net::Ipv4Addr) -> std::io::Result<()> {
    let mut stream = connect(server, from, None).await?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: load\r\nUpgrade: websocket\r\nX-Slow: ").await?;
    let mut answer = Vec::with_capacity(256);
    loop {
        tokio::select! {
            read = stream.read_buf(&mut answer) => if !matches!(read, Ok(more) if more > 0) { return Ok(()) },
            () = sleep(Duration::from_secs(1)) => if stream.write_all(b"x").await.is_err() { return Ok(()) },
        }
    }
}

/// A peer that sends as fast as it is told to, to another one, and comes back whenever it is cut.
pub(crate) async fn flood(scene: Scene) -> anyhow::Result<Value> {
    let (pass, stream) = Pass::new(scene.server, Block::Flood.address(0), "w", None).await?;
    let mut victim = Pass { from: Block::Flood.address(1), peer: "c", ..pass.clone() }.join(scene.server).await?;
    drop(stream);
    let heard = tokio::spawn(async move {
        let mut heard = 0_u64;
        while let Some(Ok(message)) = victim.next().await {
            heard += u64::from(message.is_text());
        }
        heard
    });
    let (mut sent, mut cut) = (0_u64, BTreeMap::<String, u64>::new());
    until_stopped(&scene, async {
        loop {
            let why = match pass.join(scene.server).await {
                Ok(socket) => flood_once(socket, &mut sent).await,
                Err(error) => {
                    // The server takes some registrations a minute only.
                    sleep(Duration::from_millis(200)).await;
                    if format!("{error:#}").contains("RATE_LIMITED") { "RATE_LIMITED".into() } else { format!("{error:#}") }
                }
            };
            *cut.entry(why).or_default() += 1;
        }
    })
    .await;
    heard.abort();
    Ok(json!({"flood_sent": sent, "flood_ended": cut}))
}

async fn flood_once(mut socket: super::wire::Socket, sent: &mut u64) -> String {
    let message = json!({"type": "peer_message", "to_peer_id": "c", "payload": "x".repeat(100)}).to_string();
    let mut tick = interval(Duration::from_millis(1));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            received = socket.next() => match received {
                Some(Ok(Message::Close(Some(frame)))) => return u16::from(frame.code).to_string(),
                Some(Ok(_)) => {}
                Some(Err(error)) => return error.to_string(),
                None => return "closed".into(),
            },
            _ = tick.tick() => for _ in 0..FLOOD / 1000 {
                *sent += 1;
                if socket.feed(Message::text(message.clone())).await.is_err() || socket.flush().await.is_err() {
                    break;
                }
            },
        }
    }
}

/// A peer that never reads, and one that sends to it what the server lets through. Comes back whenever it is cut.
pub(crate) async fn deaf(scene: Scene) -> anyhow::Result<Value> {
    let (pass, stream) = Pass::new(scene.server, Block::Flood.address(10), "w", None).await?;
    let mut sender = pass.enter(stream).await?;
    let deaf = Pass { from: Block::Flood.address(11), peer: "c", ..pass };
    let message = json!({"type": "peer_message", "to_peer_id": "c", "payload": "x".repeat(LARGE)}).to_string();
    let (mut sent, mut busy, mut cut, mut until_cut) = (0_u64, 0_u64, 0_u64, Vec::new());
    let mut tick = interval(Duration::from_millis(55));
    until_stopped(&scene, async {
        loop {
            let stream = connect(scene.server, deaf.from, Some(4096)).await?;
            let _unread = deaf.enter(stream).await?.into_inner();
            let began = Instant::now();
            loop {
                tokio::select! {
                    _ = tick.tick() => {
                        sent += 1;
                        sender.send(Message::text(message.clone())).await?;
                    }
                    received = sender.next() => match received {
                        Some(Ok(Message::Text(text))) if text.contains("PEER_BUSY") => busy += 1,
                        Some(Ok(Message::Text(text))) if text.contains("PEER_NOT_FOUND") => break,
                        Some(Ok(_)) => {}
                        other => anyhow::bail!("the deaf peer's friend: {other:?}"),
                    },
                }
            }
            cut += 1;
            until_cut.push(began.elapsed().as_secs_f64() * 1e3);
        }
    })
    .await
    .unwrap_or_else(|| anyhow::Ok(()))?;
    Ok(json!({"deaf_was_sent": sent, "deaf_was_busy": busy, "deaf_was_cut": cut, "deaf_cut_after_ms": spread(until_cut)}))
}

#[derive(Default)]
struct Guesses {
    times: [Times; 2],
    answers: Mutex<BTreeMap<String, u64>>,
}

/// Wrong rooms and wrong tokens in turn, from many addresses.
pub(crate) async fn guesses(scene: Scene, rooms: Vec<Room>) -> anyhow::Result<Value> {
    let (guesser_count, rooms): (usize, Arc<[Room]>) = ((rooms.len() / ROOMS_PER_GUESSER).max(1), rooms.into());
    let passes = passes(scene.server, Block::Guesses, guesser_count).await?;
    let guesses = Arc::new(Guesses::default());
    let mut guessers = JoinSet::new();
    for (number, pass) in passes.into_iter().enumerate() {
        let (scene, guesses, rooms) = (scene.clone(), guesses.clone(), rooms.clone());
        guessers.spawn(async move {
            until_stopped(&scene, sleep(Duration::from_millis((number * 1000 / guesser_count) as u64))).await;
            until_stopped(&scene, guess(scene.server, pass, number, &rooms, &guesses)).await.unwrap_or(Ok(()))
        });
    }
    while let Some(done) = guessers.join_next().await {
        done??;
    }
    let answers = guesses.answers.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let [room, token] = &guesses.times;
    Ok(json!({"guess_wrong_room_ms": room.spread(), "guess_wrong_token_ms": token.spread(), "guess_answers": answers}))
}

/// Guesses until it is stopped.
async fn guess(server: SocketAddr, mut pass: Pass, first: usize, rooms: &[Room], guesses: &Guesses) -> anyhow::Result<()> {
    let own = pass.room.clone();
    let mut tick = interval(Duration::from_secs(1));
    for round in 0_usize.. {
        let mut socket = upgrade(connect(server, pass.from, None).await?).await?;
        for attempt in round * GUESSES..(round + 1) * GUESSES {
            let kind = attempt % 2;
            // A room that is not there, with a token of the right form; a room that is there, with that same token.
            let nowhere = own.id.chars().rev().collect();
            let id = if kind == 0 { nowhere } else { rooms[(first + attempt * ROOMS_PER_GUESSER) % rooms.len()].id.clone() };
            pass.room = Room { id, token: own.token.clone() };
            tick.tick().await;
            let registration = pass.registration();
            let began = Instant::now();
            let answer = ask(&mut socket, registration).await?;
            guesses.times[kind].add(began);
            *guesses.answers.lock().unwrap_or_else(PoisonError::into_inner).entry(answer).or_default() += 1;
        }
    }
    Ok(())
}
