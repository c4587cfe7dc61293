//! `vm.json`: how a daemon finds a VM that an earlier daemon started.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::process::Identity;
use crate::spec::{Driver, MemoryBacking, VmSpec};

const MAGIC: &str = "pilotlight-vm";
const VERSION: u32 = 3;
const FILE: &str = "vm.json";
const TEMPORARY: &str = "vm.json.new";
const MAX_BYTES: u64 = 64 * 1024;

/// What is known of a started VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct VmRecord {
    magic: String,
    version: u32,
    /// The VMM.
    pub(crate) process: Identity,
    pub(crate) driver: Driver,
    /// The process that serves its page faults, if one does.
    pub(crate) pager: Option<Identity>,
    /// The changed pages it was restored with, if its VMM knows only of later ones.
    pub(crate) earlier: Option<PathBuf>,
    pub(crate) memory_path: PathBuf,
    pub(crate) memory_shared: bool,
    pub(crate) memory_bytes: u64,
    /// Disks the guest writes to, synced when the VM's state is saved.
    pub(crate) writable_disks: Vec<PathBuf>,
}

impl VmRecord {
    pub(crate) fn new(spec: &VmSpec, process: Identity) -> Self {
        Self {
            magic: MAGIC.to_owned(),
            version: VERSION,
            process,
            driver: spec.driver,
            pager: None,
            earlier: None,
            memory_path: spec.memory.path().to_owned(),
            memory_shared: matches!(spec.memory, MemoryBacking::Shared(_)),
            memory_bytes: spec.memory_bytes(),
            writable_disks: spec.disks.iter().filter(|disk| !disk.read_only).map(|disk| disk.path.clone()).collect(),
        }
    }

    /// Writes the record whole. Not synced: after a power cut there is no process to find.
    pub(crate) fn write(&self, dir: &Path) -> io::Result<()> {
        let temporary = dir.join(TEMPORARY);
        let mut file = File::create(&temporary)?;
        file.write_all(&serde_json::to_vec_pretty(self)?)?;
        fs::rename(temporary, dir.join(FILE))
    }

    /// Removes the record in `dir`, if there is one.
    pub(crate) fn remove(dir: &Path) -> io::Result<()> {
        match fs::remove_file(dir.join(FILE)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    /// The record in `dir`, if there is one.
    pub(crate) fn read(dir: &Path) -> Result<Option<Self>, RecordError> {
        let path = dir.join(FILE);
        let mut text = Vec::new();
        let read = File::open(&path).and_then(|file| file.take(MAX_BYTES).read_to_end(&mut text));
        match read {
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(RecordError::Read { path, source }),
        }
        let record: Self = match serde_json::from_slice(&text) {
            Ok(record) => record,
            Err(source) => return Err(RecordError::Parse { path, source }),
        };
        if record.magic != MAGIC || record.version != VERSION {
            return Err(RecordError::Version { path, magic: record.magic, version: record.version });
        }
        Ok(Some(record))
    }
}

/// Why a VM's record could not be used.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The file could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The record.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The file is not a record.
    #[error("{} is not a VM record", path.display())]
    Parse {
        /// The record.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// The file was written by another version of this program.
    #[error("{} is a {magic:?} of version {version}, not a {MAGIC:?} of version {VERSION}", path.display())]
    Version {
        /// The record.
        path: PathBuf,
        /// What it says it is.
        magic: String,
        /// The version it says it has.
        version: u32,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> VmRecord {
        VmRecord {
            magic: MAGIC.into(),
            version: VERSION,
            process: Identity { pid: 1, start_time: 2, boot_id: "b".into(), cgroup: None },
            driver: Driver::Qemu,
            pager: None,
            earlier: None,
            memory_path: "/m".into(),
            memory_shared: false,
            memory_bytes: 4096,
            writable_disks: vec![],
        }
    }

    #[test]
    fn round_trip_and_refusals() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(VmRecord::read(dir.path()).unwrap(), None);
        record().write(dir.path()).unwrap();
        assert_eq!(VmRecord::read(dir.path()).unwrap(), Some(record()));
        VmRecord { version: 1, ..record() }.write(dir.path()).unwrap();
        assert!(matches!(VmRecord::read(dir.path()), Err(RecordError::Version { version: 1, .. })));
        fs::write(dir.path().join(FILE), b"{").unwrap();
        assert!(matches!(VmRecord::read(dir.path()), Err(RecordError::Parse { .. })));
    }
}
