//! The shell's end of a connection to it: an HTTP/1.1 server for one request, which is the handshake.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError},
};

use api::{directory::AppStream, shell::Shell};
use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::Empty;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;

use super::{chosen, is_extended, session};
use crate::{allowance::ShellPlace, refusal::chain, websocket::accept_for};

/// Bytes on their way in each direction, beside those of the message that is being read or written.
const BUFFER_BYTES: usize = 16 * 1024;

/// A shell and its place.
struct Open {
    shell: Shell,
    place: ShellPlace,
}

/// What answers for the shell. Dropping it ends the shell.
pub(super) fn behind(shell: Shell, place: ShellPlace, message_bytes_max: usize) -> Box<dyn AppStream> {
    let (ours, theirs) = tokio::io::duplex(BUFFER_BYTES);
    let open = Arc::new(Mutex::new(Some(Open { shell, place })));
    let service = service_fn(move |request| {
        let open = open.lock().unwrap_or_else(PoisonError::into_inner).take();
        let answer = answer(request, open, message_bytes_max);
        async move { Ok::<_, Infallible>(answer) }
    });
    tokio::spawn(async move {
        let connection = http1::Builder::new().serve_connection(TokioIo::new(theirs), service).with_upgrades();
        if let Err(error) = connection.await {
            tracing::debug!(cause = chain(&error), "a shell's connection failed");
        }
    });
    Box::new(ours)
}

/// Answers the handshake; it was checked before. Nothing comes after it that could be a second one.
fn answer(mut request: Request<Incoming>, open: Option<Open>, message_bytes_max: usize) -> Response<Empty<Bytes>> {
    let mut response = Response::new(Empty::new());
    let key = request.headers().get(header::SEC_WEBSOCKET_KEY).and_then(|key| key.to_str().ok());
    let accept = key.and_then(|key| HeaderValue::from_str(&accept_for(key)).ok());
    let (Some(accept), Some(Open { shell, place })) = (accept, open) else {
        *response.status_mut() = StatusCode::BAD_REQUEST;
        return response;
    };
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    if let Some(chosen) = chosen(request.headers()) {
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, chosen);
    }
    let tells_exit = is_extended(request.headers());
    let upgrading = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        match upgrading.await {
            Ok(upgraded) => {
                session::run(TokioIo::new(upgraded), shell, place.microvm, tells_exit, message_bytes_max).await;
            }
            Err(error) => tracing::debug!(cause = chain(&error), "a shell's handshake came to nothing"),
        }
        drop(place);
    });
    response
}
