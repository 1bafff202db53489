//! `/openapi.json`: OpenAPI 3.1, made from the table of routes.

use axum::Json;
use serde_json::{Map, Value, json};

use super::http::{Access, Route, routes};
use crate::domain::grant::MAX_TTL;

/// `GET /openapi.json`
pub async fn document() -> Json<Value> {
    let (mut paths, schemas) = (Map::new(), schemas());
    for route in routes() {
        let path = paths.entry(route.path).or_insert_with(|| json!({}));
        path[route.method] = operation(&route, &schemas);
    }
    paths["/create-room"]["post"]["responses"]["200"]["links"] = links();
    Json(json!({
        "openapi": "3.1.0",
        "info": {
            "title": "webRTC-connect signaling server",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Rooms and admission. Peers exchange offers over the WebSocket at `/`; the server never sees their data.",
            "license": {"name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "securitySchemes": {"id_token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
            "schemas": schemas,
        },
    }))
}

fn operation(route: &Route, schemas: &Value) -> Value {
    let error = |description: &str| json!({"description": description, "content": content("Error")});
    let mut operation = json!({
        "summary": route.summary,
        "operationId": operation_id(route),
        "responses": {
            "200": {"description": "Done", "content": content(route.gives)},
            "429": error("Too many requests"),
            "503": error("Not now; try again"),
        },
    });
    let responses = &mut operation["responses"];
    if route.path == "/" {
        responses["101"] = json!({"description": "Switching to WebSocket"});
    }
    if route.path == "/health" {
        responses["503"] = json!({"description": "Unhealthy, or too slow", "content": content("Health")});
    }
    if route.access == Access::User {
        responses["401"] = error("No valid id token");
        responses["403"] = error("Not yours");
        responses["404"] = error("No such room or peer that you may know of");
    }
    if let Some(schema) = route.takes {
        responses["400"] = error("Not understood");
        responses["413"] = error("Too large");
        // Nothing at all is an empty object, which is enough unless the schema wants more.
        let required = !schemas[schema]["required"].as_array().is_some_and(Vec::is_empty) || !schemas[schema]["anyOf"].is_null();
        operation["requestBody"] = json!({"required": required, "content": content(schema)});
    }
    if route.access == Access::User {
        operation["security"] = json!([{"id_token": []}]);
    }
    if route.path.contains("{id}") {
        operation["parameters"] = json!([{"name": "id", "in": "path", "required": true, "schema": id()}]);
    }
    operation
}

/// What can be done with a new room.
fn links() -> Value {
    let room_id = "$response.body#/room_id";
    let by_path = |operation: &str| json!({"operationId": operation, "parameters": {"id": room_id}});
    json!({
        "look": by_path("get_rooms__id"),
        "renew": by_path("post_rooms__id__renew"),
        "delete": by_path("delete_rooms__id"),
        "delete_with_peers": {"operationId": "post_delete_peers_and_room", "requestBody": {"room_id": room_id}},
    })
}

fn operation_id(route: &Route) -> String {
    let path = route.path.replace(|c: char| !c.is_ascii_alphanumeric(), "_");
    format!("{}_{}", route.method, path.trim_matches('_'))
}

fn content(schema: &str) -> Value {
    match schema {
        "Text" => json!({"text/plain": {"schema": {"type": "string"}}}),
        "Object" => json!({"application/json": {"schema": {"type": "object"}}}),
        name => json!({"application/json": {"schema": {"$ref": format!("#/components/schemas/{name}")}}}),
    }
}

fn id() -> Value {
    json!({"type": "string", "pattern": "^[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}$"})
}

fn object(required: &[&str], properties: Value) -> Value {
    json!({"type": "object", "required": required, "properties": properties})
}

fn schemas() -> Value {
    let seconds = json!({"type": "integer", "minimum": 0, "description": "Unix seconds"});
    let ttl = json!({"type": ["integer", "null"], "minimum": 1, "maximum": MAX_TTL, "description": "Seconds"});
    let key = json!({"type": ["string", "null"], "description": "Ed25519, base64url without padding", "pattern": "^[A-Za-z0-9_-]{42}[AEIMQUYcgkosw048]$"});
    let text = json!({"type": "string"});
    let optional_id = json!({"type": ["string", "null"], "pattern": id()["pattern"]});
    let named = |field: &str| json!({"required": [field], "properties": {field: id()}});
    let mut peers_and_room = object(&[], json!({"peer_id": optional_id, "room_id": optional_id}));
    peers_and_room["anyOf"] = json!([named("room_id"), named("peer_id")]);
    let error = object(&["code", "message"], json!({"code": text, "message": text, "details": {}}));
    let peer = object(&["peer_id", "role"], json!({"peer_id": id(), "role": text, "metadata": {"type": "object"}}));
    json!({
        "Error": object(&["error"], json!({"error": error})),
        "SignIn": object(&["id_token", "username", "expires_in"], json!({"id_token": text, "username": text, "expires_in": {"type": "integer"}})),
        "CreateRoom": object(&[], json!({"ttl_seconds": ttl, "public_key": key})),
        "CreatedRoom": object(&["room_id", "token", "expires_at"], json!({"room_id": id(), "token": text, "expires_at": seconds})),
        "RenewRoom": object(&[], json!({"ttl_seconds": ttl})),
        "RenewedRoom": object(&["room_id", "expires_at"], json!({"room_id": id(), "expires_at": seconds})),
        "Room": object(
            &["room_id", "expires_at", "ttl_seconds", "peers"],
            json!({"room_id": id(), "expires_at": seconds, "ttl_seconds": {"type": "integer"}, "peers": {"type": "array", "items": peer}}),
        ),
        "DeletePeer": object(&["peer_id"], json!({"peer_id": id(), "room_id": optional_id})),
        "DeletePeersAndRoom": peers_and_room,
        "Deleted": object(&["status", "room_id"], json!({"status": text, "room_id": id(), "peer_id": id()})),
        "Health": object(
            &["status", "service", "version", "timestamp", "details"],
            json!({
                "status": {"enum": ["healthy", "degraded", "unhealthy"]},
                "service": text,
                "version": text,
                "timestamp": {"type": "string", "format": "date-time"},
                "details": {"type": "object"},
            }),
        ),
        "Jwks": object(&["keys"], json!({"keys": {"type": "array", "items": {"type": "object"}}})),
    })
}
