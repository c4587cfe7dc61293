//! A client of Firecracker's API: HTTP over a socket it makes itself, in its jail.
//!
//! A connection a request: Firecracker takes ten at most and answers one at a time. It is what a guest that broke out
//! would control, so an answer has a limit, and every wait.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::net::UnixStream;

use crate::words::cleaned;

/// The most bytes of an answer; the largest, a machine's whole configuration, has some kilobytes.
const MAX_ANSWER: usize = 64 * 1024;
/// How long an ordinary request may take: a few milliseconds on an idle machine.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a snapshot or its load may take.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(60);

/// Firecracker's API.
#[derive(Debug, Clone)]
pub(crate) struct Api {
    socket: PathBuf,
}

/// Where guest memory comes from at a load.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) enum Backend {
    /// A file, mapped copy-on-write.
    File,
    /// A pager.
    Uffd,
}

impl Api {
    /// Of the process whose root directory `/proc/<pid>/root` is.
    pub(crate) fn of(pid: u32, socket: &str) -> Self {
        // Through its own root: the socket is in a file system only its mount namespace has.
        Self { socket: Path::new(&format!("/proc/{pid}/root")).join(socket.trim_start_matches('/')) }
    }

    /// Whether it listens by now: the socket is there a moment before that.
    pub(crate) async fn answers(&self) -> bool {
        UnixStream::connect(&self.socket).await.is_ok()
    }

    pub(crate) async fn put(&self, path: &'static str, body: &Value) -> Result<(), ApiError> {
        self.request(Method::PUT, path, Some(body), REQUEST_TIMEOUT).await.map(drop)
    }

    pub(crate) async fn put_to(&self, kind: &'static str, id: &str, body: &Value) -> Result<(), ApiError> {
        self.send(Method::PUT, kind, &format!("{kind}/{id}"), Some(body), REQUEST_TIMEOUT).await.map(drop)
    }

    pub(crate) async fn patch(&self, path: &'static str, body: &Value) -> Result<(), ApiError> {
        self.request(Method::PATCH, path, Some(body), REQUEST_TIMEOUT).await.map(drop)
    }

    /// `Not started`, `Running` or `Paused`.
    pub(crate) async fn state(&self) -> Result<String, ApiError> {
        #[derive(Deserialize)]
        struct Instance {
            state: String,
        }
        let answer = self.request(Method::GET, "/", None, REQUEST_TIMEOUT).await?;
        let instance: Instance =
            serde_json::from_slice(&answer).map_err(|source| ApiError::Answer { path: "/", source })?;
        Ok(instance.state)
    }

    /// Writes what changed since the start, the load, or the last time, into the memory file, where older changes stay.
    pub(crate) async fn create_snapshot(&self, state: &str, memory: &str) -> Result<(), ApiError> {
        let body = json!({ "snapshot_type": "Diff", "snapshot_path": state, "mem_file_path": memory });
        self.request(Method::PUT, "/snapshot/create", Some(&body), SNAPSHOT_TIMEOUT).await.map(drop)
    }

    /// Loads a snapshot, and leaves it paused. That the pages written are to be known is not part of a snapshot.
    pub(crate) async fn load_snapshot(
        &self,
        state: &str,
        backend: Backend,
        path: &str,
        overrides: &[Value],
    ) -> Result<(), ApiError> {
        let body = json!({
            "snapshot_path": state,
            "mem_backend": { "backend_type": backend, "backend_path": path },
            "track_dirty_pages": true,
            "resume_vm": false,
            "network_overrides": overrides,
        });
        self.request(Method::PUT, "/snapshot/load", Some(&body), SNAPSHOT_TIMEOUT).await.map(drop)
    }

    async fn request(
        &self,
        method: Method,
        path: &'static str,
        body: Option<&Value>,
        timeout: Duration,
    ) -> Result<Bytes, ApiError> {
        self.send(method, path, path, body, timeout).await
    }

