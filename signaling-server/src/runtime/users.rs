//! Anonymous users in a user pool: made at sign-in, deleted when their room has ended.
//!
//! ```text
//!   sign-in ──► user ──room deleted or swept──► queue ──at a steady pace──► deleted
//!                 │                               │ full, or the server goes down
//!                 └── never in a room ────────────┴──► the sweeper: old enough, made by us ──► deleted
//! ```
//! * Deleting is slower than anything else in a pool (25 a second for a whole account), so nobody waits for it, and there is one [`Pace`]
//!   for the queue and the sweeper.
//! * The queue is bounded and lives in memory. What is lost of it the sweeper finds, of any server of the same pool: it takes users by their
//!   names ([`is_ours`]) when they are older than any token, so that nobody in use is taken. Several may sweep at once.
//! * A deleted user's token is good until it expires. What it opens are rooms, and those have ended.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::future::BoxFuture;
use shared::domain::{
    backoff::Backoff,
    error::{Code, Failure},
    id::Secret,
    signal::SignIn,
};
use tokio::{
    sync::{Mutex, mpsc},
    time::{Instant, Interval, MissedTickBehavior, interval, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    auth::Auth,
    metrics::Metrics,
    proof::{random_name, random_number},
};
use crate::domain::grant::Room;

/// What the names of our users begin with; 32 hexadecimal digits follow.
pub const PREFIX: &str = "webrtc-";
/// Users that wait for their deletion, at most: about a megabyte.
const QUEUE: usize = 10_000;
/// Users that the sweeper takes at a time.
const BATCH: usize = 1000;
/// The longest that the queue waits after a pool did not answer.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Whether a user of this name was made by this program.
pub fn is_ours(username: &str) -> bool {
    let digits = username.strip_prefix(PREFIX).unwrap_or_default();
    digits.len() == 32 && digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// A user as the pool lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// The name.
    pub username: String,
    /// Unix seconds.
    pub made_at: u64,
}

/// Some users of a pool, and where the next ones begin.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    /// Those.
    pub users: Vec<Listed>,
    /// What [`Pool::list`] takes for the next page.
    pub next: Option<String>,
}

/// What a pool's method returns. [`Code::Unavailable`] means that trying again later may work, anything else that it will not.
pub type Answer<'a, T> = BoxFuture<'a, Result<T, Failure>>;

/// How far a sign-in has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The pool is asked for a user: there may be one from now on.
    Asked,
    /// There is one.
    Made,
}

/// A user pool.
pub trait Pool: Send + Sync {
    /// Makes this user and signs in as it; the token is an id token. `step` is told each step as it is taken.
    fn sign_in<'a>(&'a self, username: &'a str, step: &'a (dyn Fn(Step) + Send + Sync)) -> Answer<'a, Secret<String>>;

    /// Deletes this user; false when there was none.
    fn delete<'a>(&'a self, username: &'a str) -> Answer<'a, bool>;

    /// The users whose names begin with [`PREFIX`].
    fn list(&self, page: Option<String>) -> Answer<'_, Page>;

    /// Whether nobody is signed in now, since it does not answer.
    fn is_away(&self) -> bool;
}

/// How the deletion of users is done.
#[derive(Debug, Clone)]
pub struct Deletion {
    /// Calls in a second, of queue and sweeper together.
    pub per_second: u32,
    /// How old a user must be for the sweeper to take it, in seconds.
    pub sweep_after: u64,
    /// Between two sweeps.
    pub sweep_every: Duration,
    /// The longest first wait after the pool did not answer; later ones are longer.
    pub first_wait: Duration,
}

impl Default for Deletion {
    fn default() -> Self {
        Deletion { per_second: 10, sweep_after: 25 * 3600, sweep_every: Duration::from_secs(3600), first_wait: Duration::from_secs(1) }
    }
}

/// The users of one pool.
pub struct Users {
    pool: Arc<dyn Pool>,
    queue: mpsc::Sender<String>,
    waiting: Mutex<Option<mpsc::Receiver<String>>>,
    pace: Pace,
    deletion: Deletion,
    metrics: Arc<Metrics>,
}

