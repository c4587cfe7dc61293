//! Rows of images, their versions and builds.

use api::{
    host::ImageRef,
    ids::{BuildId, ImageId, ImageVersion},
    images::{Architecture, BuildState, ImageState, VersionState, VersionStatus},
    tags::Tags,
    word::Word,
};
use sqlx::{Row, SqliteConnection, sqlite::SqliteRow};

use super::{StoreError, failed, json, next_sequence, number, parse, parse_json};
use crate::images::record::{Build, Definition, Image, Outcome, Version};

fn image(row: &SqliteRow) -> Result<Image, StoreError> {
    let id: String = row.get("id");
    let version = |column, value: Option<i64>| {
        value.map(|value| number::<u32>(column, &id, value).map(ImageVersion::from_major)).transpose()
    };
    Ok(Image {
        sequence: row.get("sequence"),
        id: parse("images.id", &id, &id)?,
        name: row.get("name"),
        state: parse("images.state", &id, &row.get::<String, _>("state"))?,
        last_version: ImageVersion::from_major(number("images.last_version", &id, row.get("last_version"))?),
        latest_active: version("images.latest_active_version", row.get("latest_active_version"))?,
        latest_failed: version("images.latest_failed_version", row.get("latest_failed_version"))?,
        tags: parse_json("images.tags_json", &id, &row.get::<String, _>("tags_json"))?,
        created_at: row.get("created_at"),
        updated_at: row.get("updated_at"),
    })
}

fn version(row: &SqliteRow) -> Result<Version, StoreError> {
    let id: String = row.get("image_id");
    Ok(Version {
        image: ImageRef {
            image_id: parse("image_versions.image_id", &id, &id)?,
            version: ImageVersion::from_major(number("image_versions.version", &id, row.get("version"))?),
        },
        state: parse("image_versions.state", &id, &row.get::<String, _>("state"))?,
        status: parse("image_versions.status", &id, &row.get::<String, _>("status"))?,
        definition: parse_json("image_versions.definition_json", &id, &row.get::<String, _>("definition_json"))?,
        created_at: row.get("created_at"),
        updated_at: row.get("updated_at"),
    })
}

fn build(row: &SqliteRow) -> Result<Build, StoreError> {
    let id: String = row.get("id");
    let image_id: String = row.get("image_id");
    let bytes = |column, value: Option<i64>| value.map(|value| number::<u64>(column, &id, value)).transpose();
    Ok(Build {
        sequence: row.get("sequence"),
        id: parse("builds.id", &id, &id)?,
        image: ImageRef {
            image_id: parse("builds.image_id", &id, &image_id)?,
            version: ImageVersion::from_major(number("builds.version", &id, row.get("version"))?),
        },
        architecture: parse("builds.architecture", &id, &row.get::<String, _>("architecture"))?,
        state: parse("builds.state", &id, &row.get::<String, _>("state"))?,
        outcome: Outcome {
            reason: row.get("state_reason"),
            memory_snapshot_bytes: bytes("builds.memory_snapshot_bytes", row.get("memory_snapshot_bytes"))?,
            code_install_bytes: bytes("builds.code_install_bytes", row.get("code_install_bytes"))?,
            disk_snapshot_bytes: bytes("builds.disk_snapshot_bytes", row.get("disk_snapshot_bytes"))?,
        },
        created_at: row.get("created_at"),
    })
}

