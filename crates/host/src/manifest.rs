//! The manifests of a version's snapshot and of a suspended microVM: written last, checked first.

use std::{
    fs::File,
    io,
    path::Path,
    time::{Duration, UNIX_EPOCH},
};

use api::size::Size;
use serde::{Deserialize, Serialize};
use snapshot::{FileEntry, Manifest, ManifestError, ReadError, WriteError};
use vmm::{Accel, Driver};

use crate::{
    config::HostConfig,
    files::{SuspendedFiles, VersionFiles},
    launch::accel_name,
    platform::Platform,
    saved::Stopped,
};

const VERSION_KIND: &str = "version";
const SUSPENDED_KIND: &str = "suspended";

/// Of a suspended microVM's files, the one that is not always there.
const DELTA: &str = "memory.delta";

/// A snapshot that must not be used.
#[derive(Debug, thiserror::Error)]
pub enum DamagedError {
    /// The manifest, or a file that is not as it says.
    #[error("the snapshot is damaged")]
    Manifest(#[source] ManifestError),
    /// The changed pages.
    #[error("the snapshot's memory is damaged")]
    Layer(#[source] ReadError),
    /// A manifest of something else.
    #[error("the manifest is of kind '{kind}'")]
    Kind {
        /// What it says it is.
        kind: String,
    },
    /// Processor state of one kind means nothing to the other.
    #[error("the image was built with guests run by {built}, and this host runs them by {here}: build it again")]
    Accelerator {
        /// What it was built with.
        built: String,
        /// What this host uses.
        here: String,
    },
}

/// Checks that a version is whole, and fit to be restored with this accelerator. Reads the devices' state, not the large
/// files.
pub fn check_version(files: &VersionFiles, driver: Driver, accel: Accel) -> Result<(), DamagedError> {
    let manifest = read(&files.manifest(), VERSION_KIND)?;
    manifest.verify_files(files.dir()).map_err(DamagedError::Manifest)?;
    // Before there was a choice, it was QEMU.
    let built_driver = manifest.vm["driver"].as_str().unwrap_or(Driver::Qemu.name());
    let built = format!("{built_driver} ({})", manifest.vm["accelerator"].as_str().unwrap_or_default());
    let here = format!("{} ({})", driver.name(), accel_name(accel));
    if built == here { Ok(()) } else { Err(DamagedError::Accelerator { built, here }) }
}

fn read(path: &Path, kind: &str) -> Result<Manifest, DamagedError> {
    let manifest = Manifest::read(path).map_err(DamagedError::Manifest)?;
    if manifest.kind == kind { Ok(manifest) } else { Err(DamagedError::Kind { kind: manifest.kind }) }
}

/// Makes a version's files last, then says what they are.
pub fn write_version(files: &VersionFiles, size: Size, config: &HostConfig, platform: &dyn Platform) -> io::Result<()> {
    let dir = files.dir();
    let mut entries = Vec::new();
    // Only the devices' state is summed: the other files are sparse and large, and are not read whole at a launch.
    for (name, summed) in [("root.erofs", false), ("scratch.img", false), ("memory.img", false), ("device.state", true)]
    {
        File::open(dir.join(name))?.sync_all()?;
        entries.push(FileEntry::of(dir, name, summed).map_err(io::Error::other)?);
    }
    let version = platform.vmm_version()?;
    let machine = serde_json::json!({
        "memory_mib": size.guest_memory_mib(),
        "vcpus": size.vcpus(),
        "driver": config.driver.name(),
        "accelerator": accel_name(config.accel),
        "vmm": version,
    });
    Manifest::new(VERSION_KIND, entries, machine).write(&files.manifest()).map_err(into_io)
}

/// What a suspended microVM's manifest says of its VM.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct SuspendedVm {
    /// When the guest was stopped, in milliseconds since the Unix epoch.
    stopped_at_unix_millis: Option<u64>,
    /// Its processors were kept from its processes then.
    parked: bool,
}

/// Makes a suspended microVM's files last, then says what they are. The guest stands still.
pub fn write_suspended(files: &SuspendedFiles, stopped: Stopped) -> io::Result<()> {
    let dir = files.dir();
    File::open(files.device_state())?.sync_all()?;
    let delta = files.delta().exists().then_some((DELTA, false));
    let entries = [("device.state", true), ("memory.layer", false)]
        .into_iter()
        .chain(delta)
        .map(|(name, summed)| FileEntry::of(dir, name, summed))
        .collect::<Result<_, _>>()
        .map_err(io::Error::other)?;
    let since_epoch = stopped.at.duration_since(UNIX_EPOCH).ok();
    let millis = since_epoch.and_then(|since| u64::try_from(since.as_millis()).ok());
    let vm = SuspendedVm { stopped_at_unix_millis: millis, parked: stopped.parked };
    let vm = serde_json::to_value(vm).map_err(io::Error::other)?;
    Manifest::new(SUSPENDED_KIND, entries, vm).write(&files.manifest()).map_err(into_io)
}

/// What a manifest says of a suspended microVM beside its files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Suspended {
    /// Is there a delta?
    pub has_delta: bool,
    /// How the guest was stopped, if that is known.
    pub stopped: Option<Stopped>,
}

