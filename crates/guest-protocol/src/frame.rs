//! Framing: a big-endian `u32` length, then JSON. The length is checked before anything is read or parsed.

use serde::{Serialize, de::DeserializeOwned};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Upper bound of a frame's body in bytes. The largest honest frame is an [`crate::AppSpec`] with 100 environment
/// variables of 4 KiB, or 64 KiB of app output in base64.
pub const FRAME_BYTES_MAX: usize = 1024 * 1024;

/// Why a frame could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The connection failed or ended inside a frame.
    #[error("the agent connection failed")]
    Io(#[source] std::io::Error),
    /// The peer closed the connection between two frames.
    #[error("the agent connection was closed")]
    Closed,
    /// The peer announced a frame larger than [`FRAME_BYTES_MAX`].
    #[error("a frame of {bytes} bytes is over the limit of {FRAME_BYTES_MAX}")]
    TooLarge {
        /// The announced size.
        bytes: usize,
    },
    /// The frame's body is not the JSON that was expected.
    #[error("a frame is malformed")]
    Malformed(#[source] serde_json::Error),
    /// A frame of a shell has a length that those of its kind do not have.
    #[error("a shell's frame of kind {kind} has {bytes} bytes")]
    ShellLength {
        /// Its kind.
        kind: u8,
        /// The announced size.
        bytes: usize,
    },
    /// A frame of a shell is of no known kind.
    #[error("a shell's frame is of the unknown kind {kind}")]
    ShellKind {
        /// Its kind.
        kind: u8,
    },
}

/// Reads one frame.
pub async fn read_frame<T: DeserializeOwned>(reader: &mut (impl AsyncRead + Unpin)) -> Result<T, FrameError> {
    let bytes = u32::from_be_bytes(read_header(reader).await?) as usize;
    if bytes > FRAME_BYTES_MAX {
        return Err(FrameError::TooLarge { bytes });
    }
    let mut body = vec![0u8; bytes];
    reader.read_exact(&mut body).await.map_err(FrameError::Io)?;
    serde_json::from_slice(&body).map_err(FrameError::Malformed)
}

/// Reads what a frame begins with.
pub(crate) async fn read_header<const BYTES: usize>(
    reader: &mut (impl AsyncRead + Unpin),
) -> Result<[u8; BYTES], FrameError> {
    let mut header = [0u8; BYTES];
    // Only an end before the first byte is an end between two frames.
    if reader.read(&mut header[..1]).await.map_err(FrameError::Io)? == 0 {
        return Err(FrameError::Closed);
    }
    reader.read_exact(&mut header[1..]).await.map_err(FrameError::Io)?;
    Ok(header)
}

/// Writes one frame in a single write and flushes it.
pub async fn write_frame<T: Serialize>(writer: &mut (impl AsyncWrite + Unpin), message: &T) -> Result<(), FrameError> {
    let mut buffer = vec![0u8; 4];
    serde_json::to_writer(&mut buffer, message).map_err(FrameError::Malformed)?;
    let bytes = buffer.len() - 4;
    if bytes > FRAME_BYTES_MAX {
        return Err(FrameError::TooLarge { bytes });
    }
    buffer[..4].copy_from_slice(&(bytes as u32).to_be_bytes());
    writer.write_all(&buffer).await.map_err(FrameError::Io)?;
    writer.flush().await.map_err(FrameError::Io)
}
