//! A lean load generator: requests signed and written out beforehand, kept-alive connections, answers read and no more.

use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, bail, ensure};
use aws_credential_types::Credentials;
use aws_sigv4::{
    http_request::{SignableBody, SignableRequest, SigningSettings, sign},
    sign::v4,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// Who asks, and where.
pub struct Target {
    /// `host:port`.
    pub address: String,
    /// Key of the server's own user.
    pub credentials: Credentials,
    /// Region the server answers as.
    pub region: String,
}

impl Target {
    /// A signed request, as it travels. It is good for five minutes.
    pub fn request(&self, method: &str, target: &str, body: &str) -> anyhow::Result<Vec<u8>> {
        let identity = self.credentials.clone().into();
        let parameters = v4::SigningParams::builder()
            .identity(&identity)
            .region(&self.region)
            .name("lambda")
            .time(SystemTime::now())
            .settings(SigningSettings::default())
            .build()?;
        let url = format!("http://{}{target}", self.address);
        let headers = [("host", self.address.as_str())];
        let signable = SignableRequest::new(method, url, headers.into_iter(), SignableBody::Bytes(body.as_bytes()))?;
        let (instructions, _) = sign(signable, &parameters.into())?.into_parts();
        let mut text =
            format!("{method} {target} HTTP/1.1\r\nhost: {}\r\ncontent-length: {}\r\n", self.address, body.len());
        for (name, value) in instructions.headers() {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        text.push_str("\r\n");
        text.push_str(body);
        Ok(text.into_bytes())
    }
}

/// A connection that is kept.
struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    async fn open(address: &str) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).await.with_context(|| format!("connecting to {address}"))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: Vec::new() })
    }

    /// Asks and reads the whole answer; its status and body.
    async fn ask(&mut self, request: &[u8]) -> anyhow::Result<(u16, &[u8])> {
        self.stream.write_all(request).await?;
        self.buffer.clear();
        let (head, length) = loop {
            ensure!(self.stream.read_buf(&mut self.buffer).await? > 0, "the server hung up");
            if let Some(end) = self.buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                break (end + 4, content_length(&self.buffer[..end])?);
            }
        };
        while self.buffer.len() < head + length {
            ensure!(self.stream.read_buf(&mut self.buffer).await? > 0, "the server hung up");
        }
        let status = std::str::from_utf8(&self.buffer[9..12])?.parse()?;
        Ok((status, &self.buffer[head..]))
    }
}

fn content_length(head: &[u8]) -> anyhow::Result<usize> {
    let text = std::str::from_utf8(head)?;
    let line = text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().to_owned())
    });
    Ok(line.context("an answer without a length")?.parse()?)
}

/// How it went.
pub struct Measured {
    /// How long each request took, shortest first.
    pub times: Vec<Duration>,
    /// How long all of them took.
    pub total: Duration,
    /// The bodies, if they were to be kept; in no order.
    pub bodies: Vec<Vec<u8>>,
}

impl Measured {
    /// Requests in a second.
    pub fn rate(&self) -> f64 {
        self.times.len() as f64 / self.total.as_secs_f64()
    }
}

/// Sends the requests over so many connections, each taking the next; all must succeed.
pub async fn run(address: &str, requests: Vec<Vec<u8>>, connections: usize, keep: bool) -> anyhow::Result<Measured> {
    let mut opened = Vec::new();
    for _ in 0..connections {
        opened.push(Connection::open(address).await?);
    }
    let requests = std::sync::Arc::new(requests);
    let begin = Instant::now();
    let tasks: Vec<_> = opened
        .into_iter()
        .enumerate()
        .map(|(first, mut connection)| {
            let requests = std::sync::Arc::clone(&requests);
            tokio::spawn(async move {
                let (mut times, mut bodies) = (Vec::new(), Vec::new());
                for request in requests.iter().skip(first).step_by(connections) {
                    let asked = Instant::now();
                    let (status, body) = connection.ask(request).await?;
                    times.push(asked.elapsed());
                    if status != 200 {
                        bail!("HTTP {status}: {}", String::from_utf8_lossy(body));
                    }
                    if keep {
                        bodies.push(body.to_owned());
                    }
                }
                Ok((times, bodies))
            })
        })
        .collect();
    let mut measured = Measured { times: Vec::new(), total: Duration::ZERO, bodies: Vec::new() };
    for task in tasks {
        let (times, bodies) = task.await??;
        measured.times.extend(times);
        measured.bodies.extend(bodies);
    }
    measured.total = begin.elapsed();
    measured.times.sort_unstable();
    Ok(measured)
}
