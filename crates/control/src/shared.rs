//! What every part of control works with.

use std::{future::Future, sync::Arc};

use api::{arn::ImageArn, catalogue, error::ServiceError, host::SharedHost, ids::EndpointId, token::TokenKeys};
use tokio::sync::Semaphore;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::error;

use crate::{ControlConfig, clock::Clock, microvms::registry::Registry, store::Store, store::StoreError};

/// One per daemon.
pub(crate) struct Shared {
    pub(crate) config: ControlConfig,
    pub(crate) store: Store,
    pub(crate) host: SharedHost,
    pub(crate) token_keys: Arc<TokenKeys>,
    pub(crate) registry: Registry,
    pub(crate) clock: Clock,
    /// A build that goes on holds a permit.
    pub(crate) builds: Arc<Semaphore>,
    /// What a drain waits for: drivers, builds, deletions.
    pub(crate) tasks: TaskTracker,
    /// Nothing new is begun.
    pub(crate) draining: CancellationToken,
    /// Everything ends where it is.
    pub(crate) stop: CancellationToken,
}

impl Shared {
    /// Milliseconds since the epoch.
    pub(crate) fn now(&self) -> i64 {
        self.clock.now().unix_ms
    }

    /// ARN of one of our images.
    pub(crate) fn image_arn(&self, name: &str) -> ImageArn {
        ImageArn::new(&self.config.region, &self.config.account, name)
    }

    /// Host name of an endpoint.
    pub(crate) fn endpoint(&self, endpoint: &EndpointId) -> String {
        format!("{endpoint}.{}", self.config.endpoint_suffix)
    }

    /// Starts a task that a drain waits for.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = task => {}
            }
        });
    }

    /// Refuses what would begin something while the daemon is stopping.
    pub(crate) fn accepting(&self) -> Result<(), ServiceError> {
        if self.draining.is_cancelled() { Err(stopping()) } else { Ok(()) }
    }

    /// Carries a change through even if who asked for it hangs up: between a commit and the start of what it promises
    /// there must be no way out.
    pub(crate) async fn carry_through<T: Send + 'static>(
        &self,
        change: impl Future<Output = Result<T, ServiceError>> + Send + 'static,
    ) -> Result<T, ServiceError> {
        self.accepting()?;
        self.tasks.spawn(change).await.unwrap_or_else(|failure| {
            error!(error = &failure as &dyn std::error::Error, "an operation came to no end");
            Err(catalogue::internal_error())
        })
    }
}

/// The daemon is stopping; its next start is a matter of seconds.
pub(crate) fn stopping() -> ServiceError {
    ServiceError::InternalServer { message: "The service is restarting.".into(), retry_after_seconds: Some(2) }
}

/// What a caller is told of a failure of the database.
#[allow(clippy::needless_pass_by_value, reason = "the form that map_err takes")]
pub(crate) fn hidden(error: StoreError) -> ServiceError {
    error!(error = &error as &dyn std::error::Error, "an operation failed");
    catalogue::internal_error()
}
