//! The lists of connectors and of versions.

use api::{
    catalogue,
    connectors::{
        ListNetworkConnectorVersionsRequest, ListNetworkConnectorVersionsResponse, ListNetworkConnectorsRequest,
        ListNetworkConnectorsResponse, MarkerRequest, NetworkConnectorSummary, NetworkConnectorVersionSummary,
        VPC_EGRESS,
    },
    error::ServiceError,
    page::PageRequest,
    timestamp::{IsoTimestamp, Timestamp},
    word::Word,
};

use super::operations::{arn, find_whole};
use crate::{
    pages::Page,
    shared::{Shared, hidden},
    store::connectors as rows,
};

/// Most items the two lists can hold; the model's bounds.
const CONNECTORS_MAX: u32 = 50;
const VERSIONS_MAX: u32 = 100;

fn page(list: &str, request: &MarkerRequest, max: u32) -> Result<Page, ServiceError> {
    let request = PageRequest { max_results: request.max_items, next_token: request.marker.clone() };
    Page::asked_up_to(list, &request, max).map_err(|_| catalogue::bad_marker())
}

fn filter(request: &MarkerRequest) -> &'static str {
    request.state.map_or("", Word::as_str)
}

/// `ListNetworkConnectors`.
pub(crate) async fn list(
    shared: &Shared,
    request: ListNetworkConnectorsRequest,
) -> Result<ListNetworkConnectorsResponse, ServiceError> {
    let list = format!("connectors {}", filter(&request.page));
    let page = page(&list, &request.page, CONNECTORS_MAX)?;
    let mut connection = shared.store.read().await.map_err(hidden)?;
    let mut connectors =
        rows::list(&mut connection, request.page.state, page.before, page.fetch()).await.map_err(hidden)?;
    let next_marker = page.cut(&list, &mut connectors, |connector| connector.sequence);
    let network_connectors = connectors
        .into_iter()
        .map(|connector| NetworkConnectorSummary {
            arn: arn(shared, connector.id, None),
            name: connector.name,
            id: connector.id.to_string(),
            kind: VPC_EGRESS.to_owned(),
            state: connector.state,
            last_modified: IsoTimestamp(Timestamp::from_unix_ms(connector.modified_at)),
            latest_version_arn: arn(shared, connector.id, Some(connector.version)),
            latest_version: connector.version,
        })
        .collect();
    Ok(ListNetworkConnectorsResponse { network_connectors, next_marker })
}

/// `ListNetworkConnectorVersions`.
pub(crate) async fn list_versions(
    shared: &Shared,
    request: ListNetworkConnectorVersionsRequest,
) -> Result<ListNetworkConnectorVersionsResponse, ServiceError> {
    let mut connection = shared.store.read().await.map_err(hidden)?;
    let connector = find_whole(shared, &mut connection, &request.identifier).await?;
    let list = format!("connector versions {} {}", connector.id, filter(&request.page));
    let page = page(&list, &request.page, VERSIONS_MAX)?;
    let versions =
        rows::list_versions(&mut connection, &connector.id, request.page.state, page.before, page.fetch()).await;
    let mut versions = versions.map_err(hidden)?;
    let next_marker = page.cut(&list, &mut versions, |version| i64::try_from(version.version).unwrap_or(i64::MAX));
    let network_connector_versions = versions
        .into_iter()
        .map(|version| NetworkConnectorVersionSummary {
            arn: arn(shared, connector.id, None),
            version_arn: arn(shared, connector.id, Some(version.version)),
            name: connector.name.clone(),
            id: connector.id.to_string(),
            version: version.version,
            state: version.state,
            state_reason: version.reason.text,
            state_reason_code: version.reason.code,
            last_modified: IsoTimestamp(Timestamp::from_unix_ms(version.modified_at)),
        })
        .collect();
    Ok(ListNetworkConnectorVersionsResponse { network_connector_versions, next_marker })
}
