//! The platform of a pretended machine, as one daemon sees it.

use std::{
    collections::{BTreeSet, HashSet},
    fs::File,
    io,
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError},
    time::Duration,
};

use api::{directory::AppStream, host::Egress};
use builder::{BuildError, Built, ImageConfig, Job, ScratchDiskError};
use host::{
    network::{
        NetworkError,
        claims::{Claims, Work},
    },
    platform::{Network, Platform, PreparedVm, SharedNetwork, SharedVm, Vm, VmPlace, VmPlan},
};
use rustix::fs::{MemfdFlags, memfd_create};
use tokio::time::{sleep, timeout};
use vmm::{
    AttachError, ChangedPages, Changes, Console, ControlError, ExitReport, KillError, MemoryBacking, RunState,
    SaveError, Standstill, StartError,
};

use super::{
    guest::Guest,
    vm::{Devices, Doing, Memory, PAGE, Parts, PretendVm},
    world::{COMMON, Verdict, World},
};

/// Where a VM says which process it is.
const RECORD: &str = "vm.json";

/// Where one that waits for its state says which network is its.
pub const WAITS: &str = "waits";

/// Bytes a connection holds in one direction.
const BUFFER: usize = 64 * 1024;

/// Free disk, when there is any.
const FREE_BYTES: u64 = 1 << 40;

/// The network in this slot.
fn name_of(slot: u32) -> String {
    format!("net-{slot}")
}

/// The slot of a network of this name.
fn slot_of(name: &str) -> u32 {
    name.strip_prefix("net-").and_then(|slot| slot.parse().ok()).expect("a name that was made here")
}

fn refused() -> io::Error {
    io::Error::other("the simulation says no")
}

/// The platform for one life of the daemon.
pub struct Pretended {
    world: Arc<World>,
    life: u32,
    claims: Claims<()>,
}

/// A daemon's handle on a VM.
struct Handle {
    world: Arc<World>,
    life: u32,
    vm: Arc<PretendVm>,
}

/// A daemon's handle on a network.
struct Wire {
    world: Arc<World>,
    life: u32,
    name: String,
    /// For as long as somebody has it, the network is theirs.
    _held: Arc<()>,
}

impl Handle {
    async fn call(&self, kind: &'static str) -> Result<(), ControlError> {
        let error = || ControlError::Vmm { pid: self.vm.pid, source: Box::new(refused()) };
        match self.world.call(self.life, &self.vm.who, kind).await {
            Verdict::Does if self.vm.lives() => Ok(()),
            Verdict::Does | Verdict::Fails => Err(error()),
        }
    }

    async fn done(&self, kind: &'static str) {
        self.world.done(self.life, &self.vm.who, kind).await;
    }

    async fn save(&self, state: &Path) -> Result<(), SaveError> {
        self.call("save").await.map_err(|error| SaveError::Control { source: Box::new(error) })?;
        if self.vm.doing() != Doing::Paused {
            return Err(SaveError::NotPaused { state: RunState::Running });
        }
        let write = |source| SaveError::Write { path: state.to_owned(), source };
        let devices = self.vm.devices().map_err(write)?;
        std::fs::write(state, serde_json::to_vec(&devices).unwrap_or_default()).map_err(write)
    }
}

#[async_trait::async_trait]
impl Vm for Handle {
    fn pid(&self) -> u32 {
        self.vm.pid
    }

    fn pids(&self) -> Vec<u32> {
        vec![self.vm.pid]
    }

    fn dir(&self) -> &Path {
        &self.vm.dir
    }

    fn cpu_time(&self) -> Option<Duration> {
        self.vm.exists().then(|| self.vm.cpu_time())
    }

    fn at_work(&self) -> bool {
        self.world.chance(&self.vm.who, "at work").between(0, 1) == 1
    }

    async fn pause(&self) -> Result<(), ControlError> {
        self.call("pause").await?;
        self.vm.set_doing(Doing::Paused);
        self.done("pause").await;
        Ok(())
    }

