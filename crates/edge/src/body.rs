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

use crate::{activity::Activity, client_io::Busy, pool::Share};

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
pub(crate) struct RequestBody {
    inner: Option<Incoming>,
    /// What comes before the rest: it was sent once already.
    before: VecDeque<Frame<Bytes>>,
    /// It is one stream of many, with an end of its own.
    http2: bool,
    activity: Option<Arc<Activity>>,
    linger: Option<Linger>,
}

impl RequestBody {
    /// `linger` is `None` if the client has not been told to send yet, and so will not, or if it can be told to stop.
    pub(crate) fn new(inner: Incoming, version: Version, linger: Option<Linger>) -> Self {
        Self { inner: Some(inner), before: VecDeque::new(), http2: version == Version::HTTP_2, activity: None, linger }
    }

    /// The body of a request that had none, for its second attempt.
    pub(crate) fn none() -> Self {
        Self { inner: None, before: VecDeque::new(), http2: false, activity: None, linger: None }
    }

    /// Puts what was taken from it back.
    pub(crate) fn put_before(&mut self, frames: VecDeque<Frame<Bytes>>) {
        self.before = frames;
    }

    /// From now on the bytes count for this.
    pub(crate) fn count_for(&mut self, activity: Arc<Activity>) {
        self.activity = Some(activity);
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = RequestError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, RequestError>>> {
        if let Some(frame) = self.before.pop_front() {
            return Poll::Ready(Some(Ok(frame)));
        }
        let http2 = self.http2;
        let Some(inner) = self.inner.as_mut() else { return Poll::Ready(None) };
        let frame = match std::task::ready!(Pin::new(&mut *inner).poll_frame(cx)) {
            None if broke_off(inner, http2) => Some(Err(RequestError::TakenBack(h2::Reason::CANCEL.into()))),
            frame => frame.map(|frame| frame.map_err(RequestError::Client)),
        };
        match &frame {
            Some(Ok(_)) => {
                if let Some(activity) = &self.activity {
                    activity.bytes();
                }
            }
            Some(Err(_)) | None => self.inner = None,
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.before.is_empty() && self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let before: u64 = self.before.iter().filter_map(Frame::data_ref).map(|data| data.len() as u64).sum();
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
                    let length = frame.data_ref().map_or(0, |data| data.len() as u64);
                    let Some(remaining) = left.checked_sub(length) else { return };
                    left = remaining;
                }
            }));
        }
    }
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
    /// The connection is not idle until this is gone.
    _busy: Busy,
}

enum Kind {
    Own(Option<Bytes>),
    App {
        inner: Incoming,
        http2: bool,
        activity: Arc<Activity>,
        silence: Pin<Box<dyn Future<Output = ()> + Send + Sync>>,
        /// Its connection is in use until this is gone.
        _share: Option<Share>,
    },
}

impl ReplyBody {
    pub(crate) fn own(text: &'static str, busy: Busy) -> Self {
        Self { kind: Kind::Own((!text.is_empty()).then(|| Bytes::from_static(text.as_bytes()))), _busy: busy }
    }

    /// `version` is that of the answer.
    pub(crate) fn app(
        inner: Incoming,
        version: Version,
        share: Option<Share>,
        activity: Arc<Activity>,
        silence: Duration,
        busy: Busy,
    ) -> Self {
        let silence = Box::pin(Arc::clone(&activity).silence(silence));
        let http2 = version == Version::HTTP_2;
        Self { kind: Kind::App { inner, http2, activity, silence, _share: share }, _busy: busy }
    }
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = ReplyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ReplyError>>> {
        match &mut self.kind {
            Kind::Own(text) => Poll::Ready(text.take().map(|text| Ok(Frame::data(text)))),
            Kind::App { inner, http2, activity, silence, .. } => match Pin::new(&mut *inner).poll_frame(cx) {
                Poll::Ready(None) if broke_off(inner, *http2) => Poll::Ready(Some(Err(ReplyError::TakenBack))),
                Poll::Ready(frame) => {
                    if let Some(Ok(_)) = &frame {
                        activity.bytes();
                    }
                    Poll::Ready(frame.map(|frame| frame.map_err(ReplyError::App)))
                }
                Poll::Pending => silence.as_mut().poll(cx).map(|()| Some(Err(ReplyError::Silent))),
            },
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
