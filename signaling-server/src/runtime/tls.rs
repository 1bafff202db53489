//! TLS on the server's own listeners: a certificate and its key from two files, read again when they change.
//!
//! * [`Tls::open`] reads the pair; what is wrong with it is an error at the start
//! * [`Tls::accept`] is a handshake; who speaks plain HTTP here is told so
//! * [`unverified`] is the other end, for a probe on the same machine
//! * [`Tls::watch`] looks at the files from time to time and at SIGHUP; a pair that cannot be used leaves the one before in place
//!
//! TLS 1.2 and 1.3, HTTP/1.1. Sessions are resumed by tickets, so that ten thousand of them take no memory here.

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use shared::domain::error::{Code, Failure};
use tokio::{
    io::AsyncWriteExt,
    net::TcpStream,
    signal::unix::{SignalKind, signal},
    time::{MissedTickBehavior, interval},
};
use tokio_rustls::{
    TlsAcceptor, TlsConnector, client,
    rustls::{
        self, ClientConfig, DigitallySignedStruct, ServerConfig, SignatureScheme,
        client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        crypto::{self, aws_lc_rs},
        pki_types::{
            CertificateDer, PrivateKeyDer, ServerName, UnixTime,
            pem::{self, PemObject},
        },
        server::{ClientHello, NoServerSessionStorage, ResolvesServerCert},
        sign::CertifiedKey,
    },
    server::TlsStream,
};
use tokio_util::sync::CancellationToken;

/// The first byte of a TLS connection: a record with a handshake message (RFC 8446 §5.1).
const HANDSHAKE: u8 = 22;
/// What is said to who speaks HTTP without TLS.
const PLAIN: &str = r#"{"error":{"code":"INVALID_REQUEST","message":"this server speaks TLS here: use https:// and wss://"}}"#;

/// Where the certificate chain and its key are, as PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The server's certificate first, then those between it and the root.
    pub cert: PathBuf,
    /// Its private key (PKCS#8, PKCS#1 or SEC 1).
    pub key: PathBuf,
}

/// TLS as this server speaks it.
pub struct Tls {
    files: TlsFiles,
    pair: Arc<Pair>,
    acceptor: TlsAcceptor,
    opened: Stamp,
}

/// The certificate and key that new connections get.
struct Pair(RwLock<Arc<CertifiedKey>>);

impl fmt::Debug for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pair")
    }
}

impl ResolvesServerCert for Pair {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

/// What tells one version of the two files from another: inode, time of change in nanoseconds, length. `None`: not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp([Option<(u64, i128, u64)>; 2]);

impl Stamp {
    fn of(files: &TlsFiles) -> Self {
        Stamp([&files.cert, &files.key].map(|path| {
            let found = std::fs::metadata(path).ok()?;
            Some((found.ino(), i128::from(found.mtime()) * 1_000_000_000 + i128::from(found.mtime_nsec()), found.len()))
        }))
    }
}

impl Tls {
    /// Reads the pair.
    ///
    /// # Errors
    /// [`Code::BadFile`] when a file cannot be read, or the two do not belong together.
    pub fn open(files: TlsFiles) -> Result<Self, Failure> {
        // Before they are read: a change in between is found by the first look.
        let opened = Stamp::of(&files);
        let pair = Arc::new(Pair(RwLock::new(read(&files)?)));
        let internal = |error: rustls::Error| Failure::new(Code::Internal, format!("TLS cannot be set up: {error}"));
        let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(internal)?
            .with_no_client_auth()
            .with_cert_resolver(pair.clone());
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.ticketer = aws_lc_rs::Ticketer::new().map_err(internal)?;
        config.send_tls13_tickets = 1;
        Ok(Tls { files, pair, acceptor: TlsAcceptor::from(Arc::new(config)), opened })
    }

    /// The handshake.
    ///
    /// # Errors
    /// When it fails; who speaks plain HTTP has been answered then.
    pub async fn accept(&self, mut stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let mut first = [0];
        if stream.peek(&mut first).await? == 1 && first[0] != HANDSHAKE {
            let answer = format!(
                "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{PLAIN}",
                PLAIN.len()
            );
            stream.write_all(answer.as_bytes()).await?;
            stream.shutdown().await?;
            // Until the other side has closed, too: a reset for bytes that nobody read would overtake the answer.
            tokio::io::copy(&mut stream, &mut tokio::io::sink()).await?;
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it does not speak TLS"));
        }
        self.acceptor.accept(stream).await
    }

    /// Looks at the files every so often, and reads them again when they have changed, or at SIGHUP; until `stop`.
    pub async fn watch(self: Arc<Self>, every: Duration, stop: CancellationToken) {
        let mut hangup = signal(SignalKind::hangup()).inspect_err(|error| tracing::warn!(%error, "SIGHUP cannot be listened for")).ok();
        let mut tick = interval(every);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut known = self.opened;
        loop {
            let asked = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = hung_up(hangup.as_mut()) => true,
                _ = tick.tick() => false,
            };
            let tls = self.clone();
            let look = tokio::task::spawn_blocking(move || {
                let now = Stamp::of(&tls.files);
                (asked || now != known).then(|| tls.read_again());
                now
            });
            known = look.await.unwrap_or(known);
        }
    }

    /// Takes the pair that is in the files now, if it can be used.
    fn read_again(&self) {
        match read(&self.files) {
            Ok(pair) => {
                *self.pair.0.write().unwrap_or_else(PoisonError::into_inner) = pair;
                tracing::info!(cert = %self.files.cert.display(), "the TLS certificate was read anew");
            }
            Err(failure) => tracing::error!(%failure, "the TLS certificate cannot be read anew; the one before stays in use"),
        }
    }
}

