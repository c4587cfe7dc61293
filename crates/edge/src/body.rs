//! Bodies on their way through. Nothing is collected: a frame is handed on before the next is read.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;

use crate::{activity::Activity, client_io::Busy};

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
    activity: Option<Arc<Activity>>,
    linger: Option<Linger>,
}

impl RequestBody {
    /// `linger` is `None` if the client has not been told to send yet, and so will not.
    pub(crate) fn new(inner: Incoming, linger: Option<Linger>) -> Self {
        Self { inner: Some(inner), activity: None, linger }
    }

    /// The body of a request that had none, for its second attempt.
    pub(crate) fn none() -> Self {
        Self { inner: None, activity: None, linger: None }
    }

    /// From now on the bytes count for this.
    pub(crate) fn count_for(&mut self, activity: Arc<Activity>) {
        self.activity = Some(activity);
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Some(inner) = self.inner.as_mut() else { return Poll::Ready(None) };
        let frame = std::task::ready!(Pin::new(inner).poll_frame(cx));
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
        self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.as_ref().map_or(SizeHint::with_exact(0), Body::size_hint)
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

/// Why a response broke off.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReplyError {
    #[error("the app's answer broke off")]
    App(#[source] hyper::Error),
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
    App { inner: Incoming, activity: Arc<Activity>, silence: Pin<Box<dyn Future<Output = ()> + Send + Sync>> },
}

impl ReplyBody {
    pub(crate) fn own(text: &'static str, busy: Busy) -> Self {
        Self { kind: Kind::Own((!text.is_empty()).then(|| Bytes::from_static(text.as_bytes()))), _busy: busy }
    }

    pub(crate) fn app(inner: Incoming, activity: Arc<Activity>, silence: Duration, busy: Busy) -> Self {
        let silence = Box::pin(Arc::clone(&activity).silence(silence));
        Self { kind: Kind::App { inner, activity, silence }, _busy: busy }
    }
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = ReplyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ReplyError>>> {
        match &mut self.kind {
            Kind::Own(text) => Poll::Ready(text.take().map(|text| Ok(Frame::data(text)))),
            Kind::App { inner, activity, silence } => match Pin::new(inner).poll_frame(cx) {
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
