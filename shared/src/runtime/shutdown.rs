//! How a program ends: one token that says "stop", one tracker that knows who has not stopped yet.
//!
//! * tasks are started with [`Shutdown::spawn`] and watch [`Shutdown::token`] (or a child of it)
//! * SIGTERM or SIGINT cancels the token; a second signal leaves at once
//! * [`Shutdown::drain`] waits for the tasks, within a fixed budget

use std::{future::Future, time::Duration};

use tokio::{
    signal::unix::{SignalKind, signal},
    task::JoinHandle,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::domain::error::{Code, Failure};

/// The stop token and the tasks that must have ended before the program does. Clones share both.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    /// Cancelled when the program is to end. Parts of a program take a `child_token()` of it.
    pub token: CancellationToken,
    /// The tasks to wait for.
    pub tracker: TaskTracker,
}

impl Shutdown {
    /// Nothing cancelled, nothing tracked.
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts a task that [`drain`](Self::drain) waits for. It must end soon after the token is cancelled.
    pub fn spawn<F>(&self, task: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.tracker.spawn(task)
    }

    /// From now on the first SIGTERM or SIGINT cancels the token, and a second one ends the process at once with 128 + its number
    /// (130 for SIGINT).
    ///
    /// # Errors
    /// [`Code::Internal`] when the handlers cannot be installed.
    pub fn listen_for_signals(&self) -> Result<(), Failure> {
        let install = |kind| signal(kind).map_err(|error| Failure::new(Code::Internal, format!("cannot listen for signals: {error}")));
        let mut terminate = install(SignalKind::terminate())?;
        let mut interrupt = install(SignalKind::interrupt())?;
        let token = self.token.clone();
        // Untracked on purpose: it waits for the second signal for as long as the process lives.
        tokio::spawn(async move {
            loop {
                let (name, number) = tokio::select! {
                    _ = terminate.recv() => ("SIGTERM", 15),
                    _ = interrupt.recv() => ("SIGINT", 2),
                };
                if token.is_cancelled() {
                    tracing::warn!(signal = name, "second signal: leaving at once");
                    std::process::exit(128 + number);
                }
                tracing::info!(signal = name, "shutting down");
                token.cancel();
            }
        });
        Ok(())
    }

    /// Cancels the token and waits until every tracked task has ended, at most for `budget`. False when some had not.
    pub async fn drain(&self, budget: Duration) -> bool {
        self.token.cancel();
        self.tracker.close();
        let drained = tokio::time::timeout(budget, self.tracker.wait()).await.is_ok();
        if !drained {
            tracing::warn!(left = self.tracker.len(), ?budget, "some tasks did not end in time");
        }
        drained
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn drain_waits_for_tasks_that_heed_the_token() {
        let shutdown = Shutdown::new();
        let token = shutdown.token.child_token();
        let task = shutdown.spawn(async move { token.cancelled().await });
        assert!(shutdown.drain(Duration::from_secs(5)).await);
        assert!(task.is_finished());
    }

    #[tokio::test]
    async fn drain_gives_up_on_a_task_that_does_not() {
        let shutdown = Shutdown::new();
        let task = shutdown.spawn(std::future::pending::<()>());
        assert!(!shutdown.drain(Duration::from_millis(20)).await);
        task.abort();
    }
}
