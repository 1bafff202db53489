//! What may be typed.

use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand};

use super::network::NetworkArgs;

const EXIT_CODES: &str = "\
Exit codes:
  0    done; for train and watch: the job completed, was stopped, or goes on without us; for train --plan: it would be taken
  1    internal error
  2    wrong usage: an option, the configuration file, or a request that makes no sense
  3    a file or package cannot be read or used
  4    no connection: server or worker not reachable, or busy
  5    not admitted: a wrong, damaged or expired invite, a missing right, or a peer that could not prove itself
  6    the job failed
  7    the job was cancelled
  8    not enough disk space
  9    client and worker speak different versions
  10   no such job, or it is in a state in which this cannot be done
  11   doctor: something is broken that keeps client and worker apart, or will
  130  interrupted (Ctrl-C) before the worker had everything, or twice";

const EXAMPLES: &str = "\
Examples:
  webrtc-client train fly.training_job.zip --invite-file invite.txt
  webrtc-client train fly.pkg.slp --config centroid.yaml --config centered_instance.yaml
  webrtc-client watch                      # follow the running job
  webrtc-client stop 1a2b3c4d              # finish the batch, validate, save the model
  webrtc-client fetch fly.zip --output models

The invite is the line that webrtc-worker prints. Keep it secret: give it by --invite-file, by the
environment (WEBRTC_INVITE), or on stdin (--invite -).";

const TRAIN_EXAMPLES: &str = "\
Examples:
  webrtc-client train fly.training_job.zip
  webrtc-client train unpacked-folder/ --config centroid.yaml --output models
  webrtc-client train fly.training_job.zip --plan     # what would be sent, how long it takes, who is before us
  webrtc-client train fly.pkg.slp --config centroid.yaml --config centered_instance.yaml

The same command run again continues: whatever the worker has already is not sent again, and a job that runs or has ended is taken up
where it is. While training goes on, each new best checkpoint is saved in the folder 'checkpoints' where the models will be, so that a worker
that dies has cost little; it makes way for the models in the end. Ctrl-C once leaves the job running and says how to come back; twice leaves at once.
Models are files from the worker: loading a checkpoint can run code, so load those of workers that you trust.";

const DOCTOR_EXAMPLES: &str = "\
Examples:
  webrtc-client doctor                                   # with an invite: both sides, and a connection between them
  webrtc-client doctor --server https://signaling.lab.example --json

Without an invite this side alone is examined. Nothing is changed anywhere, and it takes about 15 seconds at most. Exit code 0: nothing is
broken; 11: something is, and it says what.";

/// The command line.
#[derive(Debug, Parser)]
#[command(
    name = "webrtc-client",
    version,
    about = "Trains SLEAP models on a GPU worker elsewhere: sends the package, follows the training, gets the models back",
    after_help = EXAMPLES,
    after_long_help = format!("{EXAMPLES}\n\n{EXIT_CODES}"),
    max_term_width = 110,
    subcommand_required = true,
    arg_required_else_help = true,
)]
pub struct Cli {
    /// What every command takes.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub action: Action,
}

/// What every command takes.
#[derive(Debug, Clone, Default, Args)]
pub struct Global {
    /// The invite, or '-' to read it from stdin; others on this machine can see a command line, so prefer the other ways
    ///
    /// Other ways are --invite-file, the environment variable WEBRTC_INVITE, and invite_file in the configuration file.
    #[arg(long, value_name = "INVITE", global = true, help_heading = "Connection", conflicts_with = "invite_file")]
    pub invite: Option<String>,

    /// A file with the invite in it
    #[arg(long, value_name = "FILE", global = true, help_heading = "Connection")]
    pub invite_file: Option<PathBuf>,

    /// The worker to use, where the room has several: its name or peer id, or a beginning of one
    ///
    /// Otherwise it is the worker that printed the invite, or if that one is away, the one with the most free GPU memory.
    #[arg(long, value_name = "NAME", global = true, help_heading = "Connection")]
    pub worker: Option<String>,

    /// How the worker is reached.
    #[command(flatten)]
    pub network: NetworkArgs,

    /// At most so many bulk connections for a transfer, instead of as many as help; for measuring
    #[arg(long, value_name = "N", global = true, hide = true, value_parser = clap::value_parser!(u32).range(1..))]
    pub connections: Option<u32>,

    /// The configuration file, instead of ./webrtc-connect.toml or the one in the user's configuration directory
    #[arg(long, value_name = "FILE", global = true, help_heading = "Connection")]
    pub config_file: Option<PathBuf>,

    /// The environment of the configuration file to use ([environments.NAME.client])
    #[arg(long, env = "WEBRTC_ENVIRONMENT", value_name = "NAME", global = true, help_heading = "Connection")]
    pub environment: Option<String>,

    /// One JSON object a line on stdout for every event
    #[arg(long, global = true, help_heading = "Output")]
    pub json: bool,

    /// Show the trainer's own output; twice: our log, too
    #[arg(short, long, action = ArgAction::Count, global = true, help_heading = "Output", conflicts_with = "quiet")]
    pub verbose: u8,

    /// Show the result and errors only
    #[arg(short, long, global = true, help_heading = "Output")]
    pub quiet: bool,
}

