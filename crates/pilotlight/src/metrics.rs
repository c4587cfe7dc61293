//! The address that Prometheus reads what is counted from.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::body::Body;
use edge::Metrics;
use http::{HeaderValue, Request, Response, StatusCode, header};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpListener, sync::Semaphore, time::timeout};

/// Readers at once; more wait to be accepted. One Prometheus has one.
const CONNECTIONS_MAX: usize = 16;

/// How long a reader may stay. Prometheus comes at intervals, and gives up after ten seconds itself.
const CONNECTION_TIME_MAX: Duration = Duration::from_secs(300);

/// How long a reader may take for the head of a request, and between two.
const HEADER_TIME_MAX: Duration = Duration::from_secs(120);

/// Rest after a failed accept: out of file descriptors, most likely.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves `/metrics` for as long as it is polled. Whoever reaches a loopback address may read it, which is why it is served
/// on no other.
pub async fn serve(listener: TcpListener, edge: Metrics) -> Infallible {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let place = Arc::clone(&places).acquire_owned().await.expect("the semaphore is never closed");
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let edge = edge.clone();
        let service = service_fn(move |request| std::future::ready(Ok::<_, Infallible>(answer(&request, &edge))));
        let mut builder = http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(HEADER_TIME_MAX);
        let connection = builder.serve_connection(TokioIo::new(stream), service);
        tokio::spawn(async move {
            let _place = place;
            // Readers come and go as they like.
            let _ = timeout(CONNECTION_TIME_MAX, connection).await;
        });
    }
}

fn answer(request: &Request<Incoming>, edge: &Metrics) -> Response<Body> {
    if request.uri().path() != "/metrics" {
        let mut response = Response::new(Body::from("what is counted is at /metrics\n"));
        *response.status_mut() = StatusCode::NOT_FOUND;
        return response;
    }
    let mut response = Response::new(Body::from(edge.text()));
    let text = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, text);
    response
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use api::token::TokenKeys;
    use edge::{Edge, EdgeConfig, Limits};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
    };

    use super::*;
    use crate::apart;

    async fn ask(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn what_is_counted_is_read_at_its_path_alone() {
        let dir = tempfile::tempdir().unwrap();
        let ca = edge::ca::load_or_create(dir.path(), "x.localhost").unwrap();
        let config = EdgeConfig { domain_suffix: "x.localhost".to_owned(), limits: Limits::standard() };
        let keys = Arc::new(TokenKeys::single(uuid::Uuid::from_u128(1), [1; 32]));
        // Control and a host that nobody reaches.
        let nobody = apart::Client::new(apart::Limits::standard());
        let edge = Edge::new(config, ca.served(), Arc::clone(&nobody) as _, nobody, keys);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = tokio::spawn(serve(listener, edge.metrics()));
        let answer = ask(address, "/metrics").await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.contains("\r\ncontent-type: text/plain; version=0.0.4"), "{answer}");
        assert!(answer.contains("\npilotlight_edge_connections 0\n"), "{answer}");
        let expires = ca.served().expires().unix_timestamp();
        assert!(answer.contains(&format!("\npilotlight_edge_certificate_expires_seconds {expires}\n")), "{answer}");
        assert!(ask(address, "/").await.starts_with("HTTP/1.1 404 "));
        serving.abort();
    }
}
