//! From a zip to an image version: the app already running, frozen in a snapshot.
//!
//! ```text
//! fetch zip ─► Dockerfile built, root disk ─► boot, agent ─► start the app ─► ready ─► pause, save ─► in place ─► /validate
//! └──────────────────────── everything in builds/<build id>/, removed unless renamed ───────────────────────────┘
//! ```

use std::{
    collections::HashSet,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use api::{
    host::{BuildFailure, BuildReport, BuildSpec, MicrovmSpec},
    ids::{BuildId, MicrovmId},
    images::Architecture,
};
use builder::{ImageConfig, Job};
use failpoint::step;
use guest_protocol::{AppEnd, AppSpec, AppStatus};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use vmm::MemoryBacking;

use crate::{
    agent::{self, Agent},
    capacity,
    console::Console,
    ends,
    files::{self, MicrovmFiles, VersionFiles, WorkDir},
    hooks::{self, HookFailure},
    launch,
    local::LocalHost,
    log::BoundedLog,
    manifest,
    platform::{Platform, SharedNetwork, SharedVm, VmPlan},
    prefetch,
    settle::Settling,
    verbs::{blocking, reason_of},
};

/// Largest zip that is fetched. The service's build disk is about 7 GiB.
const ARCHIVE_BYTES_MAX: u64 = 7 * 1024 * 1024 * 1024;

/// How long a guest may take from power-on to its agent's first answer. Emulated on a loaded machine: tens of seconds.
const BOOT_TIME_MAX: Duration = Duration::from_secs(60);

/// How often a guest is started before the build is given up. Emulated guests with several processors were seen to hang
/// in their first moments, about one boot in a hundred.
const BOOT_TRIES: u32 = 3;

/// Without a `/ready` hook: how long one question may take whether a port of the app's is listened on.
const LISTEN_TIME_MAX: Duration = Duration::from_secs(30);

/// Pause between two looks at an app that settles.
const SETTLE_PAUSE: Duration = Duration::from_millis(200);

/// Port that counts as the app's when the image exposes none; the edge's default.
const DEFAULT_PORT: u16 = 8080;

/// Free disk below which a failed step is put down to the disk.
const DISK_FULL_BELOW_BYTES: u64 = 1024 * 1024;

impl LocalHost {
    pub(crate) async fn build_image(&self, spec: BuildSpec) -> Result<BuildReport, BuildFailure> {
        // Asked for on another machine, from which the data directory came here.
        if spec.architecture != Architecture::HOST {
            let (asked, here) = (spec.architecture, Architecture::HOST);
            return Err(failure(format!("INTERNAL_PLATFORM_ERROR: this host builds for {here} only, not for {asked}")));
        }
        let _going_on = GoingOn::new(&self.building, spec.build_id);
        let work = WorkDir::at(self.config.layout.build_dir(&spec.build_id));
        let result = self.build_in(&spec, work.path()).await;
        if let Err(failure) = &result {
            self.log(&spec, &format!("the build failed: {failure}\n"));
        }
        let _ = files::remove_dir(work.path().to_owned()).await;
        result
    }

    async fn build_in(&self, spec: &BuildSpec, work: &std::path::Path) -> Result<BuildReport, BuildFailure> {
        let log_path = self.config.layout.build_log(&spec.image.image_id, &spec.build_id);
        let version = VersionFiles::at(work.join("version"));
        let prepare = async {
            let logs = log_path.parent().expect("a log is in a directory");
            tokio::fs::create_dir_all(logs).await?;
            // Logs outlive the image's record; its name beside them is how a person finds them.
            tokio::fs::write(logs.join("name"), &spec.labels.name).await?;
            tokio::fs::create_dir_all(version.dir()).await
        };
        prepare.await.map_err(|error| internal("the build's directory cannot be made", &error))?;

        self.log(spec, &format!("fetching s3://{}/{}\n", spec.bucket, spec.key));
        let archive = work.join("artifact.zip");
        self.config
            .artifacts
            .fetch(&spec.bucket, &spec.key, &archive, ARCHIVE_BYTES_MAX)
            .await
            .map_err(|error| failure(error.to_string()))?;

        step("build.fetched");
        let job = Job {
            archive,
            tag: spec.build_id.to_string(),
            log: log_path,
            root_disk: version.root_disk(),
            env: spec.environment.clone(),
            cancel: CancellationToken::new(),
        };
        let cancel = job.cancel.clone().drop_guard();
        let built = self.platform.build_root_disk(&job).await.map_err(|error| failure(error.reason().to_owned()))?;
        drop(cancel);
        step("build.disk-made");

        let with_size = |mut failure: BuildFailure| {
            failure.code_install_bytes = Some(built.code_install_bytes);
            failure
        };
        self.snapshot_app(spec, &built.config, &version, work).await.map_err(with_size)?;
        step("build.saved");
        let report = weigh(&version, built.code_install_bytes).map_err(with_size)?;
        self.put_in_place(spec, &version).await.map_err(with_size)?;
        step("build.in-place");
        if let (Some(port), Some(timeout)) = (spec.hooks.port, spec.hooks.validate)
            && let Err(failure) = self.validate(spec, port, timeout, work).await
        {
            let _ = files::remove_dir(self.config.layout.build_files_dir(&spec.image, spec.among())).await;
            return Err(with_size(failure));
        }
        step("build.validated");
        self.log(spec, "the image version is ready\n");
        Ok(report)
    }

    /// Boots the root disk, starts the app, and takes the snapshot once it is ready.
    async fn snapshot_app(
        &self,
        spec: &BuildSpec,
        config: &ImageConfig,
        version: &VersionFiles,
        work: &std::path::Path,
    ) -> Result<(), BuildFailure> {
        let app = app_spec(spec, config, &self.config.nameservers)?;
        self.platform
            .make_scratch_disk(&version.scratch_disk(), u64::from(spec.size.disk_gib()))
            .await
            .map_err(|error| internal("the writable disk cannot be made", &error))?;
        let memory_bytes = spec.size.guest_memory_bytes();
        let memory = version.memory();
        blocking(move || std::fs::File::create_new(memory)?.set_len(memory_bytes))
            .await
            .map_err(|error| internal("the memory file cannot be made", &error))?;

        self.log(spec, "booting a microVM to start the application in\n");
        let guest = BuildGuest::boot_with_retries(self, spec, version, work).await?;
        step("build.booted");
        let status = guest.agent.start(app).await.map_err(|error| {
            failure(format!("CONTAINER_START_FAILED: {}", reason_of("the application could not be started", &error)))
        })?;
        if let AppStatus::Exited(end) = status {
            return Err(exited_early(&end));
        }
        step("build.app-started");
        let ready = guest.wait_until_ready(spec, config);
        tokio::select! {
            // The exit is the better reason when both are there.
            biased;
            Some(end) = guest.agent.app_exited() => return Err(exited_early(&end)),
            report = guest.vm.exited() => {
                let ended = launch::LaunchError::Ended { report };
                return Err(self.internal_or_disk_full("the guest ended before the application was ready", &ended));
            }
            result = ready => result?,
        }
        self.log(spec, "the application is ready; taking the snapshot\n");
        step("build.ready");
        guest.agent.quiesce().await.map_err(|error| internal("the guest's disk cannot be written", &error))?;
        guest.vm.pause().await.map_err(|error| internal("the microVM cannot be stopped", &error))?;
        guest
            .vm
            .snapshot_full(&version.device_state())
            .await
            .map_err(|error| self.internal_or_disk_full("the snapshot cannot be written", &error))?;
        guest.end().await;
        if !capacity::has_room(&*self.platform, version.dir(), 0).unwrap_or(true) {
            return Err(disk_full());
        }
        let (dir, size, config) = (VersionFiles::at(version.dir().clone()), spec.size, self.config.clone());
        let platform = Arc::clone(&self.platform);
        blocking(move || {
            seal(&dir)?;
            manifest::write_version(&dir, size, &config, &*platform)
        })
        .await
        .map_err(|error| self.internal_or_disk_full("the snapshot cannot be written", &error))
    }

    /// Runs `/validate` on a VM restored from the new snapshot. Nothing done there is kept.
    async fn validate(
        &self,
        spec: &BuildSpec,
        port: u16,
        timeout: Duration,
        work: &std::path::Path,
    ) -> Result<(), BuildFailure> {
        self.log(spec, "validating the snapshot\n");
        let clone = MicrovmSpec {
            microvm_id: MicrovmId::random(),
            image: spec.image.clone(),
            architecture: spec.among(),
            size: spec.size,
            hooks: api::hooks::HookPlan::default(),
            run_hook_payload: None,
            egress: spec.egress,
        };
        let files = MicrovmFiles::at(work.join("validate"));
        let machine = self.launch(&clone, &files).await.map_err(|error| {
            failure(format!("INTERNAL_PLATFORM_ERROR: the snapshot could not be restored: {error}"))
        })?;
        // If the build is dropped meanwhile, the clone must not live on.
        let mut ender =
            Ender(Some((Arc::clone(&machine.vm), Arc::clone(&machine.namespace), Arc::clone(&self.platform))));
        let validated = hooks::call_until_ready(&*machine.namespace, port, "validate", timeout).await;
        if validated.is_ok() {
            prefetch::record(&*machine.vm, &self.version_files(&spec.image, spec.among()), spec.size).await;
        }
        machine.over.cancel();
        ender.end().await;
        let _ = files::remove_dir(self.config.layout.log_dir(&clone.microvm_id)).await;
        validated.map_err(|failure| build_hook_failure("Validate", failure, timeout))
    }

    async fn put_in_place(&self, spec: &BuildSpec, version: &VersionFiles) -> Result<(), BuildFailure> {
        let to = self.config.layout.build_files_dir(&spec.image, spec.among());
        let from = version.dir().clone();
        blocking(move || {
            let parent = to.parent().expect("a build is in the directory of its image or version");
            std::fs::create_dir_all(parent)?;
            std::fs::rename(&from, &to)?;
            std::fs::File::open(parent)?.sync_all()
        })
        .await
        .map_err(|error| internal("the image version cannot be put in place", &error))
    }

    pub(crate) async fn remove_image_files(&self, image: &api::host::ImageRef) -> Result<(), api::host::HostError> {
        self.give_up_ready(|purpose| purpose.is_from(image)).await;
        let dir = self.config.layout.version_dir(image);
        let parent = dir.parent().map(std::path::Path::to_owned);
        files::remove_dir(dir).await.map_err(|error| api::host::HostError::Unchanged {
            reason: reason_of("The image's files could not be removed", &error),
        })?;
        if let Some(parent) = parent {
            // Stays if another version is in it.
            let _ = tokio::fs::remove_dir(parent).await;
        }
        Ok(())
    }

    fn log(&self, spec: &BuildSpec, line: &str) {
        let path = self.config.layout.build_log(&spec.image.image_id, &spec.build_id);
        if let Ok(mut log) = BoundedLog::open(&path) {
            log.write(b"pilotlight: ");
            log.write(line.as_bytes());
        }
    }

    fn internal_or_disk_full(&self, what: &str, error: &dyn std::error::Error) -> BuildFailure {
        match self.platform.free_disk_bytes(&self.config.layout.data) {
            Ok(free) if free < DISK_FULL_BELOW_BYTES => disk_full(),
            _ => internal(what, error),
        }
    }
}

/// While it lives, its build goes on and has a directory; older than the directory, and gone after it.
struct GoingOn(Arc<Mutex<HashSet<BuildId>>>, BuildId);

impl GoingOn {
    fn new(building: &Arc<Mutex<HashSet<BuildId>>>, build: BuildId) -> Self {
        building.lock().expect("no holder of this lock panics").insert(build);
        Self(Arc::clone(building), build)
    }
}

impl Drop for GoingOn {
    fn drop(&mut self) {
        self.0.lock().expect("no holder of this lock panics").remove(&self.1);
    }
}

/// The VM an app is started in. Dropped half way, it is ended in the background.
struct BuildGuest {
    vm: SharedVm,
    namespace: SharedNetwork,
    agent: Agent,
    _console: Console,
    ender: Ender,
}

/// Ends a VM and gives its namespace back, whatever becomes of its owner.
struct Ender(Option<(SharedVm, SharedNetwork, Arc<dyn Platform>)>);

impl Ender {
    async fn end(&mut self) {
        if let Some((vm, namespace, platform)) = self.0.take() {
            launch::end_vm(&*vm).await;
            platform.give_back_network(namespace.name()).await;
        }
    }
}

impl Drop for Ender {
    fn drop(&mut self) {
        // Without a runtime the process is ending; the next start finds the VM and ends it.
        if let Some((vm, namespace, platform)) = self.0.take()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(async move {
                launch::end_vm(&*vm).await;
                platform.give_back_network(namespace.name()).await;
            });
        }
    }
}

