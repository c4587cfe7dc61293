//! A host whose every answer is chosen by the test.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use api::{
    host::{
        BuildFailure, BuildReport, BuildSpec, Egress, Found, Holdings, Host, HostError, HostEvent, ImageRef,
        MicrovmSpec, SuspendReport, Usage,
    },
    ids::{MicrovmId, VmId},
    images::Architecture,
    size::Size,
    word::Word,
};
use tokio::sync::{mpsc, watch};

/// What a host can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Call {
    Build,
    RemoveImage,
    Room,
    Run,
    Suspend,
    Resume,
    Terminate,
    Holdings,
}

#[derive(Default)]
struct World {
    vms: HashMap<MicrovmId, Found>,
    busy: HashSet<MicrovmId>,
    calls: Vec<(Call, Option<MicrovmId>)>,
    failures: HashMap<Call, VecDeque<HostError>>,
    broken_rules: Vec<String>,
    architectures: Vec<Architecture>,
    images: HashSet<(ImageRef, Option<Architecture>)>,
    launched_for: HashMap<MicrovmId, Option<Architecture>>,
    egress: HashMap<MicrovmId, Egress>,
    usage: HashMap<MicrovmId, Usage>,
}

/// A pretend host: a map of what there is, failures that the test queues up, and calls that the test holds back.
pub(crate) struct TestHost {
    world: Mutex<World>,
    /// Calls that are held back, and how many of each are let through all the same.
    held: watch::Sender<HashMap<Call, u32>>,
    events: (mpsc::UnboundedSender<HostEvent>, tokio::sync::Mutex<mpsc::UnboundedReceiver<HostEvent>>),
}

struct Busy<'a>(&'a TestHost, MicrovmId);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.world().busy.remove(&self.1);
    }
}

