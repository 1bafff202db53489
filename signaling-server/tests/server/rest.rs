//! The REST routes: who may, what comes back, and that the documents tell the truth.

use std::collections::BTreeSet;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use signaling_server::api::http::{Access, routes};

use super::support::TestServer;

fn is_envelope(answer: &Value) -> bool {
    answer["error"]["code"].is_string() && answer["error"]["message"].as_str().is_some_and(|message| !message.is_empty())
}

#[tokio::test]
async fn no_mutating_route_is_open() {
    let server = TestServer::start().await;
    let (owner, stranger) = (server.sign_in().await, server.sign_in().await);
    let room = server.create_room(&owner).await;
    let _worker = server.join(&room, &owner, "w").await;
    let mut open_and_mutating = Vec::new();
    for route in routes() {
        if route.access == Access::Open {
            open_and_mutating.extend((route.method != "get").then_some(route.path));
            continue;
        }
        let path = route.path.replace("{id}", room.room_id.as_str());
        let body = route.takes.map(|_| json!({"room_id": room.room_id, "peer_id": "w"}));
        for token in [None, Some(""), Some("x.y.z"), Some(room.token.expose().as_str())] {
            let (status, answer) = server.call(route.method, &path, token, body.clone()).await;
            assert_eq!((status, &answer["error"]["code"]), (401, &json!("UNAUTHORIZED")), "{} {path}", route.method);
        }
        if route.path != "/create-room" {
            let (status, answer) = server.call(route.method, &path, Some(&stranger.token), body).await;
            assert_eq!((status, &answer["error"]["code"]), (404, &json!("ROOM_NOT_FOUND")), "{} {path}", route.method);
        }
    }
    assert_eq!(open_and_mutating, ["/anonymous-signin"]);
    let (status, seen) = server.call("get", &format!("/rooms/{}", room.room_id), Some(&owner.token), None).await;
    assert_eq!((status, &seen["peers"][0]["peer_id"], &seen["expires_at"]), (200, &json!("w"), &json!(room.expires_at)));
}

#[tokio::test]
async fn the_openapi_document_lists_every_route_and_its_lock() {
    let (status, document) = TestServer::start().await.get("/openapi.json").await;
    assert_eq!((status, &document["openapi"]), (200, &json!("3.1.0")));
    let mut listed = BTreeSet::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            listed.insert((method.clone(), path.clone(), operation["security"].is_array()));
        }
    }
    let table = routes().into_iter().map(|route| (route.method.to_owned(), route.path.to_owned(), route.access == Access::User));
    assert_eq!(listed, table.collect());
    let text = document.to_string();
    for link in text.split("\"operationId\":\"").skip(1).map(|rest| rest.split('"').next().unwrap()) {
        let named = |operation: &Value| operation["operationId"] == link;
        assert!(document["paths"].as_object().unwrap().values().flat_map(|path| path.as_object().unwrap().values()).any(named), "{link}");
    }
    for reference in text.split("\"#/components/schemas/").skip(1) {
        let name = reference.split('"').next().unwrap();
        assert!(document["components"]["schemas"][name].is_object(), "{name} is not defined");
    }
}

