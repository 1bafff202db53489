//! How many bytes each bulk connection may have under way, found from what is delivered and when.
//!
//! SCTP's own window only shrinks when packets are lost; until then it fills every queue on the way, and what it loses when the queue is full
//! takes it seconds to repair. So the sender holds back by itself, for all connections of a path together:
//!
//! * round trip: the shortest time from handing a byte over to its delivery; looked for anew every 10 s with half the window
//! * rate: the most that all connections together delivered in a round of the last second
//! * window: rate × round trip and a quarter more, so that a short queue stands on the path and growing capacity is noticed; twice of it
//!   while the rate still doubles, or while there is no queue
//! * shares: to each connection by what it delivers itself; a stalled one gives its share up, and one that is stuck is worth giving up
//!
//! Driven: time is passed in, as a duration since any one moment.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    time::Duration,
};

/// The window before anything is known, and the least of it ever, in bytes.
const FIRST: f64 = 65536.0;
const LEAST: f64 = 16384.0;
/// The longest and the shortest piece that is sent at once, in bytes.
const MAX_PIECE: f64 = 262144.0;
const MIN_PIECE: f64 = 4096.0;
/// Seconds that may pass until somebody looks again and refills the path; what it carries meanwhile is under way in addition. On a short path
/// there is nothing else that would bridge the moments in which a busy machine does something else: up to so many seconds and bytes there.
const SLACK: f64 = 0.004;
const SHORT_SLACK: f64 = 0.020;
const SHORT_SLACK_BYTES: f64 = 2097152.0;
/// A piece need not be smaller than what the path carries in so many seconds; long messages cost less than short ones.
const PIECE_SECONDS: f64 = 0.0005;
/// Window in units of rate × round trip: while the rate is looked for, while no queue stands on the path, while one does, and to empty it.
const SEARCH: f64 = 2.9;
const RISE: f64 = 1.5;
const CRUISE: f64 = 1.25;
const DRAIN: f64 = 0.5;
/// The rate has been found when it grew by less than this in so many rounds.
const GROWTH: f64 = 1.25;
const ROUNDS: u32 = 3;
/// A measured rate counts for so long, or for so many round trips.
const RATE_COUNTS: Duration = Duration::from_secs(1);
const RATE_ROUNDS: u32 = 10;
/// A queue that stood counts for so many round trips.
const QUEUE_ROUNDS: u32 = 10;
/// What a step leaves of a connection's rate that is no longer reached.
const FADE: f64 = 0.95;
/// A round trip is measured in so many steps, none shorter than this.
const STEPS: u32 = 4;
const SHORTEST_STEP: Duration = Duration::from_millis(1);
/// Waiting shorter than this is no queue.
const SHORTEST_QUEUE: Duration = Duration::from_millis(2);
/// A connection is stuck when what it has under way, if it is so much, would take longer than this at what it delivered lately, …
const STUCK: Duration = Duration::from_secs(6);
const STUCK_BYTES: u64 = 1 << 20;
/// … which is: for so long, or so many round trips.
const STUCK_LOOK: Duration = Duration::from_millis(500);
const STUCK_ROUNDS: u32 = 6;
/// So often in a row: after a pause of all, one begins again before the others.
const STUCK_LOOKS: u32 = 2;
/// A round trip that was not seen for so long is looked for.
const RTT_COUNTS: Duration = Duration::from_secs(10);

/// The windows of all bulk connections between two peers, in one direction.
#[derive(Debug)]
pub struct Windows {
    flows: BTreeMap<u32, Flow>,
    budget: f64,
    /// The shortest round trip that counts, and when it was last seen.
    rtt: Option<(Duration, Duration)>,
    /// The last steps, a round trip and one step more; and the one under way.
    steps: VecDeque<Step>,
    step: Step,
    /// Delivered on all connections, also on those that are gone.
    delivered: u64,
    /// How long it was measured; stands still while nothing is under way.
    measured: Duration,
    /// Rates that count, and after how much measuring they were seen: the highest first, and behind each the highest of those that were seen after it.
    rates: VecDeque<(Duration, f64)>,
    phase: Phase,
    /// When a queue last stood on the path.
    queued: Option<Duration>,
}

/// A quarter of a round trip.
#[derive(Debug, Clone, Copy, Default)]
struct Step {
    began: Duration,
    /// Delivered in all before it.
    delivered: u64,
    /// The shortest round trip seen in it.
    rtt: Option<Duration>,
    /// Whether a connection had more to send than its window allowed.
    held_back: bool,
}