    async fn resume(&self) -> Result<(), ControlError> {
        self.call("resume").await?;
        if let Err(wrong) = self.vm.check_restored() {
            self.world.violated(format_args!("{} goes on, and {wrong}", self.world.name(&self.vm.who)));
        }
        self.vm.set_doing(Doing::Running);
        self.done("resume").await;
        Ok(())
    }

    async fn run_state(&self) -> Result<RunState, ControlError> {
        self.world.if_alive(self.life).await;
        Ok(match self.vm.doing() {
            Doing::Running => RunState::Running,
            Doing::Paused => RunState::Paused,
            Doing::Stuck => RunState::IoError,
        })
    }

    async fn snapshot_full(&self, state: &Path) -> Result<(), SaveError> {
        self.save(state).await?;
        self.done("save").await;
        Ok(())
    }

    async fn snapshot_incremental(&self, state: &Path) -> Result<Changes, SaveError> {
        self.save(state).await?;
        let memory_error = |source| SaveError::Write { path: state.to_owned(), source };
        let pages = memfd_create("pages", MemfdFlags::CLOEXEC).map_err(|error| memory_error(error.into()))?;
        let pages = File::from(pages);
        let changes = {
            use std::os::unix::fs::FileExt;

            let memory = self.vm.memory();
            let all = memory.pages.iter();
            all.into_iter()
                .try_for_each(|(number, page)| pages.write_all_at(page, number * PAGE as u64))
                .and_then(|()| Changes::of_file(pages, PAGE as u64, None))
        };
        let changes = changes.map_err(memory_error)?;
        self.done("save").await;
        Ok(changes)
    }

    async fn touched(&self) -> io::Result<Vec<Range<u64>>> {
        self.world.if_alive(self.life).await;
        let memory = self.vm.memory();
        Ok(memory.pages.keys().map(|page| page * PAGE as u64..(page + 1) * PAGE as u64).collect())
    }

    async fn console(&self) -> Result<Console, ControlError> {
        Ok(Box::new(tokio::io::empty()))
    }

    async fn kill(&self) -> Result<(), KillError> {
        if !self.vm.exists() {
            return Ok(());
        }
        if self.world.call(self.life, &self.vm.who, "kill").await == Verdict::Fails {
            self.vm.doom();
            return Err(KillError::StillThere { pid: self.vm.pid });
        }
        self.vm.end(&self.world, ExitReport { signal: Some(9), ..ExitReport::default() });
        self.done("kill").await;
        Ok(())
    }

    async fn exited(&self) -> ExitReport {
        let report = self.vm.exited().await;
        self.world.if_alive(self.life).await;
        report
    }
}

#[async_trait::async_trait]
impl Network for Wire {
    fn name(&self) -> &str {
        &self.name
    }

    async fn restrict(&self, _: Egress) -> Result<(), NetworkError> {
        Ok(())
    }

    async fn connect(&self, _port: u16, limit: Duration) -> io::Result<Box<dyn AppStream>> {
        let silent = || io::Error::from(io::ErrorKind::TimedOut);
        let found = {
            let vms = self.world.vms.lock().unwrap_or_else(PoisonError::into_inner);
            vms.values().find(|vm| vm.network == self.name && vm.lives()).cloned()
        };
        let Some(vm) = found else {
            sleep(limit).await;
            return Err(silent());
        };
        let connecting = async {
            if self.world.call(self.life, &vm.who, "connect").await == Verdict::Fails {
                return Err(io::Error::from(io::ErrorKind::HostUnreachable));
            }
            vm.runs().await;
            let (ours, theirs) = tokio::io::duplex(BUFFER);
            let guest = Guest { world: Arc::clone(&self.world), vm: Arc::clone(&vm) };
            tokio::spawn(guest.serve(theirs));
            Ok(Box::new(ours) as Box<dyn AppStream>)
        };
        timeout(limit, connecting).await.unwrap_or_else(|_| Err(silent()))
    }
}

