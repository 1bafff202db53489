//! Every message's fate: when it was due, when it was written, when it arrived, or that its sender was told that it does not.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

use serde_json::{Value, json};

/// No time yet.
const NEVER: u32 = u32::MAX;

/// One message.
struct Entry {
    /// Microseconds from the ledger's beginning to when it should leave.
    due: AtomicU64,
    /// Microseconds from then to when its sender's task wrote it.
    written: AtomicU32,
    /// Microseconds from when it was due to when the receiver had it.
    arrived: AtomicU32,
    sender: AtomicU32,
}

/// What one peer sent and what became of it.
#[derive(Default)]
struct Account {
    sent: AtomicU64,
    arrived: AtomicU64,
    refused: AtomicU64,
}

/// All messages of a run, numbered.
pub(crate) struct Ledger {
    began: Instant,
    entries: Vec<Entry>,
    accounts: Vec<Account>,
    /// Messages that arrived a second time.
    twice: AtomicU64,
    /// Messages whose content was not what had been sent.
    broken: AtomicU64,
    /// Messages whose sender did not take them: the generator was too slow, or the sender's socket had gone.
    unsent: AtomicU64,
    /// Peers whose socket ended, and why.
    dropped: Mutex<Vec<String>>,
}

impl Ledger {
    pub(crate) fn new(messages: usize, peers: usize) -> Self {
        let entry =
            || Entry { due: AtomicU64::new(0), written: AtomicU32::new(NEVER), arrived: AtomicU32::new(NEVER), sender: AtomicU32::new(0) };
        Ledger {
            began: Instant::now(),
            entries: std::iter::repeat_with(entry).take(messages).collect(),
            accounts: std::iter::repeat_with(Account::default).take(peers).collect(),
            twice: AtomicU64::new(0),
            broken: AtomicU64::new(0),
            unsent: AtomicU64::new(0),
            dropped: Mutex::default(),
        }
    }

    /// Microseconds since the beginning.
    pub(crate) fn now(&self) -> u64 {
        self.began.elapsed().as_micros() as u64
    }

    fn since_due(&self, entry: &Entry) -> u32 {
        self.now().saturating_sub(entry.due.load(Relaxed)).min(u64::from(NEVER - 1)) as u32
    }

    pub(crate) fn due(&self, number: usize, at: u64, sender: usize) {
        self.entries[number].due.store(at, Relaxed);
        self.entries[number].sender.store(sender as u32, Relaxed);
    }

    pub(crate) fn unsent(&self) {
        self.unsent.fetch_add(1, Relaxed);
    }

    pub(crate) fn written(&self, number: usize) {
        let entry = &self.entries[number];
        entry.written.store(self.since_due(entry), Relaxed);
        self.accounts[entry.sender.load(Relaxed) as usize].sent.fetch_add(1, Relaxed);
    }

    pub(crate) fn arrived(&self, number: usize) {
        let Some(entry) = self.entries.get(number) else { return self.broken() };
        if entry.arrived.swap(self.since_due(entry), Relaxed) == NEVER {
            self.accounts[entry.sender.load(Relaxed) as usize].arrived.fetch_add(1, Relaxed);
        } else {
            self.twice.fetch_add(1, Relaxed);
        }
    }

    pub(crate) fn broken(&self) {
        self.broken.fetch_add(1, Relaxed);
    }

    /// The server told this peer that something it sent was not delivered.
    pub(crate) fn refused(&self, peer: usize) {
        self.accounts[peer].refused.fetch_add(1, Relaxed);
    }

    pub(crate) fn dropped(&self, why: String) {
        self.dropped.lock().unwrap_or_else(PoisonError::into_inner).push(why);
    }

    /// Peers lost so far.
    pub(crate) fn drops(&self) -> Vec<String> {
        self.dropped.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn total(&self, of: impl Fn(&Account) -> &AtomicU64) -> u64 {
        self.accounts.iter().map(|account| of(account).load(Relaxed)).sum()
    }

    /// Whether each message that was written has arrived or was refused.
    pub(crate) fn is_settled(&self) -> bool {
        self.total(|a| &a.sent) == self.total(|a| &a.arrived) + self.total(|a| &a.refused)
    }

    /// Senders whose messages are not all accounted for: arrived, or refused to them.
    pub(crate) fn unaccounted(&self) -> usize {
        let balanced = |a: &&Account| a.sent.load(Relaxed) == a.arrived.load(Relaxed) + a.refused.load(Relaxed);
        self.accounts.iter().filter(|account| !balanced(account)).count()
    }

    /// What was counted so far, to be subtracted from what is counted later.
    pub(crate) fn counts(&self) -> Counts {
        Counts {
            sent: self.total(|a| &a.sent),
            arrived: self.total(|a| &a.arrived),
            refused: self.total(|a| &a.refused),
            twice: self.twice.load(Relaxed),
            broken: self.broken.load(Relaxed),
            unsent: self.unsent.load(Relaxed),
            dropped: self.drops().len() as u64,
        }
    }

    /// The latencies of these messages.
    pub(crate) fn latencies(&self, numbers: std::ops::Range<usize>) -> Value {
        let of = |time: fn(&Entry) -> &AtomicU32| {
            let times = self.entries[numbers.clone()].iter().map(|entry| time(entry).load(Relaxed)).filter(|time| *time != NEVER);
            times.map(f64::from).collect()
        };
        json!({"relay_us": spread(of(|entry| &entry.arrived)), "generator_late_us": spread(of(|entry| &entry.written))})
    }
}

/// Counters at one moment.
pub(crate) struct Counts {
    sent: u64,
    arrived: u64,
    refused: u64,
    twice: u64,
    broken: u64,
    unsent: u64,
    dropped: u64,
}

impl Counts {
    pub(crate) fn since(&self, before: &Counts) -> Value {
        let (sent, arrived, refused) = (self.sent - before.sent, self.arrived - before.arrived, self.refused - before.refused);
        json!({
            "sent": sent, "arrived": arrived, "refused": refused, "lost": sent as i64 - (arrived + refused) as i64,
            "twice": self.twice - before.twice, "broken": self.broken - before.broken, "unsent": self.unsent - before.unsent,
            "dropped": self.dropped - before.dropped,
        })
    }
}

/// Median, percentiles and maximum.
pub(crate) fn spread(mut values: Vec<f64>) -> Value {
    values.sort_by(f64::total_cmp);
    let at = |share: f64| values.get(((values.len() as f64 * share) as usize).min(values.len().saturating_sub(1))).copied();
    json!({"count": values.len(), "p50": at(0.5), "p90": at(0.9), "p99": at(0.99), "p999": at(0.999), "max": values.last()})
}
