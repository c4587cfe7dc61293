//! What the client of a history knows of a microVM, and what it may expect.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use api::{
    ids::MicrovmId,
    microvms::{GetMicrovmResponse, IdlePolicy, MicrovmState as State},
};

use super::world::{COMMON, World};

/// Rounding, and the time that passes between a state and our learning of it.
const SLACK: Duration = Duration::from_secs(2);

/// How long the record of a microVM that has ended is to be seen.
const RECORD_KEPT: Duration = Duration::from_secs(3600 - 120);

/// Of one request that counts, and of all of them.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tally {
    /// The largest number that was answered.
    pub acknowledged: u64,
    /// How many requests were sent.
    pub sent: u64,
    /// Requests without an answer yet.
    pub open: u64,
    /// A request was refused that had to be answered, unless the microVM turns out to have ended.
    pub refused: Option<&'static str>,
}

/// A microVM, as its owner sees it.
pub struct Session {
    /// Its id.
    pub id: MicrovmId,
    /// Its endpoint.
    pub endpoint: String,
    /// Whether its image has hooks.
    pub hooked: bool,
    /// Its policy.
    pub policy: Option<IdlePolicy>,
    /// How long it may live.
    pub life_max: Duration,
    /// When it was asked for, at the latest.
    pub begun: Duration,
    /// What it has counted.
    pub tally: Arc<Mutex<Tally>>,
    /// The state seen last.
    pub seen: State,
    /// It has been seen to run.
    pub ran: bool,
    /// When it was last known not to be suspended.
    pub awake_at: Duration,
    /// A suspend was asked for.
    pub suspend_asked: bool,
    /// Its end was asked for.
    pub end_asked: bool,
    /// A file of its suspend snapshot was damaged.
    pub damaged: bool,
    /// When it was last seen to live.
    pub lived_at: Duration,
    /// It is not known any more.
    pub forgotten: bool,
}

impl Session {
    /// One that was just asked for.
    pub fn new(told: &GetMicrovmResponse, hooked: bool, begun: Duration) -> Self {
        Self {
            id: told.microvm_id,
            endpoint: told.endpoint.clone(),
            hooked,
            policy: told.idle_policy,
            life_max: Duration::from_secs(told.maximum_duration_in_seconds.into()),
            begun,
            tally: Arc::default(),
            seen: State::Pending,
            ran: false,
            awake_at: begun,
            suspend_asked: false,
            end_asked: false,
            damaged: false,
            lived_at: begun,
            forgotten: false,
        }
    }

    /// What it has counted.
    pub fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does it live, for all that is known?
    pub fn lives(&self) -> bool {
        !matches!(self.seen, State::Terminating | State::Terminated)
    }

    /// Takes in what was told of it, and says what is wrong with that.
    pub fn learn(&mut self, told: &GetMicrovmResponse, world: &World) -> Result<(), String> {
        let (before, now, at) = (self.seen, told.state, world.elapsed());
        let legal = match before {
            State::Pending => true,
            State::Running | State::Suspending | State::Suspended => now != State::Pending,
            State::Terminating => matches!(now, State::Terminating | State::Terminated),
            State::Terminated => now == State::Terminated,
        };
        if !legal {
            return Err(format!("was {before} and is {now}"));
        }
        if before != now {
            let (id, data) = (self.id.to_string(), world.data.display().to_string());
            let name = world.name(&id);
            // Without what is another each time.
            let reason = told.state_reason.as_deref().unwrap_or("-").replace(&data, "").replace(&id, &name);
            world.log(format_args!("{name} is {now}: {reason}"));
        }
        self.seen = now;
        self.ran |= matches!(now, State::Running | State::Suspending | State::Suspended);
        if matches!(now, State::Pending | State::Running) {
            self.awake_at = at;
        }
        if self.lives() {
            self.lived_at = at;
            // One in progress is cut off by a suspend that somebody asks for.
            let refused = self.tally().refused.take().filter(|_| !self.suspend_asked);
            return refused.map_or(Ok(()), |said| Err(format!("lives, and refused a request in calm weather: {said}")));
        }
        if matches!(before, State::Terminating | State::Terminated) {
            return Ok(());
        }
        self.may_have_ended(told.state_reason.as_deref(), world)
    }

    /// It is not known to control.
    pub fn learn_nothing(&mut self, world: &World) -> Result<(), String> {
        self.forgotten = true;
        self.seen = State::Terminated;
        if world.elapsed().saturating_sub(self.lived_at) < RECORD_KEPT {
            return Err("is not known any more, and lived not long ago".to_owned());
        }
        Ok(())
    }

    fn may_have_ended(&self, reason: Option<&str>, world: &World) -> Result<(), String> {
        let Some(reason) = reason.filter(|reason| !reason.is_empty()) else {
            return Err("ended without a reason".to_owned());
        };
        if self.end_asked {
            return Ok(());
        }
        let now = world.elapsed() + SLACK;
        if now >= self.begun + self.life_max {
            return Ok(());
        }
        if let Some(policy) = self.policy {
            let idle = Duration::from_secs(policy.max_idle_duration_seconds.into());
            let suspended = Duration::from_secs(policy.suspended_duration_seconds.into());
            let long = now.saturating_sub(self.awake_at) >= suspended;
            // Zero ends it in the place of a suspend.
            let none = suspended.is_zero() && (self.suspend_asked || now >= self.begun + idle);
            if none || (!suspended.is_zero() && long) {
                return Ok(());
            }
        }
        let who = self.id.to_string();
        let faults = |whats: &[&str]| world.faults(&who, whats);
        let excused = if self.ran {
            // What a live session may be lost to: its VM or its app ended, it cannot be set going or taken over, or a hook
            // said no. Silence of its agent is to be waited out, by a server that starts for two minutes and else for ten;
            // so is a full disk.
            // A hook has a second by default, and one connection that hangs takes it all.
            let late = self.hooked && faults(&["connect"]) > 0;
            let mute = faults(&["silent agent", "connect"]) > 3;
            // It is tried five times to take a VM over.
            let left = faults(&["attach"]) >= 5;
            faults(&["death", "exit", "resume", "hook"]) > 0 || mute || late || left
        } else {
            let any = ["restore", "resume", "connect", "silent agent", "hook", "death", "exit", "disk", "kill"];
            faults(&any) > 0 || world.faults(COMMON, &["take network"]) > 0
        };
        if excused { Ok(()) } else { Err(format!("ended ({reason}), and nothing was done to it that explains that")) }
    }
}