impl TestHost {
    pub(crate) fn new() -> Arc<Self> {
        let (sender, receiver) = mpsc::unbounded_channel();
        Arc::new(Self {
            world: Mutex::new(World { architectures: Architecture::ALL.to_vec(), ..World::default() }),
            held: watch::Sender::default(),
            events: (sender, tokio::sync::Mutex::new(receiver)),
        })
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next call of this kind fails so.
    pub(crate) fn fail(&self, call: Call, error: HostError) {
        self.world().failures.entry(call).or_default().push_back(error);
    }

    /// Calls of this kind, also those already begun, do not return until released.
    pub(crate) fn hold(&self, call: Call) {
        self.held.send_modify(|held| {
            held.insert(call, 0);
        });
    }

    /// One call of this kind that is held back, or the next one, is let through.
    pub(crate) fn let_one_through(&self, call: Call) {
        self.held.send_modify(|held| *held.entry(call).or_default() += 1);
    }

    pub(crate) fn release(&self, call: Call) {
        self.held.send_modify(|held| {
            held.remove(&call);
        });
    }

    pub(crate) fn count(&self, call: Call) -> usize {
        self.world().calls.iter().filter(|(it, _)| *it == call).count()
    }

    pub(crate) fn terminated(&self, id: &MicrovmId) -> bool {
        self.world().calls.contains(&(Call::Terminate, Some(*id)))
    }

    pub(crate) fn vm(&self, id: &MicrovmId) -> Found {
        self.world().vms.get(id).copied().unwrap_or(Found::Nothing)
    }

    /// As if something had happened while the daemon was down.
    pub(crate) fn set(&self, id: &MicrovmId, found: Found) {
        self.world().vms.insert(*id, found);
    }

    /// Where the packets of a microVM may go, as the host was told.
    pub(crate) fn egress(&self, id: &MicrovmId) -> Option<Egress> {
        self.world().egress.get(id).copied()
    }

    /// Whether it has anything of a version.
    /// A microVM uses so much more processor time, and sends so many bytes more.
    pub(crate) fn work(&self, id: &MicrovmId, cpu: Duration, network_bytes: u64) {
        let mut world = self.world();
        let usage = world.usage.entry(*id).or_insert(Usage { cpu: Duration::ZERO, network_bytes: 0 });
        usage.cpu += cpu;
        usage.network_bytes += network_bytes;
    }

    pub(crate) fn has_image(&self, image: &ImageRef) -> bool {
        self.world().images.iter().any(|(it, _)| it == image)
    }

    /// Which of a version's builds it has, where it was told that there are several.
    pub(crate) fn builds(&self, image: &ImageRef) -> Vec<Architecture> {
        let world = self.world();
        let mut builds: Vec<_> = world.images.iter().filter(|it| it.0 == *image).filter_map(|it| it.1).collect();
        builds.sort_unstable();
        builds
    }

    /// What it builds for and runs from now on.
    pub(crate) fn become_for(&self, architectures: &[Architecture]) {
        self.world().architectures = architectures.to_vec();
    }

    /// Which build a microVM was launched from, where its version has several.
    pub(crate) fn launched_for(&self, id: &MicrovmId) -> Option<Architecture> {
        self.world().launched_for.get(id).copied().flatten()
    }

    /// How many builds it has.
    pub(crate) fn images(&self) -> usize {
        self.world().images.len()
    }

    /// Forgets the failures that were still to come.
    pub(crate) fn forgive(&self) {
        self.world().failures.clear();
    }

    /// A VM ends by itself.
    pub(crate) fn crash(&self, microvm_id: &MicrovmId, reason: &str) {
        let Found::Running(vm_id) = self.vm(microvm_id) else { panic!("it does not run") };
        self.world().vms.remove(microvm_id);
        self.report(microvm_id, vm_id, reason);
    }

    pub(crate) fn report(&self, microvm_id: &MicrovmId, vm_id: VmId, reason: &str) {
        let event = HostEvent::Ended { microvm_id: *microvm_id, vm_id, reason: reason.into() };
        self.events.0.send(event).expect("the host lives");
    }

    /// Rules of the contract that control broke.
    pub(crate) fn broken_rules(&self) -> Vec<String> {
        self.world().broken_rules.clone()
    }

    async fn gate(&self, call: Call) {
        let mut changes = self.held.subscribe();
        loop {
            changes.wait_for(|held| held.get(&call) != Some(&0)).await.expect("the host lives");
            let mut through = false;
            // Of several that wait for the same place, one gets it.
            self.held.send_if_modified(|held| match held.get_mut(&call) {
                None => {
                    through = true;
                    false
                }
                Some(0) => false,
                Some(left) => {
                    *left -= 1;
                    through = true;
                    true
                }
            });
            if through {
                return;
            }
        }
    }

    async fn verb(&self, call: Call, id: MicrovmId) -> Result<(), HostError> {
        let _busy = {
            let mut world = self.world();
            world.calls.push((call, Some(id)));
            if !world.busy.insert(id) {
                world.broken_rules.push(format!("{call:?} while another verb was in progress"));
            }
            let state = world.vms.get(&id).copied().unwrap_or(Found::Nothing);
            let sensible = match call {
                Call::Run => state == Found::Nothing,
                Call::Suspend => matches!(state, Found::Running(_)),
                Call::Resume => state == Found::Suspended,
                Call::Terminate | Call::Build | Call::RemoveImage | Call::Room | Call::Holdings => true,
            };
            // A VM may end before control can know.
            if !sensible && state != Found::Nothing {
                world.broken_rules.push(format!("{call:?} of a microVM that is {state:?}"));
            }
            Busy(self, id)
        };
        self.gate(call).await;
        let mut world = self.world();
        if let Some(error) = world.failures.get_mut(&call).and_then(VecDeque::pop_front) {
            if matches!(error, HostError::Lost { .. }) {
                world.vms.remove(&id);
            }
            return Err(error);
        }
        match call {
            Call::Run | Call::Resume => world.vms.insert(id, Found::Running(VmId::random())),
            Call::Suspend => world.vms.insert(id, Found::Suspended),
            Call::Terminate | Call::Build | Call::RemoveImage | Call::Room | Call::Holdings => world.vms.remove(&id),
        };
        Ok(())
    }

    fn vm_id(&self, id: &MicrovmId) -> VmId {
        match self.vm(id) {
            Found::Running(vm_id) => vm_id,
            Found::Suspended | Found::Nothing => VmId::random(),
        }
    }
}

#[async_trait::async_trait]
impl Host for TestHost {
    fn architectures(&self) -> Vec<Architecture> {
        self.world().architectures.clone()
    }