impl Pretended {
    /// The platform of this life.
    pub fn new(world: &Arc<World>, life: u32) -> Self {
        Self { world: Arc::clone(world), life, claims: Claims::default() }
    }

    fn wire(&self, name: &str, held: Arc<()>) -> SharedNetwork {
        Arc::new(Wire { world: Arc::clone(&self.world), life: self.life, name: name.to_owned(), _held: held })
    }

    fn handle(&self, vm: Arc<PretendVm>) -> SharedVm {
        Arc::new(Handle { world: Arc::clone(&self.world), life: self.life, vm })
    }

    /// The networks there are.
    fn networks(&self) -> BTreeSet<String> {
        self.world.networks.lock().unwrap_or_else(PoisonError::into_inner).0.clone()
    }

    async fn remove(&self, work: Work<'_, ()>) {
        if self.world.call(self.life, COMMON, "give back network").await == Verdict::Fails {
            return;
        }
        let name = name_of(work.slot());
        for vm in self.vms() {
            if vm.lives() && vm.network == name {
                self.world.violated(format_args!("the network of {} goes while it lives", self.world.name(&vm.who)));
            }
        }
        self.world.networks.lock().unwrap_or_else(PoisonError::into_inner).0.remove(&name);
        work.free();
    }

    fn vms(&self) -> Vec<Arc<PretendVm>> {
        vms(&self.world)
    }

    async fn end(&self, vm: &PretendVm, kind: &'static str) -> Result<(), KillError> {
        if self.world.call(self.life, &vm.who, kind).await == Verdict::Fails {
            vm.doom();
            return Err(KillError::StillThere { pid: vm.pid });
        }
        vm.end(&self.world, ExitReport { signal: Some(9), ..ExitReport::default() });
        Ok(())
    }
}

/// Starts a VM of this name.
fn start(
    world: &Arc<World>,
    life: u32,
    who: String,
    plan: &VmPlan,
    restored: Option<(Devices, Memory)>,
) -> io::Result<SharedVm> {
    let disk = File::options().read(true).write(true).open(&plan.scratch_disk)?;
    let shared = matches!(plan.memory, MemoryBacking::Shared(_));
    let (restored, memory) = match restored {
        Some((devices, memory)) => (Some(devices), memory),
        None => {
            let file = File::options().read(true).write(shared).open(plan.memory.path())?;
            (None, Memory::of(file, shared))
        }
    };
    let pid = {
        let mut networks = world.networks.lock().unwrap_or_else(PoisonError::into_inner);
        networks.1 += 1;
        networks.1
    };
    std::fs::write(plan.dir.join(RECORD), pid.to_string())?;
    let heavy = world.is_heavy(&who);
    let vm = PretendVm::new(Parts {
        pid,
        who,
        dir: plan.dir.clone(),
        network: plan.network.name().to_owned(),
        memory,
        disk,
        heavy,
        restored,
    });
    for other in vms(world) {
        if other.lives() && (other.who == vm.who || other.network == vm.network) {
            let (name, other) = (world.name(&vm.who), world.name(&other.who));
            world.violated(format_args!("a VM of {name} is started beside one of {other}"));
        }
    }
    world.vms.lock().unwrap_or_else(PoisonError::into_inner).insert(pid, Arc::clone(&vm));
    Ok(Arc::new(Handle { world: Arc::clone(world), life, vm }))
}

/// Every VM there is, and was.
fn vms(world: &World) -> Vec<Arc<PretendVm>> {
    world.vms.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
}

fn start_error(source: io::Error) -> StartError {
    StartError::Control { source: Box::new(source) }
}

/// What waits to be a VM: a plan. Its process is started when it is loaded, as Firecracker's is.
struct Prepared {
    world: Arc<World>,
    life: u32,
    plan: VmPlan,
}

#[async_trait::async_trait]
impl PreparedVm for Prepared {
    fn has_exited(&self) -> bool {
        false
    }

    async fn end(self: Box<Self>) {}

