//! The public keys of an issuer, from its JWKS (RFC 7517 §5): fetched at the start, again every so often, and when a token names a key that
//! is not among them, since issuers rotate their keys.
//!
//! ```text
//!   fresh ──a fetch fails──► stale: the last keys are used ──MAX_AGE──► too old: no token can be checked
//!     ▲                        │                                          │
//!     └──── a fetch succeeds ──┴──────────────────────────────────────────┘
//! ```
//! Nobody can have us fetch by sending tokens with invented keys: one fetch for that in [`PAUSE`], whoever asks, and those who ask meanwhile
//! wait for the same one. Sockets that are registered need no keys.

use std::{
    collections::HashMap,
    error::Error,
    sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::Duration,
};

use reqwest::redirect::Policy;
use serde_json::{Value, json};
use shared::domain::error::{Code, Failure};
use tokio::{sync::Mutex, time::timeout};
use tokio_util::sync::CancellationToken;

use super::clock::{Clock, rfc3339};

/// The longest document that is read, in bytes; Cognito's has about 1000.
const MAX_DOCUMENT: usize = 64 * 1024;
/// For a whole fetch.
const FETCH: Duration = Duration::from_secs(5);
/// Between two fetches that unknown keys cause, in seconds.
pub const PAUSE: u64 = 60;
/// After a fetch that failed, unless the next one is due earlier.
const RETRY: Duration = Duration::from_secs(60);
/// How long keys are used after they were fetched, in seconds.
pub const MAX_AGE: u64 = 24 * 3600;

/// Makes a key of one member of the set: its `kid` and the key. Members that are of no use to us are `None`.
pub type ReadKey<K> = fn(&Value) -> Option<(String, K)>;

/// The keys of one issuer.
pub struct Jwks<K> {
    url: String,
    http: reqwest::Client,
    read: ReadKey<K>,
    clock: Clock,
    known: RwLock<Known<K>>,
    /// Held during a fetch; when the last fetch for an unknown key was, Unix seconds.
    fetching: Mutex<Option<u64>>,
}

struct Known<K> {
    keys: HashMap<String, K>,
    document: Value,
    /// Unix seconds.
    fetched_at: Option<u64>,
    /// Why the last fetch failed, if it did.
    trouble: Option<String>,
}

/// How good the keys are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Freshness {
    /// As the issuer publishes them.
    Fresh,
    /// The last ones are used, since they cannot be fetched.
    Stale(String),
    /// None can be used.
    TooOld(String),
}

impl<K: Clone> Jwks<K> {
    /// No keys yet. They come from this URL; `read` makes keys of what is there.
    ///
    /// # Errors
    /// [`Code::InvalidRequest`] when it is no `http(s)://` URL, [`Code::Internal`] when no HTTP client can be made.
    pub fn new(url: &str, read: ReadKey<K>, clock: Clock) -> Result<Self, Failure> {
        let parsed = reqwest::Url::parse(url).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
        let parsed = parsed.ok_or_else(|| Failure::new(Code::InvalidRequest, format!("'{url}' is not the https:// URL of a JWKS")))?;
        if parsed.scheme() == "http" && !is_loopback(&parsed) {
            tracing::warn!(url, "the keys that tokens are checked with come over plain HTTP: whoever is on the way can forge tokens");
        }
        // Redirects are not followed: the keys are at the URL that was configured, or nowhere.
        let http = reqwest::Client::builder().timeout(FETCH).redirect(Policy::none()).build();
        let http = http.map_err(|error| Failure::new(Code::Internal, format!("no HTTP client can be made: {error}")))?;
        let known = Known { keys: HashMap::new(), document: json!({"keys": []}), fetched_at: None, trouble: None };
        Ok(Jwks { url: url.to_owned(), http, read, clock, known: RwLock::new(known), fetching: Mutex::default() })
    }

    /// The key of this id, if the issuer has it; asks the issuer if it is not known, where that is due.
    ///
    /// # Errors
    /// [`Code::Unavailable`] when that cannot be told, since the keys cannot be fetched.
    pub async fn find(&self, kid: &str) -> Result<Option<K>, Failure> {
        if let Some(key) = self.look(kid) {
            return Ok(Some(key));
        }
        self.fetch_for_unknown().await;
        match (self.look(kid), self.freshness()) {
            (Some(key), _) => Ok(Some(key)),
            (None, Freshness::Fresh) => Ok(None),
            (None, Freshness::Stale(_) | Freshness::TooOld(_)) => {
                Err(Failure::new(Code::Unavailable, "the keys that id tokens are checked with cannot be fetched now; try again later"))
            }
        }
    }

    /// The set as it was published last.
    pub fn document(&self) -> Value {
        self.known().document.clone()
    }

