//! The signaling server, step by step: name, connection, TLS, HTTP, WebSocket. Each step is tried only where the one before it went well.

use std::{
    future::Future,
    time::{Duration, Instant, SystemTime},
};

use tokio::time::timeout;

use super::{LONGEST, ask};
use crate::{
    domain::probe::{Layer, Outcome, Step},
    runtime::signal::{Api, Health},
};

/// How long one step may take.
const STEP: Duration = Duration::from_millis(2500);

/// The steps, and how far the server's clock is ahead of ours, in seconds.
pub(super) async fn examine(api: &Api) -> (Vec<Step>, Option<i64>) {
    let mut steps = Vec::new();
    // What came before the time was over counts.
    let ahead = timeout(LONGEST, walk(api, &mut steps)).await.unwrap_or_default();
    (steps, ahead)
}

async fn walk(api: &Api, steps: &mut Vec<Step>) -> Option<i64> {
    let (host, port, secure) = api.place()?;
    let resolving = async { super::resolve(&host, port).await.map_err(|detail| Outcome::NoName { detail }) };
    let addresses = step(steps, Layer::Dns, resolving).await?;
    let connecting = async {
        let mut outcome = Outcome::NoName { detail: "it has no address".to_owned() };
        for address in addresses {
            match ask::connect(address).await {
                Ok(stream) => return Ok(stream),
                // One family without a route is no news where the other one works.
                Err(other) => outcome = if matches!(other, Outcome::NoRoute { .. }) && outcome.answered() { outcome } else { other },
            }
        }
        Err(outcome)
    };
    let stream = step(steps, Layer::Tcp, connecting).await?;
    if secure {
        step(steps, Layer::Tls, ask::secure(api.trust(), &host, stream)).await?;
    }
    let Health { date } = step(steps, Layer::Http, async { api.health().await.map_err(|detail| Outcome::Strange { detail }) }).await?;
    step(steps, Layer::WebSocket, async { api.greet().await.map_err(|detail| Outcome::Strange { detail }) }).await;
    date.map(ahead_of_ours)
}

async fn step<T>(steps: &mut Vec<Step>, layer: Layer, work: impl Future<Output = Result<T, Outcome>>) -> Option<T> {
    let began = Instant::now();
    let done = timeout(STEP, work).await.unwrap_or(Err(Outcome::Silent));
    let took_ms = began.elapsed().as_secs_f64() * 1000.0;
    let (outcome, value) = match done {
        Ok(value) => (Outcome::Ok, Some(value)),
        Err(outcome) => (outcome, None),
    };
    steps.push(Step { layer, outcome, took_ms });
    value
}

fn ahead_of_ours(date: SystemTime) -> i64 {
    match date.duration_since(SystemTime::now()) {
        Ok(ahead) => ahead.as_secs() as i64,
        Err(behind) => -(behind.duration().as_secs() as i64),
    }
}
