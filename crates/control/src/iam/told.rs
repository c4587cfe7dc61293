//! Writes into the audit log what `pilotlight iam` has changed. The command cannot: the file is the server's, which puts it
//! aside when it is full. So a change notes its line in the database, in its own transaction, and the server that runs, or
//! the next one, takes the line from there once it is on the disk. A server that is killed between the two leaves the line
//! twice, with one `requestId`.

use std::{sync::Arc, time::Duration};

use tokio::time::{MissedTickBehavior, interval};
use tracing::error;

use crate::{
    audit::Audit,
    shared::Shared,
    store::{Store, StoreError, audit as rows},
};

/// Time between two looks.
const LOOK: Duration = Duration::from_millis(250);

/// Time until the next look when lines could not be written or the database not be read, which is said each time.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// Why lines stay where they are.
#[derive(Debug, thiserror::Error)]
enum TellError {
    #[error("the lines cannot be read")]
    Store(#[from] StoreError),
    #[error("the audit log cannot be written")]
    Write(#[source] std::io::Error),
}

/// Looks again and again until the daemon stops.
pub(crate) fn start(shared: &Arc<Shared>, audit: Audit) {
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        tokio::select! {
            () = shared.stop.cancelled() => {}
            () = tell_often(&shared.store, &audit) => {}
        }
    });
}

async fn tell_often(store: &Store, audit: &Audit) {
    let mut ticks = interval(LOOK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if let Err(failure) = tell(store, audit).await {
            error!(
                error = &failure as &dyn std::error::Error,
                "changes of users and policies are not in the audit log yet; it is tried again"
            );
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
}

/// Writes all there is, one after the other.
async fn tell(store: &Store, audit: &Audit) -> Result<(), TellError> {
    loop {
        let Some((sequence, line)) = rows::oldest(&mut *store.read().await?).await? else { return Ok(()) };
        audit.keep(line.into_bytes()).await.map_err(TellError::Write)?;
        rows::remove(&mut *store.write().await?, sequence).await?;
    }
}
