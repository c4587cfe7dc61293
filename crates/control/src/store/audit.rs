//! Rows of lines that are not in the audit log yet.

use sqlx::{Row, SqliteConnection};

use super::{StoreError, failed};

/// Adds a line. Part of the transaction of what it tells.
pub(crate) async fn add(connection: &mut SqliteConnection, line: &str) -> Result<(), StoreError> {
    sqlx::query("INSERT INTO audit_lines (line) VALUES (?)")
        .bind(line)
        .execute(connection)
        .await
        .map_err(failed("note a change for the audit log"))?;
    Ok(())
}

/// How many there are.
pub(crate) async fn count(connection: &mut SqliteConnection) -> Result<i64, StoreError> {
    sqlx::query_scalar("SELECT COUNT(*) FROM audit_lines")
        .fetch_one(connection)
        .await
        .map_err(failed("count lines for the audit log"))
}

/// The oldest, if there is one.
pub(crate) async fn oldest(connection: &mut SqliteConnection) -> Result<Option<(i64, String)>, StoreError> {
    let row = sqlx::query("SELECT sequence, line FROM audit_lines ORDER BY sequence LIMIT 1")
        .fetch_optional(connection)
        .await
        .map_err(failed("read lines for the audit log"))?;
    Ok(row.map(|row| (row.get("sequence"), row.get("line"))))
}

/// Removes one that is in the log.
pub(crate) async fn remove(connection: &mut SqliteConnection, sequence: i64) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM audit_lines WHERE sequence = ?")
        .bind(sequence)
        .execute(connection)
        .await
        .map_err(failed("forget a line of the audit log"))?;
    Ok(())
}

/// Puts so many lines in place of what there is: a line that is in the log may still be here.
#[cfg(test)]
pub(crate) async fn fill(database: &std::path::Path, lines: i64) {
    let store = super::Store::open(database).await.expect("it opens");
    let mut connection = store.write().await.expect("a connection");
    sqlx::query("DELETE FROM audit_lines").execute(&mut *connection).await.expect("they are removed");
    sqlx::query(
        "WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < ?)
         INSERT INTO audit_lines (line) SELECT '{}' FROM numbers",
    )
    .bind(lines)
    .execute(&mut *connection)
    .await
    .expect("they are added");
    drop(connection);
    store.close().await;
}
