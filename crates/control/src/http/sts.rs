//! `sts get-caller-identity`: the query protocol, with answers and errors in XML. It needs no leave: who has a key may ask
//! whose it is.

use std::{collections::HashMap, sync::Arc};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    response::Response,
};
use http::{Method, header, request::Parts};
use percent_encoding::percent_decode_str;
use uuid::Uuid;

use super::{answer::Refusal, dispatch::authenticated};
use crate::{
    audit::{Audit, Call},
    auth::{AuthError, Authenticator, Caller, SigningName},
};

/// Largest body that is read: the one operation has two parameters.
const BODY_BYTES_MAX: usize = 64 * 1024;

const NAMESPACE: &str = "https://sts.amazonaws.com/doc/2011-06-15/";

const GET_CALLER_IDENTITY: &str = "GetCallerIdentity";

#[derive(Clone)]
struct Service {
    auth: Arc<Authenticator>,
    audit: Audit,
}

/// STS, as far as it is served.
pub fn router(auth: Arc<Authenticator>, audit: Audit) -> Router {
    Router::new().fallback(serve).with_state(Service { auth, audit })
}

/// An error, as the query protocol has it.
struct Failure {
    status: u16,
    code: &'static str,
    message: String,
}

impl Failure {
    fn new(status: u16, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into() }
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Auth(error) => {
                let (status, code) = match &error {
                    AuthError::Missing => (403, "MissingAuthenticationToken"),
                    AuthError::Incomplete { .. } => (400, "IncompleteSignature"),
                    AuthError::UnknownKey => (403, "InvalidClientTokenId"),
                    AuthError::Scope { .. } | AuthError::Mismatch => (403, "SignatureDoesNotMatch"),
                };
                Self::new(status, code, error.to_string())
            }
            Refusal::Body => Self::new(408, "RequestTimeout", "The body of the request did not arrive in time."),
            Refusal::Service(error) => Self::new(error.status(), "InvalidParameterValue", error.to_string()),
        }
    }
}

async fn serve(State(service): State<Service>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let call = service.audit.call(SigningName::Sts.as_str(), &parts);
    let request_id = call.request_id();
    let (status, error, text) = match answered(&service, &parts, body, &call).await {
        Ok(caller) => (200, None, identity(&caller, request_id)),
        Err(failure) => (failure.status, Some(failure.code), error(&failure, request_id)),
    };
    call.ended(status, error);
    tracing::info!(operation = GET_CALLER_IDENTITY, status, kind = error, %request_id, "answered");
    Response::builder()
        .status(status)
        .header(header::CONTENT_TYPE, "text/xml")
        .header("x-amzn-requestid", request_id.to_string())
        .body(Body::from(text))
        .expect("a status of ours and plain text")
}

async fn answered(service: &Service, parts: &Parts, body: Body, call: &Call) -> Result<Caller, Failure> {
    let (caller, body) = authenticated(&service.auth, SigningName::Sts, parts, body, BODY_BYTES_MAX).await?;
    call.signed_by(&caller);
    let parameters = match parts.method {
        Method::POST => parameters(&String::from_utf8_lossy(&body)),
        _ => parameters(parts.uri.query().unwrap_or_default()),
    };
    match (parameters.get("Action").map(String::as_str), parameters.get("Version").map(String::as_str)) {
        (Some(GET_CALLER_IDENTITY), Some("2011-06-15") | None) => {
            call.wants("sts:GetCallerIdentity");
            Ok(caller)
        }
        (Some(action), version) => {
            let shown = |text: &str| text.chars().take(64).collect::<String>();
            let (action, version) = (shown(action), shown(version.unwrap_or("2011-06-15")));
            let message = format!("Could not find operation {action} for version {version}");
            Err(Failure::new(400, "InvalidAction", message))
        }
        (None, _) => Err(Failure::new(400, "MissingAction", "Missing Action: write Action=GetCallerIdentity")),
    }
}

/// The pairs of a form; of a name given twice, the last.
fn parameters(form: &str) -> HashMap<String, String> {
    let decoded = |text: &str| percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned();
    form.split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, value)| (decoded(name), decoded(value)))
        .collect()
}

fn escaped(text: &str) -> String {
    // What XML has no way to write is not written.
    let writable = |character: &char| !character.is_control() || ['\t', '\n', '\r'].contains(character);
    let text: String = text.chars().filter(writable).collect();
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn identity(caller: &Caller, request_id: Uuid) -> String {
    let (arn, id, account) = (escaped(&caller.arn), escaped(caller.user_id()), escaped(&caller.account));
    format!(
        "<GetCallerIdentityResponse xmlns=\"{NAMESPACE}\">\n  <GetCallerIdentityResult>\n    <Arn>{arn}</Arn>\n    \
         <UserId>{id}</UserId>\n    <Account>{account}</Account>\n  </GetCallerIdentityResult>\n  <ResponseMetadata>\n    \
         <RequestId>{request_id}</RequestId>\n  </ResponseMetadata>\n</GetCallerIdentityResponse>\n"
    )
}

fn error(failure: &Failure, request_id: Uuid) -> String {
    let Failure { code, message, status } = failure;
    let kind = if *status < 500 { "Sender" } else { "Receiver" };
    let message = escaped(message);
    format!(
        "<ErrorResponse xmlns=\"{NAMESPACE}\">\n  <Error>\n    <Type>{kind}</Type>\n    <Code>{code}</Code>\n    \
         <Message>{message}</Message>\n  </Error>\n  <RequestId>{request_id}</RequestId>\n</ErrorResponse>\n"
    )
}
