//! Rows of connectors and their versions.

use api::{
    connectors::{LastUpdateStatus, NetworkConnectorState as State, StateReasonCode, Which},
    ids::ConnectorId,
    tags::Tags,
    word::Word,
};
use sqlx::{Row, SqliteConnection, sqlite::SqliteRow};

use super::{StoreError, failed, json, next_sequence, number, parse, parse_json};
use crate::connectors::record::{Connector, Definition, Reason, Version};

fn reason(row: &SqliteRow, id: &str, text: &str, code: &'static str) -> Result<Reason, StoreError> {
    let word: Option<String> = row.get(code);
    let code = word.map(|word| parse::<StateReasonCode>(code, id, &word)).transpose()?;
    Ok(Reason { text: row.get(text), code })
}

fn connector(row: &SqliteRow) -> Result<Connector, StoreError> {
    let id: String = row.get("id");
    let update: Option<String> = row.get("update_status");
    let active: Option<i64> = row.get("active_version");
    Ok(Connector {
        sequence: row.get("sequence"),
        id: parse("connectors.id", &id, &id)?,
        name: row.get("name"),
        state: parse("connectors.state", &id, &row.get::<String, _>("state"))?,
        reason: reason(row, &id, "state_reason", "state_reason_code")?,
        update: update.map(|word| parse::<LastUpdateStatus>("connectors.update_status", &id, &word)).transpose()?,
        update_reason: reason(row, &id, "update_reason", "update_reason_code")?,
        version: number("connectors.version", &id, row.get("version"))?,
        active: active.map(|version| number("connectors.active_version", &id, version)).transpose()?,
        tags: parse_json("connectors.tags_json", &id, &row.get::<String, _>("tags_json"))?,
        modified_at: row.get("modified_at"),
    })
}

fn version(row: &SqliteRow) -> Result<Version, StoreError> {
    let id: String = row.get("connector_id");
    Ok(Version {
        connector: parse("connector_versions.connector_id", &id, &id)?,
        version: number("connector_versions.version", &id, row.get("version"))?,
        state: parse("connector_versions.state", &id, &row.get::<String, _>("state"))?,
        reason: reason(row, &id, "state_reason", "state_reason_code")?,
        definition: parse_json("connector_versions.definition_json", &id, &row.get::<String, _>("definition_json"))?,
        modified_at: row.get("modified_at"),
    })
}

/// The number of a version, as columns hold it.
pub(super) fn column(version: u64) -> i64 {
    i64::try_from(version).unwrap_or(i64::MAX)
}

fn code(reason: &Reason) -> Option<&'static str> {
    reason.code.map(Word::as_str)
}

/// Adds a connector and its first version, as this record says.
pub(crate) async fn insert(
    connection: &mut SqliteConnection,
    mut connector: Connector,
    definition: &Definition,
) -> Result<(Connector, Version), StoreError> {
    connector.sequence = next_sequence(connection).await?;
    sqlx::query(
        "INSERT INTO connectors
            (id, sequence, name, state, state_reason, version, tags_json, created_at, modified_at)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(connector.id.to_string())
    .bind(connector.sequence)
    .bind(&connector.name)
    .bind(connector.state.as_str())
    .bind(&connector.reason.text)
    .bind(column(connector.version))
    .bind(json(&connector.tags))
    .bind(connector.modified_at)
    .bind(connector.modified_at)
    .execute(&mut *connection)
    .await
    .map_err(failed("add a network connector"))?;
    let version = insert_version(connection, &connector, definition).await?;
    Ok((connector, version))
}

/// Adds a connector's newest version, waiting.
pub(crate) async fn insert_version(
    connection: &mut SqliteConnection,
    connector: &Connector,
    definition: &Definition,
) -> Result<Version, StoreError> {
    let version = Version {
        connector: connector.id,
        version: connector.version,
        state: State::Pending,
        reason: Reason::default(),
        definition: definition.clone(),
        modified_at: connector.modified_at,
    };
    sqlx::query(
        "INSERT INTO connector_versions (connector_id, version, state, definition_json, modified_at)
         VALUES (?, ?, ?, ?, ?)",
    )
    .bind(version.connector.to_string())
    .bind(column(version.version))
    .bind(version.state.as_str())
    .bind(json(definition))
    .bind(version.modified_at)
    .execute(connection)
    .await
    .map_err(failed("add a version of a network connector"))?;
    Ok(version)
}

/// Writes a connector's state, and with it everything that changes with it.
pub(crate) async fn update(connection: &mut SqliteConnection, connector: &Connector) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE connectors SET state = ?, state_reason = ?, state_reason_code = ?, update_status = ?, update_reason = ?,
            update_reason_code = ?, version = ?, active_version = ?, modified_at = ?
         WHERE id = ?",
    )
    .bind(connector.state.as_str())
    .bind(&connector.reason.text)
    .bind(code(&connector.reason))
    .bind(connector.update.map(Word::as_str))
    .bind(&connector.update_reason.text)
    .bind(code(&connector.update_reason))
    .bind(column(connector.version))
    .bind(connector.active.map(column))
    .bind(connector.modified_at)
    .bind(connector.id.to_string())
    .execute(connection)
    .await
    .map_err(failed("update a network connector"))?;
    Ok(())
}

