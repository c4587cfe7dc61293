//! Why a build failed, for the one who asked for it and for the one who runs the server.

use std::{fmt, io, path::PathBuf, time::Duration};

use crate::{ArchiveError, ImageConfigError, ProcessError};

/// The service's sentence for a Dockerfile that does not build; the log says more.
const CONTAINER_BUILD_FAILED: &str = "The container image build failed.";

/// A build that failed.
#[derive(Debug)]
pub struct BuildError {
    reason: String,
    cause: Cause,
}

/// What failed in a build.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Cause {
    /// The zip could not be unpacked.
    #[error("unpacking the code artifact")]
    Archive(#[source] ArchiveError),
    /// A step of the Dockerfile failed, or an image it starts from could not be had.
    #[error("the Dockerfile did not build")]
    Dockerfile(#[source] ProcessError),
    /// The Dockerfile took too long.
    #[error("the Dockerfile took longer than {} s", after.as_secs())]
    TimedOut {
        /// The time it had.
        after: Duration,
    },
    /// The job was cancelled.
    #[error("the build was cancelled")]
    Cancelled,
    /// The disk is full, or nearly.
    #[error("the disk of {} is full", path.display())]
    DiskFull {
        /// Something on that disk.
        path: PathBuf,
    },
    /// A step of our own failed.
    #[error("{step}")]
    Step {
        /// What was being done.
        step: &'static str,
        /// Why it failed.
        #[source]
        source: ProcessError,
    },
    /// The built image's configuration makes no sense.
    #[error("reading the built image's configuration")]
    Configuration(#[source] ImageConfigError),
    /// A file could not be read or written.
    #[error("{step} {}", path.display())]
    File {
        /// What was being done.
        step: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The job's tag cannot be the name of an image and a directory.
    #[error("{tag:?} is no tag of a build")]
    Tag {
        /// The tag.
        tag: String,
    },
    /// The task of the build panicked.
    #[error("the build's task ended unexpectedly")]
    Task(#[source] tokio::task::JoinError),
}

impl BuildError {
    /// The `stateReason` of the build: the service's code or sentence, then our detail.
    #[must_use]
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// What failed.
    #[must_use]
    pub fn cause(&self) -> &Cause {
        &self.cause
    }
}

impl From<Cause> for BuildError {
    fn from(cause: Cause) -> Self {
        let reason = match &cause {
            Cause::Archive(ArchiveError::NoDockerfile) => {
                "ARCHIVE_DOCKERFILE_NOT_FOUND: there is no file named Dockerfile at the root of the archive".to_owned()
            }
            Cause::Archive(ArchiveError::Write { source, .. }) if is_full(source) => disk_full(),
            Cause::Archive(error) if error.is_ours() => "INTERNAL_PLATFORM_ERROR".to_owned(),
            Cause::Archive(error) => format!("ARCHIVE_INVALID: {}", chain(error)),
            Cause::Dockerfile(_) => CONTAINER_BUILD_FAILED.to_owned(),
            Cause::TimedOut { .. } => format!("{CONTAINER_BUILD_FAILED} {cause}"),
            Cause::Configuration(error) => format!("{CONTAINER_BUILD_FAILED} {}", chain(error)),
            Cause::DiskFull { .. } => disk_full(),
            Cause::File { source, .. } if is_full(source) => disk_full(),
            Cause::Cancelled => "INTERNAL_PLATFORM_ERROR: the build was cancelled".to_owned(),
            Cause::Step { .. } | Cause::File { .. } | Cause::Tag { .. } | Cause::Task(_) => {
                "INTERNAL_PLATFORM_ERROR".to_owned()
            }
        };
        Self { reason, cause }
    }
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.cause.fmt(f)
    }
}

impl std::error::Error for BuildError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.cause.source()
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

fn disk_full() -> String {
    "DISK_STORAGE_FULL: the machine's disk has no room for this build".to_owned()
}

/// An error and its sources in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text.push_str(": ");
        text.push_str(&source.to_string());
        next = source.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MemberError;

    #[test]
    fn reasons() {
        let reason = |cause: Cause| BuildError::from(cause).reason().to_owned();
        let member = ArchiveError::Member { name: "../../etc/passwd".into(), source: MemberError::Leaves };
        assert_eq!(reason(Cause::Archive(member)), "ARCHIVE_INVALID: entry \"../../etc/passwd\": leaves the archive");
        assert!(reason(Cause::Archive(ArchiveError::NoDockerfile)).starts_with("ARCHIVE_DOCKERFILE_NOT_FOUND"));
        let full = |path: &str| Cause::File {
            step: "writing",
            path: path.into(),
            source: io::Error::from_raw_os_error(rustix::io::Errno::NOSPC.raw_os_error()),
        };
        assert!(reason(full("/x")).starts_with("DISK_STORAGE_FULL"));
        assert_eq!(
            reason(Cause::Dockerfile(ProcessError::Failed {
                program: "buildah".into(),
                how: "exit 1".into(),
                said: String::new()
            })),
            "The container image build failed."
        );
        assert!(
            !reason(Cause::File { step: "reading", path: "/secret".into(), source: io::Error::other("x") })
                .contains("secret")
        );
    }
}
