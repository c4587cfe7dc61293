//! A host for control's own tests, whose every answer is chosen by the test.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use api::{
    arn::ImageArn,
    error::ServiceError,
    hooks::HookPlan,
    host::{
        BuildFailure, BuildReport, BuildSpec, Egress, Found, Host, HostError, HostEvent, ImageRef, MicrovmSpec,
        SuspendReport,
    },
    ids::{EndpointId, ImageId, ImageVersion, MicrovmId, VmId},
    images::{
        CodeArtifact, CreateMicrovmImageRequest, CreateMicrovmImageResponse, DeleteMicrovmImageRequest,
        DeleteMicrovmImageResponse, DeleteMicrovmImageVersionRequest, DeleteMicrovmImageVersionResponse,
        GetMicrovmImageRequest, GetMicrovmImageResponse, GetMicrovmImageVersionResponse, ImageState,
        ListMicrovmImageVersionsRequest, UpdateMicrovmImageRequest, UpdateMicrovmImageResponse,
        UpdateMicrovmImageVersionRequest, UpdateMicrovmImageVersionResponse, VersionRequest, VersionStatus,
        base_image_arn,
    },
    microvms::{
        GetMicrovmRequest, GetMicrovmResponse, IdlePolicy, MicrovmState as State, ResumeMicrovmRequest,
        RunMicrovmRequest, RunMicrovmResponse, SuspendMicrovmRequest, TerminateMicrovmRequest,
    },
    page::PageRequest,
    size::Size,
    token::TokenKey,
};
use tokio::sync::{mpsc, watch};

use crate::{
    Control, ControlConfig,
    auth::Caller,
    http::Operations,
    microvms::record::{Contract, Fate, Record},
};

/// A microVM that was just asked for.
pub(crate) fn record() -> Record {
    Record {
        sequence: 1,
        spec: MicrovmSpec {
            microvm_id: MicrovmId::random(),
            image: ImageRef { image_id: ImageId::random(), version: ImageVersion::FIRST },
            size: Size::DEFAULT,
            hooks: HookPlan::default(),
            run_hook_payload: None,
            egress: Egress::Internet,
        },
        endpoint: EndpointId::random(),
        contract: Contract {
            image_arn: ImageArn::new("us-east-1", "000000000000", "a"),
            execution_role_arn: None,
            idle_policy: None,
            maximum_duration_s: 28_800,
            ingress: vec![],
            egress: vec![],
        },
        started_at: 0,
        fate: Fate::pending(),
    }
}

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
}

#[derive(Default)]
struct World {
    vms: HashMap<MicrovmId, Found>,
    busy: HashSet<MicrovmId>,
    calls: Vec<(Call, Option<MicrovmId>)>,
    failures: HashMap<Call, VecDeque<HostError>>,
    broken_rules: Vec<String>,
    images: HashSet<ImageRef>,
    egress: HashMap<MicrovmId, Egress>,
}

/// A pretend host: a map of what there is, failures that the test queues up, and calls that the test holds back.
pub(crate) struct TestHost {
    world: Mutex<World>,
    held: watch::Sender<HashSet<Call>>,
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
            world: Mutex::default(),
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
            held.insert(call);
        });
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

    pub(crate) fn has_image(&self, image: &ImageRef) -> bool {
        self.world().images.contains(image)
    }

    /// How many image versions it has.
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
        self.held.subscribe().wait_for(|held| !held.contains(&call)).await.expect("the host lives");
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
                Call::Terminate | Call::Build | Call::RemoveImage | Call::Room => true,
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
            Call::Terminate | Call::Build | Call::RemoveImage | Call::Room => world.vms.remove(&id),
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
    async fn build(&self, spec: BuildSpec) -> Result<BuildReport, BuildFailure> {
        self.world().calls.push((Call::Build, None));
        self.gate(Call::Build).await;
        let mut world = self.world();
        if let Some(error) = world.failures.get_mut(&Call::Build).and_then(VecDeque::pop_front) {
            return Err(BuildFailure { reason: error.to_string(), code_install_bytes: Some(3) });
        }
        world.images.insert(spec.image);
        Ok(BuildReport { memory_snapshot_bytes: 1, code_install_bytes: 2, disk_snapshot_bytes: 4 })
    }

    async fn remove_image(&self, image: &ImageRef) -> Result<(), HostError> {
        self.world().calls.push((Call::RemoveImage, None));
        self.gate(Call::RemoveImage).await;
        let mut world = self.world();
        if let Some(error) = world.failures.get_mut(&Call::RemoveImage).and_then(VecDeque::pop_front) {
            return Err(error);
        }
        world.images.remove(image);
        Ok(())
    }

    async fn room_for(&self, _: Size, _: u32) -> Result<(), HostError> {
        let mut world = self.world();
        world.failures.get_mut(&Call::Room).and_then(VecDeque::pop_front).map_or(Ok(()), Err)
    }

    async fn run(&self, spec: &MicrovmSpec) -> Result<VmId, HostError> {
        self.world().egress.insert(spec.microvm_id, spec.egress);
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
        world.images.retain(|image| images.contains(image));
        Ok(microvms
            .iter()
            .map(|spec| (spec.microvm_id, world.vms.get(&spec.microvm_id).copied().unwrap_or(Found::Nothing)))
            .collect())
    }

    async fn next_event(&self) -> HostEvent {
        match self.events.1.lock().await.recv().await {
            Some(event) => event,
            None => std::future::pending().await,
        }
    }
}

