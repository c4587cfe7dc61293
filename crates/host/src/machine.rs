//! One VM that runs, and the task that watches it.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex, RwLock},
    time::Duration,
};

use api::{host::MicrovmSpec, ids::VmId};
use guest_protocol::AppEnd;
use tokio_util::sync::CancellationToken;
use vmm::RunState;

use crate::{
    agent::{Agent, AgentError},
    capacity,
    console::Console,
    log::BoundedLog,
    platform::{Platform, SharedNetwork, SharedVm},
};

/// Pause before the agent is called again after its connection broke.
const RECONNECT_PAUSE: Duration = Duration::from_millis(500);

/// How often a running VM is asked whether a full disk has stopped it.
const DISK_LOOK_PAUSE: Duration = Duration::from_secs(10);

/// A running microVM.
pub struct Machine {
    /// What it is.
    pub spec: MicrovmSpec,
    /// This incarnation.
    pub vm_id: VmId,
    /// Its process.
    pub vm: SharedVm,
    /// Its network.
    pub namespace: SharedNetwork,
    /// The app's output.
    pub app_log: Arc<Mutex<BoundedLog>>,
    /// Held by whatever changes or ends the VM, one at a time.
    pub verb: tokio::sync::Mutex<()>,
    /// Cancelled when the VM is ended: streams into it then fail at once, rather than wait for a peer that is gone.
    pub over: CancellationToken,
    agent: RwLock<Arc<Agent>>,
    console: Console,
}

/// How a VM ended by itself.
#[derive(Debug)]
pub enum End {
    /// The app's first process ended.
    App(AppEnd),
    /// The VMM process ended, and this is the last its guest wrote to the console.
    Vmm(vmm::ExitReport, Vec<u8>),
}

impl Machine {
    /// Puts together the parts of a VM that runs.
    pub fn new(
        spec: MicrovmSpec,
        vm_id: VmId,
        vm: SharedVm,
        namespace: SharedNetwork,
        agent: Agent,
        app_log: Arc<Mutex<BoundedLog>>,
        console: Console,
    ) -> Self {
        Self {
            spec,
            vm_id,
            vm,
            namespace,
            app_log,
            verb: tokio::sync::Mutex::new(()),
            over: CancellationToken::new(),
            agent: RwLock::new(Arc::new(agent)),
            console,
        }
    }

    /// The connection to the agent.
    pub fn agent(&self) -> Arc<Agent> {
        Arc::clone(&self.agent.read().expect("no holder of this lock panics"))
    }

    /// Returns when the VM ends by itself.
    pub async fn ended(&self, platform: &dyn Platform) -> End {
        let report = tokio::select! {
            // If both have ended, the app's end says more.
            biased;
            end = self.app_ended() => return End::App(end),
            report = self.vm.exited() => report,
            never = self.mind_the_disk(platform) => match never {},
        };
        End::Vmm(report, self.console.last_words().await)
    }

    /// QEMU stops a guest whose write finds the host's disk full, rather than fail the write. Once there is room it
    /// goes on, and the guest has noticed nothing but the time.
    async fn mind_the_disk(&self, platform: &dyn Platform) -> Infallible {
        loop {
            tokio::time::sleep(DISK_LOOK_PAUSE).await;
            let _verb = self.verb.lock().await;
            if !matches!(self.vm.run_state().await, Ok(RunState::IoError)) {
                continue;
            }
            let microvm = self.spec.microvm_id;
            if capacity::has_room(platform, self.vm.dir(), 0).unwrap_or(false) {
                tracing::info!(%microvm, "the disk has room again: the guest goes on");
                if let Err(error) = self.vm.resume().await {
                    tracing::error!(%microvm, %error, "a guest stopped by a full disk cannot go on");
                }
            } else {
                tracing::error!(%microvm, "the guest stands still: this host's disk is full");
            }
        }
    }

    async fn app_ended(&self) -> AppEnd {
        loop {
            if let Some(end) = self.agent().app_exited().await {
                return end;
            }
            tokio::time::sleep(RECONNECT_PAUSE).await;
            if let Err(error) = self.reconnect().await {
                tracing::warn!(microvm = %self.spec.microvm_id, %error, "the agent cannot be reached");
            }
        }
    }

    /// Replaces a broken connection to the agent.
    async fn reconnect(&self) -> Result<(), AgentError> {
        let agent = Agent::connect(&*self.namespace, Arc::clone(&self.app_log)).await?;
        agent.status().await?;
        *self.agent.write().expect("no holder of this lock panics") = Arc::new(agent);
        Ok(())
    }
}
