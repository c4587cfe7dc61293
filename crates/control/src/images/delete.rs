//! The task that removes an image which is DELETING.

use std::{sync::Arc, time::Duration};

use tokio::time::sleep;
use tracing::{Instrument, error, info, info_span, warn};

use super::{
    record::Image,
    state::{Event, next},
};
use crate::{
    shared::Shared,
    store::{StoreError, images as rows},
};

/// How often a host is asked to remove a version before the image is DELETE_FAILED.
const TRIES: u32 = 4;

/// Wait before the second try; it doubles.
const RETRY_FIRST: Duration = Duration::from_millis(500);

/// Starts the task. Cut off, it is started again at the daemon's next start.
pub(crate) fn start(shared: &Arc<Shared>, image: Image) {
    let span = info_span!("delete", image = %image.id, name = image.name);
    shared.spawn(drive(shared.clone(), image).instrument(span));
}

async fn drive(shared: Arc<Shared>, image: Image) {
    let mut wait = RETRY_FIRST;
    for _ in 0..TRIES {
        match remove(&shared, &image).await {
            Ok(true) => return info!("deleted"),
            Ok(false) => {}
            Err(failure) => error!(error = &failure as &dyn std::error::Error, "the image's records are stuck"),
        }
        sleep(wait).await;
        wait *= 2;
    }
    if let Some(state) = next(image.state, Event::DeleteFailed) {
        let kept = async {
            let mut connection = shared.store.write().await?;
            rows::set_state(&mut connection, &image.id, state, shared.now()).await
        };
        if let Err(failure) = kept.await {
            error!(error = &failure as &dyn std::error::Error, "the image stays DELETING until the next start");
        }
    }
}

/// Removes what the host has, and then the records; says whether that is done.
async fn remove(shared: &Shared, image: &Image) -> Result<bool, StoreError> {
    let versions = {
        let mut connection = shared.store.read().await?;
        rows::versions_of(&mut connection, &image.id).await?
    };
    for version in versions {
        if let Err(failure) = shared.host.remove_image(&version).await {
            warn!(error = &failure as &dyn std::error::Error, version = %version.version, "not removed");
            return Ok(false);
        }
    }
    let mut connection = shared.store.write().await?;
    rows::remove(&mut connection, &image.id).await?;
    Ok(true)
}
