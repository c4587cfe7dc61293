//! A small disk of the stage's own, so that it can be filled without harm.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, bail};
use rustix::fs::{FallocateFlags, fallocate, statvfs};

/// Room for two image versions, a handful of microVMs, and for a zip bomb up to where it is stopped. The file is sparse.
const BYTES: u64 = 12 << 30;

fn run(program: &str, arguments: &[&str]) -> anyhow::Result<()> {
    let output = Command::new(program).args(arguments).output().with_context(|| format!("starting {program}"))?;
    if !output.status.success() {
        bail!("{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// Mounts a fresh file system at a directory, kept in a sparse file beside it. Unmounted by the sweep.
pub fn mount(image: &Path, at: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(at)?;
    File::create(image)?.set_len(BYTES)?;
    let (image, at) = (image.to_string_lossy(), at.to_string_lossy());
    // No blocks reserved for root, which the server may be: full must mean full.
    run("mkfs.ext4", &["-q", "-m", "0", "-E", "lazy_itable_init=1", &image])?;
    run("mount", &["-o", "loop", &image, &at])
}

/// Bytes free on the file system of this path.
pub fn free(path: &Path) -> anyhow::Result<u64> {
    let stat = statvfs(path)?;
    Ok(stat.f_bavail * stat.f_frsize)
}

/// A file that takes all room of a file system but so much; the room is free again when it is dropped.
pub struct Filler(PathBuf);

impl Filler {
    /// Takes the room.
    pub fn leave(directory: &Path, bytes_left: u64) -> anyhow::Result<Self> {
        let path = directory.join("filler");
        let file = File::create(&path)?;
        let filler = Self(path);
        let mut length = 0;
        // The file's own index blocks take room too, hence more than one step.
        while let Some(more) = free(directory)?.checked_sub(bytes_left + (1 << 16)).filter(|more| *more > 0) {
            fallocate(&file, FallocateFlags::empty(), length, more).context("filling the disk")?;
            length += more;
        }
        Ok(filler)
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        // Gone with the disk is as good.
        let _ = fs::remove_file(&self.0);
    }
}
