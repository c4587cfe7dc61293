//! The agent's own mounts: the kernel's file systems, and the app's root.
//!
//! ```text
//! /lower     /dev/vda, EROFS, read-only: the image, shared by every microVM of the version
//! /scratch   /dev/vdb, ext4: what this microVM writes
//! /rootfs    overlay of the two; the app's root
//! ```

use super::BootError;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};
use std::ffi::CStr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

/// Where the app's root is assembled.
pub(crate) const ROOTFS: &str = "/rootfs";

/// The agent's mounts besides [`ROOTFS`], which the app's mount namespace has no use for.
pub(crate) const AGENT_MOUNTS: [&str; 6] = ["/proc", "/sys", "/dev", "/run", "/lower", "/scratch"];

const IMAGE_DISK: &str = "/dev/vda";
const SCRATCH_DISK: &str = "/dev/vdb";

/// Upper bound on the wait for a disk whose driver is loaded.
const DISK_WAIT: Duration = Duration::from_secs(5);

/// Mounts what the kernel offers as files. The empty directories are part of the initramfs.
pub(crate) fn mount_kernel_filesystems() -> Result<(), BootError> {
    let quiet = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount_one("proc", "/proc", c"proc", quiet, None)?;
    mount_one("sysfs", "/sys", c"sysfs", quiet, None)?;
    mount_one("devtmpfs", "/dev", c"devtmpfs", MountFlags::NOSUID | MountFlags::NOEXEC, None)?;
    mount_one("tmpfs", "/run", c"tmpfs", quiet, Some(c"size=1m,mode=0755"))
}

/// Assembles [`ROOTFS`] and returns the scratch file system's root, which is what a quiesce synchronises.
pub(crate) fn assemble_root() -> Result<OwnedFd, BootError> {
    await_disk(IMAGE_DISK)?;
    await_disk(SCRATCH_DISK)?;
    mount_one(IMAGE_DISK, "/lower", c"erofs", MountFlags::RDONLY, None)?;
    // discard: blocks that a file frees become holes in the sparse disk, so a snapshot does not carry them.
    // noinit_itable: no background thread that zeroes inode tables and so dirties a disk nobody wrote to.
    mount_one(SCRATCH_DISK, "/scratch", c"ext4", MountFlags::NOATIME, Some(c"discard,noinit_itable"))?;
    for path in ["/scratch/upper", "/scratch/work"] {
        rustix::fs::mkdir(path, Mode::from_raw_mode(0o755))
            .or_else(|errno| if errno == Errno::EXIST { Ok(()) } else { Err(errno) })
            .map_err(|errno| file("make", path, errno))?;
    }
    let layers = c"lowerdir=/lower,upperdir=/scratch/upper,workdir=/scratch/work";
    mount_one("overlay", ROOTFS, c"overlay", MountFlags::NOATIME, Some(layers))?;
    rustix::fs::open("/scratch", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| file("open", "/scratch", errno))
}

fn mount_one(
    what: &'static str,
    target: &'static str,
    kind: &CStr,
    flags: MountFlags,
    data: Option<&CStr>,
) -> Result<(), BootError> {
    match mount(what, target, kind, flags, data) {
        Ok(()) => Ok(()),
        Err(errno) => Err(BootError::Mount { what, target, source: errno.into() }),
    }
}

/// The drivers probe their devices while they are loaded, so this normally returns at once.
fn await_disk(disk: &'static str) -> Result<(), BootError> {
    let deadline = Instant::now() + DISK_WAIT;
    while !Path::new(disk).exists() {
        if Instant::now() > deadline {
            return Err(BootError::NoDisk(disk));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

fn file(verb: &'static str, path: &str, errno: Errno) -> BootError {
    BootError::File { verb, path: path.to_owned(), source: errno.into() }
}
