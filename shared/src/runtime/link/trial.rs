//! A connection for its own sake: what does the worker say of its end, and does a connection come about, from and to which addresses?

use std::{
    pin::pin,
    time::{Duration, Instant},
};

use tokio::{sync::mpsc, time::timeout};

use super::{
    CONTROL_CHANNELS, Context, Description, Envelope, Established, no_path, offer, ports,
    question::{answer, question},
    three,
};
use crate::{
    domain::{
        error::{Code, Failure},
        id::{PeerId, hex},
        invite::Invite,
        probe::{Candidate, MAX_ADDRESSES, Report},
        route::Route,
        signal::ToPeer,
    },
    runtime::{
        identity::Identity,
        peer::PeerOptions,
        seal::{self, Sealer},
        signal::{SignalEvent, SignalSender},
    },
};

/// How long the worker may take to examine itself and to answer.
const REPORT: Duration = Duration::from_secs(9);
/// How long a connection may take: with UDP blocked it may be ten seconds.
const PATH: Duration = Duration::from_secs(12);
/// How long its first round trip may take to be measured.
const ROUND_TRIP: Duration = Duration::from_millis(500);

/// What came of a connection that was tried.
#[derive(Debug, Clone, Default)]
pub struct Trial {
    /// The route, where it succeeded.
    pub route: Option<Route>,
    /// Why not, where it did not.
    pub failure: Option<Failure>,
    /// Our candidates.
    pub local: Vec<Candidate>,
    /// The worker's.
    pub remote: Vec<Candidate>,
    /// How long it took.
    pub took: Duration,
}

/// Asks the worker for its report and tries to connect to it, at the same time; both come to an end in any case.
pub async fn try_out(
    invite: &Invite,
    me: &PeerId,
    identity: &Identity,
    options: &PeerOptions,
    signal: &SignalSender,
    events: &mut mpsc::Receiver<SignalEvent>,
) -> (Result<Report, Failure>, Trial) {
    let mut trial = Trial::default();
    let began = Instant::now();
    let mut report = None;
    let attempt = match seal::random::<8>() {
        Ok(random) => hex(&random),
        Err(failure) => return (Err(failure.clone()), Trial { failure: Some(failure), ..trial }),
    };
    let mut talk = Talk { invite, me, attempt: &attempt, signal, events, trial: &mut trial, report: &mut report };
    let connected = timeout(PATH, Box::pin(talk.connect(identity, options))).await.unwrap_or_else(|_| Err(no_path()));
    // What the worker refuses for good is no matter of time.
    let for_good = |failure: &Failure| matches!(failure.code, Code::PeerNotFound | Code::NotAuthentic | Code::RoomNotFound);
    talk.trial.took = began.elapsed();
    if !connected.as_ref().is_err_and(for_good) {
        talk.wait_for_report(REPORT.saturating_sub(began.elapsed())).await;
    }
    let silent = || Failure::new(Code::NoConnection, "the worker sent no report");
    let report =
        report.unwrap_or_else(|| Err(connected.as_ref().err().filter(|failure| for_good(failure)).cloned().unwrap_or_else(silent)));
    match connected {
        Ok(route) => trial.route = route,
        Err(failure) => trial.failure = Some(failure),
    }
    (report, trial)
}

/// Asks the worker for its report.
///
/// # Errors
/// Why there is none.
pub async fn ask(invite: &Invite, me: &PeerId, signal: &SignalSender, events: &mut mpsc::Receiver<SignalEvent>) -> Result<Report, Failure> {
    let attempt = hex(&seal::random::<8>()?);
    let (mut trial, mut report) = (Trial::default(), None);
    let mut talk = Talk { invite, me, attempt: &attempt, signal, events, trial: &mut trial, report: &mut report };
    signal.send(question(&talk.sealer(), me, &invite.worker, &attempt)?).await?;
    talk.wait_for_report(REPORT).await;
    report.unwrap_or_else(|| Err(Failure::new(Code::NoConnection, "the worker sent no report")))
}

