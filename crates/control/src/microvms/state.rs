//! The states of a microVM and the only ways between them.
//!
//! ```text
//!            Launched             SuspendStarted             Suspended
//! PENDING ─────────────► RUNNING ────────────────► SUSPENDING ──────────► SUSPENDED
//!    │                    ▲   ▲                        │                     │
//!    │                    │   └────SuspendUnchanged────┘                     │
//!    │                    └─────────────────────Resumed──────────────────────┘
//!    │
//!    └─ and from all of them ── EndStarted ──► TERMINATING ── Ended ──► TERMINATED
//! ```
//!
//! There is no RESUMING: a microVM that is being resumed is SUSPENDED until it runs.

use std::str::FromStr;

pub(crate) use api::microvms::MicrovmState as State;
use api::word::ParseWordError;

/// What can happen to a microVM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Event {
    /// The host launched it.
    Launched,
    /// A suspend is about to begin.
    SuspendStarted,
    /// The host suspended it.
    Suspended,
    /// The host could not suspend it, and it runs on.
    SuspendUnchanged,
    /// The host resumed it.
    Resumed,
    /// The host could not resume it, and its snapshot is whole.
    ResumeUnchanged,
    /// It is to end: somebody asked, a limit passed, or the host lost it.
    EndStarted,
    /// The host removed everything of it.
    Ended,
    /// After a restart, the host has its VM.
    FoundRunning,
    /// After a restart, the host has a whole snapshot of it and no VM.
    FoundSuspended,
    /// After a restart, the host has nothing of it.
    FoundNothing,
}

/// The state after an event; `None` where the event cannot happen.
pub(crate) fn next(state: State, event: Event) -> Option<State> {
    use Event as E;
    use State as S;
    match (state, event) {
        (S::Pending, E::Launched) => Some(S::Running),
        (S::Pending, E::EndStarted) => Some(S::Terminating),
        (
            S::Pending,
            E::SuspendStarted | E::Suspended | E::SuspendUnchanged | E::Resumed | E::ResumeUnchanged | E::Ended,
        ) => None,
        // Nobody has seen it run, so whatever there is of it is removed and it is launched afresh.
        (S::Pending, E::FoundRunning | E::FoundSuspended | E::FoundNothing) => Some(S::Pending),

        (S::Running, E::SuspendStarted) => Some(S::Suspending),
        (S::Running, E::EndStarted) => Some(S::Terminating),
        (S::Running, E::Launched | E::Suspended | E::SuspendUnchanged | E::Resumed | E::ResumeUnchanged | E::Ended) => {
            None
        }
        (S::Running, E::FoundRunning) => Some(S::Running),
        (S::Running, E::FoundSuspended) => Some(S::Suspended),
        (S::Running, E::FoundNothing) => Some(S::Terminating),

        // A suspend that a restart interrupted is begun again.
        (S::Suspending, E::SuspendStarted) => Some(S::Suspending),
        (S::Suspending, E::Suspended) => Some(S::Suspended),
        (S::Suspending, E::SuspendUnchanged) => Some(S::Running),
        (S::Suspending, E::EndStarted) => Some(S::Terminating),
        (S::Suspending, E::Launched | E::Resumed | E::ResumeUnchanged | E::Ended) => None,
        (S::Suspending, E::FoundRunning) => Some(S::Suspending),
        (S::Suspending, E::FoundSuspended) => Some(S::Suspended),
        (S::Suspending, E::FoundNothing) => Some(S::Terminating),

        (S::Suspended, E::Resumed) => Some(S::Running),
        (S::Suspended, E::ResumeUnchanged) => Some(S::Suspended),
        (S::Suspended, E::EndStarted) => Some(S::Terminating),
        (S::Suspended, E::Launched | E::SuspendStarted | E::Suspended | E::SuspendUnchanged | E::Ended) => None,
        // It was being resumed.
        (S::Suspended, E::FoundRunning) => Some(S::Running),
        (S::Suspended, E::FoundSuspended) => Some(S::Suspended),
        (S::Suspended, E::FoundNothing) => Some(S::Terminating),

        // What a verb in progress comes to no longer matters once the microVM is to end.
        (
            S::Terminating,
            E::Launched
            | E::Suspended
            | E::SuspendUnchanged
            | E::Resumed
            | E::ResumeUnchanged
            | E::EndStarted
            | E::FoundRunning
            | E::FoundSuspended
            | E::FoundNothing,
        ) => Some(S::Terminating),
        (S::Terminating, E::Ended) => Some(S::Terminated),
        (S::Terminating, E::SuspendStarted) => None,

        (
            S::Terminated,
            E::Launched
            | E::SuspendStarted
            | E::Suspended
            | E::SuspendUnchanged
            | E::Resumed
            | E::ResumeUnchanged
            | E::EndStarted
            | E::Ended
            | E::FoundRunning
            | E::FoundSuspended
            | E::FoundNothing,
        ) => None,
    }
}

