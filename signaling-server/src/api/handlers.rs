//! The REST routes: each translates a request into one operation of [`Server`] and its answer into JSON.

use std::sync::Arc;

use axum::{
    Extension, Json,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use serde_json::{Value, json};
use shared::domain::{
    error::{Code, Failure},
    id::{PeerId, RoomId},
    signal::{CreatedRoom, SignIn},
};

use super::{
    error::ApiError,
    extract::{Body, RoomPath, whole_seconds},
};
use crate::{
    domain::grant::{Identity, PublicKey},
    runtime::{auth::KeyHealth, clock, rate::Address, relay::Link, server::Server},
};

type Answer<T> = Result<Json<T>, ApiError>;

/// `POST /anonymous-signin`
pub async fn sign_in(State(server): State<Arc<Server>>, Extension(from): Extension<Address>) -> Answer<SignIn> {
    Ok(Json(server.sign_in(from).await?))
}

/// The body of `POST /create-room`; the same as `shared`'s, and read more leniently.
#[derive(Deserialize)]
pub struct CreateRoomBody {
    #[serde(default, deserialize_with = "whole_seconds")]
    ttl_seconds: Option<u64>,
    #[serde(default)]
    public_key: Option<PublicKey>,
}

/// `POST /create-room`
pub async fn create_room(
    State(server): State<Arc<Server>>,
    Extension(from): Extension<Address>,
    Extension(caller): Extension<Identity>,
    Body(body): Body<CreateRoomBody>,
) -> Answer<CreatedRoom> {
    Ok(Json(server.create_room(from, caller, body.ttl_seconds, body.public_key).await?))
}

/// `GET /rooms/{id}`
pub async fn room(State(server): State<Arc<Server>>, Extension(caller): Extension<Identity>, RoomPath(id): RoomPath) -> Answer<Value> {
    let (room, peers) = server.room(&caller, &id).await?;
    Ok(Json(json!({"room_id": room.id, "expires_at": room.expires_at, "ttl_seconds": room.ttl, "peers": peers})))
}

/// The body of `POST /rooms/{id}/renew`.
#[derive(Deserialize)]
pub struct RenewBody {
    #[serde(default, deserialize_with = "whole_seconds")]
    ttl_seconds: Option<u64>,
}

/// `POST /rooms/{id}/renew`
pub async fn renew(
    State(server): State<Arc<Server>>,
    Extension(caller): Extension<Identity>,
    RoomPath(id): RoomPath,
    Body(body): Body<RenewBody>,
) -> Answer<Value> {
    let expires_at = server.renew(&caller, &id, body.ttl_seconds).await?;
    Ok(Json(json!({"room_id": id, "expires_at": expires_at})))
}

/// `DELETE /rooms/{id}`
pub async fn delete_room(
    State(server): State<Arc<Server>>,
    Extension(caller): Extension<Identity>,
    RoomPath(id): RoomPath,
) -> Answer<Value> {
    server.delete_room(&caller, &id).await?;
    Ok(Json(json!({"status": "deleted", "room_id": id})))
}

/// The body of `POST /delete-peer`.
#[derive(Deserialize)]
pub struct DeletePeerBody {
    peer_id: PeerId,
    room_id: Option<RoomId>,
}

/// `POST /delete-peer`
pub async fn delete_peer(
    State(server): State<Arc<Server>>,
    Extension(caller): Extension<Identity>,
    Body(DeletePeerBody { peer_id, room_id }): Body<DeletePeerBody>,
) -> Answer<Value> {
    let room_id = match room_id {
        Some(room) => room,
        None => server.room_of(&caller, &peer_id).await?,
    };
    server.delete_peer(&caller, &room_id, &peer_id).await?;
    Ok(Json(json!({"status": "deleted", "room_id": room_id, "peer_id": peer_id})))
}

/// The body of `POST /delete-peers-and-room`: one of the two.
#[derive(Deserialize)]
pub struct DeletePeersAndRoomBody {
    peer_id: Option<PeerId>,
    room_id: Option<RoomId>,
}

/// `POST /delete-peers-and-room`
pub async fn delete_peers_and_room(
    State(server): State<Arc<Server>>,
    Extension(caller): Extension<Identity>,
    Body(body): Body<DeletePeersAndRoomBody>,
) -> Answer<Value> {
    let room_id = match (body.room_id, body.peer_id) {
        (Some(room), _) => room,
        (None, Some(peer)) => server.room_of(&caller, &peer).await?,
        (None, None) => return Err(Failure::new(Code::InvalidRequest, "name the room_id, or a peer_id of yours in it").into()),
    };
    server.delete_room(&caller, &room_id).await?;
    Ok(Json(json!({"status": "deleted", "room_id": room_id})))
}

/// `GET /health`: 200 while it can serve, 503 when it cannot.
pub async fn health(State(server): State<Arc<Server>>) -> Response {
    let store = server.check_store().await;
    let sockets = server.sockets.len();
    let full = sockets >= server.config.limits.sockets;
    let (link, nats) = match server.link() {
        Link::Alone => (true, None),
        Link::Up(_) => (true, Some("connected".to_owned())),
        Link::Down(why) => (false, Some(format!("peers of other servers cannot be reached: {why}"))),
    };
    let users = server.users_health();
    let (keys, verifies) = match server.auth.health() {
        KeyHealth::Good => ("ok".to_owned(), true),
        KeyHealth::Stale(why) => (format!("stale: {why}"), true),
        KeyHealth::None(why) => (format!("none: {why}"), false),
    };
    let hampered = full || !link || server.stop.is_cancelled() || keys != "ok" || users != "ok";
    let (status, code) = match (store.is_ok() && verifies, hampered) {
        (false, _) => ("unhealthy", StatusCode::SERVICE_UNAVAILABLE),
        (true, true) => ("degraded", StatusCode::OK),
        (true, false) => ("healthy", StatusCode::OK),
    };
    let mut body = json!({
        "status": status,
        "service": "signaling-server",
        "version": env!("CARGO_PKG_VERSION"),
        "timestamp": clock::rfc3339(server.now()),
        "details": {
            "store": if store.is_ok() { "ok" } else { "not answering" },
            "keys": keys,
            "users": users,
            "sockets": sockets,
            "stopping": server.stop.is_cancelled(),
        },
    });
    if let Some(nats) = nats {
        body["details"]["nats"] = json!(nats);
    }
    (code, Json(body)).into_response()
}

/// `GET /metrics`
pub async fn metrics(State(server): State<Arc<Server>>) -> Response {
    server.metrics.sockets.set(server.sockets.len() as f64);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], server.metrics.render()).into_response()
}

/// `GET /.well-known/jwks.json`
pub async fn jwks(State(server): State<Arc<Server>>) -> Json<Value> {
    Json(server.auth.jwks())
}
