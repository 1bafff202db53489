//! The keys of the workers met before: a worker that shows another key than the first time is refused.
//!
//! `known_workers.toml` in the configuration directory holds one line a worker, `name = "key"`, the key as base64url. The key in an
//! invite is proof enough for the worker that made it; this file is for the others, and for a worker that changes without reason.

use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    io::{ErrorKind, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use shared::domain::{
    error::{Code, Failure},
    id::RoomId,
};
use toml::Spanned;

/// The file's name in the configuration directory.
pub const FILE_NAME: &str = "known_workers.toml";
const HEADER: &str = "# Workers met before and their public keys. Remove a line to trust that worker's next key.\n";

/// What is known of a worker's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// It is the key of last time.
    Known,
    /// The worker was never met.
    New,
    /// It is another key than last time.
    Changed {
        /// The line of the file with the old key, from 1.
        line: usize,
    },
}

const ROOM: &str = " in room ";

/// The name under which a worker of a room is remembered. A room has one secret and its workers keep their keys, so that a changed key is
/// an attack; the same name in another room may well be another machine.
pub fn in_room(name: &str, room: &RoomId) -> String {
    format!("{name}{ROOM}{room}")
}

/// The file of known workers.
#[derive(Debug, Clone)]
pub struct KnownWorkers {
    path: PathBuf,
}

impl KnownWorkers {
    /// The file in this configuration directory; it need not exist.
    pub fn new(config_dir: &Path) -> Self {
        KnownWorkers { path: config_dir.join(FILE_NAME) }
    }

    /// What is known of the worker of this name with this key.
    ///
    /// # Errors
    /// [`Code::BadFile`] when the file cannot be read or understood.
    pub fn check(&self, name: &str, key: &[u8; 32]) -> Result<Trust, Failure> {
        let text = self.text()?;
        let known: BTreeMap<String, Spanned<String>> = toml::from_str(&text).map_err(|error| {
            let line = error.span().map(|span| line_of(&text, span.start)).unwrap_or(1);
            self.bad(&format!("line {line} is not 'name = \"key\"'; correct or remove it"))
        })?;
        Ok(match known.get(name) {
            None => Trust::New,
            Some(pinned) if pinned.get_ref() == &URL_SAFE_NO_PAD.encode(key) => Trust::Known,
            Some(pinned) => Trust::Changed { line: line_of(&text, pinned.span().start) },
        })
    }

    /// Checks a worker's key and remembers it when the worker is new; answers [`Trust::Known`] or [`Trust::New`].
    ///
    /// # Errors
    /// [`Code::NotAuthentic`] when the key has changed, [`Code::BadFile`] when the file cannot be read or written.
    pub fn verify(&self, name: &str, key: &[u8; 32]) -> Result<Trust, Failure> {
        let _lock = self.lock()?;
        let trust = self.check(name, key)?;
        match trust {
            Trust::Known => {}
            Trust::New => self.append(name, key)?,
            Trust::Changed { line } => return Err(self.changed(name, line)),
        }
        Ok(trust)
    }

    /// Whether a worker of this name showed another key in another room; [`in_room`] makes the names.
    ///
    /// # Errors
    /// As [`KnownWorkers::check`].
    pub fn differs_elsewhere(&self, name: &str, key: &[u8; 32]) -> Result<bool, Failure> {
        let known: BTreeMap<String, String> = toml::from_str(&self.text()?).map_err(|_| self.bad("it is damaged"))?;
        let (key, name) = (URL_SAFE_NO_PAD.encode(key), format!("{name}{ROOM}"));
        Ok(known.iter().any(|(other, pinned)| other.starts_with(&name) && *pinned != key))
    }

    fn changed(&self, name: &str, line: usize) -> Failure {
        Failure::new(
            Code::NotAuthentic,
            format!(
                "the worker '{name}' shows another key than when it was first met: somebody may be posing as it, or it was set up anew; \
                 ask its owner, and if it was, remove line {line} of {}",
                self.path.display()
            ),
        )
    }

