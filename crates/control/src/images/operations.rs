//! The image operations.

use std::sync::Arc;

use api::{
    arn::ImageArn,
    catalogue,
    connector::EgressConnector,
    error::ServiceError,
    host::{Egress, ImageRef},
    images::{
        CreateMicrovmImageRequest, CreateMicrovmImageResponse, DeleteMicrovmImageRequest, DeleteMicrovmImageResponse,
        GetMicrovmImageRequest, GetMicrovmImageResponse, ImagePlan, ImageState, ListMicrovmImagesRequest,
        ListMicrovmImagesResponse, MicrovmImageSummary, UpdateMicrovmImageRequest, UpdateMicrovmImageResponse,
        VersionState,
    },
    page,
    tags::{self, Tags},
    timestamp::Timestamp,
};

use super::{
    build, delete,
    record::{BuildPlan, Definition, Image, Version},
    state::{Event, next},
};
use crate::{
    connectors::usage::{self, Use},
    idempotency::ClientToken,
    pages::Page,
    shared::{Shared, hidden},
    store::{Connection, StoreError, commit, connector_uses, images as rows, microvms as microvm_rows, tokens},
};

/// `CreateMicrovmImage`.
pub(crate) async fn create(
    shared: &Arc<Shared>,
    mut request: CreateMicrovmImageRequest,
) -> Result<CreateMicrovmImageResponse, ServiceError> {
    let plan = request.version.plan(&shared.config.region, &shared.host.architectures())?;
    let token = request.client_token.take().map(|token| ClientToken::new("CreateMicrovmImage", token, &request));
    let (way, architectures) = (plan.egress.clone(), plan.architectures.clone());
    let mut definition = definition(plan);
    let tags = request.tags.unwrap_or_default();
    tags::check(&tags)?;
    let own = shared.clone();
    shared
        .carry_through(async move {
            let mut transaction = own.store.begin().await.map_err(hidden)?;
            let now = own.now();
            if let Some(token) = &token
                && let Some((image, version)) = replayed(&mut transaction, token, now).await?
            {
                return Ok(created(&own, image, version));
            }
            if rows::by_name(&mut transaction, &request.name).await.map_err(hidden)?.is_some() {
                return Err(catalogue::duplicate_image_name(&request.name));
            }
            if rows::count(&mut transaction).await.map_err(hidden)? >= i64::from(own.config.quotas.images) {
                return Err(catalogue::image_quota_exceeded());
            }
            room_for_a_build(&own, &mut transaction).await?;
            let uses = way_out(&own, &mut transaction, way, &mut definition).await?;
            let made = rows::insert(&mut transaction, &request.name, &tags, &definition, &architectures, now).await;
            let (image, version, builds) = made.map_err(hidden)?;
            note(&mut transaction, &version.image, uses).await?;
            if let Some(token) = &token {
                tokens::keep(&mut transaction, token, &kept_as(&version.image), now).await.map_err(hidden)?;
            }
            commit(transaction).await.map_err(hidden)?;
            for build in builds {
                build::start(&own, build);
            }
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
            size: plan.size,
            hooks: plan.hooks,
            all_capabilities: plan.all_capabilities,
            // Known once its connector is looked up.
            egress: Egress::default(),
        },
    }
}

