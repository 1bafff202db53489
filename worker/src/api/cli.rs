//! `webrtc-worker`: flags, environment and file become one configuration; what the agent says becomes lines.

use std::{
    io::Write,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::{Args, Parser, Subcommand};
use serde::Deserialize;
use shared::{
    domain::{
        error::{Code, Failure},
        ice::IceServers,
        job::Outcome,
        message::HELD,
        network::{Host, Interfaces, NetworkSettings, PortRange},
    },
    runtime::{config, shutdown::Shutdown, telemetry},
};
use tokio::sync::mpsc;

use super::{
    health::{self, HealthArgs},
    network::NetworkArgs,
    store::{self, StoreArgs},
};
use crate::{
    domain::{
        size::Size,
        span::Span,
        stay::{Leave, Stay},
        trainer::TrainerSettings,
    },
    runtime::{
        agent::{self, AgentConfig, AgentEvent},
        room::write_private,
        runner,
    },
};

/// How long connected clients and supervisors get to say goodbye.
const GOODBYE: Duration = Duration::from_secs(5);

/// How long the results of the one job of an ephemeral worker wait to be fetched while nobody is connected.
const FETCH_WITHIN: Duration = Duration::from_secs(600);

const LONG_ABOUT: &str = "\
Opens a time-limited room on a signaling server, prints an invite, and runs the training jobs that invited clients submit.
Data travels directly between client and worker, encrypted end to end; the server never sees it.

Whoever holds the submit invite can run code here, within what the trainer may do: pass it on as you would a password.";

const AFTER_HELP: &str = "\
Examples:
  webrtc-worker --server http://signaling.lab.example:8001
  webrtc-worker --server http://127.0.0.1:8001 --data-dir /data/worker --invite-file invite.txt
  webrtc-worker store --data-dir /data/worker            # which packages there are, and who uses them
  webrtc-worker store prune --older-than 7               # removes what nobody used for a week

  webrtc-worker --ephemeral --idle-timeout 1h --data-dir $TMPDIR/worker
      one job, then the end: for SLURM, a Kubernetes Job, a machine that costs money

A worker that is stopped or killed and started again with the same --data-dir is in the same room, and its invites stay valid;
trainings go on meanwhile. One that ends by itself (--ephemeral, --idle-timeout) closes its room, unless it is shared (--room-file).

Exit codes: 0 ended on request or idle, or its one job completed or was stopped · 6 its one job failed · 7 it was cancelled · 1 internal error · 2 wrong usage or configuration · 3 unusable file · 4 no connection ·
5 refused by the server · 8 no disk space";

/// The command line.
#[derive(Debug, Parser)]
#[command(name = "webrtc-worker", version, about = "Runs training jobs for invited clients", long_about = LONG_ABOUT, after_long_help = AFTER_HELP, args_conflicts_with_subcommands = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Subcommands>,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Debug, Subcommand)]
enum Subcommands {
    /// Shows the packages that the worker keeps, and removes those that nobody uses; also while it runs
    Store(StoreArgs),
    /// Says whether the worker of a data directory is alive; exits with 0 if it is
    Health(HealthArgs),
    /// Runs one job; started by the worker itself.
    #[command(hide = true)]
    RunJob {
        /// The job's directory.
        job: PathBuf,
    },
}

#[derive(Debug, Args)]
struct RunArgs {
    /// Base URL of the signaling server, such as http://HOST:8001
    #[arg(long, env = "WEBRTC_SERVER", value_name = "URL")]
    server: Option<String>,
    /// Where packages, jobs, results and the worker's identity are kept [default: ~/.local/share/webrtc-connect/worker]
    #[arg(long, env = "WEBRTC_WORKER_DATA", value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// What people call this worker [default: the host name]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Writes the submit invite to this file (mode 0600), too
    #[arg(long, value_name = "FILE")]
    invite_file: Option<PathBuf>,
    /// File that holds the room; workers that share it (on a shared disk) share one room and its invites [default: in the data directory]
    #[arg(long, value_name = "FILE")]
    room_file: Option<PathBuf>,
    /// Seconds that the room lives unless it is renewed; the worker renews it as long as it runs
    #[arg(long, value_name = "SECONDS")]
    room_ttl: Option<u64>,
    /// Jobs to run at the same time [default: 1]
    #[arg(long, value_name = "N")]
    parallel: Option<usize>,
    /// What packages may take on disk, such as 200GB; then the longest unused make room [default: four fifths of what is free]
    #[arg(long, value_name = "SIZE")]
    quota: Option<Size>,
    /// Has every client send everything itself; otherwise what another has sent need not be sent by one who proves to have it, too
    #[arg(long)]
    no_sharing: bool,
    /// Days that jobs, results and packages stay which nobody uses; fetched results stay one day [default: 14]
    #[arg(long, value_name = "DAYS")]
    keep_days: Option<u32>,
    /// Seconds for which a client whose connection broke keeps its place in the queue and those of its unfinished uploads [default: 90]
    #[arg(long, value_name = "SECONDS")]
    hold: Option<u32>,
    /// Take one job, and end when its results have been fetched, with the exit code of the job (6 failed, 7 cancelled)
    #[arg(long, env = "WEBRTC_WORKER_EPHEMERAL", value_parser = super::network::switch, help_heading = "When to end")]
    ephemeral: bool,
    /// With --ephemeral: how long results wait to be fetched while no client is connected, such as 30m [default: 10m]
    #[arg(long, env = "WEBRTC_WORKER_FETCH_WITHIN", value_name = "TIME", help_heading = "When to end")]
    fetch_within: Option<Span>,
    /// End when there was neither a job nor a client for so long, such as 30m
    #[arg(long, env = "WEBRTC_WORKER_IDLE_TIMEOUT", value_name = "TIME", help_heading = "When to end")]
    idle_timeout: Option<Span>,
    #[command(flatten)]
    network: NetworkArgs,
    #[command(flatten)]
    file: FileArgs,
    /// One JSON object a line on stdout
    #[arg(long)]
    json: bool,
    /// More log lines on stderr; twice for everything
    #[arg(short, long, action = clap::ArgAction::Count)]
    verbose: u8,
}

/// Which configuration file.
#[derive(Debug, Args)]
pub(super) struct FileArgs {
    /// Configuration file [default: ./webrtc-connect.toml, then the user's]
    #[arg(long, env = "WEBRTC_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Named environment of the configuration file
    #[arg(long, env = "WEBRTC_ENVIRONMENT", value_name = "NAME")]
    environment: Option<String>,
}

impl FileArgs {
    /// What it says of the worker.
    ///
    /// # Errors
    /// When it cannot be read; the message names file, line and key.
    pub(super) fn load(&self) -> Result<Section, Failure> {
        config::load("worker", self.config.as_deref(), self.environment.as_deref())
    }
}

/// The `[worker]` section of the configuration file.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Section {
    server: Option<String>,
    pub(super) data_dir: Option<PathBuf>,
    name: Option<String>,
    room_file: Option<PathBuf>,
    room_ttl: Option<u64>,
    parallel: Option<usize>,
    pub(super) quota: Option<Size>,
    sharing: Option<bool>,
    keep_days: Option<u32>,
    hold: Option<u32>,
    ephemeral: Option<bool>,
    fetch_within: Option<Span>,
    idle_timeout: Option<Span>,
    ice_servers: Option<IceServers>,
    relay_only: Option<bool>,
    advertise_ip: Option<Host>,
    udp_ports: Option<PortRange>,
    interfaces: Option<Interfaces>,
    bind: Vec<SocketAddr>,
    ca_file: Option<PathBuf>,
    sleap_nn: Option<Vec<String>>,
    sleap_train: Option<Vec<String>>,
    trainer_env: Vec<String>,
    allow_checkpoints: bool,
    grace_secs: Option<u32>,
    trainers: std::collections::BTreeMap<String, crate::domain::trainer::CustomTrainer>,
}

