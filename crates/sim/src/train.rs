//! `sim train`: a mix of what clients do, sent through the edge. A compiler that has seen a program at its work lays out what
//! is done together side by side (`scripts/dist.sh`); for the edge this matters more than anything in its code, since a
//! request goes through a good deal of it and does little in each place.
//!
//! Clients, edge and server are all in this process, so no other program is needed. Each answer is checked, and the first that
//! is wrong ends it.

use std::{iter, path::Path, sync::Arc, time::Duration};

use anyhow::{Context, ensure};
use bytes::Bytes;
use clap::Args;
use futures_util::future::try_join_all;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{
    ClientConfig, RootCertStore,
    client::Resumption,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::sync::CancellationToken;

use crate::{edge, upstream};

/// How long it may take in all. It takes a minute.
const TIME_MAX: Duration = Duration::from_secs(900);
/// Clients at once. With HTTP/2 several of them share a connection.
const CLIENTS: usize = 32;
/// So many.
const STREAMS: usize = 8;
/// A body that goes through as one piece.
const ITEM: &[u8] = br#"{"name":"some","count":2}"#;
/// What is answered where a token is missing.
const REFUSAL: &[u8] = b"Request missing authentication";
/// A body that goes through in many pieces, in bytes.
const LONG: usize = 16 << 20;

#[derive(Debug, Args)]
pub struct Arguments {
    /// Short requests of each client.
    #[arg(long, default_value_t = 2000)]
    requests: usize,
    /// Long ones in each direction, with each version of HTTP.
    #[arg(long, default_value_t = 16)]
    long: usize,
    /// Connections that each client makes for one request alone.
    #[arg(long, default_value_t = 64)]
    fresh: usize,
    /// Messages of each client after an upgrade.
    #[arg(long, default_value_t = 256)]
    messages: usize,
}

/// Sends all of it, and ends.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    tokio::runtime::Runtime::new()?
        .block_on(async { timeout(TIME_MAX, train(arguments)).await.context("it does not come to its end")? })
}

async fn train(arguments: &Arguments) -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let front = edge::Arguments { upstream: listener.local_addr()?, dir: dir.path().to_owned() };
    let serving_app = tokio::spawn(upstream::serve_on(listener));
    let edge::Front { edge, ca, host, token } = edge::bind(&front).await?;
    let clients =
        Arc::new(Clients { port: edge.local_addresses()[0].port(), host, token, tls: trusting(ca.ca_path())? });
    let end = CancellationToken::new();
    let serving = tokio::spawn(edge.serve(end.clone()));
    tokio::select! {
        sent = send_all(arguments, &clients) => sent?,
        ended = serving_app => ended?.context("the server ended")?,
    }
    end.cancel();
    let cut = serving.await?.cut;
    ensure!(cut == 0, "{cut} connections did not end by themselves");
    Ok(())
}

async fn send_all(arguments: &Arguments, clients: &Arc<Clients>) -> anyhow::Result<()> {
    println!("short requests");
    all(CLIENTS, clients, |clients| clients.short(false, arguments.requests)).await?;
    all(CLIENTS / STREAMS, clients, |clients| clients.short(true, arguments.requests)).await?;
    println!("connections for a request each");
    all(CLIENTS, clients, |clients| clients.fresh(arguments.fresh)).await?;
    println!("long bodies");
    for http2 in [false, true] {
        clients.long(http2, arguments.long).await?;
    }
    println!("what comes after an upgrade");
    all(CLIENTS, clients, |clients| clients.tunnel(arguments.messages)).await
}

/// So many of a kind at once.
async fn all<F>(count: usize, clients: &Arc<Clients>, one: impl Fn(Arc<Clients>) -> F) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<()>> + Send + 'static,
{
    let tasks = iter::repeat_with(|| tokio::spawn(one(Arc::clone(clients)))).take(count);
    try_join_all(tasks.map(async |task| task.await?)).await?;
    Ok(())
}

fn trusting(authority: &Path) -> anyhow::Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(authority).context("reading the authority's certificate")?)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let versions = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let mut config = versions.with_root_certificates(roots).with_no_client_auth();
    // Each connection is a client of its own.
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// What clients know.
struct Clients {
    port: u16,
    host: String,
    token: String,
    tls: ClientConfig,
}

enum Sender {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

impl Sender {
    async fn send(&mut self, request: Request<Full<Bytes>>) -> anyhow::Result<Response<Incoming>> {
        Ok(match self {
            Self::Http1(sender) => {
                sender.ready().await?;
                sender.send_request(request).await?
            }
            Self::Http2(sender) => sender.send_request(request).await?,
        })
    }
}

impl Clients {
    async fn connect(&self, http2: bool) -> anyhow::Result<TlsStream<TcpStream>> {
        let mut config = self.tls.clone();
        config.alpn_protocols = vec![if http2 { b"h2".to_vec() } else { b"http/1.1".to_vec() }];
        let socket = TcpStream::connect(("127.0.0.1", self.port)).await?;
        socket.set_nodelay(true)?;
        Ok(TlsConnector::from(Arc::new(config)).connect(ServerName::try_from(self.host.clone())?, socket).await?)
    }

    async fn sender(&self, http2: bool) -> anyhow::Result<Sender> {
        let stream = TokioIo::new(self.connect(http2).await?);
        Ok(if http2 {
            let (sender, connection) = http2::handshake(TokioExecutor::new(), stream).await?;
            tokio::spawn(connection);
            Sender::Http2(sender)
        } else {
            let (sender, connection) = http1::handshake(stream).await?;
            tokio::spawn(connection.with_upgrades());
            Sender::Http1(sender)
        })
    }

