//! A sign of life for whoever runs the worker: a small file in its data directory, written anew as long as the agent goes round.
//!
//! A container's or Kubernetes' probe asks `webrtc-worker health`, which reads it: the worker listens on no port that could be asked.

use std::{
    io::ErrorKind,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};
use shared::domain::error::{Code, Failure};

/// After this time without a sign of life something is wrong: the agent gives one every 15 s, and while no server answers each minute.
const SILENCE: Duration = Duration::from_secs(90);
const FILE: &str = "alive.json";

/// What the agent says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beat {
    /// Whether it is in its room, so that clients find it.
    pub in_room: bool,
    /// Jobs that run or wait.
    pub jobs: u32,
}

/// Where signs of life are left; the last one is removed with it.
#[derive(Debug)]
pub struct Heart(PathBuf);

impl Heart {
    /// In this data directory.
    pub fn new(data_dir: &Path) -> Self {
        Heart(data_dir.join(FILE))
    }

    /// Leaves one.
    pub fn beat(&self, beat: Beat) {
        let text = serde_json::to_vec(&beat).expect("a boolean and a number always serialise");
        let new = self.0.with_extension("new");
        // Without syncing: after a crash of the machine nobody is alive.
        if let Err(error) = std::fs::write(&new, text).and_then(|()| std::fs::rename(&new, &self.0)) {
            tracing::warn!(%error, path = %self.0.display(), "no sign of life can be left");
        }
    }
}

impl Drop for Heart {
    fn drop(&mut self) {
        // It may never have been there.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// The last sign of life of the worker with this data directory.
///
/// # Errors
/// [`Code::Unavailable`] when there is none, or an old one; [`Code::BadFile`].
pub fn look(data_dir: &Path, now: SystemTime) -> Result<Beat, Failure> {
    let path = data_dir.join(FILE);
    let bad = |error: std::io::Error| match error.kind() {
        ErrorKind::NotFound => Failure::new(Code::Unavailable, format!("no worker runs in {}", data_dir.display())),
        _ => Failure::new(Code::BadFile, format!("{} cannot be read: {error}", path.display())),
    };
    let written = std::fs::metadata(&path).and_then(|found| found.modified()).map_err(bad)?;
    // One of the future is fresh: the clock was set.
    let age = now.duration_since(written).unwrap_or_default();
    if age > SILENCE {
        return Err(Failure::new(Code::Unavailable, format!("the worker has given no sign of life for {} s; restart it", age.as_secs())));
    }
    let bytes = std::fs::read(&path).map_err(bad)?;
    serde_json::from_slice(&bytes).map_err(|_| Failure::new(Code::BadFile, format!("{} is not a sign of life of a worker", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sign_of_life_counts_while_it_is_fresh_and_goes_with_the_worker() {
        let dir = tempfile::tempdir().unwrap();
        let now = SystemTime::now();
        assert!(look(dir.path(), now).unwrap_err().message.contains("no worker runs"));
        let heart = Heart::new(dir.path());
        let beat = Beat { in_room: true, jobs: 2 };
        heart.beat(beat);
        assert_eq!(look(dir.path(), now + Duration::from_secs(60)).unwrap(), beat);
        let silent = look(dir.path(), now + Duration::from_secs(120)).unwrap_err();
        assert!(silent.code == Code::Unavailable && silent.message.contains("no sign of life"), "{silent}");
        std::fs::write(dir.path().join(FILE), "{").unwrap();
        assert_eq!(look(dir.path(), now).unwrap_err().code, Code::BadFile);
        drop(heart);
        assert!(look(dir.path(), now).unwrap_err().message.contains("no worker runs"));
    }
}
