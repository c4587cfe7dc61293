//! What goes over a connection that was opened for a shell, both ways: bytes of its terminal, mostly, and between them what
//! a terminal is told and tells. It is not JSON, as most of it are the bytes of keys and screens.
//!
//! A frame is one byte that says its kind, a big-endian `u16` length, and that many bytes:
//!
//! | Kind | From | Bytes |
//! |---|---|---|
//! | 0 | both | of the terminal, 1 to [`SHELL_BYTES_MAX`] |
//! | 1 | host | columns and rows, each a big-endian `u16` |
//! | 2 | agent | how the shell ended, a big-endian `i32`; the last frame |

use crate::frame::{FrameError, read_header};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Bytes of a terminal in one frame. The kernel has no more than this of a terminal's bytes at a time either.
pub const SHELL_BYTES_MAX: usize = 4096;

const HEADER_BYTES: usize = 3;
const BYTES: u8 = 0;
const RESIZE: u8 = 1;
const ENDED: u8 = 2;

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ShellFrame {
    /// What was typed, or what there is to show.
    Bytes(Vec<u8>),
    /// The terminal's new size.
    Resize {
        /// Columns.
        cols: u16,
        /// Rows.
        rows: u16,
    },
    /// The shell ended. Nothing comes after it.
    Ended {
        /// Exit code, or 128 + the signal's number.
        code: i32,
    },
}

/// Reads one frame. [`FrameError::Closed`] is the end between two of them.
pub async fn read_shell_frame(reader: &mut (impl AsyncRead + Unpin)) -> Result<ShellFrame, FrameError> {
    let [kind, length @ ..] = read_header::<HEADER_BYTES>(reader).await?;
    let bytes = usize::from(u16::from_be_bytes(length));
    match (kind, bytes) {
        (BYTES, 1..=SHELL_BYTES_MAX) => {
            let mut body = vec![0u8; bytes];
            reader.read_exact(&mut body).await.map_err(FrameError::Io)?;
            Ok(ShellFrame::Bytes(body))
        }
        (RESIZE, 4) => {
            let (cols, rows) = halves(four(reader).await?);
            Ok(ShellFrame::Resize { cols, rows })
        }
        (ENDED, 4) => Ok(ShellFrame::Ended { code: i32::from_be_bytes(four(reader).await?) }),
        (BYTES | RESIZE | ENDED, bytes) => Err(FrameError::ShellLength { kind, bytes }),
        (kind, _) => Err(FrameError::ShellKind { kind }),
    }
}

/// Writes one frame in a single write and flushes it. Bytes of a terminal must be as many as a frame may have.
pub async fn write_shell_frame(writer: &mut (impl AsyncWrite + Unpin), frame: &ShellFrame) -> Result<(), FrameError> {
    let (kind, body) = match frame {
        ShellFrame::Bytes(bytes) => (BYTES, bytes.as_slice()),
        ShellFrame::Resize { cols, rows } => {
            let ([a, b], [c, d]) = (cols.to_be_bytes(), rows.to_be_bytes());
            (RESIZE, &[a, b, c, d][..])
        }
        ShellFrame::Ended { code } => (ENDED, &code.to_be_bytes()[..]),
    };
    let bytes = body.len();
    let length = u16::try_from(bytes).ok().filter(|_| (1..=SHELL_BYTES_MAX).contains(&bytes));
    let length = length.ok_or(FrameError::ShellLength { kind, bytes })?;
    let mut buffer = Vec::with_capacity(HEADER_BYTES + bytes);
    buffer.push(kind);
    buffer.extend(length.to_be_bytes());
    buffer.extend(body);
    writer.write_all(&buffer).await.map_err(FrameError::Io)?;
    writer.flush().await.map_err(FrameError::Io)
}

async fn four(reader: &mut (impl AsyncRead + Unpin)) -> Result<[u8; 4], FrameError> {
    let mut body = [0u8; 4];
    reader.read_exact(&mut body).await.map_err(FrameError::Io)?;
    Ok(body)
}

fn halves([a, b, c, d]: [u8; 4]) -> (u16, u16) {
    (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]))
}
