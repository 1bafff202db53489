//! What is counted, and its Prometheus text. One registry for each server, not one for the process, so that tests do not share it.

use metrics::{Counter, Gauge, Key, Label, Level, Metadata, Recorder, SharedString, Unit};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use shared::domain::error::Code;

use super::rate::SignInLimit;
use crate::domain::rooms::Closing;

const METADATA: Metadata<'_> = Metadata::new("signaling_server", Level::INFO, None);
const REFUSALS: &str = "webrtc_server_refusals_total";
const CLOSED: &str = "webrtc_server_sockets_closed_total";
const SIGN_INS_REFUSED: &str = "webrtc_server_sign_ins_refused_total";

/// The counters and gauges.
pub struct Metrics {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
    /// Rooms with a connected peer.
    pub rooms: Gauge,
    /// Open WebSockets.
    pub sockets: Gauge,
    /// Anonymous users signed in.
    pub sign_ins: Counter,
    /// Users made in a user pool, also those whose sign-in failed afterwards: what the bill counts.
    pub users_made: Counter,
    /// Users deleted after their room had ended, or their sign-in had failed.
    pub users_deleted: Counter,
    /// Users that wait for their deletion.
    pub users_waiting: Gauge,
    /// Users that were to be deleted and were not.
    pub users_left: Counter,
    /// Users deleted because of their age.
    pub users_swept: Counter,
    /// Rooms made.
    pub rooms_created: Counter,
    /// Rooms deleted by their owner.
    pub rooms_deleted: Counter,
    /// Rooms removed after their expiry.
    pub rooms_swept: Counter,
    /// Successful registrations.
    pub registrations: Counter,
    /// Messages brought from one peer to another.
    pub relayed: Counter,
    /// TURN credentials given out.
    pub turn_credentials: Counter,
    /// Whether there is a connection to NATS.
    pub nats_up: Gauge,
    /// Servers of this deployment, this one among them.
    pub servers: Gauge,
    /// Messages for peers of other servers that were not delivered.
    pub undelivered: Counter,
    /// Peers that have registered with another server and were given up.
    pub fenced: Counter,
    /// Messages of other servers that were dropped.
    pub malformed: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Everything at zero.
    pub fn new() -> Self {
        let recorder = PrometheusBuilder::new().build_recorder();
        let handle = recorder.handle();
        let counter = |name: &'static str, about: &'static str| {
            recorder.describe_counter(name.into(), Some(Unit::Count), SharedString::const_str(about));
            recorder.register_counter(&Key::from_static_name(name), &METADATA)
        };
        let gauge = |name: &'static str, about: &'static str| {
            recorder.describe_gauge(name.into(), Some(Unit::Count), SharedString::const_str(about));
            recorder.register_gauge(&Key::from_static_name(name), &METADATA)
        };
        let rooms = gauge("webrtc_server_rooms", "Rooms with a connected peer");
        let sockets = gauge("webrtc_server_sockets", "Open WebSockets");
        let nats_up = gauge("webrtc_server_nats_up", "Whether there is a connection to NATS");
        let servers = gauge("webrtc_server_servers", "Servers of this deployment, this one among them");
        let users_waiting = gauge("webrtc_server_users_waiting", "Users that wait for their deletion");
        for (gauge, value) in [(&rooms, 0.0), (&sockets, 0.0), (&nats_up, 0.0), (&servers, 1.0), (&users_waiting, 0.0)] {
            gauge.set(value);
        }
        let metrics = Metrics {
            rooms,
            sockets,
            sign_ins: counter("webrtc_server_sign_ins_total", "Anonymous users signed in"),
            users_made: counter("webrtc_server_users_made_total", "Users made in the user pool; each counts for its bill"),
            users_deleted: counter(
                "webrtc_server_users_deleted_total",
                "Users deleted after their room had ended or their sign-in had failed",
            ),
            users_waiting,
            users_left: counter("webrtc_server_users_left_total", "Users that were to be deleted and are left to the sweeper"),
            users_swept: counter("webrtc_server_users_swept_total", "Users deleted because of their age"),
            rooms_created: counter("webrtc_server_rooms_created_total", "Rooms made"),
            rooms_deleted: counter("webrtc_server_rooms_deleted_total", "Rooms deleted by their owner"),
            rooms_swept: counter("webrtc_server_rooms_swept_total", "Rooms removed after their expiry"),
            registrations: counter("webrtc_server_registrations_total", "Successful registrations"),
            relayed: counter("webrtc_server_messages_relayed_total", "Messages brought from one peer to another"),
            turn_credentials: counter("webrtc_server_turn_credentials_total", "TURN credentials given to admitted peers"),
            nats_up,
            servers,
            undelivered: counter("webrtc_server_messages_undelivered_total", "Messages for peers of other servers that were not delivered"),
            fenced: counter("webrtc_server_peers_fenced_total", "Peers given up since they have registered with another server"),
            malformed: counter("webrtc_server_malformed_messages_total", "Messages of other servers that were dropped"),
            handle,
            recorder,
        };
        metrics.recorder.describe_counter(REFUSALS.into(), Some(Unit::Count), "Requests and messages refused, by code".into());
        metrics.recorder.describe_counter(CLOSED.into(), Some(Unit::Count), "WebSockets closed, by close code".into());
        metrics.recorder.describe_counter(SIGN_INS_REFUSED.into(), Some(Unit::Count), "Sign-ins over a limit, by limit".into());
        metrics
    }

    /// Counts a sign-in over a limit.
    pub fn sign_in_refused(&self, limit: SignInLimit) {
        self.labelled(SIGN_INS_REFUSED, Label::new("limit", limit.name()));
    }

    /// Counts a refusal under its stable code.
    pub fn refused(&self, code: Code) {
        let name = serde_json::to_value(code).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default();
        self.labelled(REFUSALS, Label::new("code", name));
    }

    /// Counts a closed socket under its close code.
    pub fn closed(&self, why: Closing) {
        self.labelled(CLOSED, Label::new("code", why.code().to_string()));
    }

    fn labelled(&self, name: &'static str, label: Label) {
        self.recorder.register_counter(&Key::from_parts(name, vec![label]), &METADATA).increment(1);
    }

    /// The Prometheus text, version 0.0.4.
    pub fn render(&self) -> String {
        self.handle.render()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_show_in_the_text() {
        let metrics = Metrics::new();
        metrics.refused(Code::RoomNotFound);
        metrics.refused(Code::RoomNotFound);
        metrics.closed(Closing::Flooding);
        metrics.relayed.increment(3);
        let text = metrics.render();
        for line in [
            "webrtc_server_refusals_total{code=\"ROOM_NOT_FOUND\"} 2",
            "webrtc_server_sockets_closed_total{code=\"4429\"} 1",
            "webrtc_server_messages_relayed_total 3",
            "webrtc_server_sign_ins_total 0",
            "webrtc_server_rooms 0",
        ] {
            assert!(text.contains(line), "{line} is missing in:\n{text}");
        }
    }
}
