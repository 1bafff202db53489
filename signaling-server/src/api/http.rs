//! The table of routes, and what surrounds each of them: who calls, how often, how long, and the envelope around every error.

use std::sync::Arc;

use axum::{
    Router,
    extract::{DefaultBodyLimit, Request, State},
    http::StatusCode,
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{MethodRouter, delete, get, post},
};
use shared::domain::error::{Code, Failure};
use tokio_util::task::TaskTracker;

use super::{
    error::ApiError,
    extract::{self, MAX_BODY},
    handlers, openapi, ws,
};
use crate::runtime::server::Server;

/// Who may call a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Anybody.
    Open,
    /// Whoever has an id token; what of it is theirs the operation decides.
    User,
}

/// One route.
pub struct Route {
    /// In lower case, as OpenAPI has it.
    pub method: &'static str,
    /// With `{parameters}`.
    pub path: &'static str,
    /// Who may call it.
    pub access: Access,
    /// One line for people.
    pub summary: &'static str,
    /// The body's schema.
    pub takes: Option<&'static str>,
    /// The answer's schema.
    pub gives: &'static str,
    handler: MethodRouter<Arc<Server>>,
}

/// All routes. The router and the OpenAPI document are made from this table, so that neither can lack one.
pub fn routes() -> Vec<Route> {
    use Access::{Open, User};
    let route = |access, method, path, summary, takes, gives, handler| Route { method, path, access, summary, takes, gives, handler };
    vec![
        route(Open, "get", "/", "The WebSocket of the signaling protocol", None, "Text", get(ws::connect)),
        route(Open, "post", "/anonymous-signin", "A new anonymous user", None, "SignIn", post(handlers::sign_in)),
        route(User, "post", "/create-room", "A new room", Some("CreateRoom"), "CreatedRoom", post(handlers::create_room)),
        route(User, "get", "/rooms/{id}", "A room of yours and who is in it", None, "Room", get(handlers::room)),
        route(User, "delete", "/rooms/{id}", "Delete a room of yours", None, "Deleted", delete(handlers::delete_room)),
        route(User, "post", "/rooms/{id}/renew", "Extend a room of yours", Some("RenewRoom"), "RenewedRoom", post(handlers::renew)),
        route(User, "post", "/delete-peer", "Free a peer id", Some("DeletePeer"), "Deleted", post(handlers::delete_peer)),
        route(
            User,
            "post",
            "/delete-peers-and-room",
            "Delete a room of yours and its peers",
            Some("DeletePeersAndRoom"),
            "Deleted",
            post(handlers::delete_peers_and_room),
        ),
        route(Open, "get", "/health", "Whether the server works", None, "Health", get(handlers::health)),
        route(Open, "get", "/metrics", "Prometheus metrics", None, "Text", get(handlers::metrics)),
        route(Open, "get", "/openapi.json", "This document", None, "Object", get(openapi::document)),
        route(Open, "get", "/.well-known/jwks.json", "The public keys of our id tokens", None, "Jwks", get(handlers::jwks)),
    ]
}

/// The router; WebSocket tasks are tracked, so that the end can be waited for.
pub fn router(server: Arc<Server>, tracker: TaskTracker) -> Router {
    let mut router = Router::new();
    for route in routes() {
        let handler = match route.access {
            Access::Open => route.handler,
            Access::User => route.handler.route_layer(middleware::from_fn_with_state(server.clone(), require_user)),
        };
        router = router.route(route.path, handler);
    }
    router
        .fallback(|| async { no_route(StatusCode::NOT_FOUND, "there is no such route; see /openapi.json") })
        .method_not_allowed_fallback(|| async {
            no_route(StatusCode::METHOD_NOT_ALLOWED, "this route has other methods; see /openapi.json")
        })
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(middleware::from_fn_with_state(server.clone(), surround))
        .layer(axum::Extension(tracker))
        .with_state(server)
}

fn no_route(status: StatusCode, message: &str) -> ApiError {
    ApiError::with_status(Failure::new(Code::InvalidRequest, message), status)
}

async fn require_user(State(server): State<Arc<Server>>, request: Request, next: Next) -> Result<Response, ApiError> {
    let (mut parts, body) = request.into_parts();
    let caller = extract::caller(&parts, &server).await?;
    parts.extensions.insert(caller);
    Ok(next.run(Request::from_parts(parts, body)).await)
}

/// Around every request, matched or not.
async fn surround(State(server): State<Arc<Server>>, request: Request, next: Next) -> Response {
    let (mut parts, body) = request.into_parts();
    let address = extract::address(&parts, &server.config.trusted_proxies);
    parts.extensions.insert(address);
    let request = Request::from_parts(parts, body);
    let response = match server.rates.request(address) {
        Err(failure) => ApiError::from(failure).into_response(),
        Ok(()) => match tokio::time::timeout(server.config.timing.request, next.run(request)).await {
            Ok(response) => response,
            Err(_) => ApiError::from(Failure::new(Code::Unavailable, "the request took too long; try again")).into_response(),
        },
    };
    if let Some(code) = response.extensions().get::<Code>() {
        server.metrics.refused(*code);
    }
    response
}
