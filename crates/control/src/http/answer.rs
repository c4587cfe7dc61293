//! Answers as they travel.

use api::error::{ServiceError, WireError};
use axum::{body::Body, response::Response};
use http::{HeaderName, HeaderValue, StatusCode, header};
use serde_json::json;
use uuid::Uuid;

use crate::auth::AuthError;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-amzn-requestid");
const ERROR_TYPE: HeaderName = HeaderName::from_static("x-amzn-errortype");

/// The answer of a success. The statuses of two operations, 204, are statuses without a body.
pub fn success(status: u16, body: Vec<u8>, request_id: Uuid) -> Response {
    let response = Response::builder().status(status);
    let response = if status == StatusCode::NO_CONTENT.as_u16() {
        response.body(Body::empty())
    } else {
        response.header(header::CONTENT_TYPE, "application/json").body(Body::from(body))
    };
    sent(response.expect("a status of ours and a constant header"), request_id)
}

/// The answer of an error.
pub fn failure(error: WireError, request_id: Uuid) -> Response {
    let mut response = Response::builder()
        .status(error.status)
        .header(header::CONTENT_TYPE, "application/json")
        .header(ERROR_TYPE, error.kind);
    if let Some(seconds) = error.retry_after_seconds {
        response = response.header(header::RETRY_AFTER, seconds);
    }
    let body = Body::from(error.body.to_string());
    sent(response.body(body).expect("a status of ours and constant headers"), request_id)
}

fn sent(mut response: Response, request_id: Uuid) -> Response {
    let id = HeaderValue::from_str(&request_id.to_string()).expect("an id is plain text");
    response.headers_mut().insert(REQUEST_ID, id);
    response
}

/// A refusal to listen, on the wire.
pub enum Refusal {
    /// By the service.
    Service(ServiceError),
    /// For who the caller is not.
    Auth(AuthError),
    /// The body did not come in time, or broke off.
    Body,
}

impl From<ServiceError> for Refusal {
    fn from(error: ServiceError) -> Self {
        Self::Service(error)
    }
}

impl From<AuthError> for Refusal {
    fn from(error: AuthError) -> Self {
        Self::Auth(error)
    }
}

impl Refusal {
    /// As it travels.
    pub fn to_wire(&self) -> WireError {
        let plain = |status, kind, message: String| WireError {
            status,
            kind,
            body: json!({ "message": message }),
            retry_after_seconds: None,
        };
        match self {
            Self::Service(error) => error.to_wire(),
            Self::Auth(error) => plain(error.status(), error.kind(), error.to_string()),
            Self::Body => {
                plain(408, "RequestTimeoutException", "The body of the request did not arrive in time.".to_owned())
            }
        }
    }
}
