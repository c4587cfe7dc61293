//! The one task that owns a microVM's state.
//!
//! It takes what is asked, lets [`admit`] decide, and works toward the aim one verb at a time. A state is in the database
//! before it is published and before the verb that depends on it begins; so whatever anybody has seen is still so after a
//! crash, and [`crate::recovery`] can go on from there.

use std::{sync::Arc, time::Duration};

use api::{
    host::{HostError, MicrovmSpec, SharedHost, VERB_TIME_MAX},
    ids::VmId,
};
use failpoint::step;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::task::AbortOnDropHandle;
use tracing::{Instrument, debug, error, info, info_span, warn};

use super::{
    admission::{Admission, Request, admit},
    deadline::{Due, due},
    handle::{AskError, Command, Handle, Status},
    meter::Meter,
    record::{Fate, Record},
    state::{Aim, Event, State, Verb, next, verb},
};
use crate::{
    shared::Shared,
    store::{StoreError, microvms as rows},
};

/// How long a verb that saves or checks all of a guest's memory may take. On a slow disk that is slow, not lost; and
/// what does not end in time is ended.
const MEMORY_VERB_TIME_MAX: Duration = Duration::from_secs(900);

/// `stateReason` of a microVM that ended as agreed.
pub(crate) const REASON_SUCCESS: &str = "Success.";

/// How long a host may take to say what a VM uses; then it is not known.
const USAGE_TIME_MAX: Duration = Duration::from_secs(2);

/// First and longest wait before a failed write or terminate is tried again.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(10);

type Outcome = Result<Option<VmId>, HostError>;

struct InProgress {
    verb: Verb,
    task: AbortOnDropHandle<Outcome>,
}

/// The owner of one microVM's state.
pub(crate) struct Driver {
    shared: Arc<Shared>,
    handle: Arc<Handle>,
    record: Record,
    vm_id: Option<VmId>,
    /// Something of an earlier launch may be left.
    remains: bool,
    resumes_failed: u64,
    /// What is known of its work, where work keeps it awake.
    meter: Option<Meter>,
    /// Nobody asked for what it is on its way to: silence did.
    for_silence: bool,
    in_progress: Option<InProgress>,
    /// A VM that ended before the verb that started it was known to have succeeded.
    ended_early: Option<(VmId, String)>,
    /// Not before this is a failed terminate, or a request of the clock that could not be kept, tried again.
    retry_at: Option<Instant>,
    retry_after: Duration,
    status: watch::Sender<Status>,
    commands: mpsc::Receiver<Command>,
}

impl Driver {
    /// A driver, with its handle, for a microVM that is as its record says; whose VM, if it runs, is this one; and of
    /// which, if it is not launched yet, something may be left of an earlier try.
    pub(crate) fn new(shared: Arc<Shared>, record: Record, vm_id: Option<VmId>, remains: bool) -> (Self, Arc<Handle>) {
        let (handle, status, commands) = Handle::new(&record, shared.config.waiters_per_microvm_max);
        let handle = Arc::new(handle);
        let work = shared.config.lifecycle.work(&record.contract.image_arn.name);
        // Without a policy nothing is suspended for silence, and work need not be known.
        let work = work.filter(|_| record.contract.idle_policy.is_some());
        let driver = Self {
            shared,
            handle: handle.clone(),
            record,
            vm_id,
            remains,
            resumes_failed: 0,
            meter: work.map(|work| Meter::new(work, Instant::now())),
            for_silence: false,
            in_progress: None,
            ended_early: None,
            retry_at: None,
            retry_after: RETRY_FIRST,
            status,
            commands,
        };
        driver.publish();
        (driver, handle)
    }

    /// Drives until the microVM has ended or the daemon stops. Verbs in progress are let finish.
    pub(crate) async fn run(mut self) {
        let span = info_span!("microvm", id = %self.record.spec.microvm_id);
        async move {
            while self.record.fate.state != State::Terminated {
                let draining = self.shared.draining.is_cancelled();
                if self.in_progress.is_none()
                    && !draining
                    && self.may_begin()
                    && let Some(verb) = verb(self.record.fate.state, self.record.fate.aim)
                {
                    self.begin(verb).await;
                    continue;
                }
                if self.in_progress.is_none() && draining {
                    break;
                }
                self.step().await;
            }
        }
        .instrument(span)
        .await;
    }

