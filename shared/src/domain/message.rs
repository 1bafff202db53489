//! The whole data-channel protocol, bulk frames apart: one line of text a message, `NAME::payload`, the payload JSON.
//!
//! The grammar and many names are the ancestor's (`FILE_META`, `PROGRESS_REPORT`, `TRAIN_LOG`, `ZMQ_CTRL`, `TRAIN_JOB_START`,
//! `TRAIN_JOB_END`, `END_OF_FILE`); the payloads are ours: JSON, so that a `:` in a name does not matter. Two enums, one a
//! direction, each with an `Unknown` arm. `req` ties a reply to its request.
//!
//! * first on a control channel: `HELLO` → `WELCOME` (or `REFUSED`)
//! * a job: `SUBMIT` → `ACCEPTED`; then, if its package is not there yet, a transfer from the client
//! * a plan, which changes nothing: `SUBMIT` with `plan` → `PLANNING`, if the manifest is wanted → its pieces → `PLAN` → probe frames, if
//!   there is something to send → `PROBED`
//! * a transfer, either way: `FILE_META` → `FILE_READY` → manifest pieces, if wanted → [`FILE_PROVE`… → proof pieces →] `FILE_NEED`… → chunk pieces ⇄ `FILE_ACK`
//!   → `END_OF_FILE` → `FILE_DONE`; either side may end it with `FILE_REFUSED`
//! * following: `WATCH` → journal entries on the progress channel, `CAUGHT_UP` at the journal's present end; `JOB_STATE` at changes
//! * control: `ZMQ_CTRL` → `ZMQ_CTRL_STATE` (received → applied → observed)
//! * results: `FETCH` → a transfer from the worker
//! * a checkpoint while training goes on: `FETCH_CHECKPOINT` → `CHECKPOINT`, which names the transfer that follows; `FETCH` ends it
//! * a bulk connection: `BULK_OFFER` → `BULK_ANSWER`, `BULK_CANDIDATE` both ways

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::{
    error::{Code, Failure},
    id::{CommandId, JobId, PeerId, SessionId},
    invite::Grant,
    job::{Checkpoint, Command, CommandState, JobEvent, JobSpec, JobStatus, JournalEntry},
    manifest::{Hash, ManifestSummary},
    transfer::Challenge,
};

/// The protocol's version. Peers with another major number refuse each other and say which version to install.
pub const PROTOCOL: u32 = 1;
/// The longest message, in bytes.
pub const MAX_MESSAGE: usize = 64 * 1024;

/// A number that ties a reply to its request; chosen by the client, unique in its session.
pub type Req = u64;
/// A transfer of a session; chosen by the side that sends the file: the client takes numbers below 2³¹, the worker the others.
pub type TransferId = u32;
/// The number under which the frames of a plan travel: the manifest, and what measures the path.
pub const PLAN_TRANSFER: TransferId = 0;

/// One GPU of a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "GpuOnTheWire", into = "GpuOnTheWire")]
pub struct Gpu {
    /// The product name.
    pub name: String,
    /// Its memory; `None`: the driver did not tell.
    pub memory: Option<Memory>,
    /// The driver's version.
    pub driver: String,
}

/// A GPU's memory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// All of it.
    pub total: u64,
    /// What is free.
    pub free: u64,
}

/// As the first version has it: both numbers are there, and unknown ones are 0.
#[derive(Serialize, Deserialize)]
struct GpuOnTheWire {
    name: String,
    #[serde(default)]
    memory: Option<u64>,
    #[serde(default)]
    memory_free: Option<u64>,
    driver: String,
}

impl From<GpuOnTheWire> for Gpu {
    fn from(gpu: GpuOnTheWire) -> Self {
        let GpuOnTheWire { name, memory, memory_free, driver } = gpu;
        let known = memory.filter(|total| *total > 0).zip(memory_free);
        Gpu { name, memory: known.map(|(total, free)| Memory { total, free }), driver }
    }
}

impl From<Gpu> for GpuOnTheWire {
    fn from(gpu: Gpu) -> Self {
        let Memory { total, free } = gpu.memory.unwrap_or(Memory { total: 0, free: 0 });
        GpuOnTheWire { name: gpu.name, memory: Some(total), memory_free: Some(free), driver: gpu.driver }
    }
}