impl BuildGuest {
    async fn boot_with_retries(
        host: &LocalHost,
        spec: &BuildSpec,
        version: &VersionFiles,
        work: &std::path::Path,
    ) -> Result<Self, BuildFailure> {
        let mut tries = 1;
        loop {
            // Nothing has been started in the guest yet, and it is booted from scratch: its disk and memory are as new.
            match Self::boot(host, spec, version, work).await {
                Err(failure) if tries < BOOT_TRIES && !failure.reason.starts_with("DISK_STORAGE_FULL") => {
                    host.log(spec, &format!("{failure}; trying once more\n"));
                    tries += 1;
                }
                result => return result,
            }
        }
    }

    async fn boot(
        host: &LocalHost,
        spec: &BuildSpec,
        version: &VersionFiles,
        work: &std::path::Path,
    ) -> Result<Self, BuildFailure> {
        let files = MicrovmFiles::at(work.to_owned());
        tokio::fs::create_dir_all(files.vm_dir())
            .await
            .map_err(|error| internal("the VM's directory cannot be made", &error))?;
        let namespace = launch::take_network(&*host.platform, spec.egress).await;
        let namespace = namespace.map_err(|error| internal("no network for the VM", &error))?;
        let plan = VmPlan {
            name: format!("build-{}", spec.build_id),
            size: spec.size,
            root_disk: version.root_disk(),
            scratch_disk: version.scratch_disk(),
            memory: MemoryBacking::Shared(version.memory()),
            dir: files.vm_dir(),
            network: Arc::clone(&namespace),
        };
        let vm = match host.platform.boot(&plan).await {
            Ok(vm) => vm,
            Err(error) => {
                host.platform.give_back_network(namespace.name()).await;
                return Err(host.internal_or_disk_full("the VM cannot be started", &error));
            }
        };
        let mut ender = Ender(Some((Arc::clone(&vm), Arc::clone(&namespace), Arc::clone(&host.platform))));
        let log_path = host.config.layout.build_log(&spec.image.image_id, &spec.build_id);
        let console_path = log_path.with_extension("console.log");
        let console = Console::keep(Arc::clone(&vm), &console_path)
            .map_err(|error| internal("the console log cannot be made", &error))?;
        let log = BoundedLog::open(&log_path).map_err(|error| internal("the build log cannot be opened", &error))?;
        let connecting = Agent::connect_at_boot(&*namespace, Arc::new(Mutex::new(log)), BOOT_TIME_MAX);
        let agent = tokio::select! {
            agent = connecting => match agent {
                Ok(agent) => agent,
                Err(error) => {
                    ender.end().await;
                    return Err(internal("the guest does not boot", &error));
                }
            },
            report = vm.exited() => {
                return Err(failure(format!("INTERNAL_PLATFORM_ERROR: the guest ended while it booted: {report}")));
            }
        };
        Ok(Self { vm, namespace, agent, _console: console, ender })
    }

