//! What is kept of an image, its versions and its builds.

use api::{
    host::{Egress, ImageRef},
    ids::{BuildId, ImageId, ImageVersion},
    images::{Architecture, BuildState, ImageState, VersionConfiguration, VersionState, VersionStatus},
    tags::Tags,
};
use serde::{Deserialize, Serialize};

/// Generation of the chipset that builds are for. The service numbers those of its own processors; ours are all one.
pub(crate) const CHIPSET_GENERATION: &str = "1";

/// An image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Image {
    /// Its place in the order of creation.
    pub(crate) sequence: i64,
    /// Its internal id.
    pub(crate) id: ImageId,
    /// Its name.
    pub(crate) name: String,
    /// Its state.
    pub(crate) state: ImageState,
    /// The version made last, whether it is still there or not: numbers are not used twice.
    pub(crate) last_version: ImageVersion,
    /// The newest version that may be launched.
    pub(crate) latest_active: Option<ImageVersion>,
    /// The newest version that could not be built.
    pub(crate) latest_failed: Option<ImageVersion>,
    /// Its tags.
    pub(crate) tags: Tags,
    /// When it was made, in milliseconds since the epoch.
    pub(crate) created_at: i64,
    /// When it last changed.
    pub(crate) updated_at: i64,
}

/// What a version is made from; it never changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Definition {
    /// As it is shown.
    pub(crate) configuration: VersionConfiguration,
    /// As the host is told.
    pub(crate) plan: BuildPlan,
}

/// The parts of a definition that a host works with, checked and with every default filled in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BuildPlan {
    /// Bucket of the zip.
    pub(crate) bucket: String,
    /// Key of the zip.
    pub(crate) key: String,
    /// Size of its microVMs.
    pub(crate) size: api::size::Size,
    /// Its hooks.
    pub(crate) hooks: api::hooks::HookPlan,
    /// Whether its apps get every capability.
    pub(crate) all_capabilities: bool,
    /// Where the packets of the build's VM may go. Records of before there was a choice have none.
    #[serde(default)]
    pub(crate) egress: Egress,
}

/// A version of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Version {
    /// Which.
    pub(crate) image: ImageRef,
    /// How far it has come.
    pub(crate) state: VersionState,
    /// Whether it may be launched.
    pub(crate) status: VersionStatus,
    /// What it is made from.
    pub(crate) definition: Definition,
    /// When it was made, in milliseconds since the epoch.
    pub(crate) created_at: i64,
    /// When it last changed.
    pub(crate) updated_at: i64,
}

/// A build of a version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Build {
    /// Its place in the order of creation.
    pub(crate) sequence: i64,
    /// Which.
    pub(crate) id: BuildId,
    /// Of what.
    pub(crate) image: ImageRef,
    /// What for; no other build of the version is for the same.
    pub(crate) architecture: Architecture,
    /// How far it has come.
    pub(crate) state: BuildState,
    /// What came of it.
    pub(crate) outcome: Outcome,
    /// When it was asked for, in milliseconds since the epoch.
    pub(crate) created_at: i64,
}

/// What came of a build; all of it is empty until it ends.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// Why it failed.
    pub(crate) reason: Option<String>,
    /// Weight of the memory.
    pub(crate) memory_snapshot_bytes: Option<u64>,
    /// Weight of the root file system.
    pub(crate) code_install_bytes: Option<u64>,
    /// Weight of the disk.
    pub(crate) disk_snapshot_bytes: Option<u64>,
}
