//! A client's byte stream that knows whether a request is being served on it.
//!
//! The HTTP library has one timer for both the wait for a request and the reading of its head, and sets it anew for each
//! request. They deserve different limits: an idle connection is harmless for a minute, a head that trickles in is not. Both
//! are kept here instead: the shorter one from a head's first byte on, the longer one for the connection as a whole.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, ReadBuf},
    time::{Instant, Sleep},
};

use crate::through::writes_through;

/// How much of the wire a request's head may be before it is nothing but a flood's: more than nearly all are.
const HEAD_BYTES: u64 = 4096;

/// Counts what is being served on one connection.
#[derive(Debug, Clone, Default)]
pub(crate) struct Served(Arc<Counts>);

#[derive(Debug)]
struct Counts {
    opened: Instant,
    begun: AtomicUsize,
    ended: AtomicUsize,
    /// When the last one did, in milliseconds after `opened`.
    ended_ms: AtomicU64,
    /// Of those that ended, how many before their end.
    abandoned: AtomicUsize,
    /// Bytes that carried something, in either direction, heads included.
    useful: AtomicU64,
    /// Answers of which a piece waits for the client to take it.
    held: AtomicUsize,
    /// Changes whenever a piece of an answer was taken.
    taken: AtomicUsize,
}

impl Default for Counts {
    fn default() -> Self {
        Self {
            opened: Instant::now(),
            begun: AtomicUsize::default(),
            ended: AtomicUsize::default(),
            ended_ms: AtomicU64::default(),
            abandoned: AtomicUsize::default(),
            useful: AtomicU64::default(),
            held: AtomicUsize::default(),
            taken: AtomicUsize::default(),
        }
    }
}

impl Counts {
    fn now_ms(&self) -> u64 {
        u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

impl Served {
    /// Something is being served until the guard is dropped.
    pub(crate) fn busy(&self) -> Busy {
        self.0.begun.fetch_add(1, Ordering::Relaxed);
        self.useful_bytes(HEAD_BYTES);
        Busy { counts: Arc::clone(&self.0), whole: false, holds: false }
    }

    /// So many bytes carried something.
    pub(crate) fn useful_bytes(&self, bytes: u64) {
        self.0.useful.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn useful(&self) -> u64 {
        self.0.useful.load(Ordering::Relaxed)
    }

    pub(crate) fn begun(&self) -> usize {
        self.0.begun.load(Ordering::Relaxed)
    }

    /// How many requests the client left before their answer's end.
    pub(crate) fn abandoned(&self) -> usize {
        self.0.abandoned.load(Ordering::Relaxed)
    }

    pub(crate) fn is_busy(&self) -> bool {
        let (ended, begun) = self.counts();
        begun != ended
    }

    fn counts(&self) -> (usize, usize) {
        // In this order, so that what ends in between makes it look busy and never idle.
        let ended = self.0.ended.load(Ordering::Acquire);
        (ended, self.0.begun.load(Ordering::Acquire))
    }

    /// Returns once nothing was served for `first`, and later, after something was, for `then`.
    pub(crate) async fn idle(&self, first: Duration, then: Duration) {
        loop {
            let until = match self.counts() {
                (0, 0) => self.0.opened + first,
                (ended, begun) if ended == begun => {
                    self.0.opened + Duration::from_millis(self.0.ended_ms.load(Ordering::Relaxed)) + then
                }
                _ => Instant::now() + then,
            };
            if Instant::now() >= until {
                return;
            }
            tokio::time::sleep_until(until).await;
        }
    }

    /// Returns once the client has taken nothing of what it is sent for `limit`; at the latest after half as long again.
    /// HTTP/2 needs it, where a client says per request how much it takes: what it reads from its socket tells nothing.
    pub(crate) async fn stalled(&self, limit: Duration) {
        let mut before = None;
        loop {
            tokio::time::sleep(limit / 2).await;
            let waits = self.0.held.load(Ordering::Relaxed) > 0;
            let taken = self.0.taken.load(Ordering::Relaxed);
            before = match before {
                _ if !waits => None,
                Some((same, looks)) if same == taken && looks == 2 => return,
                Some((same, looks)) if same == taken => Some((same, looks + 1)),
                _ => Some((taken, 1)),
            };
        }
    }
}

/// While it lives, its connection is serving a request.
#[derive(Debug)]
pub(crate) struct Busy {
    counts: Arc<Counts>,
    whole: bool,
    holds: bool,
}

impl Busy {
    /// The answer came to its end, or to a change of protocol.
    pub(crate) fn whole(&mut self) {
        self.whole = true;
    }

    pub(crate) fn is_whole(&self) -> bool {
        self.whole
    }

    /// A piece of the answer is there for the client.
    pub(crate) fn hands(&mut self, bytes: usize) {
        self.counts.useful.fetch_add(bytes as u64, Ordering::Relaxed);
        self.holds = true;
        self.counts.held.fetch_add(1, Ordering::Relaxed);
    }

    /// What was there has gone.
    pub(crate) fn taken(&mut self) {
        if std::mem::take(&mut self.holds) {
            self.counts.held.fetch_sub(1, Ordering::Relaxed);
            self.counts.taken.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.taken();
        if !self.whole {
            self.counts.abandoned.fetch_add(1, Ordering::Relaxed);
        }
        self.counts.ended_ms.store(self.counts.now_ms(), Ordering::Relaxed);
        self.counts.ended.fetch_add(1, Ordering::Release);
    }
}

/// The stream.
pub(crate) struct ClientIo<S> {
    inner: S,
    served: Served,
    head_limit: Duration,
    /// A head has begun. Most are there as a whole then, and need no timer.
    head_begun: bool,
    /// Running while the rest of a head is being waited for; on a new connection from the start.
    head_deadline: Option<Pin<Box<Sleep>>>,
    /// Requests that had begun when it began to run: one more, and its head is there, even if it is answered already.
    begun_before: usize,
}

impl<S> ClientIo<S> {
    pub(crate) fn new(inner: S, served: Served, head_limit: Duration) -> Self {
        let head_deadline = Some(Box::pin(tokio::time::sleep(head_limit)));
        Self { inner, served, head_limit, head_begun: false, head_deadline, begun_before: 0 }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ClientIo<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let begun = self.served.begun();
        if begun != self.begun_before {
            self.begun_before = begun;
            self.head_begun = false;
            self.head_deadline = None;
        } else if self.head_begun && self.head_deadline.is_none() {
            // Whoever gets a part of a head reads on, so this is the moment in which it began.
            self.head_deadline = Some(Box::pin(tokio::time::sleep(self.head_limit)));
        }
        let before = buf.filled().len();
        let read = Pin::new(&mut self.inner).poll_read(cx, buf);
        if buf.filled().len() > before && !self.served.is_busy() {
            self.head_begun = true;
        }
        // What is here already is not late, even where it was this side that was held up.
        if read.is_pending()
            && let Some(deadline) = &mut self.head_deadline
            && deadline.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        read
    }
}

writes_through!(ClientIo);

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_has_arrived_is_not_late() {
        let limit = Duration::from_secs(10);
        let (mut client, ours) = tokio::io::duplex(64);
        let mut io = ClientIo::new(ours, Served::default(), limit);
        client.write_all(b"GET /").await.unwrap();
        // As if this side had been held up.
        tokio::time::advance(limit * 2).await;
        let mut head = [0; 64];
        assert_eq!(io.read(&mut head).await.unwrap(), 5);
        // And the rest is.
        assert_eq!(io.read(&mut head).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
