//! A connection after its upgrade: bytes both ways, whatever they mean.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional};

use crate::{
    activity::Activity, allowance::Seat, client_io::Served, config::Limits, pace::Pace, refusal::chain,
    stall::Impatient,
};

/// Who the bytes count for.
pub(crate) struct Between<'a> {
    pub(crate) activity: &'a Arc<Activity>,
    pub(crate) served: &'a Served,
    pub(crate) seat: &'a Seat,
}

/// Joins both sides until one ends, nothing crosses for too long, or the client takes nothing for too long.
pub(crate) async fn join(client: OnUpgrade, app: OnUpgrade, between: Between<'_>, limits: &Limits) {
    let (client, app) = match tokio::try_join!(client, app) {
        Ok(both) => both,
        Err(error) => {
            tracing::debug!(cause = chain(&error), "upgrade failed");
            return;
        }
    };
    let Between { activity, served, seat } = between;
    let mut client = Impatient::new(TokioIo::new(client), limits.client_stall);
    let pace = || Pace::of(seat.bandwidth());
    let inner = TokioIo::new(app);
    let mut app = Counted { inner, activity, served, from_app: pace(), to_app: pace() };
    tokio::select! {
        // How it ended is between the two: a reset of one is a close to the other.
        _ = copy_bidirectional(&mut client, &mut app) => {}
        () = Arc::clone(activity).silence(limits.silence) => {}
    }
}

/// The app's stream, whose bytes count as traffic and go by the microVM's bandwidth.
struct Counted<'a, S> {
    inner: S,
    activity: &'a Activity,
    served: &'a Served,
    from_app: Pace,
    to_app: Pace,
}

impl<S> Counted<'_, S> {
    fn count(&self, bytes: usize, count: impl FnOnce(&Activity, usize)) {
        count(self.activity, bytes);
        self.served.useful_bytes(bytes as u64);
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<'_, S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        std::task::ready!(self.from_app.poll_turn(cx));
        let before = buf.filled().len();
        let read = Pin::new(&mut self.inner).poll_read(cx, buf);
        let bytes = buf.filled().len() - before;
        if bytes > 0 {
            self.from_app.took(bytes);
            self.count(bytes, Activity::to_client);
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<'_, S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        std::task::ready!(self.to_app.poll_turn(cx));
        let written = Pin::new(&mut self.inner).poll_write(cx, buf);
        if let Poll::Ready(Ok(bytes)) = written {
            self.to_app.took(bytes);
            self.count(bytes, Activity::to_app);
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
