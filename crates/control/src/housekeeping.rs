//! What goes on by itself: the host's reports are passed on, old records go, and so does what a host has of nobody.

use std::{sync::Arc, time::Duration};

use api::{
    host::{Holdings, HostError, HostEvent},
    microvms::MicrovmState,
};
use tokio::time::{MissedTickBehavior, interval};
use tracing::{debug, error};

use crate::{
    idempotency::TOKEN_LIFE_MS,
    shared::Shared,
    store::{StoreError, images, microvms, tokens},
};

/// Time between two looks for old records.
const SWEEP: Duration = Duration::from_secs(60);

/// Time between two comparisons of what a host has with what should be.
const COMPARE: Duration = Duration::from_secs(60);

/// Starts it all. It ends with the daemon, and a drain does not wait for it.
pub(crate) fn start(shared: &Arc<Shared>) {
    let events = shared.clone();
    tokio::spawn(async move {
        tokio::select! {
            () = events.stop.cancelled() => {}
            () = pass_events_on(&events) => {}
        }
    });
    let compares = shared.clone();
    tokio::spawn(async move {
        tokio::select! {
            () = compares.stop.cancelled() => {}
            () = compare_often(&compares) => {}
        }
    });
    let sweeps = shared.clone();
    tokio::spawn(async move {
        tokio::select! {
            () = sweeps.stop.cancelled() => {}
            () = sweep_often(&sweeps) => {}
        }
    });
}

async fn pass_events_on(shared: &Shared) {
    loop {
        let HostEvent::Ended { microvm_id, vm_id, reason } = shared.host.next_event().await;
        match shared.registry.get(&microvm_id) {
            Some(handle) => handle.ended(vm_id, reason).await,
            None => debug!(%microvm_id, %vm_id, reason, "a VM of no microVM ended"),
        }
    }
}

async fn sweep_often(shared: &Shared) {
    let mut ticks = interval(SWEEP);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if let Err(failure) = sweep(shared).await {
            error!(error = &failure as &dyn std::error::Error, "old records could not be removed");
        }
    }
}

/// Why what a host has could not be compared.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CompareError {
    /// The database.
    #[error("the records could not be read")]
    Store(#[from] StoreError),
    /// The host.
    #[error("the host did not say what it has, or could not remove what is nobody's")]
    Host(#[source] HostError),
}

async fn compare_often(shared: &Shared) {
    let mut ticks = interval(COMPARE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // At the start everything has just been compared.
    ticks.tick().await;
    loop {
        ticks.tick().await;
        if let Err(failure) = compare(shared).await {
            error!(
                error = &failure as &dyn std::error::Error,
                "what the host has could not be compared with the records"
            );
        }
    }
}

/// Has the host remove what nobody has a record of. What it has is listed first, and then the records are looked at: a
/// record is made before anything that it is of, and goes after it.
pub(crate) async fn compare(shared: &Shared) -> Result<(), CompareError> {
    let there = shared.host.holdings().await.map_err(CompareError::Host)?;
    let mut nobodys = Holdings::default();
    for id in there.microvms {
        let state = shared.registry.get(&id).map(|handle| handle.status().borrow().state);
        if state.is_none_or(|state| state == MicrovmState::Terminated) {
            nobodys.microvms.push(id);
        }
    }
    let mut connection = shared.store.read().await?;
    for image in there.images {
        if images::find_version(&mut connection, &image).await?.is_none() {
            nobodys.images.push(image);
        }
    }
    drop(connection);
    shared.host.tidy(&nobodys).await.map_err(CompareError::Host)
}

/// Removes the records of what ended long ago, and client tokens that are good for nothing any more.
pub(crate) async fn sweep(shared: &Shared) -> Result<(), StoreError> {
    let now = shared.now();
    let kept = i64::try_from(shared.config.terminated_kept.as_millis()).unwrap_or(i64::MAX);
    let mut connection = shared.store.write().await?;
    let forgotten = microvms::forget_before(&mut connection, now.saturating_sub(kept)).await?;
    tokens::forget_before(&mut connection, now.saturating_sub(TOKEN_LIFE_MS)).await?;
    drop(connection);
    for id in forgotten {
        shared.registry.remove(&id);
    }
    Ok(())
}
