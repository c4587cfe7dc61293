//! The files of one microVM and of one image version.

use std::{
    io,
    path::{Path, PathBuf},
};

use api::{
    host::Layout,
    ids::{MicrovmId, VmId},
};
use serde::{Deserialize, Serialize};

/// The directory of a build of an image version: what microVMs are launched from. Never changed once it is there.
#[derive(Clone)]
pub struct VersionFiles(PathBuf);

impl VersionFiles {
    /// The files in this directory, in place or not yet.
    pub fn at(dir: PathBuf) -> Self {
        Self(dir)
    }

    /// The directory itself.
    pub fn dir(&self) -> &PathBuf {
        &self.0
    }

    /// The read-only root disk.
    pub fn root_disk(&self) -> PathBuf {
        self.0.join("root.erofs")
    }

    /// The writable disk at the instant of the snapshot.
    pub fn scratch_disk(&self) -> PathBuf {
        self.0.join("scratch.img")
    }

    /// The guest's memory at that instant.
    pub fn memory(&self) -> PathBuf {
        self.0.join("memory.img")
    }

    /// The devices' state at that instant.
    pub fn device_state(&self) -> PathBuf {
        self.0.join("device.state")
    }

    /// Which parts of the memory the first minutes of a microVM's life want; not always there, and only a hint.
    pub fn touched(&self) -> PathBuf {
        self.0.join("memory.touched")
    }

    /// What the snapshot was made with; its presence makes the version whole.
    pub fn manifest(&self) -> PathBuf {
        self.0.join("snapshot.json")
    }
}

/// The directory of a microVM.
#[derive(Clone)]
pub struct MicrovmFiles(PathBuf);

impl MicrovmFiles {
    /// The directory of this microVM.
    pub fn of(layout: &Layout, microvm_id: &MicrovmId) -> Self {
        Self(layout.microvm_dir(microvm_id))
    }

    /// A directory elsewhere, for a VM that is no user's.
    pub fn at(dir: PathBuf) -> Self {
        Self(dir)
    }

    /// The directory itself.
    pub fn dir(&self) -> &PathBuf {
        &self.0
    }

    /// Its own writable disk.
    pub fn scratch_disk(&self) -> PathBuf {
        self.0.join("scratch.img")
    }

    /// The directory of the VMM process.
    pub fn vm_dir(&self) -> PathBuf {
        self.0.join("vm")
    }

    /// Which VM there is; see [`MachineRecord`].
    pub fn machine_record(&self) -> PathBuf {
        self.0.join("machine.json")
    }

    /// The record of the VM there is, if it can be read.
    pub async fn read_machine_record(&self) -> Option<MachineRecord> {
        let text = tokio::fs::read(self.machine_record()).await.ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// Exists once the microVM's launch is complete, `/run` hook and all. A VM without it was being launched when the
    /// daemon died, and is not taken over.
    pub fn launched_mark(&self) -> PathBuf {
        self.0.join("launched")
    }

    /// A whole suspend snapshot. Its appearing, by a rename, is the instant at which the microVM is suspended; its
    /// disappearing, by a rename, is the instant at which it is not.
    pub fn suspended(&self) -> SuspendedFiles {
        SuspendedFiles(self.0.join("suspended"))
    }

    /// A suspend snapshot being written.
    pub fn suspending(&self) -> SuspendedFiles {
        SuspendedFiles(self.0.join("suspended.new"))
    }

    /// The memory that the microVM was last resumed with; see [`crate::saved`].
    pub fn ground(&self) -> PathBuf {
        self.0.join("ground.layer")
    }

    /// A suspend snapshot that has been used and awaits removal.
    pub fn resumed(&self) -> SuspendedFiles {
        SuspendedFiles(self.0.join("suspended.old"))
    }
}

/// The files of a suspend snapshot.
#[derive(Clone)]
pub struct SuspendedFiles(PathBuf);

impl SuspendedFiles {
    /// The directory itself.
    pub fn dir(&self) -> &PathBuf {
        &self.0
    }

    /// The pages changed since the version's snapshot.
    pub fn layer(&self) -> PathBuf {
        self.0.join("memory.layer")
    }

    /// What of these was changed again, or is new; not always there.
    pub fn delta(&self) -> PathBuf {
        self.0.join("memory.delta")
    }

    /// The devices' state.
    pub fn device_state(&self) -> PathBuf {
        self.0.join("device.state")
    }

    /// What it is made of.
    pub fn manifest(&self) -> PathBuf {
        self.0.join("snapshot.json")
    }
}

/// Written before a VM is started, so that a later daemon finds what belongs to it. Not synced: after a power cut there
/// is no VM to find.
#[derive(Debug, Serialize, Deserialize)]
pub struct MachineRecord {
    /// The incarnation.
    pub vm_id: VmId,
    /// Its network namespace.
    pub namespace: String,
}

/// The directory of work that goes on, removed with all in it when that is over or dropped half way.
#[derive(Debug)]
pub struct WorkDir(PathBuf);

impl WorkDir {
    /// In this place, made or not yet.
    pub fn at(dir: PathBuf) -> Self {
        Self(dir)
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for WorkDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Removes a directory and all in it; absent is fine.
pub async fn remove_dir(dir: PathBuf) -> io::Result<()> {
    match tokio::fs::remove_dir_all(dir).await {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}