    async fn wait_until_ready(&self, spec: &BuildSpec, config: &ImageConfig) -> Result<(), BuildFailure> {
        if let (Some(port), Some(timeout)) = (spec.hooks.port, spec.hooks.ready) {
            return hooks::call_until_ready(&*self.namespace, port, "ready", timeout)
                .await
                .map_err(|failure| build_hook_failure("Ready", failure, timeout));
        }
        let ports = if config.exposed_ports.is_empty() { &[DEFAULT_PORT][..] } else { &config.exposed_ports };
        let mut settling = Settling::new(Instant::now());
        while !settling.is_over(Instant::now(), self.vm.cpu_time()) {
            for &port in ports {
                if agent::open_stream(&*self.namespace, port, LISTEN_TIME_MAX).await.is_ok() {
                    return Ok(());
                }
            }
            tokio::time::sleep(SETTLE_PAUSE).await;
        }
        Ok(())
    }

    async fn end(mut self) {
        self.ender.end().await;
    }
}

/// What the app is started with: the image's configuration, the image-level variables, and the service's own names.
fn app_spec(spec: &BuildSpec, config: &ImageConfig, nameservers: &[std::net::IpAddr]) -> Result<AppSpec, BuildFailure> {
    let argv: Vec<String> = config.entrypoint.iter().chain(&config.cmd).cloned().collect();
    if argv.is_empty() {
        return Err(failure(
            "CONTAINER_START_FAILED: the image has neither ENTRYPOINT nor CMD; add one to the Dockerfile".to_owned(),
        ));
    }
    let labels = &spec.labels;
    let ours = [
        ("AWS_LAMBDA_MICROVM_IMAGE_NAME", labels.name.clone()),
        ("AWS_LAMBDA_MICROVM_IMAGE_ARN", labels.arn.clone()),
        ("AWS_LAMBDA_MICROVM_IMAGE_VERSION", spec.image.version.to_string()),
        ("AWS_REGION", labels.region.clone()),
    ];
    // Later ones win, as the agent keeps the last of a name.
    let mut env = config.env.clone();
    env.extend(spec.environment.iter().cloned());
    env.extend(ours.map(|(name, value)| (name.to_owned(), value)));
    let mut unique: Vec<(String, String)> = Vec::with_capacity(env.len());
    for (name, value) in env {
        match unique.iter_mut().find(|(other, _)| *other == name) {
            Some(slot) => slot.1 = value,
            None => unique.push((name, value)),
        }
    }
    Ok(AppSpec {
        argv,
        env: unique,
        cwd: if config.workdir.is_empty() { "/".to_owned() } else { config.workdir.clone() },
        user: config.user.clone(),
        hostname: "localhost".to_owned(),
        all_capabilities: spec.all_capabilities,
        nameservers: nameservers.iter().map(ToString::to_string).collect(),
    })
}