    async fn send(
        &self,
        method: Method,
        path: &'static str,
        uri: &str,
        body: Option<&Value>,
        timeout: Duration,
    ) -> Result<Bytes, ApiError> {
        let exchange = async {
            let stream = UnixStream::connect(&self.socket).await.map_err(|source| ApiError::Connect { source })?;
            let wrap = |source| ApiError::Exchange { path, source };
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(wrap)?;
            tokio::spawn(connection);
            let body = body.map(Value::to_string).unwrap_or_default();
            let request = Request::builder()
                .method(method)
                .uri(uri)
                .header("Host", "localhost")
                .header("Accept", "application/json")
                .header("Content-Type", "application/json")
                .body(Full::new(Bytes::from(body)))
                .expect("a request of constants");
            let answer = sender.send_request(request).await.map_err(wrap)?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
            let body = body.map_err(|source| ApiError::Body { path, source })?.to_bytes();
            judge(path, status, body)
        };
        match tokio::time::timeout(timeout, exchange).await {
            Ok(result) => result,
            Err(_) => Err(ApiError::Timeout { path, after: timeout }),
        }
    }
}

/// What an answer means. Pure; what Firecracker sends is as hostile as its guest.
pub(crate) fn judge(path: &'static str, status: StatusCode, body: Bytes) -> Result<Bytes, ApiError> {
    #[derive(Deserialize)]
    struct Fault {
        fault_message: String,
    }
    if status.is_success() {
        return Ok(body);
    }
    let message = match serde_json::from_slice::<Fault>(&body) {
        Ok(fault) => fault.fault_message,
        Err(_) => String::from_utf8_lossy(&body).into_owned(),
    };
    Err(ApiError::Refused { path, status: status.as_u16(), message: cleaned(&message) })
}

/// Why a request to Firecracker had no good answer.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// Nobody listens.
    #[error("cannot connect to Firecracker")]
    Connect {
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The request could not be sent, or its answer is no HTTP.
    #[error("no answer from Firecracker to {path}")]
    Exchange {
        /// The path asked for.
        path: &'static str,
        /// What happened.
        #[source]
        source: hyper::Error,
    },
    /// The answer's body is too long or was cut off.
    #[error("Firecracker's answer to {path} cannot be read")]
    Body {
        /// The path asked for.
        path: &'static str,
        /// What happened.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The answer's body is not what it should be.
    #[error("Firecracker's answer to {path} is not understood")]
    Answer {
        /// The path asked for.
        path: &'static str,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// Firecracker's own error.
    #[error("Firecracker refused {path}: {message} (HTTP {status})")]
    Refused {
        /// The path asked for.
        path: &'static str,
        /// The HTTP status.
        status: u16,
        /// Its words.
        message: String,
    },
    /// No answer came in time.
    #[error("Firecracker did not answer {path} within {after:?}")]
    Timeout {
        /// The path asked for.
        path: &'static str,
        /// How long was waited.
        after: Duration,
    },
}

impl ApiError {
    /// May it be that the process ended, and so did not answer?
    pub(crate) fn is_of_the_dead(&self) -> bool {
        matches!(self, Self::Connect { .. } | Self::Exchange { .. } | Self::Body { .. })
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;

    use super::*;

    /// An API that answers every request with these bytes.
    async fn answering(answer: &'static [u8]) -> (tempfile::TempDir, Api) {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("api.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.read(&mut [0; 4096]).await;
                let _ = stream.write_all(answer).await;
            }
        });
        (dir, Api { socket })
    }

    #[tokio::test]
    async fn its_own_words_are_told() {
        let (_dir, api) =
            answering(b"HTTP/1.1 400 \r\nContent-Length: 27\r\n\r\n{\"fault_message\":\"no\\nway\"} ").await;
        let error = api.put("/actions", &json!({})).await.unwrap_err();
        assert_eq!(error.to_string(), "Firecracker refused /actions: noway (HTTP 400)");
    }

    #[tokio::test]
    async fn what_is_no_answer_is_an_error() {
        let (_dir, api) = answering(b"garbage\r\n\r\n").await;
        assert!(matches!(api.state().await, Err(ApiError::Exchange { .. })));
        let (_dir, api) = answering(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]").await;
        assert!(matches!(api.state().await, Err(ApiError::Answer { .. })));
        let (_dir, api) = answering(b"HTTP/1.1 200 OK\r\nContent-Length: 9999999\r\n\r\n").await;
        assert!(matches!(api.state().await, Err(ApiError::Body { .. })));
        let gone = Api { socket: "/nonexistent/api.sock".into() };
        assert!(gone.state().await.unwrap_err().is_of_the_dead());
        assert!(!gone.answers().await);
    }
}
