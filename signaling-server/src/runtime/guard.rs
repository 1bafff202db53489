//! Keeps a service that is away from holding us up: a bound on calls at once, and a circuit breaker. Who is not let through is told
//! so at once (`UNAVAILABLE`, over HTTP a 503 with `Retry-After`) and waits for nothing.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use shared::domain::error::{Code, Failure};
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::domain::breaker::{Admission, Breaker, Turn};

/// The guard of one service.
pub struct Guard {
    service: &'static str,
    permits: Semaphore,
    breaker: Mutex<Breaker>,
    /// What the breaker's time is counted from.
    start: Instant,
}

/// One call that was let through. Dropped without a report (the caller went away) it says nothing about the service.
#[must_use = "report how the call ended"]
pub struct Pass<'g> {
    guard: &'g Guard,
    /// None once it was reported.
    admission: Option<Admission>,
    _permit: SemaphorePermit<'g>,
}

impl Guard {
    /// Lets `at_once` calls through at a time. The service's name is for people: "DynamoDB".
    pub fn new(service: &'static str, at_once: usize) -> Self {
        Guard { service, permits: Semaphore::new(at_once), breaker: Mutex::default(), start: Instant::now() }
    }

    /// Whether callers are kept away since the service does not answer.
    pub fn is_open(&self) -> bool {
        self.breaker().is_open()
    }

    /// Lets a call through.
    ///
    /// # Errors
    /// [`Code::Unavailable`], at once, when the service did not answer lately or too many calls wait for it.
    pub fn enter(&self) -> Result<Pass<'_>, Failure> {
        let permit = self.permits.try_acquire().map_err(|_| self.refusal("has too many requests of ours waiting"))?;
        let admission = self.breaker().admit(self.now()).ok_or_else(|| self.refusal("does not answer"))?;
        Ok(Pass { guard: self, admission: Some(admission), _permit: permit })
    }

    /// Does the work, if it is let through. `is_outage` tells which errors mean that the service does not work; others are its answers.
    ///
    /// # Errors
    /// As [`Guard::enter`]; the inner error is the work's own.
    pub async fn run<T, E>(
        &self,
        work: impl Future<Output = Result<T, E>>,
        is_outage: impl FnOnce(&E) -> bool,
    ) -> Result<Result<T, E>, Failure> {
        let pass = self.enter()?;
        let result = work.await;
        pass.report(result.as_ref().err().is_none_or(|error| !is_outage(error)));
        Ok(result)
    }

    fn refusal(&self, why: &str) -> Failure {
        Failure::new(Code::Unavailable, format!("{} {why}; try again in a few seconds", self.service))
    }

    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn breaker(&self) -> MutexGuard<'_, Breaker> {
        // Nothing under this lock panics.
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pass<'_> {
    /// Says whether the service answered.
    pub fn report(mut self, works: bool) {
        let Some(admission) = self.admission.take() else { return };
        let mut breaker = self.guard.breaker();
        let turn = if works { breaker.succeeded() } else { breaker.failed(admission, self.guard.now()) };
        drop(breaker);
        let service = self.guard.service;
        match turn {
            Some(Turn::Opened) => tracing::warn!(service, "does not answer; requests that need it are refused until it does"),
            Some(Turn::Closed) => tracing::info!(service, "answers again"),
            None => {}
        }
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        if let Some(admission) = self.admission.take() {
            self.guard.breaker().abandoned(admission, self.guard.now());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::breaker::TRIP;

    fn shut() -> Guard {
        let guard = Guard::new("Service", 8);
        for _ in 0..TRIP {
            guard.enter().unwrap().report(false);
        }
        guard
    }

    #[test]
    fn over_the_bound_nobody_waits() {
        let guard = Guard::new("Service", 2);
        let first = guard.enter().unwrap();
        let _second = guard.enter().unwrap();
        let failure = guard.enter().err().unwrap();
        assert_eq!(failure.code, Code::Unavailable);
        assert_eq!(failure.message, "Service has too many requests of ours waiting; try again in a few seconds");
        drop(first);
        assert!(guard.enter().is_ok());
    }

    #[test]
    fn failures_in_a_row_shut_it_and_a_late_success_opens_it() {
        let guard = Guard::new("Service", 8);
        let early = guard.enter().unwrap();
        for _ in 0..TRIP {
            guard.enter().unwrap().report(false);
        }
        assert!(guard.is_open());
        assert_eq!(guard.enter().err().unwrap().message, "Service does not answer; try again in a few seconds");
        early.report(true);
        assert!(!guard.is_open() && guard.enter().is_ok());
    }

    #[tokio::test]
    async fn only_outages_count() {
        let guard = Guard::new("Service", 8);
        for _ in 0..TRIP {
            assert_eq!(guard.run(async { Err::<(), _>("refused") }, |error| *error != "refused").await, Ok(Err("refused")));
        }
        assert!(!guard.is_open());
        for _ in 0..TRIP {
            assert_eq!(guard.run(async { Err::<(), _>("away") }, |error| *error != "refused").await, Ok(Err("away")));
        }
        assert!(guard.is_open());
        assert_eq!(guard.run(async { Ok::<_, &str>(()) }, |_| true).await.unwrap_err().code, Code::Unavailable);
    }

    #[tokio::test]
    async fn a_caller_who_goes_away_blames_nobody() {
        let guard = Guard::new("Service", 1);
        for _ in 0..2 * TRIP {
            let work = guard.run(std::future::pending::<Result<(), ()>>(), |()| true);
            assert!(tokio::time::timeout(Duration::from_millis(1), work).await.is_err());
        }
        assert!(!guard.is_open() && guard.enter().is_ok());
        assert!(shut().is_open());
    }
}
