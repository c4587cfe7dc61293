//! Is there room? Asked before anything is started, so that what cannot fit is refused whole.

use std::{io, path::Path};

use api::{host::HostError, size::Size};

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

/// Refuses a launch, before anything of it is promised, that would not fit: its baseline must be free beside what the
/// launches in progress are going to touch.
pub fn check_room(data: &Path, size: Size, launching: u32) -> Result<(), HostError> {
    check_launch(data)?;
    let Some(available) = available_memory_bytes() else { return Ok(()) };
    let wanted = memory_wanted(size, launching);
    if available < wanted {
        let mib = |bytes: u64| bytes / (1024 * 1024);
        let reason = format!("it needs {} MiB of free memory, and this host has {}", mib(wanted), mib(available));
        return Err(HostError::NoCapacity { reason });
    }
    Ok(())
}

fn memory_wanted(size: Size, launching: u32) -> u64 {
    u64::from(size.baseline_mib) * 1024 * 1024 + u64::from(launching) * LAUNCH_MEMORY_BYTES
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn launches_in_progress_count() {
        let mib = 1024 * 1024;
        let size = Size::from_baseline_mib(2048).expect("a size");
        assert_eq!(memory_wanted(size, 0), 2048 * mib);
        assert_eq!(memory_wanted(size, 4), 3072 * mib);
    }

    #[test]
    fn what_no_machine_has_is_refused_whole() {
        let size = Size::from_baseline_mib(512).expect("a size");
        // Of the pretended launches alone: 2^32 times 256 MiB.
        let refused = check_room(Path::new("/"), size, u32::MAX).expect_err("nobody has an exbibyte");
        assert!(refused.to_string().contains("MiB of free memory"), "{refused}");
    }
}
