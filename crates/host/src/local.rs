//! The host of this machine: its machines in memory, and the verbs.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex},
};

use api::{
    apart::{Place, Resident, Residents},
    directory::{AppStream, DialError, Dialer},
    host::{
        BuildFailure, BuildReport, BuildSpec, Found, Holdings, Host, HostError, HostEvent, ImageRef, MicrovmSpec,
        SuspendReport, Usage,
    },
    ids::{BuildId, MicrovmId, VmId},
    images::Architecture,
    shell::{Shell, ShellError},
    size::Size,
};
use tokio::{sync::mpsc, task::JoinHandle};

use crate::{
    capacity,
    config::HostConfig,
    ends,
    files::{self, MicrovmFiles, VersionFiles},
    launch,
    machine::{End, Machine},
    platform::Platform,
    ready::Ready,
    system::System,
    way::Way,
};

/// This machine.
pub struct LocalHost {
    pub(crate) config: HostConfig,
    pub(crate) platform: Arc<dyn Platform>,
    machines: Mutex<HashMap<MicrovmId, Arc<Machine>>>,
    /// Builds that go on.
    pub(crate) building: Arc<Mutex<HashSet<BuildId>>>,
    events: mpsc::UnboundedSender<HostEvent>,
    next_event: tokio::sync::Mutex<mpsc::UnboundedReceiver<HostEvent>>,
    pub(crate) ready: Arc<Ready>,
    /// The task that keeps them ready.
    pub(crate) preparing: Mutex<Option<JoinHandle<()>>>,
    pub(crate) itself: std::sync::Weak<Self>,
}

impl LocalHost {
    /// Prepares the machine: its directories and its packet rules.
    pub async fn start(config: HostConfig) -> Result<Arc<Self>, StartError> {
        make_directories(&config).await?;
        let platform = Arc::new(System::start(config.clone()).await?);
        Ok(Self::over(config, platform))
    }

    /// The same over another platform than this machine's own.
    pub async fn start_over(config: HostConfig, platform: Arc<dyn Platform>) -> Result<Arc<Self>, StartError> {
        make_directories(&config).await?;
        Ok(Self::over(config, platform))
    }

    fn over(config: HostConfig, platform: Arc<dyn Platform>) -> Arc<Self> {
        let ready = Arc::new(Ready::new(config.launches_ready, config.wakes_ready));
        // Unbounded, but each running microVM puts in one event at most.
        let (events, next_event) = mpsc::unbounded_channel();
        Arc::new_cyclic(|itself| Self {
            config,
            platform,
            machines: Mutex::default(),
            building: Arc::default(),
            events,
            next_event: tokio::sync::Mutex::new(next_event),
            ready: Arc::clone(&ready),
            preparing: Mutex::default(),
            itself: itself.clone(),
        })
    }

    /// Lets go of everything but the running microVMs, which stay, with their packet rules, for the
    /// next daemon.
    pub async fn stop(&self) {
        self.stop_preparing().await;
        self.platform.stop().await;
    }

    /// The only build of a version, or this one of several.
    pub(crate) fn version_files(&self, image: &ImageRef, among: Option<Architecture>) -> VersionFiles {
        VersionFiles::at(self.config.layout.build_files_dir(image, among))
    }

    pub(crate) fn microvm_files(&self, microvm_id: &MicrovmId) -> MicrovmFiles {
        MicrovmFiles::of(&self.config.layout, microvm_id)
    }

    pub(crate) fn machine(&self, microvm_id: &MicrovmId) -> Option<Arc<Machine>> {
        self.machines.lock().expect("no holder of this lock panics").get(microvm_id).cloned()
    }

    /// The machine, if it is this incarnation.
    fn incarnation(&self, microvm_id: &MicrovmId, vm_id: &VmId) -> Option<Arc<Machine>> {
        self.machine(microvm_id).filter(|machine| machine.vm_id == *vm_id)
    }

    /// Makes a running VM known, and watches it.
    pub(crate) fn admit(&self, machine: Machine) -> VmId {
        let machine = Arc::new(machine);
        let (microvm_id, vm_id) = (machine.spec.microvm_id, machine.vm_id);
        self.machines.lock().expect("no holder of this lock panics").insert(microvm_id, Arc::clone(&machine));
        let (itself, platform) = (self.itself.clone(), Arc::clone(&self.platform));
        tokio::spawn(async move {
            let end = machine.ended(&*platform).await;
            if let Some(host) = itself.upgrade() {
                host.ended(&machine, end).await;
            }
        });
        vm_id
    }

    /// Takes a machine out, if it is still that incarnation: whoever gets it ends it.
    pub(crate) fn dismiss(&self, microvm_id: &MicrovmId, vm_id: VmId) -> Option<Arc<Machine>> {
        let mut machines = self.machines.lock().expect("no holder of this lock panics");
        machines.get(microvm_id).is_some_and(|machine| machine.vm_id == vm_id).then(|| machines.remove(microvm_id))?
    }