/// Lets callers through one by one, with equal time between.
struct Pace(Mutex<Interval>);

impl Pace {
    fn new(per_second: u32) -> Self {
        let mut interval = interval(Duration::from_secs(1) / per_second.max(1));
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Pace(Mutex::new(interval))
    }

    async fn step(&self) {
        self.0.lock().await.tick().await;
    }
}

/// A user that is deleted, if there is one, unless it is kept: also when whoever signs in goes away in the middle.
struct Trial<'u> {
    users: &'u Users,
    username: String,
    begun: AtomicBool,
}

impl Trial<'_> {
    fn note(&self, step: Step) {
        match step {
            Step::Asked => self.begun.store(true, Ordering::Relaxed),
            Step::Made => self.users.metrics.users_made.increment(1),
        }
    }

    fn keep(self) {
        self.begun.store(false, Ordering::Relaxed);
    }
}

impl Drop for Trial<'_> {
    fn drop(&mut self) {
        if self.begun.load(Ordering::Relaxed) {
            self.users.forget(std::mem::take(&mut self.username));
        }
    }
}

impl Users {
    /// Of this pool.
    pub fn new(pool: Arc<dyn Pool>, deletion: Deletion, metrics: Arc<Metrics>) -> Self {
        let (queue, waiting) = mpsc::channel(QUEUE);
        Users { pool, queue, waiting: Mutex::new(Some(waiting)), pace: Pace::new(deletion.per_second), deletion, metrics }
    }

    /// A new anonymous user; its token is checked as anybody's, which also tells when it expires.
    ///
    /// # Errors
    /// [`Code::Unavailable`] when the pool does not make one; [`Code::Internal`] when it does and the token is not accepted.
    pub async fn sign_in(&self, auth: &Auth, now: u64) -> Result<SignIn, Failure> {
        let username = format!("{PREFIX}{}", random_name()?);
        let trial = Trial { users: self, username: username.clone(), begun: AtomicBool::new(false) };
        let id_token = self.pool.sign_in(&username, &|step| trial.note(step)).await?;
        let verified = auth.verify(id_token.expose(), now).await.map_err(|failure| match failure.code {
            Code::Unauthorized => {
                tracing::error!("the user pool's own token is not accepted; is the issuer right (--cognito-issuer), and are the clocks?");
                Failure::new(Code::Internal, "signing in does not work: the server's log says why")
            }
            _ => failure,
        })?;
        if verified.username != username {
            return Err(Failure::new(Code::Internal, "the user pool's token is for somebody else"));
        }
        trial.keep();
        Ok(SignIn { id_token, username, expires_in: verified.expires_at.saturating_sub(now) })
    }

    /// Whether nobody is signed in now, since the pool does not answer.
    pub fn are_away(&self) -> bool {
        self.pool.is_away()
    }

    /// Has the users of rooms that have ended deleted by and by.
    pub fn forget_those_of(&self, rooms: &[Room]) {
        let names: BTreeSet<&str> = rooms.iter().flat_map(Room::subjects).collect();
        for name in names.into_iter().filter(|name| is_ours(name)) {
            self.forget(name.to_owned());
        }
    }

    /// Has a user deleted by and by.
    fn forget(&self, username: String) {
        // Counted before, since it may be done the moment it is in the queue.
        self.metrics.users_waiting.increment(1.0);
        if self.queue.try_send(username).is_err() {
            self.left();
        }
    }

    /// Deletes what waits until `stop`, and then for `goodbye` at most what still waits.
    pub async fn delete_queued(&self, stop: CancellationToken, goodbye: Duration) {
        let Some(mut waiting) = self.waiting.lock().await.take() else { return };
        let mut backoff = Backoff::new(self.deletion.first_wait, LONGEST_WAIT);
        while let Some(Some(username)) = stop.run_until_cancelled(waiting.recv()).await {
            self.delete_stubbornly(&username, &mut backoff, &stop).await;
        }
        waiting.close();
        let rest = async {
            while let Some(username) = waiting.recv().await {
                self.delete_one(&username).await;
            }
        };
        if timeout(goodbye, rest).await.is_err() {
            tracing::info!(users = waiting.len(), "users are left to the sweeper");
        }
    }

