//! What went wrong, in a form that survives the wire: a stable code, one sentence, and what to do about it.
//!
//! [`Failure`] travels between peers and from the server; [`Code::exit_code`] is what the programs exit with.

use serde::{Deserialize, Serialize};

/// The stable codes. Their names on the wire never change; an unknown one from a newer peer reads as [`Code::Internal`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Code {
    /// The request cannot be understood or a value in it is out of bounds.
    InvalidRequest,
    /// A token is missing, expired or not ours.
    Unauthorized,
    /// The caller is known and may not do this.
    Forbidden,
    /// No such room, a wrong token, or an expired room: one answer for all three, so that rooms cannot be enumerated.
    RoomNotFound,
    /// The peer is not in the room.
    PeerNotFound,
    /// The peer is there and does not keep up.
    PeerBusy,
    /// Another owner holds this peer id in the room.
    PeerIdTaken,
    /// A message or a body is over its limit.
    TooLarge,
    /// Too many requests; wait.
    RateLimited,
    /// The service cannot answer now; try again.
    Unavailable,
    /// The other side could not prove what the invite says: tampering on the way, or a wrong invite.
    NotAuthentic,
    /// The two programs speak different protocol versions.
    VersionMismatch,
    /// There is not enough disk space, or a quota is used up.
    NoSpace,
    /// A package cannot be used: no job in it, no images, an unreadable configuration.
    BadPackage,
    /// A local file cannot be read or written.
    BadFile,
    /// The worker knows no such job.
    JobNotFound,
    /// The job is in a state in which this cannot be done.
    WrongState,
    /// No connection could be made.
    NoConnection,
    /// The job ended without success.
    JobFailed,
    /// The job was cancelled.
    JobCancelled,
    /// Something that should not happen happened.
    #[serde(other)]
    Internal,
}

impl Code {
    /// The exit code a program ends with. 0 success, 1 internal, 2 usage, then one number a kind; 130 is for an interrupt.
    pub fn exit_code(self) -> u8 {
        match self {
            Code::InvalidRequest => 2,
            Code::BadPackage | Code::BadFile | Code::TooLarge => 3,
            Code::NoConnection | Code::Unavailable | Code::RateLimited | Code::PeerNotFound | Code::PeerBusy => 4,
            Code::Unauthorized | Code::Forbidden | Code::RoomNotFound | Code::PeerIdTaken | Code::NotAuthentic => 5,
            Code::JobFailed => 6,
            Code::JobCancelled => 7,
            Code::NoSpace => 8,
            Code::VersionMismatch => 9,
            Code::JobNotFound | Code::WrongState => 10,
            Code::Internal => 1,
        }
    }
}

/// One failure: what was wrong and what to do, each in a sentence fit for a person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// The stable code.
    pub code: Code,
    /// What was wrong, and what to do about it.
    pub message: String,
}

impl Failure {
    /// A failure with this code and message.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Failure { code, message: message.into() }
    }

    /// Whether trying the same again later may work.
    pub fn is_transient(&self) -> bool {
        matches!(self.code, Code::NoConnection | Code::Unavailable | Code::RateLimited | Code::PeerNotFound | Code::PeerBusy)
    }
}

/// The body of every REST error: `{"error": {"code", "message", "details"?}}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Envelope {
    /// The one member.
    pub error: EnvelopeError,
}

/// What [`Envelope`] holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EnvelopeError {
    /// The stable code.
    pub code: Code,
    /// What was wrong and what to do.
    pub message: String,
    /// More, for programs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<serde_json::Value>,
}

impl From<Failure> for Envelope {
    fn from(failure: Failure) -> Self {
        Envelope { error: EnvelopeError { code: failure.code, message: failure.message, details: None } }
    }
}
