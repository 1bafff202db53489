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
    domain::{
        grant::{Identity, Refusal},
        proxies::TrustedProxies,
    },
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
/// [`Code::Unauthorized`], [`Code::Unavailable`].
pub async fn caller(parts: &Parts, server: &Server) -> Result<Identity, Failure> {
    let header = parts.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let token = match header.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => token.trim(),
        _ => "",
    };
    server.caller(token).await
}

/// Who is counted: the other end of the connection; behind trusted proxies, whom they vouch for.
pub fn address(parts: &Parts, trusted: &TrustedProxies) -> Address {
    let remote = parts.extensions.get::<Remote>().map_or(IpAddr::from([0, 0, 0, 0]), |remote| remote.0.ip());
    // A value that is no text is none of a proxy's.
    let forwarded = parts.headers.get_all("x-forwarded-for").iter().map(|value| value.to_str().unwrap_or_default());
    trusted.origin(remote, forwarded).into()
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

    #[test]
    fn the_header_comes_with_all_its_values_in_their_order() {
        let origin = |values: &[&[u8]]| {
            let mut request = http::Request::new(());
            for value in values {
                request.headers_mut().append("x-forwarded-for", http::HeaderValue::from_bytes(value).unwrap());
            }
            request.extensions_mut().insert(Remote("10.0.0.9:1".parse().unwrap()));
            address(&request.into_parts().0, &["10.0.0.9".parse().unwrap()].into_iter().collect())
        };
        let is = |ip: &str| Address::from(ip.parse::<IpAddr>().unwrap());
        assert_eq!(origin(&[b"1.1.1.1", b"2.2.2.2, 198.51.100.7"]), is("198.51.100.7"));
        assert_eq!(origin(&[b"198.51.100.7", b"\xff"]), is("10.0.0.9"));
        assert_eq!(origin(&[]), is("10.0.0.9"));
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
