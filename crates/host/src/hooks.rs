//! Calls the app's lifecycle hooks: `POST` over plain HTTP/1.1 to the app's own localhost.

use std::time::Duration;

use api::{directory::AppStream, hooks::HOOK_PATH_PREFIX};
use bytes::Bytes;
use http_body_util::Full;
use hyper_util::rt::TokioIo;
use tokio::time::Instant;

use crate::{
    agent::{self, AgentError},
    platform::Network,
};

/// Pause between two tries of a build hook that says 503. Not documented by the service; short, since a build waits.
const RETRY_PAUSE: Duration = Duration::from_millis(250);

/// Pause before a guest that could not be reached is called again.
const REACH_PAUSE: Duration = Duration::from_millis(100);

/// How a hook ended that did not succeed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HookFailure {
    /// The app answered with another status than 200.
    Status(u16),
    /// No 200 within the hook's time.
    TimedOut,
    /// No HTTP answer: nothing listens, or it closed the connection.
    NoAnswer,
}

/// Calls a runtime hook once.
pub async fn call(
    namespace: &dyn Network,
    port: u16,
    hook: &str,
    body: Option<String>,
    timeout: Duration,
) -> Result<(), HookFailure> {
    match tokio::time::timeout(timeout, post(namespace, port, hook, body, timeout)).await {
        Err(_) => Err(HookFailure::TimedOut),
        Ok(None) => Err(HookFailure::NoAnswer),
        Ok(Some(200)) => Ok(()),
        Ok(Some(status)) => Err(HookFailure::Status(status)),
    }
}

/// Calls a build hook until it answers 200. 503 and an app that does not listen yet mean "later"; anything else is a no.
pub async fn call_until_ready(
    namespace: &dyn Network,
    port: u16,
    hook: &str,
    timeout: Duration,
) -> Result<(), HookFailure> {
    let deadline = Instant::now() + timeout;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(HookFailure::TimedOut);
        }
        match call(namespace, port, hook, None, left).await {
            Err(HookFailure::Status(503) | HookFailure::NoAnswer) => tokio::time::sleep(RETRY_PAUSE.min(left)).await,
            ended => return ended,
        }
    }
}

/// A stream to the app, or none if nothing listens. A guest that cannot be reached is called again for as long as somebody
/// waits: that is this host's trouble and not the app's, and must not cost a session.
async fn reach(namespace: &dyn Network, port: u16, timeout: Duration) -> Option<Box<dyn AppStream>> {
    loop {
        match agent::open_stream(namespace, port, timeout).await {
            Ok(stream) => return Some(stream),
            Err(AgentError::Refused { .. }) => return None,
            Err(error) => tracing::warn!(%error, "the guest of a hook cannot be reached yet"),
        }
        tokio::time::sleep(REACH_PAUSE).await;
    }
}

async fn post(namespace: &dyn Network, port: u16, hook: &str, body: Option<String>, timeout: Duration) -> Option<u16> {
    let stream = reach(namespace, port, timeout).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.ok()?;
    let _driver = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(connection));
    let mut request = http::Request::post(format!("{HOOK_PATH_PREFIX}{hook}"))
        .header(http::header::HOST, format!("localhost:{port}"));
    if body.is_some() {
        request = request.header(http::header::CONTENT_TYPE, "application/json");
    }
    let request = request.body(Full::new(Bytes::from(body.unwrap_or_default()))).ok()?;
    let response = sender.send_request(request).await.ok()?;
    Some(response.status().as_u16())
}
