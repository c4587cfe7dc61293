//! The pretend host: VMs are entries in a map, a suspended microVM is a file.

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use api::{
    directory::{AppStream, DialError, Dialer},
    host::{
        ArtifactSource, BuildFailure, BuildReport, BuildSpec, Found, Holdings, Host, HostError, HostEvent, ImageRef,
        Layout, MicrovmSpec, SuspendReport, Usage,
    },
    ids::{MicrovmId, VmId},
    images::Architecture,
    shell::{Shell, ShellError},
    size::Size,
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{
    app,
    image::{self, absent_is_fine},
    script::{Delays, Script},
};

/// A pretend suspend's report.
const SUSPENDED: SuspendReport = SuspendReport { memory_bytes: 1 << 20, device_bytes: 4096 };

/// One pretend VM. It ends when this is dropped.
struct Vm {
    id: VmId,
    ended: CancellationToken,
}

impl Drop for Vm {
    fn drop(&mut self) {
        self.ended.cancel();
    }
}

/// A host that runs nothing.
pub struct PretendHost {
    layout: Layout,
    artifacts: Arc<dyn ArtifactSource>,
    delays: Delays,
    vms: Mutex<HashMap<MicrovmId, Vm>>,
    events: mpsc::UnboundedSender<HostEvent>,
    next_event: tokio::sync::Mutex<mpsc::UnboundedReceiver<HostEvent>>,
    itself: Weak<Self>,
}

impl PretendHost {
    /// A host without VMs; what it is to keep, it keeps under the data directory.
    #[must_use]
    pub fn new(layout: Layout, artifacts: Arc<dyn ArtifactSource>, delays: Delays) -> Arc<Self> {
        // Unbounded, but each VM puts in one event at most.
        let (events, next_event) = mpsc::unbounded_channel();
        Arc::new_cyclic(|itself| Self {
            layout,
            artifacts,
            delays,
            vms: Mutex::default(),
            events,
            next_event: tokio::sync::Mutex::new(next_event),
            itself: itself.clone(),
        })
    }

    fn vms(&self) -> MutexGuard<'_, HashMap<MicrovmId, Vm>> {
        self.vms.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn vm_of(&self, microvm_id: &MicrovmId) -> Option<VmId> {
        self.vms().get(microvm_id).map(|vm| vm.id)
    }

    /// There from a suspend to the resume or the end.
    fn suspended(&self, microvm_id: &MicrovmId) -> PathBuf {
        self.layout.microvm_dir(microvm_id).join("suspended")
    }

    async fn take(&self, asked: Option<Duration>) {
        tokio::time::sleep(asked.unwrap_or(self.delays.verb)).await;
    }

    async fn script(&self, spec: &MicrovmSpec) -> Result<Script, HostError> {
        let gone = || HostError::Lost { reason: "The image version is not on this host".to_owned() };
        image::script_of(&self.layout, spec).await.ok_or_else(gone)
    }

    fn start(&self, spec: &MicrovmSpec, script: &Script) -> VmId {
        let vm = Vm { id: VmId::random(), ended: CancellationToken::new() };
        let (vm_id, ended, microvm_id) = (vm.id, vm.ended.clone(), spec.microvm_id);
        self.vms().insert(microvm_id, vm);
        if let Some(after) = script.ends_after {
            let itself = self.itself.clone();
            tokio::spawn(async move {
                tokio::select! {
                    () = tokio::time::sleep(after) => {}
                    () = ended.cancelled() => return,
                }
                if let Some(host) = itself.upgrade() {
                    host.app_ended(microvm_id, vm_id).await;
                }
            });
        }
        vm_id
    }

    async fn app_ended(&self, microvm_id: MicrovmId, vm_id: VmId) {
        {
            let mut vms = self.vms();
            if vms.get(&microvm_id).is_none_or(|vm| vm.id != vm_id) {
                return;
            }
            vms.remove(&microvm_id);
        }
        if let Err(error) = self.forget(&microvm_id).await {
            tracing::error!(microvm = %microvm_id, error = error.to_string(), "cannot remove what is left");
        }
        let reason = "Container Stopped with Exit Code: 0".to_owned();
        // The receiver lives as long as this host.
        let _ = self.events.send(HostEvent::Ended { microvm_id, vm_id, reason });
    }

    async fn forget(&self, microvm_id: &MicrovmId) -> Result<(), HostError> {
        absent_is_fine(tokio::fs::remove_dir_all(self.layout.microvm_dir(microvm_id)).await)
            .map_err(|error| HostError::Unchanged { reason: error.to_string() })
    }
}

fn unchanged(reason: impl ToString) -> HostError {
    HostError::Unchanged { reason: reason.to_string() }
}

#[async_trait::async_trait]
impl Host for PretendHost {
    /// Both there are: pretending costs nothing, and a version with several builds can be seen without machines of each.
    fn architectures(&self) -> Vec<Architecture> {
        vec![Architecture::X86_64, Architecture::Arm64]
    }

    async fn build(&self, spec: BuildSpec) -> Result<BuildReport, BuildFailure> {
        image::build(&self.layout, &*self.artifacts, self.delays, &spec).await
    }

    async fn remove_image(&self, image: &ImageRef) -> Result<(), HostError> {
        image::remove(&self.layout, image).await.map_err(unchanged)
    }

    async fn room_for(&self, _: Size, _: u32) -> Result<(), HostError> {
        Ok(())
    }

    async fn run(&self, spec: &MicrovmSpec) -> Result<VmId, HostError> {
        self.terminate_now(spec).await?;
        let script = self.script(spec).await?;
        self.take(script.run).await;
        if let Some(reason) = script.run_fails {
            return Err(HostError::Lost { reason });
        }
        tokio::fs::create_dir_all(self.layout.microvm_dir(&spec.microvm_id)).await.map_err(unchanged)?;
        Ok(self.start(spec, &script))
    }

    async fn suspend(&self, spec: &MicrovmSpec) -> Result<SuspendReport, HostError> {
        let id = &spec.microvm_id;
        let gone = || HostError::Lost { reason: "The virtual machine is gone".to_owned() };
        let vm_id = self.vm_of(id).ok_or_else(gone)?;
        let script = self.script(spec).await?;
        self.take(script.suspend).await;
        if let Some(reason) = script.suspend_fails {
            return Err(HostError::Unchanged { reason });
        }
        tokio::fs::write(self.suspended(id), []).await.map_err(unchanged)?;
        let mut vms = self.vms();
        if vms.get(id).is_none_or(|vm| vm.id != vm_id) {
            return Err(gone());
        }
        vms.remove(id);
        Ok(SUSPENDED)
    }

    async fn resume(&self, spec: &MicrovmSpec) -> Result<VmId, HostError> {
        let id = &spec.microvm_id;
        if let Some(vm_id) = self.vm_of(id) {
            return Ok(vm_id);
        }
        if !self.suspended(id).exists() {
            return Err(HostError::Lost { reason: "There is no suspend snapshot".to_owned() });
        }
        let script = self.script(spec).await?;
        self.take(script.resume).await;
        if let Some(reason) = script.resume_fails {
            return Err(HostError::Unchanged { reason });
        }
        tokio::fs::remove_file(self.suspended(id)).await.map_err(unchanged)?;
        Ok(self.start(spec, &script))
    }

    async fn terminate(&self, spec: &MicrovmSpec) -> Result<(), HostError> {
        let script = image::script_of(&self.layout, spec).await.unwrap_or_default();
        self.take(script.terminate).await;
        self.terminate_now(spec).await
    }

    async fn reconcile(
        &self,
        microvms: &[MicrovmSpec],
        images: &[ImageRef],
    ) -> Result<Vec<(MicrovmId, Found)>, HostError> {
        let ids: HashSet<String> = microvms.iter().map(|spec| spec.microvm_id.to_string()).collect();
        let versions: HashSet<PathBuf> = images.iter().map(|image| self.layout.version_dir(image)).collect();
        let data = &self.layout.data;
        keep(&data.join("microvms"), |path| {
            path.file_name().is_some_and(|name| ids.contains(&*name.to_string_lossy()))
        })
        .await?;
        keep(&data.join("builds"), |_| false).await?;
        for image in entries(&data.join("images")).await? {
            keep(&image, |path| versions.contains(path)).await?;
        }
        self.vms().retain(|id, _| ids.contains(&id.to_string()));
        Ok(microvms
            .iter()
            .map(|spec| {
                let found = match self.vm_of(&spec.microvm_id) {
                    Some(vm_id) => Found::Running(vm_id),
                    None if self.suspended(&spec.microvm_id).exists() => Found::Suspended,
                    None => Found::Nothing,
                };
                (spec.microvm_id, found)
            })
            .collect())
    }

    async fn holdings(&self) -> Result<Holdings, HostError> {
        Ok(Holdings::default())
    }

    async fn tidy(&self, _: &Holdings) -> Result<(), HostError> {
        Ok(())
    }

    async fn usage(&self, _: &MicrovmId, _: &VmId) -> Option<Usage> {
        // A pretend VM uses nothing.
        None
    }

    async fn next_event(&self) -> HostEvent {
        match self.next_event.lock().await.recv().await {
            Some(event) => event,
            // Cannot be: this host holds a sender.
            None => std::future::pending().await,
        }
    }
}

impl PretendHost {
    async fn terminate_now(&self, spec: &MicrovmSpec) -> Result<(), HostError> {
        self.vms().remove(&spec.microvm_id);
        self.forget(&spec.microvm_id).await
    }
}

async fn entries(directory: &std::path::Path) -> Result<Vec<PathBuf>, HostError> {
    let mut names = match tokio::fs::read_dir(directory).await {
        Ok(names) => names,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(unchanged(error)),
    };
    let mut paths = Vec::new();
    while let Some(entry) = names.next_entry().await.map_err(unchanged)? {
        paths.push(entry.path());
    }
    Ok(paths)
}

/// Removes every other directory.
async fn keep(directory: &std::path::Path, wanted: impl Fn(&std::path::Path) -> bool) -> Result<(), HostError> {
    for path in entries(directory).await? {
        if !wanted(&path) {
            absent_is_fine(tokio::fs::remove_dir_all(&path).await).map_err(unchanged)?;
        }
    }
    Ok(())
}

#[async_trait::async_trait]
impl Dialer for PretendHost {
    async fn dial(&self, microvm: &MicrovmId, vm: &VmId, port: u16) -> Result<Box<dyn AppStream>, DialError> {
        let ended = self.vms().get(microvm).filter(|it| it.id == *vm).map(|it| it.ended.clone());
        let ended = ended.ok_or(DialError::Gone)?;
        if port != app::PORT {
            return Err(DialError::Refused { port });
        }
        Ok(app::connect(*microvm, *vm, async move { ended.cancelled().await }))
    }

    async fn shell(&self, microvm: &MicrovmId, vm: &VmId, _: Option<String>) -> Result<Shell, ShellError> {
        match self.vms().get(microvm) {
            Some(it) if it.id == *vm => {
                Err(ShellError::Refused { reason: "there is no guest in a pretend VM".to_owned() })
            }
            _ => Err(ShellError::Gone),
        }
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
