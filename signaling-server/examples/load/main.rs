//! The load generator of `scripts/bench signaling`: thousands of peers at addresses of their own, and some that misbehave.
//!
//! * each message has a time at which it is due; its latency counts from then, so that a slow server cannot slow the measurement down with it
//! * each message is numbered: it arrives once, or its sender is told, or it is lost; all three are counted
//! * results go to stdout, one JSON object a line; `scripts/benchmark/signaling.py` starts the server and makes tables of them

mod crowd;
mod disturb;
mod ledger;
mod malformed;
mod process;
mod restart;
mod wire;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::Context;
use clap::Parser;
use serde_json::{Value, json};
use signaling_server::runtime::descriptors;
use tokio::{runtime::Handle, task::JoinHandle, time::sleep};
use tokio_util::sync::CancellationToken;

use crate::{
    crowd::{Crowd, Kind},
    disturb::Scene,
    ledger::Ledger,
    process::Server,
    wire::Block,
};

/// Messages of one negotiation: offer, answer, a candidate each way.
const NEGOTIATION: [Kind; 4] = [Kind::Offer, Kind::Answer, Kind::Candidate, Kind::Candidate];
/// How many peers join a second, beside everything else.
const JOINS: u64 = 5;
/// How long messages may be under way after the last was due.
const STRAGGLERS: Duration = Duration::from_secs(10);
const SAMPLE: Duration = Duration::from_millis(100);

/// Loads a signaling server that runs already.
#[derive(Parser)]
struct Args {
    /// Where it listens
    #[arg(long)]
    server: SocketAddr,
    /// Its process
    #[arg(long)]
    pid: u32,
    /// Rooms of two peers each
    #[arg(long, default_value_t = 5000)]
    rooms: usize,
    /// Messages a second
    #[arg(long, default_value_t = 6000.0)]
    rate: f64,
    /// Bytes that each message carries
    #[arg(long, default_value_t = 4096)]
    bytes: usize,
    /// Seconds of each phase
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// What disturbs, each in a phase of its own: slow, malformed, flood, guess
    #[arg(long, value_delimiter = ',')]
    disturb: Vec<String>,
    /// Slow peers: half-open upgrades, and as many that register and never read
    #[arg(long, default_value_t = 2000)]
    slow: usize,
    /// Nothing but this: so many peers lose the server, which the caller restarts, and come back
    #[arg(long)]
    restart: Option<usize>,
}

/// One line for the caller.
pub(crate) fn say(event: &Value) {
    println!("{event}");
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    descriptors::raise().context("the limit of open files")?;
    // The misbehaving ones have a thread of their own: they must not slow down those that measure.
    let others = tokio::runtime::Builder::new_multi_thread().worker_threads(1).thread_name("disturb").enable_all().build()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let disturb = others.handle().clone();
    let result = runtime.block_on(async move {
        match args.restart {
            Some(peers) => {
                say(&restart::run(args.server, peers).await?);
                Ok(())
            }
            None => Run::gather(args, disturb).await?.all().await,
        }
    });
    others.shutdown_background();
    runtime.shutdown_background();
    result
}

struct Run {
    args: Args,
    server: Server,
    crowd: Arc<Crowd>,
    disturb: Handle,
    /// The number of the next message.
    next: usize,
}

impl Run {
    async fn gather(args: Args, disturb: Handle) -> anyhow::Result<Run> {
        let server = Server { pid: args.pid };
        let (empty, began) = (server.rss()?, tokio::time::Instant::now());
        let phases = 1 + args.disturb.len();
        let messages = args.rooms * NEGOTIATION.len() + phases * (args.rate * args.seconds as f64) as usize;
        let ledger = Arc::new(Ledger::new(messages, 2 * args.rooms));
        let crowd = Arc::new(Crowd::gather(args.server, args.rooms, args.bytes, ledger).await?);
        let seconds = began.elapsed().as_secs_f64();
        let share = server.idle_share().await?;
        say(
            &json!({"event": "gathered", "sockets": 2 * args.rooms, "seconds": seconds, "rss_empty": empty, "rss": server.rss()?, "idle_cpu": share}),
        );
        Ok(Run { args, server, crowd, disturb, next: 0 })
    }

