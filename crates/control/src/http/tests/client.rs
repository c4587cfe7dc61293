//! Whoever calls, with a signature of its own.

use axum::body::Body;
use http::{HeaderMap, Request};
use time::OffsetDateTime;

use super::REGION;
use crate::auth::sigv4::{self, Scope, Signed};

/// What a client holds.
pub struct Client {
    pub key: &'static str,
    pub secret: &'static str,
    pub clock: OffsetDateTime,
    pub region: &'static str,
    pub service: &'static str,
}

impl Client {
    pub fn new() -> Self {
        Self {
            key: "AKIDEXAMPLE",
            secret: "secret",
            clock: OffsetDateTime::now_utc(),
            region: REGION,
            service: "lambda",
        }
    }

    /// Somebody who is not the account's root.
    pub fn user() -> Self {
        Self { key: "AKIAUSER", secret: "user's", ..Self::new() }
    }

    pub fn signed(&self, method: &str, target: &str, body: &str) -> Request<Body> {
        let Self { region, service, .. } = self;
        let day = self.clock.format(time::macros::format_description!("[year][month][day]")).unwrap();
        let stamp =
            self.clock.format(time::macros::format_description!("[year][month][day]T[hour][minute][second]Z")).unwrap();
        let mut headers = HeaderMap::new();
        headers.insert("host", "localhost".parse().unwrap());
        headers.insert("x-amz-date", stamp.parse().unwrap());
        let names = ["host".to_owned(), "x-amz-date".to_owned()];
        let uri = target.parse().unwrap();
        let signed = Signed { method, uri: &uri, headers: &headers, names: &names, body: body.as_bytes() };
        let scope = Scope { date: day.clone(), region: (*region).into(), service: (*service).into() };
        let string = sigv4::string_to_sign(&stamp, &scope, &sigv4::canonical_request(&signed).unwrap());
        let signature = hex::encode(sigv4::signature(self.secret, &scope, &string));
        let authorization = format!(
            "AWS4-HMAC-SHA256 Credential={}/{day}/{region}/{service}/aws4_request, SignedHeaders=host;x-amz-date, \
             Signature={signature}",
            self.key
        );
        headers.insert("authorization", authorization.parse().unwrap());
        let mut request = Request::builder().method(method).uri(uri).body(Body::from(body.to_owned())).unwrap();
        *request.headers_mut() = headers;
        request
    }
}
