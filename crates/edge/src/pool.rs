//! Kept connections to apps: with HTTP/1.1 those that nobody uses at the moment, with HTTP/2 those that more may use.
//!
//! The key is the VM, not the microVM: a connection that was open when its VM was suspended is dead, and the VM that
//! resumes has another id, so it is never met with one.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use api::ids::VmId;
use hyper::client::conn::{http1, http2};
use tokio::time::Instant;

use crate::hold::Outgoing;

/// Requests on one HTTP/2 connection to an app, if the app allows as many. The next is given a connection of its own, as
/// one that waited for a stream to end might wait for ever.
const STREAMS: usize = 256;

/// One app, in one incarnation of its microVM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct AppAddress {
    pub(crate) vm: VmId,
    pub(crate) port: u16,
}

/// A connection that takes one request at a time.
pub(crate) type Single = http1::SendRequest<Outgoing>;

/// A connection that takes many.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) sender: http2::SendRequest<Outgoing>,
    pub(crate) tls: bool,
    most: usize,
    in_use: Arc<AtomicUsize>,
}

/// One request's share of a connection that takes many, until its answer is over.
pub(crate) struct Share(Arc<AtomicUsize>);

impl Shared {
    /// `most` is how many requests the app takes at once.
    pub(crate) fn new(sender: http2::SendRequest<Outgoing>, tls: bool, most: usize) -> Self {
        Self { sender, tls, most: most.min(STREAMS), in_use: Arc::default() }
    }

    pub(crate) fn share(&self) -> Share {
        self.in_use.fetch_add(1, Ordering::Relaxed);
        Share(Arc::clone(&self.in_use))
    }

    fn used(&self) -> usize {
        self.in_use.load(Ordering::Relaxed)
    }

    fn has_room(&self) -> bool {
        !self.sender.is_closed() && self.used() < self.most
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The kept connections.
pub(crate) struct Pool {
    idle: Duration,
    per_app: usize,
    total: usize,
    contents: Mutex<Contents>,
}

#[derive(Default)]
struct Contents {
    apps: HashMap<AppAddress, App>,
    /// Unused ones that take one request.
    count: usize,
}

#[derive(Default)]
struct App {
    unused: Vec<(Single, Instant)>,
    /// With the time when they were last seen in use.
    shared: Vec<(Shared, Instant)>,
    connecting: Arc<tokio::sync::Mutex<()>>,
}

impl App {
    fn is_empty(&self) -> bool {
        self.unused.is_empty() && self.shared.is_empty() && Arc::strong_count(&self.connecting) == 1
    }
}

impl Pool {
    pub(crate) fn new(idle: Duration, per_app: usize, total: usize) -> Arc<Self> {
        Arc::new(Self { idle, per_app, total, contents: Mutex::default() })
    }

    // No panic can leave the map half-changed, so a poisoned lock is still good.
    fn contents(&self) -> MutexGuard<'_, Contents> {
        self.contents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A live connection that takes one request, the one used last.
    pub(crate) fn take(&self, app: &AppAddress) -> Option<Single> {
        let mut contents = self.contents();
        let Contents { apps, count } = &mut *contents;
        let entry = apps.get_mut(app)?;
        let mut found = None;
        while let Some((sender, since)) = entry.unused.pop() {
            *count -= 1;
            if sender.is_ready() && since.elapsed() < self.idle {
                found = Some(sender);
                break;
            }
        }
        if entry.is_empty() {
            apps.remove(app);
        }
        found
    }

    /// A connection that takes one more request.
    pub(crate) fn join(&self, app: &AppAddress) -> Option<(Shared, Share)> {
        let mut contents = self.contents();
        let (shared, last) = contents.apps.get_mut(app)?.shared.iter_mut().find(|(shared, _)| shared.has_room())?;
        *last = Instant::now();
        Some((shared.clone(), shared.share()))
    }

    /// Who is to make a connection for many waits for this first, and then looks whether another has made it meanwhile.
    pub(crate) fn turn(&self, app: &AppAddress) -> Arc<tokio::sync::Mutex<()>> {
        Arc::clone(&self.contents().apps.entry(*app).or_default().connecting)
    }

    /// Keeps a connection once its present exchange is over, unless it ends with it.
    pub(crate) fn keep(self: &Arc<Self>, app: AppAddress, mut sender: Single) {
        // A short answer has been read to its end by the time that its head is looked at.
        if sender.is_ready() {
            return self.put(app, sender);
        }
        let pool = Arc::clone(self);
        // Ends with the exchange at the latest, which has its own limits.
        tokio::spawn(async move {
            if sender.ready().await.is_ok() {
                pool.put(app, sender);
            }
        });
    }

    fn put(&self, app: AppAddress, sender: Single) {
        let mut contents = self.contents();
        let Contents { apps, count } = &mut *contents;
        // At a limit the newcomer is closed: to find the oldest of all would cost more than to dial again.
        if *count >= self.total {
            return;
        }
        let entry = apps.entry(app).or_default();
        if entry.unused.len() < self.per_app {
            entry.unused.push((sender, Instant::now()));
            *count += 1;
        }
    }

    /// Lets others join a connection. They are as many as the requests in flight need, so they have no limit of their own.
    pub(crate) fn open(&self, app: AppAddress, shared: Shared) {
        self.contents().apps.entry(app).or_default().shared.push((shared, Instant::now()));
    }

    /// Closes all connections to an app: one was found dead, and the others are as old. What is in flight goes on.
    pub(crate) fn forget(&self, app: &AppAddress) {
        let mut contents = self.contents();
        if let Some(dropped) = contents.apps.remove(app) {
            contents.count -= dropped.unused.len();
        }
    }

    /// Closes all that take one request and that nobody uses, and those for many without a request.
    pub(crate) fn close_unused(&self) {
        let mut contents = self.contents();
        contents.apps.retain(|_, app| {
            app.unused.clear();
            app.shared.retain(|(shared, _)| shared.used() > 0);
            !app.is_empty()
        });
        contents.count = 0;
    }

    /// Closes what was unused for too long.
    pub(crate) fn sweep(&self) {
        let mut contents = self.contents();
        let idle = self.idle;
        contents.apps.retain(|_, app| {
            app.unused.retain(|(sender, since)| sender.is_ready() && since.elapsed() < idle);
            app.shared.retain_mut(|(shared, last)| {
                if shared.used() > 0 {
                    *last = Instant::now();
                }
                !shared.sender.is_closed() && last.elapsed() < idle
            });
            !app.is_empty()
        });
        contents.count = contents.apps.values().map(|app| app.unused.len()).sum();
    }
}