/// What the window is used for.
///
/// ```text
///   Search ──rate found──► Cruise ──round trip is old──► Drain ──queue was empty──► Cruise
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
enum Phase {
    /// Doubles until a queue shows or the rate no longer grows: the best one so far, and since when.
    Search { best: f64, since: Duration },
    /// Keeps the path filled; whether a queue stands on it.
    Cruise { queue: bool },
    /// Half a window until then, for a look at the round trip without a queue.
    Drain { until: Duration, rtt: Option<Duration> },
}

#[derive(Debug, Default)]
struct Flow {
    sent: u64,
    delivered: u64,
    /// What of it was delivered when each of the last steps began.
    steps: VecDeque<u64>,
    /// Where messages began, and when they were handed over.
    marks: VecDeque<(u64, Duration)>,
    /// Bytes a second in the last rounds, the fastest.
    rate: f64,
    window: u64,
    /// When it was last asked whether it is stuck, and what it and all together had delivered by then.
    watched: (Duration, u64, u64),
    stuck: u32,
}

impl Flow {
    fn outstanding(&self) -> u64 {
        self.sent - self.delivered
    }

    /// A step has ended; the last round began at the oldest of `steps` and took so many seconds.
    fn handle_step(&mut self, steps: usize, seconds: f64) {
        self.steps.push_back(self.delivered);
        while self.steps.len() > steps {
            self.steps.pop_front();
        }
        let rate = self.steps.front().map_or(0.0, |before| (self.delivered - before) as f64 / seconds);
        self.rate = rate.max(self.rate * FADE);
    }

    /// Looks from time to time whether it is stuck: it, not the whole path. `all` have delivered so much.
    fn watch(&mut self, now: Duration, all: u64, look: Duration) {
        let (since, own_before, all_before) = self.watched;
        if self.outstanding() < STUCK_BYTES {
            self.stuck = 0;
        } else if now.saturating_sub(since) >= look {
            let moved = (self.delivered - own_before) as f64 / (now - since).as_secs_f64();
            let stuck = all > all_before && self.outstanding() as f64 > moved * STUCK.as_secs_f64();
            self.stuck = if stuck { self.stuck + 1 } else { 0 };
        } else {
            return;
        }
        self.watched = (now, self.delivered, all);
    }
}

impl Windows {
    /// No connection yet; all together will never have more than `budget` bytes under way.
    pub fn new(budget: u64) -> Self {
        Windows {
            flows: BTreeMap::new(),
            budget: budget as f64,
            rtt: None,
            steps: VecDeque::new(),
            step: Step::default(),
            delivered: 0,
            measured: Duration::ZERO,
            rates: VecDeque::new(),
            phase: Phase::Search { best: 0.0, since: Duration::ZERO },
            queued: None,
        }
    }

    /// A connection is there.
    pub fn opened(&mut self, connection: u32) {
        self.flows.entry(connection).or_default();
        self.share();
    }

    /// A connection is gone.
    pub fn closed(&mut self, connection: u32) {
        self.flows.remove(&connection);
        self.share();
    }

    /// So many bytes may be handed to this connection now.
    pub fn room(&mut self, connection: u32) -> usize {
        let piece = self.piece();
        let Some(flow) = self.flows.get(&connection) else { return piece };
        let room = flow.window.saturating_sub(flow.outstanding()) as usize;
        if room < piece {
            self.step.held_back = true;
            return 0;
        }
        room
    }

    /// The best length of a message at present: several fit into each window.
    pub fn piece(&self) -> usize {
        let share = self.window() / (8.0 * self.flows.len().max(1) as f64);
        let piece = share.max(self.rate() * PIECE_SECONDS).clamp(MIN_PIECE, MAX_PIECE) as usize;
        piece & !1023
    }

    /// When to look again at what was delivered.
    pub fn look_again(&self) -> Duration {
        (self.round_trip().unwrap_or_default() / 8).clamp(Duration::from_millis(1), Duration::from_millis(10))
    }

    /// Bytes were handed to a connection.
    pub fn handle_sent(&mut self, now: Duration, connection: u32, bytes: usize) {
        if self.flows.values().all(|flow| flow.outstanding() == 0) {
            self.begin_anew(now);
        }
        let Some(flow) = self.flows.get_mut(&connection) else { return };
        if flow.marks.back().is_none_or(|&(_, at)| now >= at + Duration::from_micros(500)) {
            flow.marks.push_back((flow.sent, now));
        }
        // Whatever the time was before that, nothing was to be delivered.
        flow.watch(now, self.delivered, Duration::MAX);
        flow.sent += bytes as u64;
    }

