//! Rows of what uses a connector.

use api::{
    host::ImageRef,
    ids::{ConnectorId, MicrovmId},
};
use sqlx::SqliteConnection;

use super::{StoreError, connectors::column, failed};

/// Notes that a microVM has this version for as long as it lives.
pub(crate) async fn by_microvm(
    connection: &mut SqliteConnection,
    microvm: &MicrovmId,
    id: &ConnectorId,
    version: u64,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO microvm_connectors (microvm_id, connector_id, connector_version) VALUES (?, ?, ?)
         ON CONFLICT DO NOTHING",
    )
    .bind(microvm.to_string())
    .bind(id.to_string())
    .bind(column(version))
    .execute(connection)
    .await
    .map_err(failed("note the use of a network connector"))?;
    Ok(())
}

/// Notes that a version of an image names a connector, or one version of it.
pub(crate) async fn by_image(
    connection: &mut SqliteConnection,
    image: &ImageRef,
    id: &ConnectorId,
    version: Option<u64>,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO image_version_connectors (image_id, version, connector_id, connector_version) VALUES (?, ?, ?, ?)",
    )
    .bind(image.image_id.to_string())
    .bind(i64::from(image.version.major()))
    .bind(id.to_string())
    .bind(version.map(column))
    .execute(connection)
    .await
    .map_err(failed("note the use of a network connector"))?;
    Ok(())
}

/// How many microVMs that have not ended and versions of images use a connector, or this version of it.
pub(crate) async fn count(
    connection: &mut SqliteConnection,
    id: &ConnectorId,
    version: Option<u64>,
) -> Result<i64, StoreError> {
    let version = version.map(column);
    sqlx::query_scalar(
        "SELECT
            (SELECT COUNT(*) FROM microvm_connectors AS used JOIN microvms ON microvms.id = used.microvm_id
             WHERE used.connector_id = ? AND microvms.terminated_at IS NULL
                AND (? IS NULL OR used.connector_version = ?))
          + (SELECT COUNT(*) FROM image_version_connectors AS used
             WHERE used.connector_id = ? AND (? IS NULL OR used.connector_version = ?))",
    )
    .bind(id.to_string())
    .bind(version)
    .bind(version)
    .bind(id.to_string())
    .bind(version)
    .bind(version)
    .fetch_one(connection)
    .await
    .map_err(failed("count the uses of a network connector"))
}
