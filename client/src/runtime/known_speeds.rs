//! How fast the last package went to each worker, so that the next one's time can be told before it is sent.
//!
//! `known_speeds.toml` in the configuration directory holds one table a worker, named by its public key as base64url. It is a
//! convenience: a file that cannot be read or written costs an estimate and nothing else.

use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};

use crate::domain::plan::{Basis, Speed};

/// The file's name in the configuration directory.
pub const FILE_NAME: &str = "known_speeds.toml";
/// Fewer bytes say more about the connection's beginning than about the path.
const ENOUGH: u64 = 4 << 20;
/// Workers that are remembered, at most: the latest.
const MAX_WORKERS: usize = 64;

/// The file of known speeds.
#[derive(Debug, Clone)]
pub struct KnownSpeeds {
    path: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    bytes_per_second: u64,
    /// Unix seconds.
    at: u64,
}

impl KnownSpeeds {
    /// The file in this configuration directory; it need not exist.
    pub fn new(config_dir: &Path) -> Self {
        KnownSpeeds { path: config_dir.join(FILE_NAME) }
    }

    /// How fast the last package went to the worker with this key.
    pub fn of(&self, worker: &[u8; 32]) -> Option<Speed> {
        let known = *self.read().get(&URL_SAFE_NO_PAD.encode(worker))?;
        (known.bytes_per_second > 0).then_some(Speed { bytes_per_second: known.bytes_per_second, basis: Basis::LastTransfer })
    }

    /// Remembers that so many bytes went to the worker with this key in so long a time, if that tells anything.
    pub fn remember(&self, worker: &[u8; 32], bytes: u64, took: Duration) {
        let Some(speed) = Speed::of(bytes, took, Basis::LastTransfer).filter(|_| bytes >= ENOUGH) else { return };
        let mut known = self.read();
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        known.insert(URL_SAFE_NO_PAD.encode(worker), Known { bytes_per_second: speed.bytes_per_second, at });
        while known.len() > MAX_WORKERS {
            let oldest = known.iter().min_by_key(|(_, known)| known.at).map(|(name, _)| name.clone());
            oldest.and_then(|name| known.remove(&name));
        }
        if let Err(error) = self.write(&known) {
            tracing::info!(path = %self.path.display(), %error, "how fast the package went is not remembered");
        }
    }

    fn read(&self) -> BTreeMap<String, Known> {
        let text = match fs::read_to_string(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return BTreeMap::new(),
            Err(error) => {
                tracing::info!(path = %self.path.display(), %error, "the known speeds cannot be read");
                return BTreeMap::new();
            }
        };
        toml::from_str(&text).unwrap_or_else(|error| {
            tracing::info!(path = %self.path.display(), %error, "the known speeds cannot be understood; they begin anew");
            BTreeMap::new()
        })
    }

    /// Two clients at once: the later one's word counts.
    fn write(&self, known: &BTreeMap<String, Known>) -> io::Result<()> {
        let text = toml::to_string(known).map_err(io::Error::other)?;
        let temporary = self.path.with_extension(format!("new-{}", std::process::id()));
        let write = || {
            let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
            file.write_all(text.as_bytes())?;
            fs::rename(&temporary, &self.path)
        };
        write().inspect_err(|_| {
            // Best effort: the error that matters is the one above.
            let _ = fs::remove_file(&temporary);
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_last_large_package_counts() {
        let dir = tempfile::tempdir().unwrap();
        let speeds = KnownSpeeds::new(dir.path());
        assert_eq!(speeds.of(&[1; 32]), None);
        speeds.remember(&[1; 32], 50_000_000, SECOND);
        speeds.remember(&[1; 32], ENOUGH * 5, SECOND);
        speeds.remember(&[1; 32], ENOUGH - 1, SECOND);
        speeds.remember(&[2; 32], ENOUGH, Duration::ZERO);
        assert_eq!(speeds.of(&[1; 32]), Some(Speed { bytes_per_second: ENOUGH * 5, basis: Basis::LastTransfer }));
        assert_eq!(speeds.of(&[2; 32]), None);
    }

    #[test]
    fn a_damaged_file_costs_nothing_but_the_estimate() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FILE_NAME), "what").unwrap();
        let speeds = KnownSpeeds::new(dir.path());
        assert_eq!(speeds.of(&[1; 32]), None);
        speeds.remember(&[1; 32], ENOUGH, SECOND);
        assert_eq!(speeds.of(&[1; 32]).unwrap().bytes_per_second, ENOUGH);
        KnownSpeeds::new(&dir.path().join("missing")).remember(&[1; 32], ENOUGH, SECOND);
    }

    #[test]
    fn only_so_many_workers_are_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let speeds = KnownSpeeds::new(dir.path());
        for worker in 0..=MAX_WORKERS as u8 {
            speeds.remember(&[worker; 32], ENOUGH, SECOND);
        }
        assert_eq!(speeds.read().len(), MAX_WORKERS);
    }
}
