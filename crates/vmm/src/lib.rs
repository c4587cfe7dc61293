//! Starts, drives, snapshots and restores one virtual machine, with QEMU or Firecracker, in a jail.
//!
//! ```text
//!   VmSpec ──► jail (own user, root, namespaces, limits) ──► VMM process
//!                │ qmp.sock | api.sock    control
//!                │ console                serial console
//!                │ vm.json                how a later daemon finds it again
//!                ▼
//!   boot ─► running ◄─ resume/pause ─► paused ─► snapshot_full | snapshot_incremental ─► kill
//!                                        ▲
//!   prepare ─► load(state, changed pages) ┘   or both as one: restore
//! ```
//!
//! A VM's memory is a file. While a version's base is made the file *is* the guest's memory
//! ([`MemoryBacking::Shared`]); afterwards every microVM maps that file privately
//! ([`MemoryBacking::CopyOnWrite`]), so a suspended microVM is the device state plus the pages it changed.
//!
//! The process outlives its handle: dropping every [`Vm`] leaves the machine running, and [`Vm::attach`] finds
//! it again. Only [`Vm::kill`], the guest itself, or a failed start ends it.
//!
//! Which driver runs is decided by whoever writes the spec; what only one can do is in [`Capabilities`]. What is QEMU's
//! is in the module `qemu`, what is Firecracker's in `firecracker`.
#![deny(unsafe_code)]

mod changes;
mod firecracker;
#[cfg(test)]
mod fuzz;
mod jail;
mod kvm_probe;
mod memory;
mod process;
mod procfs;
mod qemu;
mod record;
mod spec;
mod start;
mod sys;
mod usage;
mod vm;
mod words;

pub use changes::Changes;
pub use firecracker::{ApiError, firecracker_version};
pub use jail::{Hierarchies, Jail, Limits, Program, ProgramError};
pub use kvm_probe::{KvmVerdict, probe_kvm};
pub use memory::{GuestMemory, MemoryError};
pub use process::ExitReport;
pub use procfs::find_strays;
pub use qemu::{VersionError, qemu_version};
pub use record::RecordError;
pub use spec::{Accel, Arch, Capabilities, Disk, Driver, MemoryBacking, Network, SpecError, VmSpec};
pub use start::{BoxError, ChangedPages, Prepared, Standstill, StartError, WriteAll, WritePage};
pub use usage::Usage;
pub use vm::{AttachError, Console, ControlError, KillError, RunState, SaveError, Vm};