    async fn build(&self, spec: BuildSpec) -> Result<BuildReport, BuildFailure> {
        self.world().calls.push((Call::Build, None));
        self.gate(Call::Build).await;
        let mut world = self.world();
        if let Some(error) = world.failures.get_mut(&Call::Build).and_then(VecDeque::pop_front) {
            return Err(BuildFailure { reason: error.to_string(), code_install_bytes: Some(3) });
        }
        let among = spec.among();
        if !world.images.insert((spec.image, among)) {
            world.broken_rules.push(format!("two builds in one place: {among:?}"));
        }
        Ok(BuildReport { memory_snapshot_bytes: 1, code_install_bytes: 2, disk_snapshot_bytes: 4 })
    }

    async fn remove_image(&self, image: &ImageRef) -> Result<(), HostError> {
        self.world().calls.push((Call::RemoveImage, None));
        self.gate(Call::RemoveImage).await;
        let mut world = self.world();
        if let Some(error) = world.failures.get_mut(&Call::RemoveImage).and_then(VecDeque::pop_front) {
            return Err(error);
        }
        world.images.retain(|(it, _)| it != image);
        Ok(())
    }

    async fn room_for(&self, _: Size, _: u32) -> Result<(), HostError> {
        let mut world = self.world();
        world.failures.get_mut(&Call::Room).and_then(VecDeque::pop_front).map_or(Ok(()), Err)
    }

    async fn run(&self, spec: &MicrovmSpec) -> Result<VmId, HostError> {
        {
            let mut world = self.world();
            world.egress.insert(spec.microvm_id, spec.egress);
            world.launched_for.insert(spec.microvm_id, spec.architecture);
            if !world.images.contains(&(spec.image.clone(), spec.architecture)) {
                world.broken_rules.push(format!("run of a build that is not there: {:?}", spec.architecture));
            }
        }
        self.verb(Call::Run, spec.microvm_id).await?;
        Ok(self.vm_id(&spec.microvm_id))
    }

    async fn suspend(&self, spec: &MicrovmSpec) -> Result<SuspendReport, HostError> {
        self.verb(Call::Suspend, spec.microvm_id).await?;
        Ok(SuspendReport { memory_bytes: 1, device_bytes: 1 })
    }

    async fn resume(&self, spec: &MicrovmSpec) -> Result<VmId, HostError> {
        self.verb(Call::Resume, spec.microvm_id).await?;
        Ok(self.vm_id(&spec.microvm_id))
    }

    async fn terminate(&self, spec: &MicrovmSpec) -> Result<(), HostError> {
        self.verb(Call::Terminate, spec.microvm_id).await
    }

    async fn reconcile(
        &self,
        microvms: &[MicrovmSpec],
        images: &[ImageRef],
    ) -> Result<Vec<(MicrovmId, Found)>, HostError> {
        let mut world = self.world();
        world.vms.retain(|id, _| microvms.iter().any(|spec| spec.microvm_id == *id));
        world.images.retain(|(image, _)| images.contains(image));
        Ok(microvms
            .iter()
            .map(|spec| (spec.microvm_id, world.vms.get(&spec.microvm_id).copied().unwrap_or(Found::Nothing)))
            .collect())
    }

    async fn holdings(&self) -> Result<Holdings, HostError> {
        self.gate(Call::Holdings).await;
        let world = self.world();
        let images: HashSet<ImageRef> = world.images.iter().map(|(image, _)| image.clone()).collect();
        Ok(Holdings { microvms: world.vms.keys().copied().collect(), images: images.into_iter().collect() })
    }

    async fn tidy(&self, nobodys: &Holdings) -> Result<(), HostError> {
        let mut world = self.world();
        world.vms.retain(|id, _| !nobodys.microvms.contains(id));
        world.images.retain(|(image, _)| !nobodys.images.contains(image));
        Ok(())
    }

    async fn usage(&self, microvm: &MicrovmId, _: &VmId) -> Option<Usage> {
        Some(self.world().usage.get(microvm).copied().unwrap_or(Usage { cpu: Duration::ZERO, network_bytes: 0 }))
    }

    async fn next_event(&self) -> HostEvent {
        match self.events.1.lock().await.recv().await {
            Some(event) => event,
            None => std::future::pending().await,
        }
    }
}
