//! The platform of this machine: `vmm`, network namespaces, `builder`.

use std::{
    collections::HashSet,
    io,
    ops::Range,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use api::{directory::AppStream, host::Egress, size::Size};
use builder::{BuildError, Builder, BuilderConfig, Built, Job, ScratchDiskError};
use tokio_util::task::AbortOnDropHandle;
use vmm::{
    Arch, AttachError, ChangedPages, Changes, Console, ControlError, Disk, Driver, ExitReport, Jail, KillError, Limits,
    Program, RunState, SaveError, Standstill, StartError, VmSpec,
};

use crate::{
    config::{HostConfig, kernel_command_line},
    local,
    network::{GUEST_MAC, Namespace, NetworkError, Pool, PoolConfig},
    platform::{Network, Platform, PreparedVm, SharedNetwork, SharedVm, Vm, VmPlace, VmPlan},
    verbs::blocking,
};

/// Share of the processors, a virtual one; with four, the usual number, a VM weighs as much as any other program.
const CPU_WEIGHT_PER_VCPU: u32 = 25;

/// This machine.
pub struct System {
    config: HostConfig,
    pool: Arc<Pool>,
    builder: Builder,
    /// What VMs are run with.
    program: Program,
    /// What serves their page faults, where a VMM does not do so itself.
    pager: Option<Program>,
    filler: Mutex<Option<AbortOnDropHandle<()>>>,
}

impl System {
    /// Installs the packet rules, and copies the programs for their jails.
    pub async fn start(config: HostConfig) -> Result<Self, local::StartError> {
        let data = &config.layout.data;
        let pool = PoolConfig { ready: config.namespaces_ready, nameservers: config.nameservers.clone() };
        let pool = Pool::start(data, pool).await.map_err(local::StartError::Network)?;
        let builder = Builder::new(BuilderConfig::new(config.builder_storage.clone(), data.join("builder")));
        let (driver, vmm, pager) = (config.driver, config.vmm.clone(), config.pager.clone());
        let programs = data.join("programs");
        let copied = tokio::task::spawn_blocking(move || {
            let (program, pager) = match driver {
                Driver::Qemu => (Program::qemu(&vmm, &programs)?, None),
                Driver::Firecracker => {
                    let pager = Program::plain(&pager, &programs)?;
                    (Program::plain(&vmm, &programs)?, Some(pager))
                }
            };
            let keep: Vec<_> = [Some(&program), pager.as_ref()].into_iter().flatten().collect();
            Program::sweep(&programs, &keep);
            Ok((program, pager))
        });
        let copied = copied.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
        let (program, pager) = copied.map_err(local::StartError::Program)?;
        Ok(Self { config, pool, builder, program, pager, filler: Mutex::default() })
    }

    fn vm_spec(&self, plan: &VmPlan) -> VmSpec {
        let config = &self.config;
        let namespace = plan.network.name();
        let (uid, cgroup) = self.pool.identity_of(namespace).expect("a namespace of the pool has a slot");
        VmSpec {
            name: plan.name.clone(),
            driver: config.driver,
            program: self.program.clone(),
            pager: self.pager.clone(),
            jail: Jail { uid, cgroup: Some(cgroup), limits: limits(plan.size) },
            arch: Arch::X86_64,
            accel: config.accel,
            vcpus: plan.size.vcpus(),
            memory_mib: u64::from(plan.size.guest_memory_mib()),
            kernel: config.kernel.clone(),
            initrd: Some(config.initramfs.clone()),
            cmdline: kernel_command_line(config.accel),
            disks: vec![
                Disk { path: plan.root_disk.clone(), read_only: true },
                Disk { path: plan.scratch_disk.clone(), read_only: false },
            ],
            memory: plan.memory.clone(),
            network: Some(vmm::Network {
                namespace: Namespace::path_of(namespace),
                tap: "tap0".to_owned(),
                guest_mac: GUEST_MAC,
            }),
            dir: plan.dir.clone(),
        }
    }
}

/// The processes of these users, each with its user.
async fn processes_of(uids: Range<u32>) -> Vec<(u32, u32)> {
    blocking(move || Ok(vmm::find_strays(uids))).await.unwrap_or_default()
}

/// Ends every process of a slot's user.
async fn end_processes_of(uid: u32) -> Result<(), KillError> {
    for (pid, uid) in processes_of(uid..uid + 1).await {
        tracing::info!(pid, "ending a VMM process that nobody watches");
        vmm::Vm::kill_stray(pid, uid).await?;
    }
    Ok(())
}

/// What a VM of this size may use: processors in proportion when there are not enough, whatever is free otherwise.
fn limits(size: Size) -> Limits {
    Limits { cpu_weight: CPU_WEIGHT_PER_VCPU * size.vcpus(), ..Limits::of(size.vcpus()) }
}

/// What the kernel says could be had without swapping.
fn free_memory_bytes() -> Option<u64> {
    let meminfo = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kib| kib * 1024)
}

