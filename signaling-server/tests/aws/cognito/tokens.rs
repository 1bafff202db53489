//! Tokens that the pool did not give out for us, keys that change, and keys that cannot be had.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{Router, http::StatusCode, routing::get};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey, Header, jwk::Jwk};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::{
    on_both,
    pool::{Shift, TestPool, read, rs256, signed, unix_now, until},
};
use crate::support::TestServer;

on_both!(forged_tokens_are_refused);

async fn forged_tokens_are_refused(pool: TestPool) {
    let server = pool.server(|_| {}).await;
    let user = server.sign_in().await;
    let (key, other_key) = (pool.key(), pool.other_key());
    let (good_header, good) = read(&user.token);
    let kid = good_header.kid.clone().unwrap();
    let header = rs256(&kid);
    let knows = async |token: &str| server.call("get", "/rooms/nowhere", Some(token), None).await.0;
    // What is forged below differs from this in one thing each: there is no such room, but the caller is known.
    assert_eq!(knows(&signed(&header, &good, &key)).await, 404);
    assert_eq!(knows(&user.token).await, 404);

    let with = |claim: &str, value: Value| {
        let mut claims = good.clone();
        claims[claim] = value;
        signed(&header, &claims, &key)
    };
    let (jwks, parts) = (server.get("/.well-known/jwks.json").await.1, user.token.split('.').collect::<Vec<_>>());
    let member = jwks["keys"].as_array().unwrap().iter().find(|member| member["kid"] == kid.as_str()).unwrap();
    let modulus = member["n"].as_str().unwrap();
    let hmac = |secret: &[u8]| {
        signed(&Header { kid: Some(kid.clone()), ..Header::new(Algorithm::HS256) }, &good, &EncodingKey::from_secret(secret))
    };
    let none = URL_SAFE_NO_PAD.encode(json!({"alg": "none", "kid": kid}).to_string());
    let mut other_claims = good.clone();
    other_claims["cognito:username"] = json!("webrtc-00000000000000000000000000000000");
    let other_claims = URL_SAFE_NO_PAD.encode(other_claims.to_string());
    let own_key = Header {
        jku: Some(format!("{}/jwks.json", pool.endpoint)),
        x5u: Some(format!("{}/key.pem", pool.endpoint)),
        jwk: Some(Jwk::from_encoding_key(&other_key, Algorithm::RS256).unwrap()),
        ..header.clone()
    };
    for (what, token) in [
        ("expired", with("exp", json!(unix_now() - 60))),
        ("for another client", with("aud", json!("other"))),
        ("of another pool", with("iss", json!("https://cognito-idp.us-west-1.amazonaws.com/us-west-1_other"))),
        ("of our own issuer", with("iss", json!("webrtc-connect"))),
        ("an access token by its claim", with("token_use", json!("access"))),
        ("for nobody", with("cognito:username", json!(""))),
        ("an access token", access_token(&pool).await),
        ("without signature", format!("{none}.{}.", parts[1])),
        ("with a cut signature", format!("{}.{}.", parts[0], parts[1])),
        ("with other claims", format!("{}.{other_claims}.{}", parts[0], parts[2])),
        ("HMAC with the modulus", hmac(&URL_SAFE_NO_PAD.decode(modulus).unwrap())),
        ("HMAC with the modulus as text", hmac(modulus.as_bytes())),
        ("HMAC with the key as JSON", hmac(member.to_string().as_bytes())),
        ("with another hash", signed(&Header { kid: Some(kid.clone()), ..Header::new(Algorithm::RS512) }, &good, &key)),
        ("under an unknown key", signed(&rs256("unknown"), &good, &key)),
        ("under no key", signed(&Header::new(Algorithm::RS256), &good, &key)),
        ("by another key under this one's id", signed(&header, &good, &other_key)),
        ("by a key that it brings along", signed(&own_key, &good, &other_key)),
        ("too long", with("filler", json!("x".repeat(4096)))),
    ] {
        assert_eq!(knows(&token).await, 401, "{what}");
    }
    assert_eq!(knows(&user.token).await, 404);
}