#[tokio::test]
async fn every_error_is_an_envelope() {
    let server = TestServer::start().await;
    let user = server.sign_in().await;
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let url = |path: &str| format!("http://{}{path}", server.address);
    let bearer = |request: reqwest::RequestBuilder| request.bearer_auth(&user.token);
    for (expected, code, request) in [
        (404, "INVALID_REQUEST", http.get(url("/nothing"))),
        (405, "INVALID_REQUEST", http.delete(url("/create-room"))),
        (405, "INVALID_REQUEST", http.put(url("/health"))),
        (401, "UNAUTHORIZED", http.post(url("/create-room"))),
        (401, "UNAUTHORIZED", http.post(url("/create-room")).header("authorization", "Basic eDp5")),
        (400, "INVALID_REQUEST", bearer(http.post(url("/create-room"))).body("{")),
        (400, "INVALID_REQUEST", bearer(http.post(url("/create-room"))).body("[[[[")),
        (400, "INVALID_REQUEST", bearer(http.post(url("/create-room"))).body(" [null, null]")),
        (400, "INVALID_REQUEST", bearer(http.post(url("/create-room"))).body(r#"{"ttl_seconds": -5}"#)),
        (400, "INVALID_REQUEST", bearer(http.post(url("/create-room"))).body(r#"{"ttl_seconds": 86401}"#)),
        (400, "INVALID_REQUEST", bearer(http.post(url("/create-room"))).body(r#"{"public_key": "AA"}"#)),
        (400, "INVALID_REQUEST", bearer(http.post(url("/delete-peer"))).body("{}")),
        (400, "INVALID_REQUEST", bearer(http.post(url("/delete-peers-and-room"))).body("{}")),
        (413, "TOO_LARGE", bearer(http.post(url("/create-room"))).body("x".repeat(20_000))),
        (404, "ROOM_NOT_FOUND", bearer(http.get(url("/rooms/%2e%2e%2fx")))),
        (404, "ROOM_NOT_FOUND", bearer(http.get(url("/rooms/%ff")))),
    ] {
        let request = request.build().unwrap();
        let what = format!("{} {}", request.method(), request.url());
        let response = http.execute(request).await.unwrap();
        let status = response.status().as_u16();
        let answer: Value = response.json().await.unwrap();
        assert!(is_envelope(&answer), "{what}: {answer}");
        assert_eq!((status, answer["error"]["code"].as_str()), (expected, Some(code)), "{what}: {answer}");
    }
}

#[tokio::test]
async fn a_room_is_its_owners_to_renew_and_to_delete() {
    let server = TestServer::start().await;
    let (owner, guest) = (server.sign_in().await, server.sign_in().await);
    let room = server.create_room_with(&owner, json!({"ttl_seconds": 100.0})).await;
    let path = format!("/rooms/{}", room.room_id);
    let mut client = server.join(&room, &guest, "c").await;
    assert_eq!(server.post(&format!("{path}/renew"), &guest, json!({})).await.0, 403);
    assert_eq!(server.call("delete", &path, Some(&guest.token), None).await.0, 403);
    server.pass(50);
    let (status, renewed) = server.call("post", &format!("{path}/renew"), Some(&owner.token), None).await;
    assert_eq!((status, &renewed["expires_at"]), (200, &json!(room.expires_at + 50)));
    assert_eq!(server.post(&format!("{path}/renew"), &owner, json!({"ttl_seconds": 0})).await.0, 400);
    assert_eq!(server.call("delete", &path, Some(&owner.token), None).await.0, 200);
    assert_eq!(client.closed().await, 4410);
    assert_eq!(server.call("get", &path, Some(&owner.token), None).await.0, 404);
}

#[tokio::test]
async fn an_expired_room_looks_like_none_and_its_owner_can_still_renew_it() {
    let server = TestServer::start().await;
    let owner = server.sign_in().await;
    let room = server.create_room_with(&owner, json!({"ttl_seconds": 100})).await;
    let path = format!("/rooms/{}", room.room_id);
    server.pass(100);
    assert_eq!(server.call("get", &path, Some(&owner.token), None).await.0, 404);
    assert_eq!(server.post(&format!("{path}/renew"), &owner, json!({})).await.0, 200);
    assert_eq!(server.call("get", &path, Some(&owner.token), None).await.0, 200);
    server.pass(100 + 3600);
    assert_eq!(server.post(&format!("{path}/renew"), &owner, json!({})).await.0, 404);
}

#[tokio::test]
async fn health_and_metrics_tell_what_goes_on() {
    let server = TestServer::start().await;
    let (status, health) = server.get("/health").await;
    assert_eq!((status, &health["status"], &health["service"]), (200, &json!("healthy"), &json!("signaling-server")));
    assert_eq!((&health["version"], &health["timestamp"]), (&json!(env!("CARGO_PKG_VERSION")), &json!("2027-01-15T08:00:00Z")));
    let owner = server.sign_in().await;
    let room = server.create_room(&owner).await;
    let mut worker = server.join(&room, &owner, "w").await;
    worker.send(json!({"type": "peer_message", "to_peer_id": "w", "payload": 1})).await;
    worker.expect("peer_message").await;
    worker.send(json!({"type": "peer_message", "to_peer_id": "x", "payload": 1})).await;
    worker.expect_error("PEER_NOT_FOUND").await;
    server.get("/nothing").await;
    let (_, text) = server.get("/metrics").await;
    let text = text.as_str().unwrap();
    for line in [
        "webrtc_server_sign_ins_total 1",
        "webrtc_server_rooms_created_total 1",
        "webrtc_server_registrations_total 1",
        "webrtc_server_rooms 1",
        "webrtc_server_sockets 1",
        "webrtc_server_messages_relayed_total 1",
        "webrtc_server_refusals_total{code=\"PEER_NOT_FOUND\"} 1",
        "webrtc_server_refusals_total{code=\"INVALID_REQUEST\"} 1",
    ] {
        assert!(text.contains(line), "{line} is missing in:\n{text}");
    }
}

#[tokio::test]
async fn the_published_keys_are_those_that_sign() {
    let server = TestServer::start().await;
    let user = server.sign_in().await;
    let header = URL_SAFE_NO_PAD.decode(user.token.split('.').next().unwrap()).unwrap();
    let header: Value = serde_json::from_slice(&header).unwrap();
    let (_, jwks) = server.get("/.well-known/jwks.json").await;
    assert_eq!((&header["alg"], &header["kid"]), (&json!("EdDSA"), &jwks["keys"][0]["kid"]));
    let claims = URL_SAFE_NO_PAD.decode(user.token.split('.').nth(1).unwrap()).unwrap();
    let claims: Value = serde_json::from_slice(&claims).unwrap();
    assert_eq!((&claims["token_use"], &claims["cognito:username"]), (&json!("id"), &json!(user.name)));
}

#[tokio::test]
async fn a_browser_at_the_root_is_told_what_this_is() {
    let (status, text) = TestServer::start().await.get("/").await;
    assert_eq!(status, 200);
    assert!(text.as_str().unwrap().starts_with("webRTC-connect signaling server"));
}
