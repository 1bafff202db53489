//! Answers clients that ask how this end looks: one examination at a time, and none twice within seconds.
//!
//! Asked are the worker's own STUN and TURN servers and its own signaling server, never an address that a client names.

use std::{
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
    let mut last: Option<(Instant, Report)> = None;
    while let Some(question) = questions.recv().await {
        if last.as_ref().is_none_or(|(at, _)| at.elapsed() >= FRESH) {
            let report = probe::examine(&question.options, Some(&api)).await;
            last = Some((Instant::now(), report));
        }
        let Some((_, report)) = &last else { continue };
        tracing::info!(peer = %question.asker, took_ms = report.took_ms, "told a client how this end looks");
        if let Err(failure) = question.answer(report).await {
            tracing::info!(%failure, "a report was not sent");
        }
    }
}
