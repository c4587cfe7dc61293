//! What control's own tests work with: control over a host whose every answer is chosen by the test.

mod host;

use std::{sync::Arc, time::Duration};

use api::{
    arn::ImageArn,
    error::ServiceError,
    hooks::HookPlan,
    host::{Egress, HostError, ImageRef, MicrovmSpec},
    ids::{EndpointId, ImageId, ImageVersion, MicrovmId},
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
    token::TokenKeys,
};

pub(crate) use self::host::{Call, TestHost};
use crate::{
    Control, ControlConfig,
    auth::Caller,
    clock::{Clock, Moment},
    http::Operations,
    microvms::record::{Contract, Fate, Record},
};

/// Plays a history where things really happen at once.
pub(crate) fn on_two_threads(history: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime").block_on(history);
}

/// A microVM that was just asked for.
pub(crate) fn record() -> Record {
    Record {
        sequence: 1,
        spec: MicrovmSpec {
            microvm_id: MicrovmId::random(),
            image: ImageRef { image_id: ImageId::random(), version: ImageVersion::FIRST },
            architecture: None,
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
        started_at: Moment { unix_ms: 0, boot: None },
        fate: Fate::pending(),
    }
}

/// Control with its host and its database.
pub(crate) struct Fixture {
    pub(crate) host: Arc<TestHost>,
    control: Option<Arc<Control>>,
    directory: tempfile::TempDir,
    pub(crate) config: ControlConfig,
    pub(crate) caller: Caller,
    /// Which boot of the host it is.
    pub(crate) boot: uuid::Uuid,
    /// By how many milliseconds the wall clock is set forward when it starts.
    pub(crate) set_forward_ms: i64,
}

impl Fixture {
    pub(crate) async fn new() -> Self {
        let mut fixture = Self {
            host: TestHost::new(),
            control: None,
            directory: tempfile::tempdir().expect("a directory"),
            config: ControlConfig::default(),
            caller: Caller::root("000000000000", "us-east-1", "key"),
            boot: uuid::Uuid::from_u128(1),
            set_forward_ms: 0,
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
        let keys = Arc::new(TokenKeys::single(uuid::Uuid::from_u128(1), [1; 32]));
        let clock = Clock::of_boot(self.boot, self.set_forward_ms);
        let control = Control::open_by(clock, self.config.clone(), &self.database(), self.host.clone(), keys).await;
        self.control = Some(control.expect("control opens"));
    }

    /// Sets the wall clock of the host, so many milliseconds forward from the truth, and wakes the driver to see it.
    pub(crate) async fn set_clock(&mut self, ms: i64, id: &MicrovmId) {
        self.set_forward_ms = ms;
        self.control().shared.clock.set_forward_ms.store(ms, std::sync::atomic::Ordering::Relaxed);
        let handle = self.control().shared.registry.get(id).expect("it is there");
        // News of no VM: the driver looks at everything again.
        handle.ended(api::ids::VmId::random(), "nothing".into()).await;
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