    /// Waits for the next thing to happen and deals with it.
    async fn step(&mut self) {
        let busy = self.in_progress.is_some();
        self.look_at_work().await;
        let wake_at = match due(&self.record, &self.shared.clock.now(), self.handle.idle(), busy) {
            Due::Now(request) if self.may_begin() => {
                if request == Request::Idle && self.works_after_all().await {
                    return;
                }
                return self.clock(request).await;
            }
            Due::Now(_) => None,
            Due::In(wait) => {
                Some(self.next_look().map_or(Instant::now() + wait, |look| look.min(Instant::now() + wait)))
            }
        };
        let retry_at = self.retry_at;
        let wake_at = match (wake_at, retry_at) {
            (Some(a), Some(b)) => a.min(b),
            (Some(at), None) | (None, Some(at)) => at,
            (None, None) => Instant::now(),
        };
        let draining = self.shared.draining.clone();
        tokio::select! {
            // What has happened comes before what is asked, and that before what time asks.
            biased;
            outcome = outcome_of(&mut self.in_progress) => {
                if let Some(InProgress { verb, .. }) = self.in_progress.take() {
                    self.finished(verb, outcome).await;
                }
            }
            command = self.commands.recv() => match command {
                Some(Command::Ask { request, reply }) => self.asked(request, Some(reply)).await,
                Some(Command::Ended { vm_id, reason }) => self.vm_ended(vm_id, reason).await,
                None => {}
            },
            () = sleep_until(wake_at) => {
                if retry_at.is_some_and(|at| at <= Instant::now()) {
                    self.retry_at = None;
                }
            }
            () = draining.cancelled(), if !busy => {}
        }
    }

    fn may_begin(&self) -> bool {
        self.retry_at.is_none_or(|at| at <= Instant::now())
    }

    fn retry_later(&mut self) {
        self.retry_at = Some(Instant::now() + self.retry_after);
        self.retry_after = (self.retry_after * 2).min(RETRY_MAX);
    }

    /// When to look at its work again, if that is to be looked at now.
    fn next_look(&self) -> Option<Instant> {
        let looked_at = self.record.fate.state == State::Running && self.in_progress.is_none();
        self.meter.as_ref().filter(|_| looked_at).map(Meter::next)
    }

    /// Looks at its work when it is time to.
    async fn look_at_work(&mut self) {
        if self.next_look().is_some_and(|at| at <= Instant::now()) {
            self.look_now().await;
        }
    }

    /// Before it is suspended for silence: is it at work since the last look?
    async fn works_after_all(&mut self) -> bool {
        let old = self.meter.as_ref().is_some_and(|meter| meter.is_old(Instant::now()));
        old && self.look_now().await
    }

    /// Looks at its work, which restarts the idle clock.
    async fn look_now(&mut self) -> bool {
        let (Some(meter), Some(vm_id)) = (&mut self.meter, self.vm_id) else { return false };
        let usage = self.shared.host.usage(&self.record.spec.microvm_id, &vm_id);
        let usage = timeout(USAGE_TIME_MAX, usage).await.unwrap_or(None);
        let worked = meter.look(vm_id, Instant::now(), usage);
        if worked {
            self.handle.touch();
        }
        worked
    }

    /// Time asks for something.
    async fn clock(&mut self, request: Request) {
        let before = self.record.fate.clone();
        debug!(?request, "a time limit has passed");
        self.asked(request, None).await;
        if self.record.fate == before {
            // It could not be written: do not spin.
            self.retry_later();
        }
    }

    /// Decides about a request; answers once the decision is kept.
    async fn asked(&mut self, request: Request, reply: Option<oneshot::Sender<Result<(), AskError>>>) {
        let fate = &self.record.fate;
        let answer = match admit(fate.state, fate.aim, request, self.record.contract.terms()) {
            Admission::Refuse(refusal) => Err(AskError::Refused(refusal)),
            Admission::Repeated => Ok(()),
            Admission::Aim(aim) => self.take_aim(request, aim).await.map_err(AskError::Store),
        };
        if let Err(AskError::Store(error)) = &answer {
            error!(error = error as &dyn std::error::Error, ?request, "a decision could not be kept");
        }
        if let Some(reply) = reply {
            // Who asked may have gone; the decision stands.
            let _ = reply.send(answer);
        }
    }

    async fn take_aim(&mut self, request: Request, aim: Aim) -> Result<(), StoreError> {
        let mut fate = Fate { aim, ..self.record.fate.clone() };
        let event = match aim {
            Aim::Terminated => Some(Event::EndStarted),
            // In the same write as the aim; with a verb in progress, when that has finished.
            Aim::Suspended if self.in_progress.is_none() && fate.state == State::Running => Some(Event::SuspendStarted),
            Aim::Suspended | Aim::Running => None,
        };
        if let Some(event) = event {
            fate.state = self.after(event);
        }
        if aim == Aim::Terminated {
            fate.reason = Some(REASON_SUCCESS.to_owned());
        }
        // A wake need not survive a crash: who waits for it does not either.
        if request != Request::Wake {
            self.write(&fate).await?;
        }
        self.record.fate = fate;
        self.for_silence = request == Request::Idle;
        self.retry_at = None;
        self.publish();
        Ok(())
    }

