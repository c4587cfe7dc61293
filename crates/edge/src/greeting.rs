//! Does what answers speak HTTP/2?

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::oneshot,
};

/// A frame's header (RFC 9113, 4.1).
const HEADER: usize = 9;
const SETTINGS: u8 = 4;

/// A stream that tells whether its first bytes are a server's greeting: a SETTINGS frame, which must come first.
pub(crate) struct Greeted<S> {
    inner: S,
    waiting: Option<(Vec<u8>, oneshot::Sender<bool>)>,
}

impl<S> Greeted<S> {
    pub(crate) fn new(inner: S) -> (Self, oneshot::Receiver<bool>) {
        let (tell, told) = oneshot::channel();
        (Self { inner, waiting: Some((Vec::with_capacity(HEADER), tell)) }, told)
    }
}

fn is_greeting(header: &[u8]) -> bool {
    let acknowledges = header[4] & 1 != 0;
    header[3] == SETTINGS && !acknowledges && header[5..HEADER] == [0; 4]
}

impl<S: AsyncRead + Unpin> AsyncRead for Greeted<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.inner).poll_read(cx, buf);
        if read.is_ready()
            && let Some((mut seen, tell)) = self.waiting.take()
        {
            let new = &buf.filled()[before..];
            let ended = new.is_empty();
            seen.extend(new.iter().take(HEADER - seen.len()));
            if seen.len() == HEADER || ended {
                // Nobody may wait for it any more.
                let _ = tell.send(seen.len() == HEADER && is_greeting(&seen));
            } else {
                self.waiting = Some((seen, tell));
            }
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Greeted<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn told(pieces: &[&[u8]]) -> bool {
        let (mut app, ours) = tokio::io::duplex(64);
        let (mut greeted, told) = Greeted::new(ours);
        let reading = tokio::spawn(async move {
            let mut all = Vec::new();
            greeted.read_to_end(&mut all).await.unwrap();
        });
        for piece in pieces {
            app.write_all(piece).await.unwrap();
            tokio::task::yield_now().await;
        }
        drop(app);
        reading.await.unwrap();
        told.await.unwrap()
    }

    #[tokio::test]
    async fn settings_are_a_greeting_and_nothing_else_is() {
        assert!(told(&[&[0, 0, 6, 4, 0, 0, 0, 0, 0], &[0; 6]]).await);
        assert!(told(&[&[0, 0, 0], &[4, 0, 0, 0], &[0, 0]]).await);
        for other in [
            &b"HTTP/1.1 400 Bad Request\r\n"[..],
            // A TLS alert.
            &[21, 3, 3, 0, 2, 2, 70],
            // An acknowledgement of ours, before a greeting.
            &[0, 0, 0, 4, 1, 0, 0, 0, 0],
            &[0, 0, 0, 4, 0],
            b"",
        ] {
            assert!(!told(&[other]).await, "{other:?}");
        }
    }
}
