//! When bytes last crossed, for the microVM's idle clock and for the limit on silence.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use api::{directory::Directory, ids::MicrovmId};
use tokio::time::Instant;

use crate::metrics::Counters;

/// How often one request tells the directory about its bytes at most. Idle clocks run in minutes.
const TOUCH_EVERY_MS: u64 = 250;

/// How often a request that waits for its answer tells the directory that it does.
const IN_FLIGHT_EVERY: Duration = Duration::from_secs(1);

/// One request's traffic. Its start and its end count as traffic.
pub(crate) struct Activity {
    directory: Arc<dyn Directory>,
    counters: Arc<Counters>,
    microvm: MicrovmId,
    to_app: AtomicU64,
    to_client: AtomicU64,
    opened: Instant,
    started: AtomicBool,
    last_bytes_ms: AtomicU64,
    last_touch_ms: AtomicU64,
}

impl Activity {
    pub(crate) fn new(directory: Arc<dyn Directory>, counters: Arc<Counters>, microvm: MicrovmId) -> Arc<Self> {
        Arc::new(Self {
            directory,
            counters,
            microvm,
            to_app: AtomicU64::new(0),
            to_client: AtomicU64::new(0),
            opened: Instant::now(),
            started: AtomicBool::new(false),
            last_bytes_ms: AtomicU64::new(0),
            last_touch_ms: AtomicU64::new(0),
        })
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// The request goes to its VM now.
    pub(crate) fn start(&self) {
        let now = self.now_ms();
        self.started.store(true, Ordering::Relaxed);
        self.last_bytes_ms.store(now, Ordering::Relaxed);
        self.last_touch_ms.store(now, Ordering::Relaxed);
        self.directory.touch(&self.microvm);
    }

    pub(crate) fn microvm(&self) -> MicrovmId {
        self.microvm
    }

    pub(crate) fn bytes_to_app(&self) -> u64 {
        self.to_app.load(Ordering::Relaxed)
    }

    pub(crate) fn bytes_to_client(&self) -> u64 {
        self.to_client.load(Ordering::Relaxed)
    }

    /// So many bytes crossed from the client to the app; none of a body, where they are trailers.
    pub(crate) fn to_app(&self, bytes: usize) {
        self.counters.to_app.add(bytes as u64);
        self.to_app.fetch_add(bytes as u64, Ordering::Relaxed);
        self.traffic();
    }

    /// So many bytes crossed from the app to the client.
    pub(crate) fn to_client(&self, bytes: usize) {
        self.counters.to_client.add(bytes as u64);
        self.to_client.fetch_add(bytes as u64, Ordering::Relaxed);
        self.traffic();
    }

    fn traffic(&self) {
        let now = self.now_ms();
        self.last_bytes_ms.store(now, Ordering::Relaxed);
        let last = self.last_touch_ms.load(Ordering::Relaxed);
        if now.saturating_sub(last) >= TOUCH_EVERY_MS
            // Of both directions at once, one tells.
            && self.last_touch_ms.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        {
            self.directory.touch(&self.microvm);
        }
    }

    /// Keeps the microVM awake while its answer is waited for, and returns once nothing has crossed for this long. A
    /// request whose answer has not begun carries no bytes, and would otherwise be cut off by the suspend of a microVM that
    /// is busy with it.
    pub(crate) async fn unanswered(&self, limit: Duration) {
        while let Err(until) = self.silent_for(limit) {
            tokio::time::sleep_until(until.min(Instant::now() + IN_FLIGHT_EVERY)).await;
            self.directory.touch(&self.microvm);
        }
    }

    /// Returns once nothing has crossed for this long.
    pub(crate) async fn silence(self: Arc<Self>, limit: Duration) {
        while let Err(until) = self.silent_for(limit) {
            tokio::time::sleep_until(until).await;
        }
    }

    /// Has nothing crossed for this long? If something has, when it may be so at the earliest.
    fn silent_for(&self, limit: Duration) -> Result<(), Instant> {
        let last = self.opened + Duration::from_millis(self.last_bytes_ms.load(Ordering::Relaxed));
        let until = last + limit;
        if Instant::now() >= until { Ok(()) } else { Err(until) }
    }
}

impl Drop for Activity {
    fn drop(&mut self) {
        // One that never got to a VM carried nothing.
        if self.started.load(Ordering::Relaxed) {
            self.directory.touch(&self.microvm);
        }
    }
}
