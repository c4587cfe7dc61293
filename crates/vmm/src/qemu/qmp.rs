//! A client of QEMU's machine protocol: one JSON object per line.
//!
//! One task owns the socket and the table of commands that wait for their reply; handles send to it. QEMU is
//! what a guest that broke out would control, so a line has a limit, and so have the table and every wait.
//!
//! What is sent and received has the types of the crate `qapi-spec`. Its companion `qapi` would bring a connection too,
//! but one that sends no descriptors, reads lines without a limit, and panics at the command after one that timed out.

use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use qapi_spec::{Any, Command, Error as Refusal, Execute, Response};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde::de::DeserializeOwned;
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::{mpsc, oneshot};
use tokio_util::codec::{FramedRead, LinesCodec};

use super::commands::Capabilities;
use crate::words::cleaned;

/// The longest line accepted, in bytes: the greeting and the answers to our commands have a few thousand, and parsed a line
/// may take a hundred times its size.
const MAX_LINE: usize = 64 * 1024;
/// The most commands that may wait for a reply.
const MAX_PENDING: usize = 32;
/// How long an ordinary command may take.
pub(crate) const COMMAND_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection; the last handle dropped closes it.
#[derive(Debug, Clone)]
pub(crate) struct Qmp {
    requests: mpsc::Sender<Request>,
    next_id: Arc<AtomicU64>,
}

#[derive(Debug)]
struct Request {
    id: u64,
    line: Vec<u8>,
    /// A descriptor that goes with it.
    with: Option<OwnedFd>,
    reply: oneshot::Sender<Result<Any, Refusal>>,
}

type Pending = HashMap<u64, oneshot::Sender<Result<Any, Refusal>>>;

impl Qmp {
    /// Takes the connection into command mode. The greeting need not have come yet: QEMU reads the command
    /// when it is ready, so that its reply also says that the machine exists.
    pub(crate) async fn connect(stream: UnixStream, timeout: Duration) -> Result<Self, QmpError> {
        let (requests, incoming) = mpsc::channel(MAX_PENDING);
        tokio::spawn(serve(stream, incoming));
        let qmp = Self { requests, next_id: Arc::default() };
        qmp.execute_within(Capabilities {}, timeout).await?;
        Ok(qmp)
    }

    /// Runs a command and waits for its reply.
    pub(crate) async fn execute<C: Command>(&self, command: C) -> Result<C::Ok, QmpError> {
        self.execute_within(command, COMMAND_TIMEOUT).await
    }

    pub(crate) async fn execute_within<C: Command>(&self, command: C, timeout: Duration) -> Result<C::Ok, QmpError> {
        self.exchange(command, None, timeout).await
    }

    /// Runs a command that a descriptor goes with.
    pub(crate) async fn execute_with_fd<C: Command>(&self, command: C, fd: OwnedFd) -> Result<C::Ok, QmpError> {
        self.exchange(command, Some(fd), COMMAND_TIMEOUT).await
    }

    async fn exchange<C: Command>(
        &self,
        command: C,
        with: Option<OwnedFd>,
        timeout: Duration,
    ) -> Result<C::Ok, QmpError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let mut line = serde_json::to_vec(&Execute::with_id(command, id)).expect("a command is plain data");
        line.push(b'\n');
        let command = C::NAME;
        let exchange = async {
            let (reply, answer) = oneshot::channel();
            self.requests.send(Request { id, line, with, reply }).await.ok()?;
            answer.await.ok()
        };
        match tokio::time::timeout(timeout, exchange).await {
            Err(_) => Err(QmpError::Timeout { command, after: timeout }),
            Ok(None) => Err(QmpError::Disconnected { command }),
            Ok(Some(Ok(value))) => understood(command, value),
            Ok(Some(Err(refusal))) => {
                let (class, message) = (format!("{:?}", refusal.class), cleaned(&refusal.desc));
                Err(QmpError::Refused { command, class, message })
            }
        }
    }
}

fn understood<T: DeserializeOwned>(command: &'static str, value: Any) -> Result<T, QmpError> {
    serde_json::from_value(value).map_err(|source| QmpError::Answer { command, source })
}

