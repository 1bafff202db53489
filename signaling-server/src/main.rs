//! `webrtc-server`: reads the command line, listens, serves until SIGTERM or SIGINT.

use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use shared::{
    domain::error::{Code, Failure},
    runtime::{shutdown::Shutdown, telemetry},
};
use signaling_server::{
    api::{
        self,
        cli::{Addresses, Args, Command, Listening},
        health::{self, HealthArgs},
    },
    runtime::{config::Limits, descriptors, server::Server},
};
use tokio::net::TcpListener;

/// Two threads serve thousands of sockets, and a small server stays small.
const THREADS: usize = 2;
const STACK_BYTES: usize = 512 * 1024;
/// For the store's file; it has one writer.
const BLOCKING_THREADS: usize = 4;

fn main() -> ExitCode {
    let args = Args::parse();
    let started = telemetry::init("webrtc-server", args.verbose, None).map_err(anyhow::Error::from).and_then(|()| start(args));
    match started {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("webrtc-server: {error:#}");
            ExitCode::from(error.downcast_ref::<Failure>().map_or(Code::Internal, |failure| failure.code).exit_code())
        }
    }
}

fn start(mut args: Args) -> anyhow::Result<()> {
    match args.command.take() {
        None => serve(args),
        Some(Command::Health(health)) => ask(args, &health),
    }
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(THREADS)
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_stack_size(STACK_BYTES)
        .enable_all()
        .build()
        .context("the runtime cannot start")
}

fn serve(args: Args) -> anyhow::Result<()> {
    let json = args.json;
    let start = args.resolve()?;
    allow_connections(&start.config.limits);
    runtime()?.block_on(async {
        let (listeners, listening) = bind(start.addresses, start.config.tls.is_some()).await?;
        let shutdown = Shutdown::new();
        shutdown.listen_for_signals()?;
        let data_dir = start.config.data_dir.clone();
        let server = Server::open(start.config, shutdown.token.clone()).await?;
        // stdout is for data; whoever started us may wait for this line.
        println!("{}", if json { listening.to_json() } else { listening.to_string() });
        tracing::info!(http = %listening.http, ws = %listening.ws, tls = listening.tls, ?data_dir, "listening");
        api::serve(server, listeners, shutdown).await;
        tracing::info!("stopped");
        Ok(())
    })
}

/// `webrtc-server health`: asks a running server how it is.
fn ask(args: Args, health: &HealthArgs) -> anyhow::Result<()> {
    let start = args.resolve()?;
    let target = health.target(start.addresses.http(), start.config.tls.is_some())?;
    println!("{}", runtime()?.block_on(health::ask(&target))?);
    Ok(())
}

/// As many open files as the system allows; without them the server works, for fewer peers.
fn allow_connections(limits: &Limits) {
    match descriptors::raise() {
        Ok(files) => {
            if let Some(warning) = descriptors::too_few(files, limits) {
                tracing::warn!("{warning}");
            }
        }
        Err(error) => tracing::warn!(%error, "the limit of open files cannot be raised"),
    }
}

async fn bind(addresses: Addresses, tls: bool) -> anyhow::Result<(Vec<TcpListener>, Listening)> {
    let listen = async |address| {
        let failure = |error| Failure::new(Code::Unavailable, format!("cannot listen on {address}: {error}; choose another address"));
        TcpListener::bind(address).await.map_err(failure)
    };
    Ok(match addresses {
        Addresses::One(address) => {
            let one = listen(address).await?;
            let bound = one.local_addr()?;
            (vec![one], Listening { http: bound, ws: bound, tls })
        }
        Addresses::Two { http, ws } => {
            let (http, ws) = (listen(http).await?, listen(ws).await?);
            let listening = Listening { http: http.local_addr()?, ws: ws.local_addr()?, tls };
            (vec![http, ws], listening)
        }
    })
}
