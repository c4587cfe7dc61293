//! A shell's session over WebSocket, as the real service frames it: text `session_init` first; then binary messages, which
//! are a terminal's bytes both ways; a client's text is a new size, or typed; at the end close 1000 `shell exited`.
//!
//! Nothing is collected: a message is handed on before the next is read, so who does not read makes the other side wait.

use std::time::Duration;

use api::{
    ids::MicrovmId,
    shell::{FromShell, PIECE_BYTES_MAX, Shell, Showing, ToShell, Typing},
};
use futures_util::{
    Sink, SinkExt, Stream, StreamExt,
    stream::{SplitSink, SplitStream},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::timeout,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Error, Message,
        error::{CapacityError, ProtocolError},
        protocol::{CloseFrame, Role, WebSocketConfig, frame::coding::CloseCode},
    },
};
use uuid::Uuid;

use super::message::{self, Text};

/// How long a client may take to take note of the end.
const CLOSE_WITHIN: Duration = Duration::from_secs(5);

/// Bytes read from the client at once.
const READ_BYTES: usize = 8 * 1024;

/// Why a session is over.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// The shell ended.
    Exited(i32),
    /// The client went away, or closed.
    Left,
    /// The client sent what is no WebSocket.
    Broken,
    /// The client sent more at once than there is room for.
    TooLong,
    /// The connection into the VM ended, with the VM most likely.
    Gone,
}

impl End {
    /// What the client is told.
    fn close(&self) -> Option<CloseFrame> {
        let (code, reason) = match self {
            Self::Exited(_) => (CloseCode::Normal, "shell exited"),
            Self::Gone => (CloseCode::Away, "the microVM was suspended or has ended"),
            Self::TooLong => (CloseCode::Size, "message too long"),
            Self::Broken => (CloseCode::Protocol, ""),
            Self::Left => return None,
        };
        Some(CloseFrame { code, reason: reason.into() })
    }
}

/// Carries a session until it is over on either side.
pub(super) async fn run(
    io: impl AsyncRead + AsyncWrite + Send + Unpin,
    shell: Shell,
    microvm: MicrovmId,
    tells_exit: bool,
    message_bytes_max: usize,
) {
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BYTES)
        .write_buffer_size(0)
        .max_write_buffer_size(2 * PIECE_BYTES_MAX)
        .max_message_size(Some(message_bytes_max))
        .max_frame_size(Some(message_bytes_max));
    let socket = WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await;
    let (mut to_client, mut from_client) = socket.split();
    let session = Uuid::new_v4();
    tracing::info!(%microvm, %session, "shell opened");
    let Shell { mut typing, mut showing } = shell;
    let end = if to_client.send(Message::text(message::session_init(&session))).await.is_ok() {
        tokio::select! {
            end = show(&mut *showing, &mut to_client) => end,
            end = hear(&mut from_client, &mut *typing) => end,
        }
    } else {
        End::Left
    };
    tracing::info!(%microvm, %session, ?end, "shell closed");
    // Now, and not once the client has taken note.
    drop((typing, showing));
    if let End::Exited(code) = end
        && tells_exit
    {
        let _ = to_client.send(Message::text(message::exit(code))).await;
    }
    let _ = timeout(CLOSE_WITHIN, part(to_client, from_client, end.close())).await;
}

/// Shows the client what there is to show.
async fn show(showing: &mut dyn Showing, to_client: &mut (impl Sink<Message, Error = Error> + Unpin)) -> End {
    loop {
        match showing.next().await {
            Ok(FromShell::Bytes(bytes)) => {
                if to_client.send(Message::binary(bytes)).await.is_err() {
                    return End::Left;
                }
            }
            Ok(FromShell::Ended { code }) => return End::Exited(code),
            Err(_) => return End::Gone,
        }
    }
}

/// Does what the client says.
async fn hear(from_client: &mut (impl Stream<Item = Result<Message, Error>> + Unpin), typing: &mut dyn Typing) -> End {
    loop {
        let typed = match from_client.next().await {
            Some(Ok(Message::Binary(bytes))) => bytes,
            Some(Ok(Message::Text(text))) => match message::read(&text) {
                Text::Resize { cols, rows } => {
                    if typing.send(ToShell::Resize { cols, rows }).await.is_err() {
                        return End::Gone;
                    }
                    continue;
                }
                Text::Typed => text.into(),
            },
            // A ping is answered beneath.
            Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => continue,
            Some(Err(Error::Capacity(CapacityError::MessageTooLong { .. }))) => return End::TooLong,
            Some(Err(Error::Protocol(ProtocolError::ResetWithoutClosingHandshake))) => return End::Left,
            Some(Err(Error::Protocol(_) | Error::Utf8(_) | Error::Capacity(_))) => return End::Broken,
            Some(Ok(Message::Close(_)) | Err(_)) | None => return End::Left,
        };
        for piece in typed.chunks(PIECE_BYTES_MAX) {
            if typing.send(ToShell::Bytes(piece.to_vec())).await.is_err() {
                return End::Gone;
            }
        }
    }
}

/// Says goodbye, and waits for the client's; what it still sends is for nobody.
async fn part<S: AsyncRead + AsyncWrite + Unpin>(
    mut to_client: SplitSink<WebSocketStream<S>, Message>,
    mut from_client: SplitStream<WebSocketStream<S>>,
    close: Option<CloseFrame>,
) {
    if close.is_some() {
        let _ = to_client.send(Message::Close(close)).await;
    }
    while let Some(Ok(_)) = from_client.next().await {}
    let _ = to_client.close().await;
}
