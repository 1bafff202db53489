use super::*;
use std::sync::{
    Arc,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};

use axum::{Router, http::StatusCode, routing::get};
use tokio::net::TcpListener;

const NOW: u64 = 1_800_000_000;

/// An issuer whose answer the test chooses, and that counts who asks.
#[derive(Clone, Default)]
struct Issuer {
    answer: Arc<std::sync::Mutex<(u16, String)>>,
    asked: Arc<AtomicUsize>,
    clock: Arc<AtomicU64>,
}

impl Issuer {
    async fn publish(keys: &[&str]) -> (Self, Arc<Jwks<String>>) {
        let issuer = Issuer { clock: Arc::new(AtomicU64::new(NOW)), ..Issuer::default() };
        issuer.rotate(keys);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/jwks.json", listener.local_addr().unwrap());
        let served = issuer.clone();
        let answer = move || {
            served.asked.fetch_add(1, Ordering::SeqCst);
            let (status, body) = served.answer.lock().unwrap().clone();
            async move { (StatusCode::from_u16(status).unwrap(), body) }
        };
        let router = Router::new().route("/jwks.json", get(answer));
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        let shown = issuer.clock.clone();
        let jwks = Jwks::new(&url, key, Clock::from_fn(move || shown.load(Ordering::SeqCst))).unwrap();
        (issuer, Arc::new(jwks))
    }

    fn answer(&self, status: u16, body: &str) {
        *self.answer.lock().unwrap() = (status, body.to_owned());
    }

    fn rotate(&self, keys: &[&str]) {
        let keys: Vec<Value> = keys.iter().map(|kid| json!({"kid": kid, "kty": "test"})).collect();
        self.answer(200, &json!({ "keys": keys }).to_string());
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    fn pass(&self, seconds: u64) {
        self.clock.fetch_add(seconds, Ordering::SeqCst);
    }
}

fn key(member: &Value) -> Option<(String, String)> {
    (member["kty"] == "test").then_some(())?;
    let kid = member["kid"].as_str()?.to_owned();
    Some((kid.clone(), format!("key {kid}")))
}

#[tokio::test]
async fn a_rotated_key_is_found_by_asking_once_a_minute_at_most() {
    let (issuer, jwks) = Issuer::publish(&["a"]).await;
    jwks.fetch().await.unwrap();
    assert_eq!(jwks.find("a").await.unwrap().as_deref(), Some("key a"));
    issuer.rotate(&["a", "b"]);
    assert_eq!(jwks.find("b").await.unwrap().as_deref(), Some("key b"));
    for invented in 0..100 {
        assert_eq!(jwks.find(&format!("x{invented}")).await.unwrap(), None);
    }
    assert_eq!(issuer.asked(), 2);
    issuer.rotate(&["c"]);
    issuer.pass(PAUSE - 1);
    assert_eq!(jwks.find("c").await.unwrap(), None);
    issuer.pass(1);
    assert_eq!(jwks.find("c").await.unwrap().as_deref(), Some("key c"));
    assert_eq!(jwks.find("a").await.unwrap(), None, "a withdrawn key is no key");
    assert_eq!(issuer.asked(), 3);
}

#[tokio::test]
async fn all_who_lack_a_key_wait_for_the_same_fetch() {
    let (issuer, jwks) = Issuer::publish(&["a"]).await;
    let asking: Vec<_> = (0..50)
        .map(|_| {
            let jwks = jwks.clone();
            tokio::spawn(async move { jwks.find("a").await })
        })
        .collect();
    for found in asking {
        assert_eq!(found.await.unwrap().unwrap().as_deref(), Some("key a"));
    }
    assert_eq!(issuer.asked(), 1);
}

#[tokio::test]
async fn the_last_keys_serve_for_a_day_and_then_nothing_can_be_told() {
    let (issuer, jwks) = Issuer::publish(&["a"]).await;
    jwks.fetch().await.unwrap();
    issuer.answer(503, "");
    issuer.pass(3600);
    assert_eq!(jwks.fetch().await.unwrap_err().code, Code::Unavailable);
    assert!(matches!(jwks.freshness(), Freshness::Stale(why) if why.contains("HTTP 503")));
    assert!(jwks.find("a").await.unwrap().is_some());
    assert_eq!(jwks.find("b").await.unwrap_err().code, Code::Unavailable);
    issuer.pass(MAX_AGE - 3600);
    assert!(jwks.find("a").await.unwrap().is_some());
    issuer.pass(1);
    assert!(matches!(jwks.freshness(), Freshness::TooOld(_)));
    assert_eq!(jwks.find("a").await.unwrap_err().code, Code::Unavailable);
    issuer.rotate(&["a"]);
    issuer.pass(PAUSE);
    assert!(jwks.find("a").await.unwrap().is_some(), "whoever needs a key has it fetched");
    assert_eq!(jwks.freshness(), Freshness::Fresh);
}

#[tokio::test]
async fn what_is_no_set_of_keys_changes_nothing_and_says_so() {
    let (issuer, jwks) = Issuer::publish(&["a"]).await;
    jwks.fetch().await.unwrap();
    let huge = format!("{{\"keys\": [{}]}}", "\"a\",".repeat(MAX_DOCUMENT));
    for (status, body, says) in [
        (404, "", "HTTP 404"),
        (302, "", "HTTP 302"),
        (200, "<html>", "not JSON"),
        (200, "{}", "no keys"),
        (200, r#"{"keys": []}"#, "no key in it"),
        (200, r#"{"keys": [{"kty": "other", "kid": "a"}, 7]}"#, "no key in it"),
        (200, &huge, "65536 bytes"),
    ] {
        issuer.answer(status, body);
        let failure = jwks.fetch().await.unwrap_err();
        assert!(failure.code == Code::InvalidRequest && failure.message.contains(says), "{status} {says}: {failure}");
        assert!(jwks.find("a").await.unwrap().is_some());
    }
    assert_eq!(jwks.document()["keys"][0]["kid"], "a");
}

#[tokio::test]
async fn an_issuer_that_is_away_is_told_from_a_wrong_url() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    drop(listener);
    let jwks = Jwks::new(&url, key, Clock::system()).unwrap();
    assert_eq!(jwks.fetch().await.unwrap_err().code, Code::Unavailable);
    assert!(matches!(jwks.freshness(), Freshness::TooOld(why) if why.contains("never read")));
    for url in ["", "ftp://x/y", "example.org/jwks.json"] {
        assert!(Jwks::new(url, key, Clock::system()).is_err(), "{url}");
    }
}

#[tokio::test]
async fn keys_are_fetched_again_by_and_by() {
    let (issuer, jwks) = Issuer::publish(&["a"]).await;
    jwks.fetch().await.unwrap();
    issuer.rotate(&["b"]);
    let stop = CancellationToken::new();
    let (keeping, stopped) = (jwks.clone(), stop.clone());
    let task = tokio::spawn(async move { keeping.keep_fresh(Duration::from_millis(5), stopped).await });
    let mut tick = tokio::time::interval(Duration::from_millis(5));
    while jwks.document()["keys"][0]["kid"] != "b" {
        tick.tick().await;
    }
    stop.cancel();
    task.await.unwrap();
}
