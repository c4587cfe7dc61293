//! From an admitted request to the head of the app's answer: wake, connect, send, and try again where that is safe.

use std::{pin::pin, sync::Arc, time::Duration};

use api::{
    directory::DialError,
    ids::{MicrovmId, VmId},
};
use futures_util::FutureExt;
use http::{Method, Request, Response};
use http_body::Body;
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use tokio::time::{Instant, timeout, timeout_at};

use crate::{
    activity::Activity,
    body::RequestBody,
    pool::{AppAddress, Sender},
    refusal::{Refusal, chain},
    server::Shared,
};

/// Sends the request to the app and returns the head of its answer.
///
/// A request is sent again in two cases only: it provably never left (the connection was closed before it was written),
/// or it left on a kept connection that then closed without an answer, has no body, and is of a method that may be
/// repeated (RFC 9110, 9.2.2). The second attempt is on a new connection.
pub(crate) async fn exchange(
    shared: &Shared,
    microvm: MicrovmId,
    port: u16,
    mut request: Request<RequestBody>,
    activity: &Arc<Activity>,
) -> Result<Response<Incoming>, Refusal> {
    let limits = &shared.config.limits;
    let deadline = Instant::now() + limits.wake;
    let mut gone = 0;
    let mut kept_allowed = true;
    loop {
        let vm = awake(shared, microvm, deadline).await?;
        activity.start();
        let app = AppAddress { vm, port };
        let kept = if kept_allowed { shared.pool.take(&app) } else { None };
        let reused = kept.is_some();
        let connection = match kept {
            Some(sender) => Ok(sender),
            None => connect(shared, microvm, vm, port, deadline).await,
        };
        let mut sender = match connection {
            Ok(sender) => sender,
            Err(ConnectError::Gone) => {
                shared.pool.forget(&app);
                pause_after_gone(&mut gone, limits.attempts_after_gone).await?;
                continue;
            }
            Err(ConnectError::Refused(refusal)) => return Err(refusal),
        };
        let copy = (reused && request.body().is_end_stream() && request.method().is_idempotent())
            .then(|| copy_without_body(&request));
        let sent = pin!(sender.try_send_request(request));
        let sent = tokio::select! {
            sent = sent => sent,
            () = Arc::clone(activity).silence(limits.silence) => return Err(Refusal::Silent),
            never = activity.keep_awake() => match never {},
        };
        let mut error = match sent {
            Ok(response) => {
                shared.pool.keep(app, sender);
                return Ok(response);
            }
            Err(error) => error,
        };
        let unsent = error.take_message();
        if reused {
            shared.pool.forget(&app);
            kept_allowed = false;
        } else if unsent.is_some() {
            pause_after_gone(&mut gone, limits.attempts_after_gone).await?;
        }
        match unsent.or(copy) {
            Some(again) => request = again,
            None => return Err(Refusal::NoAnswer(error.into_error())),
        }
    }
}

/// The VM that runs the microVM, once it does.
async fn awake(shared: &Shared, microvm: MicrovmId, deadline: Instant) -> Result<VmId, Refusal> {
    let mut wake = pin!(shared.directory.awake(&microvm));
    // One that runs already is answered for at once, and no request to it counts as waiting.
    let answer = match wake.as_mut().now_or_never() {
        Some(answer) => answer,
        None => {
            let _place = shared.waiting.enter(microvm).ok_or(Refusal::TooManyWaiting)?;
            timeout_at(deadline, wake).await.map_err(|_| Refusal::WakeTooSlow)?
        }
    };
    answer.map_err(Refusal::Unavailable)
}

/// Counts one more VM that was gone; waits a little, for the directory to learn of it.
async fn pause_after_gone(count: &mut u32, limit: u32) -> Result<(), Refusal> {
    *count += 1;
    if *count > limit {
        return Err(Refusal::Gone);
    }
    // The first time it is most likely a suspend that the directory itself ordered.
    tokio::time::sleep(Duration::from_millis(50) * (*count - 1)).await;
    Ok(())
}

enum ConnectError {
    Gone,
    Refused(Refusal),
}

async fn connect(
    shared: &Shared,
    microvm: MicrovmId,
    vm: VmId,
    port: u16,
    deadline: Instant,
) -> Result<Sender, ConnectError> {
    let limits = &shared.config.limits;
    let late = |_| {
        let error = std::io::Error::new(std::io::ErrorKind::TimedOut, "connecting took too long");
        ConnectError::Refused(Refusal::Unreachable(error))
    };
    let dialling = timeout(limits.dial, shared.dialer.dial(&microvm, &vm, port));
    let stream =
        timeout_at(deadline, dialling).await.and_then(|inner| inner).map_err(late)?.map_err(|error| match error {
            DialError::Gone => ConnectError::Gone,
            DialError::Refused { port } => ConnectError::Refused(Refusal::NothingListens(port)),
            DialError::Unreachable(source) => ConnectError::Refused(Refusal::Unreachable(source)),
        })?;
    let (sender, connection) = http1::Builder::new()
        .max_buf_size(limits.head_bytes)
        .max_header_size(limits.head_bytes)
        .max_headers(limits.header_fields)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| ConnectError::Refused(Refusal::NoAnswer(error)))?;
    // Lives as long as its sender or its exchange, whichever is longer.
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%vm, port, cause = chain(&error), "connection to app ended");
        }
    });
    Ok(sender)
}

fn copy_without_body(request: &Request<RequestBody>) -> Request<RequestBody> {
    let mut copy = Request::new(RequestBody::none());
    *copy.method_mut() = Method::clone(request.method());
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    copy
}