/// Control with its host and its database.
pub(crate) struct Fixture {
    pub(crate) host: Arc<TestHost>,
    control: Option<Arc<Control>>,
    directory: tempfile::TempDir,
    pub(crate) config: ControlConfig,
    pub(crate) caller: Caller,
}

impl Fixture {
    pub(crate) async fn new() -> Self {
        let mut fixture = Self {
            host: TestHost::new(),
            control: None,
            directory: tempfile::tempdir().expect("a directory"),
            config: ControlConfig::default(),
            caller: Caller::root("000000000000", "us-east-1", "key"),
        };
        fixture.start().await;
        fixture
    }

    pub(crate) fn control(&self) -> &Arc<Control> {
        self.control.as_ref().expect("it is started")
    }

    pub(crate) fn database(&self) -> std::path::PathBuf {
        self.directory.path().join("control.sqlite")
    }

    pub(crate) async fn start(&mut self) {
        let key = Arc::new(TokenKey::new(uuid::Uuid::from_u128(1), [1; 32]));
        let control = Control::open(self.config.clone(), &self.database(), self.host.clone(), key).await;
        self.control = Some(control.expect("control opens"));
    }

    /// Stops as a crash would: whatever is in progress is cut off.
    pub(crate) async fn crash(&mut self) {
        let control = self.control.take().expect("it is started");
        let tasks = control.shared.tasks.clone();
        let store = control.shared.store.clone();
        drop(control);
        tasks.close();
        tasks.wait().await;
        store.close().await;
    }

    /// Stops in good order.
    pub(crate) async fn drain(&mut self) {
        let control = self.control.take().expect("it is started");
        control.drain(Duration::from_secs(10)).await;
    }

    pub(crate) fn arn(&self, name: &str) -> ImageArn {
        ImageArn::new(&self.config.region, &self.config.account, name)
    }

    pub(crate) async fn create(
        &self,
        request: CreateMicrovmImageRequest,
    ) -> Result<CreateMicrovmImageResponse, ServiceError> {
        self.control().create_microvm_image(&self.caller, request).await
    }

    pub(crate) async fn image(&self, name: &str) -> Result<GetMicrovmImageResponse, ServiceError> {
        self.control().get_microvm_image(&self.caller, GetMicrovmImageRequest { image: self.arn(name) }).await
    }

    pub(crate) async fn delete_image(&self, name: &str) -> Result<DeleteMicrovmImageResponse, ServiceError> {
        self.control().delete_microvm_image(&self.caller, DeleteMicrovmImageRequest { image: self.arn(name) }).await
    }

    /// Asks for another version of an image.
    pub(crate) async fn update(&self, name: &str) -> Result<UpdateMicrovmImageResponse, ServiceError> {
        let request =
            UpdateMicrovmImageRequest { image: self.arn(name), version: version_request(), client_token: None };
        self.control().update_microvm_image(&self.caller, request).await
    }

    /// Every version of an image, newest first, in pages of two.
    pub(crate) async fn versions(&self, name: &str) -> Result<Vec<GetMicrovmImageVersionResponse>, ServiceError> {
        let (mut versions, mut next_token) = (vec![], None);
        loop {
            let page = PageRequest { max_results: Some(2), next_token };
            let request = ListMicrovmImageVersionsRequest { image: self.arn(name), page };
            let page = self.control().list_microvm_image_versions(&self.caller, request).await?;
            versions.extend(page.items);
            next_token = page.next_token;
            if next_token.is_none() {
                return Ok(versions);
            }
        }
    }

    /// Lets microVMs be launched from a version, or no more.
    pub(crate) async fn set_status(
        &self,
        name: &str,
        version: &str,
        status: VersionStatus,
    ) -> Result<UpdateMicrovmImageVersionResponse, ServiceError> {
        let request = UpdateMicrovmImageVersionRequest { image: self.arn(name), image_version: version.into(), status };
        self.control().update_microvm_image_version(&self.caller, request).await
    }

    /// Asks to remove a version.
    pub(crate) async fn delete_version(
        &self,
        name: &str,
        version: &str,
    ) -> Result<DeleteMicrovmImageVersionResponse, ServiceError> {
        let request = DeleteMicrovmImageVersionRequest { image: self.arn(name), image_version: version.into() };
        self.control().delete_microvm_image_version(&self.caller, request).await
    }

