//! Apps: servers on local ports.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::{body::Incoming, server::conn, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

use crate::support::{Body, full};

/// A server on a local port, until dropped.
pub struct App {
    pub address: SocketAddr,
    pub requests: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Drop for App {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl App {
    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }

    /// An app that does with each connection what it likes.
    pub async fn raw<F>(serve: impl Fn(TcpStream, usize) -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(AtomicUsize::new(0));
        let task = tokio::spawn(async move {
            let mut tasks = tokio::task::JoinSet::new();
            for number in 0.. {
                let (socket, _) = listener.accept().await.unwrap();
                tasks.spawn(serve(socket, number));
            }
        });
        Self { address, requests, task }
    }

    /// An app that speaks HTTP/1.1.
    pub async fn http<F>(answer: impl Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        let requests = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&requests);
        let mut app = Self::raw(move |socket, _| http1(socket, answer.clone(), Arc::clone(&counted))).await;
        app.requests = requests;
        app
    }

    /// An app that speaks HTTP/2 in the clear and nothing else, this many requests at once.
    pub async fn http2<F>(streams: u32, answer: impl Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        let requests = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&requests);
        let mut app = Self::raw(move |socket, _| http2(socket, streams, answer.clone(), Arc::clone(&counted))).await;
        app.requests = requests;
        app
    }

    /// Answers with the head that it was sent.
    pub async fn mirror() -> Self {
        Self::http(|request| async move { mirrored(&request) }).await
    }

    /// Answers with the body that it is sent, as it comes, trailers included.
    pub async fn echo() -> Self {
        Self::http(|request| async move {
            Response::builder().header("trailer", "x-sum").body(request.into_body().boxed()).unwrap()
        })
        .await
    }
}

/// The request as it arrived.
/// Reads a request's head, for an app that speaks by hand.
pub async fn read_head(socket: &mut TcpStream) -> Vec<u8> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let length = socket.read_buf(&mut head).await.unwrap();
        assert!(length > 0, "an end instead of a head, after {}", String::from_utf8_lossy(&head));
    }
    head
}

/// Reads an upgrade's head and agrees.
pub async fn switch_protocols(socket: &mut TcpStream) {
    read_head(socket).await;
    let yes = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    socket.write_all(yes.as_bytes()).await.unwrap();
}

pub fn mirrored(request: &Request<Incoming>) -> Response<Body> {
    let mut head = format!("{} {}\n", request.method(), request.uri());
    for (name, value) in request.headers() {
        head.push_str(&format!("{name}: {}\n", value.to_str().unwrap()));
    }
    Response::new(full(head))
}

pub async fn http1<F>(
    socket: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    answer: impl Fn(Request<Incoming>) -> F,
    counted: Arc<AtomicUsize>,
) where
    F: Future<Output = Response<Body>>,
{
    let service = service_fn(move |request| {
        counted.fetch_add(1, Ordering::SeqCst);
        let answer = answer(request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    // Clients leave as they like.
    let _ = conn::http1::Builder::new().serve_connection(TokioIo::new(socket), service).with_upgrades().await;
}

pub async fn http2<F>(
    socket: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    streams: u32,
    answer: impl Fn(Request<Incoming>) -> F,
    counted: Arc<AtomicUsize>,
) where
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let service = service_fn(move |request| {
        counted.fetch_add(1, Ordering::SeqCst);
        let answer = answer(request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let mut builder = conn::http2::Builder::new(TokioExecutor::new());
    builder.max_concurrent_streams(streams);
    let _ = builder.serve_connection(TokioIo::new(socket), service).await;
}
