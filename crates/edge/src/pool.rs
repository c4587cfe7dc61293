//! Kept-alive connections to apps.
//!
//! The key is the VM, not the microVM: a connection that was open when its VM was suspended is dead, and the VM that
//! resumes has another id, so it is never met with one.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use api::ids::VmId;
use hyper::client::conn::http1::SendRequest;
use tokio::time::Instant;

use crate::body::RequestBody;

/// One app, in one incarnation of its microVM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct AppAddress {
    pub(crate) vm: VmId,
    pub(crate) port: u16,
}

/// A connection that can take a request.
pub(crate) type Sender = SendRequest<RequestBody>;

struct Unused {
    sender: Sender,
    since: Instant,
}

/// The connections nobody uses at the moment.
pub(crate) struct Pool {
    idle: Duration,
    per_app: usize,
    total: usize,
    unused: Mutex<Contents>,
}

#[derive(Default)]
struct Contents {
    apps: HashMap<AppAddress, Vec<Unused>>,
    count: usize,
}

impl Pool {
    pub(crate) fn new(idle: Duration, per_app: usize, total: usize) -> Arc<Self> {
        Arc::new(Self { idle, per_app, total, unused: Mutex::default() })
    }

    // No panic can leave the map half-changed, so a poisoned lock is still good.
    fn contents(&self) -> MutexGuard<'_, Contents> {
        self.unused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A live connection, the one used last.
    pub(crate) fn take(&self, app: &AppAddress) -> Option<Sender> {
        let mut contents = self.contents();
        let Contents { apps, count } = &mut *contents;
        let unused = apps.get_mut(app)?;
        let mut found = None;
        while let Some(Unused { sender, since }) = unused.pop() {
            *count -= 1;
            if sender.is_ready() && since.elapsed() < self.idle {
                found = Some(sender);
                break;
            }
        }
        if unused.is_empty() {
            apps.remove(app);
        }
        found
    }

    /// Keeps a connection once its present exchange is over, unless it ends with it.
    pub(crate) fn keep(self: &Arc<Self>, app: AppAddress, mut sender: Sender) {
        let pool = Arc::clone(self);
        // Ends with the exchange at the latest, which has its own limits.
        tokio::spawn(async move {
            if sender.ready().await.is_ok() {
                pool.put(app, sender);
            }
        });
    }

    fn put(&self, app: AppAddress, sender: Sender) {
        let mut contents = self.contents();
        let Contents { apps, count } = &mut *contents;
        // At a limit the newcomer is closed: to find the oldest of all would cost more than to dial again.
        if *count >= self.total {
            return;
        }
        let unused = apps.entry(app).or_default();
        if unused.len() < self.per_app {
            unused.push(Unused { sender, since: Instant::now() });
            *count += 1;
        }
    }

    /// Closes all connections to an app: one was found dead, and the others are as old.
    pub(crate) fn forget(&self, app: &AppAddress) {
        let mut contents = self.contents();
        if let Some(dropped) = contents.apps.remove(app) {
            contents.count -= dropped.len();
        }
    }

    /// Closes what was unused for too long.
    pub(crate) fn sweep(&self) {
        let mut contents = self.contents();
        let idle = self.idle;
        contents.apps.retain(|_, unused| {
            unused.retain(|unused| unused.sender.is_ready() && unused.since.elapsed() < idle);
            !unused.is_empty()
        });
        contents.count = contents.apps.values().map(Vec::len).sum();
    }
}
