//! A request's body that is not let go before it is known that the app takes it.
//!
//! Two reasons to wait: the client asked whether to send it (`Expect: 100-continue`), and then the app decides; or nothing
//! is known of the app's port yet, and the request may have to be sent once more over TLS. In that case the beginning is
//! sent at once, and kept: most bodies are no longer. A body that was not let go can be sent again. The wait has an end
//! in either case: most apps say nothing and just read.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::Sleep;

use crate::body::{RequestBody, RequestError};

/// What goes to the app.
pub(crate) enum Outgoing {
    /// At once.
    Now(RequestBody),
    /// Once it is released, or after a while.
    Held { deposit: Arc<Deposit>, until: Pin<Box<Sleep>>, size: SizeHint },
}

/// Where a held body lies.
#[derive(Default)]
pub(crate) struct Deposit(Mutex<State>);

#[derive(Default)]
struct State {
    /// What is left of it.
    body: Option<RequestBody>,
    /// What of it was sent.
    sent: VecDeque<Frame<Bytes>>,
    /// How many bytes more may be sent, and kept, before it is let go.
    may_send: usize,
    released: bool,
    /// Neither time nor the app lets it go.
    frozen: bool,
    waker: Option<Waker>,
}

enum Step {
    Frame(Poll<Option<Result<Frame<Bytes>, RequestError>>>),
    /// From now on it is a body as any other.
    Go(Option<RequestBody>),
}

impl State {
    fn poll(&mut self, cx: &mut Context<'_>, late: bool) -> Step {
        if !self.frozen && (late || self.released) {
            self.sent.clear();
            return Step::Go(self.body.take());
        }
        self.waker = Some(cx.waker().clone());
        if self.frozen || self.may_send == 0 {
            return Step::Frame(Poll::Pending);
        }
        let Some(body) = self.body.as_mut() else { return Step::Go(None) };
        let frame = Pin::new(body).poll_frame(cx);
        match &frame {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(data) = frame.data_ref() {
                    self.may_send = self.may_send.saturating_sub(data.len().max(1));
                    self.sent.push_back(Frame::data(data.clone()));
                } else if let Some(trailers) = frame.trailers_ref() {
                    self.sent.push_back(Frame::trailers(trailers.clone()));
                }
            }
            // What broke off is never sent again.
            Poll::Ready(Some(Err(_))) => self.body = None,
            Poll::Ready(None) | Poll::Pending => {}
        }
        Step::Frame(frame)
    }
}

impl Deposit {
    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        // Each act is one step, so a poisoned lock is still good.
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The app wants it.
    pub(crate) fn release(&self) {
        let waker = self.with(|state| {
            state.released = true;
            state.frozen = false;
            state.waker.take()
        });
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Keeps it until it is released or taken back; `false` if it was let go already.
    pub(crate) fn freeze(&self) -> bool {
        self.with(|state| {
            state.frozen = state.body.is_some();
            state.frozen
        })
    }

    /// The whole body, if it was not let go yet.
    pub(crate) fn take_back(&self) -> Option<RequestBody> {
        self.with(|state| {
            let mut body = state.body.take()?;
            body.put_before(std::mem::take(&mut state.sent));
            Some(body)
        })
    }
}

impl Outgoing {
    /// Holds the body back for this long at most, all but its first so many bytes (and the rest of the piece they end in).
    pub(crate) fn held(body: RequestBody, limit: Duration, may_send: usize) -> (Self, Arc<Deposit>) {
        let size = body.size_hint();
        let deposit = Arc::new(Deposit(Mutex::new(State { body: Some(body), may_send, ..State::default() })));
        let until = Box::pin(tokio::time::sleep(limit));
        (Self::Held { deposit: Arc::clone(&deposit), until, size }, deposit)
    }

    /// The body of a request that was not sent; `None` if it was taken back already.
    pub(crate) fn into_body(self) -> Option<RequestBody> {
        match self {
            Self::Now(body) => Some(body),
            Self::Held { deposit, .. } => deposit.take_back(),
        }
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = RequestError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, RequestError>>> {
        if let Self::Held { deposit, until, .. } = &mut *self {
            let late = until.as_mut().poll(cx).is_ready();
            match deposit.with(|state| state.poll(cx, late)) {
                Step::Frame(frame) => return frame,
                Step::Go(Some(body)) => *self = Self::Now(body),
                // It goes elsewhere; whoever gets this half of a request must not take it for a whole one.
                Step::Go(None) => {
                    return Poll::Ready(Some(Err(RequestError::TakenBack(h2::Reason::CANCEL.into()))));
                }
            }
        }
        match &mut *self {
            Self::Now(body) => Pin::new(body).poll_frame(cx),
            Self::Held { .. } => unreachable!("it was replaced above"),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Now(body) => body.is_end_stream(),
            Self::Held { .. } => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Now(body) => body.size_hint(),
            Self::Held { size, .. } => *size,
        }
    }
}