/// Runs until QEMU or the last handle goes; whoever still waits then learns it by the drop of its channel.
async fn serve(stream: UnixStream, mut requests: mpsc::Receiver<Request>) {
    let (read, mut write) = stream.into_split();
    let mut lines = FramedRead::new(read, LinesCodec::new_with_max_length(MAX_LINE));
    let (mut pending, mut told) = (Pending::new(), false);
    loop {
        tokio::select! {
            line = lines.next() => {
                let routed = match line {
                    None => return,
                    Some(Err(error)) => Err(error.to_string()),
                    Some(Ok(line)) => parse(line.as_bytes()).map_err(|error| error.to_string()),
                };
                match routed {
                    Ok(message) => route(message, &mut pending, &mut told),
                    Err(error) => {
                        tracing::warn!(error, "QEMU sent what is not of its protocol, connection closed");
                        return;
                    }
                }
            }
            request = requests.recv() => {
                let Some(Request { id, line, with, reply }) = request else { return };
                pending.retain(|_, waiting| !waiting.is_closed());
                if pending.len() >= MAX_PENDING {
                    tracing::warn!("too many commands wait for QEMU, connection closed");
                    return;
                }
                pending.insert(id, reply);
                if send(&mut write, &line, with).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// Writes a line, and a descriptor with its first byte.
async fn send(write: &mut OwnedWriteHalf, line: &[u8], with: Option<OwnedFd>) -> io::Result<()> {
    let Some(fd) = with else { return write.write_all(line).await };
    let stream = write.as_ref();
    let sent = stream
        .async_io(Interest::WRITABLE, || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            let fds = [fd.as_fd()];
            ancillary.push(SendAncillaryMessage::ScmRights(&fds));
            Ok(sendmsg(stream, &[IoSlice::new(line)], &mut ancillary, SendFlags::NOSIGNAL)?)
        })
        .await?;
    write.write_all(&line[sent..]).await
}

/// A line from QEMU.
#[derive(Debug)]
pub(crate) enum Message {
    /// The greeting, or something else that no command waits for.
    Other,
    /// Something happened.
    Event { name: String, data: Any },
    /// The reply to the command of this number.
    Reply { id: u64, result: Result<Any, Refusal> },
}

/// Reads a line. Pure; what QEMU sends is as hostile as its guest.
pub(crate) fn parse(line: &[u8]) -> Result<Message, serde_json::Error> {
    let mut object: qapi_spec::Dictionary = serde_json::from_slice(line)?;
    if let Some(name) = object.get("event").and_then(Any::as_str) {
        let name = name.to_owned();
        return Ok(Message::Event { name, data: object.remove("data").unwrap_or_default() });
    }
    if object.contains_key("QMP") {
        return Ok(Message::Other);
    }
    let response: Response<Any> = serde_json::from_value(Any::Object(object))?;
    match response.id().and_then(Any::as_u64) {
        Some(id) => Ok(Message::Reply { id, result: response.result() }),
        None => Ok(Message::Other),
    }
}

fn route(message: Message, pending: &mut Pending, told: &mut bool) {
    match message {
        Message::Other => {}
        // A disk error pauses the guest; nothing else here needs an operator.
        Message::Event { name, data } if name == "BLOCK_IO_ERROR" => {
            // A guest can bring it about as often as it likes; what is to be done about it, whoever watches the VM does.
            if !*told {
                tracing::warn!(data = cleaned(&data.to_string()), "a disk of the VM failed; not told again");
            }
            *told = true;
        }
        Message::Event { name, .. } => tracing::debug!(name = cleaned(&name), "QEMU event"),
        Message::Reply { id, result } => {
            if let Some(reply) = pending.remove(&id) {
                // A receiver that is gone gave up waiting.
                let _ = reply.send(result);
            }
        }
    }
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
    /// QEMU's reply is not of the form its schema says.
    #[error("QEMU's answer to {command} is not understood")]
    Answer {
        /// The command.
        command: &'static str,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
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
    use serde_json::json;
    use tokio::io::AsyncReadExt;

    use super::super::commands::{AddFd, Cont, QueryStatus, Stop};
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
        let first = qmp.execute(Stop {});
        let second = qmp.execute(QueryStatus {});
        let server = async {
            let mut seen = String::new();
            while seen.lines().count() < 2 {
                let mut buffer = vec![0; 4096];
                let n = theirs.read(&mut buffer).await.unwrap();
                seen.push_str(&String::from_utf8_lossy(&buffer[..n]));
            }
            theirs
                .write_all(
                    b"{\"return\": {\"status\": \"paused\"}, \"id\": 2}\n{\"event\": \"STOP\"}\n\
                      {\"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}, \"id\": 1}\n",
                )
                .await
                .unwrap();
        };
        let (first, second, ()) = tokio::join!(first, second, server);
        assert!(matches!(first, Err(QmpError::Refused { message, .. }) if message == "no"));
        assert_eq!(second.unwrap().status, "paused");
    }

    #[tokio::test]
    async fn an_endless_line_closes_the_connection() {
        let (qmp, mut theirs) = connected().await;
        let flood = async {
            let chunk = vec![b'a'; 64 * 1024];
            while theirs.write_all(&chunk).await.is_ok() {}
        };
        let (answer, ()) = tokio::join!(qmp.execute(Cont {}), flood);
        assert!(matches!(answer, Err(QmpError::Disconnected { .. })));
    }

    #[tokio::test]
    async fn silence_is_a_timeout_and_garbage_a_disconnect() {
        let (qmp, mut theirs) = connected().await;
        assert!(matches!(qmp.execute_within(Cont {}, SHORT).await, Err(QmpError::Timeout { .. })));
        // A command given up does not stand in the way of the next.
        let (answer, ()) = tokio::join!(qmp.execute(Stop {}), async {
            theirs.write_all(b"{\"return\": {}, \"id\": 1}\n{\"return\": {}, \"id\": 2}\n").await.unwrap();
        });
        answer.unwrap();
        theirs.write_all(b"garbage\n").await.unwrap();
        assert!(matches!(qmp.execute(Cont {}).await, Err(QmpError::Disconnected { .. })));
    }

    #[tokio::test]
    async fn a_descriptor_goes_with_its_command() {
        use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

        let (qmp, theirs) = connected().await;
        let theirs = theirs.into_std().unwrap();
        theirs.set_nonblocking(false).unwrap();
        let (reader, writer) = io::pipe().unwrap();
        let server = tokio::task::spawn_blocking(move || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let mut line = [0; 4096];
            let mut iov = [io::IoSliceMut::new(&mut line)];
            recvmsg(&theirs, &mut iov, &mut ancillary, RecvFlags::CMSG_CLOEXEC).unwrap();
            let fds: Vec<OwnedFd> = ancillary
                .drain()
                .flat_map(|message| match message {
                    RecvAncillaryMessage::ScmRights(fds) => fds.collect(),
                    _ => vec![],
                })
                .collect();
            assert_eq!(fds.len(), 1);
            rustix::io::write(&fds[0], b"x").unwrap();
            io::Write::write_all(&mut &theirs, b"{\"return\": {\"fdset-id\": 7, \"fd\": 9}, \"id\": 1}\n").unwrap();
            theirs
        });
        assert_eq!(qmp.execute_with_fd(AddFd {}, writer.into()).await.unwrap().set, 7);
        server.await.unwrap();
        let mut text = String::new();
        io::Read::read_to_string(&mut &reader, &mut text).unwrap();
        assert_eq!(text, "x", "the only writer was the other side");
    }

    #[test]
    fn lines_of_every_kind_are_read() {
        assert!(matches!(parse(b"{\"QMP\": {\"version\": {}}}"), Ok(Message::Other)));
        assert!(matches!(parse(b"{\"event\": \"NEW_ONE\", \"data\": {\"x\": 1}}"), Ok(Message::Event { name, data })
            if name == "NEW_ONE" && data == json!({"x": 1})));
        assert!(matches!(parse(b"{\"return\": [], \"id\": 5}"), Ok(Message::Reply { id: 5, result: Ok(_) })));
        for nonsense in [&b"[1]"[..], b"1", b"\xff", b"{\"id\": 1, \"error\": 5, \"return\"", b""] {
            assert!(parse(nonsense).is_err(), "{nonsense:?}");
        }
    }
}
