//! One address for all AWS clients: a request's SigV4 credential scope says which service it is for.

use std::{convert::Infallible, net::SocketAddr, time::Duration};

use axum::{Router, body::Body};
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
};
use s3s::service::S3Service;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

/// A client that sends its request's head slower than this is cut off.
const HEADER_TIME_MAX: Duration = Duration::from_secs(30);

/// How long requests in progress may take once the server is to stop.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(10);

/// The services behind the address.
#[derive(Clone)]
pub struct Gateway {
    /// `lambda`, and whatever carries no signature, which it refuses in words a client understands.
    pub lambda: Router,
    /// `s3`.
    pub s3: S3Service,
}

impl Gateway {
    /// Serves until told to stop, then lets requests in progress finish.
    pub async fn serve(self, listener: TcpListener, stop: CancellationToken) {
        let graceful = GracefulShutdown::new();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = stop.cancelled() => break,
            };
            match accepted {
                Ok((stream, peer)) => self.clone().connection(stream, peer, &graceful),
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

    fn connection(self, stream: TcpStream, peer: SocketAddr, graceful: &GracefulShutdown) {
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIME_MAX);
        // Requests and answers are small and wait for each other.
        let _ = stream.set_nodelay(true);
        let service = hyper::service::service_fn(move |request| self.clone().answer(request));
        let connection = graceful.watch(builder.serve_connection(TokioIo::new(stream), service).into_owned());
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%peer, error, "an API connection ended early");
            }
        });
    }

    async fn answer(self, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
        let (parts, body) = request.into_parts();
        if control::auth::service_of(&parts) != Some("s3") {
            return self.lambda.oneshot(Request::from_parts(parts, Body::new(body))).await;
        }
        match self.s3.call(Request::from_parts(parts, s3s::Body::from(body))).await {
            Ok(response) => Ok(response.map(Body::new)),
            Err(error) => {
                tracing::error!(?error, "an S3 request failed");
                let mut response = Response::new(Body::empty());
                *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
                Ok(response)
            }
        }
    }
}
