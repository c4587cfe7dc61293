//! Bodies on their way through. Nothing is collected: a frame is handed on before the next is read.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::Version;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;

use crate::{
    activity::Activity, allowance::Seat, client_io::Served, pace::Pace, pool::Share, record::Record, refusal::Fault,
};

/// How much of an unwanted rest is read, and for how long.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Linger {
    pub(crate) bytes: u64,
    pub(crate) time: Duration,
}

/// A request's body, client to app.
///
/// When it is dropped before its end (a refusal, an app that answers early), the rest is read and thrown away for a
/// moment: closing a socket with bytes unread resets it, and the client would lose the answer.
#[derive(Default)]
pub(crate) struct RequestBody {
    inner: Option<Incoming>,
    /// What comes before the rest: it was sent once already.
    before: VecDeque<Frame<Bytes>>,
    /// It is one stream of many, with an end of its own.
    http2: bool,
    /// How many bytes more it may have.
    left: u64,
    of: Option<Of>,
    pace: Pace,
    linger: Option<Linger>,
}

/// Whose body it is.
struct Of {
    activity: Arc<Activity>,
    served: Served,
    silence: Silence,
}

/// The end of a body that waits for longer than anything crosses in either direction.
struct Silence {
    limit: Duration,
    /// Short bodies are there as a whole, and never wait.
    waiting: Option<Pin<Box<dyn Future<Output = ()> + Send + Sync>>>,
}

impl Silence {
    fn new(limit: Duration) -> Self {
        Self { limit, waiting: None }
    }

    /// Ready once nothing has crossed for that long.
    fn poll(&mut self, activity: &Arc<Activity>, cx: &mut Context<'_>) -> Poll<()> {
        let waiting = self.waiting.get_or_insert_with(|| Box::pin(Arc::clone(activity).silence(self.limit)));
        waiting.as_mut().poll(cx)
    }
}

impl RequestBody {
    /// `linger` is `None` if the client has not been told to send yet, and so will not, or if it can be told to stop.
    pub(crate) fn new(inner: Incoming, version: Version, limit: u64, linger: Option<Linger>) -> Self {
        Self {
            inner: Some(inner),
            before: VecDeque::new(),
            http2: version == Version::HTTP_2,
            left: limit,
            of: None,
            pace: Pace::default(),
            linger,
        }
    }

    /// The body of a request that had none, for its second attempt.
    pub(crate) fn none() -> Self {
        Self::default()
    }

    /// Is it longer than it may be, by what it says itself?
    pub(crate) fn is_too_long(&self) -> bool {
        self.size_hint().lower() > self.left
    }

    /// Puts what was taken from it back.
    pub(crate) fn put_before(&mut self, frames: VecDeque<Frame<Bytes>>) {
        self.before = frames;
    }

    /// From now on the bytes count for these, and go by the seat's bandwidth. After so long without any the body has broken
    /// off: the app may have answered already, and then nobody else waits for its rest.
    pub(crate) fn count_for(&mut self, activity: Arc<Activity>, served: Served, seat: &Seat, silence: Duration) {
        self.of = Some(Of { activity, served, silence: Silence::new(silence) });
        self.pace = Pace::of(seat.bandwidth());
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = RequestError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, RequestError>>> {
        if let Some(frame) = self.before.pop_front() {
            return Poll::Ready(Some(Ok(frame)));
        }
        let Self { inner, http2, left, of, pace, .. } = &mut *self;
        let Some(incoming) = inner.as_mut() else { return Poll::Ready(None) };
        std::task::ready!(pace.poll_turn(cx));
        let frame = match (Pin::new(&mut *incoming).poll_frame(cx), &mut *of) {
            (Poll::Ready(frame), _) => frame,
            (Poll::Pending, None) => return Poll::Pending,
            (Poll::Pending, Some(Of { activity, silence, .. })) => {
                std::task::ready!(silence.poll(activity, cx));
                return Poll::Ready(Some(Err(RequestError::Silent)));
            }
        };
        let last = match frame {
            Some(Ok(frame)) => {
                let length = length(&frame);
                let Some(rest) = left.checked_sub(length as u64) else {
                    // There is more of it, which keeps the client from seeing the answer.
                    return Poll::Ready(Some(Err(RequestError::TooLong)));
                };
                *left = rest;
                pace.took(length);
                if let Some(Of { activity, served, .. }) = of {
                    activity.to_app(length);
                    served.useful_bytes(length as u64);
                }
                return Poll::Ready(Some(Ok(frame)));
            }
            None if broke_off(incoming, *http2) => Some(Err(RequestError::TakenBack(h2::Reason::CANCEL.into()))),
            None => None,
            Some(Err(error)) => Some(Err(RequestError::Client(error))),
        };
        *inner = None;
        Poll::Ready(last)
    }

    fn is_end_stream(&self) -> bool {
        self.before.is_empty() && self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let before: u64 = self.before.iter().map(|frame| length(frame) as u64).sum();
        let rest = self.inner.as_ref().map_or(SizeHint::with_exact(0), Body::size_hint);
        rest.exact().map_or_else(SizeHint::default, |rest| SizeHint::with_exact(before + rest))
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        let (Some(mut rest), Some(linger)) = (self.inner.take(), self.linger) else { return };
        if rest.is_end_stream() {
            return;
        }
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(tokio::time::timeout(linger.time, async move {
                let mut left = linger.bytes;
                while let Some(Ok(frame)) = rest.frame().await {
                    let Some(remaining) = left.checked_sub(length(&frame) as u64) else { return };
                    left = remaining;
                }
            }));
        }
    }
}

