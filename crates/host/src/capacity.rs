//! Is there room? Asked before anything is started, so that what cannot fit is refused whole.

use std::{io, path::Path};

use api::{host::HostError, size::Size};

use crate::platform::Platform;

/// Disk that must stay free after a launch, a suspend or a build: what the database, the logs and other microVMs'
/// writes need to go on.
pub const DISK_RESERVE_BYTES: u64 = 64 * 1024 * 1024;

/// Memory that must be free for a launch or a resume: what a VMM and a guest touch in their first seconds.
const LAUNCH_MEMORY_BYTES: u64 = 256 * 1024 * 1024;

/// Would this many bytes more fit on the disk under that directory?
pub fn has_room(platform: &dyn Platform, dir: &Path, bytes: u64) -> io::Result<bool> {
    Ok(platform.free_disk_bytes(dir)? >= bytes.saturating_add(DISK_RESERVE_BYTES))
}

/// Refuses a launch, before anything of it is promised, that would not fit: its baseline must be free beside what the
/// launches in progress are going to touch.
pub fn check_room(platform: &dyn Platform, data: &Path, size: Size, launching: u32) -> Result<(), HostError> {
    check_launch(platform, data)?;
    platform.free_memory_bytes().map_or(Ok(()), |free| check_memory(free, size, launching))
}

fn check_memory(free: u64, size: Size, launching: u32) -> Result<(), HostError> {
    let wanted = memory_wanted(size, launching);
    if free < wanted {
        let mib = |bytes: u64| bytes / (1024 * 1024);
        let reason = format!("it needs {} MiB of free memory, and this host has {}", mib(wanted), mib(free));
        return Err(HostError::NoCapacity { reason });
    }
    Ok(())
}

fn memory_wanted(size: Size, launching: u32) -> u64 {
    u64::from(size.baseline_mib) * 1024 * 1024 + u64::from(launching) * LAUNCH_MEMORY_BYTES
}

/// Refuses a launch or a resume that would fail half way.
pub fn check_launch(platform: &dyn Platform, data: &Path) -> Result<(), HostError> {
    if matches!(has_room(platform, data, 0), Ok(false)) {
        return Err(HostError::NoCapacity { reason: "this host's disk is full".to_owned() });
    }
    match platform.free_memory_bytes() {
        Some(available) if available < LAUNCH_MEMORY_BYTES => {
            Err(HostError::NoCapacity { reason: "this host's memory is in use".to_owned() })
        }
        _ => Ok(()),
    }
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
    fn what_does_not_fit_is_refused_whole() {
        let size = Size::from_baseline_mib(512).expect("a size");
        let free = memory_wanted(size, 3);
        assert!(check_memory(free, size, 3).is_ok());
        let refused = check_memory(free - 1, size, 3).expect_err("a byte is missing");
        assert!(refused.to_string().contains("MiB of free memory"), "{refused}");
    }
}