    /// Tries until the pool answers. What comes meanwhile waits in the queue, and what finds it full is the sweeper's.
    async fn delete_stubbornly(&self, username: &str, backoff: &mut Backoff, stop: &CancellationToken) {
        while !self.delete_one(username).await {
            let wait = backoff.next_wait(random_number());
            if stop.run_until_cancelled(sleep(wait)).await.is_none() {
                self.left();
                return;
            }
        }
        backoff.reset();
    }

    /// Whether it is settled.
    async fn delete_one(&self, username: &str) -> bool {
        self.pace.step().await;
        match self.pool.delete(username).await {
            Ok(was_there) => {
                self.metrics.users_deleted.increment(u64::from(was_there));
                self.metrics.users_waiting.decrement(1.0);
                true
            }
            Err(failure) if failure.code == Code::Unavailable => {
                tracing::info!(%failure, "a user could not be deleted; trying again");
                false
            }
            Err(failure) => {
                tracing::warn!(%failure, "a user cannot be deleted");
                self.left();
                true
            }
        }
    }

    /// One that waited is the sweeper's now.
    fn left(&self) {
        self.metrics.users_left.increment(1);
        self.metrics.users_waiting.decrement(1.0);
    }

    /// Sweeps from time to time until `stop`. `now` tells Unix seconds.
    pub async fn keep_swept(&self, now: impl Fn() -> u64, stop: CancellationToken) {
        let every = self.deletion.sweep_every;
        // Servers that were started together do not sweep together.
        let first = every.mul_f64(random_number() as f64 / u64::MAX as f64);
        let mut next = Instant::now() + first;
        while stop.run_until_cancelled(tokio::time::sleep_until(next)).await.is_some() {
            match stop.run_until_cancelled(self.sweep(now())).await {
                None => return,
                Some(Ok(0)) => {}
                Some(Ok(swept)) => tracing::info!(swept, "users that nobody uses any more were deleted"),
                Some(Err(failure)) => tracing::warn!(%failure, "old users could not be deleted; trying again later"),
            }
            next = Instant::now() + every;
        }
    }

    /// Deletes our users that are older than any token; says how many it deleted itself.
    ///
    /// # Errors
    /// What the pool says. What was deleted until then is deleted.
    pub async fn sweep(&self, now: u64) -> Result<usize, Failure> {
        let made_before = now.saturating_sub(self.deletion.sweep_after);
        let mut swept = 0;
        loop {
            // The whole list is read before anything is deleted: where a page begins may depend on what is there.
            let old = self.made_before(made_before).await?;
            let mut settled = 0;
            for username in &old {
                self.pace.step().await;
                match self.pool.delete(username).await {
                    Ok(was_there) => {
                        settled += 1;
                        swept += usize::from(was_there);
                        self.metrics.users_swept.increment(u64::from(was_there));
                    }
                    Err(failure) if failure.code == Code::Unavailable => return Err(failure),
                    // It stays, and does not keep the others.
                    Err(failure) => tracing::warn!(%failure, "a user cannot be deleted"),
                }
            }
            if settled < BATCH {
                return Ok(swept);
            }
        }
    }

    /// A batch of our users that were made before.
    async fn made_before(&self, before: u64) -> Result<Vec<String>, Failure> {
        let (mut old, mut page) = (Vec::new(), None);
        loop {
            self.pace.step().await;
            let Page { users, next } = self.pool.list(page).await?;
            let found = users.into_iter().filter(|user| user.made_at < before && is_ours(&user.username));
            old.extend(found.map(|user| user.username));
            page = next;
            if page.is_none() || old.len() >= BATCH {
                old.truncate(BATCH);
                return Ok(old);
            }
        }
    }
}

#[cfg(test)]
mod tests;
