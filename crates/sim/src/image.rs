//! A pretend build: the artifact is real, the VM it would be started in is not.

use std::{
    io,
    path::{Path, PathBuf},
};

use api::host::{ArtifactSource, BuildFailure, BuildReport, BuildSpec, ImageRef, Layout, MicrovmSpec};
use builder::{ArchiveLimits, BuildError, Cause};
use tokio_util::sync::CancellationToken;

use crate::script::{Delays, Script};

/// Largest artifact; the real host's limit.
const ARCHIVE_BYTES_MAX: u64 = 7 << 30;

/// What a pretend snapshot weighs: memory and writable disk of a small app.
const MEMORY_BYTES: u64 = 64 << 20;
const DISK_BYTES: u64 = 3 << 20;

/// File of an image version: its script.
const SCRIPT_FILE: &str = "script.json";

fn failure(reason: impl Into<String>) -> BuildFailure {
    BuildFailure { reason: reason.into(), code_install_bytes: None }
}

/// Removed when the build is over, also when it was cancelled.
struct WorkDir(PathBuf);

impl Drop for WorkDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Makes a build, which is there afterwards or not at all.
pub async fn build(
    layout: &Layout,
    artifacts: &dyn ArtifactSource,
    delays: Delays,
    spec: &BuildSpec,
) -> Result<BuildReport, BuildFailure> {
    let work = WorkDir(layout.build_dir(&spec.build_id));
    let log = layout.build_log(&spec.image.image_id, &spec.build_id);
    prepare(&work.0, &log, &spec.labels.name).await.map_err(internal)?;
    let result = build_in(layout, artifacts, delays, spec, &work.0).await;
    let said = match &result {
        Ok(_) => "the image version is ready\n".to_owned(),
        Err(failure) => format!("the build failed: {failure}\n"),
    };
    // A log that cannot be written fails no build.
    let _ = tokio::fs::write(&log, said).await;
    result
}

async fn prepare(work: &Path, log: &Path, name: &str) -> io::Result<()> {
    let logs = log.parent().unwrap_or(log);
    tokio::fs::create_dir_all(logs).await?;
    tokio::fs::write(logs.join("name"), name).await?;
    tokio::fs::create_dir_all(work).await
}

async fn build_in(
    layout: &Layout,
    artifacts: &dyn ArtifactSource,
    delays: Delays,
    spec: &BuildSpec,
    work: &Path,
) -> Result<BuildReport, BuildFailure> {
    let script = Script::of(&spec.environment).map_err(failure)?;
    let archive = work.join("artifact.zip");
    let fetched = artifacts.fetch(&spec.bucket, &spec.key, &archive, ARCHIVE_BYTES_MAX).await;
    fetched.map_err(|error| failure(error.to_string()))?;
    let code_install_bytes = unpacked(archive, work.join("context")).await?;
    tokio::time::sleep(script.build.unwrap_or(delays.build)).await;
    if let Some(reason) = script.build_fails.clone()
        && script.build_fails_for.is_none_or(|it| it == spec.architecture)
    {
        return Err(BuildFailure { reason, code_install_bytes: Some(code_install_bytes) });
    }
    put_in_place(layout, spec, &script, work).await.map_err(internal)?;
    Ok(BuildReport { memory_snapshot_bytes: MEMORY_BYTES, code_install_bytes, disk_snapshot_bytes: DISK_BYTES })
}

fn internal(error: io::Error) -> BuildFailure {
    tracing::error!(%error, "a pretend build could not write its files");
    failure("INTERNAL_PLATFORM_ERROR")
}

/// Unpacks the artifact as a real build does; how many bytes came out.
async fn unpacked(archive: PathBuf, into: PathBuf) -> Result<u64, BuildFailure> {
    let cancel = CancellationToken::new();
    let _cancel = cancel.clone().drop_guard();
    let task = tokio::task::spawn_blocking(move || {
        builder::unpack(&archive, &into, ArchiveLimits::default(), &cancel).map_err(Cause::Archive)?;
        bytes_in(&into).map_err(|source| Cause::File { step: "measuring", path: into, source })
    });
    match task.await {
        Ok(result) => result.map_err(|cause| failure(BuildError::from(cause).reason())),
        Err(error) => Err(failure(BuildError::from(Cause::Task(error)).reason())),
    }
}

fn bytes_in(directory: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let kind = entry.metadata()?;
        bytes += if kind.is_dir() { bytes_in(&entry.path())? } else { kind.len() };
    }
    Ok(bytes)
}

async fn put_in_place(layout: &Layout, spec: &BuildSpec, script: &Script, work: &Path) -> io::Result<()> {
    let made = work.join("version");
    tokio::fs::create_dir(&made).await?;
    tokio::fs::write(made.join(SCRIPT_FILE), serde_json::to_vec(script)?).await?;
    let place = layout.build_files_dir(&spec.image, spec.among());
    tokio::fs::create_dir_all(place.parent().unwrap_or(&place)).await?;
    absent_is_fine(tokio::fs::remove_dir_all(&place).await)?;
    tokio::fs::rename(&made, &place).await
}

/// Removes a version; absent is fine.
pub async fn remove(layout: &Layout, image: &ImageRef) -> io::Result<()> {
    absent_is_fine(tokio::fs::remove_dir_all(layout.version_dir(image)).await)
}

/// What a microVM does; `None` if the build it is launched from is not there.
pub async fn script_of(layout: &Layout, spec: &MicrovmSpec) -> Option<Script> {
    let place = layout.build_files_dir(&spec.image, spec.architecture);
    let text = tokio::fs::read(place.join(SCRIPT_FILE)).await.ok()?;
    serde_json::from_slice(&text).ok()
}

/// Nothing to remove is as good as removed.
pub fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    result.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}
