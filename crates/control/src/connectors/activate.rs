//! The task that makes a version of a connector which is PENDING.
//!
//! There is nothing slow to make on one machine: what is checked is that the subnets and security groups are still
//! declared. It takes a moment all the same, so that a client which does not wait for ACTIVE finds out here and not on
//! the real service, where it takes minutes.

use std::{sync::Arc, time::Duration};

use api::connectors::{NetworkConnectorConfiguration, NetworkConnectorState as State, StateReasonCode, Which};
use tokio::time::sleep;
use tracing::{Instrument, error, info, info_span};

use super::{
    record::{Reason, Version},
    state::{Event, made, next},
};
use crate::{
    shared::Shared,
    store::{StoreError, commit, connectors as rows},
};

/// Wait before what could not be written is written again.
const RETRY: Duration = Duration::from_secs(1);

/// Starts the task. Cut off, it is started again at the daemon's next start.
pub(crate) fn start(shared: &Arc<Shared>, version: Version) {
    let span = info_span!("activate", connector = %version.connector, version = version.version);
    shared.spawn(drive(shared.clone(), version).instrument(span));
}

async fn drive(shared: Arc<Shared>, version: Version) {
    tokio::select! {
        () = sleep(shared.config.connector_pending) => {}
        // It stays PENDING, and the next start takes it up.
        () = shared.draining.cancelled() => return,
    }
    while let Err(failure) = settle(&shared, &version).await {
        error!(error = &failure as &dyn std::error::Error, "the connector's state could not be kept");
        sleep(RETRY).await;
    }
}

async fn settle(shared: &Shared, version: &Version) -> Result<(), StoreError> {
    let mut transaction = shared.store.begin().await?;
    let number = version.version;
    let version = rows::find_version(&mut transaction, &version.connector, number).await?;
    let Some(mut version) = version.filter(|version| version.state == State::Pending) else { return Ok(()) };
    let Some(mut connector) = rows::find(&mut transaction, &Which::Id(version.connector)).await? else { return Ok(()) };
    let failure = failure(shared, &version.definition.configuration);
    let well = failure.is_none();
    let Some((state, update)) = next(connector.state, connector.update, Event::Made { well }) else {
        error!(state = %connector.state, "a version was made in a state that has none");
        return Ok(());
    };
    let first = connector.state == State::Pending;
    (connector.state, connector.update) = (state, update);
    version.state = made(well);
    version.reason = failure.unwrap_or_default();
    if well {
        connector.active = Some(number);
    }
    match (first, well) {
        (true, true) => {}
        (true, false) => connector.reason = version.reason.clone(),
        (false, _) => connector.update_reason = version.reason.clone(),
    }
    rows::set_version(&mut transaction, &version).await?;
    rows::update(&mut transaction, &connector).await?;
    commit(transaction).await?;
    info!(state = %version.state, "settled");
    Ok(())
}

/// Why it cannot be made: it was declared when it was asked for, but the configuration may be another after a restart.
fn failure(shared: &Shared, configuration: &NetworkConnectorConfiguration) -> Option<Reason> {
    let NetworkConnectorConfiguration::VpcEgressConfiguration(egress) = configuration;
    egress.unknown_of(&shared.config.networks).map(|(code, id)| {
        let kind = if code == StateReasonCode::InvalidSubnet { "subnet ID" } else { "security group" };
        Reason { text: Some(format!("The {kind} '{id}' does not exist")), code: Some(code) }
    })
}
