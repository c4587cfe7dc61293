//! What there is over plain HTTP: the answers that an authority looks for (`http-01`), and for everybody else the way to HTTPS.
//!
//! Strangers speak to it, so each connection has one request, a short time, and a small head; what it brings beside is not read.

use std::{convert::Infallible, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::future::join_all;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::endpoints::Endpoints;
use crate::{refusal::chain, route, server::ACCEPT_PAUSE};

/// Where an authority looks (RFC 8555, 8.3).
const CHALLENGES: &str = "/.well-known/acme-challenge/";

/// Connections at once; past these the kernel's queue holds newcomers.
const CONNECTIONS_MAX: usize = 256;

/// A connection, from its opening to its end.
const CONNECTION_TIME_MAX: Duration = Duration::from_secs(10);

/// A request's head. The library's buffers have 8192 at least.
const HEAD_BYTES_MAX: usize = 8192;

/// The port that HTTPS has where none is named.
const HTTPS: u16 = 443;

/// Answers until it is to stop, and lets what is there finish. Everybody else is sent to this port of the same host.
pub async fn answer(endpoints: Arc<Endpoints>, listeners: Vec<TcpListener>, to: u16, stop: CancellationToken) {
    let connections = TaskTracker::new();
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let accepting = listeners.into_iter().map(|listener| accept_all(&endpoints, listener, to, &places, &connections));
    tokio::select! {
        _ = join_all(accepting) => {}
        () = stop.cancelled() => {}
    }
    // Without listeners there is nothing to wait for but the order to stop.
    stop.cancelled().await;
    connections.close();
    connections.wait().await;
}

async fn accept_all(
    endpoints: &Arc<Endpoints>,
    listener: TcpListener,
    to: u16,
    places: &Arc<Semaphore>,
    connections: &TaskTracker,
) -> Infallible {
    loop {
        let place = Arc::clone(places).acquire_owned().await.expect("the semaphore is never closed");
        match listener.accept().await {
            Ok((socket, _)) => _ = connections.spawn(serve(Arc::clone(endpoints), socket, to, place)),
            Err(error) => {
                tracing::warn!(fault = "platform", cause = chain(&error), "accept failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve(endpoints: Arc<Endpoints>, socket: TcpStream, to: u16, _place: OwnedSemaphorePermit) {
    let service = service_fn(|request: Request<Incoming>| {
        let response = respond(&endpoints, &request, to);
        async move { Ok::<_, Infallible>(response) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(CONNECTION_TIME_MAX)
        .keep_alive(false)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(socket), service);
    match timeout(CONNECTION_TIME_MAX, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(fault = "client", cause = chain(&error), "plain HTTP connection ended"),
        Err(_) => tracing::debug!(fault = "client", cause = "too slow", "plain HTTP connection ended"),
    }
}

/// Decides from the head alone.
fn respond<B>(endpoints: &Endpoints, request: &Request<B>, to: u16) -> Response<Full<Bytes>> {
    let refused = |status: StatusCode| {
        let mut response = Response::new(Full::from(status.canonical_reason().unwrap_or_default()));
        *response.status_mut() = status;
        response
    };
    let host = match route::single(request.headers(), &header::HOST) {
        Ok(Some(value)) => value.to_str().ok().and_then(route::parse_host),
        Ok(None) | Err(()) => None,
    };
    let Some(host) = host else { return refused(StatusCode::BAD_REQUEST) };
    let Some(endpoint) = route::endpoint_of(&host.name, endpoints.suffix()) else {
        return refused(StatusCode::NOT_FOUND);
    };
    let path = request.uri().path();
    if let Some(token) = path.strip_prefix(CHALLENGES) {
        let answer = (request.method() == Method::GET).then(|| endpoints.pending().http(&endpoint, token)).flatten();
        return match answer {
            Some(answer) => {
                let mut response = Response::new(Full::from(answer));
                let octets = header::HeaderValue::from_static("application/octet-stream");
                response.headers_mut().insert(header::CONTENT_TYPE, octets);
                response
            }
            None => refused(StatusCode::NOT_FOUND),
        };
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return refused(StatusCode::NOT_FOUND);
    }
    let port = if to == HTTPS { String::new() } else { format!(":{to}") };
    let query = request.uri().query().map(|query| format!("?{query}")).unwrap_or_default();
    let location = header::HeaderValue::from_str(&format!("https://{}{port}{path}{query}", host.name));
    match location.ok().filter(|_| path.starts_with('/')) {
        Some(location) => {
            let mut response = refused(StatusCode::PERMANENT_REDIRECT);
            response.headers_mut().insert(header::LOCATION, location);
            response
        }
        None => refused(StatusCode::BAD_REQUEST),
    }
}

#[cfg(test)]
#[path = "answers_tests.rs"]
mod tests;
