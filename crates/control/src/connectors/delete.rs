//! The task that removes a connector, or one version of it, which is DELETING.

use std::{sync::Arc, time::Duration};

use api::{
    connectors::{StateReasonCode, Which},
    ids::ConnectorId,
};
use tokio::time::sleep;
use tracing::{Instrument, error, info, info_span};

use super::{
    record::Reason,
    state::{Event, next},
};
use crate::{
    shared::Shared,
    store::{StoreError, commit, connectors as rows},
};

/// How often it is tried before the connector is DELETE_FAILED.
const TRIES: u32 = 4;

/// Wait before the second try; it doubles.
const RETRY_FIRST: Duration = Duration::from_millis(500);

/// What is to go.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Leaving {
    /// All of it.
    Connector(ConnectorId),
    /// One version.
    Version(ConnectorId, u64),
}

/// Starts the task. Cut off, it is started again at the daemon's next start.
pub(crate) fn start(shared: &Arc<Shared>, leaving: Leaving) {
    let span = info_span!("delete", ?leaving);
    shared.spawn(drive(shared.clone(), leaving).instrument(span));
}

async fn drive(shared: Arc<Shared>, leaving: Leaving) {
    let mut wait = RETRY_FIRST;
    for _ in 0..TRIES {
        match remove(&shared, leaving).await {
            Ok(()) => return info!("deleted"),
            Err(failure) => error!(error = &failure as &dyn std::error::Error, "the connector's records are stuck"),
        }
        sleep(wait).await;
        wait *= 2;
    }
    if let Err(failure) = give_up(&shared, leaving).await {
        error!(error = &failure as &dyn std::error::Error, "it stays DELETING until the next start");
    }
}

async fn remove(shared: &Shared, leaving: Leaving) -> Result<(), StoreError> {
    let mut connection = shared.store.write().await?;
    match leaving {
        Leaving::Connector(id) => rows::remove(&mut connection, &id).await,
        Leaving::Version(id, version) => rows::remove_version(&mut connection, &id, version).await,
    }
}

/// A version alone stays DELETING: its connector goes on without it, and the next start tries again.
async fn give_up(shared: &Shared, leaving: Leaving) -> Result<(), StoreError> {
    let Leaving::Connector(id) = leaving else { return Ok(()) };
    let mut transaction = shared.store.begin().await?;
    let Some(mut connector) = rows::find(&mut transaction, &Which::Id(id)).await? else { return Ok(()) };
    let Some((state, update)) = next(connector.state, connector.update, Event::DeleteFailed) else { return Ok(()) };
    (connector.state, connector.update) = (state, update);
    let text = Some("The network connector's records could not be removed".to_owned());
    connector.reason = Reason { text, code: Some(StateReasonCode::InternalError) };
    rows::update(&mut transaction, &connector).await?;
    commit(transaction).await
}