    /// Bytes that were handed to this connection so far.
    pub fn sent(&self, connection: u32) -> u64 {
        self.flows.get(&connection).map_or(0, |flow| flow.sent)
    }

    /// So many of the bytes handed to a connection have been delivered, at least.
    pub fn handle_delivered(&mut self, now: Duration, connection: u32, delivered: u64) {
        let Some(flow) = self.flows.get_mut(&connection) else { return };
        let delivered = flow.delivered.max(delivered.min(flow.sent));
        self.delivered += delivered - flow.delivered;
        flow.delivered = delivered;
        flow.watch(now, self.delivered, STUCK_LOOK.max(self.rtt.map_or(Duration::ZERO, |(rtt, _)| rtt * STUCK_ROUNDS)));
        let mut passed = None;
        while flow.marks.front().is_some_and(|&(start, _)| start < delivered) {
            passed = flow.marks.pop_front();
        }
        if let Some((_, at)) = passed {
            self.handle_rtt(now, now.saturating_sub(at));
        }
        let Some((rtt, _)) = self.rtt else { return };
        if now >= self.step.began + (rtt / STEPS).max(SHORTEST_STEP) {
            self.end_step(now);
        }
    }

    /// Whether this connection has lost so much at once that it will be busy with repairs for long: SCTP sends one or two packets again in a
    /// round trip. What it has under way is better sent anew on others.
    pub fn is_stuck(&self, connection: u32) -> bool {
        self.flows.get(&connection).is_some_and(|flow| flow.stuck >= STUCK_LOOKS)
    }

    /// Rate × round trip of the path, in bytes; 0 before anything is known.
    pub fn bandwidth_delay(&self) -> u64 {
        (self.rate() * self.round_trip().unwrap_or_default().as_secs_f64()) as u64
    }

    /// Bytes that were delivered, on all connections that there have been.
    pub fn delivered(&self) -> u64 {
        self.delivered
    }

    /// The shortest round trip, once one was seen.
    pub fn round_trip(&self) -> Option<Duration> {
        self.rtt.map(|(rtt, _)| rtt)
    }

    /// Whether a queue stood on the path lately: then it carries what it can, and not what losses leave of it.
    pub fn is_full(&self, now: Duration) -> bool {
        let Some((rtt, _)) = self.rtt else { return false };
        self.queued.is_some_and(|at| now.saturating_sub(at) < rtt * QUEUE_ROUNDS)
    }

    /// For traces: each connection's number, bytes under way, window, both in KiB, and its rate in MB/s.
    pub fn flows(&self) -> String {
        let kib = |bytes: u64| bytes / 1024;
        let flow = |(number, flow): (&u32, &Flow)| {
            format!("{number}: {} of {} at {:.1}", kib(flow.outstanding()), kib(flow.window), flow.rate / 1e6)
        };
        self.flows.iter().map(flow).collect::<Vec<_>>().join(", ")
    }

    fn handle_rtt(&mut self, now: Duration, sample: Duration) {
        let shorter = |known: Option<Duration>| Some(known.map_or(sample, |rtt| rtt.min(sample)));
        if self.rtt.is_none() {
            self.step.began = now.saturating_sub(sample);
        }
        let before = self.round_trip();
        if self.rtt.is_none_or(|(rtt, _)| sample <= rtt + rtt / 16) {
            self.rtt = shorter(before).map(|rtt| (rtt, now));
        }
        self.step.rtt = shorter(self.step.rtt);
        if let Phase::Drain { rtt, .. } = &mut self.phase {
            *rtt = shorter(*rtt);
        }
        // The window depends on it, and with the window the piece, of which each connection must have room for two.
        if self.round_trip() != before {
            self.share();
        }
    }

    /// Bytes a second that the path has shown to carry.
    fn rate(&self) -> f64 {
        self.rates.front().map_or(0.0, |&(_, rate)| rate)
    }

    /// Nothing was under way: the time that has passed says nothing about the path.
    fn begin_anew(&mut self, now: Duration) {
        self.steps.clear();
        self.flows.values_mut().for_each(|flow| flow.steps.clear());
        self.step = Step { began: now, delivered: self.delivered, rtt: None, held_back: false };
    }

