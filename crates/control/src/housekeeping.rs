//! What goes on by itself: the host's reports are passed on, and old records go.

use std::{sync::Arc, time::Duration};

use api::host::HostEvent;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{debug, error};

use crate::{
    idempotency::TOKEN_LIFE_MS,
    shared::Shared,
    store::{StoreError, microvms, tokens},
};

/// Time between two looks for old records.
const SWEEP: Duration = Duration::from_secs(60);

/// Starts both. They end with the daemon, and a drain does not wait for them.
pub(crate) fn start(shared: &Arc<Shared>) {
    let events = shared.clone();
    tokio::spawn(async move {
        tokio::select! {
            () = events.stop.cancelled() => {}
            () = pass_events_on(&events) => {}
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
