//! One address for all AWS clients: a request's SigV4 credential scope says which service it is for.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use axum::{Router, body::Body};
use control::audit::{Audit, SourceAddress};
use http::{Request, Response, StatusCode, request::Parts};
use hyper::{body::Incoming, server::conn::http1};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
};
use s3s::service::S3Service;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

/// A client that sends its request's head slower than this is cut off.
const HEADER_TIME_MAX: Duration = Duration::from_secs(30);

/// API connections served at once; more wait to be accepted. File descriptors are shared with everything else.
const CONNECTIONS_MAX: usize = 512;

/// How long requests in progress may take once the server is to stop.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(10);

/// The services behind the address.
#[derive(Clone)]
pub struct Gateway {
    /// `lambda`, and whatever carries no signature, which it refuses in words a client understands.
    pub lambda: Router,
    /// `sts`.
    pub sts: Router,
    /// `s3`.
    pub s3: S3Service,
    /// Where every call leaves a line; the others see to that themselves.
    pub audit: Audit,
}

impl Gateway {
    /// Serves until told to stop, then lets requests in progress finish.
    pub async fn serve(self, listener: TcpListener, stop: CancellationToken) {
        let graceful = GracefulShutdown::new();
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let place = tokio::select! {
                place = Arc::clone(&places).acquire_owned() => place.expect("the semaphore is never closed"),
                () = stop.cancelled() => break,
            };
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = stop.cancelled() => break,
            };
            match accepted {
                Ok((stream, peer)) => self.clone().connection(stream, peer, &graceful, place),
                Err(error) => {
                    // Out of file descriptors, most likely: give others time to close theirs.
                    tracing::warn!(%error, "cannot accept an API connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
        drop(listener);
        if tokio::time::timeout(DRAIN_TIME_MAX, graceful.shutdown()).await.is_err() {
            tracing::warn!("API requests were still in progress at the end of the drain");
        }
    }

    fn connection(self, stream: TcpStream, peer: SocketAddr, graceful: &GracefulShutdown, place: OwnedSemaphorePermit) {
        // HTTP/1.1 alone, as the services' clients speak it: a connection that says nothing then has a deadline.
        let mut builder = http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(HEADER_TIME_MAX);
        // Requests and answers are small and wait for each other.
        let _ = stream.set_nodelay(true);
        let service = hyper::service::service_fn(move |request| self.clone().answer(request, peer));
        let connection = graceful.watch(builder.serve_connection(TokioIo::new(stream), service));
        tokio::spawn(async move {
            let _place = place;
            if let Err(error) = connection.await {
                tracing::debug!(%peer, %error, "an API connection ended early");
            }
        });
    }

    async fn answer(self, request: Request<Incoming>, peer: SocketAddr) -> Result<Response<Body>, Infallible> {
        let (mut parts, body) = request.into_parts();
        parts.extensions.insert(SourceAddress(peer));
        // A form upload would be read before its signature is known; clients with a signature in the header do not use
        // forms.
        let form = parts
            .headers
            .get(http::header::CONTENT_TYPE)
            .is_some_and(|kind| kind.as_bytes().to_ascii_lowercase().starts_with(b"multipart/form-data"));
        let old = is_presigned_the_old_way(parts.uri.query());
        match control::auth::service_of(&parts).or(old.then_some("s3")) {
            Some("s3") if !form => Ok(self.answer_s3(parts, body).await),
            Some("sts") => self.sts.oneshot(Request::from_parts(parts, Body::new(body))).await,
            _ => self.lambda.oneshot(Request::from_parts(parts, Body::new(body))).await,
        }
    }

    async fn answer_s3(self, mut parts: Parts, body: Incoming) -> Response<Body> {
        let call = Arc::new(self.audit.call("s3", &parts));
        let request_id = call.request_id().to_string();
        // The gate says there who calls, and what for.
        parts.extensions.insert(Arc::clone(&call));
        let mut response = match self.s3.call(Request::from_parts(parts, s3s::Body::from(body))).await {
            Ok(response) => {
                let code = error_code(&response);
                call.ended(response.status().as_u16(), code.as_deref());
                response.map(Body::new)
            }
            Err(error) => {
                tracing::error!(?error, "an S3 request failed");
                call.ended(500, Some("InternalError"));
                let mut response = Response::new(Body::empty());
                *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
                response
            }
        };
        if let Ok(id) = request_id.parse() {
            response.headers_mut().insert("x-amz-request-id", id);
        }
        response
    }
}

/// The code of an S3 error, which its document alone says; the answer to a HEAD has none.
fn error_code(response: &Response<s3s::Body>) -> Option<String> {
    if response.status().as_u16() < 400 {
        return None;
    }
    let document = response.body().bytes().unwrap_or_default();
    let document = String::from_utf8_lossy(&document);
    let code = document.split_once("<Code>").and_then(|(_, rest)| rest.split_once("</Code>"));
    Some(code.map_or_else(|| response.status().to_string(), |(code, _)| code.to_owned()))
}

/// The form of address that boto3 and the aws CLI still sign for S3 in us-east-1 when they are told nothing else. Only S3
/// ever knew it, and it names no service.
fn is_presigned_the_old_way(query: Option<&str>) -> bool {
    let names = |name: &str| {
        query.unwrap_or_default().split('&').any(|pair| pair.strip_prefix(name).is_some_and(|it| it.starts_with('=')))
    };
    names("AWSAccessKeyId") && names("Signature") && names("Expires")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_addresses_are_told_by_all_their_parts() {
        assert!(is_presigned_the_old_way(Some("AWSAccessKeyId=A&Signature=B%3D&Expires=1")));
        assert!(!is_presigned_the_old_way(Some("AWSAccessKeyId=A&Signature=B")));
        assert!(!is_presigned_the_old_way(Some("XAWSAccessKeyId=A&Signature=B&Expires=1")));
        assert!(!is_presigned_the_old_way(None));
    }
}