#[async_trait::async_trait]
impl Vm for vmm::Vm {
    fn pid(&self) -> u32 {
        vmm::Vm::pid(self)
    }

    fn pids(&self) -> Vec<u32> {
        vmm::Vm::pids(self)
    }

    fn dir(&self) -> &Path {
        vmm::Vm::dir(self)
    }

    fn cpu_time(&self) -> Option<Duration> {
        vmm::Vm::cpu_time(self)
    }

    fn at_work(&self) -> bool {
        vmm::Vm::at_work(self)
    }

    async fn pause(&self) -> Result<(), ControlError> {
        vmm::Vm::pause(self).await
    }

    async fn resume(&self) -> Result<(), ControlError> {
        vmm::Vm::resume(self).await
    }

    async fn run_state(&self) -> Result<RunState, ControlError> {
        vmm::Vm::run_state(self).await
    }

    async fn snapshot_full(&self, state: &Path) -> Result<(), SaveError> {
        vmm::Vm::snapshot_full(self, state).await
    }

    async fn snapshot_incremental(&self, state: &Path) -> Result<Changes, SaveError> {
        vmm::Vm::snapshot_incremental(self, state).await
    }

    async fn touched(&self) -> io::Result<Vec<Range<u64>>> {
        let memory = self.memory().map_err(io::Error::other)?;
        blocking(move || memory.touched().map_err(io::Error::other)).await
    }

    async fn console(&self) -> Result<Console, ControlError> {
        vmm::Vm::console(self).await
    }

    async fn kill(&self) -> Result<(), KillError> {
        vmm::Vm::kill(self).await
    }

    async fn exited(&self) -> ExitReport {
        vmm::Vm::exited(self).await
    }
}

struct Prepared {
    vm: vmm::Prepared,
    spec: VmSpec,
}

#[async_trait::async_trait]
impl PreparedVm for Prepared {
    fn has_exited(&self) -> bool {
        self.vm.has_exited()
    }

    async fn end(self: Box<Self>) {
        if let Err(error) = self.vm.end().await {
            tracing::error!(%error, "a VMM process that was not needed could not be ended");
        }
    }

    async fn load(
        self: Box<Self>,
        place: VmPlace,
        device_state: &Path,
        stood_still: Standstill,
        pages: Option<ChangedPages>,
    ) -> Result<SharedVm, StartError> {
        let Self { vm, mut spec } = *self;
        spec.dir = place.dir;
        for disk in spec.disks.iter_mut().filter(|disk| !disk.read_only) {
            disk.path.clone_from(&place.scratch_disk);
        }
        Ok(Arc::new(vm.load(&spec, device_state, stood_still, pages).await?))
    }
}

#[async_trait::async_trait]
impl Network for Namespace {
    fn name(&self) -> &str {
        Namespace::name(self)
    }

    async fn restrict(&self, egress: Egress) -> Result<(), NetworkError> {
        match egress {
            Egress::Internet => Ok(()),
            Egress::Nowhere => self.close().await,
        }
    }

    async fn connect(&self, port: u16, timeout: Duration) -> io::Result<Box<dyn AppStream>> {
        Ok(Box::new(Namespace::connect(self, port, timeout).await?))
    }
}

#[async_trait::async_trait]
impl Platform for System {
    fn free_disk_bytes(&self, dir: &Path) -> io::Result<u64> {
        let disk = rustix::fs::statvfs(dir)?;
        Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
    }

    fn free_memory_bytes(&self) -> Option<u64> {
        free_memory_bytes()
    }

