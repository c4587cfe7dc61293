//! The operations on versions of an image and on their builds.

use std::sync::Arc;

use api::{
    arn::ImageArn,
    catalogue,
    error::ServiceError,
    host::ImageRef,
    images::{
        Architecture, BuildState, DeleteMicrovmImageVersionRequest, DeleteMicrovmImageVersionResponse,
        GetMicrovmImageBuildRequest, GetMicrovmImageBuildResponse, GetMicrovmImageVersionRequest,
        GetMicrovmImageVersionResponse, ListMicrovmImageBuildsRequest, ListMicrovmImageBuildsResponse,
        ListMicrovmImageVersionsRequest, ListMicrovmImageVersionsResponse, MicrovmImageBuildSummary, SnapshotBuild,
        UpdateMicrovmImageVersionRequest, UpdateMicrovmImageVersionResponse, VersionState,
    },
    page,
    timestamp::Timestamp,
    word::Word,
};

use super::{
    delete,
    operations::image_of,
    record::{Build, CHIPSET_GENERATION, Image, Version},
    state::{Refusal, Removal, may_set_status, removal},
};
use crate::{
    pages::Page,
    shared::{Shared, hidden},
    store::{Connection, commit, images as rows, microvms as microvm_rows},
};

/// The version that a caller wrote, and its image.
async fn version_of(
    shared: &Shared,
    connection: &mut Connection,
    arn: &ImageArn,
    written: &str,
) -> Result<(Image, Version), ServiceError> {
    let unknown = || catalogue::unknown_version(arn, written);
    let image = image_of(shared, connection, arn).await.map_err(hidden)?.ok_or_else(unknown)?;
    let version = written.parse().map_err(|_| unknown())?;
    let reference = ImageRef { image_id: image.id, version };
    let version = rows::find_version(connection, &reference).await.map_err(hidden)?.ok_or_else(unknown)?;
    Ok((image, version))
}

/// `GetMicrovmImageVersion`.
pub(crate) async fn get(
    shared: &Shared,
    request: GetMicrovmImageVersionRequest,
) -> Result<GetMicrovmImageVersionResponse, ServiceError> {
    let mut connection = shared.store.read().await.map_err(hidden)?;
    let (_, version) = version_of(shared, &mut connection, &request.image, &request.image_version).await?;
    Ok(shown(request.image, version))
}

fn shown(arn: ImageArn, version: Version) -> GetMicrovmImageVersionResponse {
    GetMicrovmImageVersionResponse {
        image_arn: arn,
        image_version: version.image.version,
        state: version.state,
        status: version.status,
        state_reason: None,
        configuration: version.definition.configuration,
        tags: None,
        created_at: Timestamp::from_unix_ms(version.created_at),
        updated_at: Some(Timestamp::from_unix_ms(version.updated_at)),
    }
}

/// `ListMicrovmImageVersions`, newest first.
pub(crate) async fn list(
    shared: &Shared,
    request: ListMicrovmImageVersionsRequest,
) -> Result<ListMicrovmImageVersionsResponse, ServiceError> {
    let arn = request.image;
    let list = format!("versions {arn}");
    let page = Page::asked(&list, &request.page).map_err(|_| catalogue::unreadable_input())?;
    let mut connection = shared.store.read().await.map_err(hidden)?;
    let image = image_of(shared, &mut connection, &arn).await.map_err(hidden)?;
    let image = image.ok_or_else(|| catalogue::unknown_image(&arn))?;
    let versions = rows::list_versions(&mut connection, &image.id, page.before, page.fetch()).await;
    let mut versions = versions.map_err(hidden)?;
    let next_token = page.cut(&list, &mut versions, |version| version.image.version.major().into());
    let items = versions.into_iter().map(|version| shown(arn.clone(), version)).collect();
    Ok(page::Page { items, next_token })
}

/// `UpdateMicrovmImageVersion`.
pub(crate) async fn set_status(
    shared: &Arc<Shared>,
    request: UpdateMicrovmImageVersionRequest,
) -> Result<UpdateMicrovmImageVersionResponse, ServiceError> {
    let own = shared.clone();
    shared
        .carry_through(async move {
            let UpdateMicrovmImageVersionRequest { image: arn, image_version: written, status } = request;
            let mut transaction = own.store.begin().await.map_err(hidden)?;
            let (image, mut version) = version_of(&own, &mut transaction, &arn, &written).await?;
            may_set_status(image.state, version.state, status).map_err(|refusal| refused(refusal, &arn, &written))?;
            if version.status != status {
                let now = own.now();
                let reference = &version.image;
                let set = rows::set_version(&mut transaction, reference, version.state, status, now).await;
                set.map_err(hidden)?;
                rows::settle(&mut transaction, &image.id, image.state, now).await.map_err(hidden)?;
                commit(transaction).await.map_err(hidden)?;
                (version.status, version.updated_at) = (status, now);
            }
            Ok(shown(arn, version))
        })
        .await
}

