//! The sizes a microVM can have.

use serde::{Deserialize, Serialize};

/// One row of the service's size table (its documentation's "Sizing" page, and measured guests): the baseline is what
/// is guaranteed and named, the guest sees four times as much.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Size {
    /// `minimumMemoryInMiB`: the guaranteed memory in MiB.
    pub baseline_mib: u32,
}

impl Size {
    /// Every baseline there is, in MiB.
    pub const BASELINES_MIB: [u32; 5] = [512, 1024, 2048, 4096, 8192];

    /// What an image gets that asks for nothing.
    pub const DEFAULT: Self = Self { baseline_mib: 2048 };

    /// The row of this baseline, if there is one.
    #[must_use]
    pub fn from_baseline_mib(baseline_mib: u32) -> Option<Self> {
        Self::BASELINES_MIB.contains(&baseline_mib).then_some(Self { baseline_mib })
    }

    /// Memory the guest sees, in MiB: burst is four times the baseline.
    #[must_use]
    pub fn guest_memory_mib(self) -> u32 {
        self.baseline_mib * 4
    }

    /// The same in bytes.
    #[must_use]
    pub fn guest_memory_bytes(self) -> u64 {
        u64::from(self.guest_memory_mib()) * 1024 * 1024
    }

    /// vCPUs the guest sees: one per 2 GiB of guest memory.
    #[must_use]
    pub fn vcpus(self) -> u32 {
        self.guest_memory_mib() / 2048
    }

    /// Size of the writable disk in GiB.
    #[must_use]
    pub fn disk_gib(self) -> u32 {
        match self.baseline_mib {
            8192 => 32,
            4096 => 16,
            _ => 8,
        }
    }
}

impl TryFrom<u32> for Size {
    type Error = String;
    fn try_from(baseline_mib: u32) -> Result<Self, String> {
        Self::from_baseline_mib(baseline_mib).ok_or_else(|| format!("no size has {baseline_mib} MiB"))
    }
}

impl From<Size> for u32 {
    fn from(size: Size) -> u32 {
        size.baseline_mib
    }
}

#[cfg(test)]
mod tests {
    use super::Size;

    #[test]
    fn the_table_is_the_services() {
        let rows: Vec<_> = Size::BASELINES_MIB
            .iter()
            .map(|&mib| Size::from_baseline_mib(mib).expect("every baseline has a row"))
            .map(|size| (size.guest_memory_mib(), size.vcpus(), size.disk_gib()))
            .collect();
        assert_eq!(rows, [(2048, 1, 8), (4096, 2, 8), (8192, 4, 8), (16384, 8, 16), (32768, 16, 32)]);
        assert_eq!(Size::from_baseline_mib(1000), None);
    }
}
