//! A client of QEMU's machine protocol: one JSON object per line.
//!
//! One task owns the socket and the table of commands that wait for their reply; handles send to it. QEMU is
//! what a guest that broke out would control, so a line has a limit, and so have the table and every wait.

use std::collections::HashMap;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};

/// The longest line accepted.
const MAX_LINE: usize = 1024 * 1024;
/// The most commands that may wait for a reply.
const MAX_PENDING: usize = 32;
/// How long an ordinary command may take.
pub(crate) const COMMAND_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection; the last handle dropped closes it.
#[derive(Debug, Clone)]
pub(crate) struct Qmp {
    requests: mpsc::Sender<Request>,
}

#[derive(Debug)]
struct Request {
    command: &'static str,
    arguments: Option<Value>,
    reply: oneshot::Sender<Result<Value, Refusal>>,
}

/// QEMU's own error reply.
#[derive(Debug, Deserialize)]
struct Refusal {
    class: String,
    desc: String,
}

/// A line from QEMU: greeting, reply or event.
#[derive(Debug, Deserialize)]
struct Message {
    id: Option<u64>,
    #[serde(rename = "return")]
    result: Option<Value>,
    error: Option<Refusal>,
    event: Option<String>,
    data: Option<Value>,
}

impl Qmp {
    /// Takes the connection into command mode. The greeting need not have come yet: QEMU reads the command
    /// when it is ready, so that its reply also says that the machine exists.
    pub(crate) async fn connect(stream: UnixStream, timeout: Duration) -> Result<Self, QmpError> {
        let (requests, incoming) = mpsc::channel(MAX_PENDING);
        tokio::spawn(serve(stream, incoming));
        let qmp = Self { requests };
        qmp.execute_within("qmp_capabilities", None, timeout).await?;
        Ok(qmp)
    }

    /// Runs a command and waits for its reply.
    pub(crate) async fn execute(&self, command: &'static str, arguments: Option<Value>) -> Result<Value, QmpError> {
        self.execute_within(command, arguments, COMMAND_TIMEOUT).await
    }

    pub(crate) async fn execute_within(
        &self,
        command: &'static str,
        arguments: Option<Value>,
        timeout: Duration,
    ) -> Result<Value, QmpError> {
        let exchange = async {
            let (reply, answer) = oneshot::channel();
            let request = Request { command, arguments, reply };
            self.requests.send(request).await.ok()?;
            answer.await.ok()
        };
        match tokio::time::timeout(timeout, exchange).await {
            Err(_) => Err(QmpError::Timeout { command, after: timeout }),
            Ok(None) => Err(QmpError::Disconnected { command }),
            Ok(Some(Ok(value))) => Ok(value),
            Ok(Some(Err(refusal))) => Err(QmpError::Refused { command, class: refusal.class, message: refusal.desc }),
        }
    }
}

/// Runs until QEMU or the last handle goes; whoever still waits then learns it by the drop of its channel.
async fn serve(mut stream: UnixStream, mut requests: mpsc::Receiver<Request>) {
    let mut pending: HashMap<u64, oneshot::Sender<Result<Value, Refusal>>> = HashMap::new();
    let mut next_id = 0;
    let mut buffer = Vec::with_capacity(8 * 1024);
    let mut scanned = 0;
    loop {
        while let Some(end) = buffer[scanned..].iter().position(|&b| b == b'\n') {
            let line: Vec<u8> = buffer.drain(..=scanned + end).collect();
            scanned = 0;
            match serde_json::from_slice(&line) {
                Ok(message) => route(message, &mut pending),
                Err(error) => {
                    tracing::warn!(%error, "QEMU sent a line that is not of its protocol, connection closed");
                    return;
                }
            }
        }
        scanned = buffer.len();
        if scanned > MAX_LINE {
            tracing::warn!("QEMU sent an endless line, connection closed");
            return;
        }
        tokio::select! {
            read = stream.read_buf(&mut buffer) => match read {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            },
            request = requests.recv() => {
                let Some(Request { command, arguments, reply }) = request else { return };
                pending.retain(|_, waiting| !waiting.is_closed());
                if pending.len() >= MAX_PENDING {
                    tracing::warn!(command, "too many commands wait for QEMU, connection closed");
                    return;
                }
                let mut line = json!({ "execute": command, "id": next_id });
                if let Some(arguments) = arguments {
                    line["arguments"] = arguments;
                }
                let mut line = line.to_string();
                line.push('\n');
                pending.insert(next_id, reply);
                next_id += 1;
                if stream.write_all(line.as_bytes()).await.is_err() {
                    return;
                }
            }
        }
    }
}