    fn end_step(&mut self, now: Duration) {
        let Some((rtt, seen)) = self.rtt else { return };
        self.measured += now.saturating_sub(self.step.began);
        self.steps.push_back(self.step);
        while self.steps.len() > STEPS as usize {
            self.steps.pop_front();
        }
        let first = self.steps[0];
        // What arrived in less than a round trip comes in bursts.
        let seconds = (now - first.began).max(rtt).as_secs_f64();
        for flow in self.flows.values_mut() {
            flow.handle_step(STEPS as usize, seconds);
        }
        let rate = (self.delivered - first.delivered) as f64 / seconds;
        let held_back = self.steps.iter().any(|step| step.held_back);
        // A sender that has nothing to send says nothing about the path.
        if held_back || rate > self.rate() {
            while self.rates.back().is_some_and(|&(_, before)| before <= rate) {
                self.rates.pop_back();
            }
            self.rates.push_back((self.measured, rate));
            let counts = RATE_COUNTS.max(rtt * RATE_ROUNDS);
            while self.rates.front().is_some_and(|&(at, _)| at + counts < self.measured) {
                self.rates.pop_front();
            }
        }
        let shortest = self.steps.iter().filter_map(|step| step.rtt).min();
        let queue = shortest.is_none_or(|shortest| shortest > rtt + rtt / 8 + SHORTEST_QUEUE);
        let long = shortest.is_some_and(|shortest| shortest > rtt + rtt / 4 + SHORTEST_QUEUE * 2);
        if queue && shortest.is_some() {
            self.queued = Some(now);
        }
        self.phase = match self.phase {
            Phase::Search { .. } if long && self.rate() * rtt.as_secs_f64() > FIRST => Phase::Cruise { queue: true },
            Phase::Search { best, .. } if rate >= best * GROWTH || !held_back => Phase::Search { best: best.max(rate), since: now },
            Phase::Search { since, .. } if now < since + rtt * ROUNDS => self.phase,
            Phase::Drain { until, .. } if now < until => self.phase,
            Phase::Drain { rtt: found, .. } => {
                self.rtt = Some((found.unwrap_or(rtt), now));
                Phase::Cruise { queue: false }
            }
            _ if now >= seen + RTT_COUNTS => Phase::Drain { until: now + rtt * 2 + Duration::from_millis(20), rtt: None },
            _ => Phase::Cruise { queue },
        };
        self.step = Step { began: now, delivered: self.delivered, rtt: None, held_back: false };
        self.share();
    }

    /// What all connections together may have under way.
    fn window(&self) -> f64 {
        let Some((rtt, _)) = self.rtt else { return FIRST };
        let (gain, least) = match self.phase {
            Phase::Search { .. } => (SEARCH, FIRST),
            Phase::Cruise { queue: false } => (RISE, LEAST),
            Phase::Cruise { queue: true } => (CRUISE, LEAST),
            Phase::Drain { .. } => (DRAIN, LEAST),
        };
        (self.rate() * gain * rtt.as_secs_f64() + self.slack()).clamp(least, self.budget)
    }

    /// What may be under way in addition, in bytes.
    fn slack(&self) -> f64 {
        let rate = self.rate();
        let rtt = self.round_trip().unwrap_or_default().as_secs_f64();
        (rate * (SHORT_SLACK - 4.0 * rtt)).min(SHORT_SLACK_BYTES).max(rate * SLACK)
    }

    fn share(&mut self) {
        let (window, piece) = (self.window(), self.piece() as f64);
        let Some((rtt, _)) = self.rtt else {
            let each = (window / self.flows.len().max(1) as f64).max(2.0 * piece) as u64;
            self.flows.values_mut().for_each(|flow| flow.window = each);
            return;
        };
        let span = 2.0 * rtt.as_secs_f64() + self.slack() / self.rate().max(1.0);
        let least = if self.flows.len() == 1 { window } else { 2.0 * piece };
        let demand = |flow: &Flow| (flow.rate * span).max(least);
        let wanted: f64 = self.flows.values().map(demand).sum();
        let part = (window / wanted.max(1.0)).min(1.0);
        for flow in self.flows.values_mut() {
            flow.window = (demand(flow) * part).max(2.0 * piece) as u64;
        }
    }
}

/// For logs: what is known of the path.
impl fmt::Display for Windows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rtt = self.round_trip().unwrap_or_default();
        write!(
            f,
            "{:.1} MB/s, {:.1} ms, window {:.0} KiB, {:?}",
            self.rate() / 1e6,
            rtt.as_secs_f64() * 1e3,
            self.window() / 1024.0,
            self.phase
        )
    }
}

#[cfg(test)]
mod tests;
