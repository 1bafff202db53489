//! TCP connections, TLS where it is asked for, and HTTP/1.1 on them, with a deadline for each handshake and each request's head, and an end
//! that can be waited for.
//!
//! Not `axum::serve`: it has no such deadline, and returns while WebSocket tasks are still running.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{Router, extract::Request};
use hyper::{body::Incoming, server::conn::http1, service::Service};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use shared::runtime::shutdown::Shutdown;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::timeout,
};

use super::tls::Tls;

/// The most bytes of a request's head.
const MAX_HEAD: usize = 16 * 1024;
/// How long to wait after the system refused a connection (no file descriptors left), so as not to spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The other end of a connection, in each request's extensions.
#[derive(Debug, Clone, Copy)]
pub struct Remote(pub SocketAddr);

/// How connections are served; the same for every listener.
#[derive(Clone)]
pub struct Manner {
    /// What answers.
    pub router: Router,
    /// One permit for each connection that has not become a WebSocket.
    pub connections: Arc<Semaphore>,
    /// How connections are secured, if they are.
    pub tls: Option<Arc<Tls>>,
    /// How long a TLS handshake may take, and how long a request's head.
    pub head: Duration,
}

/// Serves a listener until the shutdown; a connection over the limit waits in the system's queue.
pub async fn serve(listener: TcpListener, manner: Manner, shutdown: Shutdown) {
    loop {
        let accepted = tokio::select! {
            biased;
            () = shutdown.token.cancelled() => return,
            accepted = accept(&listener, &manner.connections) => accepted,
        };
        match accepted {
            Ok((stream, remote, permit)) => {
                let (manner, stop) = (manner.clone(), shutdown.clone());
                shutdown.spawn(async move {
                    connection(stream, remote, manner, stop).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

type Accepted = (TcpStream, SocketAddr, tokio::sync::OwnedSemaphorePermit);

async fn accept(listener: &TcpListener, connections: &Arc<Semaphore>) -> std::io::Result<Accepted> {
    let permit = connections.clone().acquire_owned().await.map_err(std::io::Error::other)?;
    let (stream, remote) = listener.accept().await?;
    Ok((stream, remote, permit))
}

async fn connection(stream: TcpStream, remote: SocketAddr, manner: Manner, shutdown: Shutdown) {
    // Only a matter of latency; a socket that does not take it works all the same.
    let _ = stream.set_nodelay(true);
    let Some(tls) = &manner.tls else { return http(stream, remote, &manner, shutdown).await };
    let handshake = timeout(manner.head, Box::pin(tls.accept(stream)));
    match shutdown.token.run_until_cancelled(handshake).await {
        Some(Ok(Ok(stream))) => http(stream, remote, &manner, shutdown).await,
        Some(Ok(Err(error))) => tracing::debug!(%remote, %error, "no TLS handshake"),
        Some(Err(_)) => tracing::debug!(%remote, "no TLS handshake in time"),
        None => {}
    }
}

async fn http(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, remote: SocketAddr, manner: &Manner, shutdown: Shutdown) {
    let router = manner.router.clone();
    let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(Remote(remote));
        TowerToHyperService::new(router.clone()).call(request)
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(manner.head)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut serving = std::pin::pin!(serving);
    let ended = tokio::select! {
        ended = serving.as_mut() => ended,
        () = shutdown.token.cancelled() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%remote, %error, "connection ended");
    }
}
