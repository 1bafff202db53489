//! `webrtc-server`: reads the command line, listens, serves until SIGTERM or SIGINT; or makes what it needs in AWS.

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
        cli::{Addresses, Args, Command, Init, Listening, Wanted},
        health::{self, HealthArgs},
        init,
    },
    runtime::{config::Limits, descriptors, server::Server},
};
use tokio::net::TcpListener;

/// Thousands of sockets hold what they were given on one thread and give it back on another.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

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
        Some(Command::Init(init)) => make(args, &init),
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

/// `webrtc-server init`.
fn make(args: Args, init: &Init) -> anyhow::Result<()> {
    let json = args.json;
    let wanted = args.resolve_init(init)?;
    if init.print {
        let rooms = wanted.table.iter().map(|table| init::rooms(table));
        let users = wanted.pool.iter().map(|(name, way)| init::users(name, *way));
        let parts: Vec<init::Part> = rooms.chain(users).collect();
        println!("{}", if json { init::to_json(&parts).to_string() } else { init::script(&parts) });
        return Ok(());
    }
    runtime()?.block_on(make_in_aws(wanted, json))
}

#[cfg(feature = "aws")]
async fn make_in_aws(wanted: Wanted, json: bool) -> anyhow::Result<()> {
    use signaling_server::runtime::{aws, cognito::make as cognito, config::AwsSettings, store::dynamodb};
    let aws = aws::load(&AwsSettings::default()).await?;
    let (mut told, was) = (serde_json::Map::new(), |made: bool| if made { "made" } else { "there" });
    if let Some(table) = wanted.table {
        let made = dynamodb::make_table(&aws, &table).await?;
        if !json {
            println!("DynamoDB table {table}: {}; its TTL: {}", was(made.table), if made.ttl { "switched on" } else { "on" });
        }
        told.insert("dynamodb_table".into(), serde_json::json!({"name": table, "made": made.table, "ttl_switched_on": made.ttl}));
    }
    if let Some((name, way)) = wanted.pool {
        let cognito::Made { pool, pool_made, client, client_made } = cognito::make(&aws, &name, way).await?;
        if !json {
            println!("Cognito user pool {name}, {pool}: {}; its app client, {client}: {}", was(pool_made), was(client_made));
            println!("For the server: --auth cognito --cognito-pool {pool} --cognito-client {client} --cognito-sign-in {way}");
        }
        let made = serde_json::json!({"name": name, "pool": pool, "pool_made": pool_made, "client": client, "client_made": client_made});
        told.insert("cognito".into(), made);
    }
    if json {
        println!("{}", serde_json::Value::Object(told));
    }
    Ok(())
}

#[cfg(not(feature = "aws"))]
async fn make_in_aws(_: Wanted, _: bool) -> anyhow::Result<()> {
    Err(signaling_server::runtime::config::without_aws().into())
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
