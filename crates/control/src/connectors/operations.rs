//! The operations on one connector.

use std::sync::Arc;

use api::{
    catalogue,
    connectors::{
        ConnectorArn, CreateNetworkConnectorRequest, DeleteNetworkConnectorRequest, GetNetworkConnectorRequest,
        Identifier, LastUpdateStatus, NetworkConnector, NetworkConnectorState as State, UpdateNetworkConnectorRequest,
        Which,
    },
    error::ServiceError,
    ids::ConnectorId,
    timestamp::{IsoTimestamp, Timestamp},
};

use super::{
    activate,
    delete::{self, Leaving},
    record::{Connector, Definition, Reason, Version},
    state::{Event, may_leave, next},
};
use crate::{
    idempotency::ClientToken,
    shared::{Shared, hidden},
    store::{Connection, commit, connector_uses, connectors as rows, tokens},
};

/// What the service says of a connector that was not changed since it was made.
const REASON_CREATED: &str = "Initial creation";

/// What the service says of an update that changes nothing.
const REASON_UNCHANGED: &str = "No configuration changes detected";

/// ARN of one of our connectors, or of a version of it.
pub(crate) fn arn(shared: &Shared, id: ConnectorId, version: Option<u64>) -> String {
    let (region, account) = (shared.config.region.clone(), shared.config.account.clone());
    ConnectorArn { region, account, id, version }.to_string()
}

/// That there is no such connector, in the service's words.
pub(crate) fn not_found(shared: &Shared, identifier: &str) -> ServiceError {
    catalogue::connector_not_found(Identifier::as_arn(identifier, &shared.config.region, &shared.config.account))
}

/// The connector of an identifier, and the version it names.
pub(crate) async fn find(
    shared: &Shared,
    connection: &mut Connection,
    identifier: &str,
) -> Result<(Connector, Option<u64>), ServiceError> {
    let unknown = || not_found(shared, identifier);
    let read = Identifier::read(identifier, &shared.config.region, &shared.config.account).ok_or_else(unknown)?;
    let connector = rows::find(connection, &read.which).await.map_err(hidden)?.ok_or_else(unknown)?;
    Ok((connector, read.version))
}

