//! Answers clients that ask how this end looks: one examination at a time, and none twice within seconds.
//!
//! Asked are the worker's own STUN and TURN servers and its own signaling server, never an address that a client names.

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use shared::{
    domain::probe::Report,
    runtime::{link::Question, probe, signal::Api},
};
use tokio::sync::mpsc;

/// Questions that wait.
pub(super) const QUESTIONS: usize = 4;
/// A report that is younger than this serves the next who asks, too.
const FRESH: Duration = Duration::from_secs(5);

/// Answers until nobody can ask any more.
pub(super) async fn answer(mut questions: mpsc::Receiver<Question>, api: Arc<Api>) {
    let mut latest = None;
    while let Some(question) = questions.recv().await {
        let report = report(&mut latest, Instant::now(), probe::examine(&question.options, Some(&api))).await;
        tracing::info!(peer = %question.asker, took_ms = report.took_ms, "told a client how this end looks");
        if let Err(failure) = question.answer(&report).await {
            tracing::info!(%failure, "a report was not sent");
        }
    }
}

/// The latest report, if it is fresh, or a new one.
async fn report(latest: &mut Option<(Instant, Report)>, now: Instant, examination: impl Future<Output = Report>) -> Report {
    if let Some((_, report)) = latest.as_ref().filter(|(at, _)| now.saturating_duration_since(*at) < FRESH) {
        return report.clone();
    }
    let report = examination.await;
    *latest = Some((now, report.clone()));
    report
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn whoever_asks_again_at_once_gets_the_same_report() {
        let numbered = |number: u64| async move { Report { took_ms: number, ..Report::default() } };
        let (mut latest, begin) = (None, Instant::now());
        let mut asked = Vec::new();
        for (number, seconds) in [(1, 0), (2, 1), (3, 4), (4, 5), (5, 9), (6, 10)] {
            asked.push(report(&mut latest, begin + Duration::from_secs(seconds), numbered(number)).await.took_ms);
        }
        assert_eq!(asked, [1, 1, 1, 4, 4, 6]);
    }
}
