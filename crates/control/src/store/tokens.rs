//! Rows of client tokens.

use sqlx::{Row, SqliteConnection};

use super::{StoreError, failed};
use crate::idempotency::{ClientToken, Kept, Used, used};

/// What a token stands for now.
pub(crate) async fn find(
    connection: &mut SqliteConnection,
    token: &ClientToken,
    now: i64,
) -> Result<Option<Used>, StoreError> {
    let row =
        sqlx::query("SELECT fingerprint, resource_id, created_at FROM client_tokens WHERE operation = ? AND token = ?")
            .bind(token.operation)
            .bind(&token.token)
            .fetch_optional(connection)
            .await
            .map_err(failed("find a client token"))?;
    let kept = row.map(|row| Kept {
        fingerprint: row.get("fingerprint"),
        resource_id: row.get("resource_id"),
        created_at: row.get("created_at"),
    });
    Ok(used(token, kept, now))
}

/// Keeps a token, in place of what may have been kept under it.
pub(crate) async fn keep(
    connection: &mut SqliteConnection,
    token: &ClientToken,
    resource_id: &str,
    now: i64,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO client_tokens (operation, token, fingerprint, resource_id, created_at) VALUES (?, ?, ?, ?, ?)
         ON CONFLICT (operation, token) DO UPDATE SET
            fingerprint = excluded.fingerprint,
            resource_id = excluded.resource_id,
            created_at = excluded.created_at",
    )
    .bind(token.operation)
    .bind(&token.token)
    .bind(&token.fingerprint)
    .bind(resource_id)
    .bind(now)
    .execute(connection)
    .await
    .map_err(failed("keep a client token"))?;
    Ok(())
}

/// Forgets every token kept before a time.
pub(crate) async fn forget_before(connection: &mut SqliteConnection, time: i64) -> Result<u64, StoreError> {
    let done = sqlx::query("DELETE FROM client_tokens WHERE created_at < ?")
        .bind(time)
        .execute(connection)
        .await
        .map_err(failed("forget client tokens"))?;
    Ok(done.rows_affected())
}