fn length(frame: &Frame<Bytes>) -> usize {
    frame.data_ref().map_or(0, Bytes::len)
}

/// Did a message end before its end? A reset that says "no error" looks like an end to the library, and whoever gets
/// the message by HTTP/1.1 would take the half for the whole.
fn broke_off(body: &Incoming, http2: bool) -> bool {
    http2 && !body.is_end_stream()
}

/// Why a request broke off. An HTTP/2 app is told the reason in the source.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestError {
    #[error("the client's request broke off")]
    Client(#[source] hyper::Error),
    #[error("the client took its request back")]
    TakenBack(#[source] h2::Error),
    #[error("the client's request is longer than it may be")]
    TooLong,
    #[error("no byte crossed for too long")]
    Silent,
}

/// Why a response broke off. An HTTP/2 client is told the reason in the source.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReplyError {
    #[error("the app's answer broke off")]
    App(#[source] hyper::Error),
    #[error("the app ended its answer before its end")]
    TakenBack,
    #[error("no byte crossed for too long")]
    Silent,
}

/// A response's body, to the client: the app's, or the edge's own words.
pub(crate) struct ReplyBody {
    kind: Kind,
    /// The request is not over, and its connection not idle, until this is gone.
    record: Record,
}

enum Kind {
    Own(Option<Bytes>),
    App {
        inner: Incoming,
        http2: bool,
        activity: Arc<Activity>,
        silence: Silence,
        pace: Pace,
        /// Its connection is in use until this is gone.
        _share: Option<Share>,
        /// And the client's counts for its microVM.
        _seat: Arc<Seat>,
    },
}

/// What an answer of an app holds while it lasts.
pub(crate) struct Held {
    pub(crate) activity: Arc<Activity>,
    pub(crate) share: Option<Share>,
    pub(crate) seat: Arc<Seat>,
}

impl ReplyBody {
    pub(crate) fn own(text: &'static str, record: Record) -> Self {
        Self { kind: Kind::Own((!text.is_empty()).then(|| Bytes::from_static(text.as_bytes()))), record }
    }

    /// `version` is that of the answer.
    pub(crate) fn app(inner: Incoming, version: Version, held: Held, silence: Duration, mut record: Record) -> Self {
        let Held { activity, share, seat } = held;
        if inner.is_end_stream() {
            record.busy.whole();
        }
        let http2 = version == Version::HTTP_2;
        let pace = Pace::of(seat.bandwidth());
        let silence = Silence::new(silence);
        Self { kind: Kind::App { inner, http2, activity, silence, pace, _share: share, _seat: seat }, record }
    }
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = ReplyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ReplyError>>> {
        let Self { kind, record } = &mut *self;
        record.busy.taken();
        match kind {
            Kind::Own(text) => Poll::Ready(text.take().map(|text| Ok(Frame::data(text)))),
            Kind::App { inner, http2, activity, silence, pace, .. } => {
                std::task::ready!(pace.poll_turn(cx));
                let frame = match Pin::new(&mut *inner).poll_frame(cx) {
                    Poll::Ready(None) if broke_off(inner, *http2) => Some(Err(ReplyError::TakenBack)),
                    Poll::Ready(frame) => frame.map(|frame| frame.map_err(ReplyError::App)),
                    Poll::Pending => {
                        std::task::ready!(silence.poll(activity, cx));
                        Some(Err(ReplyError::Silent))
                    }
                };
                match &frame {
                    Some(Ok(frame)) => {
                        let length = length(frame);
                        activity.to_client(length);
                        pace.took(length);
                        record.busy.hands(length);
                        if inner.is_end_stream() {
                            record.busy.whole();
                        }
                    }
                    Some(Err(_)) => record.broke(Fault::App),
                    None => record.busy.whole(),
                }
                Poll::Ready(frame)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Own(text) => text.is_none(),
            Kind::App { inner, .. } => inner.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Own(text) => SizeHint::with_exact(text.as_ref().map_or(0, |text| text.len() as u64)),
            Kind::App { inner, .. } => inner.size_hint(),
        }
    }
}