    /// An image that can be run.
    pub(crate) async fn ready_image(&self, name: &str) {
        self.create(create_request(name)).await.expect("it is created");
        self.until_image(name, ImageState::Created).await;
    }

    pub(crate) async fn until_image(&self, name: &str, state: ImageState) {
        until(&format!("the image is {state}"), async || {
            self.image(name).await.is_ok_and(|image| image.state == state)
        })
        .await;
    }

    pub(crate) async fn run(&self, request: RunMicrovmRequest) -> Result<RunMicrovmResponse, ServiceError> {
        self.control().run_microvm(&self.caller, request).await
    }

    /// A microVM of the image `a` that was just asked for.
    pub(crate) async fn pending(&self, policy: Option<IdlePolicy>) -> MicrovmId {
        let request = RunMicrovmRequest { idle_policy: policy, ..run_request(self.arn("a")) };
        self.run(request).await.expect("it is run").microvm_id
    }

    /// A microVM that runs.
    pub(crate) async fn running(&self, policy: Option<IdlePolicy>) -> MicrovmId {
        let id = self.pending(policy).await;
        self.until_state(&id, State::Running).await;
        id
    }

    /// A microVM that is suspended.
    pub(crate) async fn suspended(&self, policy: Option<IdlePolicy>) -> MicrovmId {
        let id = self.running(policy).await;
        self.suspend(&id).await.expect("it takes it");
        self.until_state(&id, State::Suspended).await;
        id
    }

    pub(crate) async fn get(&self, id: &MicrovmId) -> GetMicrovmResponse {
        let request = GetMicrovmRequest { microvm_identifier: id.to_string() };
        self.control().get_microvm(&self.caller, request).await.expect("it is there")
    }

    pub(crate) async fn state(&self, id: &MicrovmId) -> State {
        self.get(id).await.state
    }

    pub(crate) async fn until_state(&self, id: &MicrovmId, state: State) {
        until(&format!("the microVM is {state}"), async || self.state(id).await == state).await;
    }

    pub(crate) async fn suspend(&self, id: &MicrovmId) -> Result<(), ServiceError> {
        let request = SuspendMicrovmRequest { microvm_identifier: id.to_string() };
        self.control().suspend_microvm(&self.caller, request).await.map(|_| ())
    }

    pub(crate) async fn resume(&self, id: &MicrovmId) -> Result<(), ServiceError> {
        let request = ResumeMicrovmRequest { microvm_identifier: id.to_string() };
        self.control().resume_microvm(&self.caller, request).await.map(|_| ())
    }

    pub(crate) async fn terminate(&self, id: &MicrovmId) -> Result<(), ServiceError> {
        let request = TerminateMicrovmRequest { microvm_identifier: id.to_string() };
        self.control().terminate_microvm(&self.caller, request).await.map(|_| ())
    }
}

/// Polls until it is so; panics when it does not become so.
pub(crate) async fn until(what: &str, so: impl AsyncFn() -> bool) {
    let poll = async {
        while !so().await {
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), poll).await.unwrap_or_else(|_| panic!("waited in vain until {what}"));
}

pub(crate) fn policy(idle: u32, suspended: u32, auto_resume_enabled: bool) -> Option<IdlePolicy> {
    Some(IdlePolicy { max_idle_duration_seconds: idle, suspended_duration_seconds: suspended, auto_resume_enabled })
}

pub(crate) fn unchanged() -> HostError {
    HostError::Unchanged { reason: "the hook said no".into() }
}

pub(crate) fn lost() -> HostError {
    HostError::Lost { reason: "it broke".into() }
}

pub(crate) fn version_request() -> VersionRequest {
    VersionRequest {
        base_image_arn: base_image_arn("us-east-1"),
        base_image_version: None,
        build_role_arn: "arn:aws:iam::000000000000:role/build".into(),
        code_artifact: CodeArtifact { uri: "s3://bucket/app.zip".into() },
        description: None,
        logging: None,
        egress_network_connectors: None,
        cpu_configurations: None,
        resources: None,
        additional_os_capabilities: None,
        hooks: None,
        environment_variables: None,
        kms_key_identifier: None,
    }
}

pub(crate) fn create_request(name: &str) -> CreateMicrovmImageRequest {
    CreateMicrovmImageRequest { name: name.into(), version: version_request(), tags: None, client_token: None }
}

pub(crate) fn run_request(image: ImageArn) -> RunMicrovmRequest {
    RunMicrovmRequest {
        image,
        image_version: None,
        ingress_network_connectors: None,
        egress_network_connectors: None,
        execution_role_arn: None,
        idle_policy: None,
        logging: None,
        kms_key_identifier: None,
        run_hook_payload: None,
        maximum_duration_in_seconds: None,
        client_token: None,
    }
}
