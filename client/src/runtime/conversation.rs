//! One link as a conversation: messages out, messages in, signs of life, a bulk connection when one is needed.
//!
//! Two tasks serve a link: one writes, one reads. They end with the [`Conversation`], or with the link; then the last thing in
//! the inbox is [`Incoming::Lost`].

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use shared::{
    domain::{
        error::{Code, Failure},
        message::{BulkCandidate, BulkSdp, Bye, Ping, Progress, Step, ToClient, ToWorker, TransferId},
        route::Route,
    },
    runtime::{
        link::{Carrier, Description, Link},
        peer::{Channel, ChannelSender, PeerOptions},
        transfer::{Pool, StepPort},
    },
};
use tokio::{
    sync::{Notify, mpsc},
    time::{Instant, MissedTickBehavior, interval, sleep_until, timeout},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::bulk::BulkDialer;

/// Between two signs of life.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// Silence after which a link counts as lost.
const SILENCE: Duration = Duration::from_secs(15);
/// How long the answer to a probe may take.
const PROBE: Duration = Duration::from_secs(3);
/// How long a goodbye may take.
const GOODBYE: Duration = Duration::from_secs(2);

/// The round trip that is assumed before one was measured.
const ROUND_TRIP: Duration = Duration::from_millis(100);
const UNKNOWN: u64 = u64::MAX;

/// What a link brings.
pub(super) enum Incoming {
    /// A message that is neither a journal entry nor part of a transfer.
    Message(ToClient),
    /// A journal entry.
    Journal(Progress),
    /// The link is gone; nothing follows.
    Lost(Failure),
}

type Routes<K, T> = Arc<Mutex<HashMap<K, mpsc::Sender<T>>>>;

/// A link in use.
pub(super) struct Conversation {
    out: mpsc::Sender<ToWorker>,
    inbox: mpsc::Receiver<Incoming>,
    pool: Pool,
    steps: Routes<TransferId, Step>,
    bulk: Arc<BulkDialer>,
    carrier: Arc<Carrier>,
    probe: Arc<Notify>,
    /// The shortest time from a ping to its answer, in microseconds.
    round_trip: Arc<AtomicU64>,
    stop: CancellationToken,
    _stop: DropGuard,
}

impl Conversation {
    /// Takes a link into use.
    pub(super) fn start(link: Link, options: &PeerOptions) -> Self {
        let Link { control, progress, proven, carrier } = link;
        let (out, outgoing) = mpsc::channel(64);
        let (inbox_tx, inbox) = mpsc::channel(256);
        let stop = CancellationToken::new();
        let carrier = Arc::new(carrier);
        let steps = Routes::default();
        let pool = Pool::default();
        let bulk = Arc::new(BulkDialer::new(proven.bulk_key, options.clone(), out.clone(), pool.clone(), stop.clone()));
        tokio::spawn(write(control.sender().clone(), outgoing, stop.clone()));
        let (probe, round_trip) = (Arc::new(Notify::new()), Arc::new(AtomicU64::new(UNKNOWN)));
        let reader = Reader {
            inbox: inbox_tx,
            steps: steps.clone(),
            bulk: bulk.clone(),
            out: out.clone(),
            carrier: carrier.clone(),
            probe: probe.clone(),
            round_trip: round_trip.clone(),
            pings: 0,
            pinged: None,
            heard: Instant::now(),
            probed: None,
        };
        let reader_stop = stop.clone();
        tokio::spawn(async move { reader_stop.run_until_cancelled(reader.run(control, progress)).await });
        Conversation { out, inbox, pool, steps, bulk, carrier, probe, round_trip, _stop: stop.clone().drop_guard(), stop }
    }

    /// Sends one message.
    pub(super) async fn tell(&self, message: ToWorker) -> Result<(), Failure> {
        self.out.send(message).await.map_err(|_| lost("the connection to the worker is gone"))
    }

    /// What comes next; cancel-safe.
    pub(super) async fn next(&mut self) -> Incoming {
        self.inbox.recv().await.unwrap_or_else(|| Incoming::Lost(lost("the connection to the worker is gone")))
    }

    /// There is reason to think that the worker is gone: if it does not answer within 3 s, the link is lost.
    pub(super) fn probe(&self) {
        self.probe.notify_one();
    }

    /// The route in use.
    pub(super) async fn route(&self) -> Option<Route> {
        self.carrier.connection.route().await
    }

    /// The bulk connections; opens the first one.
    pub(super) fn pool(&self) -> Pool {
        self.keep_bulk(1);
        self.pool.clone()
    }

    /// From now on there are so many bulk connections, or as many as there were.
    pub(super) fn keep_bulk(&self, connections: u32) {
        self.bulk.clone().keep(connections);
    }

    /// How many bulk connections are open.
    pub(super) fn open_bulk(&self) -> u32 {
        self.pool.connections().borrow().len() as u32
    }

    /// Bytes that bulk connections have carried, in either direction.
    pub(super) fn carried(&self) -> u64 {
        self.pool.carried()
    }

    /// The path's round trip, as far as it is known.
    pub(super) fn round_trip(&self) -> Duration {
        let pinged = self.round_trip.load(Ordering::Relaxed);
        let pinged = if pinged == UNKNOWN { ROUND_TRIP } else { Duration::from_micros(pinged) };
        self.pool.round_trip().unwrap_or(pinged)
    }

    /// The way that one transfer's steps take.
    pub(super) fn steps_of(&self, transfer: TransferId) -> StepPort {
        let (tx, mut outgoing) = mpsc::channel::<Step>(64);
        let (in_tx, rx) = mpsc::channel(64);
        self.steps.lock().expect("no panic happens under this lock").insert(transfer, in_tx);
        let (out, stop) = (self.out.clone(), self.stop.clone());
        tokio::spawn(async move {
            stop.run_until_cancelled(async {
                while let Some(step) = outgoing.recv().await {
                    if out.send(step.into()).await.is_err() {
                        return;
                    }
                }
            })
            .await;
        });
        StepPort { tx, rx }
    }

    /// Ends politely: everything sent before has arrived when the worker answers.
    pub(super) async fn goodbye(mut self, reason: &str) {
        let farewell = async {
            self.tell(ToWorker::Bye(Bye { reason: reason.to_owned() })).await?;
            loop {
                match self.next().await {
                    Incoming::Message(ToClient::Bye(_)) => return Ok(()),
                    Incoming::Lost(failure) => return Err(failure),
                    _ => {}
                }
            }
        };
        if !matches!(timeout(GOODBYE, farewell).await, Ok(Ok(()))) {
            tracing::debug!("the worker did not answer the goodbye");
        }
        self.carrier.connection.close().await;
    }
}

async fn write(channel: ChannelSender, mut outgoing: mpsc::Receiver<ToWorker>, stop: CancellationToken) {
    stop.run_until_cancelled(async {
        while let Some(message) = outgoing.recv().await {
            tracing::trace!(message = message.name(), "to the worker");
            if channel.send_text(&message.encode()).await.is_err() {
                return;
            }
        }
    })
    .await;
}

struct Reader {
    inbox: mpsc::Sender<Incoming>,
    steps: Routes<TransferId, Step>,
    bulk: Arc<BulkDialer>,
    out: mpsc::Sender<ToWorker>,
    carrier: Arc<Carrier>,
    probe: Arc<Notify>,
    round_trip: Arc<AtomicU64>,
    /// How many pings have been sent.
    pings: u64,
    /// The last one of them, and when.
    pinged: Option<(u64, Instant)>,
    heard: Instant,
    /// The ping that must be answered, and by when.
    probed: Option<(u64, Instant)>,
}

impl Reader {
    async fn run(mut self, control: Channel, progress: Channel) {
        let failure = self.run_inner(control, progress).await;
        tracing::info!(%failure, "the link is gone");
        self.steps.lock().expect("no panic happens under this lock").clear();
        let _ = self.inbox.send(Incoming::Lost(failure)).await;
    }

    async fn run_inner(&mut self, mut control: Channel, mut progress: Channel) -> Failure {
        let mut beat = interval(HEARTBEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (carrier, probe) = (self.carrier.clone(), self.probe.clone());
        loop {
            let deadline = self.probed.map_or(self.heard + SILENCE, |(_, until)| until);
            let received = tokio::select! {
                () = carrier.lost() => return lost("the connection to the worker failed"),
                () = sleep_until(deadline) => return lost("nothing was heard from the worker for a while"),
                _ = beat.tick() => {
                    self.ping();
                    continue;
                }
                () = probe.notified() => {
                    if self.probed.is_none() {
                        self.probed = self.ping().map(|n| (n, Instant::now() + PROBE));
                    }
                    continue;
                }
                message = control.recv() => message,
                message = progress.recv() => message,
            };
            let Some(message) = received else { return lost("the worker closed the connection") };
            self.heard = Instant::now();
            if let Err(failure) = self.handle(&message).await {
                return failure;
            }
        }
    }

    /// Gives the number of the ping, unless the queue is full: then messages wait already, which are signs of life, too.
    fn ping(&mut self) -> Option<u64> {
        self.pings += 1;
        let n = self.pings;
        self.pinged = Some((n, Instant::now()));
        self.out.try_send(ToWorker::Ping(Ping { n })).is_ok().then_some(n)
    }

    async fn handle(&mut self, message: &[u8]) -> Result<(), Failure> {
        let text =
            std::str::from_utf8(message).map_err(|_| Failure::new(Code::InvalidRequest, "the worker sent something that is no text"))?;
        let message = match ToClient::decode(text)?.into_journal() {
            Ok(progress) => return self.deliver(Incoming::Journal(progress)).await,
            Err(message) => message,
        };
        let message = match message.into_step() {
            Ok(step @ Step::Meta(_)) => return self.deliver(Incoming::Message(step.into())).await,
            Ok(step) => {
                let route = self.steps.lock().expect("no panic happens under this lock").get(&step.transfer()).cloned();
                if let Some(route) = route {
                    let _ = route.send(step).await;
                }
                return Ok(());
            }
            Err(message) => message,
        };
        match message {
            ToClient::Ping(ping) => {
                let _ = self.out.try_send(ToWorker::Pong(ping));
                Ok(())
            }
            ToClient::Pong(Ping { n }) => {
                if let Some((_, at)) = self.pinged.take_if(|(ping, _)| *ping == n) {
                    let took = at.elapsed();
                    tracing::debug!(?took, "the worker answered a ping");
                    self.round_trip.fetch_min(took.as_micros() as u64, Ordering::Relaxed);
                }
                // Other messages may have been under way when the worker went.
                self.probed = self.probed.filter(|(probe, _)| n < *probe);
                Ok(())
            }
            ToClient::BulkAnswer(BulkSdp { connection, sdp }) => {
                self.bulk.hand_over(connection, Description::Answer(sdp));
                Ok(())
            }
            ToClient::BulkCandidate(BulkCandidate { connection, candidate }) => {
                self.bulk.hand_over(connection, Description::Candidate(candidate));
                Ok(())
            }
            message => self.deliver(Incoming::Message(message)).await,
        }
    }

    async fn deliver(&self, incoming: Incoming) -> Result<(), Failure> {
        self.inbox.send(incoming).await.map_err(|_| lost("the conversation has ended"))
    }
}

fn lost(why: &str) -> Failure {
    Failure::new(Code::NoConnection, why)
}