    /// Begins a verb; what it depends on is written first.
    async fn begin(&mut self, verb: Verb) {
        match (verb, self.record.fate.state) {
            (Verb::Suspend, State::Running) => self.change(Event::SuspendStarted, |_| {}).await,
            (Verb::Terminate, State::Pending | State::Running | State::Suspending | State::Suspended) => {
                self.change(Event::EndStarted, |_| {}).await;
            }
            // A VM left of an earlier try is about to be removed: that it ends is no news of this microVM.
            (Verb::Run, _) => self.vm_id = None,
            (_, _) => {}
        }
        // Who sees it SUSPENDING waits. Who saw it run a moment before has restarted the clock, and has a request on its way into
        // the VM, which is not to be cut off.
        if verb == Verb::Suspend && self.for_silence && self.was_touched() {
            return self.change(Event::SuspendUnchanged, |fate| fate.aim = Aim::Running).await;
        }
        step(match verb {
            Verb::Run => "run.begun",
            Verb::Suspend => "suspend.begun",
            Verb::Resume => "resume.begun",
            Verb::Terminate => "terminate.begun",
        });
        debug!(?verb, "begin");
        let perform = perform(self.shared.host.clone(), verb, self.remains, self.record.spec.clone());
        let task = tokio::spawn(perform.in_current_span());
        self.in_progress = Some(InProgress { verb, task: AbortOnDropHandle::new(task) });
        self.ended_early = None;
        self.publish();
    }

    fn was_touched(&self) -> bool {
        let policy = self.record.contract.idle_policy;
        policy.is_some_and(|policy| self.handle.idle() < Duration::from_secs(policy.max_idle_duration_seconds.into()))
    }

    async fn finished(&mut self, verb: Verb, outcome: Outcome) {
        info!(?verb, outcome = outcome.as_ref().map_or_else(ToString::to_string, |_| "done".to_owned()), "finished");
        step(match verb {
            Verb::Run => "run.done",
            Verb::Suspend => "suspend.done",
            Verb::Resume => "resume.done",
            Verb::Terminate => "terminate.done",
        });
        match (verb, outcome) {
            (Verb::Run, Ok(vm_id)) => self.started(Event::Launched, vm_id).await,
            (Verb::Resume, Ok(vm_id)) => self.started(Event::Resumed, vm_id).await,
            (
                Verb::Run,
                Err(HostError::Unchanged { reason } | HostError::Lost { reason } | HostError::NoCapacity { reason }),
            )
            | (Verb::Suspend | Verb::Resume, Err(HostError::Lost { reason })) => self.end(reason).await,
            (Verb::Suspend, Ok(_)) => {
                let now = self.shared.clock.now();
                self.vm_id = None;
                self.change(Event::Suspended, |fate| {
                    fate.suspended_at = Some(now);
                    fate.reason = None;
                })
                .await;
            }
            (Verb::Suspend, Err(HostError::Unchanged { reason } | HostError::NoCapacity { reason })) => {
                // The idle clock starts again, or an idle microVM would be suspended again at once, and for ever.
                self.handle.touch();
                self.change(Event::SuspendUnchanged, |fate| {
                    fate.aim = Aim::Running;
                    fate.reason = Some(format!("Suspend failed: {reason}"));
                })
                .await;
            }
            (Verb::Resume, Err(HostError::Unchanged { reason } | HostError::NoCapacity { reason })) => {
                self.resumes_failed += 1;
                self.change(Event::ResumeUnchanged, |fate| {
                    fate.aim = Aim::Suspended;
                    fate.reason = Some(format!("Resume failed: {reason}"));
                })
                .await;
            }
            (Verb::Terminate, Ok(_)) => {
                let now = self.shared.now();
                self.vm_id = None;
                self.change(Event::Ended, |fate| {
                    fate.suspended_at = None;
                    fate.terminated_at = Some(now);
                })
                .await;
            }
            (Verb::Terminate, Err(error)) => {
                warn!(error = &error as &dyn std::error::Error, "the microVM could not be removed");
                self.retry_later();
            }
        }
    }

