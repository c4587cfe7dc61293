//! Control as the edge sees it.

use std::time::Duration;

use api::{
    apart::Leaving,
    directory::{Behind, Directory, Unavailable},
    ids::{EndpointId, MicrovmId, VmId},
    microvms::MicrovmState as State,
};
use tokio::time::timeout;

use crate::{
    Control,
    microvms::{
        admission::{Refusal, Request},
        driver::REASON_SUCCESS,
        handle::{AskError, Handle, Status},
    },
};

#[async_trait::async_trait]
impl Directory for Control {
    async fn behind(&self, endpoint: &EndpointId) -> Result<Option<Behind>, Unavailable> {
        Ok(self.shared.registry.behind(endpoint))
    }

    async fn awake(&self, microvm: &MicrovmId) -> Result<VmId, Unavailable> {
        let handle = self.shared.registry.get(microvm).ok_or(Unavailable::Ended)?;
        // Before the look at the state: an idle suspend that has not begun is put off by this.
        handle.touch();
        if let Some(vm_id) = handle.running() {
            return Ok(vm_id);
        }
        let _place = handle.waiters.try_acquire().map_err(|_| Unavailable::Late)?;
        wait(&handle, self.shared.config.wake_time_max).await
    }

    fn touch(&self, microvm: &MicrovmId) {
        self.shared.registry.touch(microvm);
    }
}

#[async_trait::async_trait]
impl Leaving for Control {
    async fn left(&self, microvm: &MicrovmId, vm: &VmId) {
        let Some(handle) = self.shared.registry.get(microvm) else { return };
        // An error is the end of its driver: it has ended, or the daemon stops.
        let _ = handle.status().wait_for(|status| status.vm_id != Some(*vm)).await;
    }
}

async fn wait(handle: &Handle, time_max: Duration) -> Result<VmId, Unavailable> {
    timeout(time_max, until_awake(handle)).await.unwrap_or(Err(Unavailable::Late))
}

async fn until_awake(handle: &Handle) -> Result<VmId, Unavailable> {
    let mut status = handle.status();
    // Resumes that had failed before this request took part in one.
    let mut failed_before = None;
    loop {
        let Status { state, vm_id, resuming, resumes_failed, reason } = status.borrow_and_update().clone();
        match state {
            State::Running => {
                if let Some(vm_id) = vm_id {
                    return Ok(vm_id);
                }
            }
            State::Pending | State::Suspending => {}
            State::Suspended if failed_before.is_some_and(|before| before != resumes_failed) => {
                return Err(Unavailable::WakeFailed { reason: reason.unwrap_or_default() });
            }
            State::Suspended => {
                // However many ask, the driver resumes once; who sees it resuming need not even ask.
                if !resuming {
                    handle.ask(Request::Wake).await.map_err(unavailable)?;
                }
                failed_before.get_or_insert(resumes_failed);
            }
            State::Terminating | State::Terminated => {
                return Err(match (failed_before, reason) {
                    (Some(_), Some(reason)) if reason != REASON_SUCCESS => Unavailable::WakeFailed { reason },
                    (_, _) => Unavailable::Ended,
                });
            }
        }
        if status.changed().await.is_err() {
            // The driver is gone: the microVM has ended, or the daemon stops.
            let ended = status.borrow().state == State::Terminated;
            return Err(if ended { Unavailable::Ended } else { Unavailable::Late });
        }
    }
}

fn unavailable(error: AskError) -> Unavailable {
    match error {
        AskError::Refused(Refusal::Asleep) => Unavailable::Asleep,
        AskError::Refused(Refusal::Ended) => Unavailable::Ended,
        AskError::Stopping | AskError::Late | AskError::Store(_) => Unavailable::Late,
    }
}
