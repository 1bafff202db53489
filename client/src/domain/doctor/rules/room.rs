//! Settings, signaling server, room, invite.

use shared::domain::{
    error::{Code, Failure},
    probe::{Layer, Outcome, Step, TlsFault},
};

use super::{super::Side, Examination, Found};

pub(super) fn settings(seen: &Examination) -> Option<Found> {
    let failure = seen.unusable.as_ref()?;
    Found::fault(Side::Client, sentence(&failure.message), "Correct that, then run doctor again.")
}

/// The first step to the server that failed, if it is of this layer.
fn failed(seen: &Examination, layer: impl Fn(Layer) -> bool) -> Option<(&str, &Step)> {
    let step = seen.steps.iter().find(|step| step.outcome != Outcome::Ok)?;
    layer(step.layer).then_some((seen.server.as_deref().unwrap_or("the signaling server"), step))
}

pub(super) fn server_name(seen: &Examination) -> Option<Found> {
    let (server, _) = failed(seen, |layer| layer == Layer::Dns)?;
    Found::fault(
        Side::Client,
        format!("the name of the signaling server {server} has no address here."),
        "Check the spelling of the server's name and this machine's network (does any other name resolve?); the invite names the server that \
         the worker was given with --server.",
    )
}

pub(super) fn server_unreachable(seen: &Examination) -> Option<Found> {
    let (server, step) = failed(seen, |layer| layer == Layer::Tcp)?;
    match &step.outcome {
        Outcome::Refused => Found::fault(
            Side::Between,
            format!("nothing listens at the signaling server's address {server}."),
            "Start webrtc-server there, or correct the port: it listens on 8001 unless told otherwise, and the invite has what the worker was \
             given with --server.",
        ),
        _ => Found::fault(
            Side::Between,
            format!("the signaling server {server} does not answer."),
            "Check that its machine runs and that a firewall lets TCP through to that port.",
        ),
    }
}

pub(super) fn server_certificate(seen: &Examination) -> Option<Found> {
    let (server, step) = failed(seen, |layer| layer == Layer::Tls)?;
    let Outcome::Tls { fault, detail } = &step.outcome else {
        return Found::fault(
            Side::Between,
            format!("the signaling server {server} breaks off when TLS begins."),
            "Check that it speaks https on that port.",
        );
    };
    Found::fault(
        Side::Between,
        format!("the certificate of the signaling server {server} {}.", certificate(*fault, detail)),
        remedy_for(*fault),
    )
}

/// What is wrong with a certificate, after "the certificate of …".
pub(super) fn certificate(fault: TlsFault, detail: &str) -> String {
    match fault {
        TlsFault::Untrusted => "is signed by nobody whom this machine trusts".into(),
        TlsFault::Expired => "has expired".into(),
        TlsFault::NotYetValid => "is not valid yet".into(),
        TlsFault::WrongName => "is for another name".into(),
        TlsFault::Other => format!("cannot be used ({detail})"),
    }
}

pub(super) fn remedy_for(fault: TlsFault) -> &'static str {
    match fault {
        TlsFault::Untrusted => "Give the server a certificate of a known authority, or make its authority known here (--ca-file for TURN).",
        TlsFault::Expired => "Renew the server's certificate; check this machine's clock, too.",
        TlsFault::NotYetValid => "Set this machine's clock right.",
        TlsFault::WrongName => "Use the name that the certificate is for, or get one for this name.",
        TlsFault::Other => "Check that the server speaks TLS on that port.",
    }
}

pub(super) fn server_strange(seen: &Examination) -> Option<Found> {
    let (server, step) = failed(seen, |layer| matches!(layer, Layer::Http | Layer::WebSocket))?;
    let detail = match &step.outcome {
        Outcome::Strange { detail } => format!(" ({detail})"),
        _ => String::new(),
    };
    if step.layer == Layer::WebSocket {
        return Found::fault(
            Side::Between,
            format!("the signaling server {server} answers, but WebSockets do not get through{detail}."),
            "A proxy on the way must pass on the WebSocket upgrade (the headers Upgrade and Connection).",
        );
    }
    Found::fault(
        Side::Between,
        format!("something answers at {server}, but it is no webRTC-connect signaling server{detail}."),
        "Correct the address or the port; webrtc-server listens on 8001 unless told otherwise.",
    )
}

pub(super) fn room_gone(seen: &Examination) -> Option<Found> {
    seen.refused.as_ref().filter(|failure| failure.code == Code::RoomNotFound)?;
    Found::fault(
        Side::Client,
        "the room of this invite is gone or has expired.",
        "Ask for the invite that webrtc-worker prints now; a worker keeps its room alive as long as it runs.",
    )
}

pub(super) fn not_admitted(seen: &Examination) -> Option<Found> {
    let failure = seen.refused.as_ref().filter(|failure| failure.code != Code::RoomNotFound)?;
    // Where the server cannot be reached at all, that was said.
    if seen.steps.iter().any(|step| step.outcome != Outcome::Ok) {
        return None;
    }
    Found::fault(Side::Between, format!("the signaling server does not take us in: {}", sentence(&failure.message)), "")
}

/// Why the worker did not answer: what it said to the question, or to the offer.
fn said(seen: &Examination) -> impl Iterator<Item = &Failure> {
    let trial = seen.trial.as_ref().and_then(|trial| trial.failure.as_ref());
    seen.no_report.iter().chain(trial)
}

pub(super) fn worker_gone(seen: &Examination) -> Option<Found> {
    said(seen).find(|failure| failure.code == Code::PeerNotFound)?;
    Found::fault(
        Side::Worker,
        "the room is there, but the worker is not in it.",
        "Start webrtc-worker again with the same data directory (its invite stays valid), or look in its log why it cannot reach the server.",
    )
}

pub(super) fn wrong_invite(seen: &Examination) -> Option<Found> {
    said(seen).find(|failure| failure.code == Code::NotAuthentic)?;
    Found::fault(
        Side::Client,
        "the worker is there, but this invite's secret is not the worker's (or the server tampers with messages).",
        "Copy the whole invite again from where webrtc-worker prints it.",
    )
}

pub(super) fn worker_refuses(seen: &Examination) -> Option<Found> {
    let other =
        |failure: &&Failure| !matches!(failure.code, Code::PeerNotFound | Code::NotAuthentic | Code::NoConnection | Code::Unavailable);
    let failure = said(seen).find(other)?;
    Found::fault(Side::Worker, format!("the worker does not answer as it should: {}", sentence(&failure.message)), "")
}

pub(super) fn no_report(seen: &Examination) -> Option<Found> {
    let failure = seen.no_report.as_ref()?;
    if !matches!(failure.code, Code::NoConnection | Code::Unavailable) || seen.worker.is_some() {
        return None;
    }
    Found::limit(
        Side::Worker,
        "the worker sent no report of its side, so only this side was examined.",
        "Install the same version on both sides; an older worker does not know the question.",
    )
}

/// With its full stop.
pub(super) fn sentence(text: &str) -> String {
    if text.ends_with(['.', '?', '!', ')']) { text.to_owned() } else { format!("{text}.") }
}
