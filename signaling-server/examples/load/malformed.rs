//! What no honest peer sends: frames that announce more than is allowed, endless fragments, huge heads, broken text, deep JSON.

use std::{collections::BTreeMap, time::Duration};

use anyhow::ensure;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{Instant, interval, timeout},
};

use super::{
    disturb::Scene,
    process::Server,
    wire::{Block, connect},
};

/// How often each is tried where its cost is measured.
const REPEATS: usize = 20;
const PATIENCE: Duration = Duration::from_secs(10);
const UPGRADE: &str = "GET / HTTP/1.1\r\nHost: load\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                       Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
const TEXT: u8 = 1;
const CONTINUATION: u8 = 0;
const PING: u8 = 9;
const FINAL: u8 = 0x80;

/// What is sent, whether as a WebSocket, and how the server must end it.
struct Attack {
    name: &'static str,
    upgraded: bool,
    bytes: Vec<u8>,
    ends: &'static str,
}

/// A masked frame (RFC 6455 §5.2) with a mask of zeros, which leaves the payload as it is.
fn frame(first: u8, announced: u64, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match announced {
        0..126 => frame.push(0x80 | announced as u8),
        126..0x1_0000 => {
            frame.push(0x80 | 126);
            frame.extend((announced as u16).to_be_bytes());
        }
        _ => {
            frame.push(0x80 | 127);
            frame.extend(announced.to_be_bytes());
        }
    }
    frame.extend([0; 4]);
    frame.extend(payload);
    frame
}

fn whole(first: u8, payload: &[u8]) -> Vec<u8> {
    frame(first, payload.len() as u64, payload)
}

fn attacks() -> Vec<Attack> {
    let fragments = |payload: &[u8], count| [whole(TEXT, b"x"), whole(CONTINUATION, payload).repeat(count)].concat();
    let deep = format!(r#"{{"type":"register","metadata":{}"#, "[".repeat(10_000));
    let ws = |name, bytes, ends| Attack { name, upgraded: true, bytes, ends };
    let head = format!("GET / HTTP/1.1\r\nHost: load\r\nX-Big: {}\r\n\r\n", "x".repeat(64 * 1024));
    vec![
        ws("a frame that announces 16 MiB", frame(FINAL | TEXT, 16 << 20, b"x"), "1009"),
        ws("a frame that announces 1 GiB", frame(FINAL | TEXT, 1 << 30, b"x"), "1009"),
        ws("100,000 fragments of a byte", fragments(b"x", 100_000), "1009"),
        ws("100,000 empty fragments", fragments(b"", 100_000), "4408"),
        ws("10,000 pings", whole(FINAL | PING, b"").repeat(10_000), "4429"),
        ws("text that is not UTF-8", whole(FINAL | TEXT, &[0xff, 0xfe]), "1007"),
        ws("JSON 10,000 deep, five times", whole(FINAL | TEXT, deep.as_bytes()).repeat(5), "4403"),
        Attack { name: "a head of 64 KiB", upgraded: false, bytes: head.into_bytes(), ends: "HTTP 431" },
    ]
}

/// Sends it, and says how the server ended it.
async fn attempt(scene: &Scene, attack: &Attack, number: usize) -> anyhow::Result<String> {
    let mut stream = connect(scene.server, Block::Malformed.address(number), None).await?;
    if attack.upgraded {
        stream.write_all(UPGRADE.as_bytes()).await?;
    }
    let (mut reading, mut writing) = stream.split();
    let mut answer = Vec::new();
    let both = async {
        // The server may close before all is written.
        let write = async { drop(writing.write_all(&attack.bytes).await) };
        let read = async { drop(reading.read_to_end(&mut answer).await) };
        tokio::join!(write, read);
    };
    ensure!(timeout(PATIENCE, both).await.is_ok(), "{}: the server does not end it", attack.name);
    Ok(ending(&answer, attack.upgraded))
}

/// The close code of the last frame, or the HTTP status.
fn ending(answer: &[u8], upgraded: bool) -> String {
    let nothing = || "cut".to_owned();
    if !upgraded {
        return answer.get(9..12).map_or_else(nothing, |status| format!("HTTP {}", String::from_utf8_lossy(status)));
    }
    let Some(end) = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n") else { return nothing() };
    let mut rest = &answer[end + 4..];
    while let [first, second, more @ ..] = rest {
        let (length, more) = match (second & 0x7f, more) {
            (126, [high, low, more @ ..]) => (usize::from(u16::from_be_bytes([*high, *low])), more),
            (short @ 0..126, more) => (usize::from(short), more),
            _ => return nothing(),
        };
        if *first == FINAL | 8
            && let [high, low, ..] = more
        {
            return u16::from_be_bytes([*high, *low]).to_string();
        }
        rest = more.get(length..).unwrap_or_default();
    }
    nothing()
}

/// Each kind alone, some times: the server's processor time for one, and the memory that stays.
pub(crate) async fn cost(scene: &Scene, server: &Server) -> anyhow::Result<Value> {
    let mut rows = Vec::new();
    let idle = server.idle_share().await?;
    for attack in attacks() {
        let (rss, cpu, began) = (server.rss()?, server.cpu()?, Instant::now());
        let mut endings = BTreeMap::<String, usize>::new();
        // Five at a time: some end only after the time that the server waits.
        for batch in 0..REPEATS / 5 {
            let tries = (0..5).map(|number| attempt(scene, &attack, batch * 5 + number));
            for ending in futures_util::future::join_all(tries).await {
                *endings.entry(ending?).or_default() += 1;
            }
        }
        let cpu = (server.cpu()? - cpu - idle * began.elapsed().as_secs_f64()).max(0.0);
        rows.push(json!({
            "attack": attack.name, "times": REPEATS, "expected": attack.ends, "endings": endings,
            "cpu_ms_each": cpu * 1e3 / REPEATS as f64, "rss_grown": server.rss()? as i64 - rss as i64,
        }));
    }
    Ok(json!(rows))
}

/// All kinds in turn, at this pace, until the scene ends.
pub(crate) async fn mixed(scene: Scene, every: Duration) -> anyhow::Result<Value> {
    let attacks = std::sync::Arc::new(attacks());
    let (mut tick, mut running) = (interval(every), tokio::task::JoinSet::new());
    let mut number = 0;
    while !scene.stop.is_cancelled() {
        tick.tick().await;
        let (scene, attacks) = (scene.clone(), attacks.clone());
        running.spawn(async move { attempt(&scene, &attacks[number % attacks.len()], number).await });
        number += 1;
    }
    let mut endings = BTreeMap::<String, usize>::new();
    while let Some(done) = running.join_next().await {
        *endings.entry(done??).or_default() += 1;
    }
    Ok(json!({"malformed": number, "malformed_endings": endings}))
}
