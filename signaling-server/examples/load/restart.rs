//! Many peers lose the server at once and come back as our peers do.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use futures_util::{StreamExt, stream};
use serde_json::{Value, json};
use shared::domain::backoff::{Backoff, FIRST_WAIT, LONGEST_WAIT};
use tokio::{
    sync::Mutex,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use super::{
    ledger::spread,
    wire::{Block, Pass, Socket, connect},
};

/// All must be back by then, or it is given up.
const PATIENCE: Duration = Duration::from_secs(180);

#[derive(Default)]
struct Seen {
    lost: Vec<Instant>,
    /// TCP connections that the server's system took.
    connected: Vec<Instant>,
    back: Vec<Instant>,
    refused: Vec<String>,
}

/// Registers them, says so, and follows them until all are back.
pub(crate) async fn run(server: SocketAddr, peers: usize) -> anyhow::Result<Value> {
    let make = |number| async move {
        let (pass, stream) = Pass::new(server, Block::Crowd.address(number), "w", None).await?;
        let socket = pass.enter(stream).await?;
        anyhow::Ok((pass, socket))
    };
    let made: Vec<_> = stream::iter(0..peers).map(make).buffer_unordered(32).collect().await;
    let made = made.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
    super::say(&json!({"event": "ready", "peers": peers}));
    let seen = Arc::new(Mutex::new(Seen::default()));
    let mut running = JoinSet::new();
    for (pass, socket) in made {
        running.spawn(one(server, pass, socket, seen.clone()));
    }
    let all = async {
        while let Some(done) = running.join_next().await {
            done??;
        }
        anyhow::Ok(())
    };
    let finished = timeout(PATIENCE, all).await;
    let seen = seen.lock().await;
    let first = seen.lost.iter().min().copied().unwrap_or_else(Instant::now);
    let seconds = |times: &[Instant]| times.iter().map(|time| time.duration_since(first).as_secs_f64()).collect::<Vec<_>>();
    if let Ok(done) = finished {
        done?;
    }
    Ok(json!({
        "event": "restart", "peers": peers, "lost": seen.lost.len(), "back": seen.back.len(), "back_s": spread(seconds(&seen.back)),
        "connections": seen.connected.len(), "peak_connections_per_s": peak(seconds(&seen.connected)),
        "refused": seen.refused.len(), "refusals": seen.refused.iter().take(3).collect::<Vec<_>>(),
    }))
}

async fn one(server: SocketAddr, pass: Pass, mut socket: Socket, seen: Arc<Mutex<Seen>>) -> anyhow::Result<()> {
    while let Some(Ok(_)) = socket.next().await {}
    seen.lock().await.lost.push(Instant::now());
    let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
    loop {
        let random = getrandom::u64().map_err(anyhow::Error::msg)?;
        sleep(backoff.next_wait(random)).await;
        let Ok(stream) = connect(server, pass.from, None).await else { continue };
        seen.lock().await.connected.push(Instant::now());
        match pass.enter(stream).await {
            Ok(_socket) => {
                seen.lock().await.back.push(Instant::now());
                return Ok(());
            }
            Err(error) => seen.lock().await.refused.push(format!("{error:#}")),
        }
    }
}

/// The most of them within any one second.
fn peak(mut times: Vec<f64>) -> usize {
    times.sort_by(f64::total_cmp);
    (0..times.len()).map(|first| times[first..].partition_point(|time| *time < times[first] + 1.0)).max().unwrap_or(0)
}
