//! An HTTP/2 connection that does not carry requests so much as work for the edge.
//!
//! The library bounds what such a connection makes it hold: a head by its size and by its frames, what it has to say to
//! pings and settings by not reading on, requests taken back at once by their number. What it does not bound is how long
//! that goes on, and what requests cost that are taken back a moment later. Those two bounds are kept here, on what comes
//! off the wire. nginx has the same rule for the first, Envoy for the second.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, ReadBuf};

use crate::{client_io::Served, config::Limits, through::writes_through};

/// How many bytes of the wire are fine for each that carries something: the head of a frame for a byte of data, nearly.
const WIRE_BYTES_PER_USEFUL: u64 = 8;

/// A client's byte stream that ends with too much of either.
pub(crate) struct Guarded<S> {
    inner: S,
    served: Served,
    idle_bytes: u64,
    abandoned: usize,
    read: u64,
}

impl<S> Guarded<S> {
    pub(crate) fn new(inner: S, served: Served, limits: &Limits) -> Self {
        Self { inner, served, idle_bytes: limits.h2_idle_bytes, abandoned: limits.h2_abandoned, read: 0 }
    }

    fn look(&self) -> io::Result<()> {
        let flood = |what| Err(io::Error::new(io::ErrorKind::InvalidData, what));
        if self.read / WIRE_BYTES_PER_USEFUL > self.served.useful().saturating_add(self.idle_bytes) {
            return flood("a flood of frames that carry nothing");
        }
        let (abandoned, begun) = (self.served.abandoned(), self.served.begun());
        if abandoned > self.abandoned && abandoned > begun / 2 {
            return flood("a flood of requests taken back");
        }
        Ok(())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        std::task::ready!(Pin::new(&mut self.inner).poll_read(cx, buf))?;
        self.read += (buf.filled().len() - before) as u64;
        Poll::Ready(self.look())
    }
}

writes_through!(Guarded);
