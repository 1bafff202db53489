//! What people touch: the command line and what is shown.
//!
//! * [`cli`]: what may be typed
//! * [`network`]: the flags about how peers are reached
//! * [`settings`]: flags > environment > file > defaults, once; afterwards nobody reads them again
//! * `doctor`: what keeps this side and its worker apart
//! * [`commands`]: one command, from its first event to its exit code
//! * [`output`]: the only printer

pub mod cli;
pub mod commands;
pub mod network;
pub mod output;
pub mod settings;

mod doctor;
mod prompt;

use std::{ffi::OsString, panic::PanicHookInfo, process::ExitCode};

use clap::Parser;
use shared::{
    domain::error::{Code, Failure},
    runtime::telemetry,
};

use self::cli::{Cli, Global};

/// The name that people type.
pub const PROGRAM: &str = "webrtc-client";

/// The whole program.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => return ExitCode::from(output::usage(&error)),
    };
    let json = cli.global.json;
    let code = start(cli).unwrap_or_else(|error| {
        let failure = as_failure(error);
        output::failure(&failure, json);
        failure.code.exit_code()
    });
    ExitCode::from(code)
}

fn start(cli: Cli) -> anyhow::Result<u8> {
    start_log(&cli.global)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let code = runtime.block_on(commands::run(cli));
    // Not waited for: leaving in the middle of reading a large package must not wait for the disk.
    runtime.shutdown_background();
    Ok(code?)
}

/// Logs are for whoever asks for them; otherwise what a person should know comes as events.
fn start_log(global: &Global) -> Result<(), Failure> {
    let asked = global.verbose > 0 || std::env::var_os(telemetry::LOG_VARIABLE).is_some_and(|filter| !filter.is_empty());
    if asked {
        return telemetry::init(PROGRAM, global.verbose.saturating_sub(1), None);
    }
    std::panic::set_hook(Box::new(report_panic));
    Ok(())
}

/// Without the panic's message, which may hold data.
fn report_panic(info: &PanicHookInfo<'_>) {
    let place = info.location().map(ToString::to_string).unwrap_or_default();
    output::alarm(&format!("internal error at {place}; please report it with the output of the same command and -vv"));
}

fn as_failure(error: anyhow::Error) -> Failure {
    error.downcast::<Failure>().unwrap_or_else(|error| Failure::new(Code::Internal, format!("{error:#}")))
}
