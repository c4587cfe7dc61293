//! What control asks of a host. The host decides nothing: control says what should be, with everything needed to make
//! it so, and the host makes it so or says why it could not, leaving nothing half-made.

use std::{path::PathBuf, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    hooks::HookPlan,
    ids::{BuildId, ImageId, ImageVersion, MicrovmId, VmId},
    images::Architecture,
    size::Size,
};

/// One version of one image, as the host stores it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ImageRef {
    /// The image.
    pub image_id: ImageId,
    /// Its version.
    pub version: ImageVersion,
}

/// Names the app can see in its environment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageLabels {
    /// `AWS_LAMBDA_MICROVM_IMAGE_NAME`.
    pub name: String,
    /// `AWS_LAMBDA_MICROVM_IMAGE_ARN`.
    pub arn: String,
    /// `AWS_REGION`.
    pub region: String,
}

/// Where a guest's packets may go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Egress {
    /// To the internet; neither to this host nor to private networks.
    #[default]
    Internet,
    /// Nowhere: only answers to what the host asks.
    Nowhere,
}

/// A build to do.
#[derive(Debug, Clone)]
pub struct BuildSpec {
    /// Version to make.
    pub image: ImageRef,
    /// This attempt.
    pub build_id: BuildId,
    /// What it is for.
    pub architecture: Architecture,
    /// Whether the version has other builds too, of which each has a directory of its own.
    pub one_of_several: bool,
    /// Names for the app.
    pub labels: ImageLabels,
    /// Bucket of the zip.
    pub bucket: String,
    /// Key of the zip.
    pub key: String,
    /// Environment frozen into the image.
    pub environment: Vec<(String, String)>,
    /// Size of every microVM of the version.
    pub size: Size,
    /// Hooks; `ready` and `validate` matter here.
    pub hooks: HookPlan,
    /// `additionalOsCapabilities: ["ALL"]`.
    pub all_capabilities: bool,
    /// Where the packets of the VM may go that the snapshot is taken of.
    pub egress: Egress,
}

impl BuildSpec {
    /// What tells its files from those of the version's other builds, if it has any.
    #[must_use]
    pub fn among(&self) -> Option<Architecture> {
        self.one_of_several.then_some(self.architecture)
    }
}

/// What a successful build weighs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildReport {
    /// Bytes of guest memory in the snapshot, as allocated on disk.
    pub memory_snapshot_bytes: u64,
    /// Bytes of the root file system's content.
    pub code_install_bytes: u64,
    /// Bytes of the writable disk in the snapshot, as allocated.
    pub disk_snapshot_bytes: u64,
}

/// A build that ended without an image version; nothing of it is left but its log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct BuildFailure {
    /// `stateReason` of the build: a documented code or sentence, then what the user can do.
    pub reason: String,
    /// Weight of the root file system, if the failure came after it.
    pub code_install_bytes: Option<u64>,
}

/// Everything a host must know of a microVM; sent with every verb, so that a host need remember nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MicrovmSpec {
    /// The microVM.
    pub microvm_id: MicrovmId,
    /// The version it is launched from.
    pub image: ImageRef,
    /// Which of the version's builds, if it has several. Records of before there could be several have none.
    #[serde(default)]
    pub architecture: Option<Architecture>,
    /// Its size.
    pub size: Size,
    /// Its hooks.
    pub hooks: HookPlan,
    /// Body of the `/run` hook; `None` when the caller gave none.
    pub run_hook_payload: Option<String>,
    /// Where its packets may go. Records of before there was a choice have none.
    #[serde(default)]
    pub egress: Egress,
}

/// Why a host did not do what was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum HostError {
    /// Not done, and everything is as it was before: a running microVM runs on, a suspended one stays suspended.
    #[error("{reason}")]
    Unchanged {
        /// One sentence for the user.
        reason: String,
    },
    /// The microVM is gone, or must be ended because of it.
    #[error("{reason}")]
    Lost {
        /// One sentence for `stateReason`.
        reason: String,
    },
    /// There is no room for it now.
    #[error("{reason}")]
    NoCapacity {
        /// One sentence for the user.
        reason: String,
    },
}