/// A connection to a server on this machine, whose certificate is for the name that others know it by.
///
/// # Errors
/// When there is no handshake, or the other end is another machine, whose certificate would matter.
pub async fn unverified(stream: TcpStream) -> io::Result<client::TlsStream<TcpStream>> {
    if !stream.peer_addr()?.ip().to_canonical().is_loopback() {
        return Err(io::Error::other("over TLS only a server on this machine is asked; use its loopback address"));
    }
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody))
        .with_no_client_auth();
    let name = ServerName::IpAddress(IpAddr::from(Ipv4Addr::LOCALHOST).into());
    TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

/// Takes any certificate.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        crypto::verify_tls12_signature(message, cert, signed, &aws_lc_rs::default_provider().signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        crypto::verify_tls13_signature(message, cert, signed, &aws_lc_rs::default_provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

/// Waits for a SIGHUP; where they cannot be listened for, for ever.
async fn hung_up(hangup: Option<&mut tokio::signal::unix::Signal>) {
    match hangup {
        Some(hangup) => drop(hangup.recv().await),
        None => std::future::pending().await,
    }
}

/// The pair in the files.
fn read(files: &TlsFiles) -> Result<Arc<CertifiedKey>, Failure> {
    let chain: Vec<CertificateDer<'static>> =
        CertificateDer::pem_file_iter(&files.cert).and_then(Iterator::collect).map_err(|error| bad(&files.cert, "certificate", error))?;
    if chain.is_empty() {
        return Err(bad(&files.cert, "certificate", pem::Error::NoItemsFound));
    }
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|error| bad(&files.key, "private key", error))?;
    let pair = CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider()).map_err(|error| {
        let (cert, key) = (files.cert.display(), files.key.display());
        Failure::new(Code::BadFile, format!("the certificate {cert} and the key {key} cannot be used together: {error}"))
    })?;
    Ok(Arc::new(pair))
}

/// Without what is in the file: it may be a key.
fn bad(path: &Path, what: &str, error: pem::Error) -> Failure {
    let why = match error {
        pem::Error::Io(error) => error.to_string(),
        _ => format!("there is no {what} in it that can be read (PEM, such as -----BEGIN {}-----)", what.to_uppercase()),
    };
    Failure::new(Code::BadFile, format!("the TLS {what} {}: {why}", path.display()))
}

#[cfg(test)]
mod tests {
    use rcgen::{CertifiedKey as Made, generate_simple_self_signed};

    use super::*;

    fn write(files: &TlsFiles) {
        let Made { cert, signing_key } = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        std::fs::write(&files.cert, cert.pem()).unwrap();
        std::fs::write(&files.key, signing_key.serialize_pem()).unwrap();
    }

    fn in_use(tls: &Tls) -> Vec<CertificateDer<'static>> {
        tls.pair.0.read().unwrap().cert.clone()
    }

    #[test]
    fn a_pair_that_cannot_be_used_is_refused_and_the_one_before_stays() {
        let dir = tempfile::tempdir().unwrap();
        let files = TlsFiles { cert: dir.path().join("cert.pem"), key: dir.path().join("key.pem") };
        write(&files);
        let key = std::fs::read_to_string(&files.key).unwrap();
        let tls = Tls::open(files.clone()).unwrap();
        let first = in_use(&tls);
        let other = TlsFiles { cert: dir.path().join("other.pem"), key: files.key.clone() };
        write(&other);
        let canary = key.replace("PRIVATE KEY", "CANARY");
        for (name, text, says) in [
            ("key.pem", std::fs::read_to_string(&other.key).unwrap(), "cannot be used together"),
            ("key.pem", canary, "there is no private key in it"),
            ("key.pem", String::new(), "there is no private key in it"),
            ("cert.pem", "-----BEGIN CERTIFICATE-----\n%%\n-----END CERTIFICATE-----\n".to_owned(), "there is no certificate in it"),
            ("cert.pem", String::new(), "there is no certificate in it"),
        ] {
            std::fs::write(dir.path().join(name), text).unwrap();
            let failure = Tls::open(files.clone()).err().unwrap();
            assert!(failure.code == Code::BadFile && failure.message.contains(says), "{failure}");
            assert!(!failure.message.to_lowercase().contains("canary"), "{failure}");
            tls.read_again();
            assert_eq!(in_use(&tls), first);
        }
        std::fs::remove_file(&files.cert).unwrap();
        assert!(Tls::open(files.clone()).err().unwrap().message.contains("No such file"));
        write(&files);
        tls.read_again();
        assert_ne!(in_use(&tls), first);
    }

    #[test]
    fn a_file_that_is_replaced_has_another_stamp() {
        let dir = tempfile::tempdir().unwrap();
        let files = TlsFiles { cert: dir.path().join("cert.pem"), key: dir.path().join("key.pem") };
        assert_eq!(Stamp::of(&files), Stamp([None, None]));
        write(&files);
        let before = Stamp::of(&files);
        assert_eq!(Stamp::of(&files), before);
        // The same text in another file, as a link that is set anew leads to.
        std::fs::copy(&files.cert, dir.path().join("new")).unwrap();
        std::fs::rename(dir.path().join("new"), &files.cert).unwrap();
        assert_ne!(Stamp::of(&files), before);
    }
}
