//! Rows of microVMs.

use api::{
    arn::ImageArn,
    host::{ImageRef, MicrovmSpec},
    ids::{EndpointId, ImageId, ImageVersion, MicrovmId},
    microvms::MicrovmItem,
    timestamp::Timestamp,
    word::Word,
};
use serde::Deserialize;
use sqlx::{Row, SqliteConnection, sqlite::SqliteRow};

use super::{StoreError, failed, json, next_sequence, number, parse, parse_json};
use crate::{
    clock::Moment,
    microvms::{
        record::{Contract, Fate, Record},
        state::State,
    },
};

/// Which microVMs a list is about.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Filter {
    /// Only those of this image.
    pub(crate) image: Option<ImageId>,
    /// Only those of this version.
    pub(crate) version: Option<ImageVersion>,
}

fn record(row: &SqliteRow) -> Result<Record, StoreError> {
    let id: String = row.get("id");
    let text = |name: &str| row.get::<String, _>(name);
    let suspended_at: Option<i64> = row.get("suspended_at");
    Ok(Record {
        sequence: row.get("sequence"),
        spec: parse_json::<MicrovmSpec>("microvms.spec_json", &id, &text("spec_json"))?,
        endpoint: parse("microvms.endpoint", &id, &text("endpoint"))?,
        contract: parse_json::<Contract>("microvms.terms_json", &id, &text("terms_json"))?,
        started_at: moment(row, row.get("started_at"), "started_boot")?,
        fate: Fate {
            state: parse("microvms.state", &id, &text("state"))?,
            aim: parse("microvms.aim", &id, &text("aim"))?,
            reason: row.get("state_reason"),
            suspended_at: suspended_at.map(|unix_ms| moment(row, unix_ms, "suspended_boot")).transpose()?,
            terminated_at: row.get("terminated_at"),
        },
    })
}

/// A moment whose place on the clock of a boot is in this column.
fn moment(row: &SqliteRow, unix_ms: i64, column: &'static str) -> Result<Moment, StoreError> {
    let boot: Option<String> = row.get(column);
    let boot = boot.map(|text| parse(column, &row.get::<String, _>("id"), &text)).transpose()?;
    Ok(Moment { unix_ms, boot })
}

fn boot_text(moment: &Moment) -> Option<String> {
    moment.boot.map(|boot| boot.to_string())
}

/// Adds a microVM that was just asked for; answers its record.
pub(crate) async fn insert(
    connection: &mut SqliteConnection,
    spec: MicrovmSpec,
    endpoint: EndpointId,
    contract: Contract,
    now: Moment,
) -> Result<Record, StoreError> {
    let sequence = next_sequence(connection).await?;
    let fate = Fate::pending();
    sqlx::query(
        "INSERT INTO microvms
            (id, sequence, endpoint, image_id, image_version, state, aim, memory_mib, spec_json, terms_json, started_at,
             started_boot)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(spec.microvm_id.to_string())
    .bind(sequence)
    .bind(endpoint.to_string())
    .bind(spec.image.image_id.to_string())
    .bind(i64::from(spec.image.version.major()))
    .bind(fate.state.as_str())
    .bind(fate.aim.as_str())
    .bind(i64::from(spec.size.baseline_mib))
    .bind(json(&spec))
    .bind(json(&contract))
    .bind(now.unix_ms)
    .bind(boot_text(&now))
    .execute(connection)
    .await
    .map_err(failed("add a microVM"))?;
    Ok(Record { sequence, spec, endpoint, contract, started_at: now, fate })
}

/// Writes what has become of a microVM.
pub(crate) async fn update(connection: &mut SqliteConnection, id: &MicrovmId, fate: &Fate) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE microvms
         SET state = ?, aim = ?, state_reason = ?, suspended_at = ?, suspended_boot = ?, terminated_at = ?
         WHERE id = ?",
    )
    .bind(fate.state.as_str())
    .bind(fate.aim.as_str())
    .bind(&fate.reason)
    .bind(fate.suspended_at.map(|moment| moment.unix_ms))
    .bind(fate.suspended_at.as_ref().and_then(boot_text))
    .bind(fate.terminated_at)
    .bind(id.to_string())
    .execute(connection)
    .await
    .map_err(failed("update a microVM"))?;
    Ok(())
}

