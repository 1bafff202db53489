//! When a worker leaves by itself: after one job, or when nobody has needed it for a while.
//!
//! ```text
//!   waiting ──submitted──► the job ──ended──► its results wait ──fetched, and everybody gone──► leave, as the job ended
//!      │                                            └──nobody came for them in time───────────────┘
//!      └──nobody here and nothing to do for the idle time──► leave
//! ```

use core::time::Duration;

use shared::domain::job::Outcome;

/// What a worker was told about how long to stay; nothing: until it is ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stay {
    /// For one job, whose results wait so long for somebody to fetch them while nobody is here.
    pub one_job: Option<Duration>,
    /// As long as it is not idle for this time.
    pub idle: Option<Duration>,
}

impl Stay {
    /// Whether it leaves by itself at all.
    pub fn is_limited(&self) -> bool {
        *self != Stay::default()
    }
}

/// What there is to see at a moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Scene {
    /// Clients that are connected, and those that broke off without a goodbye and are still expected back.
    pub clients: usize,
    /// Whether a job runs or waits for its turn.
    pub busy: bool,
    /// How the one job ended, once it has.
    pub over: Option<Over>,
}

/// The one job's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Over {
    /// How it ended.
    pub outcome: Outcome,
    /// Whether there are results that nobody has fetched.
    pub unfetched: bool,
}

/// Why a worker leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leave {
    /// Its one job has ended like this.
    Done(Outcome),
    /// Nobody has needed it.
    Idle,
}

/// Looks on, and says when to leave.
#[derive(Debug)]
pub struct Departure {
    stay: Stay,
    /// Since when nobody has been here.
    alone: Option<Duration>,
    /// Since when there has been nothing to do, either.
    idle: Option<Duration>,
}

impl Departure {
    /// For a worker that stays like this.
    pub fn new(stay: Stay) -> Self {
        Departure { stay, alone: None, idle: None }
    }

    /// What is to be seen now; times count from any moment on.
    pub fn look(&mut self, now: Duration, scene: Scene) -> Option<Leave> {
        let alone = self.stay.one_job.zip(since(&mut self.alone, now, scene.clients == 0));
        let idle = self.stay.idle.zip(since(&mut self.idle, now, scene.clients == 0 && !scene.busy));
        match scene.over {
            Some(over) => alone.filter(|(patience, alone)| !over.unfetched || alone >= patience).map(|_| Leave::Done(over.outcome)),
            None => idle.filter(|(patience, idle)| idle >= patience).map(|_| Leave::Idle),
        }
    }
}

/// For how long it has been so.
fn since(begin: &mut Option<Duration>, now: Duration, is_so: bool) -> Option<Duration> {
    if !is_so {
        *begin = None;
        return None;
    }
    Some(now.saturating_sub(*begin.get_or_insert(now)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: Scene = Scene { clients: 1, busy: false, over: None };
    const BUSY: Scene = Scene { clients: 0, busy: true, over: None };
    const NOBODY: Scene = Scene { clients: 0, busy: false, over: None };

    fn over(clients: usize, unfetched: bool) -> Scene {
        Scene { clients, busy: false, over: Some(Over { outcome: Outcome::Failed, unfetched }) }
    }

    /// What it says at each of these seconds.
    fn said(stay: Stay, scenes: &[(u64, Scene)]) -> Vec<Option<Leave>> {
        let mut departure = Departure::new(stay);
        scenes.iter().map(|(second, scene)| departure.look(Duration::from_secs(*second), *scene)).collect()
    }

    #[test]
    fn an_idle_worker_leaves_after_its_time_and_any_use_begins_it_anew() {
        let stay = Stay { idle: Some(Duration::from_secs(10)), one_job: None };
        let idle = Some(Leave::Idle);
        assert_eq!(said(stay, &[(5, NOBODY), (14, NOBODY), (15, NOBODY)]), [None, None, idle]);
        assert_eq!(said(stay, &[(0, NOBODY), (9, HERE), (12, NOBODY), (21, NOBODY), (22, NOBODY)]), [None, None, None, None, idle]);
        assert_eq!(said(stay, &[(0, BUSY), (100, BUSY), (101, NOBODY), (111, NOBODY)]), [None, None, None, idle]);
        assert_eq!(said(Stay::default(), &[(0, NOBODY), (1_000_000, NOBODY)]), [None, None]);
    }

    #[test]
    fn one_job_is_over_when_its_results_are_fetched_and_everybody_is_gone() {
        let stay = Stay { one_job: Some(Duration::from_secs(60)), idle: None };
        let done = Some(Leave::Done(Outcome::Failed));
        assert_eq!(said(stay, &[(0, NOBODY), (1000, NOBODY), (1001, BUSY)]), [None, None, None]);
        assert_eq!(said(stay, &[(0, over(1, true)), (500, over(1, false)), (501, over(0, false))]), [None, None, done]);
        assert_eq!(said(stay, &[(0, over(0, false))]), [done], "there is nothing to fetch");
    }

    #[test]
    fn results_that_nobody_fetches_wait_for_a_while_after_the_last_client() {
        let stay = Stay { one_job: Some(Duration::from_secs(60)), idle: Some(Duration::from_secs(5)) };
        let done = Some(Leave::Done(Outcome::Failed));
        let scenes =
            [(0, over(0, true)), (59, over(0, true)), (60, over(1, true)), (70, over(0, true)), (129, over(0, true)), (130, over(0, true))];
        assert_eq!(said(stay, &scenes), [None, None, None, None, None, done], "the idle time does not cut it short");
        assert_eq!(said(stay, &[(0, NOBODY), (5, NOBODY)]), [None, Some(Leave::Idle)]);
    }
}