    async fn all(mut self) -> anyhow::Result<()> {
        let rooms = self.args.rooms;
        let negotiation = move |number: usize| {
            let (room, step) = (number % rooms, number / rooms);
            // The client offers; then they take turns.
            (2 * room + (step + 1) % 2, NEGOTIATION[step])
        };
        self.phase("negotiate", rooms * NEGOTIATION.len(), negotiation, None, Vec::new()).await?;
        self.relay("baseline", Vec::new()).await?;
        let mut silent = Vec::new();
        for name in self.args.disturb.clone() {
            let scene = self.scene();
            let every = Duration::from_millis(50);
            let running = match name.as_str() {
                "slow" => {
                    silent = self.disturb.spawn(disturb::silent(self.args.server, self.args.slow)).await??;
                    let slow = self.args.slow;
                    vec![self.start(scene.clone(), |scene| async move { Ok(disturb::half_open(scene, slow).await) })]
                }
                "malformed" => {
                    let cost = malformed::cost(&scene, &self.server).await?;
                    say(&json!({"event": "malformed", "attacks": cost}));
                    vec![self.start(scene.clone(), move |scene| malformed::mixed(scene, every))]
                }
                "flood" => vec![self.start(scene.clone(), disturb::flood), self.start(scene.clone(), disturb::deaf)],
                "guess" => {
                    let rooms = self.crowd.rooms.clone();
                    vec![self.start(scene.clone(), |scene| disturb::guesses(scene, rooms))]
                }
                other => anyhow::bail!("nothing disturbs by the name of {other}"),
            };
            self.relay_in(&name, scene, running).await?;
        }
        let (slow, closed) = (silent.len(), disturb::closed(silent).await);
        let drops = self.crowd.ledger.drops();
        say(&json!({
            "event": "end", "rss": self.server.rss()?, "peers": 2 * rooms, "dropped": drops.len(), "why": drops.iter().take(5).collect::<Vec<_>>(),
            "senders_with_messages_unaccounted": self.crowd.ledger.unaccounted(), "silent": slow, "silent_closed": closed,
        }));
        self.crowd.leave();
        Ok(())
    }

    fn scene(&self) -> Scene {
        Scene { server: self.args.server, stop: CancellationToken::new() }
    }

    fn start<F>(&self, scene: Scene, what: impl FnOnce(Scene) -> F) -> JoinHandle<anyhow::Result<Value>>
    where
        F: Future<Output = anyhow::Result<Value>> + Send + 'static,
    {
        self.disturb.spawn(what(scene))
    }

    async fn relay(&mut self, name: &str, running: Vec<JoinHandle<anyhow::Result<Value>>>) -> anyhow::Result<()> {
        let scene = self.scene();
        self.relay_in(name, scene, running).await
    }

    /// The crowd's messages at the full rate, each peer in its turn, while others join and some misbehave.
    async fn relay_in(&mut self, name: &str, scene: Scene, mut running: Vec<JoinHandle<anyhow::Result<Value>>>) -> anyhow::Result<()> {
        let passes = disturb::passes(self.args.server, Block::Joins, (self.args.seconds * JOINS) as usize).await?;
        running.push(
            self.start(scene.clone(), |scene| async move { Ok(disturb::joins(scene, passes, Duration::from_millis(1000 / JOINS)).await) }),
        );
        let rooms = self.args.rooms;
        let count = (self.args.rate * self.args.seconds as f64) as usize;
        let plan = move |number: usize| (2 * (number % rooms) + number / rooms % 2, Kind::Message);
        self.phase(name, count, plan, Some(scene), running).await
    }

    async fn phase(
        &mut self,
        name: &str,
        count: usize,
        plan: impl Fn(usize) -> (usize, Kind) + Send + 'static,
        scene: Option<Scene>,
        running: Vec<JoinHandle<anyhow::Result<Value>>>,
    ) -> anyhow::Result<()> {
        let (ledger, server) = (self.crowd.ledger.clone(), self.server);
        let peak = Arc::new(AtomicU64::new(0));
        let sampler = tokio::spawn(sample(server, peak.clone()));
        let (before, rss, cpu, own) = (ledger.counts(), server.rss()?, server.cpu()?, process::own_cpu()?);
        let began = tokio::time::Instant::now();
        let (crowd, first, rate) = (self.crowd.clone(), self.next, self.args.rate);
        tokio::task::spawn_blocking(move || crowd.pace(first, count, rate, plan)).await?;
        let seconds = began.elapsed().as_secs_f64();
        let (cpu, own) = (server.cpu()? - cpu, process::own_cpu()? - own);
        if let Some(scene) = scene {
            scene.stop.cancel();
        }
        let mut more = serde_json::Map::new();
        for task in running {
            if let Value::Object(facts) = task.await?? {
                more.extend(facts);
            }
        }
        let _ = tokio::time::timeout(STRAGGLERS, async {
            while !ledger.is_settled() {
                sleep(SAMPLE).await;
            }
        })
        .await;
        sampler.abort();
        self.next += count;
        say(&json!({
            "event": "phase", "name": name, "seconds": seconds, "messages": ledger.counts().since(&before), "latency": ledger.latencies(first..first + count),
            "rss_before": rss, "rss_peak": peak.load(Relaxed), "rss_after": server.rss()?, "server_cpu_s": cpu, "generator_cpu_s": own, "more": more,
        }));
        Ok(())
    }
}

/// The most memory that the server has had, looked at again and again.
async fn sample(server: Server, peak: Arc<AtomicU64>) {
    while let Ok(rss) = server.rss() {
        peak.fetch_max(rss, Relaxed);
        sleep(SAMPLE).await;
    }
}
