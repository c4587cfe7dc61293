//! Turns a Dockerfile and its context into a root filesystem and an image configuration.
//!
//! One build is one [`Job`]: its zip is unpacked into a fresh directory ([`ArchiveLimits`] bounds it), Buildah builds
//! the Dockerfile at its root, the result is written as a read-only EROFS disk, and everything else of the job is
//! removed, whether it ended well, badly, cancelled or dropped.
//!
//! # Where the Dockerfile runs
//!
//! Its `RUN` steps run on this machine's kernel as root in a chroot, with a container's capabilities less `MKNOD`, in
//! mount, PID and IPC namespaces that end with the build. They use this machine's network. That is the executor for
//! development: it keeps mistakes in, not a determined attacker.
//!
//! # What is on disk
//!
//! - `storage`: the base images that `make setup` made. Only read, shared by every server of the machine.
//! - `work/store`: this builder's own store, on top of it: images pulled from registries stay, a build's layers go.
//! - `work/jobs/TAG`: one build's files while it runs.

#![forbid(unsafe_code)]

mod archive;
mod build;
mod buildah;
mod error;
mod image;
mod log;
mod member;
mod process;
mod root_disk;
mod scratch_disk;
mod sweep;

pub use archive::{ArchiveError, ArchiveLimits, unpack};
pub use build::{Builder, BuilderConfig, Built, Job};
pub use error::{BuildError, Cause};
pub use image::{ImageConfig, ImageConfigError};
pub use member::MemberError;
pub use process::ProcessError;
pub use scratch_disk::{ScratchDiskError, make_scratch_disk};