/// Checks the files of a suspended microVM against their manifest; layers check themselves.
pub fn check_suspended(files: &SuspendedFiles) -> Result<Suspended, DamagedError> {
    let manifest = read(&files.manifest(), SUSPENDED_KIND)?;
    manifest.verify_files(files.dir()).map_err(DamagedError::Manifest)?;
    // Snapshots of earlier releases say nothing of it.
    let vm = SuspendedVm::deserialize(&manifest.vm).unwrap_or_default();
    let after_epoch = vm.stopped_at_unix_millis.map(Duration::from_millis);
    let at = after_epoch.and_then(|after| UNIX_EPOCH.checked_add(after));
    Ok(Suspended {
        has_delta: manifest.files.iter().any(|file| file.name == DELTA),
        stopped: at.map(|at| Stopped { at, parked: vm.parked }),
    })
}

/// Keeps what a caller tells apart: a full disk.
fn into_io(error: WriteError) -> io::Error {
    if matches!(error, WriteError::StorageFull { .. }) {
        io::Error::new(io::ErrorKind::StorageFull, error)
    } else {
        io::Error::other(error)
    }
}

/// Keeps what a caller tells apart: a full disk.
pub fn copy_into_io(error: snapshot::CopyError) -> io::Error {
    match error {
        snapshot::CopyError::Write(error) => into_io(error),
        error @ snapshot::CopyError::Read { .. } => io::Error::other(error),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::FileExt, time::SystemTime};

    use super::*;
    use crate::files::MicrovmFiles;

    const PAGE: usize = 4096;

    fn suspended(dir: &Path) -> SuspendedFiles {
        let files = MicrovmFiles::at(dir.to_owned()).suspended();
        fs::create_dir(files.dir()).unwrap();
        fs::write(files.device_state(), b"the devices").unwrap();
        let runs = [0..PAGE as u64, 8 * PAGE as u64..10 * PAGE as u64];
        let mut read = |offset: u64, pages: &mut [u8]| {
            pages.fill(offset as u8 ^ 0x5a);
            Ok(())
        };
        snapshot::write_layer(&files.layer(), 16 * PAGE as u64, &runs, &mut read).unwrap();
        write_suspended(&files, Stopped { at: SystemTime::now(), parked: false }).unwrap();
        files
    }

    /// What a resume does before it starts anything.
    fn opens(files: &SuspendedFiles) -> bool {
        let applied = || snapshot::open_layer(&files.layer())?.visit(&mut |_, _| Ok(()));
        check_suspended(files).is_ok() && applied().is_ok()
    }

    /// Every bit of a file, one after the other, is changed and put right again.
    fn for_every_bit(path: &Path, whole: impl Fn() -> bool) {
        let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
        let bytes = fs::read(path).unwrap();
        for (place, byte) in bytes.iter().enumerate() {
            for bit in 0..8 {
                file.write_all_at(&[byte ^ 1 << bit], place as u64).unwrap();
                assert!(!whole(), "bit {bit} of byte {place} of {}", path.display());
            }
            file.write_all_at(&[*byte], place as u64).unwrap();
        }
        assert!(whole());
    }

    #[test]
    fn no_bit_of_a_suspend_snapshot_can_be_changed() {
        let dir = tempfile::tempdir().unwrap();
        let files = suspended(dir.path());
        for_every_bit(&files.manifest(), || opens(&files));
        for_every_bit(&files.device_state(), || opens(&files));
        // The layer is long: one byte in a hundred and one.
        let layer = fs::read(files.layer()).unwrap();
        for place in (0..layer.len()).step_by(101) {
            let mut changed = layer.clone();
            changed[place] ^= 0x10;
            fs::write(files.layer(), &changed).unwrap();
            assert!(!opens(&files), "byte {place} of the layer");
        }
    }

    #[test]
    fn no_part_of_a_suspend_snapshot_can_be_missing() {
        let dir = tempfile::tempdir().unwrap();
        let files = suspended(dir.path());
        for path in [files.manifest(), files.device_state(), files.layer()] {
            let bytes = fs::read(&path).unwrap();
            for length in (0..bytes.len()).step_by(if bytes.len() > PAGE { 509 } else { 1 }) {
                // The newline after a manifest is no part of it.
                if bytes[length..] != *b"\n" {
                    fs::write(&path, &bytes[..length]).unwrap();
                    assert!(!opens(&files), "{length} bytes of {}", path.display());
                }
            }
            fs::remove_file(&path).unwrap();
            assert!(!opens(&files), "without {}", path.display());
            fs::write(&path, &bytes).unwrap();
            assert!(opens(&files));
        }
    }

    #[test]
    fn no_bit_of_a_versions_manifest_can_be_changed() {
        let dir = tempfile::tempdir().unwrap();
        let files = VersionFiles::at(dir.path().to_owned());
        fs::write(files.device_state(), b"the devices").unwrap();
        let entries = vec![FileEntry::of(dir.path(), "device.state", true).unwrap()];
        let machine = serde_json::json!({
            "memory_mib": 512, "vcpus": 1, "driver": "qemu", "accelerator": "tcg", "vmm": "7.2.0",
        });
        Manifest::new(VERSION_KIND, entries, machine).write(&files.manifest()).unwrap();
        for_every_bit(&files.manifest(), || check_version(&files, Driver::Qemu, Accel::Tcg).is_ok());
    }
}
