//! How a failure looks over HTTP: the envelope, and the one place that chooses a status.

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use shared::domain::error::{Code, Envelope, Failure};

/// A failure and its status.
#[derive(Debug, Clone)]
pub struct ApiError {
    failure: Failure,
    status: StatusCode,
}

impl From<Failure> for ApiError {
    fn from(failure: Failure) -> Self {
        let status = match failure.code {
            Code::InvalidRequest => StatusCode::BAD_REQUEST,
            Code::Unauthorized => StatusCode::UNAUTHORIZED,
            Code::Forbidden | Code::NotAuthentic => StatusCode::FORBIDDEN,
            Code::RoomNotFound | Code::PeerNotFound | Code::JobNotFound => StatusCode::NOT_FOUND,
            Code::PeerIdTaken | Code::WrongState => StatusCode::CONFLICT,
            Code::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Code::RateLimited => StatusCode::TOO_MANY_REQUESTS,
            Code::PeerBusy | Code::Unavailable | Code::NoConnection | Code::NoSpace => StatusCode::SERVICE_UNAVAILABLE,
            Code::VersionMismatch | Code::BadPackage | Code::BadFile | Code::JobFailed | Code::JobCancelled | Code::Internal => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
        };
        ApiError { failure, status }
    }
}

impl ApiError {
    /// For what HTTP has a status of its own and our codes do not.
    pub fn with_status(failure: Failure, status: StatusCode) -> Self {
        ApiError { failure, status }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let code = self.failure.code;
        let mut response = (self.status, Json(Envelope::from(self.failure))).into_response();
        // For the layer that counts refusals.
        response.extensions_mut().insert(code);
        let headers = response.headers_mut();
        if code == Code::Unauthorized {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(seconds) = retry_after(self.status) {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static(seconds));
        }
        response
    }
}

/// When to try again, in seconds, for each status that means it.
pub fn retry_after(status: StatusCode) -> Option<&'static str> {
    match status {
        StatusCode::TOO_MANY_REQUESTS => Some("60"),
        StatusCode::SERVICE_UNAVAILABLE => Some("5"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_means_not_now_says_when() {
        for code in [Code::RateLimited, Code::Unavailable, Code::PeerBusy, Code::NoConnection, Code::NoSpace] {
            let response = ApiError::from(Failure::new(code, "later")).into_response();
            assert!(response.headers().contains_key(header::RETRY_AFTER), "{code:?}");
        }
        let response = ApiError::from(Failure::new(Code::RoomNotFound, "never")).into_response();
        assert!(!response.headers().contains_key(header::RETRY_AFTER));
    }
}
