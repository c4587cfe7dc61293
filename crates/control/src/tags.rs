//! The operations on tags. Whatever can have them keeps them in its own record.

use api::{
    arn::ImageArn,
    catalogue,
    connectors::{ConnectorArn, NetworkConnectorState, Which},
    error::ServiceError,
    images::ImageState,
    tags::{
        self, ListTagsRequest, ListTagsResponse, TagResourceRequest, TagResourceResponse, Tags, UntagResourceRequest,
        UntagResourceResponse,
    },
};

use crate::{
    connectors::record::Connector,
    images::{operations::image_of, record::Image},
    shared::{Shared, hidden},
    store::{Connection, commit, connectors as connector_rows, images as image_rows},
};

/// Something that has tags.
enum Tagged {
    Image(Image),
    Connector(Connector),
}

impl Tagged {
    fn tags(&self) -> &Tags {
        match self {
            Self::Image(image) => &image.tags,
            Self::Connector(connector) => &connector.tags,
        }
    }

    fn is_leaving(&self) -> bool {
        match self {
            Self::Image(image) => image.state == ImageState::Deleting,
            Self::Connector(connector) => connector.state == NetworkConnectorState::Deleting,
        }
    }

    async fn set(&self, connection: &mut Connection, tags: &Tags) -> Result<(), ServiceError> {
        match self {
            Self::Image(image) => image_rows::set_tags(connection, &image.id, tags).await.map_err(hidden),
            Self::Connector(connector) => {
                connector_rows::set_tags(connection, &connector.id, tags).await.map_err(hidden)
            }
        }
    }
}

async fn find(shared: &Shared, connection: &mut Connection, resource: &str) -> Result<Tagged, ServiceError> {
    if let Ok(arn) = resource.parse::<ImageArn>() {
        let image = image_of(shared, connection, &arn).await.map_err(hidden)?;
        return image.map(Tagged::Image).ok_or_else(|| catalogue::unknown_image(&arn));
    }
    if let Some(ConnectorArn { region, account, id, version: None }) = ConnectorArn::parse(resource) {
        let ours = region == shared.config.region && account == shared.config.account;
        let connector = connector_rows::find(connection, &Which::Id(id)).await.map_err(hidden)?.filter(|_| ours);
        return connector.map(Tagged::Connector).ok_or_else(|| catalogue::unknown_taggable(resource));
    }
    Err(catalogue::unknown_taggable(resource))
}

/// `ListTags`.
pub(crate) async fn list(shared: &Shared, request: ListTagsRequest) -> Result<ListTagsResponse, ServiceError> {
    let mut connection = shared.store.read().await.map_err(hidden)?;
    let tagged = find(shared, &mut connection, &request.resource).await?;
    Ok(ListTagsResponse { tags: tagged.tags().clone() })
}

/// `TagResource`: what is there already is kept, or gets the new value.
pub(crate) async fn add(shared: &Shared, request: TagResourceRequest) -> Result<TagResourceResponse, ServiceError> {
    change(shared, &request.resource, |tags| {
        tags.extend(request.tags);
        tags::check(tags)
    })
    .await?;
    Ok(TagResourceResponse {})
}

/// `UntagResource`.
pub(crate) async fn take(
    shared: &Shared,
    request: UntagResourceRequest,
) -> Result<UntagResourceResponse, ServiceError> {
    change(shared, &request.resource, |tags| {
        tags.retain(|key, _| !request.tag_keys.contains(key));
        Ok(())
    })
    .await?;
    Ok(UntagResourceResponse {})
}

/// Reads and writes in one transaction, so that nothing another caller does meanwhile is lost.
async fn change(
    shared: &Shared,
    resource: &str,
    make: impl FnOnce(&mut Tags) -> Result<(), ServiceError>,
) -> Result<(), ServiceError> {
    shared.accepting()?;
    let mut transaction = shared.store.begin().await.map_err(hidden)?;
    let tagged = find(shared, &mut transaction, resource).await?;
    if tagged.is_leaving() {
        return Err(catalogue::resource_being_deleted(resource));
    }
    let mut tags = tagged.tags().clone();
    make(&mut tags)?;
    tagged.set(&mut transaction, &tags).await?;
    commit(transaction).await.map_err(hidden)
}
