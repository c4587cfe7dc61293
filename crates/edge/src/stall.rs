//! A client that takes nothing of what it is sent.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Sleep,
};

/// Fails a write that has waited for too long.
#[derive(Debug)]
pub(crate) struct Stall {
    limit: Duration,
    /// Running while nothing is taken.
    deadline: Option<Pin<Box<Sleep>>>,
}

impl Stall {
    pub(crate) fn new(limit: Duration) -> Self {
        Self { limit, deadline: None }
    }

    /// Looks at what became of a write or a flush.
    pub(crate) fn check<T>(&mut self, cx: &mut Context<'_>, tried: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if tried.is_ready() {
            self.deadline = None;
            return tried;
        }
        let limit = self.limit;
        let deadline = self.deadline.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        deadline.as_mut().poll(cx).map(|()| Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes nothing")))
    }
}

/// A stream whose writes fail when they have waited for too long.
pub(crate) struct Impatient<S> {
    inner: S,
    stall: Stall,
}

impl<S> Impatient<S> {
    pub(crate) fn new(inner: S, limit: Duration) -> Self {
        Self { inner, stall: Stall::new(limit) }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Impatient<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Impatient<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let Self { inner, stall } = &mut *self;
        let tried = Pin::new(inner).poll_write(cx, buf);
        stall.check(cx, tried)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let Self { inner, stall } = &mut *self;
        let tried = Pin::new(inner).poll_write_vectored(cx, bufs);
        stall.check(cx, tried)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { inner, stall } = &mut *self;
        let tried = Pin::new(inner).poll_flush(cx);
        stall.check(cx, tried)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { inner, stall } = &mut *self;
        let tried = Pin::new(inner).poll_shutdown(cx);
        stall.check(cx, tried)
    }
}