/// Writes a version's state.
pub(crate) async fn set_version(connection: &mut SqliteConnection, version: &Version) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE connector_versions SET state = ?, state_reason = ?, state_reason_code = ?, modified_at = ?
         WHERE connector_id = ? AND version = ?",
    )
    .bind(version.state.as_str())
    .bind(&version.reason.text)
    .bind(code(&version.reason))
    .bind(version.modified_at)
    .bind(version.connector.to_string())
    .bind(column(version.version))
    .execute(connection)
    .await
    .map_err(failed("update a version of a network connector"))?;
    Ok(())
}

/// Writes a connector's tags.
pub(crate) async fn set_tags(
    connection: &mut SqliteConnection,
    id: &ConnectorId,
    tags: &Tags,
) -> Result<(), StoreError> {
    sqlx::query("UPDATE connectors SET tags_json = ? WHERE id = ?")
        .bind(json(tags))
        .bind(id.to_string())
        .execute(connection)
        .await
        .map_err(failed("update a network connector's tags"))?;
    Ok(())
}

/// The connector of this id or name.
pub(crate) async fn find(connection: &mut SqliteConnection, which: &Which) -> Result<Option<Connector>, StoreError> {
    let query = match which {
        Which::Id(id) => sqlx::query("SELECT * FROM connectors WHERE id = ?").bind(id.to_string()),
        Which::Name(name) => sqlx::query("SELECT * FROM connectors WHERE name = ?").bind(name.clone()),
    };
    let row = query.fetch_optional(connection).await.map_err(failed("find a network connector"))?;
    row.as_ref().map(connector).transpose()
}

/// One version.
pub(crate) async fn find_version(
    connection: &mut SqliteConnection,
    id: &ConnectorId,
    number: u64,
) -> Result<Option<Version>, StoreError> {
    let row = sqlx::query("SELECT * FROM connector_versions WHERE connector_id = ? AND version = ?")
        .bind(id.to_string())
        .bind(column(number))
        .fetch_optional(connection)
        .await
        .map_err(failed("find a version of a network connector"))?;
    row.as_ref().map(version).transpose()
}

/// How many connectors there are.
pub(crate) async fn count(connection: &mut SqliteConnection) -> Result<i64, StoreError> {
    sqlx::query_scalar("SELECT COUNT(*) FROM connectors")
        .fetch_one(connection)
        .await
        .map_err(failed("count network connectors"))
}

/// How many versions a connector has.
pub(crate) async fn count_versions(connection: &mut SqliteConnection, id: &ConnectorId) -> Result<i64, StoreError> {
    sqlx::query_scalar("SELECT COUNT(*) FROM connector_versions WHERE connector_id = ?")
        .bind(id.to_string())
        .fetch_one(connection)
        .await
        .map_err(failed("count versions of a network connector"))
}

/// At most `limit` connectors older than `before`, newest first, of one state or of all.
pub(crate) async fn list(
    connection: &mut SqliteConnection,
    state: Option<State>,
    before: i64,
    limit: u32,
) -> Result<Vec<Connector>, StoreError> {
    let state = state.map(Word::as_str);
    let rows = sqlx::query(
        "SELECT * FROM connectors WHERE sequence < ? AND (? IS NULL OR state = ?) ORDER BY sequence DESC LIMIT ?",
    )
    .bind(before)
    .bind(state)
    .bind(state)
    .bind(limit)
    .fetch_all(connection)
    .await
    .map_err(failed("list network connectors"))?;
    rows.iter().map(connector).collect()
}

/// At most `limit` versions below `before`, newest first, of one state or of all.
pub(crate) async fn list_versions(
    connection: &mut SqliteConnection,
    id: &ConnectorId,
    state: Option<State>,
    before: i64,
    limit: u32,
) -> Result<Vec<Version>, StoreError> {
    let state = state.map(Word::as_str);
    let rows = sqlx::query(
        "SELECT * FROM connector_versions WHERE connector_id = ? AND version < ? AND (? IS NULL OR state = ?)
         ORDER BY version DESC LIMIT ?",
    )
    .bind(id.to_string())
    .bind(before)
    .bind(state)
    .bind(state)
    .bind(limit)
    .fetch_all(connection)
    .await
    .map_err(failed("list versions of a network connector"))?;
    rows.iter().map(version).collect()
}

/// Every version in this state, of whichever connector.
pub(crate) async fn versions_in_state(
    connection: &mut SqliteConnection,
    state: State,
) -> Result<Vec<Version>, StoreError> {
    let rows = sqlx::query("SELECT * FROM connector_versions WHERE state = ? ORDER BY connector_id, version")
        .bind(state.as_str())
        .fetch_all(connection)
        .await
        .map_err(failed("list versions of network connectors"))?;
    rows.iter().map(version).collect()
}

/// Removes a connector with its versions.
pub(crate) async fn remove(connection: &mut SqliteConnection, id: &ConnectorId) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM connectors WHERE id = ?")
        .bind(id.to_string())
        .execute(connection)
        .await
        .map_err(failed("remove a network connector"))?;
    Ok(())
}

/// Removes one version.
pub(crate) async fn remove_version(
    connection: &mut SqliteConnection,
    id: &ConnectorId,
    version: u64,
) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM connector_versions WHERE connector_id = ? AND version = ?")
        .bind(id.to_string())
        .bind(column(version))
        .execute(connection)
        .await
        .map_err(failed("remove a version of a network connector"))?;
    Ok(())
}
