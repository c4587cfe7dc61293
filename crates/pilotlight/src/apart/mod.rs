//! The edge as a process of its own, which goes on serving while control and the host restart, or hang.
//!
//! ```text
//!  serve --roles control,host                 serve --roles edge
//!  server ◄──── edge.sock: questions, touches ──── client ◄─── Directory, Dialer ─── edge
//!         ───── answers, resting, over ──────────►  known                              │
//!  host ── VMs, each in a network namespace ◄────────────────── host::Way ─────────────┘
//! ```
//!
//! The edge keeps what it was told (`known`): what is behind endpoints, and which microVMs run, where. While it is connected,
//! that is right, because `server` says what is not so any more before it acts on it; while it is not, the VMs it knows go on
//! as they are, since nobody is there who would suspend them, and requests for anything else wait.

mod client;
mod keys;
mod known;
mod server;
#[cfg(test)]
mod tests;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context;
use api::apart::FRAME_BYTES_MAX;
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use serde::{Serialize, de::DeserializeOwned};
use tokio::net::{
    UnixStream,
    unix::{OwnedReadHalf, OwnedWriteHalf},
};
use tokio_util::codec::{FramedRead, FramedWrite, LengthDelimitedCodec};

pub use client::Client;
pub use keys::{drop_old, follow};
pub use server::{Desk, listen};

/// Every wait and every bound between the two. [`Limits::standard`] says why.
#[derive(Debug, Clone)]
pub struct Limits {
    /// How often the edge asks for a sign of life.
    pub ping_every: Duration,
    /// How long the other side may say nothing, or take nothing, before the edge counts it as gone.
    pub silence: Duration,
    /// The same for the other side.
    pub silence_of_edge: Duration,
    /// Pause between two attempts to connect.
    pub connect_every: Duration,
    /// How long a question waits for an answer, over any number of connections.
    pub patience: Duration,
    /// Questions that may be open at once; one more is answered for at once, as one that came too late.
    pub questions: usize,
    /// Endpoints that are remembered though their microVMs do not run.
    pub endpoints: usize,
}

impl Limits {
    /// The usual ones.
    pub fn standard() -> Self {
        Self {
            ping_every: Duration::from_secs(1),
            // Three signs of life missed. What is asked meanwhile waits so long, then for the next connection.
            silence: Duration::from_secs(3),
            // Longer: it costs a few kilobytes, and the edge is better off when it is not the first to be given up.
            silence_of_edge: Duration::from_secs(10),
            connect_every: Duration::from_millis(200),
            // As long as the edge lets a request wait for its microVM.
            patience: edge::Limits::standard().wake,
            // Twice as many requests as the edge lets wait for microVMs.
            questions: 8192,
            // Some hundred bytes each.
            endpoints: 65_536,
        }
    }
}

/// Where control and the host listen.
pub fn socket_path(data_dir: &Path) -> PathBuf {
    data_dir.join("edge.sock")
}

type Reader = FramedRead<OwnedReadHalf, LengthDelimitedCodec>;
type Writer = FramedWrite<OwnedWriteHalf, LengthDelimitedCodec>;

fn frames(stream: UnixStream) -> (Reader, Writer) {
    let codec = || LengthDelimitedCodec::builder().max_frame_length(FRAME_BYTES_MAX).new_codec();
    let (reader, writer) = stream.into_split();
    (FramedRead::new(reader, codec()), FramedWrite::new(writer, codec()))
}

/// Sends a frame, within a time.
async fn send(writer: &mut Writer, frame: &impl Serialize, within: Duration) -> anyhow::Result<()> {
    let bytes = Bytes::from(serde_json::to_vec(frame)?);
    let sent = tokio::time::timeout(within, writer.send(bytes)).await;
    sent.map_err(|_| anyhow::anyhow!("it takes nothing any more"))?.context("it cannot be written to")
}

/// Waits for a frame, for a time.
async fn receive<T: DeserializeOwned>(reader: &mut Reader, within: Duration) -> anyhow::Result<T> {
    let frame = tokio::time::timeout(within, reader.next()).await;
    let frame = frame.map_err(|_| anyhow::anyhow!("it has said nothing for {:.1} s", within.as_secs_f64()))?;
    let frame = frame.context("it closed the connection")?.context("it cannot be read from")?;
    serde_json::from_slice(&frame).context("it says what is no frame")
}
