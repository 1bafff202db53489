//! `train --plan`: what a submission would do, without doing it.

use std::{
    future::Future,
    pin::pin,
    time::{Duration, Instant},
};

use shared::{
    domain::{
        error::{Code, Failure},
        id::JobId,
        message::{self, Probed, Submit, ToClient, ToWorker},
    },
    runtime::transfer::{probe, send_plan},
};

use super::{
    Drive, SUBMIT, Submission,
    ask::{ANSWER, answer, answer_within},
};
use crate::{
    domain::{
        event::Event,
        format,
        order::End,
        plan::{Basis, Plan, Speed},
    },
    runtime::conversation::Conversation,
};

/// How long a probe may take: one second of frames, and the way there and back on a poor path.
const PROBE: Duration = Duration::from_secs(4);
/// What a slow path carries of a manifest, in bytes a second.
const SLOWEST: u64 = 50_000;

impl Drive {
    /// Asks the worker, measures the path, tells both.
    ///
    /// # Errors
    /// What the submission would be refused with, once the plan has been told.
    pub(super) async fn plan(&mut self, talk: &mut Conversation) -> Result<End, Failure> {
        self.next_attempt(talk).await?;
        let submission = self.submission.as_ref().expect("a plan is about a package");
        let answer = ask(talk, submission).await?;
        let speed = if answer.probe > 0 { measure(talk, answer.probe).await } else { None };
        let route = talk.route().await;
        let (name, summary) = (submission.spec.name.clone(), submission.listing.summary());
        let refused = answer.refused.clone();
        let plan = Plan::of_answer(name, summary.files, summary.bytes, answer, speed, route);
        self.tell(Event::Plan(Box::new(plan))).await;
        refused.map_or(Ok(End::Done), Err)
    }
}

impl Drive {
    /// Says what the upload will be, from what is known by then: nothing is waited for.
    pub(super) async fn tell_plan(&mut self, known: bool, already_there: u64, to_send: u64) {
        let (Some(job), Some(submission)) = (&self.known.job, &self.submission) else { return };
        let speed = self.connector.known_speed().filter(|_| to_send > 0);
        let plan = Plan {
            job: job.clone(),
            name: submission.spec.name.clone(),
            known,
            files: submission.listing.summary().files,
            bytes: submission.listing.summary().bytes,
            already_there,
            to_send,
            disk_free: self.known.disk_free,
            speed,
            expected_ms: speed.map(|speed| speed.millis(to_send)),
            route: self.known.route.clone(),
            // One that the worker has already has its place, and that is told with its state.
            ahead: (!self.known.uploaded).then_some(self.known.jobs),
            only: false,
            outlook: None,
        };
        self.tell(Event::Plan(Box::new(plan))).await;
    }
}

async fn ask(talk: &mut Conversation, submission: &Submission) -> Result<message::Plan, Failure> {
    let (spec, manifest) = (submission.spec.clone(), submission.listing.summary());
    talk.tell(ToWorker::Submit(Submit { req: SUBMIT, spec, manifest, plan: true })).await?;
    let first = answer(talk, |message| match message {
        ToClient::Planning(request) if request.req == SUBMIT => Some(Ok(None)),
        ToClient::Plan(plan) if plan.req == SUBMIT => Some(Ok(Some(plan))),
        ToClient::Refused(refused) if refused.req == SUBMIT => Some(Err(refused.failure)),
        ToClient::Accepted(accepted) if accepted.req == SUBMIT => Some(Err(taken(&accepted.status.job))),
        _ => None,
    })
    .await?;
    if let Some(plan) = first {
        return Ok(*plan);
    }
    let pool = talk.pool();
    let patience = ANSWER + Duration::from_secs(submission.listing.summary().encoded_len / SLOWEST);
    let plan = answer_within(talk, patience, |message| match message {
        ToClient::Plan(plan) if plan.req == SUBMIT => Some(Ok(plan)),
        ToClient::Refused(refused) if refused.req == SUBMIT => Some(Err(refused.failure)),
        _ => None,
    });
    tokio::select! {
        plan = plan => plan.map(|plan| *plan),
        failure = send_plan(&pool, &submission.listing) => Err(failure),
    }
}

/// A worker of the time before plans does not look at the word.
fn taken(job: &JobId) -> Failure {
    let job = format::short(job);
    let message = format!(
        "the worker is older than this client, does not know plans, and has taken the job ({job}) instead; 'webrtc-client cancel {job}' \
         takes it back. Install the same version on both"
    );
    Failure::new(Code::VersionMismatch, message)
}

/// How fast the path is now; none where it cannot be told.
async fn measure(talk: &mut Conversation, most: u64) -> Option<Speed> {
    let pool = talk.pool();
    let began = Instant::now();
    let probed = answer_within(talk, PROBE, |message| match message {
        ToClient::Probed(probed) if probed.req == SUBMIT => Some(Ok(probed)),
        _ => None,
    });
    match while_sending(probe(&pool, most), probed).await {
        Ok(Probed { bytes, micros, .. }) => {
            tracing::debug!(bytes, micros, elapsed = ?began.elapsed(), "the path was measured");
            Speed::of(bytes, Duration::from_micros(micros), Basis::Probe)
        }
        Err(failure) => {
            tracing::info!(%failure, "the path could not be measured");
            None
        }
    }
}

/// The answer, with the sending beside it as long as that takes.
async fn while_sending<T>(sending: impl Future<Output = ()>, answer: impl Future<Output = T>) -> T {
    let mut answer = pin!(answer);
    tokio::select! {
        answer = &mut answer => return answer,
        () = sending => {}
    }
    answer.await
}