/// What a microVM should come to be. Requests set it; the driver works toward it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Aim {
    /// It should run.
    Running,
    /// It should be suspended.
    Suspended,
    /// It should end.
    Terminated,
}

/// What the host is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Verb {
    /// Launch it.
    Run,
    /// Suspend it.
    Suspend,
    /// Resume it.
    Resume,
    /// End it.
    Terminate,
}

/// The verb that brings a microVM with no verb in progress nearer to its aim; `None` when it is there.
pub(crate) fn verb(state: State, aim: Aim) -> Option<Verb> {
    match (state, aim) {
        (State::Pending, Aim::Running | Aim::Suspended) => Some(Verb::Run),
        (State::Running, Aim::Running) => None,
        (State::Running, Aim::Suspended) => Some(Verb::Suspend),
        (State::Suspending, Aim::Running | Aim::Suspended) => Some(Verb::Suspend),
        (State::Suspended, Aim::Running) => Some(Verb::Resume),
        (State::Suspended, Aim::Suspended) => None,
        (State::Pending | State::Running | State::Suspending | State::Suspended, Aim::Terminated) => {
            Some(Verb::Terminate)
        }
        (State::Terminating, Aim::Running | Aim::Suspended | Aim::Terminated) => Some(Verb::Terminate),
        (State::Terminated, Aim::Running | Aim::Suspended | Aim::Terminated) => None,
    }
}

impl Aim {
    /// Every one there is.
    pub(crate) const ALL: [Self; 3] = [Self::Running, Self::Suspended, Self::Terminated];

    /// Its spelling in the database.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Running => "RUNNING",
            Self::Suspended => "SUSPENDED",
            Self::Terminated => "TERMINATED",
        }
    }
}

impl FromStr for Aim {
    type Err = ParseWordError;

    fn from_str(text: &str) -> Result<Self, ParseWordError> {
        Self::ALL
            .into_iter()
            .find(|aim| aim.as_str() == text)
            .ok_or_else(|| ParseWordError { kind: "Aim", text: text.chars().take(300).collect() })
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use api::word::Word;

    use super::*;

    const EVENTS: [Event; 11] = [
        Event::Launched,
        Event::SuspendStarted,
        Event::Suspended,
        Event::SuspendUnchanged,
        Event::Resumed,
        Event::ResumeUnchanged,
        Event::EndStarted,
        Event::Ended,
        Event::FoundRunning,
        Event::FoundSuspended,
        Event::FoundNothing,
    ];

    #[test]
    fn the_table() {
        let mut table = String::new();
        for &state in State::ALL {
            for event in EVENTS {
                let next = next(state, event).map_or("-", State::as_str);
                writeln!(table, "{:<12}{:<17}{next}", state.as_str(), format!("{event:?}")).unwrap();
            }
        }
        insta::assert_snapshot!(table);
    }

    #[test]
    fn the_verbs() {
        let mut table = String::new();
        for &state in State::ALL {
            for aim in Aim::ALL {
                let verb = verb(state, aim).map_or("-".into(), |verb| format!("{verb:?}"));
                writeln!(table, "{:<12}{:<11}{verb}", state.as_str(), aim.as_str()).unwrap();
            }
        }
        insta::assert_snapshot!(table);
    }

    #[test]
    fn nothing_comes_back_from_the_dead() {
        for event in EVENTS {
            assert_eq!(next(State::Terminated, event), None);
            assert!(matches!(next(State::Terminating, event), None | Some(State::Terminating | State::Terminated)));
        }
    }

    #[test]
    fn every_state_can_be_ended() {
        for &state in State::ALL {
            assert!(state == State::Terminated || next(state, Event::EndStarted) == Some(State::Terminating));
        }
    }
}
