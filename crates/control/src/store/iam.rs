//! Rows of users, access keys and policies.

use sqlx::{Row, SqliteConnection, sqlite::SqliteRow};

use super::{StoreError, failed};
use crate::iam::records::{KeyRecord, PolicyRecord, UserRecord};

/// How often users, keys or policies have changed.
pub(crate) async fn generation(connection: &mut SqliteConnection) -> Result<i64, StoreError> {
    sqlx::query_scalar("SELECT value FROM counters WHERE name = 'iam'")
        .fetch_one(connection)
        .await
        .map_err(failed("see whether users have changed"))
}

/// Lets a running server see that something has changed. Part of the change's transaction.
pub(crate) async fn changed(connection: &mut SqliteConnection) -> Result<(), StoreError> {
    sqlx::query("UPDATE counters SET value = value + 1 WHERE name = 'iam'")
        .execute(connection)
        .await
        .map_err(failed("note that users have changed"))?;
    Ok(())
}

fn user(row: &SqliteRow) -> UserRecord {
    UserRecord { name: row.get("name"), id: row.get("id"), created_at: row.get("created_at") }
}

fn key(row: &SqliteRow) -> KeyRecord {
    KeyRecord {
        id: row.get("id"),
        user_id: row.get("user_id"),
        sealed_secret: row.get("sealed_secret"),
        active: row.get("active"),
        created_at: row.get("created_at"),
    }
}

fn policy(row: &SqliteRow) -> PolicyRecord {
    PolicyRecord {
        user_id: row.get("user_id"),
        name: row.get("name"),
        document: row.get("document"),
        updated_at: row.get("updated_at"),
    }
}

/// A user by its name, in whatever case.
pub(crate) async fn find_user(connection: &mut SqliteConnection, name: &str) -> Result<Option<UserRecord>, StoreError> {
    let row = sqlx::query("SELECT * FROM iam_users WHERE name = ?")
        .bind(name)
        .fetch_optional(connection)
        .await
        .map_err(failed("find a user"))?;
    Ok(row.as_ref().map(user))
}

/// Every user, by name.
pub(crate) async fn users(connection: &mut SqliteConnection) -> Result<Vec<UserRecord>, StoreError> {
    let rows = sqlx::query("SELECT * FROM iam_users ORDER BY name")
        .fetch_all(connection)
        .await
        .map_err(failed("list users"))?;
    Ok(rows.iter().map(user).collect())
}

/// How many users there are.
pub(crate) async fn count_users(connection: &mut SqliteConnection) -> Result<i64, StoreError> {
    sqlx::query_scalar("SELECT COUNT(*) FROM iam_users").fetch_one(connection).await.map_err(failed("count users"))
}

/// Adds a user.
pub(crate) async fn insert_user(connection: &mut SqliteConnection, user: &UserRecord) -> Result<(), StoreError> {
    sqlx::query("INSERT INTO iam_users (name, id, created_at) VALUES (?, ?, ?)")
        .bind(&user.name)
        .bind(&user.id)
        .bind(user.created_at)
        .execute(connection)
        .await
        .map_err(failed("add a user"))?;
    Ok(())
}

/// Removes a user with its keys and policies.
pub(crate) async fn delete_user(connection: &mut SqliteConnection, id: &str) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM iam_users WHERE id = ?")
        .bind(id)
        .execute(connection)
        .await
        .map_err(failed("remove a user"))?;
    Ok(())
}

/// The keys of a user, or of all, oldest first.
pub(crate) async fn keys(
    connection: &mut SqliteConnection,
    user_id: Option<&str>,
) -> Result<Vec<KeyRecord>, StoreError> {
    let rows = sqlx::query("SELECT * FROM iam_access_keys WHERE ? IS NULL OR user_id = ? ORDER BY created_at, id")
        .bind(user_id)
        .bind(user_id)
        .fetch_all(connection)
        .await
        .map_err(failed("list access keys"))?;
    Ok(rows.iter().map(key).collect())
}

