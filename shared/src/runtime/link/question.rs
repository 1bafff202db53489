//! What a client asks a worker through the signaling server, sealed as offers are: how does your end look? So it arrives where no path
//! between the two exists.

use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::Answerer;
use crate::{
    domain::{
        error::{Code, Failure},
        id::PeerId,
        probe::Report,
        signal::ToServer,
    },
    runtime::{
        peer::PeerOptions,
        seal::{self, Sealer},
        signal::SignalSender,
    },
};

/// What is asked; another word may mean something else one day.
const DOCTOR: &str = "doctor";
/// The longest report, as JSON, in bytes: sealed and encoded it fits a message.
const MAX_REPORT: usize = 40_000;

/// A client's question; whoever asked has shown that it holds an invite of the room.
pub struct Question {
    /// Who asks.
    pub asker: PeerId,
    /// With what connections are made now.
    pub options: PeerOptions,
    attempt: String,
    me: PeerId,
    sealer: Sealer,
    signal: SignalSender,
}

impl Question {
    /// Answers it.
    ///
    /// # Errors
    /// [`Code::Unavailable`] when the server is away.
    pub async fn answer(self, report: &Report) -> Result<(), Failure> {
        let answer = json!({"answer": DOCTOR, "attempt": self.attempt, "report": fitting(report)});
        let sealed = self.sealer.seal(&self.me, &self.asker, &answer)?;
        self.signal.send(ToServer::PeerMessage { to_peer_id: self.asker, payload: json!({"sealed": sealed}) }).await
    }
}

/// The report, with fewer findings where it would be too long for a message.
fn fitting(report: &Report) -> Report {
    let mut report = report.clone();
    while !report.servers.is_empty() && serde_json::to_string(&report).map_or(usize::MAX, |text| text.len()) > MAX_REPORT {
        report.servers.truncate(report.servers.len() / 2);
    }
    report
}

impl Answerer {
    /// Questions go there; without it there are no answers.
    #[must_use]
    pub fn with_questions(mut self, questions: mpsc::Sender<Question>) -> Self {
        self.questions = Some(questions);
        self
    }

    /// Takes a sealed question; anything else is not for us.
    pub(super) async fn handle_question(&self, asker: PeerId, payload: &Value, options: &PeerOptions) {
        let (Some(questions), Some(_)) = (&self.questions, payload["sealed"].as_str()) else { return };
        let refusal = match self.open(&asker, &payload["sealed"]) {
            Ok((_, opened)) if opened["question"] != DOCTOR => {
                Failure::new(Code::InvalidRequest, "this worker does not know that question")
            }
            Ok((grant, opened)) => {
                let sealer = Sealer::new(&seal::root_of(&self.room_secret, &self.room, grant), &self.room, grant);
                let attempt = opened["attempt"].as_str().filter(|text| text.len() <= 64).unwrap_or_default().to_owned();
                let (me, signal, options) = (self.me.clone(), self.signal.clone(), options.clone());
                let question = Question { asker: asker.clone(), options, attempt, me, sealer, signal };
                match questions.try_send(question) {
                    Ok(()) => return,
                    Err(_) => Failure::new(Code::PeerBusy, "the worker examines itself for others; try again in a moment"),
                }
            }
            Err(failure) => failure,
        };
        tracing::info!(peer = %asker, failure = %refusal, "a question was refused");
        let _ = self.signal.send(ToServer::PeerMessage { to_peer_id: asker, payload: json!({"unanswered": refusal}) }).await;
    }
}

/// The question, for the worker.
pub(super) fn question(sealer: &Sealer, me: &PeerId, worker: &PeerId, attempt: &str) -> Result<ToServer, Failure> {
    let sealed = sealer.seal(me, worker, &json!({"question": DOCTOR, "attempt": attempt}))?;
    Ok(ToServer::PeerMessage { to_peer_id: worker.clone(), payload: json!({"sealed": sealed}) })
}

/// The worker's answer in a message of its, if it is one.
pub(super) fn answer(sealer: &Sealer, me: &PeerId, worker: &PeerId, attempt: &str, payload: &Value) -> Option<Result<Report, Failure>> {
    if let Ok(failure) = serde_json::from_value::<Failure>(payload["unanswered"].clone()) {
        return Some(Err(failure));
    }
    let opened = match sealer.open(worker, me, payload["sealed"].as_str()?) {
        Ok(opened) => opened,
        Err(failure) => return Some(Err(failure)),
    };
    if opened["answer"] != DOCTOR || opened["attempt"] != attempt {
        return None;
    }
    let strange = |_| Failure::new(Code::VersionMismatch, "the worker's report cannot be read; install the same version on both sides");
    Some(serde_json::from_value::<Report>(opened["report"].clone()).map(Report::bounded).map_err(strange))
}
