//! Starts, drives, snapshots and restores one virtual machine, with QEMU.
//!
//! ```text
//!   VmSpec ──► command line ──► process (own session, own network namespace)
//!                                  │ qmp.sock        control
//!                                  │ console.sock    serial console
//!                                  │ vm.json         how a later daemon finds it again
//!                                  ▼
//!   boot ─► running ◄─ resume/pause ─► paused ─► save_device_state + memory().dirty() ─► kill
//!                                        ▲
//!   restore(state, write_pages) ─────────┘
//! ```
//!
//! A VM's memory is a file. While a version's base is made the file *is* the guest's memory
//! ([`MemoryBacking::Shared`]); afterwards every microVM maps that file privately
//! ([`MemoryBacking::CopyOnWrite`]), so a suspended microVM is the device state plus the pages it changed.
//!
//! The process outlives its handle: dropping every [`Vm`] leaves the machine running, and [`Vm::attach`] finds
//! it again. Only [`Vm::kill`], the guest itself, or a failed start ends it.
#![deny(unsafe_code)]

mod command;
mod kvm_probe;
mod memory;
mod process;
mod procfs;
mod qmp;
mod record;
mod spec;
mod start;
mod sys;
mod version;
mod vm;

pub use kvm_probe::{KvmVerdict, probe_kvm};
pub use memory::{GuestMemory, MemoryError};
pub use process::ExitReport;
pub use procfs::find_stray;
pub use qmp::QmpError;
pub use record::RecordError;
pub use spec::{Accel, Disk, MemoryBacking, Network, SpecError, VmSpec};
pub use start::StartError;
pub use version::{VersionError, qemu_version};
pub use vm::{AttachError, ControlError, KillError, RunState, SaveError, Vm};