    /// A VM ended by itself: removes what is left of it and tells control.
    async fn ended(&self, machine: &Machine, end: End) {
        let _verb = machine.verb.lock().await;
        let microvm_id = machine.spec.microvm_id;
        if self.dismiss(&microvm_id, machine.vm_id).is_none() {
            return;
        }
        let reason = match end {
            End::App(end) => ends::of_app(&end),
            End::Vmm(report, console) => ends::of_vm(&report, &console),
        };
        tracing::info!(microvm = %microvm_id, reason, "a microVM ended");
        self.clear(machine).await;
        if let Err(error) = files::remove_dir(self.microvm_files(&microvm_id).dir().clone()).await {
            tracing::error!(microvm = %microvm_id, %error, "cannot remove what is left of a microVM");
        }
        // The receiver lives as long as this host.
        let _ = self.events.send(HostEvent::Ended { microvm_id, vm_id: machine.vm_id, reason });
    }

    /// Ends the VM of a dismissed machine and frees its namespace.
    pub(crate) async fn clear(&self, machine: &Machine) {
        machine.over.cancel();
        launch::end_vm(&*machine.vm).await;
        self.platform.give_back_network(machine.namespace.name()).await;
    }
}

async fn make_directories(config: &HostConfig) -> Result<(), StartError> {
    for dir in ["images", "builds", "microvms", "ready", "logs", "logs/builds", "logs/microvms"] {
        let dir = config.layout.data.join(dir);
        // Guests' memory and disks hold their users' secrets.
        let made = tokio::fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir).await;
        made.map_err(|source| StartError::Directory { dir, source })?;
    }
    Ok(())
}

/// Why a host cannot work.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A directory cannot be made.
    #[error("cannot make directory {}", dir.display())]
    Directory {
        /// Which.
        dir: std::path::PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The VMM cannot be made ready for its jail.
    #[error("cannot prepare the VMM")]
    Program(#[source] vmm::ProgramError),
    /// The packet rules cannot be installed.
    #[error("cannot set up the network of microVMs")]
    Network(#[source] crate::network::NetworkError),
}

#[async_trait::async_trait]
impl Host for LocalHost {
    /// This machine's alone: an app cannot be started, so no snapshot can be taken, on the processors of another.
    fn architectures(&self) -> Vec<Architecture> {
        vec![Architecture::HOST]
    }

    async fn build(&self, spec: BuildSpec) -> Result<BuildReport, BuildFailure> {
        self.build_image(spec).await
    }

    async fn remove_image(&self, image: &ImageRef) -> Result<(), HostError> {
        self.remove_image_files(image).await
    }

    async fn room_for(&self, size: Size, launching: u32) -> Result<(), HostError> {
        capacity::check_room(&*self.platform, &self.config.layout.data, size, launching)
    }

    async fn run(&self, spec: &MicrovmSpec) -> Result<VmId, HostError> {
        self.run_microvm(spec).await
    }

    async fn suspend(&self, spec: &MicrovmSpec) -> Result<SuspendReport, HostError> {
        self.suspend_microvm(spec).await
    }

    async fn resume(&self, spec: &MicrovmSpec) -> Result<VmId, HostError> {
        self.resume_microvm(spec).await
    }

    async fn terminate(&self, spec: &MicrovmSpec) -> Result<(), HostError> {
        self.terminate_microvm(spec).await
    }

    async fn reconcile(
        &self,
        microvms: &[MicrovmSpec],
        images: &[ImageRef],
    ) -> Result<Vec<(MicrovmId, Found)>, HostError> {
        self.reconcile_all(microvms, images).await
    }

    async fn holdings(&self) -> Result<Holdings, HostError> {
        self.list_files().await
    }

    async fn tidy(&self, nobodys: &Holdings) -> Result<(), HostError> {
        self.remove_nobodys(nobodys).await
    }

    async fn usage(&self, microvm: &MicrovmId, vm: &VmId) -> Option<Usage> {
        let machine = self.incarnation(microvm, vm)?;
        let network_bytes = self.platform.network_bytes(machine.namespace.name())?;
        Some(Usage { cpu: machine.vm.cpu_time()?, network_bytes })
    }

    async fn next_event(&self) -> HostEvent {
        match self.next_event.lock().await.recv().await {
            Some(event) => event,
            // Cannot be: this host holds a sender.
            None => std::future::pending().await,
        }
    }
}

#[async_trait::async_trait]
impl Dialer for LocalHost {
    async fn dial(&self, microvm: &MicrovmId, vm: &VmId, port: u16) -> Result<Box<dyn AppStream>, DialError> {
        let machine = self.incarnation(microvm, vm).ok_or(DialError::Gone)?;
        Way::to(&machine).dial(port).await
    }

    async fn shell(&self, microvm: &MicrovmId, vm: &VmId, command: Option<String>) -> Result<Shell, ShellError> {
        let machine = self.incarnation(microvm, vm).ok_or(ShellError::Gone)?;
        Way::to(&machine).shell(command).await
    }
}

impl Residents for LocalHost {
    fn resident(&self, microvm: &MicrovmId, vm: &VmId) -> Option<Resident> {
        let machine = self.incarnation(microvm, vm)?;
        let place = Place { namespace: machine.namespace.name().to_owned(), agent: machine.agent().generation() };
        Some(Resident { place, over: Box::pin(machine.over.clone().cancelled_owned()) })
    }
}
