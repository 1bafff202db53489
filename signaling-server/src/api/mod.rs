//! What people and peers touch: the command line, the REST routes, the WebSocket.
//!
//! * [`run`]: the whole server as one future; the listeners and the end are arguments
//! * [`cli`], [`init`], [`health`]; [`http`] (the table of routes), [`handlers`]; [`ws`], [`socket`]; [`openapi`]; [`extract`], [`error`]

pub mod cli;
pub mod error;
pub mod extract;
pub mod handlers;
pub mod health;
pub mod http;
pub mod init;
pub mod openapi;
pub mod socket;
pub mod ws;

use std::sync::Arc;

use shared::{domain::error::Failure, runtime::shutdown::Shutdown};
use tokio::{net::TcpListener, sync::Semaphore};

use crate::runtime::{
    config::Config,
    listen::{self, Manner},
    server::Server,
};

/// The whole server: opens the store and the signing key, then [`serve`]s.
///
/// # Errors
/// When the store or the signing key cannot be opened.
pub async fn run(config: Config, listeners: Vec<TcpListener>, shutdown: Shutdown) -> Result<(), Failure> {
    serve(Server::open(config, shutdown.token.clone()).await?, listeners, shutdown).await;
    Ok(())
}

/// Serves REST and WebSocket on every listener until the shutdown's token is cancelled; then closes each WebSocket with 1012 and
/// waits for all to end, within the configured budget.
pub async fn serve(server: Arc<Server>, listeners: Vec<TcpListener>, shutdown: Shutdown) {
    let router = http::router(server.clone(), shutdown.tracker.clone());
    let connections = Arc::new(Semaphore::new(server.config.limits.connections));
    let manner = Manner { router, connections, tls: server.tls.clone(), head: server.config.timing.head };
    for listener in listeners {
        shutdown.spawn(listen::serve(listener, manner.clone(), shutdown.clone()));
    }
    if let Some(tls) = &server.tls {
        shutdown.spawn(tls.clone().watch(server.config.timing.certificates, shutdown.token.clone()));
    }
    shutdown.spawn(server.clone().sweep());
    shutdown.spawn(server.hub.clone().run());
    server.attend(&shutdown);
    shutdown.token.cancelled().await;
    shutdown.drain(server.config.timing.drain).await;
}