/// Runs the program.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        Some(Subcommands::RunJob { job }) => return run_job(&job),
        Some(Subcommands::Store(args)) => store::run(args),
        Some(Subcommands::Health(args)) => health::run(&args),
        None => match run(cli.run) {
            Ok(leave) => return leave.map_or(ExitCode::SUCCESS, exit_code),
            Err(failure) => Err(failure),
        },
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("error: {failure}");
            ExitCode::from(failure.code.exit_code())
        }
    }
}

/// The client's, for the same outcome.
fn exit_code(leave: Leave) -> ExitCode {
    match leave {
        Leave::Idle | Leave::Done(Outcome::Completed | Outcome::Stopped) => ExitCode::SUCCESS,
        Leave::Done(Outcome::Failed) => ExitCode::from(Code::JobFailed.exit_code()),
        Leave::Done(Outcome::Cancelled) => ExitCode::from(Code::JobCancelled.exit_code()),
    }
}

fn run_job(job: &Path) -> ExitCode {
    if let Err(failure) = telemetry::init("webrtc-worker run-job", 0, Some(true)) {
        eprintln!("error: {failure}");
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime {
        Ok(runtime) => runtime.block_on(runner::run(job)),
        Err(error) => {
            eprintln!("error: the runner cannot start: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: RunArgs) -> Result<Option<Leave>, Failure> {
    telemetry::init("webrtc-worker", args.verbose, None)?;
    let (json, invite_file) = (args.json, args.invite_file.clone());
    let config = configure(args)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(|error| Failure::new(Code::Internal, format!("the worker cannot start: {error}")))?;
    let result = runtime.block_on(async {
        let shutdown = Shutdown::new();
        shutdown.listen_for_signals()?;
        let (events, shown) = mpsc::channel(16);
        let showing = tokio::spawn(show(shown, json, invite_file));
        let result = agent::run(config, events, shutdown.clone()).await;
        shutdown.drain(GOODBYE).await;
        let _ = showing.await;
        result
    });
    // A GPU driver that does not answer must not keep us.
    runtime.shutdown_timeout(GOODBYE);
    result
}

fn configure(args: RunArgs) -> Result<AgentConfig, Failure> {
    let section = args.file.load()?;
    let defaults = TrainerSettings::default();
    let server = args.server.or(section.server).ok_or_else(|| {
        Failure::new(
            Code::InvalidRequest,
            "no signaling server is named: use --server http://HOST:8001 (or WEBRTC_SERVER, or the configuration file)",
        )
    })?;
    let exe = std::env::current_exe().map_err(|error| Failure::new(Code::Internal, format!("this program cannot find itself: {error}")))?;
    let data_dir = data_dir(args.data_dir.or(section.data_dir))?;
    let from_file = NetworkSettings {
        ice_servers: section.ice_servers.map(|servers| servers.0),
        relay_only: section.relay_only,
        advertise_ip: section.advertise_ip,
        udp_ports: section.udp_ports,
        interfaces: section.interfaces,
        bind: section.bind,
        ca_file: section.ca_file,
    };
    let ephemeral = args.ephemeral || section.ephemeral.unwrap_or(false);
    let fetch_within = args.fetch_within.or(section.fetch_within);
    if fetch_within.is_some() && !ephemeral {
        return Err(Failure::new(Code::InvalidRequest, "--fetch-within goes with --ephemeral: other workers keep results for --keep-days"));
    }
    Ok(AgentConfig {
        server,
        stay: Stay {
            one_job: ephemeral.then(|| fetch_within.map_or(FETCH_WITHIN, |span| span.0)),
            idle: args.idle_timeout.or(section.idle_timeout).map(|span| span.0),
        },
        shared_room: args.room_file.is_some() || section.room_file.is_some(),
        room_file: args.room_file.or(section.room_file).unwrap_or_else(|| data_dir.join("room.json")),
        data_dir,
        name: args.name.or(section.name).unwrap_or_else(host_name),
        room_ttl: args.room_ttl.or(section.room_ttl),
        network: args.network.settings()?.or(from_file).decide()?,
        parallel: args.parallel.or(section.parallel).unwrap_or(1),
        quota: args.quota.or(section.quota).map(|size| size.0),
        sharing: !args.no_sharing && section.sharing.unwrap_or(true),
        keep: u64::from(args.keep_days.or(section.keep_days).unwrap_or(14)) * 24 * 3600,
        hold: args.hold.or(section.hold).map_or(Duration::from_secs(HELD), |secs| Duration::from_secs(secs.into())),
        trainers: TrainerSettings {
            sleap_nn: section.sleap_nn.unwrap_or(defaults.sleap_nn),
            sleap_train: section.sleap_train.unwrap_or(defaults.sleap_train),
            trainer_env: section.trainer_env,
            allow_checkpoints: section.allow_checkpoints,
            grace_secs: section.grace_secs.unwrap_or(defaults.grace_secs),
            trainers: section.trainers,
        },
        exe,
        visible_devices: std::env::var_os("CUDA_VISIBLE_DEVICES").map(|text| text.to_string_lossy().into_owned()),
    })
}

/// The data directory: the one that was named, or the user's.
pub(super) fn data_dir(named: Option<PathBuf>) -> Result<PathBuf, Failure> {
    named.map_or_else(|| config::data_dir("worker"), Ok)
}

fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

async fn show(mut events: mpsc::Receiver<AgentEvent>, json: bool, invite_file: Option<PathBuf>) {
    while let Some(event) = events.recv().await {
        match event {
            AgentEvent::RoomOpened { invite, watch, token, expires_at } => {
                if let Some(path) = &invite_file
                    && let Err(error) = write_private(path, format!("{}\n", invite.expose()).as_bytes())
                {
                    eprintln!("error: the invite cannot be written to {}: {error}", path.display());
                }
                print_room(&invite.expose(), &watch.expose(), invite.room.as_str(), token.expose(), expires_at, json);
            }
            AgentEvent::Waiting { failure, retry_in } if json => {
                let line = serde_json::json!({"type": "waiting", "code": failure.code, "message": failure.message, "retry_in_ms": retry_in.as_millis() as u64});
                print_line(&line.to_string());
            }
            AgentEvent::Waiting { failure, retry_in } => eprintln!("{failure}; trying again in {:.1} s", retry_in.as_secs_f64()),
        }
    }
}

fn print_room(invite: &str, watch: &str, room: &str, token: &str, expires_at: u64, json: bool) {
    if json {
        let line = serde_json::json!({"type": "invite", "invite": invite, "watch": watch, "room_id": room, "token": token, "expires_at": expires_at});
        return print_line(&line.to_string());
    }
    print_line(&format!(
        "Room {room} is open; token {token}\n\nTo submit jobs here, in a shell of the other machine:\n  export WEBRTC_INVITE='{invite}'\n  webrtc-client train package.zip\n\nOnly to watch:\n  {watch}\n"
    ));
}

pub(super) fn print_line(line: &str) {
    let mut out = std::io::stdout().lock();
    // A closed pipe is no reason to end: clients do not come through it.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
