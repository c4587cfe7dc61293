//! From a request to its answer: who is it, what is asked, ask.

use std::{error::Error as _, sync::Arc, time::Duration};

use api::{
    catalogue,
    error::ServiceError,
    input::{BODY_BYTES_MAX, Input},
};
use axum::{
    Router,
    body::{Body, to_bytes},
    extract::{Request, State},
    response::Response,
};
use bytes::Bytes;
use http::{header, request::Parts};
use http_body_util::LengthLimitError;
use percent_encoding::percent_decode_str;
use time::OffsetDateTime;

use super::{
    Throttles, answer,
    answer::Refusal,
    operations::Operations,
    routes::{self, Asked, Route},
};
use crate::{
    audit::{Audit, Call},
    auth::{Authenticator, Caller, SigningName},
};

/// How long a body may take to arrive.
const BODY_TIME_MAX: Duration = Duration::from_secs(30);

#[derive(Clone)]
struct Service {
    operations: Arc<dyn Operations>,
    auth: Arc<Authenticator>,
    throttles: Arc<Throttles>,
    audit: Audit,
}

/// The API: every request is authenticated, then answered by `operations`, unless there were too many, and leaves a line in
/// the audit log.
pub fn router(operations: Arc<dyn Operations>, auth: Arc<Authenticator>, throttles: Throttles, audit: Audit) -> Router {
    Router::new().fallback(serve).with_state(Service { operations, auth, throttles: Arc::new(throttles), audit })
}

async fn serve(State(service): State<Service>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let call = Arc::new(service.audit.call(SigningName::Lambda.as_str(), &parts));
    let request_id = call.request_id();
    match answered(&service, &parts, body, &call).await {
        Ok((name, status, body)) => {
            tracing::info!(operation = name, status, %request_id, "answered");
            answer::success(status, body, request_id)
        }
        Err(refusal) => {
            let error = refusal.to_wire();
            call.ended(error.status, Some(error.kind));
            tracing::info!(
                method = %parts.method,
                path = parts.uri.path(),
                status = error.status,
                kind = error.kind,
                %request_id,
                "refused"
            );
            answer::failure(error, request_id)
        }
    }
}

async fn answered(
    service: &Service,
    parts: &Parts,
    body: Body,
    call: &Arc<Call>,
) -> Result<(&'static str, u16, Vec<u8>), Refusal> {
    let found = routes::find(&parts.method, parts.uri.path());
    if let Some((route, _)) = &found {
        call.wants(&route.action());
    }
    // Authentication comes before the answer to whether there is such an operation: a stranger learns nothing of what is
    // served here.
    let (caller, body) = authenticated(&service.auth, SigningName::Lambda, parts, body, BODY_BYTES_MAX).await?;
    call.signed_by(&caller);
    let Some((route, captures)) = found else {
        return Err(catalogue::unknown_operation(parts.method.as_str(), parts.uri.path()).into());
    };
    match carried_out(service, route, captures, parts, &body, caller, call).await {
        Ok(answer) => Ok((route.name, route.status, answer)),
        Err(error) => Err(route.worded(error).into()),
    }
}

async fn carried_out(
    service: &Service,
    route: &'static Route,
    captures: Vec<(&'static str, &str)>,
    parts: &Parts,
    body: &[u8],
    caller: Caller,
    call: &Arc<Call>,
) -> Result<Vec<u8>, ServiceError> {
    service.throttles.take(route.name)?;
    let mut path = Vec::new();
    for (name, text) in captures {
        path.push((name.to_owned(), decoded(text)?));
    }
    let input = Input::new(path, query(parts.uri.query().unwrap_or_default())?, body)?;
    let input = input.allowing(service.operations.longest_microvm_s());
    let asked = Asked { operations: Arc::clone(&service.operations), caller, input, call: Arc::clone(call) };
    // In a task of its own: a caller who hangs up does not leave an operation half done, nor without its line in the audit
    // log, and a bug that panics is an internal error, not a broken connection.
    let call = Arc::clone(call);
    let task = tokio::spawn(async move {
        let result = (route.answer)(asked).await.map_err(|error| route.worded(error));
        match &result {
            Ok(_) => call.ended(route.status, None),
            Err(error) => call.ended(error.status(), Some(error.kind())),
        }
        result
    });
    task.await.unwrap_or_else(|error| {
        tracing::error!(operation = route.name, error = &error as &dyn std::error::Error, "an operation panicked");
        Err(catalogue::internal_error())
    })
}

/// Who sent a request, and its body, which is read only for somebody who says to be known.
pub(super) async fn authenticated(
    auth: &Authenticator,
    service: SigningName,
    parts: &Parts,
    body: Body,
    bytes_max: usize,
) -> Result<(Caller, Bytes), Refusal> {
    let claim = auth.claim(service, parts, OffsetDateTime::now_utc())?;
    let announced = parts.headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    if announced.is_some_and(|bytes: u64| bytes > bytes_max as u64) {
        return Err(catalogue::request_too_large(bytes_max).into());
    }
    let body = tokio::time::timeout(BODY_TIME_MAX, to_bytes(body, bytes_max))
        .await
        .map_err(|_| Refusal::Body)?
        .map_err(|error| match error.source().is_some_and(|source| source.is::<LengthLimitError>()) {
            true => catalogue::request_too_large(bytes_max).into(),
            false => Refusal::Body,
        })?;
    let caller = claim.verify(parts, &body)?;
    Ok((caller, body))
}

fn decoded(text: &str) -> Result<String, ServiceError> {
    percent_decode_str(text).decode_utf8().map(Into::into).map_err(|_| catalogue::unreadable_input())
}

/// The parameters of a query. A second bare `=` is refused without a word, as the service does.
fn query(text: &str) -> Result<Vec<(String, String)>, ServiceError> {
    let mut parameters = Vec::new();
    for pair in text.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        if value.contains('=') {
            return Err(catalogue::unreadable_input());
        }
        parameters.push((decoded(name)?, decoded(value)?));
    }
    Ok(parameters)
}
