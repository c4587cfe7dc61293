//! Is there room? Asked before anything is started, so that what cannot fit is refused whole.

use std::{io, path::Path};

use api::host::HostError;

/// Disk that must stay free after a launch, a suspend or a build: what the database, the logs and other microVMs'
/// writes need to go on.
pub const DISK_RESERVE_BYTES: u64 = 64 * 1024 * 1024;

/// Memory that must be free for a launch or a resume: what a VMM and a guest touch in their first seconds.
const LAUNCH_MEMORY_BYTES: u64 = 256 * 1024 * 1024;

/// Would this many bytes more fit on the disk under that directory?
pub fn has_room(dir: &Path, bytes: u64) -> io::Result<bool> {
    let disk = rustix::fs::statvfs(dir)?;
    Ok(disk.f_bavail.saturating_mul(disk.f_frsize) >= bytes.saturating_add(DISK_RESERVE_BYTES))
}

/// Refuses a launch or a resume that would fail half way.
pub fn check_launch(data: &Path) -> Result<(), HostError> {
    if matches!(has_room(data, 0), Ok(false)) {
        return Err(HostError::NoCapacity { reason: "this host's disk is full".to_owned() });
    }
    match available_memory_bytes() {
        Some(available) if available < LAUNCH_MEMORY_BYTES => {
            Err(HostError::NoCapacity { reason: "this host's memory is in use".to_owned() })
        }
        _ => Ok(()),
    }
}

/// What the kernel says could be had without swapping.
fn available_memory_bytes() -> Option<u64> {
    let meminfo = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kib| kib * 1024)
}