struct Talk<'a> {
    invite: &'a Invite,
    me: &'a PeerId,
    attempt: &'a str,
    signal: &'a SignalSender,
    events: &'a mut mpsc::Receiver<SignalEvent>,
    trial: &'a mut Trial,
    report: &'a mut Option<Result<Report, Failure>>,
}

impl Talk<'_> {
    fn sealer(&self) -> Sealer {
        Sealer::new(&self.invite.secret, &self.invite.room, self.invite.grant)
    }

    async fn connect(&mut self, identity: &Identity, options: &PeerOptions) -> Result<Option<Route>, Failure> {
        let sealer = self.sealer();
        self.signal.send(question(&sealer, self.me, &self.invite.worker, self.attempt)?).await?;
        let envelope = Envelope { sealer: &sealer, me: self.me, other: &self.invite.worker, attempt: self.attempt };
        let (ours, mut theirs) = ports();
        let mut establishing = pin!(offer(options, &CONTROL_CHANNELS, ours));
        let established = loop {
            tokio::select! {
                result = &mut establishing => break result?,
                Some(description) = theirs.rx.recv() => {
                    note(&mut self.trial.local, &description);
                    self.signal.send(envelope.seal(&description)?).await?;
                }
                event = self.events.recv() => {
                    let Some(message) = message_of(event)? else { continue };
                    if self.take_report(&message) {
                        continue;
                    }
                    if let Some(description) = envelope.open(message)? {
                        note(&mut self.trial.remote, &description);
                        let _ = theirs.tx.send(description).await;
                    }
                }
            }
        };
        let Established { carrier, channels, binding } = established;
        let [mut auth, _control, _progress] = three(channels);
        let context = Context { room: &self.invite.room, grant: self.invite.grant, binding };
        seal::prove_as_client(&mut auth, identity.private(), &self.invite.secret, &self.invite.worker_key, &context).await?;
        let measured = async {
            loop {
                match carrier.connection.route().await {
                    Some(route) if route.rtt > 0.0 => return Some(route),
                    _ => tokio::time::sleep(ROUND_TRIP / 10).await,
                }
            }
        };
        match timeout(ROUND_TRIP, measured).await {
            Ok(route) => Ok(route),
            Err(_) => Ok(carrier.connection.route().await),
        }
    }

    async fn wait_for_report(&mut self, patience: Duration) {
        let waiting = async {
            while self.report.is_none() {
                match message_of(self.events.recv().await) {
                    Ok(Some(message)) => {
                        self.take_report(&message);
                    }
                    Ok(None) => {}
                    Err(failure) => *self.report = Some(Err(failure)),
                }
            }
        };
        // Without a report there is none.
        let _ = timeout(patience, waiting).await;
    }

    /// Whether this was the worker's answer.
    fn take_report(&mut self, message: &ToPeer) -> bool {
        let ToPeer::PeerMessage { from_peer_id, payload, .. } = message else { return false };
        if from_peer_id != &self.invite.worker {
            return false;
        }
        match answer(&self.sealer(), self.me, &self.invite.worker, self.attempt, payload) {
            Some(answer) => {
                *self.report = Some(answer);
                true
            }
            None => false,
        }
    }
}

fn message_of(event: Option<SignalEvent>) -> Result<Option<ToPeer>, Failure> {
    match event {
        Some(SignalEvent::Message(message)) => Ok(Some(message)),
        Some(SignalEvent::Refused(failure)) => Err(failure),
        Some(_) => Ok(None),
        None => Err(Failure::new(Code::Unavailable, "the connection to the signaling server has ended")),
    }
}

/// Remembers the candidates in a description.
fn note(known: &mut Vec<Candidate>, description: &Description) {
    let mut add = |line: &str| {
        if let Some(candidate) = Candidate::parse(line)
            && known.len() < MAX_ADDRESSES
            && !known.contains(&candidate)
        {
            known.push(candidate);
        }
    };
    match description {
        Description::Offer(sdp) | Description::Answer(sdp) => sdp.lines().filter(|line| line.starts_with("a=candidate:")).for_each(add),
        Description::Candidate(candidate) => add(candidate["candidate"].as_str().unwrap_or_default()),
        _ => {}
    }
}
