//! The requests of one HTTP/2 connection, served within the connection's own task.
//!
//! As tasks of their own they would run on other processors than their connection, and every frame would be handed from one
//! to the other under the library's lock.

use std::{
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError, Weak},
    task::{Context, Poll},
};

use futures_util::{FutureExt, Stream, future::BoxFuture, stream::FuturesUnordered};
use hyper::rt::Executor;

/// Those that are begun and not polled yet.
type Begun = Mutex<Vec<BoxFuture<'static, ()>>>;

/// Takes what the library would have run beside its connection. Every stream has a copy, so it must not keep them: they end
/// with their connection.
#[derive(Clone)]
pub(crate) struct Streams(Weak<Begun>);

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Streams {
    fn execute(&self, stream: F) {
        let Some(begun) = self.0.upgrade() else { return };
        // One that panics ends alone, as a task would; the runtime's own hook has said why.
        let stream = AssertUnwindSafe(stream).catch_unwind().map(drop);
        // Each act is one step, so a poisoned lock is still good.
        begun.lock().unwrap_or_else(PoisonError::into_inner).push(Box::pin(stream));
    }
}

/// A connection and its streams as one future, which ends with the connection.
pub(crate) struct Together<C> {
    pub(crate) connection: C,
    begun: Arc<Begun>,
    running: FuturesUnordered<BoxFuture<'static, ()>>,
}

impl<C> Together<C> {
    /// The connection that is made to run its streams here.
    pub(crate) fn new(connect: impl FnOnce(Streams) -> C) -> Self {
        let begun = Arc::default();
        Self { connection: connect(Streams(Arc::downgrade(&begun))), begun, running: FuturesUnordered::new() }
    }
}

impl<C: Future + Unpin> Future for Together<C> {
    type Output = C::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<C::Output> {
        let Self { connection, begun, running } = &mut *self;
        loop {
            // First, so that what they have to say goes out together.
            while let Poll::Ready(Some(())) = Pin::new(&mut *running).poll_next(cx) {}
            let ended = Pin::new(&mut *connection).poll(cx);
            if ended.is_ready() {
                return ended;
            }
            let mut begun = begun.lock().unwrap_or_else(PoisonError::into_inner);
            if begun.is_empty() {
                return Poll::Pending;
            }
            running.extend(begun.drain(..));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::{pending, poll_fn, ready},
        sync::atomic::{AtomicUsize, Ordering},
    };

    use super::*;

    /// A stream that keeps the executor, as the library's do.
    fn stream(streams: &Streams, held: &Arc<()>, end: impl Future<Output = ()> + Send + 'static) {
        let kept = (streams.clone(), Arc::clone(held));
        streams.execute(async move {
            end.await;
            drop(kept);
        });
    }

    #[tokio::test]
    async fn no_stream_outlives_its_connection() {
        let held = Arc::new(());
        // The connection ends in the very poll that began them.
        let begin = |streams: Streams| {
            stream(&streams, &held, pending());
            stream(&streams, &held, ready(()));
            ready("ended")
        };
        assert_eq!(Together::new(begin).await, "ended");
        assert_eq!(Arc::strong_count(&held), 1);
        let mut late = None;
        drop(Together::new(|streams| late = Some(streams)));
        stream(&late.unwrap(), &held, pending());
        assert_eq!(Arc::strong_count(&held), 1);
    }

    #[tokio::test]
    async fn a_stream_that_panics_ends_alone() {
        let (held, ended) = (Arc::new(()), Arc::new(AtomicUsize::new(0)));
        let begin = |streams: Streams| {
            stream(&streams, &held, async { panic!("on purpose") });
            let count = Arc::clone(&ended);
            stream(&streams, &held, async move {
                tokio::task::yield_now().await;
                count.fetch_add(1, Ordering::Relaxed);
            });
            let ended = Arc::clone(&ended);
            Box::pin(poll_fn(move |cx| match ended.load(Ordering::Relaxed) {
                0 => {
                    cx.waker().wake_by_ref();
                    Poll::Pending
                }
                _ => Poll::Ready(()),
            }))
        };
        Together::new(begin).await;
        assert_eq!(Arc::strong_count(&held), 1);
    }
}