/// Adds a key.
pub(crate) async fn insert_key(connection: &mut SqliteConnection, key: &KeyRecord) -> Result<(), StoreError> {
    sqlx::query("INSERT INTO iam_access_keys (id, user_id, sealed_secret, active, created_at) VALUES (?, ?, ?, ?, ?)")
        .bind(&key.id)
        .bind(&key.user_id)
        .bind(&key.sealed_secret)
        .bind(key.active)
        .bind(key.created_at)
        .execute(connection)
        .await
        .map_err(failed("add an access key"))?;
    Ok(())
}

/// Makes a key good or not.
pub(crate) async fn set_key_active(
    connection: &mut SqliteConnection,
    id: &str,
    active: bool,
) -> Result<(), StoreError> {
    sqlx::query("UPDATE iam_access_keys SET active = ? WHERE id = ?")
        .bind(active)
        .bind(id)
        .execute(connection)
        .await
        .map_err(failed("change an access key"))?;
    Ok(())
}

/// The name of the user that a key is of; none if there is no such key.
pub(crate) async fn owner_of(connection: &mut SqliteConnection, id: &str) -> Result<Option<String>, StoreError> {
    sqlx::query_scalar("SELECT u.name FROM iam_access_keys k JOIN iam_users u ON u.id = k.user_id WHERE k.id = ?")
        .bind(id)
        .fetch_optional(connection)
        .await
        .map_err(failed("find an access key"))
}

/// Removes a key.
pub(crate) async fn delete_key(connection: &mut SqliteConnection, id: &str) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM iam_access_keys WHERE id = ?")
        .bind(id)
        .execute(connection)
        .await
        .map_err(failed("remove an access key"))?;
    Ok(())
}

/// The policies of a user, or of all, by name.
pub(crate) async fn policies(
    connection: &mut SqliteConnection,
    user_id: Option<&str>,
) -> Result<Vec<PolicyRecord>, StoreError> {
    let rows = sqlx::query("SELECT * FROM iam_policies WHERE ? IS NULL OR user_id = ? ORDER BY name")
        .bind(user_id)
        .bind(user_id)
        .fetch_all(connection)
        .await
        .map_err(failed("list policies"))?;
    Ok(rows.iter().map(policy).collect())
}

/// Puts a policy, in place of one of the same name.
pub(crate) async fn put_policy(connection: &mut SqliteConnection, policy: &PolicyRecord) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO iam_policies (user_id, name, document, updated_at) VALUES (?, ?, ?, ?)
         ON CONFLICT (user_id, name) DO UPDATE SET document = excluded.document, updated_at = excluded.updated_at",
    )
    .bind(&policy.user_id)
    .bind(&policy.name)
    .bind(&policy.document)
    .bind(policy.updated_at)
    .execute(connection)
    .await
    .map_err(failed("put a policy"))?;
    Ok(())
}

/// Removes a policy; answers whether there was such a policy.
pub(crate) async fn delete_policy(
    connection: &mut SqliteConnection,
    user_id: &str,
    name: &str,
) -> Result<bool, StoreError> {
    let done = sqlx::query("DELETE FROM iam_policies WHERE user_id = ? AND name = ?")
        .bind(user_id)
        .bind(name)
        .execute(connection)
        .await
        .map_err(failed("remove a policy"))?;
    Ok(done.rows_affected() > 0)
}

/// Makes every policy one that this version cannot read.
#[cfg(test)]
pub(crate) async fn spoil_policies(database: &std::path::Path) {
    let store = super::Store::open(database).await.expect("it opens");
    sqlx::query("UPDATE iam_policies SET document = json_set(document, '$.Later', 1)")
        .execute(&mut *store.write().await.expect("a connection"))
        .await
        .expect("it is changed");
    store.close().await;
}
