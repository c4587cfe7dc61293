//! What a host is told.

use std::{net::IpAddr, path::PathBuf, sync::Arc};

use api::host::{ArtifactSource, Layout};

/// Everything a host needs to know of its machine.
#[derive(Clone)]
pub struct HostConfig {
    /// Where it keeps its files. All of it on one file system.
    pub layout: Layout,
    /// The guest kernel.
    pub kernel: PathBuf,
    /// The initramfs with the agent; used for new images only, since a snapshot holds its own.
    pub initramfs: PathBuf,
    /// How guests are executed.
    pub accel: vmm::Accel,
    /// Which VMM runs guests.
    pub driver: vmm::Driver,
    /// That VMM's program: a path, or a name to be found on the PATH.
    pub vmm: PathBuf,
    /// The pager's program, which Firecracker needs.
    pub pager: PathBuf,
    /// Where the container builder keeps its layers and base images.
    pub builder_storage: PathBuf,
    /// Where the zips of builds come from.
    pub artifacts: Arc<dyn ArtifactSource>,
    /// Name servers written into new images.
    pub nameservers: Vec<IpAddr>,
    /// Network namespaces kept ready.
    pub namespaces_ready: usize,
    /// VMs kept ready for launches.
    pub launches_ready: usize,
    /// VMs kept ready for suspended microVMs.
    pub wakes_ready: usize,
}

/// The guest kernel's command line. Quiet, because every character on an emulated serial line costs; a panic reboots,
/// which ends the VM; and nothing is probed for that is not there. No watchdogs: a guest whose clock moved on while it
/// stood still was not stuck.
const KERNEL_COMMAND_LINE: &str = "console=ttyS0 quiet loglevel=4 panic=-1 reboot=t no_timer_check tsc=reliable \
     nowatchdog rcupdate.rcu_cpu_stall_suppress=1 rcupdate.rcu_expedited=1 random.trust_cpu=on audit=0 \
     8250.nr_uarts=1 cryptomgr.notests i8042.noaux i8042.nokbd i8042.nopnp";

/// The guest kernel's command line under this accelerator.
pub(crate) fn kernel_command_line(accel: vmm::Accel) -> String {
    match accel {
        vmm::Accel::Kvm => KERNEL_COMMAND_LINE.to_owned(),
        // An emulated processor does not speculate, and the guards against it are slow to emulate.
        vmm::Accel::Tcg => format!("{KERNEL_COMMAND_LINE} mitigations=off"),
    }
}
