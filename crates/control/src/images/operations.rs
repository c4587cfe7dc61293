//! The image operations.

use std::sync::Arc;

use api::{
    arn::ImageArn,
    catalogue,
    error::ServiceError,
    host::ImageRef,
    ids::ImageVersion,
    images::{
        Architecture, BuildState, CreateMicrovmImageRequest, CreateMicrovmImageResponse, DeleteMicrovmImageRequest,
        DeleteMicrovmImageResponse, GetMicrovmImageBuildRequest, GetMicrovmImageBuildResponse, GetMicrovmImageRequest,
        GetMicrovmImageResponse, GetMicrovmImageVersionRequest, GetMicrovmImageVersionResponse, ImagePlan, ImageState,
        ListMicrovmImageBuildsRequest, ListMicrovmImageBuildsResponse, ListMicrovmImagesRequest,
        ListMicrovmImagesResponse, MicrovmImageBuildSummary, MicrovmImageSummary, SnapshotBuild,
    },
    page,
    timestamp::Timestamp,
};

use super::{
    build, delete,
    record::{Build, BuildPlan, CHIPSET_GENERATION, Definition, Image, Tags, Version},
    state::{Event, next},
};
use crate::{
    idempotency::{ClientToken, Meaning, meaning},
    pages::Page,
    shared::{Shared, hidden},
    store::{Connection, StoreError, commit, images as rows, microvms as microvm_rows, tokens},
};

/// `CreateMicrovmImage`.
pub(crate) async fn create(
    shared: &Arc<Shared>,
    mut request: CreateMicrovmImageRequest,
) -> Result<CreateMicrovmImageResponse, ServiceError> {
    let plan = request.plan(&shared.config.region, Architecture::HOST)?;
    let token = request.client_token.take().map(|token| ClientToken::new("CreateMicrovmImage", token, &request));
    let definition = definition(plan);
    let tags = request.tags.unwrap_or_default();
    let own = shared.clone();
    shared
        .carry_through(async move {
            let mut transaction = own.store.begin().await.map_err(hidden)?;
            let now = own.now();
            if let Some(token) = &token
                && let Some(image) = replayed(&mut transaction, token, now).await?
            {
                let first = ImageRef { image_id: image.id, version: ImageVersion::FIRST };
                let version = rows::find_version(&mut transaction, &first).await.map_err(hidden)?;
                let version = version.ok_or_else(catalogue::internal_error)?;
                return Ok(created(&own, image, version));
            }
            if rows::by_name(&mut transaction, &request.name).await.map_err(hidden)?.is_some() {
                return Err(catalogue::duplicate_image_name(&request.name));
            }
            if rows::count(&mut transaction).await.map_err(hidden)? >= i64::from(own.config.images_max) {
                return Err(ServiceError::ServiceQuotaExceeded {
                    message: "The maximum number of MicroVM images has been reached for this account.".into(),
                });
            }
            let (image, version, build) =
                rows::insert(&mut transaction, &request.name, &tags, &definition, now).await.map_err(hidden)?;
            if let Some(token) = &token {
                tokens::keep(&mut transaction, token, &image.id.to_string(), now).await.map_err(hidden)?;
            }
            commit(transaction).await.map_err(hidden)?;
            build::start(&own, build);
            Ok(created(&own, image, version))
        })
        .await
}

fn definition(plan: ImagePlan) -> Definition {
    Definition {
        configuration: plan.configuration,
        plan: BuildPlan {
            bucket: plan.artifact.bucket,
            key: plan.artifact.key,
            architecture: plan.architecture,
            size: plan.size,
            hooks: plan.hooks,
            all_capabilities: plan.all_capabilities,
        },
    }
}

/// The image that a token stands for, if it does and that one lives.
async fn replayed(connection: &mut Connection, token: &ClientToken, now: i64) -> Result<Option<Image>, ServiceError> {
    let kept = tokens::find(connection, token).await.map_err(hidden)?;
    let (resource_id, same) = match meaning(token, kept, now) {
        Meaning::Fresh => return Ok(None),
        Meaning::Replay { resource_id } => (resource_id, true),
        Meaning::Mismatch { resource_id } => (resource_id, false),
    };
    let Ok(id) = resource_id.parse() else { return Ok(None) };
    let image = rows::by_id(connection, &id).await.map_err(hidden)?;
    match image.filter(|image| !matches!(image.state, ImageState::Deleting | ImageState::DeleteFailed)) {
        Some(_) if !same => Err(catalogue::client_token_reused()),
        image => Ok(image),
    }
}