fn route(message: Message, pending: &mut HashMap<u64, oneshot::Sender<Result<Value, Refusal>>>) {
    if let Some(event) = message.event {
        // A disk error pauses the guest; nothing else here needs an operator.
        if event == "BLOCK_IO_ERROR" {
            tracing::warn!(data = ?message.data, "a disk of the VM failed");
        } else {
            tracing::debug!(event, "QEMU event");
        }
        return;
    }
    let Some(reply) = message.id.and_then(|id| pending.remove(&id)) else {
        return;
    };
    // A receiver that is gone gave up waiting.
    let _ = match message.error {
        Some(refusal) => reply.send(Err(refusal)),
        None => reply.send(Ok(message.result.unwrap_or(Value::Null))),
    };
}

/// Why a command to QEMU had no good answer.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// QEMU refused or failed the command.
    #[error("QEMU refused {command}: {message} ({class})")]
    Refused {
        /// The command.
        command: &'static str,
        /// QEMU's class of the error.
        class: String,
        /// QEMU's words.
        message: String,
    },
    /// The connection closed before the reply: QEMU exited, or broke the protocol.
    #[error("the connection to QEMU closed before it answered {command}")]
    Disconnected {
        /// The command.
        command: &'static str,
    },
    /// No reply came in time.
    #[error("QEMU did not answer {command} within {after:?}")]
    Timeout {
        /// The command.
        command: &'static str,
        /// How long was waited.
        after: Duration,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(200);

    async fn connected() -> (Qmp, UnixStream) {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let answer = async {
            let mut buffer = vec![0; 4096];
            let n = theirs.read(&mut buffer).await.unwrap();
            assert!(String::from_utf8_lossy(&buffer[..n]).contains("qmp_capabilities"));
            theirs.write_all(b"{\"QMP\": {}}\r\n{\"return\": {}, \"id\": 0}\r\n").await.unwrap();
        };
        let (qmp, ()) = tokio::join!(Qmp::connect(ours, SHORT), answer);
        (qmp.unwrap(), theirs)
    }

    #[tokio::test]
    async fn replies_find_their_command_among_events_and_each_other() {
        let (qmp, mut theirs) = connected().await;
        let first = qmp.execute("first", None);
        let second = qmp.execute("second", None);
        let server = async {
            let mut seen = String::new();
            while seen.lines().count() < 2 {
                let mut buffer = vec![0; 4096];
                let n = theirs.read(&mut buffer).await.unwrap();
                seen.push_str(&String::from_utf8_lossy(&buffer[..n]));
            }
            theirs
                .write_all(
                    b"{\"return\": 2, \"id\": 2}\n{\"event\": \"STOP\"}\n{\"error\": {\"class\": \"C\", \"desc\": \"no\"}, \"id\": 1}\n",
                )
                .await
                .unwrap();
        };
        let (first, second, ()) = tokio::join!(first, second, server);
        assert!(matches!(first, Err(QmpError::Refused { message, .. }) if message == "no"));
        assert_eq!(second.unwrap(), json!(2));
    }

    #[tokio::test]
    async fn an_endless_line_closes_the_connection() {
        let (qmp, mut theirs) = connected().await;
        let flood = async {
            let chunk = vec![b'a'; 64 * 1024];
            while theirs.write_all(&chunk).await.is_ok() {}
        };
        let (answer, ()) = tokio::join!(qmp.execute("x", None), flood);
        assert!(matches!(answer, Err(QmpError::Disconnected { .. })));
    }

    #[tokio::test]
    async fn silence_is_a_timeout_and_garbage_a_disconnect() {
        let (qmp, mut theirs) = connected().await;
        assert!(matches!(qmp.execute_within("x", None, SHORT).await, Err(QmpError::Timeout { .. })));
        theirs.write_all(b"garbage\n").await.unwrap();
        assert!(matches!(qmp.execute("x", None).await, Err(QmpError::Disconnected { .. })));
    }
}
