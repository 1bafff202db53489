//! The id token of this user at a server, used until it expires: by every reconnect, and by the next run of the program.
//!
//! A sign-in makes a user, and users cost the server's operator money and quota. So a token is kept in a file of its own for each server,
//! `id-tokens/<hash of the URL>.json`, mode 0600, replaced whole. The file is a convenience: when it cannot be read or written, or the server
//! no longer takes what is in it, there is a new sign-in and nothing else happens.

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::{self, ErrorKind, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

use crate::{
    domain::{
        id::{Secret, hex},
        manifest::Hash,
        signal::SignIn,
    },
    runtime::seal,
};

const FOLDER: &str = "id-tokens";
/// A token is replaced when less than this is left of it.
const RESERVE: Duration = Duration::from_secs(60);
/// More than any token; a larger file is none of ours.
const MAX_FILE: u64 = 16 * 1024;

/// A token to show to the server.
pub(super) struct IdToken {
    /// The JWT.
    pub(super) text: Secret<String>,
    /// Whether it was used before, so that its refusal only says that it has outlived itself.
    pub(super) reused: bool,
}

#[derive(Clone, Serialize, Deserialize)]
struct Kept {
    server: String,
    id_token: Secret<String>,
    /// Unix seconds.
    expires_at: u64,
}

/// The token of one server: in memory, and in a file when there is a folder for it.
pub(super) struct Tokens {
    server: String,
    file: Option<PathBuf>,
    known: Option<Kept>,
}

impl Tokens {
    /// In memory only.
    pub(super) fn new(server: &str) -> Self {
        Tokens { server: server.to_owned(), file: None, known: None }
    }

    /// In this folder, too.
    pub(super) fn keep_in(&mut self, dir: &Path) {
        let name = hex(&Hash::of(self.server.as_bytes()).0[..16]);
        self.file = Some(dir.join(FOLDER).join(name).with_extension("json"));
    }

    /// The token that is still good, if there is one.
    pub(super) fn usable(&mut self) -> Option<IdToken> {
        if !self.known.as_ref().is_some_and(is_good) {
            // Perhaps another process has signed in meanwhile.
            self.known = self.read().filter(is_good);
        }
        let text = self.known.as_ref()?.id_token.clone();
        Some(IdToken { text, reused: true })
    }

    /// Keeps what a sign-in gave.
    pub(super) fn remember(&mut self, sign_in: SignIn) -> IdToken {
        let kept =
            Kept { server: self.server.clone(), id_token: sign_in.id_token, expires_at: unix_now().saturating_add(sign_in.expires_in) };
        if let Some(path) = &self.file
            && let Err(error) = write(path, &kept)
        {
            tracing::info!(path = %path.display(), %error, "the sign-in is not remembered for the next run");
        }
        let text = kept.id_token.clone();
        self.known = Some(kept);
        IdToken { text, reused: false }
    }

    /// Forgets this token, which the server has refused; a newer one stays.
    pub(super) fn forget(&mut self, refused: &IdToken) {
        let is_it = |kept: &Kept| kept.id_token == refused.text;
        if self.known.as_ref().is_some_and(is_it) {
            self.known = None;
        }
        if let Some(path) = self.file.as_ref().filter(|_| self.read().as_ref().is_some_and(is_it)) {
            // Should it stay, it is refused once more.
            let _ = fs::remove_file(path);
        }
    }

    fn read(&self) -> Option<Kept> {
        let path = self.file.as_ref()?;
        match read(path) {
            Ok(kept) => Some(kept).filter(|kept| kept.server == self.server),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => {
                tracing::info!(path = %path.display(), %error, "the last sign-in cannot be used; there will be a new one");
                None
            }
        }
    }
}

fn is_good(kept: &Kept) -> bool {
    kept.expires_at.saturating_sub(RESERVE.as_secs()) > unix_now()
}

fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn read(path: &Path) -> io::Result<Kept> {
    let metadata = fs::metadata(path)?;
    if metadata.mode() & 0o077 != 0 {
        return Err(io::Error::other("others may read it"));
    }
    if metadata.len() > MAX_FILE {
        return Err(io::Error::other("it is too large"));
    }
    // Without serde's own words, which could quote the token.
    serde_json::from_slice(&fs::read(path)?).map_err(|_| io::Error::other("it is damaged"))
}

/// Whole or not at all; of two processes at once the later one's token counts.
fn write(path: &Path, kept: &Kept) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let unique = seal::random::<8>().map_err(io::Error::other)?;
    let beside = path.with_extension(hex(&unique));
    let bytes = serde_json::to_vec(kept).map_err(io::Error::other)?;
    let written = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside).and_then(|mut file| {
        file.write_all(&bytes)?;
        file.sync_all()?;
        fs::rename(&beside, path)
    });
    if written.is_err() {
        // It may not even be there.
        let _ = fs::remove_file(&beside);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn tokens(dir: &Path, server: &str) -> Tokens {
        let mut tokens = Tokens::new(server);
        tokens.keep_in(dir);
        tokens
    }

    fn sign_in(token: &str, expires_in: u64) -> SignIn {
        SignIn { id_token: Secret::new(token.to_owned()), username: "u".to_owned(), expires_in }
    }

    fn text(token: Option<IdToken>) -> Option<String> {
        token.map(|token| token.text.expose().clone())
    }

    fn only_file(dir: &Path) -> PathBuf {
        let files: Vec<PathBuf> = fs::read_dir(dir.join(FOLDER)).unwrap().map(|entry| entry.unwrap().path()).collect();
        let [file] = &files[..] else { panic!("one file, not {files:?}") };
        file.clone()
    }

    #[test]
    fn the_next_run_takes_the_token_again_at_the_same_server_only() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!tokens(dir.path(), "http://a").remember(sign_in("first", 3600)).reused);
        let again = tokens(dir.path(), "http://a").usable().unwrap();
        assert_eq!((again.text.expose().as_str(), again.reused), ("first", true));
        assert!(tokens(dir.path(), "http://b").usable().is_none());
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!((mode(&only_file(dir.path())), mode(&dir.path().join(FOLDER))), (0o600, 0o700));
    }

    #[test]
    fn a_token_near_its_end_is_not_taken_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut tokens = tokens(dir.path(), "http://a");
        tokens.remember(sign_in("old", RESERVE.as_secs()));
        assert!(tokens.usable().is_none());
        tokens.remember(sign_in("new", RESERVE.as_secs() + 60));
        assert_eq!(text(tokens.usable()), Some("new".to_owned()));
    }

    #[test]
    fn a_refused_token_is_forgotten_and_a_newer_one_of_another_process_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let (mut one, mut other) = (tokens(dir.path(), "http://a"), tokens(dir.path(), "http://a"));
        let refused = one.remember(sign_in("refused", 3600));
        other.remember(sign_in("newer", 3600));
        one.forget(&refused);
        assert_eq!(text(one.usable()), Some("newer".to_owned()));
        let refused = one.usable().unwrap();
        one.forget(&refused);
        assert!(one.usable().is_none() && tokens(dir.path(), "http://a").usable().is_none());
    }

    #[test]
    fn a_file_that_is_open_to_others_damaged_or_huge_is_not_used_and_replaced() {
        let dir = tempfile::tempdir().unwrap();
        tokens(dir.path(), "http://a").remember(sign_in("first", 3600));
        let file = only_file(dir.path());
        let good = fs::read(&file).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(tokens(dir.path(), "http://a").usable().is_none());
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        for bytes in [b"{".to_vec(), [good, vec![b' '; MAX_FILE as usize]].concat()] {
            fs::write(&file, bytes).unwrap();
            assert!(tokens(dir.path(), "http://a").usable().is_none());
        }
        tokens(dir.path(), "http://a").remember(sign_in("second", 3600));
        assert_eq!(text(tokens(dir.path(), "http://a").usable()), Some("second".to_owned()));
    }

    #[test]
    fn without_a_usable_folder_the_token_lasts_for_the_process() {
        let dir = tempfile::tempdir().unwrap();
        let not_a_folder = dir.path().join("file");
        fs::write(&not_a_folder, "").unwrap();
        let mut tokens = tokens(&not_a_folder, "http://a");
        tokens.remember(sign_in("first", 3600));
        assert_eq!(text(tokens.usable()), Some("first".to_owned()));
    }
}