    fn vmm_version(&self) -> io::Result<String> {
        let version = match self.config.driver {
            Driver::Qemu => vmm::qemu_version(&self.config.vmm),
            Driver::Firecracker => vmm::firecracker_version(&self.config.vmm),
        };
        version.map_err(io::Error::other)
    }

    async fn take_network(&self) -> Result<SharedNetwork, NetworkError> {
        Ok(Arc::new(self.pool.take().await?))
    }

    fn adopt_network(&self, name: &str) -> Result<SharedNetwork, NetworkError> {
        Ok(Arc::new(self.pool.adopt(name)?))
    }

    fn network_bytes(&self, name: &str) -> Option<u64> {
        self.pool.bytes_outside(name)
    }

    async fn give_back_network(&self, name: &str) {
        self.pool.give_back(name).await;
    }

    async fn give_back_abandoned_network(&self, name: &str) {
        self.pool.give_back_abandoned(name).await;
    }

    async fn reclaim(&self, recorded: &HashSet<String>) {
        let users = processes_of(self.pool.uids()).await.into_iter().map(|(_, uid)| uid).collect();
        let end = async |uid: u32, cgroup: &Path| {
            let ended = end_processes_of(uid).await;
            if let Err(error) = &ended {
                tracing::error!(uid, %error, "a VMM process that is nobody's could not be ended");
            }
            vmm::Hierarchies::find().remove(cgroup);
            ended.is_ok()
        };
        self.pool.reclaim(&users, recorded, end).await;
    }

    async fn sweep_networks(&self, keep: &[String]) {
        vmm::Hierarchies::find().sweep(&self.pool.cgroups());
        self.pool.sweep(keep).await;
    }

    fn prepare_ahead(&self) {
        let task = tokio::spawn(Arc::clone(&self.pool).keep_filled());
        *self.filler.lock().expect("no holder of this lock panics") = Some(AbortOnDropHandle::new(task));
    }

    async fn stop(&self) {
        let filler = self.filler.lock().expect("no holder of this lock panics").take();
        if let Some(filler) = filler {
            filler.abort();
            let _ = filler.await;
        }
        self.pool.drain().await;
        self.pool.remove_rules().await;
    }

    async fn boot(&self, plan: &VmPlan) -> Result<SharedVm, StartError> {
        Ok(Arc::new(vmm::Vm::boot(&self.vm_spec(plan)).await?))
    }

    async fn prepare(&self, plan: &VmPlan) -> Result<Box<dyn PreparedVm>, StartError> {
        let spec = self.vm_spec(plan);
        Ok(Box::new(Prepared { vm: vmm::Vm::prepare(&spec).await?, spec }))
    }

    async fn attach(&self, dir: &Path) -> Result<Option<SharedVm>, AttachError> {
        Ok(vmm::Vm::attach(dir).await?.map(|vm| Arc::new(vm) as SharedVm))
    }

    async fn end_strays(&self, keep: &HashSet<u32>) {
        for (pid, uid) in processes_of(self.pool.uids()).await {
            if keep.contains(&pid) {
                continue;
            }
            tracing::info!(pid, "ending a VMM process left behind");
            if let Err(error) = vmm::Vm::kill_stray(pid, uid).await {
                tracing::error!(pid, %error, "a VMM process left behind could not be ended");
            }
        }
    }

    async fn end_vms_in(&self, network: &str) -> Result<(), KillError> {
        match self.pool.identity_of(network) {
            // One that somebody has again belongs to another VM by now.
            Some((uid, _)) if self.pool.is_abandoned(network) => end_processes_of(uid).await,
            _ => Ok(()),
        }
    }

    async fn build_root_disk(&self, job: &Job) -> Result<Built, BuildError> {
        self.builder.build(job).await
    }

    async fn make_scratch_disk(&self, path: &Path, gib: u64) -> Result<(), ScratchDiskError> {
        builder::make_scratch_disk(path, gib).await
    }

    async fn sweep_builds(&self) -> Result<(), BuildError> {
        self.builder.sweep().await
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_kernel_says_what_memory_is_free() {
        // More than a megabyte, or this test would not run; less than a tebibyte, or the unit is wrong.
        assert!((1 << 20..1 << 40).contains(&super::free_memory_bytes().expect("a figure")));
    }
}
