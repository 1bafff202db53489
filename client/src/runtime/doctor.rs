//! Looks at everything that a connection needs, on both sides, one thing after the other as far as one depends on the other.
//!
//! ```text
//!   signaling server, step by step ─► room ─► our end  │ at the
//!                                             worker's │ same
//!                                             attempt  │ time
//! ```

use std::time::Instant;

use shared::{
    domain::{
        error::Failure,
        network::Network,
        probe::{Outcome, Report},
    },
    runtime::{link, peer::PeerOptions, probe, signal::Api},
};
use tokio::sync::mpsc;

use super::connect::Connector;
use crate::domain::{
    doctor::{Examination, Setting, Trial},
    order::Remote,
};

/// What is to be examined.
#[derive(Debug, Default)]
pub struct Subject {
    /// Which settings there are.
    pub settings: Vec<Setting>,
    /// Why they cannot be used.
    pub unusable: Option<Failure>,
    /// The way to a worker, where there is an invite.
    pub remote: Option<Remote>,
    /// How we may be reached, where there is none.
    pub network: Network,
    /// The signaling server, where there is no invite.
    pub server: Option<String>,
}

/// Examines it; what is looked at is told in a few words each.
pub async fn examine(subject: Subject, told: mpsc::Sender<&'static str>) -> Examination {
    let began = Instant::now();
    let Subject { settings, unusable, remote, network, server } = subject;
    let mut seen = Examination { settings, unusable, invited: remote.is_some(), ..Examination::default() };
    if seen.unusable.is_none()
        && let Err(failure) = look(&mut seen, remote, &network, server, &told).await
    {
        seen.unusable = Some(failure);
    }
    seen.took_ms = began.elapsed().as_millis() as u64;
    seen
}

/// # Errors
/// For settings that cannot be used.
async fn look(
    seen: &mut Examination,
    remote: Option<Remote>,
    network: &Network,
    server: Option<String>,
    told: &mpsc::Sender<&'static str>,
) -> Result<(), Failure> {
    let Some(remote) = remote else {
        let api = server.as_deref().map(|server| Api::trusting(server, network.ca_file.as_deref())).transpose()?;
        seen.server = api.as_ref().map(|api| api.server().to_owned());
        let _ = told.try_send("looking at this side");
        let here = api.as_ref().is_some_and(Api::is_loopback);
        let report = probe::examine(&PeerOptions::new(network, here)?, api.as_ref()).await;
        seen.steps.clone_from(&report.steps);
        seen.client = Some(report);
        return Ok(());
    };
    let mut connector = Connector::new(&remote)?;
    seen.server = Some(connector.api().server().to_owned());
    let _ = told.try_send("looking at the signaling server");
    let (steps, ahead) = probe::signaling(connector.api()).await;
    let reachable = steps.iter().all(|step| step.outcome == Outcome::Ok);
    seen.steps = steps;
    if reachable {
        match connector.be_admitted().await {
            Ok(worker) => (seen.admitted, seen.no_report) = (true, worker.err()),
            Err(failure) => seen.refused = Some(failure),
        }
    }
    let options = connector.options().clone();
    let own = probe::examine(&options, None);
    let own = if seen.admitted && seen.no_report.is_none() {
        let _ = told.try_send("looking at both sides, and trying a connection");
        let (own, (report, trial)) = tokio::join!(own, Box::pin(connector.try_out()));
        match report {
            Ok(report) => seen.worker = Some(report),
            Err(failure) => seen.no_report = Some(failure),
        }
        seen.trial = Some(tried(trial));
        own
    } else {
        let _ = told.try_send("looking at this side");
        own.await
    };
    seen.client = Some(Report { server_clock_ahead: ahead, ..own });
    Ok(())
}

fn tried(trial: link::Trial) -> Trial {
    let link::Trial { route, failure, local, remote, took } = trial;
    Trial { route, failure, local, remote, took_ms: took.as_millis() as u64 }
}