/// Makes a version's files root's and read-only: the VM they were made in may have owned some, and the jails of others
/// open them by path.
fn seal(version: &VersionFiles) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;

    for file in [version.root_disk(), version.scratch_disk(), version.memory(), version.device_state()] {
        std::os::unix::fs::chown(&file, Some(0), Some(0))?;
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o444))?;
    }
    Ok(())
}

fn weigh(version: &VersionFiles, code_install_bytes: u64) -> Result<BuildReport, BuildFailure> {
    use std::os::unix::fs::MetadataExt;

    let allocated = |path: PathBuf| {
        std::fs::metadata(path)
            .map(|file| file.blocks() * 512)
            .map_err(|error| internal("the snapshot cannot be weighed", &error))
    };
    Ok(BuildReport {
        memory_snapshot_bytes: allocated(version.memory())? + allocated(version.device_state())?,
        code_install_bytes,
        disk_snapshot_bytes: allocated(version.scratch_disk())?,
    })
}

fn failure(reason: String) -> BuildFailure {
    BuildFailure { reason, code_install_bytes: None }
}

fn disk_full() -> BuildFailure {
    failure("DISK_STORAGE_FULL: no space left on this host's disk for the image".to_owned())
}

fn internal(what: &str, error: &dyn std::error::Error) -> BuildFailure {
    failure(format!("INTERNAL_PLATFORM_ERROR: {}", reason_of(what, error)))
}