/// The pool's own access token for one of its users.
async fn access_token(pool: &TestPool) -> String {
    let user = json!({"UserPoolId": pool.id, "Username": "anna", "MessageAction": "SUPPRESS"});
    pool.call("AdminCreateUser", user).await;
    let password = json!({"UserPoolId": pool.id, "Username": "anna", "Password": "Aa1!aaaaaaaa", "Permanent": true});
    pool.call("AdminSetUserPassword", password).await;
    let sign_in = json!({
        "UserPoolId": pool.id, "ClientId": pool.client, "AuthFlow": "ADMIN_USER_PASSWORD_AUTH",
        "AuthParameters": {"USERNAME": "anna", "PASSWORD": "Aa1!aaaaaaaa"},
    });
    let signed_in = pool.call("AdminInitiateAuth", sign_in).await;
    signed_in["AuthenticationResult"]["AccessToken"].as_str().unwrap().to_owned()
}

/// A place where keys are published, whose answer the test chooses: emulators neither rotate their keys nor lose them.
struct Keys {
    url: String,
    answer: Arc<Mutex<(u16, Value)>>,
}

impl Keys {
    async fn publish(document: Value) -> Self {
        let answer = Arc::new(Mutex::new((200, document)));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/jwks.json", listener.local_addr().unwrap());
        let served = answer.clone();
        let respond = move || {
            let (status, document) = served.lock().unwrap().clone();
            async move { (StatusCode::from_u16(status).unwrap(), document.to_string()) }
        };
        tokio::spawn(async move { axum::serve(listener, Router::new().route("/jwks.json", get(respond))).await.unwrap() });
        Keys { url, answer }
    }

    fn answer(&self, status: u16, document: Value) {
        *self.answer.lock().unwrap() = (status, document);
    }
}

async fn start(pool: &TestPool, keys: &Keys, refresh: Duration, shift: &Shift) -> TestServer {
    TestServer::start_with(|config| {
        pool.configure(config, &pool.endpoint, shift);
        let settings = config.cognito.as_mut().unwrap();
        settings.jwks_url = Some(keys.url.clone());
        settings.refresh_keys = refresh;
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_the_pool_has_changed_to_is_found() {
    let pool = TestPool::in_moto().await;
    let published: Value = reqwest::get(pool.jwks_url()).await.unwrap().json().await.unwrap();
    let mut before = published.clone();
    before["keys"][0]["kid"] = json!("before");
    let (keys, shift) = (Keys::publish(before).await, Shift::default());
    let server = start(&pool, &keys, Duration::from_secs(3600), &shift).await;
    // The pool signs with a key that is not published yet: a fault of its own, that leaves no user behind.
    assert_eq!(server.call("post", "/anonymous-signin", None, None).await.0, 500);
    pool.has_users(0).await;
    keys.answer(200, published);
    shift.pass(60);
    let user = server.sign_in().await;
    server.create_room(&user).await;
    assert_eq!(server.get("/.well-known/jwks.json").await.1["keys"][0]["kid"], "dummy");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_its_keys_the_server_works_on_for_a_day_and_then_says_that_it_cannot() {
    let pool = TestPool::in_moto().await;
    let published: Value = reqwest::get(pool.jwks_url()).await.unwrap().json().await.unwrap();
    let (keys, shift) = (Keys::publish(published.clone()).await, Shift::default());
    let server = start(&pool, &keys, Duration::from_millis(50), &shift).await;
    let user = server.sign_in().await;
    let room = server.create_room(&user).await;
    let (mut worker, mut client) = (server.join(&room, &user, "w").await, server.join(&room, &user, "c").await);
    keys.answer(503, Value::Null);
    let health = async || server.get("/health").await;
    until(async || health().await.1["status"] == "degraded").await;
    let (status, told) = health().await;
    assert!(status == 200 && told["details"]["keys"].as_str().unwrap().starts_with("stale: "), "{told}");
    server.sign_in().await;
    server.create_room(&user).await;

    shift.pass(24 * 3600 + 60);
    until(async || health().await.0 == 503).await;
    assert_eq!(health().await.1["status"], "unhealthy");
    let (status, told) = server.call("post", "/anonymous-signin", None, None).await;
    assert_eq!((status, &told["error"]["code"]), (503, &json!("UNAVAILABLE")));
    assert_eq!(server.post("/create-room", &user, json!({})).await.0, 503, "not 401: the token may well be good");
    // Who is in a room stays there.
    client.send(json!({"type": "peer_message", "to_peer_id": "w", "payload": 1})).await;
    worker.expect("peer_message").await;

    keys.answer(200, published);
    until(async || health().await.1["status"] == "healthy").await;
}
