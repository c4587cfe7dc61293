//! Who may do what, and what should exist.
//!
//! Control owns the records: images with their builds, and microVMs. A task owns each thing that changes: a driver for a
//! microVM, one for a build, one for a deletion. What a request means is decided by pure functions over a state
//! (`microvms::admission`, `microvms::state`, `images::state`); what must survive a crash is in the database before the
//! step that depends on it begins; and at the start `recovery` compares what should be with what the host has.

#![forbid(unsafe_code)]

pub mod audit;
pub mod auth;
mod clock;
mod config;
mod connectors;
mod directory;
mod housekeeping;
pub mod http;
pub mod iam;
mod idempotency;
mod images;
mod lifecycle;
mod links;
mod microvms;
mod operations;
mod pages;
mod recovery;
mod shared;
mod store;
mod tags;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use std::{path::Path, sync::Arc, time::Duration};

use api::{
    host::{HostError, SharedHost},
    token::TokenKeys,
};
use futures_util::future::BoxFuture;
use tokio::{sync::Semaphore, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::warn;

use self::{clock::Clock, microvms::registry::Registry, recovery::RecoverError, shared::Shared, store::Store};
pub use self::{
    config::{ControlConfig, Quotas, Simulation},
    lifecycle::{ImageLifecycle, Lifecycle, LifecycleError},
    links::{ImageLinks, Links},
    store::{Gauge, StoreError},
};

/// How long tasks that were told to end where they are get for it.
const STOP_TIME_MAX: Duration = Duration::from_secs(5);

/// Why control could not be started.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The database.
    #[error("the database could not be used")]
    Store(#[source] StoreError),
    /// The host could not say what it has.
    #[error("the host could not say what it has")]
    Reconcile(#[source] HostError),
}

/// Control. Dropping it ends its tasks where they are, as a crash would; [`Control::drain`] does it in good order.
pub struct Control {
    shared: Arc<Shared>,
}

impl Control {
    /// Opens the database, compares it with the host, and takes up everything where it was left. When this returns,
    /// requests can be answered.
    //
    // Boxed, as the others that servers call: an `async fn` would be compiled once more, with all that it calls, in each program.
    pub fn open(
        config: ControlConfig,
        database: &Path,
        host: SharedHost,
        token_keys: Arc<TokenKeys>,
    ) -> BoxFuture<'_, Result<Arc<Self>, OpenError>> {
        let clock = config.simulation.clone().map_or_else(Clock::of_this_boot, Clock::simulated);
        Box::pin(Self::open_by(clock, config, database, host, token_keys))
    }

    async fn open_by(
        clock: Clock,
        config: ControlConfig,
        database: &Path,
        host: SharedHost,
        token_keys: Arc<TokenKeys>,
    ) -> Result<Arc<Self>, OpenError> {
        let gauge = config.simulation.as_ref().map(|simulation| simulation.gauge.clone()).unwrap_or_default();
        let store = Store::open_with(database, &gauge).await.map_err(OpenError::Store)?;
        let shared = Arc::new(Shared {
            builds: Arc::new(Semaphore::new(config.builds_concurrent_max)),
            config,
            store,
            host,
            token_keys,
            registry: Registry::default(),
            clock,
            tasks: TaskTracker::new(),
            draining: CancellationToken::new(),
            stop: CancellationToken::new(),
        });
        // From here on, so that a failure below ends what was started already.
        let control = Arc::new(Self { shared: shared.clone() });
        recovery::recover(&shared).await.map_err(|error| match error {
            RecoverError::Store(error) => OpenError::Store(error),
            RecoverError::Host(error) => OpenError::Reconcile(error),
        })?;
        housekeeping::start(&shared);
        Ok(control)
    }

    /// Keeps these principals as the database has them, from now on. When this returns, they are.
    pub fn follow_principals(
        &self,
        principals: Arc<auth::Principals>,
        key: iam::SealingKey,
    ) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(iam::follow::start(&self.shared, principals, key))
    }

    /// Writes into this log, from now on, what commands have changed and will change beside this server.
    pub fn tell_changes(&self, audit: audit::Audit) {
        iam::told::start(&self.shared, audit);
    }

    /// Begins nothing new and lets what is going on finish, until the deadline; then ends the rest where it is. Running
    /// microVMs stay running, for the next start to find.
    pub fn drain(&self, deadline: Duration) -> BoxFuture<'_, ()> {
        Box::pin(self.drain_within(deadline))
    }

    async fn drain_within(&self, deadline: Duration) {
        let Shared { draining, tasks, stop, store, .. } = &*self.shared;
        draining.cancel();
        tasks.close();
        if timeout(deadline, tasks.wait()).await.is_err() {
            warn!(left = tasks.len(), "not everything came to its end in time; the next start takes it up");
        }
        stop.cancel();
        if timeout(STOP_TIME_MAX, tasks.wait()).await.is_err() {
            warn!(left = tasks.len(), "some tasks did not end");
        }
        store.close().await;
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.shared.draining.cancel();
        self.shared.stop.cancel();
    }
}
