//! Where the files of a history are: a small file system of its own in memory, so that it can be filled to the last byte;
//! without the rights for that, a directory in memory or wherever temporary files are.

use std::{
    io,
    path::{Path, PathBuf},
};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

/// Room for one history, and little to fill.
const OPTIONS: &std::ffi::CStr = c"size=32m,mode=700";

/// A directory for histories, one after the other.
pub struct Place {
    dir: tempfile::TempDir,
    mounted: bool,
}

impl Place {
    /// Makes one.
    pub fn new() -> io::Result<Self> {
        let memory = Path::new("/dev/shm");
        let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }?;
        let mounted = mount("sim", dir.path(), "tmpfs", MountFlags::NODEV, OPTIONS).is_ok();
        Ok(Self { dir, mounted })
    }

    /// Whether it can be filled.
    pub fn can_be_filled(&self) -> bool {
        self.mounted
    }

    /// A path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Removes everything in it.
    pub fn clear(&self) -> io::Result<()> {
        for entry in std::fs::read_dir(self.dir.path())? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                std::fs::remove_dir_all(entry.path())?;
            } else {
                std::fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.mounted {
            // At once for everybody else, and for good when the last file is closed.
            let _ = unmount(self.dir.path(), UnmountFlags::DETACH);
        }
    }
}
