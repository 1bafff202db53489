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
        cli::{Addresses, Args, Command, Init, Listening},
        init,
    },
    runtime::server::Server,
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

/// `webrtc-server init`. What else the server needs in AWS joins the table's part here.
fn make(args: Args, init: &Init) -> anyhow::Result<()> {
    let json = args.json;
    let table = args.resolve_table()?;
    if init.print {
        let parts = [init::rooms(&table)];
        println!("{}", if json { init::to_json(&parts).to_string() } else { init::script(&parts) });
        return Ok(());
    }
    runtime()?.block_on(make_in_aws(&table, json))
}

#[cfg(feature = "aws")]
async fn make_in_aws(table: &str, json: bool) -> anyhow::Result<()> {
    use signaling_server::runtime::{aws, config::AwsSettings, store::dynamodb};
    let made = dynamodb::make_table(&aws::load(&AwsSettings::default()).await?, table).await?;
    if json {
        println!("{}", serde_json::json!({"dynamodb_table": {"name": table, "made": made.table, "ttl_switched_on": made.ttl}}));
    } else {
        let (table_was, ttl_was) = (if made.table { "made" } else { "there" }, if made.ttl { "switched on" } else { "on" });
        println!("DynamoDB table {table}: {table_was}; its TTL: {ttl_was}");
    }
    Ok(())
}

#[cfg(not(feature = "aws"))]
async fn make_in_aws(_: &str, _: bool) -> anyhow::Result<()> {
    Err(signaling_server::runtime::config::without_aws().into())
}

fn serve(args: Args) -> anyhow::Result<()> {
    let json = args.json;
    let start = args.resolve()?;
    runtime()?.block_on(async {
        let (listeners, listening) = bind(start.addresses).await?;
        let shutdown = Shutdown::new();
        shutdown.listen_for_signals()?;
        let data_dir = start.config.data_dir.clone();
        let server = Server::open(start.config, shutdown.token.clone()).await?;
        // stdout is for data; whoever started us may wait for this line.
        println!("{}", if json { listening.to_json() } else { listening.to_string() });
        tracing::info!(http = %listening.http, ws = %listening.ws, ?data_dir, "listening");
        api::serve(server, listeners, shutdown).await;
        tracing::info!("stopped");
        Ok(())
    })
}

async fn bind(addresses: Addresses) -> anyhow::Result<(Vec<TcpListener>, Listening)> {
    let listen = async |address| {
        let failure = |error| Failure::new(Code::Unavailable, format!("cannot listen on {address}: {error}; choose another address"));
        TcpListener::bind(address).await.map_err(failure)
    };
    Ok(match addresses {
        Addresses::One(address) => {
            let one = listen(address).await?;
            let bound = one.local_addr()?;
            (vec![one], Listening { http: bound, ws: bound })
        }
        Addresses::Two { http, ws } => {
            let (http, ws) = (listen(http).await?, listen(ws).await?);
            let listening = Listening { http: http.local_addr()?, ws: ws.local_addr()? };
            (vec![http, ws], listening)
        }
    })
}