/// What a worker says about itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkerInfo {
    /// Its peer id in the room.
    pub peer: PeerId,
    /// What people call it (the host name, unless configured).
    pub name: String,
    /// Its program version.
    pub version: String,
    /// Its GPUs; empty: it has none.
    pub gpus: Vec<Gpu>,
    /// The trainer adapters it has.
    pub trainers: Vec<String>,
    /// Jobs running or waiting.
    pub jobs: u32,
    /// Free disk space for packages and results, in bytes.
    pub disk_free: u64,
}

macro_rules! protocol {
    ($(#[$meta:meta])* $name:ident { $($(#[$vmeta:meta])* $text:literal => $variant:ident($payload:ty),)* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq)]
        pub enum $name {
            $($(#[$vmeta])* $variant($payload),)*
            /// Something newer: its name.
            Unknown(String),
        }

        impl $name {
            /// One line of text.
            pub fn encode(&self) -> String {
                match self {
                    $($name::$variant(payload) => encode_line($text, payload),)*
                    $name::Unknown(name) => format!("{name}::null"),
                }
            }

            /// Reads one line of text.
            ///
            /// # Errors
            /// [`Code::TooLarge`], or [`Code::InvalidRequest`] when a known name has a payload that is not its own.
            pub fn decode(line: &str) -> Result<Self, Failure> {
                let (name, payload) = split_line(line)?;
                match name {
                    $($text => Ok($name::$variant(decode_payload(name, payload)?)),)*
                    _ => Ok($name::Unknown(name.to_owned())),
                }
            }

            /// The message's name on the wire.
            pub fn name(&self) -> &str {
                match self {
                    $($name::$variant(_) => $text,)*
                    $name::Unknown(name) => name,
                }
            }
        }
    };
}

protocol! {
    /// From a client to a worker.
    ToWorker {
        /// The first message of a connection.
        "HELLO" => Hello(Hello),
        /// Run this job; the same one again asks for its state.
        "SUBMIT" => Submit(Submit),
        /// List the jobs.
        "JOBS" => Jobs(Request),
        /// Send me a job's journal from a seq on, and keep sending.
        "WATCH" => Watch(Watch),
        /// No more of this job's journal.
        "UNWATCH" => Unwatch(JobRef),
        /// Stop or cancel a job.
        "ZMQ_CTRL" => Control(Control),
        /// Send me a job's results.
        "FETCH" => Fetch(JobRef),
        /// Send me a step's newest checkpoint.
        "FETCH_CHECKPOINT" => FetchCheckpoint(CheckpointWish),
        /// The results are in their place here.
        "FETCHED" => Fetched(JobRef),
        /// A step of a transfer.
        "FILE_META" => FileMeta(FileMeta),
        /// A step of a transfer.
        "FILE_READY" => FileReady(FileReady),
        /// A step of a transfer.
        "FILE_PROVE" => FileProve(FileProve),
        /// A step of a transfer.
        "FILE_NEED" => FileNeed(FileNeed),
        /// A step of a transfer.
        "FILE_ACK" => FileAck(FileAck),
        /// A step of a transfer.
        "END_OF_FILE" => EndOfFile(FileEnd),
        /// A step of a transfer.
        "FILE_DONE" => FileDone(FileEnd),
        /// A transfer cannot go on.
        "FILE_REFUSED" => FileRefused(FileRefused),
        /// A session description for a bulk connection.
        "BULK_OFFER" => BulkOffer(BulkSdp),
        /// An ICE candidate for a bulk connection.
        "BULK_CANDIDATE" => BulkCandidate(BulkCandidate),
        /// Are you there?
        "PING" => Ping(Ping),
        /// Yes.
        "PONG" => Pong(Ping),
        /// I am leaving on purpose; what I wanted to know has arrived.
        "BYE" => Bye(Bye),
    }
}

protocol! {
    /// From a worker to a client.
    ToClient {
        /// The answer to `HELLO`.
        "WELCOME" => Welcome(Welcome),
        /// A request cannot be done.
        "REFUSED" => Refused(Refused),
        /// The answer to `SUBMIT`.
        "ACCEPTED" => Accepted(Accepted),
        /// To answer a `SUBMIT` with `plan`, the worker needs the manifest's bytes.
        "PLANNING" => Planning(Request),
        /// The answer to a `SUBMIT` with `plan`.
        "PLAN" => Plan(Box<Plan>),
        /// How the probe frames arrived that followed a plan.
        "PROBED" => Probed(Probed),
        /// The answer to `JOBS`.
        "JOB_LIST" => JobList(JobList),
        /// A watched or submitted job has changed.
        "JOB_STATE" => JobState(JobStatus),
        /// How far a command has come.
        "ZMQ_CTRL_STATE" => ControlState(ControlState),
        /// A journal entry.
        "PROGRESS_REPORT" => Progress(Progress),
        /// A journal entry: a step begins.
        "TRAIN_JOB_START" => TrainJobStart(Progress),
        /// A journal entry: a step has ended.
        "TRAIN_JOB_END" => TrainJobEnd(Progress),
        /// A journal entry: a line of the trainer's output.
        "TRAIN_LOG" => TrainLog(Progress),
        /// The answer to `FETCH_CHECKPOINT`.
        "CHECKPOINT" => Checkpoint(CheckpointOffer),
        /// The journal's present end has been sent.
        "CAUGHT_UP" => CaughtUp(CaughtUp),
        /// A step of a transfer.
        "FILE_META" => FileMeta(FileMeta),
        /// A step of a transfer.
        "FILE_READY" => FileReady(FileReady),
        /// A step of a transfer.
        "FILE_PROVE" => FileProve(FileProve),
        /// A step of a transfer.
        "FILE_NEED" => FileNeed(FileNeed),
        /// A step of a transfer.
        "FILE_ACK" => FileAck(FileAck),
        /// A step of a transfer.
        "END_OF_FILE" => EndOfFile(FileEnd),
        /// A step of a transfer.
        "FILE_DONE" => FileDone(FileEnd),
        /// A transfer cannot go on.
        "FILE_REFUSED" => FileRefused(FileRefused),
        /// The answer to `BULK_OFFER`.
        "BULK_ANSWER" => BulkAnswer(BulkSdp),
        /// An ICE candidate for a bulk connection.
        "BULK_CANDIDATE" => BulkCandidate(BulkCandidate),
        /// Are you there?
        "PING" => Ping(Ping),
        /// Yes.
        "PONG" => Pong(Ping),
        /// The worker is going away; the session may be taken up again when it is back.
        "BYE" => Bye(Bye),
    }
}

impl ToClient {
    /// A journal entry under the name that the ancestor gave its kind.
    pub fn journal(job: JobId, entry: JournalEntry) -> Self {
        let wrap = match entry.event {
            JobEvent::StepStarted { .. } => ToClient::TrainJobStart,
            JobEvent::StepEnded { .. } => ToClient::TrainJobEnd,
            JobEvent::Log { .. } => ToClient::TrainLog,
            _ => ToClient::Progress,
        };
        wrap(Progress { job, entry })
    }

    /// The journal entry in it, if it is one.
    #[expect(clippy::result_large_err, reason = "the error is the message itself, handed on at once")]
    pub fn into_journal(self) -> Result<Progress, Self> {
        match self {
            ToClient::TrainJobStart(p) | ToClient::TrainJobEnd(p) | ToClient::TrainLog(p) | ToClient::Progress(p) => Ok(p),
            other => Err(other),
        }
    }
}

/// A step of a transfer, whichever way it goes.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// The sender announces.
    Meta(FileMeta),
    /// The receiver is ready.
    Ready(FileReady),
    /// The receiver wants a proof that the sender has these.
    Prove(FileProve),
    /// The receiver lacks these.
    Need(FileNeed),
    /// The receiver has these on disk.
    Ack(FileAck),
    /// The sender has sent everything.
    End(FileEnd),
    /// The receiver has everything in place.
    Done(FileEnd),
    /// Either side cannot go on.
    Refused(FileRefused),
}

impl Step {
    /// Which transfer it belongs to.
    pub fn transfer(&self) -> TransferId {
        match self {
            Step::Meta(FileMeta { transfer, .. })
            | Step::Ready(FileReady { transfer, .. })
            | Step::Prove(FileProve { transfer, .. })
            | Step::Need(FileNeed { transfer, .. })
            | Step::Ack(FileAck { transfer, .. })
            | Step::End(FileEnd { transfer, .. })
            | Step::Done(FileEnd { transfer, .. })
            | Step::Refused(FileRefused { transfer, .. }) => *transfer,
        }
    }
}

macro_rules! steps {
    ($name:ident) => {
        impl From<Step> for $name {
            fn from(step: Step) -> Self {
                match step {
                    Step::Meta(payload) => $name::FileMeta(payload),
                    Step::Ready(payload) => $name::FileReady(payload),
                    Step::Prove(payload) => $name::FileProve(payload),
                    Step::Need(payload) => $name::FileNeed(payload),
                    Step::Ack(payload) => $name::FileAck(payload),
                    Step::End(payload) => $name::EndOfFile(payload),
                    Step::Done(payload) => $name::FileDone(payload),
                    Step::Refused(payload) => $name::FileRefused(payload),
                }
            }
        }

        impl $name {
            /// The transfer step in it, if it is one.
            #[expect(clippy::result_large_err, reason = "the error is the message itself, handed on at once")]
            pub fn into_step(self) -> Result<Step, Self> {
                Ok(match self {
                    $name::FileMeta(payload) => Step::Meta(payload),
                    $name::FileReady(payload) => Step::Ready(payload),
                    $name::FileProve(payload) => Step::Prove(payload),
                    $name::FileNeed(payload) => Step::Need(payload),
                    $name::FileAck(payload) => Step::Ack(payload),
                    $name::EndOfFile(payload) => Step::End(payload),
                    $name::FileDone(payload) => Step::Done(payload),
                    $name::FileRefused(payload) => Step::Refused(payload),
                    other => return Err(other),
                })
            }
        }
    };
}

steps!(ToWorker);
steps!(ToClient);

/// How long a worker holds a session without a link, in seconds, unless it is told otherwise.
pub const HELD: u64 = 90;

fn held_by_default() -> u64 {
    HELD
}

macro_rules! payloads {
    ($($(#[$meta:meta])* $name:ident { $($(#[$fmeta:meta])* $field:ident: $type:ty,)* })*) => {
        $($(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        pub struct $name { $($(#[$fmeta])* pub $field: $type,)* })*
    };
}

payloads! {
    /// Who the client is.
    Hello {
        /// [`PROTOCOL`].
        protocol: u32,
        /// The program's version.
        version: String,
        /// The session, new or taken up again.
        session: SessionId,
    }
    /// Who the worker is and what the client may do.
    Welcome {
        /// [`PROTOCOL`].
        protocol: u32,
        /// What the client proved.
        grant: Grant,
        /// The worker.
        worker: WorkerInfo,
        /// Whether the worker still held this session (queue place, upload lease).
        resumed: bool,
        /// How long it holds a session without a link, in seconds.
        #[serde(default = "held_by_default")]
        held: u64,
    }
    /// A request without more in it.
    Request {
        /// Ties the reply.
        req: Req,
    }
    /// A request that cannot be done.
    Refused {
        /// Which.
        req: Req,
        /// Why.
        failure: Failure,
    }
    /// A job to run.
    Submit {
        /// Ties the reply.
        req: Req,
        /// What to do.
        spec: JobSpec,
        /// The package.
        manifest: ManifestSummary,
        /// `true`: only say what would happen.
        plan: bool,
    }
    /// A job that the worker has.
    Accepted {
        /// Which request.
        req: Req,
        /// Its present state. [`super::job::JobState::Uploading`]: the client should announce the package with `FILE_META`.
        status: JobStatus,
        /// Whether the job was there before.
        known: bool,
    }
    /// What a submission would do. Nothing was changed to find out.
    Plan {
        /// Which request.
        req: Req,
        /// The job that it would be.
        job: JobId,
        /// That job, where the worker has it already.
        known: Option<JobStatus>,
        /// Bytes that the worker lacks and the client would send.
        to_send: u64,
        /// Bytes that the worker has room for: on its disk, and in what its packages may take there.
        free: u64,
        /// Jobs that would run before it.
        ahead: u32,
        /// The names of the jobs that run now; a few.
        running: Vec<String>,
        /// The worker's present facts.
        worker: WorkerInfo,
        /// What a person should know before submitting, each a sentence.
        notices: Vec<String>,
        /// Why the submission would be refused, where it would.
        refused: Option<Failure>,
        /// Bytes of probe frames that the worker will take now.
        probe: u64,
    }
    /// How probe frames arrived: once the path is in swing, by the receiver's clock.
    Probed {
        /// Which request.
        req: Req,
        /// So many bytes …
        bytes: u64,
        /// … in so many microseconds; 0: too few arrived to tell.
        micros: u64,
    }
    /// A job, as the subject of a request.
    JobRef {
        /// Ties the reply.
        req: Req,
        /// Which job.
        job: JobId,
    }
    /// A wish for a checkpoint. It ends the transfer of the one before over the same connection.
    CheckpointWish {
        /// Ties the reply.
        req: Req,
        /// Which job.
        job: JobId,
        /// Which of its steps.
        step: u32,
    }
    /// A step's newest checkpoint, about to be sent.
    CheckpointOffer {
        /// Which request.
        req: Req,
        /// Which job.
        job: JobId,
        /// The transfer that will bring it.
        transfer: TransferId,
        /// What it is.
        checkpoint: Checkpoint,
    }
    /// A wish to follow a job.
    Watch {
        /// Ties the reply.
        req: Req,
        /// Which job.
        job: JobId,
        /// The first seq wanted, from 1.
        from: u64,
    }
    /// All jobs that the worker knows, oldest first.
    JobList {
        /// Which request.
        req: Req,
        /// Them; the newest 100.
        jobs: Vec<JobStatus>,
        /// The worker's present facts.
        worker: WorkerInfo,
    }
    /// A command for a job.
    Control {
        /// Which job.
        job: JobId,
        /// The command's own id: sent again, it is applied once.
        id: CommandId,
        /// What to do.
        command: Command,
    }
    /// How far a command has come.
    ControlState {
        /// Which job.
        job: JobId,
        /// Which command.
        id: CommandId,
        /// How far.
        state: CommandState,
        /// Why, where it was refused.
        message: String,
    }
    /// A journal entry of a job.
    Progress {
        /// Which job.
        job: JobId,
        /// The entry.
        entry: JournalEntry,
    }
    /// The viewer has everything that there is at present.
    CaughtUp {
        /// Which job.
        job: JobId,
        /// The journal's last seq.
        seq: u64,
    }
    /// A transfer that the sending side announces.
    FileMeta {
        /// The sender's number for it.
        transfer: TransferId,
        /// Whose package or results.
        job: JobId,
        /// What.
        manifest: ManifestSummary,
        /// Whether the sender answers `FILE_PROVE`.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        can_prove: bool,
    }
    /// The receiver is ready.
    FileReady {
        /// Which transfer.
        transfer: TransferId,
        /// Whether it wants the manifest's bytes; otherwise it has them.
        manifest_wanted: bool,
        /// How many bytes may be under way unacknowledged.
        window: u64,
        /// Whether chunks may come compressed (Zstandard).
        #[serde(default)]
        zstd: bool,
        /// The longest piece of a chunk that it takes, in bytes; less than 65 520 (or nothing) means that.
        #[serde(default)]
        piece: u32,
    }
    /// Which chunks the sender shall prove that it has, before it is told what is needed: pieces of one bitmap, in order. The answer
    /// is proof frames on a bulk connection.
    FileProve {
        /// Which transfer.
        transfer: TransferId,
        /// What the proof answers; the same in all pieces.
        challenge: Challenge,
        /// The index of the piece's first chunk.
        first: u32,
        /// One bit a chunk (least significant first), base64url.
        bits: String,
        /// Whether this is the last piece.
        last: bool,
    }
    /// Which chunks the receiver lacks: pieces of one bitmap, in order.
    FileNeed {
        /// Which transfer.
        transfer: TransferId,
        /// The index of the piece's first chunk.
        first: u32,
        /// One bit a chunk (least significant first), base64url.
        bits: String,
        /// Whether this is the last piece.
        last: bool,
    }
    /// Chunks that are verified and on disk.
    FileAck {
        /// Which transfer.
        transfer: TransferId,
        /// Ranges of chunk indices, first and last included.
        ranges: Vec<(u32, u32)>,
    }
    /// The end of a transfer: everything was sent, or everything is in place.
    FileEnd {
        /// Which transfer.
        transfer: TransferId,
        /// The manifest's hash, once more.
        manifest: Hash,
    }
    /// A transfer that cannot go on.
    FileRefused {
        /// Which transfer.
        transfer: TransferId,
        /// Why.
        failure: Failure,
    }
    /// A session description for a bulk connection.
    BulkSdp {
        /// The client's number for the connection.
        connection: u32,
        /// The description.
        sdp: String,
    }
    /// An ICE candidate for a bulk connection.
    BulkCandidate {
        /// The client's number for the connection.
        connection: u32,
        /// The candidate.
        candidate: Value,
    }
    /// A sign of life.
    Ping {
        /// Echoed.
        n: u64,
    }
    /// A polite end.
    Bye {
        /// One word for the log.
        reason: String,
    }
}

fn encode_line<T: Serialize>(name: &str, payload: &T) -> String {
    format!("{name}::{}", serde_json::to_string(payload).expect("payloads have string keys only"))
}

fn split_line(line: &str) -> Result<(&str, &str), Failure> {
    if line.len() > MAX_MESSAGE {
        return Err(Failure::new(Code::TooLarge, format!("a message of {} bytes; at most {MAX_MESSAGE} are allowed", line.len())));
    }
    let (name, payload) = line.split_once("::").unwrap_or((line, "null"));
    if name.is_empty() || name.len() > 64 || !name.bytes().all(|b| b.is_ascii_uppercase() || b == b'_') {
        return Err(Failure::new(Code::InvalidRequest, "a message without a name of its own (NAME::payload)"));
    }
    Ok((name, payload))
}

fn decode_payload<T: DeserializeOwned>(name: &str, payload: &str) -> Result<T, Failure> {
    serde_json::from_str(payload)
        .map_err(|error| Failure::new(Code::InvalidRequest, format!("the payload of {name} cannot be read: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn messages_look_like_the_ancestors() {
        let ping = ToWorker::Ping(Ping { n: 4 });
        assert_eq!(ping.encode(), r#"PING::{"n":4}"#);
        assert_eq!(ToWorker::decode(&ping.encode()).unwrap(), ping);
        let entry = JournalEntry { seq: 1, at_ms: 2, event: JobEvent::Log { step: 0, line: "END_OF_FILE::x".into() } };
        let log = ToClient::journal("j".parse().unwrap(), entry);
        assert!(log.encode().starts_with("TRAIN_LOG::{"));
        assert_eq!(ToClient::decode(&log.encode()).unwrap(), log);
    }

    #[test]
    fn a_colon_in_a_name_does_not_matter() {
        let line = r#"BYE::{"reason":"C:\\data::x"}"#;
        assert_eq!(ToWorker::decode(line).unwrap(), ToWorker::Bye(Bye { reason: r"C:\data::x".into() }));
    }

    #[test]
    fn the_newer_is_tolerated_and_the_wrong_refused() {
        assert_eq!(ToWorker::decode("JOIN_MESH::{}").unwrap(), ToWorker::Unknown("JOIN_MESH".into()));
        assert_eq!(ToWorker::decode("PING::{}").unwrap_err().code, Code::InvalidRequest);
        assert_eq!(ToWorker::decode("hello").unwrap_err().code, Code::InvalidRequest);
        assert_eq!(ToWorker::decode(&"X".repeat(MAX_MESSAGE + 1)).unwrap_err().code, Code::TooLarge);
    }

    #[test]
    fn a_gpu_of_unknown_memory_is_understood_by_old_and_new() {
        let gpu = |memory| Gpu { name: "T4".into(), memory, driver: "1".into() };
        let read = |text: &str| serde_json::from_str::<Gpu>(text).unwrap();
        let known = gpu(Some(Memory { total: 15, free: 0 }));
        let unknown = gpu(None);
        // Older peers know nothing but numbers here.
        assert_eq!(serde_json::to_string(&known).unwrap(), r#"{"name":"T4","memory":15,"memory_free":0,"driver":"1"}"#);
        assert_eq!(serde_json::to_string(&unknown).unwrap(), r#"{"name":"T4","memory":0,"memory_free":0,"driver":"1"}"#);
        assert_eq!(read(r#"{"name":"T4","memory":15,"memory_free":0,"driver":"1"}"#), known);
        for text in [
            r#"{"name":"T4","memory":0,"memory_free":0,"driver":"1"}"#,
            r#"{"name":"T4","memory":null,"memory_free":null,"driver":"1"}"#,
            r#"{"name":"T4","memory":15,"driver":"1"}"#,
            r#"{"name":"T4","driver":"1"}"#,
        ] {
            assert_eq!(read(text), unknown, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "([A-Z_]{0,12}::)?\\PC{0,200}") {
            let _ = ToWorker::decode(&text);
            let _ = ToClient::decode(&text);
        }
    }
}
