//! What everybody else holds of a microVM: its driver's mailbox, what the driver last published, and the idle clock.

use std::{
    sync::atomic::{AtomicU64, Ordering, fence},
    time::Duration,
};

use api::{
    ids::{EndpointId, MicrovmId, VmId},
    size::Size,
};
use tokio::{
    sync::{Semaphore, mpsc, oneshot, watch},
    time::Instant,
};

use super::{
    admission::{Admission, Refusal, Request, admit},
    record::{Contract, Record},
    state::{Aim, State},
};
use crate::store::StoreError;

/// Requests that wait in a driver's mailbox; more wait outside, each with its own deadline.
const MAILBOX_MAX: usize = 64;

/// How long a request waits for the driver's decision. The driver decides at once, unless the database is stuck.
const DECISION_TIME_MAX: Duration = Duration::from_secs(20);

/// What a driver publishes; it is in the database already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Status {
    /// Its state.
    pub(crate) state: State,
    /// Its VM, while it runs.
    pub(crate) vm_id: Option<VmId>,
    /// Is it, while suspended, being resumed?
    pub(crate) resuming: bool,
    /// How many resumes have failed since the driver started: who waits for one sees that it did.
    pub(crate) resumes_failed: u64,
    /// Why it is so.
    pub(crate) reason: Option<String>,
}

/// What a driver takes.
#[derive(Debug)]
pub(crate) enum Command {
    /// Somebody asks for something.
    Ask {
        /// What.
        request: Request,
        /// Where the decision goes, once what depends on it is in the database.
        reply: oneshot::Sender<Result<(), AskError>>,
    },
    /// The host says that a VM ended by itself.
    Ended {
        /// Which.
        vm_id: VmId,
        /// Why.
        reason: String,
    },
}

/// Why a microVM does not do what was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    /// It may not.
    #[error("the request was refused")]
    Refused(#[source] Refusal),
    /// The daemon is about to stop.
    #[error("the daemon is stopping")]
    Stopping,
    /// Its driver did not decide in time.
    #[error("the decision took too long")]
    Late,
    /// The decision could not be written.
    #[error("the decision could not be kept")]
    Store(#[source] StoreError),
}

/// The way to a microVM's driver.
#[derive(Debug)]
pub(crate) struct Handle {
    /// Which microVM.
    pub(crate) microvm_id: MicrovmId,
    /// Its endpoint.
    pub(crate) endpoint: EndpointId,
    /// Its size.
    pub(crate) size: Size,
    /// What was agreed.
    pub(crate) contract: Contract,
    /// Who may wait for it to run.
    pub(crate) waiters: Semaphore,
    status: watch::Receiver<Status>,
    mailbox: mpsc::Sender<Command>,
    base: Instant,
    active_ms: AtomicU64,
}

impl Handle {
    /// A handle, with the ends that its driver keeps.
    pub(crate) fn new(record: &Record, waiters_max: usize) -> (Self, watch::Sender<Status>, mpsc::Receiver<Command>) {
        let (publish, status) = watch::channel(Status {
            state: record.fate.state,
            vm_id: None,
            resuming: false,
            resumes_failed: 0,
            reason: record.fate.reason.clone(),
        });
        let (mailbox, commands) = mpsc::channel(MAILBOX_MAX);
        let handle = Self {
            microvm_id: record.spec.microvm_id,
            endpoint: record.endpoint,
            size: record.spec.size,
            contract: record.contract.clone(),
            waiters: Semaphore::new(waiters_max),
            status,
            mailbox,
            base: Instant::now(),
            active_ms: AtomicU64::new(0),
        };
        (handle, publish, commands)
    }

    /// What the driver published last.
    pub(crate) fn status(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }

    /// The VM, if it runs now: the way of nearly every request to an endpoint.
    pub(crate) fn running(&self) -> Option<VmId> {
        self.status.borrow().vm_id
    }

    /// Whether it has ended, or is about to.
    pub(crate) fn has_ended(&self) -> bool {
        matches!(self.status.borrow().state, State::Terminating | State::Terminated)
    }

    /// Restarts the idle clock.
    ///
    /// Who then looks at the status and finds a VM may use it: the driver, having published that it suspends, looks at the
    /// clock again. Of the two at least one sees the other, which is what the fences are for.
    pub(crate) fn touch(&self) {
        self.active_ms.store(self.elapsed_ms(), Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Time since the idle clock was restarted.
    pub(crate) fn idle(&self) -> Duration {
        fence(Ordering::SeqCst);
        Duration::from_millis(self.elapsed_ms().saturating_sub(self.active_ms.load(Ordering::Relaxed)))
    }

    fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.base.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Tells the driver that a VM ended.
    pub(crate) async fn ended(&self, vm_id: VmId, reason: String) {
        // A driver that is gone has nothing left to end.
        let _ = self.mailbox.send(Command::Ended { vm_id, reason }).await;
    }

    /// Asks for something; returns when it is decided and, where it must survive a crash, written.
    pub(crate) async fn ask(&self, request: Request) -> Result<(), AskError> {
        let ask = async {
            let (reply, decision) = oneshot::channel();
            if self.mailbox.send(Command::Ask { request, reply }).await.is_err() {
                return self.decide_without_driver(request);
            }
            match decision.await {
                Ok(decision) => decision,
                Err(_) => self.decide_without_driver(request),
            }
        };
        tokio::time::timeout(DECISION_TIME_MAX, ask).await.unwrap_or(Err(AskError::Late))
    }

    /// A driver goes when its microVM has ended, and then nothing changes any more; or when the daemon stops.
    fn decide_without_driver(&self, request: Request) -> Result<(), AskError> {
        let state = self.status.borrow().state;
        if state != State::Terminated {
            return Err(AskError::Stopping);
        }
        match admit(state, Aim::Terminated, request, self.contract.terms()) {
            Admission::Refuse(refusal) => Err(AskError::Refused(refusal)),
            Admission::Repeated | Admission::Aim(_) => Ok(()),
        }
    }
}