/// ARN of the connector that an identifier names, without a version; none if there is no such connector.
pub(crate) async fn known_arn(shared: &Shared, identifier: &str) -> Result<Option<String>, ServiceError> {
    let mut connection = shared.store.read().await.map_err(hidden)?;
    match find(shared, &mut connection, identifier).await {
        Ok((connector, _)) => Ok(Some(arn(shared, connector.id, None))),
        Err(ServiceError::ConnectorNotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The connector of an identifier that names no version.
pub(crate) async fn find_whole(
    shared: &Shared,
    connection: &mut Connection,
    identifier: &str,
) -> Result<Connector, ServiceError> {
    match find(shared, connection, identifier).await? {
        (connector, None) => Ok(connector),
        (_, Some(_)) => Err(catalogue::connector_version_unwanted(identifier)),
    }
}

async fn version_of(connection: &mut Connection, connector: &Connector, version: u64) -> Result<Version, ServiceError> {
    let version = rows::find_version(connection, &connector.id, version).await.map_err(hidden)?;
    version.ok_or_else(catalogue::internal_error)
}

/// What every answer says.
fn described(shared: &Shared, connector: &Connector, version: &Version, state: State) -> NetworkConnector {
    NetworkConnector {
        arn: arn(shared, connector.id, None),
        name: connector.name.clone(),
        id: connector.id.to_string(),
        version_arn: Some(arn(shared, connector.id, Some(version.version))),
        version: Some(version.version),
        latest_version_arn: None,
        latest_version: None,
        configuration: Some(version.definition.configuration.clone()),
        operator_role: Some(version.definition.operator_role.clone()),
        state: Some(state),
        state_reason: None,
        state_reason_code: None,
        last_update_status: None,
        last_update_status_reason: None,
        last_update_status_reason_code: None,
        last_modified: None,
    }
}

/// `CreateNetworkConnector`.
pub(crate) async fn create(
    shared: &Arc<Shared>,
    mut request: CreateNetworkConnectorRequest,
) -> Result<NetworkConnector, ServiceError> {
    let plan = request.plan(&shared.config.networks)?;
    request.client_token = None;
    let token = ClientToken::new("CreateNetworkConnector", plan.client_token, &request);
    let definition = Definition { configuration: request.configuration, operator_role: plan.operator_role };
    let own = shared.clone();
    shared
        .carry_through(async move {
            let mut transaction = own.store.begin().await.map_err(hidden)?;
            let now = own.now();
            if let Some((connector, version)) = replayed(&mut transaction, &token, now).await? {
                return Ok(described(&own, &connector, &version, State::Pending));
            }
            let which = Which::Name(request.name.clone());
            if rows::find(&mut transaction, &which).await.map_err(hidden)?.is_some() {
                return Err(catalogue::duplicate_connector_name(&request.name));
            }
            let max = own.config.quotas.connectors;
            if rows::count(&mut transaction).await.map_err(hidden)? >= i64::from(max) {
                return Err(catalogue::connector_limit(max));
            }
            let connector = Connector {
                sequence: 0,
                id: ConnectorId::random(),
                name: request.name,
                state: State::Pending,
                reason: Reason::text(REASON_CREATED),
                update: None,
                update_reason: Reason::default(),
                version: 1,
                active: None,
                tags: request.tags.unwrap_or_default(),
                modified_at: now,
            };
            let (connector, version) = rows::insert(&mut transaction, connector, &definition).await.map_err(hidden)?;
            tokens::keep(&mut transaction, &token, &kept_as(&version), now).await.map_err(hidden)?;
            commit(transaction).await.map_err(hidden)?;
            let answer = described(&own, &connector, &version, State::Pending);
            activate::start(&own, version);
            Ok(answer)
        })
        .await
}

/// What a token is kept with.
fn kept_as(version: &Version) -> String {
    format!("{} {}", version.connector, version.version)
}

/// The version that a token stands for, if it does and that one lives.
async fn replayed(
    connection: &mut Connection,
    token: &ClientToken,
    now: i64,
) -> Result<Option<(Connector, Version)>, ServiceError> {
    let Some(used) = tokens::find(connection, token, now).await.map_err(hidden)? else { return Ok(None) };
    let Some((id, version)) = used.resource_id.split_once(' ') else { return Ok(None) };
    let (Ok(id), Ok(version)) = (id.parse(), version.parse()) else { return Ok(None) };
    let connector = rows::find(connection, &Which::Id(id)).await.map_err(hidden)?;
    let version = rows::find_version(connection, &id, version).await.map_err(hidden)?;
    let leaving = |state| matches!(state, State::Deleting | State::DeleteFailed);
    let alive =
        connector.zip(version).filter(|(connector, version)| !leaving(connector.state) && !leaving(version.state));
    used.answer(alive, catalogue::connector_token_reused)
}

/// `GetNetworkConnector`.
pub(crate) async fn get(
    shared: &Shared,
    request: GetNetworkConnectorRequest,
) -> Result<NetworkConnector, ServiceError> {
    let mut connection = shared.store.read().await.map_err(hidden)?;
    let (connector, named) = find(shared, &mut connection, &request.identifier).await?;
    if let Some(named) = named {
        let version = rows::find_version(&mut connection, &connector.id, named).await.map_err(hidden)?;
        let version = version.ok_or_else(|| not_found(shared, &request.identifier))?;
        return Ok(NetworkConnector {
            state_reason: version.reason.text.clone(),
            state_reason_code: version.reason.code,
            last_modified: Some(IsoTimestamp(Timestamp::from_unix_ms(version.modified_at))),
            ..described(shared, &connector, &version, version.state)
        });
    }
    let version = version_of(&mut connection, &connector, connector.version).await?;
    let described = described(shared, &connector, &version, connector.state);
    Ok(NetworkConnector {
        version_arn: None,
        latest_version_arn: connector.active.map(|version| arn(shared, connector.id, Some(version))),
        latest_version: connector.active,
        state_reason: connector.reason.text,
        state_reason_code: connector.reason.code,
        last_update_status: connector.update,
        last_update_status_reason: connector.update_reason.text,
        last_update_status_reason_code: connector.update_reason.code,
        last_modified: Some(IsoTimestamp(Timestamp::from_unix_ms(connector.modified_at))),
        ..described
    })
}

fn updated(shared: &Shared, connector: &Connector, version: &Version, status: LastUpdateStatus) -> NetworkConnector {
    NetworkConnector {
        last_update_status: Some(status),
        last_update_status_reason: connector.update_reason.text.clone(),
        last_modified: Some(IsoTimestamp(Timestamp::from_unix_ms(connector.modified_at))),
        ..described(shared, connector, version, connector.state)
    }
}

/// `UpdateNetworkConnector`: makes another version. What there is stays in force until that one is.
pub(crate) async fn update(
    shared: &Arc<Shared>,
    mut request: UpdateNetworkConnectorRequest,
) -> Result<NetworkConnector, ServiceError> {
    let plan = request.plan(&shared.config.networks)?;
    request.client_token = None;
    let token = ClientToken::new("UpdateNetworkConnector", plan.client_token, &request);
    let own = shared.clone();
    shared
        .carry_through(async move {
            let mut transaction = own.store.begin().await.map_err(hidden)?;
            let now = own.now();
            if let Some((connector, version)) = replayed(&mut transaction, &token, now).await? {
                return Ok(updated(&own, &connector, &version, LastUpdateStatus::InProgress));
            }
            let mut connector = find_whole(&own, &mut transaction, &request.identifier).await?;
            let busy =
                catalogue::connector_busy(arn(&own, connector.id, None), connector.state, connector.is_updating());
            let (state, update) = next(connector.state, connector.update, Event::UpdateStarted).ok_or(busy)?;
            let in_force = connector.active.ok_or_else(catalogue::internal_error)?;
            let before = version_of(&mut transaction, &connector, in_force).await?;
            let definition = Definition {
                configuration: request.configuration.unwrap_or_else(|| before.definition.configuration.clone()),
                operator_role: request.operator_role.unwrap_or_else(|| before.definition.operator_role.clone()),
            };
            if definition.configuration.is_same(&before.definition.configuration)
                && definition.operator_role == before.definition.operator_role
            {
                connector.update = Some(LastUpdateStatus::Successful);
                connector.update_reason = Reason::text(REASON_UNCHANGED);
                rows::update(&mut transaction, &connector).await.map_err(hidden)?;
                commit(transaction).await.map_err(hidden)?;
                return Ok(updated(&own, &connector, &before, LastUpdateStatus::Successful));
            }
            let max = own.config.quotas.versions_per_connector;
            if rows::count_versions(&mut transaction, &connector.id).await.map_err(hidden)? >= i64::from(max) {
                return Err(catalogue::connector_version_limit(max));
            }
            (connector.state, connector.update) = (state, update);
            connector.update_reason = Reason::default();
            connector.version += 1;
            connector.modified_at = now;
            rows::update(&mut transaction, &connector).await.map_err(hidden)?;
            let version = rows::insert_version(&mut transaction, &connector, &definition).await.map_err(hidden)?;
            tokens::keep(&mut transaction, &token, &kept_as(&version), now).await.map_err(hidden)?;
            commit(transaction).await.map_err(hidden)?;
            let answer = updated(&own, &connector, &version, LastUpdateStatus::InProgress);
            activate::start(&own, version);
            Ok(answer)
        })
        .await
}

/// `DeleteNetworkConnector`: the whole connector, or a version that is history.
pub(crate) async fn remove(
    shared: &Arc<Shared>,
    request: DeleteNetworkConnectorRequest,
) -> Result<NetworkConnector, ServiceError> {
    let own = shared.clone();
    shared
        .carry_through(async move {
            let mut transaction = own.store.begin().await.map_err(hidden)?;
            let (mut connector, named) = find(&own, &mut transaction, &request.identifier).await?;
            let whole = arn(&own, connector.id, None);
            let busy = catalogue::connector_busy(&whole, connector.state, connector.is_updating());
            if let Some(named) = named {
                let version = rows::find_version(&mut transaction, &connector.id, named).await.map_err(hidden)?;
                let mut version = version.ok_or_else(|| not_found(&own, &request.identifier))?;
                if version.state != State::Deleting {
                    if connector.state == State::Deleting {
                        return Err(busy);
                    }
                    if !may_leave(named, connector.version, connector.active) {
                        return Err(catalogue::connector_version_latest(&request.identifier));
                    }
                    unused(&mut transaction, &connector, Some(named), &request.identifier).await?;
                    version.state = State::Deleting;
                    rows::set_version(&mut transaction, &version).await.map_err(hidden)?;
                    commit(transaction).await.map_err(hidden)?;
                    delete::start(&own, Leaving::Version(connector.id, named));
                }
                return Ok(described(&own, &connector, &version, State::Deleting));
            }
            let version = version_of(&mut transaction, &connector, connector.version).await?;
            if connector.state != State::Deleting {
                let (state, update) = next(connector.state, connector.update, Event::DeleteStarted).ok_or(busy)?;
                unused(&mut transaction, &connector, None, &whole).await?;
                (connector.state, connector.update) = (state, update);
                rows::update(&mut transaction, &connector).await.map_err(hidden)?;
                commit(transaction).await.map_err(hidden)?;
                delete::start(&own, Leaving::Connector(connector.id));
            }
            Ok(described(&own, &connector, &version, State::Deleting))
        })
        .await
}

async fn unused(
    connection: &mut Connection,
    connector: &Connector,
    version: Option<u64>,
    arn: &str,
) -> Result<(), ServiceError> {
    let uses = connector_uses::count(connection, &connector.id, version).await.map_err(hidden)?;
    if uses > 0 { Err(catalogue::connector_in_use(arn)) } else { Ok(()) }
}
