//! Shapes of the image operations: images, their versions, and the builds of a version.
//!
//! Responses carry every member the service is known to send, unset ones as an explicit `null`. The unmodelled `id` is
//! sent as the service sends it; its other unmodelled members are not.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    arn::ImageArn,
    ids::{ImageId, ImageVersion},
    logging::Logging,
    page::{Page, PageRequest},
    sensitive::Sensitive,
    timestamp::Timestamp,
};

mod builds;
mod managed;
mod parse;
mod plan;
mod words;

pub use builds::{
    GetMicrovmImageBuildRequest, GetMicrovmImageBuildResponse, ListMicrovmImageBuildsRequest,
    ListMicrovmImageBuildsResponse, MicrovmImageBuildSummary, SnapshotBuild,
};
pub use managed::{
    ListManagedMicrovmImageVersionsRequest, ListManagedMicrovmImageVersionsResponse, ListManagedMicrovmImagesRequest,
    ListManagedMicrovmImagesResponse, ManagedMicrovmImageSummary, ManagedMicrovmImageVersion, ManagedVersionStatus,
    base_image_arn,
};
pub use plan::{ImagePlan, S3Location};
pub use words::{Architecture, BuildState, Chipset, HookSwitch, ImageState, OsCapability, VersionState, VersionStatus};

/// Where the zip is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CodeArtifact {
    /// `s3://bucket/key`.
    pub uri: String,
}

/// An architecture an image is built for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CpuConfiguration {
    /// Which.
    pub architecture: Architecture,
}

/// What a microVM of the image is guaranteed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Resources {
    /// Memory in MiB; any number, as the table of sizes is checked later.
    #[serde(rename = "minimumMemoryInMiB")]
    pub minimum_memory_in_mib: i32,
}

/// Hooks as a request declares them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hooks {
    /// The app's port they are served on.
    pub port: Option<u16>,
    /// Hooks in the life of a microVM.
    pub microvm_hooks: Option<MicrovmHooks>,
    /// Hooks of the build.
    pub microvm_image_hooks: Option<MicrovmImageHooks>,
}

/// Hooks in the life of a microVM.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MicrovmHooks {
    /// At launch.
    pub run: Option<HookSwitch>,
    /// Its time limit.
    pub run_timeout_in_seconds: Option<u32>,
    /// After a resume.
    pub resume: Option<HookSwitch>,
    /// Its time limit.
    pub resume_timeout_in_seconds: Option<u32>,
    /// Before a suspend.
    pub suspend: Option<HookSwitch>,
    /// Its time limit.
    pub suspend_timeout_in_seconds: Option<u32>,
    /// Before a terminate.
    pub terminate: Option<HookSwitch>,
    /// Its time limit.
    pub terminate_timeout_in_seconds: Option<u32>,
}

/// Hooks of the build.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MicrovmImageHooks {
    /// Is the app ready to be snapshot?
    pub ready: Option<HookSwitch>,
    /// Its time limit.
    pub ready_timeout_in_seconds: Option<u32>,
    /// Does a restored snapshot work?
    pub validate: Option<HookSwitch>,
    /// Its time limit.
    pub validate_timeout_in_seconds: Option<u32>,
}

/// What a version is asked to be made from: the members that `CreateMicrovmImage` and `UpdateMicrovmImage` share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VersionRequest {
    /// The managed image it builds on.
    pub base_image_arn: String,
    /// Version of that.
    pub base_image_version: Option<String>,
    /// Role the build acts as.
    pub build_role_arn: String,
    /// The zip with the Dockerfile.
    pub code_artifact: CodeArtifact,
    /// Free text.
    pub description: Option<String>,
    /// Where output goes.
    pub logging: Option<Logging>,
    /// Network of the build, and the default of launches.
    pub egress_network_connectors: Option<Vec<String>>,
    /// Architectures to build for.
    pub cpu_configurations: Option<Vec<CpuConfiguration>>,
    /// Size.
    pub resources: Option<Vec<Resources>>,
    /// Extra rights of the app.
    pub additional_os_capabilities: Option<Vec<OsCapability>>,
    /// Hooks.
    pub hooks: Option<Hooks>,
    /// Environment frozen into the image.
    pub environment_variables: Option<BTreeMap<String, Sensitive>>,
    /// Key to encrypt with; there are none here, and one is refused. Left out of what is kept where it was left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kms_key_identifier: Option<String>,
}