/// `UpdateMicrovmImage`: builds another version. MicroVMs that run stay on theirs, and launches go on with the newest
/// one that works.
pub(crate) async fn update(
    shared: &Arc<Shared>,
    mut request: UpdateMicrovmImageRequest,
) -> Result<UpdateMicrovmImageResponse, ServiceError> {
    let plan = request.version.plan(&shared.config.region, &shared.host.architectures())?;
    let token = request.client_token.take().map(|token| ClientToken::new("UpdateMicrovmImage", token, &request));
    let (way, architectures) = (plan.egress.clone(), plan.architectures.clone());
    let mut definition = definition(plan);
    let arn = request.image;
    let own = shared.clone();
    shared
        .carry_through(async move {
            let mut transaction = own.store.begin().await.map_err(hidden)?;
            let now = own.now();
            if let Some(token) = &token
                && let Some((image, version)) = replayed(&mut transaction, token, now).await?
            {
                return Ok(updated(arn, image, version));
            }
            let image = image_of(&own, &mut transaction, &arn).await.map_err(hidden)?;
            let mut image = image.ok_or_else(|| catalogue::unknown_image(&arn))?;
            let state = next(image.state, Event::UpdateStarted);
            let state = state.ok_or_else(|| catalogue::image_busy(image.state))?;
            let versions = rows::count_versions(&mut transaction, &image.id).await.map_err(hidden)?;
            if versions >= i64::from(own.config.quotas.versions_per_image) {
                return Err(catalogue::version_quota_exceeded());
            }
            room_for_a_build(&own, &mut transaction).await?;
            let uses = way_out(&own, &mut transaction, way, &mut definition).await?;
            let made = rows::insert_next(&mut transaction, &image.id, state, &definition, &architectures, now).await;
            let (version, builds) = made.map_err(hidden)?;
            note(&mut transaction, &version.image, uses).await?;
            if let Some(token) = &token {
                tokens::keep(&mut transaction, token, &kept_as(&version.image), now).await.map_err(hidden)?;
            }
            commit(transaction).await.map_err(hidden)?;
            for build in builds {
                build::start(&own, build);
            }
            image.updated_at = now;
            Ok(updated(arn, image, version))
        })
        .await
}

/// Looks up the connector that a version names, and writes what it means into the version's definition.
async fn way_out(
    shared: &Shared,
    connection: &mut Connection,
    way: EgressConnector,
    definition: &mut Definition,
) -> Result<Vec<Use>, ServiceError> {
    let (egress, uses) = usage::resolve(shared, connection, &[way]).await?;
    definition.plan.egress = egress;
    Ok(uses)
}

/// Notes what a version names, so that it is not deleted meanwhile.
async fn note(connection: &mut Connection, version: &ImageRef, uses: Vec<Use>) -> Result<(), ServiceError> {
    for used in uses {
        connector_uses::by_image(connection, version, &used.connector, used.named).await.map_err(hidden)?;
    }
    Ok(())
}

async fn room_for_a_build(shared: &Shared, connection: &mut Connection) -> Result<(), ServiceError> {
    let unfinished = rows::count_unfinished_versions(connection).await.map_err(hidden)?;
    if unfinished >= i64::from(shared.config.quotas.builds) { Err(catalogue::build_quota_exceeded()) } else { Ok(()) }
}

/// What a token is kept with.
fn kept_as(version: &ImageRef) -> String {
    format!("{} {}", version.image_id, version.version)
}

/// The version that a token stands for, if it does and that one lives.
async fn replayed(
    connection: &mut Connection,
    token: &ClientToken,
    now: i64,
) -> Result<Option<(Image, Version)>, ServiceError> {
    let Some(used) = tokens::find(connection, token, now).await.map_err(hidden)? else { return Ok(None) };
    // Before versions came after the first, a token was kept with the image alone.
    let (image, version) = used.resource_id.split_once(' ').unwrap_or((&used.resource_id, "1.0"));
    let (Ok(image_id), Ok(version)) = (image.parse(), version.parse()) else { return Ok(None) };
    let image = rows::by_id(connection, &image_id).await.map_err(hidden)?;
    let image = image.filter(|image| !matches!(image.state, ImageState::Deleting | ImageState::DeleteFailed));
    let version = rows::find_version(connection, &ImageRef { image_id, version }).await.map_err(hidden)?;
    let version = version.filter(|it| !matches!(it.state, VersionState::Deleting | VersionState::DeleteFailed));
    used.answer(image.zip(version), catalogue::client_token_reused)
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

/// The first answer, also when it is given again.
fn updated(arn: ImageArn, image: Image, version: Version) -> UpdateMicrovmImageResponse {
    UpdateMicrovmImageResponse {
        image_arn: arn,
        name: image.name,
        id: image.id,
        state: ImageState::Updating,
        image_version: version.image.version,
        latest_active_image_version: image.latest_active,
        latest_failed_image_version: image.latest_failed,
        created_at: Timestamp::from_unix_ms(image.created_at),
        updated_at: Timestamp::from_unix_ms(image.updated_at),
        configuration: version.definition.configuration,
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
                let alive = microvm_rows::count_alive(&mut transaction, &image.id).await.map_err(hidden)?;
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