    fn append(&self, name: &str, key: &[u8; 32]) -> Result<(), Failure> {
        let mut text = self.text()?;
        if text.is_empty() {
            text.push_str(HEADER);
        } else if !text.ends_with('\n') {
            text.push('\n');
        }
        let line = BTreeMap::from([(name, URL_SAFE_NO_PAD.encode(key))]);
        text.push_str(&toml::to_string(&line).expect("a table of strings always serialises"));
        let temporary = self.path.with_extension(format!("new-{}", std::process::id()));
        let write = || {
            let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&temporary, &self.path)
        };
        write().map_err(|error| {
            // Best effort: the error that matters is the one above.
            let _ = fs::remove_file(&temporary);
            self.bad(&format!("it cannot be written ({error})"))
        })
    }

    fn text(&self) -> Result<String, Failure> {
        match fs::read_to_string(&self.path) {
            Ok(text) => Ok(text),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(String::new()),
            Err(error) => Err(self.bad(&format!("it cannot be read ({error})"))),
        }
    }

    /// Held while the file is read and replaced, so that two clients at once lose no line.
    fn lock(&self) -> Result<fs::File, Failure> {
        let unlockable = |error: &dyn std::fmt::Display| self.bad(&format!("it cannot be locked ({error})"));
        if let Some(parent) = self.path.parent() {
            fs::create_dir_all(parent).map_err(|error| unlockable(&error))?;
        }
        let path = self.path.with_extension("lock");
        let file =
            OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path).map_err(|error| unlockable(&error))?;
        file.lock().map_err(|error| unlockable(&error))?;
        Ok(file)
    }

    fn bad(&self, why: &str) -> Failure {
        Failure::new(Code::BadFile, format!("the file of known workers {} cannot be used: {why}", self.path.display()))
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_is_pinned_on_first_use() {
        let dir = tempfile::tempdir().unwrap();
        let known = KnownWorkers::new(&dir.path().join("deep"));
        assert_eq!(known.check("lab", &[1; 32]).unwrap(), Trust::New);
        assert_eq!(known.verify("lab", &[1; 32]).unwrap(), Trust::New);
        assert_eq!(known.verify("lab", &[1; 32]).unwrap(), Trust::Known);
        assert_eq!(known.verify("odd \"name\"\n[x]", &[2; 32]).unwrap(), Trust::New);
        assert_eq!(known.verify("odd \"name\"\n[x]", &[2; 32]).unwrap(), Trust::Known);
        assert_eq!(known.verify("lab", &[1; 32]).unwrap(), Trust::Known);
    }

    #[test]
    fn a_changed_key_is_refused_and_the_line_named() {
        let dir = tempfile::tempdir().unwrap();
        let known = KnownWorkers::new(dir.path());
        known.verify("first", &[1; 32]).unwrap();
        known.verify("lab", &[2; 32]).unwrap();
        let failure = known.verify("lab", &[3; 32]).unwrap_err();
        assert_eq!(failure.code, Code::NotAuthentic);
        assert!(failure.message.contains("remove line 3 of") && failure.message.contains(FILE_NAME), "{failure}");
        let text = fs::read_to_string(dir.path().join(FILE_NAME)).unwrap();
        assert!(text.lines().nth(2).unwrap().starts_with("lab"), "{text}");
        assert_eq!(known.verify("lab", &[2; 32]).unwrap(), Trust::Known, "the old key stays");
    }

    #[test]
    fn the_same_name_in_another_room_is_noticed_not_refused() {
        let dir = tempfile::tempdir().unwrap();
        let known = KnownWorkers::new(dir.path());
        let (first, second): (RoomId, RoomId) = ("r1".parse().unwrap(), "r2".parse().unwrap());
        known.verify(&in_room("lab", &first), &[1; 32]).unwrap();
        assert!(!known.differs_elsewhere("lab", &[1; 32]).unwrap());
        assert!(known.differs_elsewhere("lab", &[2; 32]).unwrap());
        assert_eq!(known.verify(&in_room("lab", &second), &[2; 32]).unwrap(), Trust::New);
        assert_eq!(known.verify(&in_room("lab", &first), &[2; 32]).unwrap_err().code, Code::NotAuthentic);
    }

    #[test]
    fn lines_and_comments_of_people_stay() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FILE_NAME), "# mine\nlab = \"x\"").unwrap();
        let known = KnownWorkers::new(dir.path());
        known.verify("new", &[1; 32]).unwrap();
        let text = fs::read_to_string(dir.path().join(FILE_NAME)).unwrap();
        assert!(text.starts_with("# mine\nlab = \"x\"\nnew = "), "{text}");
    }

    #[test]
    fn a_damaged_file_is_an_error_not_trust() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FILE_NAME), "a = \"x\"\nwhat\n").unwrap();
        let failure = KnownWorkers::new(dir.path()).verify("lab", &[1; 32]).unwrap_err();
        assert_eq!(failure.code, Code::BadFile);
        assert!(failure.message.contains("line 2"), "{failure}");
    }
}