/// What a suspend wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SuspendReport {
    /// Bytes of changed memory.
    pub memory_bytes: u64,
    /// Bytes of device state.
    pub device_bytes: u64,
}

/// What a host has files of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Holdings {
    /// MicroVMs.
    pub microvms: Vec<MicrovmId>,
    /// Image versions.
    pub images: Vec<ImageRef>,
}

/// What a VM has used since it was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Processor time of its VMM, the guest's included.
    pub cpu: Duration,
    /// Bytes between the guest and other machines, both ways. What crosses its endpoint is not among them.
    pub network_bytes: u64,
}

/// What a host found of a microVM after a restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// Its VM runs and its agent answers; it has been taken over.
    Running(VmId),
    /// It has a whole suspend snapshot and no VM.
    Suspended,
    /// Nothing that could be brought back; what was left has been removed.
    Nothing,
}

/// What a host reports unasked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostEvent {
    /// A VM ended that nobody asked to end; its remains have been removed.
    Ended {
        /// Whose it was.
        microvm_id: MicrovmId,
        /// Which incarnation.
        vm_id: VmId,
        /// `stateReason`, such as `Container Stopped with Exit Code: 1`.
        reason: String,
    },
}

/// A host, as control sees it. All verbs but `build` are called one at a time per microVM; each is safe to repeat.
#[async_trait::async_trait]
pub trait Host: Send + Sync + 'static {
    /// What it can build for and run: one at least. The first is what an image is built for that asks for none, and what
    /// a microVM is launched for if its version is built for it.
    fn architectures(&self) -> Vec<Architecture>;

    /// Makes an image version, or one of several builds of it. Dropping the future cancels the build and removes what it
    /// made.
    async fn build(&self, spec: BuildSpec) -> Result<BuildReport, BuildFailure>;

    /// Removes everything of a version, whatever it was built for; absent is fine.
    async fn remove_image(&self, image: &ImageRef) -> Result<(), HostError>;

    /// Is there room for one more of this size, beside so many that are being launched? Asked before a launch is
    /// promised; `run` and `resume` look again.
    async fn room_for(&self, size: Size, launching: u32) -> Result<(), HostError>;

    /// Launches a microVM from its version's snapshot; returns when its `/run` hook has succeeded.
    async fn run(&self, spec: &MicrovmSpec) -> Result<VmId, HostError>;

    /// Saves what the microVM changed, frees its memory and its VM.
    async fn suspend(&self, spec: &MicrovmSpec) -> Result<SuspendReport, HostError>;

    /// Brings a suspended microVM back; returns when its `/resume` hook has succeeded.
    async fn resume(&self, spec: &MicrovmSpec) -> Result<VmId, HostError>;

    /// Ends the microVM and removes everything of it; absent is fine.
    async fn terminate(&self, spec: &MicrovmSpec) -> Result<(), HostError>;

    /// Called once, before any other verb: says what is there of each of these, and removes everything of any other
    /// (processes, namespaces, mounts, files, half-done builds).
    async fn reconcile(
        &self,
        microvms: &[MicrovmSpec],
        images: &[ImageRef],
    ) -> Result<Vec<(MicrovmId, Found)>, HostError>;

    /// What there are files of. Whoever asks then looks which of it should be: what is made after this is not in it.
    async fn holdings(&self) -> Result<Holdings, HostError>;

    /// Removes everything of these, which were in [`Host::holdings`] and should not be, and whatever else here is
    /// nobody's: processes, networks, builds that do not go on. Safe at any time.
    async fn tidy(&self, nobodys: &Holdings) -> Result<(), HostError>;

    /// What this incarnation has used; `None` if it is no more, or this host cannot tell.
    async fn usage(&self, microvm: &MicrovmId, vm: &VmId) -> Option<Usage>;

    /// Waits for the next thing to report. One caller.
    async fn next_event(&self) -> HostEvent;
}