    async fn load(
        self: Box<Self>,
        place: VmPlace,
        device_state: &Path,
        _stood_still: Standstill,
        pages: Option<ChangedPages>,
    ) -> Result<SharedVm, StartError> {
        let Self { world, life, plan } = *self;
        let plan = VmPlan { dir: place.dir, scratch_disk: place.scratch_disk, ..plan };
        // It is whose directory it is in.
        let who = plan.dir.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy().into_owned();
        if world.call(life, &who, "restore").await == Verdict::Fails {
            return Err(start_error(refused()));
        }
        let devices = std::fs::read(device_state).map_err(start_error)?;
        let devices: Devices =
            serde_json::from_slice(&devices).map_err(|error| start_error(io::Error::other(error)))?;
        let file = File::open(plan.memory.path()).map_err(start_error)?;
        let memory = match pages {
            None => Memory::of(file, false),
            Some(pages) => {
                let applied = tokio::task::spawn_blocking(move || {
                    let mut memory = Memory::of(file, false);
                    (pages.apply)(&mut |offset, bytes| {
                        for (number, page) in (offset / PAGE as u64..).zip(bytes.chunks(PAGE)) {
                            memory.write(number, page.into())?;
                        }
                        Ok(())
                    })
                    .map(|()| memory)
                });
                applied
                    .await
                    .map_err(|error| start_error(io::Error::other(error)))?
                    .map_err(|source| StartError::Control { source })?
            }
        };
        let vm = start(&world, life, who.clone(), &plan, Some((devices, memory))).map_err(start_error)?;
        world.done(life, &who, "restore").await;
        Ok(vm)
    }
}

#[async_trait::async_trait]
impl Platform for Pretended {
    fn free_disk_bytes(&self, _: &Path) -> io::Result<u64> {
        Ok(if self.world.disk_is_full() { 0 } else { FREE_BYTES })
    }

    fn free_memory_bytes(&self) -> Option<u64> {
        None
    }

    fn vmm_version(&self) -> io::Result<String> {
        Ok("pretended".to_owned())
    }

    async fn take_network(&self) -> Result<SharedNetwork, NetworkError> {
        if self.world.call(self.life, COMMON, "take network").await == Verdict::Fails {
            return Err(NetworkError::Failed { program: "ip", stderr: "the simulation says no".to_owned() });
        }
        let slot = {
            let mut networks = self.world.networks.lock().unwrap_or_else(PoisonError::into_inner);
            networks.1 += 1;
            let slot = networks.1;
            networks.0.insert(name_of(slot));
            slot
        };
        let work = self.claims.reclaim(slot).expect("its number is new");
        self.world.done(self.life, COMMON, "take network").await;
        let held = Arc::new(());
        work.hand_over(Arc::downgrade(&held));
        Ok(self.wire(&name_of(slot), held))
    }

    fn adopt_network(&self, name: &str) -> Result<SharedNetwork, NetworkError> {
        if !self.networks().contains(name) {
            return Err(NetworkError::Open { name: name.to_owned(), source: io::ErrorKind::NotFound.into() });
        }
        let held = Arc::new(());
        self.claims.adopt(slot_of(name), Arc::downgrade(&held));
        Ok(self.wire(name, held))
    }

    /// None are counted: nothing in a pretended guest speaks of its own accord.
    fn network_bytes(&self, name: &str) -> Option<u64> {
        self.networks().contains(name).then_some(0)
    }

    async fn give_back_network(&self, name: &str) {
        if let Some(work) = self.claims.give_back(slot_of(name)) {
            self.remove(work).await;
        }
    }

    async fn give_back_abandoned_network(&self, name: &str) {
        if let Some(work) = self.claims.reclaim_abandoned(slot_of(name)) {
            self.remove(work).await;
        }
    }

