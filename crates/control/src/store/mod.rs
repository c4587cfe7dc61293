//! The database: the only place with SQL. One connection writes, so that writers queue here and not in SQLite's locks;
//! a few others read.

pub(crate) mod audit;
pub(crate) mod connector_uses;
pub(crate) mod connectors;
mod gauge;
pub(crate) mod iam;
pub(crate) mod images;
pub(crate) mod microvms;
pub(crate) mod tokens;

use std::{io, os::unix::fs::OpenOptionsExt, path::Path, str::FromStr, time::Duration};

pub use self::gauge::Gauge;
use sqlx::{
    Connection as _, Sqlite, SqliteConnection, SqlitePool, Transaction,
    migrate::{Migration, MigrationType, Migrator},
    pool::PoolConnection,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};

/// What a query runs on; a name for those who pass it on.
pub(crate) type Connection = SqliteConnection;

/// Connections that only read.
const READERS: u32 = 4;

/// How long a query waits for a connection, or for another process that holds the file.
const WAIT_MAX: Duration = Duration::from_secs(20);

/// Why the database did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file could not be made.
    #[error("the database {path} could not be created")]
    Create {
        /// Its path.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file could not be opened.
    #[error("the database {path} could not be opened")]
    Open {
        /// Its path.
        path: String,
        /// Why.
        #[source]
        source: sqlx::Error,
    },
    /// The tables could not be brought to this version's form.
    #[error("the database {path} could not be migrated")]
    Migrate {
        /// Its path.
        path: String,
        /// Why.
        #[source]
        source: sqlx::migrate::MigrateError,
    },
    /// A query failed.
    #[error("the database failed to {action}")]
    Query {
        /// What it was to do.
        action: &'static str,
        /// Why.
        #[source]
        source: sqlx::Error,
    },
    /// A row holds what no version of this program wrote.
    #[error("column {column} of row {id} cannot be understood")]
    Corrupt {
        /// Table and column.
        column: &'static str,
        /// The row.
        id: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// The database.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    writer: SqlitePool,
    reader: SqlitePool,
    gauge: Gauge,
}

impl Store {
    /// Opens the database, making and migrating it as needed.
    pub(crate) async fn open(path: &Path) -> Result<Self, StoreError> {
        Self::open_with(path, &Gauge::default()).await
    }

    /// The same, with a gauge that tells from now on whether it is in use.
    pub(crate) async fn open_with(path: &Path, gauge: &Gauge) -> Result<Self, StoreError> {
        let _changing = gauge.changing();
        let store = Self::open_pools(path, gauge).await?;
        gauge.watch([store.writer.clone(), store.reader.clone()]);
        Ok(store)
    }

    async fn open_pools(path: &Path, gauge: &Gauge) -> Result<Self, StoreError> {
        let shown = || path.display().to_string();
        // Made here, and not by SQLite, for its mode: it holds environment variables and hook payloads. SQLite gives
        // its companion files the same mode.
        std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(path)
            .map_err(|source| StoreError::Create { path: shown(), source })?;
        let options = SqliteConnectOptions::new()
            .filename(path)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(WAIT_MAX)
            .foreign_keys(true);
        let pool = |size: u32| {
            let options = SqlitePoolOptions::new().max_connections(size).min_connections(1);
            // On a full disk SQLite rolls a transaction back by itself. The library then takes it for one that still goes on, and
            // would begin no other on this connection, which makes way for a new one.
            let options = options.before_acquire(|connection, _| {
                let sound = !connection.is_in_transaction();
                Box::pin(async move { Ok(sound) })
            });
            options.acquire_timeout(WAIT_MAX)
        };
        let open = |source| StoreError::Open { path: shown(), source };
        // A server that starts and a command beside it may both find tables to make: one at a time.
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let directory = std::fs::File::open(directory);
        // Waited for on a thread of its own, so that whoever has the turn can go on in this one.
        let turn = tokio::task::spawn_blocking(move || directory.and_then(|it| it.lock().map(|()| it)))
            .await
            .unwrap_or_else(|failure| Err(io::Error::other(failure)))
            .map_err(|source| StoreError::Create { path: shown(), source })?;
        let writer = pool(1).connect_with(options.clone()).await.map_err(open)?;
        migrations().run(&writer).await.map_err(|source| StoreError::Migrate { path: shown(), source })?;
        drop(turn);
        let reader = pool(READERS).connect_with(options.pragma("query_only", "1")).await.map_err(open)?;
        Ok(Self { writer, reader, gauge: gauge.clone() })
    }

    /// A connection to read with.
    pub(crate) async fn read(&self) -> Result<PoolConnection<Sqlite>, StoreError> {
        self.gauge.turn().await;
        self.reader.acquire().await.map_err(failed("get a connection"))
    }

    /// A transaction that reads: all it sees is as of one moment.
    pub(crate) async fn moment(&self) -> Result<Transaction<'static, Sqlite>, StoreError> {
        self.gauge.turn().await;
        self.reader.begin().await.map_err(failed("begin to read"))
    }

    /// The connection that writes, for one statement that is its own transaction.
    pub(crate) async fn write(&self) -> Result<PoolConnection<Sqlite>, StoreError> {
        self.gauge.turn().await;
        self.writer.acquire().await.map_err(failed("get a connection"))
    }

    /// A transaction that writes; rolled back unless committed.
    pub(crate) async fn begin(&self) -> Result<Transaction<'static, Sqlite>, StoreError> {
        self.gauge.turn().await;
        self.writer.begin_with("BEGIN IMMEDIATE").await.map_err(failed("begin a transaction"))
    }

    /// Closes every connection.
    pub(crate) async fn close(&self) {
        let _changing = self.gauge.changing();
        self.reader.close().await;
        self.writer.close().await;
    }
}