    async fn started(&mut self, event: Event, vm_id: Option<VmId>) {
        self.vm_id = vm_id;
        self.handle.touch();
        self.change(event, |fate| {
            fate.suspended_at = None;
            fate.reason = None;
        })
        .await;
        if let Some((ended, reason)) = self.ended_early.take() {
            self.vm_ended(ended, reason).await;
        }
    }

    /// The host says that a VM ended by itself. Only the present one counts.
    async fn vm_ended(&mut self, vm_id: VmId, reason: String) {
        if self.vm_id == Some(vm_id) {
            info!(%vm_id, reason, "the VM ended by itself");
            self.vm_id = None;
            self.end(reason).await;
        } else if self.in_progress.as_ref().is_some_and(|it| matches!(it.verb, Verb::Run | Verb::Resume)) {
            self.ended_early = Some((vm_id, reason));
        }
    }

    /// The microVM is to end, for this reason unless there is one already.
    async fn end(&mut self, reason: String) {
        self.change(Event::EndStarted, |fate| {
            fate.aim = Aim::Terminated;
            fate.reason = Some(reason);
        })
        .await;
    }

    fn after(&self, event: Event) -> State {
        let state = self.record.fate.state;
        next(state, event).unwrap_or_else(|| {
            // The code above asks for no such thing; were it to, staying is what harms least.
            error!(%state, ?event, "an event that cannot happen");
            state
        })
    }

    /// Takes an event: writes what it changes, however long that takes, and then publishes it.
    async fn change(&mut self, event: Event, also: impl FnOnce(&mut Fate)) {
        let mut fate = Fate { state: self.after(event), ..self.record.fate.clone() };
        // A microVM that is to end keeps its reason and its aim, whatever the verb in progress comes to.
        if self.record.fate.state != State::Terminating || event == Event::Ended {
            also(&mut fate);
        }
        if fate != self.record.fate {
            let mut wait = RETRY_FIRST;
            while let Err(error) = self.write(&fate).await {
                error!(error = &error as &dyn std::error::Error, "what became of a microVM could not be kept");
                sleep(wait).await;
                wait = (wait * 2).min(RETRY_MAX);
            }
            self.record.fate = fate;
            self.retry_after = RETRY_FIRST;
        }
        self.publish();
    }

    async fn write(&self, fate: &Fate) -> Result<(), StoreError> {
        let mut connection = self.shared.store.write().await?;
        rows::update(&mut connection, &self.record.spec.microvm_id, fate).await
    }

    fn publish(&self) {
        let Fate { state, reason, .. } = &self.record.fate;
        let status = Status {
            state: *state,
            vm_id: self.vm_id.filter(|_| *state == State::Running),
            resuming: self.in_progress.as_ref().is_some_and(|it| it.verb == Verb::Resume),
            resumes_failed: self.resumes_failed,
            reason: reason.clone(),
        };
        self.status.send_if_modified(|now| {
            let changed = *now != status;
            if changed {
                *now = status;
            }
            changed
        });
    }
}

/// Waits for the verb in progress, if there is one; for ever, if there is none.
async fn outcome_of(in_progress: &mut Option<InProgress>) -> Outcome {
    match in_progress {
        None => std::future::pending().await,
        Some(InProgress { task, .. }) => task.await.unwrap_or_else(|failure| {
            error!(error = &failure as &dyn std::error::Error, "a verb came to no end");
            Err(HostError::Lost { reason: "INTERNAL_PLATFORM_ERROR: the host failed".to_owned() })
        }),
    }
}

async fn perform(host: SharedHost, verb: Verb, remains: bool, spec: MicrovmSpec) -> Outcome {
    let perform = async {
        match verb {
            Verb::Run if remains => {
                host.terminate(&spec).await?;
                host.run(&spec).await.map(Some)
            }
            Verb::Run => host.run(&spec).await.map(Some),
            Verb::Suspend => host.suspend(&spec).await.map(|report| {
                let (memory_bytes, device_bytes) = (report.memory_bytes, report.device_bytes);
                debug!(memory_bytes, device_bytes, "suspended");
                None
            }),
            Verb::Resume => host.resume(&spec).await.map(Some),
            Verb::Terminate => host.terminate(&spec).await.map(|()| None),
        }
    };
    let limit = match verb {
        Verb::Suspend | Verb::Resume => MEMORY_VERB_TIME_MAX,
        Verb::Run | Verb::Terminate => VERB_TIME_MAX,
    };
    timeout(limit, perform).await.unwrap_or_else(|_| {
        Err(HostError::Lost { reason: "INTERNAL_PLATFORM_ERROR: the host did not answer in time".to_owned() })
    })
}
