use super::*;
use std::{
    collections::BTreeMap,
    sync::{Mutex as StdMutex, MutexGuard, PoisonError},
};

use crate::domain::grant::{Change, Identity, TokenHash};

const NOW: u64 = 1_800_000_000;

/// A pool in memory, whose troubles the test chooses.
#[derive(Default)]
struct Fake {
    state: StdMutex<State>,
}

#[derive(Default)]
struct State {
    users: BTreeMap<String, u64>,
    /// When each call came.
    calls: Vec<Instant>,
    /// What the next calls for a deletion answer.
    troubles: Vec<Code>,
    /// What the sign-in answers after it has made the user.
    sign_in: Option<Failure>,
    page: usize,
}

impl Fake {
    fn with(users: impl IntoIterator<Item = (String, u64)>) -> Arc<Self> {
        let state = State { users: users.into_iter().collect(), page: 7, ..State::default() };
        Arc::new(Fake { state: StdMutex::new(state) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn names(&self) -> Vec<String> {
        self.state().users.keys().cloned().collect()
    }
}

impl Pool for Fake {
    fn sign_in<'a>(&'a self, username: &'a str, step: &'a (dyn Fn(Step) + Send + Sync)) -> Answer<'a, Secret<String>> {
        let Some(failure) = self.state().sign_in.clone() else { return Box::pin(std::future::pending()) };
        if failure.code != Code::RateLimited {
            step(Step::Asked);
            self.state().users.insert(username.to_owned(), NOW);
            step(Step::Made);
        }
        Box::pin(std::future::ready(Err(failure)))
    }

    fn delete<'a>(&'a self, username: &'a str) -> Answer<'a, bool> {
        let mut state = self.state();
        state.calls.push(Instant::now());
        let answer = match state.troubles.pop() {
            Some(code) => Err(Failure::new(code, "trouble")),
            None => Ok(state.users.remove(username).is_some()),
        };
        Box::pin(std::future::ready(answer))
    }

    /// Pages begin by position, so that deleting between two of them would skip users.
    fn list(&self, page: Option<String>) -> Answer<'_, Page> {
        let state = self.state();
        let from = page.map_or(0, |page| page.parse().unwrap());
        let listed = |(name, made_at): (&String, &u64)| Listed { username: name.clone(), made_at: *made_at };
        let users = state.users.iter().skip(from).take(state.page).map(listed).collect();
        let next = (from + state.page < state.users.len()).then(|| (from + state.page).to_string());
        Box::pin(std::future::ready(Ok(Page { users, next })))
    }

    fn is_away(&self) -> bool {
        false
    }
}

fn name(number: usize) -> String {
    format!("{PREFIX}{number:032x}")
}

/// So fast that nobody waits.
fn users(pool: &Arc<Fake>) -> Arc<Users> {
    users_at(pool, 100_000)
}

fn users_at(pool: &Arc<Fake>, per_second: u32) -> Arc<Users> {
    let first_wait = Duration::from_millis(5);
    let deletion = Deletion { per_second, sweep_after: 3600, first_wait, ..Deletion::default() };
    Arc::new(Users::new(pool.clone(), deletion, Arc::new(Metrics::new())))
}

fn room(owner: &str, peers: &[&str]) -> Room {
    let who = |subject: &str| Identity { subject: subject.to_owned(), key: None };
    let mut room = Room::new("r".parse().unwrap(), who(owner), TokenHash::of("t"), NOW, 60);
    for (n, peer) in peers.iter().enumerate() {
        room.apply(NOW, &who(peer), &Change::Claim { peer: format!("p{n}").parse().unwrap() }).unwrap();
    }
    room
}

/// The values of our metrics: waiting, deleted, left, swept.
fn counts(users: &Users) -> [u64; 4] {
    let text = users.metrics.render();
    ["waiting", "deleted_total", "left_total", "swept_total"].map(|name| {
        let start = format!("webrtc_server_users_{name} ");
        text.lines().find_map(|line| line.strip_prefix(&start)).unwrap().parse().unwrap()
    })
}

/// Deletes what is queued now, and ends.
async fn work_off(users: &Arc<Users>, goodbye: Duration) {
    let stop = CancellationToken::new();
    stop.cancel();
    users.delete_queued(stop, goodbye).await;
}

#[test]
fn our_users_are_known_by_their_names() {
    assert!(is_ours(&name(0)) && is_ours(&name(usize::MAX)));
    for name in ["", "anna", "webrtc-", "webrtc-anna", &name(1)[1..], &format!("{}0", name(1)), &name(10).to_uppercase()] {
        assert!(!is_ours(name), "{name}");
    }
}

#[tokio::test]
async fn a_room_that_has_ended_takes_its_users_with_it_and_nobody_else() {
    let pool = Fake::with((0..4).map(|n| (name(n), NOW)).chain([("anna".to_owned(), NOW)]));
    let users = users(&pool);
    users.forget_those_of(&[room(&name(0), &[&name(1), &name(0), "anna"])]);
    assert_eq!(counts(&users), [2, 0, 0, 0]);
    work_off(&users, Duration::from_secs(60)).await;
    assert_eq!(pool.names(), ["anna", &name(2), &name(3)]);
    assert_eq!(counts(&users), [0, 2, 0, 0]);
}

