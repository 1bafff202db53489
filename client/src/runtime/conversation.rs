//! One link as a conversation: messages out, messages in, signs of life, a bulk connection when one is needed.
//!
//! Two tasks serve a link: one writes, one reads. They end with the [`Conversation`], or with the link; then the last thing in
//! the inbox is [`Incoming::Lost`].

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use shared::{
    domain::{
        error::{Code, Failure},
        id::Secret,
        message::{BulkCandidate, BulkSdp, Bye, Ping, Progress, Step, ToClient, ToWorker, TransferId},
        route::Route,
    },
    runtime::{
        link::{Carrier, Description, Link},
        peer::{Channel, ChannelSender, ConnectionState, PeerOptions},
        transfer::{Pool, StepPort},
    },
};
use tokio::{
    sync::{Notify, mpsc, watch},
    time::{Instant, MissedTickBehavior, interval_at, sleep_until, timeout},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::bulk::BulkDialer;
use crate::domain::vigil::{Due, Vigil};

/// Between two signs of life.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// Pings whose answer is waited for, at most; the round trip of an older one is not measured.
const PINGS: usize = 64;
/// How long a goodbye may take.
const GOODBYE: Duration = Duration::from_secs(2);

/// The round trip that is assumed before one was measured.
const ROUND_TRIP: Duration = Duration::from_millis(100);

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

/// How long the worker took to answer signs of life.
#[derive(Debug, Clone, Copy)]
struct RoundTrip {
    last: Duration,
    shortest: Duration,
}

/// A link in use.
pub(super) struct Conversation {
    out: mpsc::Sender<ToWorker>,
    inbox: mpsc::Receiver<Incoming>,
    /// What both sides have and nobody else.
    secret: Secret<[u8; 32]>,
    pool: Pool,
    steps: Routes<TransferId, Step>,
    bulk: Arc<BulkDialer>,
    carrier: Arc<Carrier>,
    probe: Arc<Notify>,
    ping: Arc<Notify>,
    doubted: Arc<Notify>,
    moved: mpsc::Sender<Instant>,
    heard: watch::Receiver<SystemTime>,
    round_trip: watch::Receiver<Option<RoundTrip>>,
    connections: Option<u32>,
    stop: CancellationToken,
    _stop: DropGuard,
}

impl Conversation {
    /// Takes a link into use, with at most so many bulk connections where that is said.
    pub(super) fn start(link: Link, options: &PeerOptions, connections: Option<u32>) -> Self {
        let Link { control, progress, proven, carrier, path_mtu, near } = link;
        let (out, outgoing) = mpsc::channel(64);
        let (inbox_tx, inbox) = mpsc::channel(256);
        let stop = CancellationToken::new();
        let carrier = Arc::new(carrier);
        let steps = Routes::default();
        let pool = Pool::default();
        let options = PeerOptions { path_mtu, near, ..options.clone() };
        let secret = proven.bulk_key.clone();
        let bulk = Arc::new(BulkDialer::new(proven.bulk_key, options, out.clone(), pool.clone(), stop.clone()));
        tokio::spawn(write(control.sender().clone(), outgoing, stop.clone()));
        let [probe, ping, doubted] = [(); 3].map(|()| Arc::new(Notify::new()));
        let (round_trip_tx, round_trip) = watch::channel(None);
        let (moved, moves) = mpsc::channel(1);
        let (heard_tx, heard) = watch::channel(SystemTime::now());
        let reader = Reader {
            pool: pool.clone(),
            moves,
            inbox: inbox_tx,
            steps: steps.clone(),
            bulk: bulk.clone(),
            out: out.clone(),
            carrier: carrier.clone(),
            probe: probe.clone(),
            ping: ping.clone(),
            doubted: doubted.clone(),
            pings: 0,
            pinged: VecDeque::new(),
            round_trip: round_trip_tx,
            heard: heard_tx,
            began: Instant::now(),
            vigil: Vigil::default(),
        };
        let reader_stop = stop.clone();
        tokio::spawn(async move { reader_stop.run_until_cancelled(reader.run(control, progress)).await });
        Conversation {
            out,
            inbox,
            secret,
            pool,
            steps,
            bulk,
            carrier,
            probe,
            ping,
            doubted,
            moved,
            heard,
            round_trip,
            connections,
            _stop: stop.clone().drop_guard(),
            stop,
        }
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

    /// Told when there is reason to think that the worker is gone, and at each further ping that it must answer.
    pub(super) fn doubted(&self) -> Arc<Notify> {
        self.doubted.clone()
    }

    /// The path's end here or there has moved at this time, and the way through signaling works: the path is restarted, or the link lost.
    pub(super) fn moved(&self, at: Instant) {
        // One that waits already serves.
        let _ = self.moved.try_send(at);
    }

    /// Whether this machine has lost the address that the link uses.
    pub(super) fn has_lost_address(&self) -> bool {
        self.carrier.has_lost_address()
    }

    /// Whether it is so, and another one leads to the worker.
    pub(super) fn has_moved(&self) -> bool {
        self.carrier.has_moved()
    }

    /// When the worker was last heard: by the wall clock, which goes on while this machine sleeps.
    pub(super) fn last_heard(&self) -> SystemTime {
        *self.heard.borrow()
    }

    /// Asks for a sign of life now, and so for a new [`Conversation::round_trip`].
    pub(super) fn ping(&self) {
        self.ping.notify_one();
    }

    /// How long the worker took to answer the last sign of life; `None`: it has answered none yet.
    pub(super) fn round_trip(&self) -> Option<Duration> {
        self.round_trip.borrow().map(|round_trip| round_trip.last)
    }

    /// The session's secret.
    pub(super) fn secret(&self) -> Secret<[u8; 32]> {
        self.secret.clone()
    }

    /// The route in use.
    pub(super) async fn route(&self) -> Option<Route> {
        self.carrier.connection.route().await
    }

    /// The bulk connections; opens the first one where there is none.
    pub(super) fn pool(&self) -> Pool {
        self.bulk.clone().begin();
        self.pool.clone()
    }

    /// From now on there are so many bulk connections, or as many as there were.
    pub(super) fn keep_bulk(&self, connections: u32) {
        self.bulk.clone().keep(connections.min(self.connections.unwrap_or(u32::MAX)));
    }

    /// How many bulk connections are open.
    pub(super) fn open_bulk(&self) -> u32 {
        self.pool.connections().borrow().len() as u32
    }

    /// Bytes that bulk connections have carried, in either direction.
    pub(super) fn carried(&self) -> u64 {
        self.pool.carried()
    }

    /// Whether a queue stood on the path lately, of what went from here to there.
    pub(super) fn is_path_full(&self) -> bool {
        self.pool.is_full()
    }

    /// The path's round trip without its queues, as far as it is known.
    pub(super) fn path_round_trip(&self) -> Duration {
        let pinged = self.round_trip.borrow().map_or(ROUND_TRIP, |round_trip| round_trip.shortest);
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

    /// A transfer is not wanted any more: its task ends, and what still comes of it finds nobody.
    pub(super) fn forget(&self, transfer: TransferId) {
        self.steps.lock().expect("no panic happens under this lock").remove(&transfer);
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
    ping: Arc<Notify>,
    doubted: Arc<Notify>,
    /// How many pings have been sent.
    pings: u64,
    /// Those that have not been answered, and when they were sent.
    pinged: VecDeque<(u64, Instant)>,
    round_trip: watch::Sender<Option<RoundTrip>>,
    /// When the worker was last heard.
    heard: watch::Sender<SystemTime>,
    began: Instant,
    vigil: Vigil,
    pool: Pool,
    moves: mpsc::Receiver<Instant>,
}

impl Reader {
    async fn run(mut self, control: Channel, progress: Channel) {
        let failure = self.run_inner(control, progress).await;
        tracing::info!(%failure, "the link is gone");
        self.steps.lock().expect("no panic happens under this lock").clear();
        let _ = self.inbox.send(Incoming::Lost(failure)).await;
    }

    async fn run_inner(&mut self, mut control: Channel, mut progress: Channel) -> Failure {
        // Not at once: the worker's first message from us must be the hello.
        let mut beat = interval_at(Instant::now() + HEARTBEAT, HEARTBEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (carrier, probe, ping) = (self.carrier.clone(), self.probe.clone(), self.ping.clone());
        let (mut state, mut restarted) = (carrier.state.clone(), carrier.restarted());
        loop {
            // The deadline last: what waits to be read is a sign of life, however long we were busy before.
            let received = tokio::select! {
                biased;
                () = carrier.lost() => return lost("the connection to the worker failed"),
                _ = beat.tick() => {
                    self.send_ping();
                    continue;
                }
                () = ping.notified() => {
                    self.send_ping();
                    continue;
                }
                () = probe.notified() => {
                    self.doubt();
                    continue;
                }
                Ok(()) = state.changed() => {
                    // The ICE agent has heard nothing for 10 s: a hint, since it does not count data.
                    if *state.borrow_and_update() == ConnectionState::Disconnected {
                        self.doubt();
                    }
                    continue;
                }
                Some(at) = self.moves.recv() => {
                    if !self.vigil.moved(self.began.elapsed(), at.elapsed(), self.pings + 1) {
                        return lost("the way to the worker has changed");
                    }
                    carrier.restart();
                    continue;
                }
                Ok(()) = restarted.changed() => {
                    tracing::info!("the path to the worker was restarted");
                    self.pool.give_up();
                    continue;
                }
                message = control.recv() => message,
                message = progress.recv() => message,
                () = sleep_until(self.began + self.vigil.deadline()) => {
                    match self.vigil.due(self.began.elapsed(), self.pings + 1) {
                        Some(Due::Lost) => return lost("nothing was heard from the worker for a while"),
                        Some(Due::Ping) => {
                            self.doubted.notify_one();
                            self.send_ping();
                        }
                        None => {}
                    }
                    continue;
                }
            };
            let Some(message) = received else { return lost("the worker closed the connection") };
            self.vigil.heard(self.began.elapsed());
            self.heard.send_replace(SystemTime::now());
            if let Err(failure) = self.handle(&message).await {
                return failure;
            }
        }
    }

    fn doubt(&mut self) {
        self.vigil.doubt(self.began.elapsed(), self.pings + 1);
    }

    /// Where the queue is full, messages wait already, which are signs of life, too.
    fn send_ping(&mut self) {
        let n = self.pings + 1;
        if self.out.try_send(ToWorker::Ping(Ping { n })).is_ok() {
            self.pings = n;
            self.pinged.push_back((n, Instant::now()));
            if self.pinged.len() > PINGS {
                self.pinged.pop_front();
            }
        }
    }

    /// Answers come in the order of the questions.
    fn answered(&mut self, n: u64) {
        while let Some(&(asked, at)) = self.pinged.front().filter(|(asked, _)| *asked <= n) {
            self.pinged.pop_front();
            if asked == n {
                let last = at.elapsed();
                self.round_trip.send_modify(|known| {
                    let shortest = known.map_or(last, |known| known.shortest.min(last));
                    *known = Some(RoundTrip { last, shortest });
                });
            }
        }
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
                self.answered(n);
                self.vigil.answered(n);
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
