//! The tasks that remove an image, or one version of it, which is DELETING.

use std::{sync::Arc, time::Duration};

use api::{host::ImageRef, images::VersionState};
use tokio::time::sleep;
use tracing::{Instrument, error, info, info_span, warn};

use super::{
    record::Image,
    state::{Event, next},
};
use crate::{
    shared::Shared,
    store::{Connection, StoreError, commit, images as rows},
};

/// How often a host is asked to remove a version before the image is DELETE_FAILED.
const TRIES: u32 = 4;

/// Wait before the second try; it doubles.
const RETRY_FIRST: Duration = Duration::from_millis(500);

/// What is to go.
enum Leaving {
    /// An image that is DELETING, with all its versions.
    Image(Image),
    /// A version that is DELETING, of an image that is UPDATING because of it.
    Version(ImageRef),
}

/// Starts the task for an image. Cut off, it is started again at the daemon's next start.
pub(crate) fn start(shared: &Arc<Shared>, image: Image) {
    let span = info_span!("delete", image = %image.id, name = image.name);
    shared.spawn(drive(shared.clone(), Leaving::Image(image)).instrument(span));
}

/// Starts the task for a version; the same holds for it.
pub(crate) fn start_version(shared: &Arc<Shared>, version: ImageRef) {
    let span = info_span!("delete", image = %version.image_id, version = %version.version);
    shared.spawn(drive(shared.clone(), Leaving::Version(version)).instrument(span));
}

async fn drive(shared: Arc<Shared>, leaving: Leaving) {
    let mut wait = RETRY_FIRST;
    for _ in 0..TRIES {
        let removed = match &leaving {
            Leaving::Image(image) => remove(&shared, image).await,
            Leaving::Version(version) => remove_version(&shared, version).await,
        };
        match removed {
            Ok(true) => return info!("deleted"),
            Ok(false) => {}
            Err(failure) => error!(error = &failure as &dyn std::error::Error, "the records are stuck"),
        }
        sleep(wait).await;
        wait *= 2;
    }
    let kept = match &leaving {
        Leaving::Image(image) => give_up(&shared, image).await,
        Leaving::Version(version) => give_version_up(&shared, version).await,
    };
    if let Err(failure) = kept {
        error!(error = &failure as &dyn std::error::Error, "it stays DELETING until the next start");
    }
}

/// Removes what a host has of a version that has failed for good: its builds that went well. Nothing can be launched from
/// it, so what cannot be removed now costs no more than room until the next start, which removes it.
pub(crate) async fn forget_files(shared: &Shared, version: &ImageRef) {
    let mut wait = RETRY_FIRST;
    for _ in 0..TRIES {
        if removed_from_host(shared, version).await {
            return;
        }
        sleep(wait).await;
        wait *= 2;
    }
    error!(version = %version.version, "the files of a failed version stay until the next start");
}

/// Removes what the host has, and then the records; says whether that is done.
async fn remove(shared: &Shared, image: &Image) -> Result<bool, StoreError> {
    let versions = {
        let mut connection = shared.store.read().await?;
        rows::versions_of(&mut connection, &image.id).await?
    };
    for version in versions {
        if !removed_from_host(shared, &version).await {
            return Ok(false);
        }
    }
    let mut connection = shared.store.write().await?;
    rows::remove(&mut connection, &image.id).await?;
    Ok(true)
}

async fn remove_version(shared: &Shared, version: &ImageRef) -> Result<bool, StoreError> {
    if !removed_from_host(shared, version).await {
        return Ok(false);
    }
    let mut transaction = shared.store.begin().await?;
    rows::remove_version(&mut transaction, version).await?;
    end_removal(shared, &mut transaction, version, true).await?;
    commit(transaction).await?;
    Ok(true)
}

async fn removed_from_host(shared: &Shared, version: &ImageRef) -> bool {
    let removed = shared.host.remove_image(version).await;
    if let Err(failure) = &removed {
        warn!(error = failure as &dyn std::error::Error, version = %version.version, "not removed");
    }
    removed.is_ok()
}

async fn give_up(shared: &Shared, image: &Image) -> Result<(), StoreError> {
    let Some(state) = next(image.state, Event::DeleteFailed) else { return Ok(()) };
    let mut connection = shared.store.write().await?;
    rows::set_state(&mut connection, &image.id, state, shared.now()).await
}

async fn give_version_up(shared: &Shared, version: &ImageRef) -> Result<(), StoreError> {
    let mut transaction = shared.store.begin().await?;
    if let Some(row) = rows::find_version(&mut transaction, version).await? {
        let state = VersionState::DeleteFailed;
        rows::set_version(&mut transaction, version, state, row.status, shared.now()).await?;
    }
    end_removal(shared, &mut transaction, version, false).await?;
    commit(transaction).await
}

async fn end_removal(
    shared: &Shared,
    connection: &mut Connection,
    version: &ImageRef,
    well: bool,
) -> Result<(), StoreError> {
    let Some(image) = rows::by_id(connection, &version.image_id).await? else {
        return Ok(());
    };
    match next(image.state, Event::VersionRemoved { well }) {
        Some(state) => rows::settle(connection, &image.id, state, shared.now()).await,
        None => {
            error!(state = %image.state, "the end of a removal in a state that has none");
            Ok(())
        }
    }
}