/// Writes when a microVM was asked for, on the clock of another boot.
pub(crate) async fn carry(
    connection: &mut SqliteConnection,
    id: &MicrovmId,
    started_at: &Moment,
) -> Result<(), StoreError> {
    sqlx::query("UPDATE microvms SET started_boot = ? WHERE id = ?")
        .bind(boot_text(started_at))
        .bind(id.to_string())
        .execute(connection)
        .await
        .map_err(failed("carry a microVM's start over"))?;
    Ok(())
}

/// One microVM.
pub(crate) async fn find(connection: &mut SqliteConnection, id: &MicrovmId) -> Result<Option<Record>, StoreError> {
    let row = sqlx::query("SELECT * FROM microvms WHERE id = ?")
        .bind(id.to_string())
        .fetch_optional(connection)
        .await
        .map_err(failed("find a microVM"))?;
    row.as_ref().map(record).transpose()
}

/// What a list shows of a microVM.
#[derive(Debug, Clone)]
pub(crate) struct Listed {
    /// Its place in the order of creation.
    pub(crate) sequence: i64,
    /// Itself.
    pub(crate) item: MicrovmItem,
}

fn listed(row: &SqliteRow) -> Result<Listed, StoreError> {
    /// Of what was agreed, only this: a page would parse all of it fifty times over.
    #[derive(Deserialize)]
    struct Terms {
        image_arn: ImageArn,
    }
    let id: String = row.get("id");
    let text = |name: &str| row.get::<String, _>(name);
    Ok(Listed {
        sequence: row.get("sequence"),
        item: MicrovmItem {
            microvm_id: parse("microvms.id", &id, &id)?,
            state: parse("microvms.state", &id, &text("state"))?,
            image_arn: parse_json::<Terms>("microvms.terms_json", &id, &text("terms_json"))?.image_arn,
            image_version: ImageVersion::from_major(number("microvms.image_version", &id, row.get("image_version"))?),
            started_at: Timestamp::from_unix_ms(row.get("started_at")),
        },
    })
}

/// At most `limit` microVMs older than `before`, newest first.
pub(crate) async fn list(
    connection: &mut SqliteConnection,
    filter: Filter,
    before: i64,
    limit: u32,
) -> Result<Vec<Listed>, StoreError> {
    let image = filter.image.map(|id| id.to_string());
    let version = filter.version.map(|version| i64::from(version.major()));
    let rows = sqlx::query(
        "SELECT id, sequence, state, terms_json, image_version, started_at FROM microvms
         WHERE sequence < ? AND (? IS NULL OR image_id = ?) AND (? IS NULL OR image_version = ?)
         ORDER BY sequence DESC LIMIT ?",
    )
    .bind(before)
    .bind(&image)
    .bind(&image)
    .bind(version)
    .bind(version)
    .bind(limit)
    .fetch_all(connection)
    .await
    .map_err(failed("list microVMs"))?;
    rows.iter().map(listed).collect()
}

/// Every microVM there is a record of, in the order of creation.
pub(crate) async fn all(connection: &mut SqliteConnection) -> Result<Vec<Record>, StoreError> {
    let rows = sqlx::query("SELECT * FROM microvms ORDER BY sequence")
        .fetch_all(connection)
        .await
        .map_err(failed("list microVMs"))?;
    rows.iter().map(record).collect()
}

/// What the microVMs that have not ended take together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Taken {
    /// How many there are.
    pub(crate) microvms: u64,
    /// MiB of memory, by their baselines.
    pub(crate) memory_mib: u64,
    /// How many of them are being launched.
    pub(crate) launching: u32,
}