    fn request(&self, http2: bool, method: Method, path: &str) -> http::request::Builder {
        let request = Request::builder().method(method).header("x-aws-proxy-auth", &self.token);
        if http2 {
            request.uri(format!("https://{}{path}", self.host))
        } else {
            request.uri(path).header(header::HOST, &self.host)
        }
    }

    /// One after the other on a connection; with HTTP/2, several times so at once.
    async fn short(self: Arc<Self>, http2: bool, requests: usize) -> anyhow::Result<()> {
        let one_by_one = async |mut sender: Sender| {
            for number in 0..requests {
                let (status, answer, request) = self.some(http2, number)?;
                let response = sender.send(request).await?;
                ensure!(response.status() == status, "request {number} was answered {}", response.status());
                let body = response.into_body().collect().await?.to_bytes();
                ensure!(body == answer, "request {number} was answered {body:?}");
            }
            anyhow::Ok(())
        };
        match self.sender(http2).await? {
            Sender::Http2(sender) => {
                let streams = iter::repeat_with(|| one_by_one(Sender::Http2(sender.clone())));
                try_join_all(streams.take(STREAMS)).await?;
                Ok(())
            }
            sender => one_by_one(sender).await,
        }
    }

    /// What a short request is to be answered, and the request.
    fn some(&self, http2: bool, number: usize) -> anyhow::Result<(StatusCode, Bytes, Request<Full<Bytes>>)> {
        let small = Bytes::from_static(upstream::SMALL);
        let get = || self.request(http2, Method::GET, "/items?page=2&of=some");
        Ok(match number % 16 {
            // As a program sends it.
            0..8 => (StatusCode::OK, small, get().body(Full::default())?),
            // As a browser does.
            8..12 => {
                let request = get()
                    .header(
                        header::USER_AGENT,
                        "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko)",
                    )
                    .header(header::ACCEPT, "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8")
                    .header(header::ACCEPT_ENCODING, "gzip, deflate, br")
                    .header(header::ACCEPT_LANGUAGE, "en-US,en;q=0.5")
                    .header(header::COOKIE, "session=0123456789abcdef0123456789abcdef; theme=dark")
                    .header(header::CACHE_CONTROL, "no-cache");
                (StatusCode::OK, small, request.body(Full::default())?)
            }
            12..15 => {
                let request =
                    self.request(http2, Method::POST, "/items").header(header::CONTENT_TYPE, "application/json");
                (StatusCode::OK, ITEM.len().to_string().into(), request.body(Bytes::from_static(ITEM).into())?)
            }
            _ => {
                let mut request = get();
                if let Some(headers) = request.headers_mut() {
                    headers.remove("x-aws-proxy-auth");
                }
                (StatusCode::FORBIDDEN, Bytes::from_static(REFUSAL), request.body(Full::default())?)
            }
        })
    }

    /// Each on a connection of its own.
    async fn fresh(self: Arc<Self>, requests: usize) -> anyhow::Result<()> {
        for number in 0..requests {
            let http2 = number % 2 == 0;
            let request = self.request(http2, Method::GET, "/").body(Full::default())?;
            let response = self.sender(http2).await?.send(request).await?;
            ensure!(response.status() == StatusCode::OK, "a fresh connection was answered {}", response.status());
            let body = response.into_body().collect().await?.to_bytes();
            ensure!(body == upstream::SMALL, "a fresh connection was answered {body:?}");
        }
        Ok(())
    }

    /// Long bodies, down and up.
    async fn long(&self, http2: bool, requests: usize) -> anyhow::Result<()> {
        let mut sender = self.sender(http2).await?;
        let up = Bytes::from(vec![b'x'; LONG]);
        for _ in 0..requests {
            let request = self.request(http2, Method::GET, &format!("/bytes/{LONG}")).body(Full::default())?;
            let mut body = sender.send(request).await?.into_body();
            let mut length = 0;
            while let Some(frame) = body.frame().await {
                length += frame?.data_ref().map_or(0, Bytes::len);
            }
            ensure!(length == LONG, "{length} bytes came down");
            let request = self.request(http2, Method::PUT, "/").body(up.clone().into())?;
            let answer = sender.send(request).await?.into_body().collect().await?.to_bytes();
            ensure!(answer == LONG.to_string(), "{answer:?} bytes went up");
        }
        Ok(())
    }

    /// Messages there and back, as by WebSocket, of whose frames the edge knows nothing.
    async fn tunnel(self: Arc<Self>, messages: usize) -> anyhow::Result<()> {
        let request = self.request(false, Method::GET, "/echo").header(header::CONNECTION, "Upgrade");
        let request = request.header(header::UPGRADE, "echo").body(Full::default())?;
        let response = self.sender(false).await?.send(request).await?;
        ensure!(response.status() == StatusCode::SWITCHING_PROTOCOLS, "an upgrade was answered {}", response.status());
        let mut stream = TokioIo::new(hyper::upgrade::on(response).await?);
        let (message, mut back) = ([b'x'; 125], [0; 125]);
        for _ in 0..messages {
            stream.write_all(&message).await?;
            stream.read_exact(&mut back).await?;
            ensure!(back == message, "an echo differs");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_answer_is_as_it_should_be() {
        run(&Arguments { requests: 16, long: 1, fresh: 2, messages: 2 }).unwrap();
    }
}