/// What to do.
#[derive(Debug, Clone, Subcommand)]
pub enum Action {
    /// Send a package, follow its training, get the models back
    #[command(after_help = TRAIN_EXAMPLES, after_long_help = format!("{TRAIN_EXAMPLES}\n\n{EXIT_CODES}"))]
    Train(TrainArgs),
    /// Say what keeps this machine and the worker apart, and what to do about it
    #[command(after_help = DOCTOR_EXAMPLES, after_long_help = format!("{DOCTOR_EXAMPLES}\n\n{EXIT_CODES}"))]
    Doctor(DoctorArgs),
    /// Something about jobs that are there.
    #[command(flatten)]
    Known(KnownAction),
}

/// What can be done with what is there already.
#[derive(Debug, Clone, Subcommand)]
pub enum KnownAction {
    /// List the worker's jobs
    #[command(after_long_help = EXIT_CODES)]
    Status,
    /// Follow a job: its history, then everything as it happens
    #[command(after_long_help = EXIT_CODES)]
    Watch {
        /// The job: a beginning of its id, or its name; otherwise the running one, else the newest
        job: Option<String>,
        /// The journal entry to begin with
        #[arg(long, value_name = "SEQ", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
        from: u64,
        /// Save each new best checkpoint there while training goes on, and the models when it has ended
        #[arg(long, short, value_name = "DIR")]
        output: Option<PathBuf>,
        /// Replace files that are there
        #[arg(long, requires = "output")]
        overwrite: bool,
    },
    /// End a job early and keep its models: finish the batch, validate, save
    #[command(after_long_help = EXIT_CODES)]
    Stop {
        /// The job: a beginning of its id, or its name; otherwise the running one, else the newest
        job: Option<String>,
    },
    /// End a job now; what it has not saved yet is lost
    #[command(after_long_help = EXIT_CODES)]
    Cancel {
        /// The job: a beginning of its id, or its name; otherwise the running one, else the newest
        job: Option<String>,
    },
    /// Get the results of a job that has ended
    #[command(after_long_help = EXIT_CODES)]
    Fetch {
        /// The job: a beginning of its id, or its name; otherwise the newest
        job: Option<String>,
        /// Where the results go [default: ./models-JOB, or ./models where no JOB is given]
        #[arg(long, short, value_name = "DIR")]
        output: Option<PathBuf>,
        /// Replace files that are there
        #[arg(long)]
        overwrite: bool,
    },
    /// List the workers of the room
    #[command(after_long_help = EXIT_CODES)]
    Workers,
}

/// What `doctor` takes.
#[derive(Debug, Clone, Default, Args)]
pub struct DoctorArgs {
    /// The signaling server to look at where there is no invite, such as https://signaling.lab.example
    #[arg(long, value_name = "URL")]
    pub server: Option<String>,
}

/// What `train` takes.
#[derive(Debug, Clone, Args)]
pub struct TrainArgs {
    /// A training job package (.zip), a folder with the same content, or labels with images (.pkg.slp) and --config
    pub package: PathBuf,
    /// A configuration to train, in the package or beside it; several are trained in this order [default: what the package says]
    #[arg(long, short, value_name = "FILE")]
    pub config: Vec<PathBuf>,
    /// The labels file of the package to train on, where its configurations do not say
    #[arg(long, value_name = "NAME")]
    pub labels: Option<String>,
    /// The worker's trainer to use [default: the one that the configurations call for]
    #[arg(long, value_name = "NAME")]
    pub trainer: Option<String>,
    /// What to call the job [default: the package's file name]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Where the models go [default: ./models-PACKAGE]
    #[arg(long, short, value_name = "DIR")]
    pub output: Option<PathBuf>,
    /// Replace files that are there
    #[arg(long)]
    pub overwrite: bool,
    /// Train once more, although the worker has done this very job
    #[arg(long)]
    pub again: bool,
    /// Only say what would happen: bytes to send, path and expected time, free space, queue; nothing is changed at the worker
    ///
    /// The path is measured with at most 8 MiB for at most one second. The exit code is the one that the submission would be refused with,
    /// 0 where it would be taken.
    #[arg(long)]
    pub plan: bool,
    /// Leave as soon as the worker has the package
    #[arg(long)]
    pub detach: bool,
    /// Leave the models at the worker
    #[arg(long)]
    pub no_fetch: bool,
    /// Do not save each new best checkpoint while training goes on (in DIR/checkpoints, until the models are there)
    #[arg(long)]
    pub no_checkpoints: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;
    use shared::domain::error::Code;

    #[test]
    fn the_grammar_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_exit_code_is_documented() {
        let codes = [
            Code::InvalidRequest,
            Code::Unauthorized,
            Code::NoConnection,
            Code::BadPackage,
            Code::NoSpace,
            Code::VersionMismatch,
            Code::JobNotFound,
            Code::JobFailed,
            Code::JobCancelled,
            Code::Internal,
        ];
        for code in codes.map(Code::exit_code) {
            assert!(EXIT_CODES.lines().any(|line| line.trim_start().starts_with(&format!("{code} "))), "{code}");
        }
    }
}
