//! The disk that a microVM writes to: an empty ext4 file system in a sparse file.

use std::{
    io,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tokio::{process::Command, time::timeout};

/// Longest time to make one.
const MAKE_MAX: Duration = Duration::from_secs(60);

/// A scratch disk that could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ScratchDiskError {
    /// The sparse file could not be made.
    #[error("making the file {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// `mkfs.ext4` could not be started.
    #[error("starting mkfs.ext4 (of the package e2fsprogs)")]
    Start(#[source] io::Error),
    /// `mkfs.ext4` did not end in time.
    #[error("mkfs.ext4 on {} took longer than {} s", path.display(), MAKE_MAX.as_secs())]
    TimedOut {
        /// The file.
        path: PathBuf,
    },
    /// `mkfs.ext4` failed.
    #[error("mkfs.ext4 on {} said: {said}", path.display())]
    Failed {
        /// The file.
        path: PathBuf,
        /// What it printed.
        said: String,
    },
}

/// Makes an empty ext4 file system of `gib` GiB in a sparse file that takes well under 2 MiB, so that a microVM's own
/// copy of it costs nothing to make.
///
/// There is no journal: the disk lives and dies with the microVM's memory, and a journal would be written in full.
/// `packed_meta_blocks` keeps what is allocated together, and large block groups keep it small.
pub async fn make_scratch_disk(path: &Path, gib: u64) -> Result<(), ScratchDiskError> {
    let file = |source| ScratchDiskError::File { path: path.to_owned(), source };
    let sparse = tokio::fs::File::create_new(path).await.map_err(file)?;
    let made = async {
        sparse.set_len(gib << 30).await.map_err(file)?;
        let options = "lazy_itable_init=1,lazy_journal_init=1,nodiscard,packed_meta_blocks=1,root_owner=0:0";
        let mut mkfs = Command::new("mkfs.ext4");
        mkfs.args(["-q", "-F", "-m", "0", "-O", "^has_journal,^resize_inode", "-E", options]).arg(path);
        mkfs.env("PATH", crate::process::TOOL_PATH);
        mkfs.stdin(Stdio::null()).kill_on_drop(true);
        let output = timeout(MAKE_MAX, mkfs.output())
            .await
            .map_err(|_| ScratchDiskError::TimedOut { path: path.to_owned() })?
            .map_err(ScratchDiskError::Start)?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(ScratchDiskError::Failed { path: path.to_owned(), said });
        }
        Ok(())
    };
    let made = made.await;
    if made.is_err() {
        let _ = tokio::fs::remove_file(path).await;
    }
    made
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[tokio::test]
    async fn a_disk_is_sparse() {
        let dir = tempfile::tempdir().expect("a directory");
        for gib in [8, 32] {
            let path = dir.path().join(format!("{gib}.ext4"));
            make_scratch_disk(&path, gib).await.expect("made");
            let meta = std::fs::metadata(&path).expect("there");
            assert_eq!(meta.len(), gib << 30);
            assert!(meta.blocks() * 512 <= 2 << 20, "{gib} GiB take {} bytes", meta.blocks() * 512);
            let check = std::process::Command::new("/usr/sbin/e2fsck").args(["-fn"]).arg(&path).output();
            assert!(check.expect("e2fsck runs").status.success());
        }
    }

    #[tokio::test]
    async fn what_is_there_is_not_overwritten() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("disk");
        std::fs::write(&path, "precious").expect("written");
        assert!(matches!(make_scratch_disk(&path, 1).await, Err(ScratchDiskError::File { .. })));
        assert_eq!(std::fs::read(&path).expect("there"), b"precious");
    }
}
