//! What handlers are given: JSON bodies whose rejections are envelopes, room ids from paths, callers from bearer tokens.

use std::{net::IpAddr, sync::Arc};

use axum::{
    body::Bytes,
    extract::{FromRequest, FromRequestParts, Path, Request},
    http::{StatusCode, header, request::Parts},
};
use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use shared::domain::{
    error::{Code, Failure},
    id::RoomId,
};

use super::error::ApiError;
use crate::{
    domain::grant::{Identity, Refusal},
    runtime::{listen::Remote, rate::Address, server::Server},
};

/// The most bytes of a request's body.
pub const MAX_BODY: usize = 16 * 1024;

/// A JSON object, whatever the content type says (there are no cookies that a foreign page could borrow); nothing at all reads as `{}`.
pub struct Body<T>(pub T);

impl<T: DeserializeOwned> FromRequest<Arc<Server>> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &Arc<Server>) -> Result<Self, ApiError> {
        let bytes = Bytes::from_request(request, state).await.map_err(|rejection| match rejection.status() {
            StatusCode::PAYLOAD_TOO_LARGE => Failure::new(Code::TooLarge, format!("the body is over {MAX_BODY} bytes")),
            _ => Failure::new(Code::InvalidRequest, "the body could not be read"),
        })?;
        let bytes = if bytes.is_empty() { b"{}".as_slice() } else { &bytes };
        // serde would take the fields' values as an array, too.
        if bytes.trim_ascii_start().first() == Some(&b'[') {
            return Err(Failure::new(Code::InvalidRequest, "the body is not what this route takes: an array and not an object").into());
        }
        let value = serde_json::from_slice(bytes)
            .map_err(|error| Failure::new(Code::InvalidRequest, format!("the body is not what this route takes: {error}")))?;
        Ok(Body(value))
    }
}

/// The `{id}` of a room's path. What cannot be an id is no room.
pub struct RoomPath(pub RoomId);

impl FromRequestParts<Arc<Server>> for RoomPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &Arc<Server>) -> Result<Self, ApiError> {
        let path = Path::<String>::from_request_parts(parts, state).await.map_err(|_| Failure::from(Refusal::NoRoom))?;
        Ok(RoomPath(path.0.parse().map_err(|_| Failure::from(Refusal::NoRoom))?))
    }
}

/// Whom the bearer token stands for.
///
/// # Errors
/// [`Code::Unauthorized`].
pub fn caller(parts: &Parts, server: &Server) -> Result<Identity, Failure> {
    let header = parts.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let token = match header.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => token.trim(),
        _ => "",
    };
    server.caller(token)
}

/// Who is counted: the other end of the connection; behind a trusted proxy, the last address that it vouches for.
pub fn address(parts: &Parts, trusted: &[IpAddr]) -> Address {
    let remote = parts.extensions.get::<Remote>().map_or(IpAddr::from([0, 0, 0, 0]), |remote| remote.0.ip().to_canonical());
    if !trusted.contains(&remote) {
        return remote.into();
    }
    // The proxy appends; what stands before is the client's own claim.
    let forwarded = parts.headers.get_all("x-forwarded-for").iter().next_back().and_then(|value| value.to_str().ok());
    let last = forwarded.and_then(|list| list.rsplit(',').next()).and_then(|ip| ip.trim().parse::<IpAddr>().ok());
    last.unwrap_or(remote).into()
}

/// Reads a number of seconds, and takes `210.0` for 210: both are integers to JSON Schema.
///
/// # Errors
/// When it is negative, broken or no number.
pub fn whole_seconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    let Some(number) = Option::<serde_json::Number>::deserialize(deserializer)? else { return Ok(None) };
    let whole = number.as_u64().or_else(|| {
        let float = number.as_f64().filter(|float| float.fract() == 0.0 && (0.0..=1e15).contains(float))?;
        Some(float as u64)
    });
    whole.map(Some).ok_or_else(|| serde::de::Error::custom(format!("{number} is not a whole number of seconds")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http;
    use proptest::prelude::*;

    fn parts(remote: &str, forwarded: &[&str]) -> Parts {
        let mut request = http::Request::new(());
        for value in forwarded {
            request.headers_mut().append("x-forwarded-for", value.parse().unwrap());
        }
        request.extensions_mut().insert(Remote(format!("{remote}:1").parse().unwrap()));
        request.into_parts().0
    }

    #[test]
    fn only_a_trusted_proxy_is_believed_and_only_its_own_word() {
        let proxy: IpAddr = "10.0.0.9".parse().unwrap();
        let is = |parts: &Parts, expected: &str| assert_eq!(address(parts, &[proxy]), expected.parse::<IpAddr>().unwrap().into());
        is(&parts("192.0.2.1", &["198.51.100.7"]), "192.0.2.1");
        is(&parts("10.0.0.9", &["198.51.100.7"]), "198.51.100.7");
        is(&parts("10.0.0.9", &["1.1.1.1, 198.51.100.7"]), "198.51.100.7");
        is(&parts("10.0.0.9", &["1.1.1.1", "2.2.2.2, 198.51.100.7"]), "198.51.100.7");
        is(&parts("10.0.0.9", &["nonsense"]), "10.0.0.9");
        is(&parts("10.0.0.9", &[]), "10.0.0.9");
    }

    #[derive(Deserialize)]
    struct Seconds {
        #[serde(default, deserialize_with = "whole_seconds")]
        s: Option<u64>,
    }

    fn read(text: &str) -> Result<Option<u64>, serde_json::Error> {
        serde_json::from_str::<Seconds>(text).map(|seconds| seconds.s)
    }

    #[test]
    fn whole_numbers_are_taken_in_both_spellings() {
        for (text, expected) in [(r#"{"s":210}"#, Some(210)), (r#"{"s":210.0}"#, Some(210)), (r#"{"s":null}"#, None), ("{}", None)] {
            assert_eq!(read(text).unwrap(), expected, "{text}");
        }
        for text in [r#"{"s":1.5}"#, r#"{"s":-1}"#, r#"{"s":"1"}"#, r#"{"s":1e300}"#] {
            assert!(read(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_number_is_read_or_refused(number in any::<f64>().prop_filter("JSON has no others", |n| n.is_finite())) {
            let _ = read(&format!(r#"{{"s":{number}}}"#));
        }
    }
}