/// Weighs every microVM that has not ended.
pub(crate) async fn taken(connection: &mut SqliteConnection) -> Result<Taken, StoreError> {
    let row = sqlx::query(
        "SELECT COUNT(*) AS microvms, COALESCE(SUM(memory_mib), 0) AS memory_mib,
            COUNT(CASE WHEN state = ? THEN 1 END) AS launching
         FROM microvms WHERE terminated_at IS NULL",
    )
    .bind(State::Pending.as_str())
    .fetch_one(connection)
    .await
    .map_err(failed("weigh microVMs"))?;
    Ok(Taken {
        microvms: number("COUNT(microvms)", "*", row.get("microvms"))?,
        memory_mib: number("SUM(microvms.memory_mib)", "*", row.get("memory_mib"))?,
        launching: number("COUNT(microvms.state)", "*", row.get("launching"))?,
    })
}

/// How many of an image have not ended.
pub(crate) async fn count_alive(connection: &mut SqliteConnection, image: &ImageId) -> Result<i64, StoreError> {
    sqlx::query_scalar("SELECT COUNT(*) FROM microvms WHERE terminated_at IS NULL AND image_id = ?")
        .bind(image.to_string())
        .fetch_one(connection)
        .await
        .map_err(failed("count microVMs"))
}

/// How many of one version have not ended.
pub(crate) async fn count_alive_of_version(
    connection: &mut SqliteConnection,
    version: &ImageRef,
) -> Result<i64, StoreError> {
    sqlx::query_scalar(
        "SELECT COUNT(*) FROM microvms WHERE terminated_at IS NULL AND image_id = ? AND image_version = ?",
    )
    .bind(version.image_id.to_string())
    .bind(i64::from(version.version.major()))
    .fetch_one(connection)
    .await
    .map_err(failed("count microVMs"))
}

/// Forgets every microVM that ended before a time; answers which.
pub(crate) async fn forget_before(connection: &mut SqliteConnection, time: i64) -> Result<Vec<MicrovmId>, StoreError> {
    let ids: Vec<String> = sqlx::query_scalar("DELETE FROM microvms WHERE terminated_at < ? RETURNING id")
        .bind(time)
        .fetch_all(connection)
        .await
        .map_err(failed("forget microVMs"))?;
    ids.iter().map(|id| parse("microvms.id", id, id)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{clock::BootTime, store::Store, testing};

    #[tokio::test]
    async fn moments_are_kept_on_both_clocks_and_rows_of_before_have_one() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("state.db")).await.unwrap();
        let mut connection = store.write().await.unwrap();
        let Record { spec, endpoint, contract, .. } = testing::record();
        let moment = |ms| Moment { unix_ms: ms, boot: Some(BootTime { boot: uuid::Uuid::from_u128(1), ms: -ms }) };
        let mut kept = insert(&mut connection, spec, endpoint, contract, moment(5)).await.unwrap();
        kept.fate = Fate { state: State::Suspended, suspended_at: Some(moment(6)), ..kept.fate };
        let id = kept.spec.microvm_id;
        update(&mut connection, &id, &kept.fate).await.unwrap();
        assert_eq!(find(&mut connection, &id).await.unwrap().as_ref(), Some(&kept));
        let forget = "UPDATE microvms SET started_boot = NULL, suspended_boot = NULL";
        sqlx::query(forget).execute(&mut *connection).await.unwrap();
        let old = find(&mut connection, &id).await.unwrap().unwrap();
        assert_eq!(old.started_at, Moment { unix_ms: 5, boot: None });
        assert_eq!(old.fate.suspended_at, Some(Moment { unix_ms: 6, boot: None }));
        carry(&mut connection, &id, &moment(5)).await.unwrap();
        assert_eq!(find(&mut connection, &id).await.unwrap().unwrap().started_at, kept.started_at);
        drop(connection);
        store.close().await;
    }
}
