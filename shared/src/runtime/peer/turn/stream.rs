//! A stream to a TURN server: TCP, or TLS with certificate checks.

use std::{
    io,
    net::SocketAddr,
    path::Path,
    sync::{Arc, OnceLock},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::aws_lc_rs,
        pki_types::{CertificateDer, ServerName, pem::PemObject},
    },
};

use crate::{
    domain::{
        error::{Code, Failure},
        ice::{IceTransport, IceUrl},
        network::Host,
    },
    runtime::peer::names,
};

/// How long a stream may take to be connected, TLS handshake and all.
const CONNECT: Duration = Duration::from_secs(5);
/// Between the beginnings of attempts at a server's addresses (RFC 8305 §5).
const STAGGER: Duration = Duration::from_millis(250);
/// How long what was written may stay unacknowledged before the stream counts as cut, in milliseconds.
#[cfg(target_os = "linux")]
const UNACKNOWLEDGED: u32 = 15_000;

/// Whom to trust as a server over TLS: the system's certificates, and more from a file. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Trust {
    extra: Arc<Vec<CertificateDer<'static>>>,
    config: Arc<OnceLock<Result<Arc<ClientConfig>, String>>>,
}

impl Trust {
    /// The system's certificates, and those of a file where one is named.
    ///
    /// # Errors
    /// As [`with_file`](Self::with_file).
    pub fn with(file: Option<&Path>) -> Result<Self, Failure> {
        file.map_or_else(|| Ok(Self::default()), Self::with_file)
    }

    /// The system's certificates and those of a file (PEM).
    ///
    /// # Errors
    /// [`Code::BadFile`] when it cannot be read or has none.
    pub fn with_file(path: &Path) -> Result<Self, Failure> {
        let bad = |why: String| Failure::new(Code::BadFile, format!("the certificates in {} cannot be used: {why}", path.display()));
        let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
        let extra: Vec<CertificateDer<'static>> = read.map_err(|error| bad(error.to_string()))?;
        if extra.is_empty() {
            return Err(bad("there is no PEM certificate in it".into()));
        }
        Ok(Trust { extra: Arc::new(extra), config: Arc::default() })
    }

    /// Reads the system's certificates, the first time.
    pub(in crate::runtime) fn config(&self) -> Result<Arc<ClientConfig>, String> {
        let make = || {
            let mut roots = RootCertStore::empty();
            let system = rustls_native_certs::load_native_certs();
            for error in &system.errors {
                tracing::debug!(%error, "some of the system's certificates cannot be read");
            }
            roots.add_parsable_certificates(system.certs.into_iter().chain(self.extra.iter().cloned()));
            let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
                .with_safe_default_protocol_versions()
                .map_err(|error| error.to_string())?;
            Ok(Arc::new(builder.with_root_certificates(roots).with_no_client_auth()))
        };
        self.config.get_or_init(make).clone()
    }
}

/// A stream to a TURN server.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Connects to a TURN server over TCP or TLS.
///
/// # Errors
/// [`Code::NoConnection`] when it cannot be reached, [`Code::NotAuthentic`] when its certificate is not trusted.
pub async fn connect(url: &IceUrl, trust: &Trust) -> Result<Box<dyn Stream>, Failure> {
    let late = |_| Failure::new(Code::NoConnection, format!("{url} did not answer within {} s", CONNECT.as_secs()));
    timeout(CONNECT, connect_untimed(url, trust)).await.map_err(late)?
}

async fn connect_untimed(url: &IceUrl, trust: &Trust) -> Result<Box<dyn Stream>, Failure> {
    let unreachable = |error: io::Error| Failure::new(Code::NoConnection, format!("{url} cannot be reached: {error}"));
    let stream = connect_any(names::resolve(&url.host, url.port).await.map_err(unreachable)?).await.map_err(unreachable)?;
    if url.transport != IceTransport::Tls {
        return Ok(Box::new(stream));
    }
    let trust = trust.clone();
    // Files are read, the first time.
    let config = tokio::task::spawn_blocking(move || trust.config()).await.map_err(|error| error.to_string()).and_then(|config| config);
    let config = config.map_err(|why| Failure::new(Code::Internal, format!("TLS cannot be used: {why}")))?;
    let name = match &url.host {
        Host::Ip(ip) => ServerName::IpAddress((*ip).into()),
        Host::Name(name) => ServerName::try_from(name.trim_end_matches('.').to_owned())
            .map_err(|_| Failure::new(Code::InvalidRequest, format!("{url}: TLS takes no such name")))?,
    };
    let refused = |error: io::Error| {
        let certificate = error.get_ref().is_some_and(|inner| inner.to_string().contains("certificate"));
        if certificate {
            let message = format!("{url} has a certificate that is not trusted ({error}); for a CA of your own, use --ca-file");
            Failure::new(Code::NotAuthentic, message)
        } else {
            Failure::new(Code::NoConnection, format!("{url} does not speak TLS with us: {error}"))
        }
    };
    Ok(Box::new(TlsConnector::from(config).connect(name, stream).await.map_err(refused)?))
}

/// The first of these addresses that answers.
async fn connect_any(addresses: Vec<SocketAddr>) -> io::Result<TcpStream> {
    let mut attempts = JoinSet::new();
    for (at, address) in (0u32..).zip(addresses) {
        attempts.spawn(async move {
            sleep(STAGGER * at).await;
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            #[cfg(target_os = "linux")]
            rustix::net::sockopt::set_tcp_user_timeout(&stream, UNACKNOWLEDGED)?;
            io::Result::Ok(stream)
        });
    }
    let mut last = io::Error::new(io::ErrorKind::NotFound, "its name has no address");
    while let Some(attempt) = attempts.join_next().await {
        match attempt.unwrap_or_else(|error| Err(io::Error::other(error))) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}