/// `CreateMicrovmImage`. Serialised, it is what an idempotency record keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CreateMicrovmImageRequest {
    /// Name of the new image.
    pub name: String,
    /// Its first version.
    #[serde(flatten)]
    pub version: VersionRequest,
    /// Tags.
    pub tags: Option<BTreeMap<String, String>>,
    /// Idempotency key.
    pub client_token: Option<String>,
}

/// `UpdateMicrovmImage`: a new version, of which nothing is taken over from the one before. Serialised, it is what an
/// idempotency record keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UpdateMicrovmImageRequest {
    /// The image.
    pub image: ImageArn,
    /// The new version.
    #[serde(flatten)]
    pub version: VersionRequest,
    /// Idempotency key.
    pub client_token: Option<String>,
}

/// What `CreateMicrovmImage` answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CreateMicrovmImageResponse {
    /// The image.
    pub image_arn: ImageArn,
    /// Its name.
    pub name: String,
    /// Its internal id.
    pub id: ImageId,
    /// Its state.
    pub state: ImageState,
    /// The version being built.
    pub image_version: ImageVersion,
    /// Newest version microVMs may be launched from.
    pub latest_active_image_version: Option<ImageVersion>,
    /// Newest version that could not be built.
    pub latest_failed_image_version: Option<ImageVersion>,
    /// When the image was created.
    pub created_at: Timestamp,
    /// When it was last changed.
    pub updated_at: Option<Timestamp>,
    /// What the version is made from.
    #[serde(flatten)]
    pub configuration: VersionConfiguration,
    /// Tags given.
    pub tags: Option<BTreeMap<String, String>>,
}

/// What `UpdateMicrovmImage` answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UpdateMicrovmImageResponse {
    /// The image.
    pub image_arn: ImageArn,
    /// Its name.
    pub name: String,
    /// Its internal id.
    pub id: ImageId,
    /// Its state.
    pub state: ImageState,
    /// The version being built.
    pub image_version: ImageVersion,
    /// Newest version microVMs may be launched from.
    pub latest_active_image_version: Option<ImageVersion>,
    /// Newest version that could not be built.
    pub latest_failed_image_version: Option<ImageVersion>,
    /// When the image was created.
    pub created_at: Timestamp,
    /// When it was last changed.
    pub updated_at: Timestamp,
    /// What the new version is made from.
    #[serde(flatten)]
    pub configuration: VersionConfiguration,
}

/// What a version is made from, with the service's defaults filled in where it fills them in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VersionConfiguration {
    /// The managed image below.
    pub base_image_arn: String,
    /// Version of that, normalised (`1.0`).
    pub base_image_version: Option<String>,
    /// Role the build acts as.
    pub build_role_arn: String,
    /// The zip.
    pub code_artifact: CodeArtifact,
    /// Free text.
    pub description: Option<String>,
    /// Where output goes.
    pub logging: Option<Logging>,
    /// Network of the build, and the default of launches.
    pub egress_network_connectors: Option<Vec<String>>,
    /// Architectures as asked for.
    pub cpu_configurations: Option<Vec<CpuConfiguration>>,
    /// Size.
    pub resources: Option<Vec<Resources>>,
    /// Extra rights of the app.
    pub additional_os_capabilities: Option<Vec<OsCapability>>,
    /// Hooks as asked for.
    pub hooks: Option<Hooks>,
    /// Environment frozen into the image.
    pub environment_variables: Option<BTreeMap<String, Sensitive>>,
    /// Key it is encrypted with; always null here.
    pub kms_key_identifier: Option<String>,
}

/// `GetMicrovmImage`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GetMicrovmImageRequest {
    /// The image.
    pub image: ImageArn,
}