fn exited_early(end: &AppEnd) -> BuildFailure {
    failure(format!("{} before the application was ready; its output is in the build log", ends::of_app(end)))
}

/// The service's sentences for a failed build hook.
fn build_hook_failure(hook: &str, failure_kind: HookFailure, timeout: Duration) -> BuildFailure {
    failure(match failure_kind {
        HookFailure::TimedOut | HookFailure::NoAnswer => {
            format!("{hook} hook invocation timed out after {}", iso_duration(timeout))
        }
        HookFailure::Status(status) => {
            let (side, class) = match status {
                500.. => ("a server", "5xx"),
                400..500 => ("a client", "4xx"),
                _ => ("an unexpected", "non-200"),
            };
            let kind = if status >= 400 { "error (HTTP " } else { "(HTTP " };
            format!("{hook} hook check failed: the application returned {side} {kind}{class}) response")
        }
    })
}

/// ISO 8601, as the service writes timeouts: `PT5M`, `PT1H30M`, `PT45S`.
fn iso_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let mut text = "PT".to_owned();
    for (value, unit) in [(seconds / 3600, 'H'), (seconds / 60 % 60, 'M'), (seconds % 60, 'S')] {
        if value > 0 {
            text.push_str(&format!("{value}{unit}"));
        }
    }
    if seconds == 0 {
        text.push_str("0S");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_written_as_the_service_writes_them() {
        let texts = [300, 600, 3600, 5400, 45, 61].map(|seconds| iso_duration(Duration::from_secs(seconds)));
        assert_eq!(texts, ["PT5M", "PT10M", "PT1H", "PT1H30M", "PT45S", "PT1M1S"]);
    }

    #[test]
    fn build_hook_failures_have_the_recorded_sentences() {
        let reason = |kind| build_hook_failure("Ready", kind, Duration::from_secs(300)).reason;
        assert_eq!(reason(HookFailure::TimedOut), "Ready hook invocation timed out after PT5M");
        assert_eq!(
            reason(HookFailure::Status(404)),
            "Ready hook check failed: the application returned a client error (HTTP 4xx) response"
        );
        assert_eq!(
            reason(HookFailure::Status(500)),
            "Ready hook check failed: the application returned a server error (HTTP 5xx) response"
        );
    }
}
