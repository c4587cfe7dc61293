//! What a VM is made of: plain data, everything a driver is told.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::jail::{Jail, Program};

/// The most virtual CPUs a VM may have.
const MAX_VCPUS: u32 = 64;
/// The most memory a VM may have.
const MAX_MEMORY_MIB: u64 = 1024 * 1024;
/// The most disks a VM may have: each has a fixed PCI slot, 0x10 and up.
const MAX_DISKS: usize = 12;
/// Linux refuses command lines beyond this (`COMMAND_LINE_SIZE` on x86).
const MAX_CMDLINE: usize = 2048;

/// Which VMM runs a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    /// Runs everything everywhere, with KVM or without.
    Qemu,
    /// Runs guests on KVM, and little else.
    Firecracker,
}

/// What only some drivers can do; to be asked before it is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// Runs guests without KVM, and of other architectures than the host's.
    pub emulation: bool,
    /// Can take memory back from a running guest: [`Vm::set_balloon`](crate::Vm::set_balloon).
    pub balloon: bool,
}

impl Driver {
    /// What this driver can do.
    pub fn capabilities(self) -> Capabilities {
        match self {
            Self::Qemu => Capabilities { emulation: true, balloon: false },
            Self::Firecracker => Capabilities { emulation: false, balloon: true },
        }
    }

    /// Its name, as in configuration and manifests.
    pub fn name(self) -> &'static str {
        match self {
            Self::Qemu => "qemu",
            Self::Firecracker => "firecracker",
        }
    }
}

/// The instruction set of a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arch {
    /// 64-bit x86.
    X86_64,
    /// 64-bit Arm.
    Aarch64,
}

impl Arch {
    /// This machine's; `None` if guests cannot be of it.
    pub fn host() -> Option<Self> {
        match std::env::consts::ARCH {
            "x86_64" => Some(Self::X86_64),
            "aarch64" => Some(Self::Aarch64),
            _ => None,
        }
    }
}

/// How guest code is executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accel {
    /// By the processor, through `/dev/kvm`.
    Kvm,
    /// By translation; slow, works everywhere.
    Tcg,
}

/// A raw disk image given to the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// The image file.
    pub path: PathBuf,
    /// Whether the guest may not write to it.
    pub read_only: bool,
}

/// What the guest's memory is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MemoryBacking {
    /// The guest's memory *is* this file: what the guest writes is in it. Used while a version's base is built.
    /// Created, sparse, if it does not exist.
    Shared(PathBuf),
    /// A private mapping of this file, which must have exactly the size of the memory and must never change
    /// while any VM maps it: pages the guest did not write are read from it.
    CopyOnWrite(PathBuf),
}

impl MemoryBacking {
    /// The memory file.
    pub fn path(&self) -> &Path {
        match self {
            Self::Shared(path) | Self::CopyOnWrite(path) => path,
        }
    }
}

/// The guest's one network card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// The network namespace QEMU runs in, e.g. `/run/netns/x`.
    pub namespace: PathBuf,
    /// The tap device inside that namespace; it must exist.
    pub tap: String,
    /// The card's hardware address.
    pub guest_mac: [u8; 6],
}

/// Everything a driver is told about one VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmSpec {
    /// Shown in the process list; letters, digits, `-`, `_` and `.`.
    pub name: String,
    /// Which VMM runs it.
    pub driver: Driver,
    /// That VMM's program, copied for its jail.
    pub program: Program,
    /// The pager's program, copied for its jail, for a driver whose memory is not a mapped file when it is restored with
    /// changed pages: Firecracker.
    pub pager: Option<Program>,
    /// Who the VMM's process is and what it may use.
    pub jail: Jail,
    /// The guest's instruction set.
    pub arch: Arch,
    /// How guest code is executed.
    pub accel: Accel,
    /// Number of virtual CPUs.
    pub vcpus: u32,
    /// Guest memory in MiB.
    pub memory_mib: u64,
    /// The kernel to boot; not read by a restore.
    pub kernel: PathBuf,
    /// Its initramfs; not read by a restore.
    pub initrd: Option<PathBuf>,
    /// The kernel's command line; not used by a restore.
    pub cmdline: String,
    /// Disks, in order `vda`, `vdb`, …
    pub disks: Vec<Disk>,
    /// Where the guest's memory is.
    pub memory: MemoryBacking,
    /// The network card, if any.
    pub network: Option<Network>,
    /// The VM's own directory, which must exist and belong to this VM alone: sockets, `vm.json`, `vmm.log`. Everything
    /// relative in this spec is *not* relative to it: give absolute paths.
    pub dir: PathBuf,
}

