//! The task that owns a build.

use std::{sync::Arc, time::Duration};

use api::{
    host::{BuildFailure, BuildReport, BuildSpec, ImageLabels},
    images::{BuildState, VersionStatus},
    sensitive::Sensitive,
};
use tokio::time::sleep;
use tracing::{Instrument, error, info, info_span};

use super::{
    record::{Build, Definition, Image, Outcome},
    state::{Event, after_build, next},
};
use crate::{
    shared::Shared,
    store::{Connection, StoreError, commit, images as rows},
};

/// Wait before what could not be written is written again.
const RETRY: Duration = Duration::from_secs(1);

/// Starts the task of a build that is PENDING. It waits for its turn.
pub(crate) fn start(shared: &Arc<Shared>, build: Build) {
    let span = info_span!("build", id = %build.id, image = %build.image.image_id, version = %build.image.version);
    shared.spawn(drive(shared.clone(), build).instrument(span));
}

async fn drive(shared: Arc<Shared>, mut build: Build) {
    let permit = tokio::select! {
        permit = shared.builds.clone().acquire_owned() => permit,
        // It stays PENDING, and the next start takes it up.
        () = shared.draining.cancelled() => return,
    };
    let Ok(_permit) = permit else { return };
    build.state = BuildState::InProgress;
    let (image, definition) = loop {
        match begin(&shared, &build).await {
            Ok(Some(begun)) => break begun,
            Ok(None) => return error!("the build's image is gone"),
            Err(failure) => {
                error!(error = &failure as &dyn std::error::Error, "the build's begin could not be kept");
                sleep(RETRY).await;
            }
        }
    };
    info!("begun");
    // In a task of its own: should the host panic, the image must not stay CREATING for ever.
    let host = shared.host.clone();
    let spec = spec(&shared, &build, &image, definition);
    let result = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(async move { host.build(spec).await }))
        .await
        .unwrap_or_else(|failure| {
            error!(error = &failure as &dyn std::error::Error, "the build came to no end");
            let reason = "INTERNAL_PLATFORM_ERROR: the host failed".to_owned();
            Err(BuildFailure { reason, code_install_bytes: None })
        });
    let (state, status) = after_build(result.is_ok());
    info!(%state, "finished");
    build.state = state;
    build.outcome = outcome(result);
    while let Err(failure) = end(&shared, &build, status).await {
        error!(error = &failure as &dyn std::error::Error, "the build's end could not be kept");
        sleep(RETRY).await;
    }
}

async fn begin(shared: &Shared, build: &Build) -> Result<Option<(Image, Definition)>, StoreError> {
    let mut transaction = shared.store.begin().await?;
    let image = rows::by_id(&mut transaction, &build.image.image_id).await?;
    let version = rows::find_version(&mut transaction, &build.image).await?;
    rows::set_build(&mut transaction, build, VersionStatus::Inactive, shared.now()).await?;
    commit(transaction).await?;
    Ok(image.zip(version.map(|version| version.definition)))
}

async fn end(shared: &Shared, build: &Build, status: VersionStatus) -> Result<(), StoreError> {
    let mut transaction = shared.store.begin().await?;
    record_end(&mut transaction, build, status, shared.now()).await?;
    commit(transaction).await
}

/// Writes the end of a build to its version and its image too, in the caller's transaction.
pub(crate) async fn record_end(
    connection: &mut Connection,
    build: &Build,
    status: VersionStatus,
    now: i64,
) -> Result<(), StoreError> {
    rows::set_build(connection, build, status, now).await?;
    let Some(image) = rows::by_id(connection, &build.image.image_id).await? else {
        return Ok(());
    };
    let well = build.state == BuildState::Successful;
    match next(image.state, Event::Built { well }) {
        Some(state) => rows::settle(connection, &build.image.image_id, state, now).await,
        None => {
            error!(state = %image.state, "the end of a build in a state that has none");
            Ok(())
        }
    }
}

fn spec(shared: &Shared, build: &Build, image: &Image, definition: Definition) -> BuildSpec {
    let Definition { configuration, plan } = definition;
    let environment = configuration.environment_variables.unwrap_or_default();
    BuildSpec {
        image: build.image.clone(),
        build_id: build.id,
        labels: ImageLabels {
            name: image.name.clone(),
            arn: shared.image_arn(&image.name).to_string(),
            region: shared.config.region.clone(),
        },
        bucket: plan.bucket,
        key: plan.key,
        environment: environment.iter().map(|(name, text)| (name.clone(), Sensitive::expose(text).into())).collect(),
        size: plan.size,
        hooks: plan.hooks,
        all_capabilities: plan.all_capabilities,
        egress: plan.egress,
    }
}

fn outcome(result: Result<BuildReport, BuildFailure>) -> Outcome {
    match result {
        Ok(report) => Outcome {
            reason: None,
            memory_snapshot_bytes: Some(report.memory_snapshot_bytes),
            code_install_bytes: Some(report.code_install_bytes),
            disk_snapshot_bytes: Some(report.disk_snapshot_bytes),
        },
        Err(failure) => Outcome {
            reason: Some(failure.reason),
            code_install_bytes: failure.code_install_bytes,
            ..Outcome::default()
        },
    }
}