/// `DeleteMicrovmImageVersion`.
pub(crate) async fn remove(
    shared: &Arc<Shared>,
    request: DeleteMicrovmImageVersionRequest,
) -> Result<DeleteMicrovmImageVersionResponse, ServiceError> {
    let own = shared.clone();
    shared
        .carry_through(async move {
            let DeleteMicrovmImageVersionRequest { image: arn, image_version: written } = request;
            let mut transaction = own.store.begin().await.map_err(hidden)?;
            let (image, version) = version_of(&own, &mut transaction, &arn, &written).await?;
            let reference = version.image;
            let versions = rows::count_versions(&mut transaction, &image.id).await.map_err(hidden)?;
            let alive = microvm_rows::count_alive_of_version(&mut transaction, &reference).await.map_err(hidden)?;
            match removal(image.state, version.state, versions, alive) {
                Removal::Start(state) => {
                    let (now, gone) = (own.now(), VersionState::Deleting);
                    let set = rows::set_version(&mut transaction, &reference, gone, version.status, now).await;
                    set.map_err(hidden)?;
                    rows::settle(&mut transaction, &image.id, state, now).await.map_err(hidden)?;
                    commit(transaction).await.map_err(hidden)?;
                    delete::start_version(&own, reference.clone());
                }
                Removal::Repeated => {}
                Removal::Refuse(refusal) => return Err(refused(refusal, &arn, &written)),
            }
            Ok(DeleteMicrovmImageVersionResponse {
                image_identifier: arn,
                image_version: reference.version,
                state: VersionState::Deleting,
            })
        })
        .await
}

fn refused(refusal: Refusal, arn: &ImageArn, version: &str) -> ServiceError {
    match refusal {
        Refusal::Busy(state) => catalogue::image_busy(state),
        Refusal::NotBuilt => catalogue::version_not_built(arn, version),
        Refusal::Last => catalogue::last_version(),
        Refusal::InUse => catalogue::version_has_running_microvms(),
    }
}

fn summary(arn: &ImageArn, build: &Build) -> MicrovmImageBuildSummary {
    MicrovmImageBuildSummary {
        image_arn: arn.clone(),
        image_version: build.image.version,
        build_id: build.id,
        build_state: build.state,
        architecture: build.architecture,
        chipset: build.architecture.chipset(),
        chipset_generation: CHIPSET_GENERATION.to_owned(),
        state_reason: build.outcome.reason.clone(),
        created_at: Timestamp::from_unix_ms(build.created_at),
    }
}

/// The architectures whose builds a request asks for: the rest of what it can filter by follows from that.
fn asked_for(request: &ListMicrovmImageBuildsRequest) -> Vec<Architecture> {
    let generation = request.chipset_generation.as_deref();
    let asked = |it: &Architecture| {
        request.architecture.is_none_or(|asked| asked == *it)
            && request.chipset.is_none_or(|asked| asked == it.chipset())
            && generation.is_none_or(|asked| asked == CHIPSET_GENERATION)
    };
    Architecture::ALL.iter().copied().filter(asked).collect()
}

/// `ListMicrovmImageBuilds`, newest first.
pub(crate) async fn list_builds(
    shared: &Shared,
    request: ListMicrovmImageBuildsRequest,
) -> Result<ListMicrovmImageBuildsResponse, ServiceError> {
    let architectures = asked_for(&request);
    let list = format!("builds {} {} {architectures:?}", request.image, request.image_version);
    let page = Page::asked(&list, &request.page).map_err(|_| catalogue::unreadable_input())?;
    let mut connection = shared.store.read().await.map_err(hidden)?;
    let (_, version) = version_of(shared, &mut connection, &request.image, &request.image_version).await?;
    let listed = rows::list_builds(&mut connection, &version.image, &architectures, page.before, page.fetch()).await;
    let mut builds = listed.map_err(hidden)?;
    let next_token = page.cut(&list, &mut builds, |build| build.sequence);
    let items = builds.iter().map(|build| summary(&request.image, build)).collect();
    Ok(page::Page { items, next_token })
}

/// `GetMicrovmImageBuild`.
pub(crate) async fn get_build(
    shared: &Shared,
    request: GetMicrovmImageBuildRequest,
) -> Result<GetMicrovmImageBuildResponse, ServiceError> {
    let mut connection = shared.store.read().await.map_err(hidden)?;
    let (_, version) = version_of(shared, &mut connection, &request.image, &request.image_version).await?;
    let unknown = || catalogue::unknown_build(&request.image, &request.image_version, &request.build_id);
    let id = request.build_id.parse().map_err(|_| unknown())?;
    let build = rows::find_build(&mut connection, &version.image, &id).await.map_err(hidden)?.ok_or_else(unknown)?;
    let weighed = build.state == BuildState::Successful || build.outcome.code_install_bytes.is_some();
    let snapshot_build = weighed.then_some(SnapshotBuild {
        memory_snapshot_size_in_bytes: build.outcome.memory_snapshot_bytes,
        code_install_size_in_bytes: build.outcome.code_install_bytes,
        disk_snapshot_size_in_bytes: build.outcome.disk_snapshot_bytes,
    });
    let build = summary(&request.image, &build);
    Ok(GetMicrovmImageBuildResponse { build, snapshot_build })
}
