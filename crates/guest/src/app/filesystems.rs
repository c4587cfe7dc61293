//! The app's view of the file system: its root, and what a container runtime mounts into one.

use crate::boot::filesystems::{AGENT_MOUNTS, ROOTFS};
use rustix::fs::{CWD, FileType, Mode, makedev, mknodat, symlink};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_change, mount_move, mount_remount,
    unmount,
};
use std::ffi::CStr;
use std::io;

/// Why the app's root could not be made.
#[derive(Debug, thiserror::Error)]
pub(super) enum FilesystemError {
    /// The root could not be changed.
    #[error("cannot enter the root file system")]
    Root(#[source] io::Error),
    /// A file system could not be mounted.
    #[error("cannot mount {kind} at {target}")]
    Mount {
        /// Kind of file system.
        kind: String,
        /// Where.
        target: String,
        #[source]
        source: io::Error,
    },
    /// A device, link or directory could not be made.
    #[error("cannot make {path}")]
    Make {
        /// Its path.
        path: String,
        #[source]
        source: io::Error,
    },
}

/// Character devices: name, major, minor, mode.
const DEVICES: [(&str, u32, u32, u32); 7] = [
    ("/dev/null", 1, 3, 0o666),
    ("/dev/zero", 1, 5, 0o666),
    ("/dev/full", 1, 7, 0o666),
    ("/dev/random", 1, 8, 0o666),
    ("/dev/urandom", 1, 9, 0o666),
    ("/dev/tty", 5, 0, 0o666),
    ("/dev/console", 5, 1, 0o600),
];

const LINKS: [(&str, &str); 5] = [
    ("pts/ptmx", "/dev/ptmx"),
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
];

/// What an ordinary container can read in `/proc` and not write.
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// What an ordinary container does not see in `/proc`.
const MASKED: [&str; 3] = ["/proc/kcore", "/proc/keys", "/proc/timer_list"];

/// Leaves the initramfs for the app's root.
///
/// `pivot_root` cannot move the initramfs, which has no parent to be attached to. Moving the new root over it covers
/// it for good instead: `..` of the new root ends there, because a walk never goes below a mount that covers a root.
pub(super) fn enter_root() -> Result<(), FilesystemError> {
    let root = |errno: Errno| FilesystemError::Root(errno.into());
    // What is mounted here is not the agent's business, nor the other way round.
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).map_err(root)?;
    for target in AGENT_MOUNTS {
        unmount(target, UnmountFlags::DETACH).map_err(root)?;
    }
    rustix::process::chdir(ROOTFS).map_err(root)?;
    mount_move(".", "/").map_err(root)?;
    rustix::process::chroot(".").map_err(root)?;
    rustix::process::chdir("/").map_err(root)
}

/// Mounts and makes what an app expects to find besides the image's files.
pub(super) fn populate(all_capabilities: bool) -> Result<(), FilesystemError> {
    let closed = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let terminal = MountFlags::NOSUID | MountFlags::NOEXEC;
    let sys = if all_capabilities { closed } else { closed | MountFlags::RDONLY };
    mount_new("/proc", "proc", closed, None)?;
    mount_new("/sys", "sysfs", sys, None)?;
    mount_new("/dev", "tmpfs", MountFlags::NOSUID, Some(c"mode=0755,size=64m"))?;
    for (path, major, minor, mode) in DEVICES {
        let mode = Mode::from_raw_mode(mode);
        mknodat(CWD, path, FileType::CharacterDevice, mode, makedev(major, minor)).map_err(make(path))?;
        // The mode of a new node passes through the umask.
        rustix::fs::chmod(path, mode).map_err(make(path))?;
    }
    for (target, path) in LINKS {
        symlink(target, path).map_err(make(path))?;
    }
    mount_new("/dev/pts", "devpts", terminal, Some(c"newinstance,ptmxmode=0666,mode=0620,gid=5"))?;
    mount_new("/dev/shm", "tmpfs", closed, Some(c"mode=1777,size=64m"))?;
    mount_new("/dev/mqueue", "mqueue", closed, None)?;
    if all_capabilities {
        return mount_new("/sys/fs/cgroup", "cgroup2", closed, None);
    }
    for path in READ_ONLY {
        ignore_absent(
            mount_bind(path, path)
                .and_then(|()| mount_remount(path, closed | MountFlags::BIND | MountFlags::RDONLY, c"")),
        )
        .map_err(mounting("read-only bind", path))?;
    }
    for path in MASKED {
        ignore_absent(mount_bind("/dev/null", path)).map_err(mounting("mask", path))?;
    }
    Ok(())
}

fn mount_new(target: &str, kind: &str, flags: MountFlags, data: Option<&CStr>) -> Result<(), FilesystemError> {
    // Images made from scratch do not have these directories. `/sys/fs/cgroup` is there already and read-only.
    match rustix::fs::mkdir(target, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(make(target)(errno)),
    }
    mount(kind, target, kind, flags, data).map_err(mounting(kind, target))
}

/// Kernels differ in what they show in `/proc`.
fn ignore_absent(result: Result<(), Errno>) -> Result<(), Errno> {
    match result {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}

fn make(path: &str) -> impl Fn(Errno) -> FilesystemError {
    move |errno| FilesystemError::Make { path: path.to_owned(), source: errno.into() }
}

fn mounting(kind: &str, target: &str) -> impl Fn(Errno) -> FilesystemError {
    move |errno| FilesystemError::Mount { kind: kind.to_owned(), target: target.to_owned(), source: errno.into() }
}
