//! Questions to the worker that wait for their answer.

use std::time::Duration;

use shared::domain::{
    error::{Code, Failure},
    message::{JobList, Req, Request, ToClient, ToWorker},
};
use tokio::time::timeout;

use crate::runtime::conversation::{Conversation, Incoming};

/// How long the worker may take to answer a request.
pub(super) const ANSWER: Duration = Duration::from_secs(30);
const LIST: Req = 1;

/// The worker's jobs.
pub(super) async fn list(talk: &mut Conversation) -> Result<JobList, Failure> {
    talk.tell(ToWorker::Jobs(Request { req: LIST })).await?;
    answer(talk, |message| match message {
        ToClient::JobList(list) => Some(Ok(list)),
        ToClient::Refused(refused) if refused.req == LIST => Some(Err(refused.failure)),
        _ => None,
    })
    .await
}

/// Waits for one answer; what else comes before it is of no use yet.
pub(super) async fn answer<T>(talk: &mut Conversation, take: impl FnMut(ToClient) -> Option<Result<T, Failure>>) -> Result<T, Failure> {
    answer_within(talk, ANSWER, take).await
}

/// As [`answer`], with another patience.
pub(super) async fn answer_within<T>(
    talk: &mut Conversation,
    patience: Duration,
    mut take: impl FnMut(ToClient) -> Option<Result<T, Failure>>,
) -> Result<T, Failure> {
    let waiting = async {
        loop {
            match talk.next().await {
                Incoming::Message(message) => {
                    if let Some(answer) = take(message) {
                        return answer;
                    }
                }
                Incoming::Journal(_) => {}
                Incoming::Lost(failure) => return Err(failure),
            }
        }
    };
    timeout(patience, waiting).await.unwrap_or_else(|_| Err(Failure::new(Code::NoConnection, "the worker does not answer")))
}