/// The first answer, also when it is given again.
fn created(shared: &Shared, image: Image, version: Version) -> CreateMicrovmImageResponse {
    let made = Timestamp::from_unix_ms(image.created_at);
    CreateMicrovmImageResponse {
        image_arn: shared.image_arn(&image.name),
        name: image.name,
        id: image.id,
        state: ImageState::Creating,
        image_version: version.image.version,
        latest_active_image_version: None,
        latest_failed_image_version: None,
        created_at: made,
        updated_at: Some(made),
        configuration: version.definition.configuration,
        tags: Some(image.tags).filter(|tags: &Tags| !tags.is_empty()),
    }
}

/// The image of an ARN, if it is ours.
pub(crate) async fn image_of(
    shared: &Shared,
    connection: &mut Connection,
    arn: &ImageArn,
) -> Result<Option<Image>, StoreError> {
    if *arn != shared.image_arn(&arn.name) {
        return Ok(None);
    }
    rows::by_name(connection, &arn.name).await
}

/// The version that a caller wrote.
async fn version_of(
    shared: &Shared,
    connection: &mut Connection,
    arn: &ImageArn,
    written: &str,
) -> Result<Version, ServiceError> {
    let unknown = || catalogue::unknown_version(arn, written);
    let image = image_of(shared, connection, arn).await.map_err(hidden)?.ok_or_else(unknown)?;
    let version = written.parse().map_err(|_| unknown())?;
    let reference = ImageRef { image_id: image.id, version };
    rows::find_version(connection, &reference).await.map_err(hidden)?.ok_or_else(unknown)
}

/// `GetMicrovmImage`.
pub(crate) async fn get(
    shared: &Shared,
    request: GetMicrovmImageRequest,
) -> Result<GetMicrovmImageResponse, ServiceError> {
    let mut connection = shared.store.read().await.map_err(hidden)?;
    let image = image_of(shared, &mut connection, &request.image).await.map_err(hidden)?;
    let image = image.ok_or_else(|| catalogue::unknown_image(&request.image))?;
    Ok(GetMicrovmImageResponse {
        image_arn: request.image,
        name: image.name,
        id: image.id,
        state: image.state,
        latest_active_image_version: image.latest_active,
        latest_failed_image_version: image.latest_failed,
        created_at: Timestamp::from_unix_ms(image.created_at),
        updated_at: Some(Timestamp::from_unix_ms(image.updated_at)),
        tags: image.tags,
    })
}

/// `ListMicrovmImages`. The filter comes after the cut, as in the real service: a page may be empty and not the last.
pub(crate) async fn list(
    shared: &Shared,
    request: ListMicrovmImagesRequest,
) -> Result<ListMicrovmImagesResponse, ServiceError> {
    let filter = request.name_filter.unwrap_or_default();
    let list = format!("images {filter}");
    let page = Page::asked(&list, &request.page).map_err(|_| catalogue::unreadable_input())?;
    let mut connection = shared.store.read().await.map_err(hidden)?;
    let mut images = rows::list(&mut connection, page.before, page.fetch()).await.map_err(hidden)?;
    let next_token = page.cut(&list, &mut images, |image| image.sequence);
    let items = images
        .into_iter()
        .filter(|image| image.name.contains(&filter))
        .map(|image| MicrovmImageSummary {
            image_arn: shared.image_arn(&image.name),
            name: image.name,
            id: image.id,
            state: image.state,
            latest_active_image_version: image.latest_active,
            latest_failed_image_version: image.latest_failed,
            created_at: Timestamp::from_unix_ms(image.created_at),
        })
        .collect();
    Ok(page::Page { items, next_token })
}

/// `GetMicrovmImageVersion`.
pub(crate) async fn get_version(
    shared: &Shared,
    request: GetMicrovmImageVersionRequest,
) -> Result<GetMicrovmImageVersionResponse, ServiceError> {
    let mut connection = shared.store.read().await.map_err(hidden)?;
    let version = version_of(shared, &mut connection, &request.image, &request.image_version).await?;
    Ok(GetMicrovmImageVersionResponse {
        image_arn: request.image,
        image_version: version.image.version,
        state: version.state,
        status: version.status,
        state_reason: None,
        configuration: version.definition.configuration,
        tags: None,
        created_at: Timestamp::from_unix_ms(version.created_at),
        updated_at: Some(Timestamp::from_unix_ms(version.updated_at)),
    })
}

