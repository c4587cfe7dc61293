//! Bandwidth: how fast bytes may cross, kept by making the next ones wait. Nothing is refused and nothing is collected;
//! who sends is slowed down by what is not read.
//!
//! A piece is let through whole, whatever its length, and those after it wait until it is paid for. So the rate holds over
//! any time longer than a second, and there is no smallest piece that would have to fit into a bucket.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::{Instant, Sleep};

/// How much may cross at once after a rest: a second's worth.
const BURST: Duration = Duration::from_secs(1);

/// What all the traffic of one microVM goes by.
#[derive(Debug)]
pub(crate) struct Bandwidth {
    bytes_per_second: u64,
    /// When all that crossed is paid for; in the past, as far back as the burst, while there is something left of it.
    paid_at: Mutex<Instant>,
}

impl Bandwidth {
    pub(crate) fn new(bytes_per_second: u64) -> Self {
        let now = Instant::now();
        Self { bytes_per_second, paid_at: Mutex::new(now.checked_sub(BURST).unwrap_or(now)) }
    }

    /// So many bytes crossed.
    fn pay(&self, bytes: usize) {
        let cost = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
        let now = Instant::now();
        let mut paid_at = self.paid_at.lock().unwrap_or_else(PoisonError::into_inner);
        *paid_at = (*paid_at).max(now.checked_sub(BURST).unwrap_or(now)) + cost;
    }

    /// When the next may cross; `None`: now.
    fn next(&self) -> Option<Instant> {
        let paid_at = *self.paid_at.lock().unwrap_or_else(PoisonError::into_inner);
        (paid_at > Instant::now()).then_some(paid_at)
    }
}

/// One direction of one message, going by a bandwidth if there is one.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    bandwidth: Option<Arc<Bandwidth>>,
    waiting: Option<Pin<Box<Sleep>>>,
}

impl Pace {
    pub(crate) fn of(bandwidth: Option<&Arc<Bandwidth>>) -> Self {
        Self { bandwidth: bandwidth.cloned(), waiting: None }
    }

    /// Ready when the next piece may be taken.
    pub(crate) fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(bandwidth) = &self.bandwidth else { return Poll::Ready(()) };
        loop {
            if let Some(waiting) = &mut self.waiting {
                std::task::ready!(waiting.as_mut().poll(cx));
                self.waiting = None;
            }
            // Another direction, or another request, may have had the turn.
            let Some(at) = bandwidth.next() else { return Poll::Ready(()) };
            self.waiting = Some(Box::pin(tokio::time::sleep_until(at)));
        }
    }

    /// A piece was taken.
    pub(crate) fn took(&self, bytes: usize) {
        if let Some(bandwidth) = &self.bandwidth {
            bandwidth.pay(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    async fn cross(pace: &mut Pace, bytes: usize) {
        poll_fn(|cx| pace.poll_turn(cx)).await;
        pace.took(bytes);
    }

    #[tokio::test(start_paused = true)]
    async fn a_second_is_free_and_then_the_rate_holds_for_all_together() {
        let bandwidth = Arc::new(Bandwidth::new(1000));
        let mut both = [Pace::of(Some(&bandwidth)), Pace::of(Some(&bandwidth))];
        let begin = Instant::now();
        for piece in 0..50 {
            cross(&mut both[piece % 2], 100).await;
            // Ten pieces at once, the eleventh too as the tenth is just paid for, then one every tenth of a second.
            let expected = Duration::from_millis(100) * u32::try_from(piece.saturating_sub(10)).unwrap();
            let late = begin.elapsed().checked_sub(expected).expect("not too early");
            assert!(late < Duration::from_millis(60), "{piece}: {late:?}");
        }
        // A rest gives no more than a second's worth.
        tokio::time::sleep(Duration::from_secs(60)).await;
        let begin = Instant::now();
        for _ in 0..21 {
            cross(&mut both[0], 100).await;
        }
        assert!(begin.elapsed() >= Duration::from_millis(1000), "{:?}", begin.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_piece_longer_than_a_seconds_worth_passes_and_is_paid_for() {
        let bandwidth = Arc::new(Bandwidth::new(1000));
        let mut pace = Pace::of(Some(&bandwidth));
        let begin = Instant::now();
        cross(&mut pace, 5000).await;
        assert_eq!(begin.elapsed(), Duration::ZERO);
        cross(&mut pace, 1).await;
        assert!(begin.elapsed() >= Duration::from_secs(4), "{:?}", begin.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_bandwidth_nothing_waits() {
        let (mut pace, begin) = (Pace::of(None), Instant::now());
        for _ in 0..1000 {
            cross(&mut pace, usize::MAX).await;
        }
        assert_eq!(begin.elapsed(), Duration::ZERO);
    }
}
