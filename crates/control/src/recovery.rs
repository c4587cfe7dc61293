//! The start: what should be, compared with what the host has.

use std::{collections::HashMap, sync::Arc};

use api::{
    connectors::NetworkConnectorState,
    host::{Found, HostError},
    ids::{MicrovmId, VmId},
    images::{BuildState, ImageState, VersionState},
};
use tracing::{info, warn};

use crate::{
    clock::Moment,
    connectors::{self, activate, delete::Leaving},
    images::{build, delete},
    microvms::{
        self,
        driver::REASON_SUCCESS,
        record::{Fate, Record},
        state::{Aim, Event, State, next},
    },
    shared::Shared,
    store::{StoreError, commit, connectors as connector_rows, images as image_rows, microvms as microvm_rows},
};

/// `stateReason` of a microVM the host has no more.
pub(crate) const REASON_LOST: &str = "INTERNAL_PLATFORM_ERROR: the microVM was lost when its host stopped";

/// `stateReason` of a build that a restart cut off.
pub(crate) const REASON_INTERRUPTED: &str = "INTERNAL_PLATFORM_ERROR: the build was interrupted by a restart";

/// Why the start failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecoverError {
    /// The database.
    #[error("the records could not be read or repaired")]
    Store(#[from] StoreError),
    /// The host.
    #[error("the host could not say what it has")]
    Host(#[source] HostError),
}

/// Compares, repairs, and starts everything that has a task of its own.
pub(crate) async fn recover(shared: &Arc<Shared>) -> Result<(), RecoverError> {
    // First, as it decides what of a version that has several builds is worth keeping.
    fail_interrupted_builds(shared).await?;
    let (records, kept) = {
        let mut connection = shared.store.read().await?;
        (microvm_rows::all(&mut connection).await?, image_rows::kept(&mut connection).await?)
    };
    let specs: Vec<_> =
        records.iter().filter(|it| it.fate.state != State::Terminated).map(|it| it.spec.clone()).collect();
    let found = shared.host.reconcile(&specs, &kept).await.map_err(RecoverError::Host)?;
    let found: HashMap<MicrovmId, Found> = found.into_iter().collect();
    for record in records {
        recover_microvm(shared, record, &found).await?;
    }
    let (waiting, leaving, versions_leaving) = {
        let mut connection = shared.store.read().await?;
        let waiting = image_rows::unfinished_builds(&mut connection).await?;
        let leaving = image_rows::in_state(&mut connection, ImageState::Deleting).await?;
        (waiting, leaving, image_rows::versions_in_state(&mut connection, VersionState::Deleting).await?)
    };
    let (pending, deleting, deleting_versions) = {
        let mut connection = shared.store.read().await?;
        (
            connector_rows::versions_in_state(&mut connection, NetworkConnectorState::Pending).await?,
            connector_rows::list(&mut connection, Some(NetworkConnectorState::Deleting), i64::MAX, u32::MAX).await?,
            connector_rows::versions_in_state(&mut connection, NetworkConnectorState::Deleting).await?,
        )
    };
    for version in pending {
        activate::start(shared, version);
    }
    for connector in deleting {
        connectors::delete::start(shared, Leaving::Connector(connector.id));
    }
    for version in deleting_versions {
        connectors::delete::start(shared, Leaving::Version(version.connector, version.version));
    }
    for build in waiting {
        build::start(shared, build);
    }
    for image in leaving {
        delete::start(shared, image);
    }
    for version in versions_leaving {
        delete::start_version(shared, version);
    }
    Ok(())
}

async fn fail_interrupted_builds(shared: &Arc<Shared>) -> Result<(), StoreError> {
    let mut transaction = shared.store.begin().await?;
    let now = shared.now();
    for mut build in image_rows::unfinished_builds(&mut transaction).await? {
        // One that was waiting for its turn has lost nothing, and waits again.
        if build.state == BuildState::InProgress {
            warn!(build = %build.id, "the build was interrupted by a restart");
            build.state = BuildState::Failed;
            build.outcome.reason = Some(REASON_INTERRUPTED.to_owned());
            build::record(&mut transaction, &build, now).await?;
        }
    }
    commit(transaction).await
}

async fn recover_microvm(
    shared: &Arc<Shared>,
    mut record: Record,
    found: &HashMap<MicrovmId, Found>,
) -> Result<(), StoreError> {
    let id = record.spec.microvm_id;
    let found = found.get(&id).copied().unwrap_or(Found::Nothing);
    // What passed while the daemon was down, or the host, is counted now; from here on this boot's clock counts.
    let now = shared.clock.now();
    let mut kept = record.fate.clone();
    kept.suspended_at = kept.suspended_at.map(|moment| moment.carried_to(&now));
    let started_at = record.started_at.carried_to(&now);
    let (fate, vm_id) = recovered(&kept, found, now);
    if fate.state != State::Terminated {
        info!(microvm = %id, recorded = %record.fate.state, ?found, now = %fate.state, "recovered");
    }
    if started_at != record.started_at {
        let mut connection = shared.store.write().await?;
        microvm_rows::carry(&mut connection, &id, &started_at).await?;
        record.started_at = started_at;
    }
    if fate != record.fate {
        let mut connection = shared.store.write().await?;
        microvm_rows::update(&mut connection, &id, &fate).await?;
        record.fate = fate;
    }
    microvms::start(shared, record, vm_id, found != Found::Nothing);
    Ok(())
}

/// What a microVM is, given its record and what the host found; and its VM.
fn recovered(fate: &Fate, found: Found, now: Moment) -> (Fate, Option<VmId>) {
    let (event, vm_id) = match found {
        Found::Running(vm_id) => (Event::FoundRunning, Some(vm_id)),
        Found::Suspended => (Event::FoundSuspended, None),
        Found::Nothing => (Event::FoundNothing, None),
    };
    let Some(state) = next(fate.state, event) else {
        return (fate.clone(), None);
    };
    let mut after = Fate { state, ..fate.clone() };
    match (fate.state, state) {
        (_, State::Suspended) => after.suspended_at = fate.suspended_at.or(Some(now)),
        // A wake had brought it back; that it was to run was not written.
        (State::Suspended, State::Running) => {
            if fate.aim == Aim::Suspended {
                after.aim = Aim::Running;
            }
            after.suspended_at = None;
        }
        (State::Terminating, State::Terminating) => {
            after.reason.get_or_insert_with(|| REASON_SUCCESS.to_owned());
        }
        (_, State::Terminating) => {
            after.aim = Aim::Terminated;
            after.reason = Some(REASON_LOST.to_owned());
        }
        (_, State::Pending | State::Running | State::Suspending | State::Terminated) => {}
    }
    (after, vm_id)
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use api::word::Word;

    use super::*;

    #[test]
    fn the_table() {
        let mut table = String::new();
        for &state in State::ALL {
            for aim in Aim::ALL {
                let running = Found::Running(VmId::random());
                for (name, found) in
                    [("running", running), ("suspended", Found::Suspended), ("nothing", Found::Nothing)]
                {
                    let fate = Fate { state, aim, ..Fate::pending() };
                    let (fate, vm_id) = recovered(&fate, found, Moment { unix_ms: 0, boot: None });
                    assert_eq!(vm_id.is_some(), found == running && state != State::Terminated);
                    let (before, after) = (state.as_str(), fate.state.as_str());
                    let (aim, new_aim) = (aim.as_str(), fate.aim.as_str());
                    writeln!(table, "{before:<12}{aim:<11}{name:<10} {after:<12}{new_aim}").unwrap();
                }
            }
        }
        insta::assert_snapshot!(table);
    }
}