    async fn reclaim(&self, recorded: &HashSet<String>) {
        let mut names = self.networks();
        names.extend(self.vms().iter().filter(|vm| vm.lives()).map(|vm| vm.network.clone()));
        names.extend(self.claims.abandoned().into_iter().map(name_of));
        for name in names.iter().filter(|name| !recorded.contains(*name)) {
            let Some(work) = self.claims.reclaim(slot_of(name)) else { continue };
            self.world.log(format_args!("reclaiming {name}"));
            let mut ended = true;
            for vm in self.vms().iter().filter(|vm| vm.network == *name && vm.lives()) {
                ended &= self.end(vm, "kill").await.is_ok();
            }
            if ended {
                self.remove(work).await;
            }
        }
    }

    async fn sweep_networks(&self, keep: &[String]) {
        for name in self.networks().iter().filter(|name| !keep.contains(name)) {
            self.give_back_network(name).await;
        }
    }

    fn prepare_ahead(&self) {}

    async fn stop(&self) {}

    async fn boot(&self, plan: &VmPlan) -> Result<SharedVm, StartError> {
        if self.world.call(self.life, &plan.name, "boot").await == Verdict::Fails {
            return Err(start_error(refused()));
        }
        let vm = start(&self.world, self.life, plan.name.clone(), plan, None).map_err(start_error)?;
        self.world.done(self.life, &plan.name, "boot").await;
        Ok(vm)
    }

    async fn prepare(&self, plan: &VmPlan) -> Result<Box<dyn PreparedVm>, StartError> {
        self.world.if_alive(self.life).await;
        std::fs::write(plan.dir.join(WAITS), plan.network.name()).map_err(start_error)?;
        Ok(Box::new(Prepared { world: Arc::clone(&self.world), life: self.life, plan: plan.clone() }))
    }

    async fn attach(&self, dir: &Path) -> Result<Option<SharedVm>, AttachError> {
        self.world.if_alive(self.life).await;
        let Some(pid) = std::fs::read_to_string(dir.join(RECORD)).ok().and_then(|pid| pid.parse::<u32>().ok()) else {
            return Ok(None);
        };
        let Some(vm) = self.vms().into_iter().find(|vm| vm.pid == pid && vm.dir == dir && vm.lives()) else {
            return Ok(None);
        };
        match self.world.call(self.life, &vm.who, "attach").await {
            Verdict::Fails => Err(AttachError::Control { pid, source: Box::new(refused()) }),
            Verdict::Does if !vm.lives() => Ok(None),
            Verdict::Does => Ok(Some(self.handle(vm))),
        }
    }

    async fn end_strays(&self, keep: &HashSet<u32>) {
        for vm in self.vms() {
            if !keep.contains(&vm.pid) && vm.lives() {
                let _ = self.end(&vm, "kill").await;
            }
        }
    }

    async fn end_vms_in(&self, network: &str) -> Result<(), KillError> {
        // One that somebody has again belongs to another VM by now.
        if !self.claims.is_abandoned(slot_of(network)) {
            return Ok(());
        }
        for vm in self.vms() {
            if vm.network == network && vm.lives() {
                self.end(&vm, "kill").await?;
            }
        }
        Ok(())
    }

    async fn build_root_disk(&self, job: &Job) -> Result<Built, BuildError> {
        if self.world.call(self.life, &job.tag, "build").await == Verdict::Fails {
            return Err(BuildError::from(builder::Cause::Cancelled));
        }
        let written = std::fs::write(&job.root_disk, b"root");
        let config = ImageConfig { cmd: vec!["app".to_owned()], exposed_ports: vec![8080], ..ImageConfig::default() };
        match written {
            Ok(()) => Ok(Built { config, root_disk_bytes: 4, code_install_bytes: 4 }),
            Err(source) => Err(BuildError::from(builder::Cause::File {
                step: "writing",
                path: PathBuf::from(&job.root_disk),
                source,
            })),
        }
    }

    async fn make_scratch_disk(&self, path: &Path, _: u64) -> Result<(), ScratchDiskError> {
        self.world.if_alive(self.life).await;
        let made = std::fs::write(path, vec![1; 4 * PAGE]);
        made.map_err(|source| ScratchDiskError::File { path: path.to_owned(), source })
    }

    async fn sweep_builds(&self) -> Result<(), BuildError> {
        Ok(())
    }
}
