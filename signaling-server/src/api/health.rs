//! `webrtc-server health`: asks a running server how it is; for probes of containers, which have no other program to ask with.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use axum::{body::Body, http::Request};
use clap::Args;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use shared::domain::error::{Code, Failure};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};

use crate::runtime::tls;

/// How long the answer may take: less than Docker and Kubernetes wait for a probe.
const PATIENCE: Duration = Duration::from_secs(5);
/// More than it ever says.
const MAX_ANSWER: usize = 64 * 1024;

/// The arguments of `health`.
#[derive(Debug, Clone, Args)]
pub struct HealthArgs {
    /// Where to ask: a server on this machine, such as http://127.0.0.1:8001 [default: the one that the same options would start]
    url: Option<String>,
}

/// Whom to ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    authority: String,
    tls: bool,
}

impl Target {
    /// The server that would listen here.
    pub fn of(address: SocketAddr, tls: bool) -> Self {
        let mut reachable = address;
        if address.ip().is_unspecified() {
            reachable.set_ip(if address.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() });
        }
        Target { authority: reachable.to_string(), tls }
    }

    /// The one at this URL.
    ///
    /// # Errors
    /// [`Code::InvalidRequest`] when it is none.
    pub fn parse(url: &str) -> Result<Self, Failure> {
        let wrong =
            || Failure::new(Code::InvalidRequest, format!("'{url}' is not the URL of a server: it must look like http://127.0.0.1:8001"));
        let uri: axum::http::Uri = url.parse().map_err(|_| wrong())?;
        let tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(wrong()),
        };
        let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(wrong)?;
        let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
        Ok(Target { authority: format!("{host}:{port}"), tls })
    }
}

impl HealthArgs {
    /// Whom to ask, if the options that would start a server mean this address.
    ///
    /// # Errors
    /// [`Code::InvalidRequest`].
    pub fn target(&self, address: SocketAddr, tls: bool) -> Result<Target, Failure> {
        self.url.as_deref().map_or_else(|| Ok(Target::of(address, tls)), Target::parse)
    }
}

/// Asks; gives what the server says.
///
/// # Errors
/// [`Code::Unavailable`] when it does not answer, or says that it cannot serve.
pub async fn ask(target: &Target) -> Result<String, Failure> {
    let unavailable = |why: String| Failure::new(Code::Unavailable, format!("the server at {}: {why}", target.authority));
    let late = |_| unavailable(format!("no answer within {} s", PATIENCE.as_secs()));
    let (status, body) = timeout(PATIENCE, Box::pin(fetch(target))).await.map_err(late)?.map_err(|error| unavailable(error.to_string()))?;
    if status != 200 {
        return Err(unavailable(format!("HTTP {status}: {body}")));
    }
    Ok(body)
}

async fn fetch(target: &Target) -> Result<(u16, String), Box<dyn std::error::Error + Send + Sync>> {
    let stream = TcpStream::connect(&target.authority).await?;
    if target.tls { get(tls::unverified(stream).await?, target).await } else { get(stream, target).await }
}

async fn get(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    target: &Target,
) -> Result<(u16, String), Box<dyn std::error::Error + Send + Sync>> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::get("/health").header("host", &target.authority).header("connection", "close").body(Body::empty())?;
    let asking = async move {
        let response = sender.send_request(request).await?;
        let status = response.status().as_u16();
        let bytes = axum::body::to_bytes(Body::new(response.into_body()), MAX_ANSWER).await?;
        Ok((status, String::from_utf8_lossy(&bytes).into_owned()))
    };
    // The connection ends once nobody asks any more; where it breaks, the question fails.
    tokio::join!(asking, connection).0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_on_all_addresses_is_asked_on_loopback() {
        let of = |address: &str| Target::of(address.parse().unwrap(), false).authority;
        assert_eq!([of("0.0.0.0:8001"), of("[::]:1"), of("10.1.2.3:8001")], ["127.0.0.1:8001", "[::1]:1", "10.1.2.3:8001"]);
    }

    #[test]
    fn a_url_names_host_port_and_whether_with_tls() {
        let parse = |url: &str| Target::parse(url).map(|target| (target.authority, target.tls));
        assert_eq!(parse("http://[::1]:8001/x").unwrap(), ("[::1]:8001".to_owned(), false));
        assert_eq!(parse("https://localhost").unwrap(), ("localhost:443".to_owned(), true));
        for wrong in ["", "localhost:8001", "ftp://x", "http://"] {
            assert!(parse(wrong).unwrap_err().message.contains("http://127.0.0.1:8001"), "{wrong}");
        }
    }
}