    /// How good the keys are now.
    pub fn freshness(&self) -> Freshness {
        let known = self.known();
        let why = known.trouble.as_deref().unwrap_or("they were not fetched again");
        match known.fetched_at {
            None => Freshness::TooOld(format!("{} was never read: {why}", self.url)),
            Some(at) if is_too_old(at, self.clock.now()) => {
                Freshness::TooOld(format!("{} was read last at {}: {why}", self.url, rfc3339(at)))
            }
            Some(at) if known.trouble.is_some() => Freshness::Stale(format!("{} was read last at {}: {why}", self.url, rfc3339(at))),
            Some(_) => Freshness::Fresh,
        }
    }

    /// Fetches now.
    ///
    /// # Errors
    /// [`Code::Unavailable`] when the issuer does not answer, [`Code::InvalidRequest`] when what it answers is no JWKS: then the URL is
    /// wrong.
    pub async fn fetch(&self) -> Result<(), Failure> {
        let _one_at_a_time = self.fetching.lock().await;
        self.fetch_locked().await
    }

    /// Fetches every so often until `stop`; after a failure sooner.
    pub async fn keep_fresh(&self, every: Duration, stop: CancellationToken) {
        loop {
            let wait = if self.known().trouble.is_some() { every.min(RETRY) } else { every };
            if stop.run_until_cancelled(tokio::time::sleep(wait)).await.is_none() {
                return;
            }
            // It has been logged.
            let _ = stop.run_until_cancelled(self.fetch()).await;
        }
    }

    async fn fetch_for_unknown(&self) {
        let mut last = self.fetching.lock().await;
        let now = self.clock.now();
        if last.is_some_and(|last| now < last.saturating_add(PAUSE)) {
            return;
        }
        *last = Some(now);
        // It has been logged, and the caller sees what is known now.
        let _ = self.fetch_locked().await;
    }

    /// With `fetching` locked.
    async fn fetch_locked(&self) -> Result<(), Failure> {
        let fetched = timeout(FETCH, self.download()).await.unwrap_or_else(|_| Err(unavailable("no answer in time")));
        let result = fetched.and_then(|document| self.take(document));
        if let Err(failure) = &result {
            tracing::warn!(url = self.url, %failure, "the keys that id tokens are checked with could not be fetched");
            self.known_mut().trouble = Some(failure.message.clone());
        }
        result
    }

    async fn download(&self) -> Result<Value, Failure> {
        let lost = |error: reqwest::Error| unavailable(root_cause(&error));
        let mut response = self.http.get(&self.url).send().await.map_err(lost)?;
        let status = response.status();
        if !status.is_success() {
            let failure = format!("HTTP {}", status.as_u16());
            return Err(if status.is_server_error() || status.as_u16() == 429 { unavailable(failure) } else { wrong(failure) });
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(lost)? {
            if body.len() + chunk.len() > MAX_DOCUMENT {
                return Err(wrong(format!("it is over {MAX_DOCUMENT} bytes")));
            }
            body.extend_from_slice(&chunk);
        }
        serde_json::from_slice(&body).map_err(|_| wrong("it is not JSON"))
    }

    fn take(&self, document: Value) -> Result<(), Failure> {
        let members = document["keys"].as_array().ok_or_else(|| wrong("it is no JWKS: it has no keys"))?;
        let keys: HashMap<String, K> = members.iter().filter_map(self.read).collect();
        if keys.is_empty() {
            return Err(wrong("no key in it can be used"));
        }
        let published = json!({"keys": document["keys"]});
        let mut known = self.known_mut();
        if known.fetched_at.is_some() && keys.keys().any(|kid| !known.keys.contains_key(kid)) {
            tracing::info!(url = self.url, "the issuer of id tokens has new keys");
        }
        *known = Known { keys, document: published, fetched_at: Some(self.clock.now()), trouble: None };
        Ok(())
    }

    fn look(&self, kid: &str) -> Option<K> {
        let known = self.known();
        known.fetched_at.filter(|at| !is_too_old(*at, self.clock.now()))?;
        known.keys.get(kid).cloned()
    }

    fn known(&self) -> RwLockReadGuard<'_, Known<K>> {
        // It is replaced whole, so that a panic elsewhere leaves nothing half done.
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn known_mut(&self) -> RwLockWriteGuard<'_, Known<K>> {
        self.known.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_too_old(fetched_at: u64, now: u64) -> bool {
    now > fetched_at.saturating_add(MAX_AGE)
}

fn is_loopback(url: &reqwest::Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn root_cause(error: &dyn Error) -> String {
    error.source().map_or_else(|| error.to_string(), root_cause)
}

fn unavailable(why: impl Into<String>) -> Failure {
    Failure::new(Code::Unavailable, why)
}

fn wrong(why: impl Into<String>) -> Failure {
    Failure::new(Code::InvalidRequest, why)
}

#[cfg(test)]
mod tests;