/// Adds an image with its first version and that one's builds, all waiting.
pub(crate) async fn insert(
    connection: &mut SqliteConnection,
    name: &str,
    tags: &Tags,
    definition: &Definition,
    architectures: &[Architecture],
    now: i64,
) -> Result<(Image, Version, Vec<Build>), StoreError> {
    let image = Image {
        sequence: next_sequence(connection).await?,
        id: ImageId::random(),
        name: name.to_owned(),
        state: ImageState::Creating,
        last_version: ImageVersion::FIRST,
        latest_active: None,
        latest_failed: None,
        tags: tags.clone(),
        created_at: now,
        updated_at: now,
    };
    sqlx::query(
        "INSERT INTO images (id, sequence, name, state, last_version, tags_json, created_at, updated_at)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(image.id.to_string())
    .bind(image.sequence)
    .bind(&image.name)
    .bind(image.state.as_str())
    .bind(i64::from(image.last_version.major()))
    .bind(json(tags))
    .bind(now)
    .bind(now)
    .execute(&mut *connection)
    .await
    .map_err(failed("add an image"))?;
    let first = ImageRef { image_id: image.id, version: ImageVersion::FIRST };
    let (version, builds) = insert_version(connection, first, definition, architectures, now).await?;
    Ok((image, version, builds))
}

/// Adds the next version of an image, and its builds, all waiting; the image is in this state until they have ended.
pub(crate) async fn insert_next(
    connection: &mut SqliteConnection,
    id: &ImageId,
    state: ImageState,
    definition: &Definition,
    architectures: &[Architecture],
    now: i64,
) -> Result<(Version, Vec<Build>), StoreError> {
    let major: i64 = sqlx::query_scalar(
        "UPDATE images SET state = ?, last_version = last_version + 1, updated_at = ? WHERE id = ?
         RETURNING last_version",
    )
    .bind(state.as_str())
    .bind(now)
    .bind(id.to_string())
    .fetch_one(&mut *connection)
    .await
    .map_err(failed("number a version"))?;
    let version = ImageVersion::from_major(number("images.last_version", &id.to_string(), major)?);
    insert_version(connection, ImageRef { image_id: *id, version }, definition, architectures, now).await
}

async fn insert_version(
    connection: &mut SqliteConnection,
    reference: ImageRef,
    definition: &Definition,
    architectures: &[Architecture],
    now: i64,
) -> Result<(Version, Vec<Build>), StoreError> {
    let version = Version {
        image: reference,
        state: VersionState::Pending,
        status: VersionStatus::Inactive,
        definition: definition.clone(),
        created_at: now,
        updated_at: now,
    };
    sqlx::query(
        "INSERT INTO image_versions (image_id, version, state, status, definition_json, created_at, updated_at)
         VALUES (?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(version.image.image_id.to_string())
    .bind(i64::from(version.image.version.major()))
    .bind(version.state.as_str())
    .bind(version.status.as_str())
    .bind(json(definition))
    .bind(now)
    .bind(now)
    .execute(&mut *connection)
    .await
    .map_err(failed("add an image version"))?;
    let mut builds = Vec::with_capacity(architectures.len());
    for &architecture in architectures {
        builds.push(insert_build(connection, &version.image, architecture, now).await?);
    }
    Ok((version, builds))
}

async fn insert_build(
    connection: &mut SqliteConnection,
    reference: &ImageRef,
    architecture: Architecture,
    now: i64,
) -> Result<Build, StoreError> {
    let build = Build {
        sequence: next_sequence(connection).await?,
        id: BuildId::random(),
        image: reference.clone(),
        architecture,
        state: BuildState::Pending,
        outcome: Outcome::default(),
        created_at: now,
    };
    sqlx::query(
        "INSERT INTO builds (id, sequence, image_id, version, architecture, state, created_at)
         VALUES (?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(build.id.to_string())
    .bind(build.sequence)
    .bind(reference.image_id.to_string())
    .bind(i64::from(reference.version.major()))
    .bind(architecture.as_str())
    .bind(build.state.as_str())
    .bind(now)
    .execute(connection)
    .await
    .map_err(failed("add a build"))?;
    Ok(build)
}

/// The image of this name.
pub(crate) async fn by_name(connection: &mut SqliteConnection, name: &str) -> Result<Option<Image>, StoreError> {
    let row = sqlx::query("SELECT * FROM images WHERE name = ?")
        .bind(name)
        .fetch_optional(connection)
        .await
        .map_err(failed("find an image"))?;
    row.as_ref().map(image).transpose()
}

/// The image of this id.
pub(crate) async fn by_id(connection: &mut SqliteConnection, id: &ImageId) -> Result<Option<Image>, StoreError> {
    let row = sqlx::query("SELECT * FROM images WHERE id = ?")
        .bind(id.to_string())
        .fetch_optional(connection)
        .await
        .map_err(failed("find an image"))?;
    row.as_ref().map(image).transpose()
}

/// How many images there are.
pub(crate) async fn count(connection: &mut SqliteConnection) -> Result<i64, StoreError> {
    sqlx::query_scalar("SELECT COUNT(*) FROM images").fetch_one(connection).await.map_err(failed("count images"))
}

/// At most `limit` images older than `before`, newest first.
pub(crate) async fn list(connection: &mut SqliteConnection, before: i64, limit: u32) -> Result<Vec<Image>, StoreError> {
    let rows = sqlx::query("SELECT * FROM images WHERE sequence < ? ORDER BY sequence DESC LIMIT ?")
        .bind(before)
        .bind(limit)
        .fetch_all(connection)
        .await
        .map_err(failed("list images"))?;
    rows.iter().map(image).collect()
}

/// Every image in this state.
pub(crate) async fn in_state(connection: &mut SqliteConnection, state: ImageState) -> Result<Vec<Image>, StoreError> {
    let rows = sqlx::query("SELECT * FROM images WHERE state = ? ORDER BY sequence")
        .bind(state.as_str())
        .fetch_all(connection)
        .await
        .map_err(failed("list images"))?;
    rows.iter().map(image).collect()
}

/// Writes an image's state.
pub(crate) async fn set_state(
    connection: &mut SqliteConnection,
    id: &ImageId,
    state: ImageState,
    now: i64,
) -> Result<(), StoreError> {
    sqlx::query("UPDATE images SET state = ?, updated_at = ? WHERE id = ?")
        .bind(state.as_str())
        .bind(now)
        .bind(id.to_string())
        .execute(connection)
        .await
        .map_err(failed("update an image"))?;
    Ok(())
}

/// Writes an image's tags. They are not part of what it is made from, so it counts as no change of it.
pub(crate) async fn set_tags(connection: &mut SqliteConnection, id: &ImageId, tags: &Tags) -> Result<(), StoreError> {
    sqlx::query("UPDATE images SET tags_json = ? WHERE id = ?")
        .bind(json(tags))
        .bind(id.to_string())
        .execute(connection)
        .await
        .map_err(failed("update an image's tags"))?;
    Ok(())
}

/// Removes an image with its versions and builds.
pub(crate) async fn remove(connection: &mut SqliteConnection, id: &ImageId) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM images WHERE id = ?")
        .bind(id.to_string())
        .execute(connection)
        .await
        .map_err(failed("remove an image"))?;
    Ok(())
}

/// One version.
pub(crate) async fn find_version(
    connection: &mut SqliteConnection,
    reference: &ImageRef,
) -> Result<Option<Version>, StoreError> {
    let row = sqlx::query("SELECT * FROM image_versions WHERE image_id = ? AND version = ?")
        .bind(reference.image_id.to_string())
        .bind(i64::from(reference.version.major()))
        .fetch_optional(connection)
        .await
        .map_err(failed("find an image version"))?;
    row.as_ref().map(version).transpose()
}

/// At most `limit` versions of an image below a number, newest first.
pub(crate) async fn list_versions(
    connection: &mut SqliteConnection,
    id: &ImageId,
    before: i64,
    limit: u32,
) -> Result<Vec<Version>, StoreError> {
    let rows =
        sqlx::query("SELECT * FROM image_versions WHERE image_id = ? AND version < ? ORDER BY version DESC LIMIT ?")
            .bind(id.to_string())
            .bind(before)
            .bind(limit)
            .fetch_all(connection)
            .await
            .map_err(failed("list image versions"))?;
    rows.iter().map(version).collect()
}

/// How many versions an image has.
pub(crate) async fn count_versions(connection: &mut SqliteConnection, id: &ImageId) -> Result<i64, StoreError> {
    sqlx::query_scalar("SELECT COUNT(*) FROM image_versions WHERE image_id = ?")
        .bind(id.to_string())
        .fetch_one(connection)
        .await
        .map_err(failed("count image versions"))
}

/// Every version in this state.
pub(crate) async fn versions_in_state(
    connection: &mut SqliteConnection,
    state: VersionState,
) -> Result<Vec<ImageRef>, StoreError> {
    let rows = sqlx::query("SELECT * FROM image_versions WHERE state = ?")
        .bind(state.as_str())
        .fetch_all(connection)
        .await
        .map_err(failed("list image versions"))?;
    rows.iter().map(|row| Ok(version(row)?.image)).collect()
}

/// Writes a version's state and status.
pub(crate) async fn set_version(
    connection: &mut SqliteConnection,
    reference: &ImageRef,
    state: VersionState,
    status: VersionStatus,
    now: i64,
) -> Result<(), StoreError> {
    sqlx::query("UPDATE image_versions SET state = ?, status = ?, updated_at = ? WHERE image_id = ? AND version = ?")
        .bind(state.as_str())
        .bind(status.as_str())
        .bind(now)
        .bind(reference.image_id.to_string())
        .bind(i64::from(reference.version.major()))
        .execute(connection)
        .await
        .map_err(failed("update an image version"))?;
    Ok(())
}

/// Removes a version with its builds.
pub(crate) async fn remove_version(connection: &mut SqliteConnection, reference: &ImageRef) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM image_versions WHERE image_id = ? AND version = ?")
        .bind(reference.image_id.to_string())
        .bind(i64::from(reference.version.major()))
        .execute(connection)
        .await
        .map_err(failed("remove an image version"))?;
    Ok(())
}

/// Every version of an image, whatever has become of it.
pub(crate) async fn versions_of(connection: &mut SqliteConnection, id: &ImageId) -> Result<Vec<ImageRef>, StoreError> {
    let rows = sqlx::query("SELECT * FROM image_versions WHERE image_id = ?")
        .bind(id.to_string())
        .fetch_all(connection)
        .await
        .map_err(failed("list image versions"))?;
    rows.iter().map(|row| Ok(version(row)?.image)).collect()
}

/// What a host must keep: every version that is built and not being removed, and every one of which a build is done and
/// another is still to come.
pub(crate) async fn kept(connection: &mut SqliteConnection) -> Result<Vec<ImageRef>, StoreError> {
    let rows = sqlx::query(
        "SELECT v.* FROM image_versions v JOIN images ON images.id = v.image_id
         WHERE images.state <> ? AND images.state <> ? AND (v.state = ? OR v.state = ? AND EXISTS
            (SELECT 1 FROM builds b WHERE b.image_id = v.image_id AND b.version = v.version AND b.state = ?))",
    )
    .bind(ImageState::Deleting.as_str())
    .bind(ImageState::DeleteFailed.as_str())
    .bind(VersionState::Successful.as_str())
    .bind(VersionState::InProgress.as_str())
    .bind(BuildState::Successful.as_str())
    .fetch_all(connection)
    .await
    .map_err(failed("list built image versions"))?;
    rows.iter().map(|row| Ok(version(row)?.image)).collect()
}

/// One build.
pub(crate) async fn find_build(
    connection: &mut SqliteConnection,
    reference: &ImageRef,
    id: &BuildId,
) -> Result<Option<Build>, StoreError> {
    let row = sqlx::query("SELECT * FROM builds WHERE id = ? AND image_id = ? AND version = ?")
        .bind(id.to_string())
        .bind(reference.image_id.to_string())
        .bind(i64::from(reference.version.major()))
        .fetch_optional(connection)
        .await
        .map_err(failed("find a build"))?;
    row.as_ref().map(build).transpose()
}

/// At most `limit` builds of a version, for these architectures and older than `before`, newest first.
pub(crate) async fn list_builds(
    connection: &mut SqliteConnection,
    reference: &ImageRef,
    architectures: &[Architecture],
    before: i64,
    limit: u32,
) -> Result<Vec<Build>, StoreError> {
    let rows = sqlx::query(
        "SELECT * FROM builds
         WHERE image_id = ? AND version = ? AND architecture IN (SELECT value FROM json_each(?)) AND sequence < ?
         ORDER BY sequence DESC LIMIT ?",
    )
    .bind(reference.image_id.to_string())
    .bind(i64::from(reference.version.major()))
    .bind(json(&architectures))
    .bind(before)
    .bind(limit)
    .fetch_all(connection)
    .await
    .map_err(failed("list builds"))?;
    rows.iter().map(build).collect()
}

/// What the builds of a version are for, in the order of creation, and how far they have come.
pub(crate) async fn builds_of(
    connection: &mut SqliteConnection,
    reference: &ImageRef,
) -> Result<Vec<(Architecture, BuildState)>, StoreError> {
    let rows = sqlx::query("SELECT * FROM builds WHERE image_id = ? AND version = ? ORDER BY sequence")
        .bind(reference.image_id.to_string())
        .bind(i64::from(reference.version.major()))
        .fetch_all(connection)
        .await
        .map_err(failed("list builds"))?;
    rows.iter().map(|row| build(row).map(|build| (build.architecture, build.state))).collect()
}

/// How many versions have builds that have not come to an end.
pub(crate) async fn count_unfinished_versions(connection: &mut SqliteConnection) -> Result<i64, StoreError> {
    sqlx::query_scalar("SELECT COUNT(*) FROM image_versions WHERE state = ? OR state = ?")
        .bind(VersionState::Pending.as_str())
        .bind(VersionState::InProgress.as_str())
        .fetch_one(connection)
        .await
        .map_err(failed("count versions being built"))
}

/// Every build that has not come to an end, in the order of creation.
pub(crate) async fn unfinished_builds(connection: &mut SqliteConnection) -> Result<Vec<Build>, StoreError> {
    let rows = sqlx::query("SELECT * FROM builds WHERE state = ? OR state = ? ORDER BY sequence")
        .bind(BuildState::Pending.as_str())
        .bind(BuildState::InProgress.as_str())
        .fetch_all(connection)
        .await
        .map_err(failed("list builds"))?;
    rows.iter().map(build).collect()
}

/// Writes how far a build has come.
pub(crate) async fn set_build(connection: &mut SqliteConnection, build: &Build) -> Result<(), StoreError> {
    let bytes = |bytes: Option<u64>| bytes.map(|bytes| i64::try_from(bytes).unwrap_or(i64::MAX));
    sqlx::query(
        "UPDATE builds SET state = ?, state_reason = ?, memory_snapshot_bytes = ?, code_install_bytes = ?,
            disk_snapshot_bytes = ?
         WHERE id = ?",
    )
    .bind(build.state.as_str())
    .bind(&build.outcome.reason)
    .bind(bytes(build.outcome.memory_snapshot_bytes))
    .bind(bytes(build.outcome.code_install_bytes))
    .bind(bytes(build.outcome.disk_snapshot_bytes))
    .bind(build.id.to_string())
    .execute(connection)
    .await
    .map_err(failed("update a build"))?;
    Ok(())
}

/// Writes an image's state, and which of its versions are now the newest that may be launched and the newest that
/// could not be built.
pub(crate) async fn settle(
    connection: &mut SqliteConnection,
    id: &ImageId,
    state: ImageState,
    now: i64,
) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE images SET state = ?, updated_at = ?,
            latest_active_version =
                (SELECT MAX(version) FROM image_versions WHERE image_id = images.id AND state = ? AND status = ?),
            latest_failed_version = (SELECT MAX(version) FROM image_versions WHERE image_id = images.id AND state = ?)
         WHERE id = ?",
    )
    .bind(state.as_str())
    .bind(now)
    .bind(VersionState::Successful.as_str())
    .bind(VersionStatus::Active.as_str())
    .bind(VersionState::Failed.as_str())
    .bind(id.to_string())
    .execute(connection)
    .await
    .map_err(failed("update an image"))?;
    Ok(())
}
