//! Shapes of the build operations.

use serde::{Deserialize, Serialize};

use super::{Architecture, BuildState, Chipset};
use crate::{
    arn::ImageArn,
    ids::{BuildId, ImageVersion},
    page::{Page, PageRequest},
    timestamp::Timestamp,
};

/// `ListMicrovmImageBuilds`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListMicrovmImageBuildsRequest {
    /// The image.
    pub image: ImageArn,
    /// The version, as written by the caller.
    pub image_version: String,
    /// Which page.
    pub page: PageRequest,
    /// Only builds for this architecture.
    pub architecture: Option<Architecture>,
    /// Only builds for this chipset.
    pub chipset: Option<Chipset>,
    /// Only builds for this generation.
    pub chipset_generation: Option<String>,
}

/// One build in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MicrovmImageBuildSummary {
    /// The image.
    pub image_arn: ImageArn,
    /// The version.
    pub image_version: ImageVersion,
    /// The build.
    pub build_id: BuildId,
    /// Its state.
    pub build_state: BuildState,
    /// What it is for.
    pub architecture: Architecture,
    /// What it is for.
    pub chipset: Chipset,
    /// What it is for.
    pub chipset_generation: String,
    /// Why it failed.
    pub state_reason: Option<String>,
    /// When it was created.
    pub created_at: Timestamp,
}

/// What `ListMicrovmImageBuilds` answers.
pub type ListMicrovmImageBuildsResponse = Page<MicrovmImageBuildSummary>;

/// `GetMicrovmImageBuild`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GetMicrovmImageBuildRequest {
    /// The image.
    pub image: ImageArn,
    /// The version, as written by the caller.
    pub image_version: String,
    /// The build, as written by the caller.
    pub build_id: String,
}

/// What a build made weighs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotBuild {
    /// The memory.
    pub memory_snapshot_size_in_bytes: Option<u64>,
    /// The root file system.
    pub code_install_size_in_bytes: Option<u64>,
    /// The written disk.
    pub disk_snapshot_size_in_bytes: Option<u64>,
}

/// What `GetMicrovmImageBuild` answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GetMicrovmImageBuildResponse {
    /// The build.
    #[serde(flatten)]
    pub build: MicrovmImageBuildSummary,
    /// What it made: all of it after success, less after a failure, nothing if it failed early.
    pub snapshot_build: Option<SnapshotBuild>,
}
