//! Run, suspend, resume, terminate: chains of steps, each with its undo.
//!
//! A microVM has either a VM or a suspend snapshot, and one rename decides which:
//!
//! ```text
//! suspend   /suspend hook, pause ─► write suspended.new ─► RENAME to suspended     ─► end the VM
//! resume    check, restore       ─► (VM stands still)   ─► RENAME to suspended.old ─► go, /resume hook
//! ```
//!
//! Before the rename everything can be taken back: a failed suspend lets the guest run on, a failed resume ends the
//! VM and leaves the snapshot. The scratch disk belongs to whichever of the two there is, and is not written between
//! pause and the rename of a suspend, nor before the rename of a resume.

use std::{
    io,
    path::Path,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use api::{
    host::{HostError, MicrovmSpec, SuspendReport},
    ids::VmId,
};
use failpoint::step;
use vmm::{Accel, Standstill};

use crate::{
    agent::Life,
    capacity,
    files::{self, MicrovmFiles},
    hooks::{self, HookFailure},
    launch::{self, LAUNCH_PATIENCE, LaunchError, RESUME_PATIENCE},
    local::LocalHost,
    machine::Machine,
    ready::Purpose,
    saved::{self, Stopped, SuspendError},
};

/// What a guest may still have to do when it is to be suspended, the end of an answer for instance: it is looked so often
/// whether it is done, with this pause.
const QUIET_LOOKS: u32 = 4;
const QUIET_PAUSE: Duration = Duration::from_millis(3);

impl LocalHost {
    pub(crate) async fn run_microvm(&self, spec: &MicrovmSpec) -> Result<VmId, HostError> {
        // What an interrupted launch left goes first.
        let files = self.microvm_files(&spec.microvm_id);
        self.end_machine(spec, &files).await?;
        remove_files(&files).await?;
        capacity::check_launch(&*self.platform, &self.config.layout.data)?;
        match self.launch(spec, &files).await {
            Ok(machine) => Ok(self.admit(machine)),
            Err(error) => {
                // A second failure is of no more use to the caller than the first.
                let _ = files::remove_dir(files.dir().clone()).await;
                Err(error)
            }
        }
    }

    /// Launches a microVM into this directory; nothing but the directory is left if it fails.
    pub(crate) async fn launch(&self, spec: &MicrovmSpec, files: &MicrovmFiles) -> Result<Machine, HostError> {
        let version = self.version_files(&spec.image, spec.architecture);
        let lost = |error: LaunchError| {
            if error.is_storage_full() {
                HostError::NoCapacity { reason: "no space left on this host's disk".to_owned() }
            } else {
                HostError::Lost { reason: reason_of("The microVM could not be launched", &error) }
            }
        };
        let _at_work = self.ready.work();
        // A launch is the beginning of its time, however old the image is.
        let state = version.device_state();
        let restored =
            launch::restore(self, spec, &version, files, &state, Standstill::default(), None).await.map_err(lost)?;
        step("run.restored");
        let machine = restored
            .set_going(&self.config, &*self.platform, spec, files, Life::Begins, LAUNCH_PATIENCE)
            .await
            .map_err(lost)?;
        step("run.going");
        let launched = async {
            if let (Some(port), Some(timeout)) = (spec.hooks.port, spec.hooks.run) {
                let mut body = serde_json::json!({ "microvmId": spec.microvm_id });
                if let Some(payload) = &spec.run_hook_payload {
                    body["runHookPayload"] = payload.as_str().into();
                }
                hooks::call(&*machine.namespace, port, "run", Some(body.to_string()), timeout)
                    .await
                    .map_err(|failure| HostError::Lost { reason: hook_reason("Run", failure) })?;
            }
            step("run.hook-answered");
            tokio::fs::write(files.launched_mark(), [])
                .await
                .map_err(|source| lost(LaunchError::File { what: "mark the launch as complete", source }))?;
            step("run.marked");
            Ok(())
        };
        match launched.await {
            Ok(()) => Ok(machine),
            Err(error) => {
                self.clear(&machine).await;
                Err(error)
            }
        }
    }

    pub(crate) async fn suspend_microvm(&self, spec: &MicrovmSpec) -> Result<SuspendReport, HostError> {
        let files = self.microvm_files(&spec.microvm_id);
        let Some(machine) = self.machine(&spec.microvm_id) else {
            return lost_without_vm();
        };
        let _verb = machine.verb.lock().await;
        if self.machine(&spec.microvm_id).is_none_or(|current| current.vm_id != machine.vm_id) {
            return lost_without_vm();
        }
        if matches!(machine.vm.run_state().await, Ok(vmm::RunState::IoError)) {
            // It could not answer its hook, and would be ended for that.
            let reason = "Not suspended: the guest stands still, for this host's disk is full".to_owned();
            return Err(HostError::Unchanged { reason });
        }
        if let (Some(port), Some(timeout)) = (spec.hooks.port, spec.hooks.suspend) {
            // A failed hook ends the microVM, as measured on the real service.
            hooks::call(&*machine.namespace, port, "suspend", None, timeout)
                .await
                .map_err(|failure| HostError::Lost { reason: hook_reason("Suspend", failure) })?;
        }
        step("suspend.hook-answered");
        let saved = async {
            let parked = self.park(&machine).await;
            machine.vm.pause().await.map_err(SuspendError::Pause)?;
            let parked = parked.is_some_and(|until| Instant::now() < until);
            let stopped = Stopped { at: SystemTime::now(), parked };
            step("suspend.paused");
            saved::save(&*self.platform, &machine, &files, stopped).await
        };
        let report = match saved.await {
            Ok(report) => report,
            Err(error) => {
                // The guest goes on as if nothing had been; a half-written snapshot was never under its name.
                let _ = files::remove_dir(files.suspending().dir().clone()).await;
                let reason = reason_of("Not suspended", &error);
                if files.suspended().dir().exists() {
                    // The snapshot is in place and cannot be taken back: were the guest to go on, the disk would not be
                    // the snapshot's any more.
                    return Err(HostError::Lost { reason });
                }
                return match machine.vm.resume().await {
                    Ok(()) => Err(HostError::Unchanged { reason }),
                    Err(_) => Err(HostError::Lost { reason }),
                };
            }
        };
        step("suspend.in-place");
        self.dismiss(&spec.microvm_id, machine.vm_id);
        self.clear(&machine).await;
        step("suspend.vm-ended");
        forget_machine(&files).await;
        self.ready.want(Purpose::wake(spec));
        Ok(report)
    }

    /// Keeps the processes of a guest that is at work off its processors, for it to be stopped; until when, if they are.
    async fn park(&self, machine: &Machine) -> Option<Instant> {
        // With KVM, a guest's clocks are not moved.
        if self.config.accel != Accel::Tcg {
            return None;
        }
        for _ in 0..QUIET_LOOKS {
            if !machine.vm.at_work() {
                return None;
            }
            tokio::time::sleep(QUIET_PAUSE).await;
        }
        machine.agent().park().await
    }

    pub(crate) async fn resume_microvm(&self, spec: &MicrovmSpec) -> Result<VmId, HostError> {
        let files = self.microvm_files(&spec.microvm_id);
        let unchanged =
            |error: &dyn std::error::Error| HostError::Unchanged { reason: reason_of("Not resumed", error) };
        capacity::check_launch(&*self.platform, &self.config.layout.data)?;
        let _at_work = self.ready.work();
        let suspended = files.suspended();
        let memory = saved::open(&suspended).await.map_err(|error| unchanged(&error))?;
        step("resume.checked");
        let version = self.version_files(&spec.image, spec.architecture);
        let state = suspended.device_state();
        let (stood_still, memory) = (memory.stood_still(), Some((suspended.layer(), Arc::new(memory))));
        let restored = launch::restore(self, spec, &version, &files, &state, stood_still, memory)
            .await
            .map_err(|error| unchanged(&error))?;
        step("resume.restored");

        let _ = files::remove_dir(files.resumed().dir().clone()).await;
        if let Err(error) = rename_synced(suspended.dir(), files.resumed().dir(), files.dir()).await {
            restored.discard(&*self.platform, &files).await;
            return Err(unchanged(&error));
        }
        step("resume.snapshot-set-aside");
        // From here on the snapshot is history: the guest runs and its disk changes.
        let lost = |reason| HostError::Lost { reason };
        let machine = restored
            .set_going(&self.config, &*self.platform, spec, &files, Life::Begins, RESUME_PATIENCE)
            .await
            .map_err(|error| lost(reason_of("The microVM could not be resumed", &error)))?;
        step("resume.going");
        if let (Some(port), Some(timeout)) = (spec.hooks.port, spec.hooks.resume)
            && let Err(failure) = hooks::call(&*machine.namespace, port, "resume", None, timeout).await
        {
            self.clear(&machine).await;
            return Err(lost(hook_reason("Resume", failure)));
        }
        step("resume.hook-answered");
        if let Err(error) = saved::retire(&files).await {
            tracing::warn!(microvm = %spec.microvm_id, %error, "cannot remove a used suspend snapshot");
        }
        Ok(self.admit(machine))
    }

    pub(crate) async fn terminate_microvm(&self, spec: &MicrovmSpec) -> Result<(), HostError> {
        let files = self.microvm_files(&spec.microvm_id);
        self.end_machine(spec, &files).await?;
        step("terminate.vm-ended");
        remove_files(&files).await?;
        step("terminate.files-removed");
        Ok(())
    }

    /// Ends the VM that there is, if there is one.
    async fn end_machine(&self, spec: &MicrovmSpec, files: &MicrovmFiles) -> Result<(), HostError> {
        self.give_up_ready(|purpose| purpose.is_of(&spec.microvm_id)).await;
        let Some(machine) = self.machine(&spec.microvm_id) else {
            return self.end_unwatched(files).await;
        };
        let _verb = machine.verb.lock().await;
        if let (Some(port), Some(timeout)) = (spec.hooks.port, spec.hooks.terminate)
            && let Err(failure) = hooks::call(&*machine.namespace, port, "terminate", None, timeout).await
        {
            // Nothing can be done about it: it is ended all the same.
            tracing::info!(microvm = %spec.microvm_id, ?failure, "a terminate hook failed");
        }
        step("terminate.hook-answered");
        if self.dismiss(&spec.microvm_id, machine.vm_id).is_some() {
            self.clear(&machine).await;
        }
        Ok(())
    }
}

impl LocalHost {
    /// Ends a VM that is in nobody's hands: a launch or a resume was dropped half way.
    pub(crate) async fn end_unwatched(&self, files: &MicrovmFiles) -> Result<(), HostError> {
        // Written before a VM is started: without it there is none.
        if let Some(record) = files.read_machine_record().await {
            self.platform.end_vms_in(&record.namespace).await.map_err(|error| HostError::Unchanged {
                reason: reason_of("The virtual machine could not be ended", &error),
            })?;
            forget_machine(files).await;
            self.platform.give_back_abandoned_network(&record.namespace).await;
        }
        Ok(())
    }
}

async fn remove_files(files: &MicrovmFiles) -> Result<(), HostError> {
    files::remove_dir(files.dir().clone())
        .await
        .map_err(|error| HostError::Unchanged { reason: reason_of("The microVM's files could not be removed", &error) })
}

/// Renames a directory and makes the rename last; one that does not last is taken back.
pub async fn rename_synced(from: &Path, to: &Path, parent: &Path) -> io::Result<()> {
    let (from, to, parent) = (from.to_owned(), to.to_owned(), parent.to_owned());
    blocking(move || {
        let parent = std::fs::File::open(parent)?;
        std::fs::rename(&from, &to)?;
        if let Err(error) = parent.sync_all() {
            std::fs::rename(&to, &from)?;
            return Err(error);
        }
        Ok(())
    })
    .await
}

/// Removes the traces of a VM that is no more; the suspend snapshot speaks for itself, so a failure costs nothing.
pub async fn forget_machine(files: &MicrovmFiles) {
    let _ = tokio::fs::remove_file(files.machine_record()).await;
    let _ = files::remove_dir(files.vm_dir()).await;
}

/// Runs file work where it does not hold up the event loop.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
}

fn lost_without_vm<T>() -> Result<T, HostError> {
    Err(HostError::Lost { reason: "The virtual machine is gone".to_owned() })
}

/// The service's sentence for a failed runtime hook.
fn hook_reason(hook: &str, failure: HookFailure) -> String {
    let look = "Please check your hook endpoint and application logs for more details.";
    match failure {
        HookFailure::Status(status) => format!("{hook} lifecycle hook returned HTTP status {status}. {look}"),
        HookFailure::TimedOut => format!("{hook} lifecycle hook timed out. {look}"),
        HookFailure::NoAnswer => format!("{hook} lifecycle hook could not be reached. {look}"),
    }
}

/// An error and its causes in one sentence.
pub fn reason_of(what: &str, error: &dyn std::error::Error) -> String {
    let mut reason = format!("{what}: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        reason.push_str(": ");
        reason.push_str(&error.to_string());
        cause = error.source();
    }
    reason
}