/// What `GetMicrovmImage` answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GetMicrovmImageResponse {
    /// The image.
    pub image_arn: ImageArn,
    /// Its name.
    pub name: String,
    /// Its internal id.
    pub id: ImageId,
    /// Its state.
    pub state: ImageState,
    /// Newest version microVMs may be launched from.
    pub latest_active_image_version: Option<ImageVersion>,
    /// Newest version that could not be built.
    pub latest_failed_image_version: Option<ImageVersion>,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it was last changed.
    pub updated_at: Option<Timestamp>,
    /// Its tags; empty without any.
    pub tags: BTreeMap<String, String>,
}

/// `ListMicrovmImages`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListMicrovmImagesRequest {
    /// Which page.
    pub page: PageRequest,
    /// Part of the name; applied to a page after it was cut.
    pub name_filter: Option<String>,
}

/// One image in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MicrovmImageSummary {
    /// The image.
    pub image_arn: ImageArn,
    /// Its name.
    pub name: String,
    /// Its internal id.
    pub id: ImageId,
    /// Its state.
    pub state: ImageState,
    /// Newest version microVMs may be launched from.
    pub latest_active_image_version: Option<ImageVersion>,
    /// Newest version that could not be built.
    pub latest_failed_image_version: Option<ImageVersion>,
    /// When it was created.
    pub created_at: Timestamp,
}

/// What `ListMicrovmImages` answers.
pub type ListMicrovmImagesResponse = Page<MicrovmImageSummary>;

/// `GetMicrovmImageVersion`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GetMicrovmImageVersionRequest {
    /// The image.
    pub image: ImageArn,
    /// The version, as written by the caller: one that cannot be is not found.
    pub image_version: String,
}

/// What `GetMicrovmImageVersion` answers; also an item of a list of versions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GetMicrovmImageVersionResponse {
    /// The image.
    pub image_arn: ImageArn,
    /// The version.
    pub image_version: ImageVersion,
    /// Its state.
    pub state: VersionState,
    /// Whether microVMs may be launched from it.
    pub status: VersionStatus,
    /// Why it is in that state; the service leaves this empty and tells the reason on the build.
    pub state_reason: Option<String>,
    /// What it is made from.
    #[serde(flatten)]
    pub configuration: VersionConfiguration,
    /// Always null in what the service sends.
    pub tags: Option<BTreeMap<String, String>>,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it was last changed.
    pub updated_at: Option<Timestamp>,
}

/// `ListMicrovmImageVersions`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListMicrovmImageVersionsRequest {
    /// The image.
    pub image: ImageArn,
    /// Which page.
    pub page: PageRequest,
}

/// What `ListMicrovmImageVersions` answers.
pub type ListMicrovmImageVersionsResponse = Page<GetMicrovmImageVersionResponse>;

/// `UpdateMicrovmImageVersion`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpdateMicrovmImageVersionRequest {
    /// The image.
    pub image: ImageArn,
    /// The version, as written by the caller.
    pub image_version: String,
    /// Whether microVMs may be launched from it, from now on.
    pub status: VersionStatus,
}

/// What `UpdateMicrovmImageVersion` answers.
pub type UpdateMicrovmImageVersionResponse = GetMicrovmImageVersionResponse;

/// `DeleteMicrovmImageVersion`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeleteMicrovmImageVersionRequest {
    /// The image.
    pub image: ImageArn,
    /// The version, as written by the caller.
    pub image_version: String,
}

/// What `DeleteMicrovmImageVersion` answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeleteMicrovmImageVersionResponse {
    /// The image's ARN.
    pub image_identifier: ImageArn,
    /// The version.
    pub image_version: ImageVersion,
    /// Its state, `DELETING`.
    pub state: VersionState,
}

/// `DeleteMicrovmImage`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeleteMicrovmImageRequest {
    /// The image.
    pub image: ImageArn,
}

/// What `DeleteMicrovmImage` answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeleteMicrovmImageResponse {
    /// The image's ARN.
    pub image_identifier: ImageArn,
    /// Its state, `DELETING`.
    pub state: ImageState,
}