fn summary(arn: &ImageArn, plan: &BuildPlan, build: &Build) -> MicrovmImageBuildSummary {
    MicrovmImageBuildSummary {
        image_arn: arn.clone(),
        image_version: build.image.version,
        build_id: build.id,
        build_state: build.state,
        architecture: plan.architecture,
        chipset: plan.architecture.chipset(),
        chipset_generation: CHIPSET_GENERATION.to_owned(),
        state_reason: build.outcome.reason.clone(),
        created_at: Timestamp::from_unix_ms(build.created_at),
    }
}

/// `ListMicrovmImageBuilds`.
pub(crate) async fn list_builds(
    shared: &Shared,
    request: ListMicrovmImageBuildsRequest,
) -> Result<ListMicrovmImageBuildsResponse, ServiceError> {
    let list = format!("builds {} {}", request.image, request.image_version);
    let page = Page::asked(&list, &request.page).map_err(|_| catalogue::unreadable_input())?;
    let mut connection = shared.store.read().await.map_err(hidden)?;
    let version = version_of(shared, &mut connection, &request.image, &request.image_version).await?;
    let mut builds =
        rows::list_builds(&mut connection, &version.image, page.before, page.fetch()).await.map_err(hidden)?;
    let next_token = page.cut(&list, &mut builds, |build| build.sequence);
    let items = builds
        .iter()
        .map(|build| summary(&request.image, &version.definition.plan, build))
        .filter(|item| {
            request.architecture.is_none_or(|it| it == item.architecture)
                && request.chipset.is_none_or(|it| it == item.chipset)
                && request.chipset_generation.as_ref().is_none_or(|it| *it == item.chipset_generation)
        })
        .collect();
    Ok(page::Page { items, next_token })
}

/// `GetMicrovmImageBuild`.
pub(crate) async fn get_build(
    shared: &Shared,
    request: GetMicrovmImageBuildRequest,
) -> Result<GetMicrovmImageBuildResponse, ServiceError> {
    let mut connection = shared.store.read().await.map_err(hidden)?;
    let version = version_of(shared, &mut connection, &request.image, &request.image_version).await?;
    let unknown = || catalogue::unknown_build(&request.image, &request.image_version, &request.build_id);
    let id = request.build_id.parse().map_err(|_| unknown())?;
    let build = rows::find_build(&mut connection, &version.image, &id).await.map_err(hidden)?.ok_or_else(unknown)?;
    let weighed = build.state == BuildState::Successful || build.outcome.code_install_bytes.is_some();
    let snapshot_build = weighed.then_some(SnapshotBuild {
        memory_snapshot_size_in_bytes: build.outcome.memory_snapshot_bytes,
        code_install_size_in_bytes: build.outcome.code_install_bytes,
        disk_snapshot_size_in_bytes: build.outcome.disk_snapshot_bytes,
    });
    let build = summary(&request.image, &version.definition.plan, &build);
    Ok(GetMicrovmImageBuildResponse { build, snapshot_build })
}

/// `DeleteMicrovmImage`.
pub(crate) async fn remove(
    shared: &Arc<Shared>,
    request: DeleteMicrovmImageRequest,
) -> Result<DeleteMicrovmImageResponse, ServiceError> {
    let own = shared.clone();
    shared
        .carry_through(async move {
            let arn = request.image;
            let mut transaction = own.store.begin().await.map_err(hidden)?;
            let image = image_of(&own, &mut transaction, &arn).await.map_err(hidden)?;
            let mut image = image.ok_or_else(|| catalogue::unknown_image(&arn))?;
            if image.state != ImageState::Deleting {
                let state = next(image.state, Event::DeleteStarted);
                let state = state.ok_or_else(|| catalogue::image_not_deletable_now(&arn))?;
                let alive = microvm_rows::count_alive(&mut transaction, Some(&image.id)).await.map_err(hidden)?;
                if alive > 0 {
                    return Err(catalogue::image_has_running_microvms());
                }
                image.state = state;
                rows::set_state(&mut transaction, &image.id, state, own.now()).await.map_err(hidden)?;
                commit(transaction).await.map_err(hidden)?;
                delete::start(&own, image);
            }
            Ok(DeleteMicrovmImageResponse { image_identifier: arn, state: ImageState::Deleting })
        })
        .await
}
