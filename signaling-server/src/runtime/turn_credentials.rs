//! Gives TURN credentials to admitted peers. The secrets' file is read each time, so that a change needs no restart; a file that
//! cannot be used then is told to the log once, and the secrets read before go on being used.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use shared::domain::{
    error::{Code, Failure},
    id::PeerId,
    signal::IceServer,
};

use crate::domain::turn_credentials::{TurnSecrets, TurnUrl, renew_after};

/// Two secrets and some comment.
const MAX_FILE_BYTES: u64 = 16 * 1024;

/// Which TURN servers peers get credentials for, and what these are made with.
#[derive(Debug, Clone)]
pub struct TurnConfig {
    /// Where they listen.
    pub urls: Vec<TurnUrl>,
    /// One or two secrets, which the TURN servers have, too.
    pub secret_file: PathBuf,
    /// How long credentials are valid, in seconds.
    pub ttl: u64,
}

/// Makes TURN credentials.
pub struct TurnIssuer {
    config: TurnConfig,
    latest: Mutex<Latest>,
}

struct Latest {
    secrets: TurnSecrets,
    /// What was wrong with the file when it was read last, so that the log says each trouble once.
    trouble: Option<String>,
}

impl TurnIssuer {
    /// Reads the secrets.
    ///
    /// # Errors
    /// [`Code::BadFile`] when the file cannot be read, is no file of secrets, or can be read by others.
    pub fn open(config: TurnConfig) -> Result<Self, Failure> {
        let secrets = load(&config.secret_file)?;
        tracing::info!(file = %config.secret_file.display(), secrets = secrets.count(), ttl = config.ttl, "TURN credentials are given out");
        Ok(TurnIssuer { config, latest: Mutex::new(Latest { secrets, trouble: None }) })
    }

    /// What this peer uses from now (Unix seconds) on.
    pub async fn server(&self, now: u64, peer: &PeerId) -> IceServer {
        let path = self.config.secret_file.clone();
        let read = tokio::task::spawn_blocking(move || load(&path)).await;
        let read = read.unwrap_or_else(|_| Err(Failure::new(Code::Unavailable, "the server is going down")));
        self.take(read).server(&self.config.urls, peer, now.saturating_add(self.config.ttl))
    }

    /// Between two credentials of one peer.
    pub fn renew_after(&self) -> Duration {
        renew_after(self.config.ttl)
    }

    /// The secrets to use after the file was read.
    fn take(&self, read: Result<TurnSecrets, Failure>) -> TurnSecrets {
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        match read {
            Ok(secrets) => {
                if latest.trouble.take().is_some() || latest.secrets != secrets {
                    tracing::info!(secrets = secrets.count(), "the TURN secrets were read anew");
                }
                latest.secrets = secrets;
            }
            Err(failure) => {
                if latest.trouble.as_ref() != Some(&failure.message) {
                    tracing::error!(%failure, "the TURN secrets cannot be read anew; those read before are used on");
                }
                latest.trouble = Some(failure.message);
            }
        }
        latest.secrets.clone()
    }
}

fn load(path: &Path) -> Result<TurnSecrets, Failure> {
    let bad = |why: String| Failure::new(Code::BadFile, format!("the TURN secrets' file {}: {why}", path.display()));
    let text = read_private(path).map_err(|error| bad(error.to_string()))?;
    text.parse().map_err(|error: crate::domain::turn_credentials::BadSecrets| bad(error.to_string()))
}

/// Whether anybody may read it who should not. Root may let our group read what it keeps for us, as Kubernetes does with secrets.
fn is_open_to_others(mode: u32, owner: u32) -> bool {
    mode & (if owner == 0 { 0o037 } else { 0o077 }) != 0
}

/// The text of a small file that nobody but its owner can read.
pub(super) fn read_private(path: &Path) -> io::Result<String> {
    // Looked at before it is opened: opening a pipe would wait for its other end.
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    let mode = metadata.mode();
    if is_open_to_others(mode, metadata.uid()) {
        return Err(io::Error::other(format!("others may read it (mode {:03o}); run chmod 600 on it", mode & 0o777)));
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(io::Error::other("it is too large for one or two secrets"));
    }
    String::from_utf8(bytes).map_err(|_| io::Error::other("it is not text"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    const OLD: &str = "old-old-old-old-old-old-old";
    const NEW: &str = "new-new-new-new-new-new-new";

    fn write(path: &Path, text: &str, mode: u32) {
        fs::write(path, text).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[tokio::test]
    async fn a_changed_file_counts_at_once_and_a_bad_one_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("turn-secret");
        write(&path, OLD, 0o600);
        let urls = vec!["turn:t.example".parse().unwrap()];
        let issuer = TurnIssuer::open(TurnConfig { urls, secret_file: path.clone(), ttl: 60 }).unwrap();
        let peer = "p".parse().unwrap();
        let with = |secrets: &str| secrets.parse::<TurnSecrets>().unwrap().server(&issuer.config.urls, &peer, 160);
        assert_eq!(issuer.server(100, &peer).await, with(OLD));
        write(&path, &format!("{NEW}\n{OLD}\n"), 0o600);
        assert_eq!(issuer.server(100, &peer).await, with(NEW));
        write(&path, OLD, 0o644);
        assert_eq!(issuer.server(100, &peer).await, with(NEW));
        fs::remove_file(&path).unwrap();
        assert_eq!(issuer.server(100, &peer).await, with(NEW));
        write(&path, OLD, 0o600);
        assert_eq!(issuer.server(100, &peer).await, with(OLD));
    }

    #[test]
    fn a_wrong_file_is_refused_at_the_start_with_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("turn-secret");
        let refusal = || TurnIssuer::open(TurnConfig { urls: Vec::new(), secret_file: path.clone(), ttl: 60 }).err().unwrap();
        let says = |what: &str| {
            let failure = refusal();
            assert!(failure.code == Code::BadFile && failure.message.contains(what), "{failure}");
            assert!(failure.message.contains("turn-secret") && !failure.message.contains(OLD), "{failure}");
        };
        says("No such file");
        write(&path, OLD, 0o604);
        says("chmod 600");
        for (mode, owner, open) in
            [(0o600, 1000, false), (0o640, 1000, true), (0o440, 0, false), (0o640, 0, false), (0o660, 0, true), (0o444, 0, true)]
        {
            assert_eq!(is_open_to_others(mode, owner), open, "{mode:o} of {owner}");
        }
        write(&path, "short", 0o600);
        says("openssl rand -hex 32");
        write(&path, &"#\n".repeat(10_000), 0o600);
        says("too large");
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        says("not a regular file");
    }
}