#[tokio::test]
async fn deletions_keep_their_pace() {
    let pool = Fake::with((0..10).map(|n| (name(n), NOW)));
    let users = users_at(&pool, 50);
    (0..10).for_each(|n| users.forget(name(n)));
    work_off(&users, Duration::from_secs(60)).await;
    let calls = pool.state().calls.clone();
    assert_eq!(calls.len(), 10);
    assert!(calls[9] - calls[0] >= Duration::from_millis(9 * 20 - 5), "fifty a second, and no more to catch up");
}

#[tokio::test]
async fn a_pool_that_does_not_answer_is_waited_for_and_one_that_refuses_is_not() {
    let pool = Fake::with((0..2).map(|n| (name(n), NOW)));
    pool.state().troubles = vec![Code::Internal, Code::Unavailable, Code::Unavailable];
    let users = users(&pool);
    (0..2).for_each(|n| users.forget(name(n)));
    let (stop, working) = (CancellationToken::new(), users.clone());
    let stopped = stop.clone();
    let task = tokio::spawn(async move { working.delete_queued(stopped, Duration::ZERO).await });
    let mut tick = interval(Duration::from_millis(2));
    while counts(&users)[0] > 0 {
        tick.tick().await;
    }
    stop.cancel();
    task.await.unwrap();
    assert_eq!(pool.names(), [name(0)], "the first was refused for good, the second deleted");
    assert_eq!(counts(&users), [0, 1, 1, 0]);
}

#[tokio::test]
async fn a_full_queue_leaves_the_rest_to_the_sweeper() {
    let users = users(&Fake::with([]));
    (0..QUEUE + 3).for_each(|n| users.forget(name(n)));
    assert_eq!(counts(&users), [QUEUE as u64, 0, 3, 0]);
}

#[tokio::test]
async fn at_the_end_what_waits_is_deleted_as_far_as_there_is_time() {
    let pool = Fake::with((0..100).map(|n| (name(n), NOW)));
    let users = users_at(&pool, 50);
    (0..100).for_each(|n| users.forget(name(n)));
    let began = Instant::now();
    work_off(&users, Duration::from_millis(300)).await;
    assert!(began.elapsed() < Duration::from_secs(2), "a hundred would take two seconds");
    assert!((1..=20).contains(&(100 - pool.names().len())), "{} of 100 are left", pool.names().len());
}

#[tokio::test]
async fn a_sweep_takes_our_old_users_and_leaves_the_rest() {
    let old = NOW - 3601;
    let ours = (0..40).map(|n| (name(n), if n % 2 == 0 { old } else { NOW - 3600 }));
    let pool = Fake::with(ours.chain([("webrtc-anna".to_owned(), old), ("zoe".to_owned(), old)]));
    let users = users(&pool);
    assert_eq!(users.sweep(NOW).await.unwrap(), 20);
    assert_eq!(pool.names().len(), 22);
    assert_eq!(users.sweep(NOW).await.unwrap(), 0);
    assert_eq!(counts(&users), [0, 0, 0, 20]);
}

#[tokio::test]
async fn a_sweep_takes_more_than_fits_into_one_batch_and_outlasts_a_user_that_cannot_be_deleted() {
    let pool = Fake::with((0..BATCH * 2 + 5).map(|n| (name(n), 0)));
    pool.state().page = 60;
    let users = users(&pool);
    assert_eq!(users.sweep(NOW).await.unwrap(), BATCH * 2 + 5);
    let pool = Fake::with((0..3).map(|n| (name(n), 0)));
    pool.state().troubles = vec![Code::Internal];
    assert_eq!(self::users(&pool).sweep(NOW).await.unwrap(), 2);
}

#[tokio::test]
async fn several_servers_sweep_the_same_pool_without_harm() {
    let pool = Fake::with((0..30).map(|n| (name(n), 0)));
    let (one, other) = (users(&pool), users(&pool));
    let (a, b) = tokio::join!(one.sweep(NOW), other.sweep(NOW));
    assert_eq!(a.unwrap() + b.unwrap(), 30);
    assert_eq!(pool.names().len(), 0);
}

#[tokio::test]
async fn a_sign_in_that_fails_or_is_given_up_leaves_no_user() {
    let pool = Fake::with([]);
    let users = users(&pool);
    let auth = Auth::local(&crate::runtime::key::KeyPair::ephemeral().unwrap(), 60).unwrap();
    // Nobody asked the pool: there is nothing to delete.
    pool.state().sign_in = Some(Failure::new(Code::RateLimited, ""));
    users.sign_in(&auth, NOW).await.unwrap_err();
    assert_eq!(counts(&users)[0], 0);
    pool.state().sign_in = Some(Failure::new(Code::Unavailable, ""));
    users.sign_in(&auth, NOW).await.unwrap_err();
    assert_eq!((counts(&users)[0], pool.names().len()), (1, 1));
    assert!(users.metrics.render().contains("webrtc_server_users_made_total 1"));
    work_off(&users, Duration::from_secs(1)).await;
    assert_eq!(pool.names().len(), 0);
}