impl VmSpec {
    /// Guest memory in bytes.
    pub fn memory_bytes(&self) -> u64 {
        self.memory_mib * 1024 * 1024
    }

    /// Refuses what a VMM would misread or fail on later in a less clear way.
    pub(crate) fn check(&self) -> Result<(), SpecError> {
        let name_ok = |name: &str, max: usize| {
            (1..=max).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        };
        if !name_ok(&self.name, 128) {
            return Err(SpecError::Name(self.name.clone()));
        }
        if self.jail.uid == 0 {
            return Err(SpecError::Root);
        }
        if self.accel == Accel::Tcg && !self.driver.capabilities().emulation {
            return Err(SpecError::NeedsKvm { driver: self.driver.name() });
        }
        if Arch::host() != Some(self.arch) && self.accel == Accel::Kvm {
            return Err(SpecError::Foreign { arch: self.arch });
        }
        if !(1..=MAX_VCPUS).contains(&self.vcpus) {
            return Err(SpecError::Vcpus(self.vcpus));
        }
        if !(1..=MAX_MEMORY_MIB).contains(&self.memory_mib) {
            return Err(SpecError::Memory(self.memory_mib));
        }
        if self.disks.len() > MAX_DISKS {
            return Err(SpecError::Disks(self.disks.len()));
        }
        if self.cmdline.len() >= MAX_CMDLINE || self.cmdline.contains('\0') {
            return Err(SpecError::Cmdline(self.cmdline.len()));
        }
        if let Some(network) = &self.network
            && !name_ok(&network.tap, libc::IFNAMSIZ - 1)
        {
            return Err(SpecError::Tap(network.tap.clone()));
        }
        let mut paths = vec![self.dir.as_path(), self.memory.path()];
        paths.extend(self.disks.iter().map(|disk| disk.path.as_path()));
        paths.push(&self.kernel);
        paths.extend(self.initrd.as_deref());
        paths.extend(self.network.as_ref().map(|n| n.namespace.as_path()));
        match paths.into_iter().find(|path| !path.is_absolute()) {
            Some(path) => Err(SpecError::Relative(path.to_owned())),
            None => Ok(()),
        }
    }
}

/// Why a [`VmSpec`] is refused before anything is started.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// The VM's name has characters a VMM would interpret, or a bad length.
    #[error("VM name {0:?} is not 1 to 128 letters, digits, '-', '_' or '.'")]
    Name(String),
    /// A VMM must not be root.
    #[error("a VMM must have a user of its own, not root")]
    Root,
    /// A machine without a snapshot has no memory file to share.
    #[error("Firecracker boots machines whose memory is their own, to be snapshotted whole")]
    BootCopyOnWrite,
    /// A restored machine shares its memory file with others.
    #[error("Firecracker restores machines with memory that is copy-on-write only")]
    RestoreShared,
    /// The driver has no emulation.
    #[error("{driver} runs guests on KVM only")]
    NeedsKvm {
        /// The driver's name.
        driver: &'static str,
    },
    /// The guest's instruction set is not this machine's, and must be emulated.
    #[error("guests of {arch:?} run on this machine only emulated")]
    Foreign {
        /// The guest's.
        arch: Arch,
    },
    /// The number of virtual CPUs is out of range.
    #[error("{0} virtual CPUs is not between 1 and {MAX_VCPUS}")]
    Vcpus(u32),
    /// The amount of memory is out of range.
    #[error("{0} MiB of memory is not between 1 and {MAX_MEMORY_MIB}")]
    Memory(u64),
    /// Too many disks.
    #[error("{0} disks are more than {MAX_DISKS}")]
    Disks(usize),
    /// The kernel command line is too long or has a NUL in it.
    #[error("a kernel command line of {0} bytes is too long or has a NUL in it")]
    Cmdline(usize),
    /// The tap device's name is not an interface name.
    #[error("{0:?} is not the name of a tap device")]
    Tap(String),
    /// A path is relative; a VMM runs in another directory.
    #[error("the path {} is not absolute", .0.display())]
    Relative(PathBuf),
}
