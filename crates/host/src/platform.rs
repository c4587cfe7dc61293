//! What the verbs, the builds and the reconciliation stand on: VMs, the networks they are in, room for both, and the
//! container builder. The module `system` is this machine's own. Nothing here decides: what is true after a crash at any
//! step is in what stands above.

use std::{
    collections::HashSet,
    io,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use api::{directory::AppStream, host::Egress, size::Size};
use builder::{BuildError, Built, Job, ScratchDiskError};
use vmm::{
    AttachError, ChangedPages, Changes, Console, ControlError, ExitReport, KillError, MemoryBacking, RunState,
    SaveError, Standstill, StartError,
};

use crate::network::NetworkError;

/// A handle on a VM; many may share it, and dropping them all leaves the VM as it is.
pub type SharedVm = Arc<dyn Vm>;

/// A handle on a network; many may share it.
pub type SharedNetwork = Arc<dyn Network>;

/// A VM whose process outlives this one. What each call promises is said at [`vmm::Vm`].
#[async_trait::async_trait]
pub trait Vm: Send + Sync + 'static {
    /// The id of its process.
    fn pid(&self) -> u32;

    /// The ids of all of its processes.
    fn pids(&self) -> Vec<u32>;

    /// Its directory.
    fn dir(&self) -> &Path;

    /// Processor time it has used; `None` if it is no more, or that cannot be told.
    fn cpu_time(&self) -> Option<Duration>;

    /// Whether it runs just now or wants to, rather than wait, as it does for a guest that is idle.
    fn at_work(&self) -> bool;

    /// Stops the guest.
    async fn pause(&self) -> Result<(), ControlError>;

    /// Lets the guest go on.
    async fn resume(&self) -> Result<(), ControlError>;

    /// What it is doing.
    async fn run_state(&self) -> Result<RunState, ControlError>;

    /// Saves all of a paused VM that was booted.
    async fn snapshot_full(&self, state: &Path) -> Result<(), SaveError>;

    /// Saves what a paused VM has changed since it was restored.
    async fn snapshot_incremental(&self, state: &Path) -> Result<Changes, SaveError>;

    /// The parts of its memory that have been looked at since it was restored: a hint for the next one.
    async fn touched(&self) -> io::Result<Vec<Range<u64>>>;

    /// What its serial console writes.
    async fn console(&self) -> Result<Console, ControlError>;

    /// Ends it; returns when its process is gone.
    async fn kill(&self) -> Result<(), KillError>;

    /// Returns when its process is gone.
    async fn exited(&self) -> ExitReport;
}

/// A network with one VM in it, or none yet.
#[async_trait::async_trait]
pub trait Network: Send + Sync + 'static {
    /// By which it is found again.
    fn name(&self) -> &str;

    /// Lets packets go no further than this, from now on. What the host asks of the guest is not held by it.
    async fn restrict(&self, egress: Egress) -> Result<(), NetworkError>;

    /// Connects to a port of the guest.
    async fn connect(&self, port: u16, timeout: Duration) -> io::Result<Box<dyn AppStream>>;
}

/// A VM without its state. Dropped, it is ended.
#[async_trait::async_trait]
pub trait PreparedVm: Send + Sync + 'static {
    /// Whether its process has ended, so that it is good for nothing any more.
    fn has_exited(&self) -> bool;

    /// Ends it; returns when its process is gone.
    async fn end(self: Box<Self>);

    /// Gives it a snapshot's state, of a guest that has `stood_still` since then; returns when it is loaded, standing still.
    async fn load(
        self: Box<Self>,
        place: VmPlace,
        device_state: &Path,
        stood_still: Standstill,
        pages: Option<ChangedPages>,
    ) -> Result<SharedVm, StartError>;
}

/// Where the files of a prepared VM are by the time it is loaded: the same ones, perhaps renamed.
#[derive(Debug)]
pub struct VmPlace {
    /// Its directory.
    pub dir: PathBuf,
    /// The disk it writes.
    pub scratch_disk: PathBuf,
}

/// What a VM is made of, as far as the host decides that.
#[derive(Clone)]
pub struct VmPlan {
    /// Shown in the process list.
    pub name: String,
    /// Its processors and memory.
    pub size: Size,
    /// The disk it only reads.
    pub root_disk: PathBuf,
    /// The disk it writes.
    pub scratch_disk: PathBuf,
    /// Where its memory is.
    pub memory: MemoryBacking,
    /// A directory for it alone, which must exist.
    pub dir: PathBuf,
    /// The network it is in.
    pub network: SharedNetwork,
}

/// All a host needs of its machine.
#[async_trait::async_trait]
pub trait Platform: Send + Sync + 'static {
    /// Bytes free on the disk under this directory.
    fn free_disk_bytes(&self, dir: &Path) -> io::Result<u64>;

    /// Bytes of memory that could be had without swapping, if that can be known.
    fn free_memory_bytes(&self) -> Option<u64>;

    /// The VMM's version, for manifests.
    fn vmm_version(&self) -> io::Result<String>;

    /// A network for one VM.
    async fn take_network(&self) -> Result<SharedNetwork, NetworkError>;

    /// Takes over the network of a VM that outlived a daemon.
    fn adopt_network(&self, name: &str) -> Result<SharedNetwork, NetworkError>;

    /// Bytes that crossed between a network and other machines, both ways, if that can be told.
    fn network_bytes(&self, name: &str) -> Option<u64>;

    /// Destroys a network whose VM is gone. One that cannot be destroyed is not used again.
    async fn give_back_network(&self, name: &str);

    /// The same, unless somebody has it: of a network that is known by its name alone, which may have gone to another VM.
    async fn give_back_abandoned_network(&self, name: &str);

    /// Ends VMs and destroys networks that nobody has and none of these names speaks for. At any time: what somebody makes,
    /// uses or removes meanwhile is left alone.
    async fn reclaim(&self, recorded: &HashSet<String>);

    /// Destroys every network but these, and what else is left of VMs that are gone.
    async fn sweep_networks(&self, keep: &[String]);

    /// Starts to make ahead of time what launches need; only after a sweep.
    fn prepare_ahead(&self);

    /// Lets go of everything but what running VMs need.
    async fn stop(&self);

    /// Starts a VM at its kernel; returns when it runs.
    async fn boot(&self, plan: &VmPlan) -> Result<SharedVm, StartError>;

    /// Starts a VM that waits for a snapshot's state.
    async fn prepare(&self, plan: &VmPlan) -> Result<Box<dyn PreparedVm>, StartError>;

    /// Finds the VM of this directory; `None` if there is none or it is gone.
    async fn attach(&self, dir: &Path) -> Result<Option<SharedVm>, AttachError>;

    /// Ends every VM but those of these processes.
    async fn end_strays(&self, keep: &HashSet<u32>);

    /// Ends whatever runs in this network.
    async fn end_vms_in(&self, network: &str) -> Result<(), KillError>;

    /// Builds a root disk.
    async fn build_root_disk(&self, job: &Job) -> Result<Built, BuildError>;

    /// Makes an empty disk of this many GiB.
    async fn make_scratch_disk(&self, path: &Path, gib: u64) -> Result<(), ScratchDiskError>;

    /// Removes what is left of builds of root disks.
    async fn sweep_builds(&self) -> Result<(), BuildError>;
}
