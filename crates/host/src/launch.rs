//! From a snapshot to a VM that runs: the steps that launch and resume share, each with its undo.

use std::{
    io,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use api::{
    host::{Egress, MicrovmSpec},
    ids::VmId,
};
use failpoint::step;
use vmm::{Accel, ChangedPages, Standstill, StartError};

use crate::{
    agent::{Agent, AgentError, Life},
    config::HostConfig,
    console::Console,
    files::{MachineRecord, MicrovmFiles, VersionFiles, WorkDir},
    local::LocalHost,
    log::BoundedLog,
    machine::Machine,
    manifest::{self, DamagedError},
    network::NetworkError,
    platform::{Platform, SharedNetwork, SharedVm, Vm, VmPlace},
    prefetch,
    ready::{Purpose, Unit},
    saved::SavedMemory,
    verbs::{blocking, forget_machine, reason_of},
};

/// How long the guest of a launch may take to answer. [`api::host::VERB_TIME_MAX`] leaves room for it, and for a hook.
pub const LAUNCH_PATIENCE: Duration = Duration::from_secs(45);

/// How long one that is resumed may take. It is somebody's session, and cannot be tried again: on a machine that runs a
/// hundred of them, minutes were seen.
pub const RESUME_PATIENCE: Duration = Duration::from_secs(600);

/// How long one that outlived a server may take; that one's start waits for it.
const ADOPT_PATIENCE: Duration = Duration::from_secs(120);

/// Pause between two attempts.
const GREET_PAUSE: Duration = Duration::from_millis(100);

/// Why a VM could not be brought to life. Nothing of it is left, but the directory.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// A file of ours.
    #[error("cannot {what}")]
    File {
        /// What was being done.
        what: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The network.
    #[error("no network for the VM")]
    Network(#[source] NetworkError),
    /// The VMM.
    #[error("the VM could not be restored")]
    Restore(#[source] vmm::StartError),
    /// The VMM, later.
    #[error("the VM could not be set going")]
    Resume(#[source] vmm::ControlError),
    /// The agent.
    #[error("the restored guest did not answer within {seconds} s")]
    Silent {
        /// How long it was waited for.
        seconds: u64,
    },
    /// The VMM process is gone.
    #[error("the VM ended at once: {report}")]
    Ended {
        /// How it ended.
        report: vmm::ExitReport,
    },
    /// The image version or the suspend snapshot is not fit for this host.
    #[error("the snapshot cannot be used")]
    Snapshot(#[source] DamagedError),
}

impl LaunchError {
    /// Is it for want of disk space?
    pub fn is_storage_full(&self) -> bool {
        matches!(self, Self::File { source, .. } if source.kind() == io::ErrorKind::StorageFull)
    }
}

/// A VM that has been restored and stands still.
pub struct Restored {
    vm: SharedVm,
    namespace: SharedNetwork,
    vm_id: VmId,
}

/// A network for a VM whose packets may go no further than this.
pub async fn take_network(platform: &dyn Platform, egress: Egress) -> Result<SharedNetwork, NetworkError> {
    let network = platform.take_network().await?;
    match network.restrict(egress).await {
        Ok(()) => Ok(network),
        Err(error) => {
            platform.give_back_network(network.name()).await;
            Err(error)
        }
    }
}

/// Restores a VM, standing still: from its version's snapshot alone, or with what the microVM changed since. Its clocks
/// are moved forward by the time it `stood_still`.
pub async fn restore(
    host: &LocalHost,
    spec: &MicrovmSpec,
    version: &VersionFiles,
    files: &MicrovmFiles,
    device_state: &std::path::Path,
    stood_still: Standstill,
    memory: Option<(PathBuf, Arc<SavedMemory>)>,
) -> Result<Restored, LaunchError> {
    let platform = &*host.platform;
    let (version_files, driver, accel) = (version.clone(), host.config.driver, host.config.accel);
    tokio::task::spawn_blocking(move || manifest::check_version(&version_files, driver, accel))
        .await
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
        .map_err(LaunchError::Snapshot)?;
    prefetch::start(version, spec.size);
    let purpose = if memory.is_none() { Purpose::launch(spec) } else { Purpose::wake(spec) };
    if let Some(unit) = host.ready_for(&purpose).await {
        match load(platform, unit, spec, files, device_state, stood_still, memory.clone()).await {
            // It may have ended while it waited, which nobody should notice.
            Err(LaunchError::Restore(error @ (StartError::Exited { .. } | StartError::Control { .. }))) => {
                let error = reason_of("not loaded", &error);
                tracing::warn!(microvm = %spec.microvm_id, error, "a VM that was ready is not: another is started");
            }
            loaded => return loaded,
        }
    }
    load(platform, host.prepare(&purpose).await?, spec, files, device_state, stood_still, memory).await
}

/// Makes a prepared VM this microVM's.
async fn load(
    platform: &dyn Platform,
    unit: Unit,
    spec: &MicrovmSpec,
    files: &MicrovmFiles,
    device_state: &std::path::Path,
    stood_still: Standstill,
    memory: Option<(PathBuf, Arc<SavedMemory>)>,
) -> Result<Restored, LaunchError> {
    let Unit { vm_id, vm, network: namespace, dir } = unit;
    let launches = memory.is_none();
    let restored = async {
        let record = MachineRecord { vm_id, namespace: namespace.name().to_owned() };
        let claimed = claim(dir, files, record, launches).await;
        claimed.map_err(|source| LaunchError::File { what: "prepare the VM's directory", source })?;
        step(if launches { "run.claimed" } else { "resume.claimed" });
        namespace.restrict(spec.egress).await.map_err(LaunchError::Network)?;
        let pages = memory.map(|(file, memory)| ChangedPages {
            file,
            touched: None,
            record: None,
            apply: Box::new(move |write| Ok(memory.apply(&mut |offset, page| write(offset, page))?)),
        });
        let place = VmPlace { dir: files.vm_dir(), scratch_disk: files.scratch_disk() };
        vm.load(place, device_state, stood_still, pages).await.map_err(LaunchError::Restore)
    };
    match restored.await {
        Ok(vm) => Ok(Restored { vm, namespace, vm_id }),
        Err(error) => {
            // The record first: it must never name a namespace that has gone to another VM.
            forget_machine(files).await;
            platform.give_back_network(namespace.name()).await;
            Err(error)
        }
    }
}

/// Makes a prepared VM's files this microVM's. The record is first: whatever has the microVM's name can be found by it.
async fn claim(ready: WorkDir, files: &MicrovmFiles, record: MachineRecord, launches: bool) -> io::Result<()> {
    let record = serde_json::to_vec(&record).expect("a record is plain data");
    let to = files.clone();
    blocking(move || {
        let from = MicrovmFiles::at(ready.path().to_owned());
        std::fs::create_dir_all(to.dir())?;
        std::fs::write(to.machine_record(), record)?;
        match std::fs::remove_dir_all(to.vm_dir()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        std::fs::rename(from.vm_dir(), to.vm_dir())?;
        if launches {
            std::fs::rename(from.scratch_disk(), to.scratch_disk())?;
        }
        Ok(())
    })
    .await
}

impl Restored {
    /// Lets the guest run, and makes its clock and random numbers right, within so much time.
    pub async fn set_going(
        self,
        config: &HostConfig,
        platform: &dyn Platform,
        spec: &MicrovmSpec,
        files: &MicrovmFiles,
        life: Life,
        patience: Duration,
    ) -> Result<Machine, LaunchError> {
        let console_path = config.layout.console_log(&spec.microvm_id);
        let going = async {
            let (app_log, console) = open_logs(config, spec)
                .and_then(|log| Ok((log, Console::keep(Arc::clone(&self.vm), &console_path)?)))
                .map_err(|source| LaunchError::File { what: "open the microVM's logs", source })?;
            self.vm.resume().await.map_err(LaunchError::Resume)?;
            let agent = match self.greet(&app_log, life, patience).await {
                // Its clock has been right all the time. It is called again for as long as it lives.
                Err(LaunchError::Silent { .. }) if life != Life::Begins => Agent::absent(),
                greeted => greeted?,
            };
            Ok((agent, app_log, console))
        };
        match going.await {
            Ok((agent, app_log, console)) => {
                Ok(Machine::new(spec.clone(), self.vm_id, self.vm, self.namespace, agent, app_log, console))
            }
            Err(error) => {
                self.discard(platform, files).await;
                Err(error)
            }
        }
    }

    /// Connects to the agent and tells it where it is. Patiently: on a machine with too much to do a guest may
    /// need long, and giving it up would cost a session.
    async fn greet(
        &self,
        app_log: &Arc<Mutex<BoundedLog>>,
        life: Life,
        patience: Duration,
    ) -> Result<Agent, LaunchError> {
        let attempts = async {
            loop {
                let greeted = async {
                    let agent = Agent::connect(&*self.namespace, Arc::clone(app_log)).await?;
                    agent.greet(life).await?;
                    Ok::<_, AgentError>(agent)
                };
                match greeted.await {
                    Ok(agent) => return agent,
                    Err(error) => tracing::warn!(vm = %self.vm_id, %error, "a restored guest does not answer yet"),
                }
                tokio::time::sleep(GREET_PAUSE).await;
            }
        };
        tokio::select! {
            biased;
            agent = tokio::time::timeout(patience, attempts) => {
                agent.map_err(|_| LaunchError::Silent { seconds: patience.as_secs() })
            }
            report = self.vm.exited() => Err(LaunchError::Ended { report }),
        }
    }

    /// Ends the VM.
    pub async fn discard(self, platform: &dyn Platform, files: &MicrovmFiles) {
        end_vm(&*self.vm).await;
        forget_machine(files).await;
        platform.give_back_network(self.namespace.name()).await;
    }
}

/// Takes over a VM that outlived a daemon; see [`crate::reconcile`].
pub async fn adopt(
    config: &HostConfig,
    platform: &dyn Platform,
    spec: &MicrovmSpec,
    files: &MicrovmFiles,
    vm: SharedVm,
    record: &MachineRecord,
    life: Life,
) -> Result<Machine, LaunchError> {
    let namespace = platform.adopt_network(&record.namespace).map_err(LaunchError::Network)?;
    Restored { vm, namespace, vm_id: record.vm_id }.set_going(config, platform, spec, files, life, ADOPT_PATIENCE).await
}

fn open_logs(config: &HostConfig, spec: &MicrovmSpec) -> io::Result<Arc<Mutex<BoundedLog>>> {
    std::fs::create_dir_all(config.layout.log_dir(&spec.microvm_id))?;
    Ok(Arc::new(Mutex::new(BoundedLog::open(&config.layout.app_log(&spec.microvm_id))?)))
}

/// Ends a VMM process, and says so if it will not go.
pub async fn end_vm(vm: &dyn Vm) {
    if let Err(error) = vm.kill().await {
        tracing::error!(pid = vm.pid(), %error, "a VMM process could not be ended");
    }
}

/// How a guest is executed, in words for a manifest.
pub fn accel_name(accel: Accel) -> &'static str {
    match accel {
        Accel::Kvm => "kvm",
        Accel::Tcg => "tcg",
    }
}