/// Makes a transaction's changes last.
pub(crate) async fn commit(transaction: Transaction<'static, Sqlite>) -> Result<(), StoreError> {
    transaction.commit().await.map_err(failed("commit a transaction"))
}

/// Every form the tables have had, oldest first. What is here has been used: it is never changed, only added to.
const MIGRATIONS: &[(i64, &str, &str)] = &[
    (1, "first", include_str!("migrations/0001_first.sql")),
    (2, "versions", include_str!("migrations/0002_versions.sql")),
    (3, "connectors", include_str!("migrations/0003_connectors.sql")),
    (4, "iam", include_str!("migrations/0004_iam.sql")),
    (5, "memory", include_str!("migrations/0005_memory.sql")),
    (6, "architectures", include_str!("migrations/0006_architectures.sql")),
    (7, "changes", include_str!("migrations/0007_changes.sql")),
    (8, "boot times", include_str!("migrations/0008_boot_times.sql")),
];

fn migrations() -> Migrator {
    let migrations = MIGRATIONS.iter().map(|&(version, name, sql)| {
        let sql = sqlx::SqlSafeStr::into_sql_str(sql);
        Migration::new(version, name.into(), MigrationType::Simple, sql, false)
    });
    Migrator::with_migrations(migrations.collect())
}

fn failed(action: &'static str) -> impl FnOnce(sqlx::Error) -> StoreError {
    move |source| StoreError::Query { action, source }
}

/// The next number in the order of creation.
async fn next_sequence(connection: &mut SqliteConnection) -> Result<i64, StoreError> {
    sqlx::query_scalar("UPDATE counters SET value = value + 1 WHERE name = 'sequence' RETURNING value")
        .fetch_one(connection)
        .await
        .map_err(failed("count"))
}

/// Reads a column's text as what it stands for.
fn parse<T>(column: &'static str, id: &str, text: &str) -> Result<T, StoreError>
where
    T: FromStr,
    T::Err: std::error::Error + Send + Sync + 'static,
{
    text.parse().map_err(|source| StoreError::Corrupt { column, id: id.to_owned(), source: Box::new(source) })
}

/// Reads a column of JSON.
fn parse_json<T: serde::de::DeserializeOwned>(column: &'static str, id: &str, text: &str) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(|source| StoreError::Corrupt {
        column,
        id: id.to_owned(),
        source: Box::new(source),
    })
}

/// Reads a column of a number that is never negative or large.
fn number<T>(column: &'static str, id: &str, value: i64) -> Result<T, StoreError>
where
    T: TryFrom<i64>,
    T::Error: std::error::Error + Send + Sync + 'static,
{
    T::try_from(value).map_err(|source| StoreError::Corrupt { column, id: id.to_owned(), source: Box::new(source) })
}

/// Plain data as JSON.
fn json<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("records are plain data with text keys")
}

/// Makes a database what it was before versions could have several builds.
#[cfg(test)]
pub(crate) async fn forget_architectures(database: &Path) {
    let store = Store::open(database).await.expect("it opens");
    for sql in [
        "UPDATE image_versions SET definition_json = json_set(definition_json, '$.plan.architecture', 'ARM_64')",
        "UPDATE microvms SET spec_json = json_remove(spec_json, '$.architecture')",
        "DROP INDEX builds_by_architecture",
        "ALTER TABLE builds DROP COLUMN architecture",
        "DELETE FROM _sqlx_migrations WHERE description = 'architectures'",
    ] {
        let mut connection = store.write().await.expect("a connection");
        sqlx::query(sql).execute(&mut *connection).await.expect(sql);
    }
    store.close().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As a full disk does: SQLite takes the transaction back by itself, and the next one must be able to begin.
    #[tokio::test]
    async fn a_full_disk_costs_one_transaction() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("state.db")).await.unwrap();
        let mut transaction = store.begin().await.unwrap();
        sqlx::query("PRAGMA max_page_count = 1").execute(&mut *transaction).await.unwrap();
        let filling = "INSERT INTO audit_lines (line) VALUES (hex(randomblob(100000)))";
        let full = sqlx::query(filling).execute(&mut *transaction).await.expect_err("there is no room");
        assert_eq!(full.as_database_error().and_then(|error| error.code()).as_deref(), Some("13"));
        drop(transaction);
        for _ in 0..2 {
            commit(store.begin().await.expect("another begins")).await.unwrap();
        }
        store.close().await;
    }
}