/// Where a host gets the zip of a build from.
#[async_trait::async_trait]
pub trait ArtifactSource: Send + Sync + 'static {
    /// Writes the object to the file `to`, refusing more than `bytes_max`.
    async fn fetch(&self, bucket: &str, key: &str, to: &std::path::Path, bytes_max: u64) -> Result<u64, ArtifactError>;
}

/// Why an artifact could not be had. The texts start with the service's codes.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    /// No such bucket.
    #[error("S3_NO_SUCH_BUCKET: there is no bucket '{bucket}'")]
    NoSuchBucket {
        /// The bucket asked for.
        bucket: String,
    },
    /// No such key.
    #[error("S3_NO_SUCH_KEY: there is no object '{key}' in bucket '{bucket}'")]
    NoSuchKey {
        /// The bucket.
        bucket: String,
        /// The key asked for.
        key: String,
    },
    /// Larger than a host takes.
    #[error("ARCHIVE_INVALID: the object is larger than the limit of {bytes_max} bytes")]
    TooLarge {
        /// The limit.
        bytes_max: u64,
    },
    /// The local disk is full.
    #[error("DISK_STORAGE_FULL: no space left to fetch the artifact")]
    StorageFull,
    /// Anything else.
    #[error("INTERNAL_PLATFORM_ERROR: the artifact could not be fetched")]
    Other(#[source] std::io::Error),
}

/// Where a host keeps what a person may want to read; shared with the command line.
#[derive(Debug, Clone)]
pub struct Layout {
    /// The data directory.
    pub data: PathBuf,
}

impl Layout {
    /// Everything of one image version.
    #[must_use]
    pub fn version_dir(&self, image: &ImageRef) -> PathBuf {
        self.data.join("images").join(image.image_id.to_string()).join(image.version.to_string())
    }

    /// The files of one build of a version: right in the version's directory if it is the only one, beneath it if it is
    /// one among several.
    #[must_use]
    pub fn build_files_dir(&self, image: &ImageRef, among: Option<Architecture>) -> PathBuf {
        let version = self.version_dir(image);
        among.map_or_else(|| version.clone(), |architecture| version.join(architecture.to_string()))
    }

    /// The log of a build; kept when the build fails.
    #[must_use]
    pub fn build_log(&self, image_id: &ImageId, build_id: &BuildId) -> PathBuf {
        self.data.join("logs").join("builds").join(image_id.to_string()).join(format!("{build_id}.log"))
    }

    /// Everything of one microVM.
    #[must_use]
    pub fn microvm_dir(&self, microvm_id: &MicrovmId) -> PathBuf {
        self.data.join("microvms").join(microvm_id.to_string())
    }

    /// The logs of one microVM; kept for a while after its end.
    #[must_use]
    pub fn log_dir(&self, microvm_id: &MicrovmId) -> PathBuf {
        self.data.join("logs").join("microvms").join(microvm_id.to_string())
    }

    /// What the app wrote to its standard output and error.
    #[must_use]
    pub fn app_log(&self, microvm_id: &MicrovmId) -> PathBuf {
        self.log_dir(microvm_id).join("app.log")
    }

    /// The guest's serial console.
    #[must_use]
    pub fn console_log(&self, microvm_id: &MicrovmId) -> PathBuf {
        self.log_dir(microvm_id).join("console.log")
    }

    /// Everything of a build that is going on.
    #[must_use]
    pub fn build_dir(&self, build_id: &BuildId) -> PathBuf {
        self.data.join("builds").join(build_id.to_string())
    }
}

/// A shared host.
pub type SharedHost = Arc<dyn Host>;

/// How long a caller of [`Host`] should expect the slowest verb but `build` to take before it is stuck: the longest
/// hook (60 s), a guest that is slow to answer (45 s) and then to do what it is told (30 s), and 45 s for the files. A
/// verb dropped sooner would cost a microVM that is merely slow.
pub const VERB_TIME_MAX: Duration = Duration::from_secs(180);
