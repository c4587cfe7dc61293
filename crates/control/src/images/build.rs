//! The task that owns a build. A version may have several, for an architecture each, and they know nothing of each other:
//! what they make of their version is said anew in every transaction that writes how far one has come.

use std::{sync::Arc, time::Duration};

use api::{
    host::{BuildFailure, BuildReport, BuildSpec, ImageLabels},
    images::{BuildState, VersionState},
    sensitive::Sensitive,
};
use tokio::time::sleep;
use tracing::{Instrument, error, info, info_span};

use super::{
    delete,
    record::{Build, Definition, Image, Outcome},
    state::{after_build, next, version_state},
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
    let begun = loop {
        match begin(&shared, &build).await {
            Ok(Some(begun)) => break begun,
            Ok(None) => return error!("the build's image is gone"),
            Err(failure) => {
                error!(error = &failure as &dyn std::error::Error, "the build's begin could not be kept");
                sleep(RETRY).await;
            }
        }
    };
    failpoint::step("build.begun");
    info!("begun");
    // In a task of its own: should the host panic, the image must not stay CREATING for ever.
    let host = shared.host.clone();
    let several = begun.several;
    let spec = spec(&shared, &build, begun);
    let result = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(async move { host.build(spec).await }))
        .await
        .unwrap_or_else(|failure| {
            error!(error = &failure as &dyn std::error::Error, "the build came to no end");
            let reason = "INTERNAL_PLATFORM_ERROR: the host failed".to_owned();
            Err(BuildFailure { reason, code_install_bytes: None })
        });
    failpoint::step("build.done");
    build.state = if result.is_ok() { BuildState::Successful } else { BuildState::Failed };
    info!(state = %build.state, "finished");
    build.outcome = outcome(result);
    let version = loop {
        match end(&shared, &build).await {
            Ok(version) => break version,
            Err(failure) => {
                error!(error = &failure as &dyn std::error::Error, "the build's end could not be kept");
                sleep(RETRY).await;
            }
        }
    };
    if several && version == VersionState::Failed {
        // This build or another went well, perhaps, and its files are good for nothing.
        delete::forget_files(&shared, &build.image).await;
    }
}

/// What a build begins with.
struct Begun {
    image: Image,
    definition: Definition,
    /// The version has other builds too.
    several: bool,
}

async fn begin(shared: &Shared, build: &Build) -> Result<Option<Begun>, StoreError> {
    let mut transaction = shared.store.begin().await?;
    let image = rows::by_id(&mut transaction, &build.image.image_id).await?;
    let version = rows::find_version(&mut transaction, &build.image).await?;
    let several = rows::builds_of(&mut transaction, &build.image).await?.len() > 1;
    record(&mut transaction, build, shared.now()).await?;
    commit(transaction).await?;
    let begun = image.zip(version);
    Ok(begun.map(|(image, version)| Begun { image, definition: version.definition, several }))
}

async fn end(shared: &Shared, build: &Build) -> Result<VersionState, StoreError> {
    let mut transaction = shared.store.begin().await?;
    let version = record(&mut transaction, build, shared.now()).await?;
    commit(transaction).await?;
    Ok(version)
}

/// Writes how far a build has come, and what that makes of its version and its image, in the caller's transaction.
/// Answers the version's state.
pub(crate) async fn record(connection: &mut Connection, build: &Build, now: i64) -> Result<VersionState, StoreError> {
    rows::set_build(connection, build).await?;
    let states: Vec<_> = rows::builds_of(connection, &build.image).await?.into_iter().map(|(_, state)| state).collect();
    let version = version_state(&states);
    let (status, event) = after_build(version);
    rows::set_version(connection, &build.image, version, status, now).await?;
    let image = rows::by_id(connection, &build.image.image_id).await?;
    if let Some((image, event)) = image.zip(event) {
        match next(image.state, event) {
            Some(state) => rows::settle(connection, &image.id, state, now).await?,
            None => error!(state = %image.state, "the end of a build in a state that has none"),
        }
    }
    Ok(version)
}

fn spec(shared: &Shared, build: &Build, begun: Begun) -> BuildSpec {
    let Begun { image, definition: Definition { configuration, plan }, several } = begun;
    let environment = configuration.environment_variables.unwrap_or_default();
    BuildSpec {
        image: build.image.clone(),
        build_id: build.id,
        architecture: build.architecture,
        one_of_several: several,
        labels: ImageLabels {
            arn: shared.image_arn(&image.name).to_string(),
            name: image.name,
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
