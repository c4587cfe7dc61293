//! What a request means now. Pure: the driver asks, and does what it is told.

use super::state::{Aim, State};

/// What can be asked of a microVM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Request {
    /// `SuspendMicrovm`.
    Suspend,
    /// `ResumeMicrovm`.
    Resume,
    /// `TerminateMicrovm`.
    Terminate,
    /// A request came to its endpoint.
    Wake,
    /// No byte crossed its endpoint for as long as its policy allows.
    Idle,
    /// It has lived, or been suspended, for as long as it may.
    Expire,
}

/// What the policy of a microVM says that matters to admission.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Terms {
    /// `idlePolicy.autoResumeEnabled`.
    pub(crate) auto_resume: bool,
    /// `idlePolicy.suspendedDurationSeconds` is 0: an idle microVM ends instead of being suspended.
    pub(crate) ends_when_idle: bool,
}

/// What to do with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Admission {
    /// Work toward this from now on. A verb in progress is let finish first.
    Aim(Aim),
    /// It is so already, or is being made so.
    Repeated,
    /// Refuse it.
    Refuse(Refusal),
}

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub(crate) enum Refusal {
    /// It has ended, or is about to.
    #[error("the microVM has ended")]
    Ended,
    /// It is suspended, and its policy does not let a request wake it.
    #[error("the microVM does not resume by itself")]
    Asleep,
}

/// Decides about a request to a microVM in this state that is on its way to this aim.
///
/// A suspend of a microVM that is still launching is kept until it runs: the caller was told that the microVM exists,
/// and would otherwise have to poll before saying what is wanted.
pub(crate) fn admit(state: State, aim: Aim, request: Request, terms: Terms) -> Admission {
    let alive = match (state, aim) {
        (State::Terminating | State::Terminated, Aim::Running | Aim::Suspended | Aim::Terminated) => None,
        (State::Pending | State::Running | State::Suspending | State::Suspended, Aim::Terminated) => None,
        (State::Pending | State::Running | State::Suspending | State::Suspended, Aim::Running) => {
            Some((state, Aim::Running))
        }
        (State::Pending | State::Running | State::Suspending | State::Suspended, Aim::Suspended) => {
            Some((state, Aim::Suspended))
        }
    };
    let Some((state, aim)) = alive else {
        return match request {
            Request::Terminate | Request::Idle | Request::Expire => Admission::Repeated,
            Request::Suspend | Request::Resume | Request::Wake => Admission::Refuse(Refusal::Ended),
        };
    };
    match request {
        Request::Suspend => toward(aim, Aim::Suspended),
        Request::Resume => toward(aim, Aim::Running),
        Request::Terminate | Request::Expire => Admission::Aim(Aim::Terminated),
        Request::Wake => match (state, aim) {
            // On its way already; whoever asked waits, and asks again should it be suspended after all.
            (State::Pending | State::Running, _) | (_, Aim::Running) => Admission::Repeated,
            (_, _) if terms.auto_resume => Admission::Aim(Aim::Running),
            (_, _) => Admission::Refuse(Refusal::Asleep),
        },
        Request::Idle => match (state, aim) {
            (State::Running, Aim::Running) if terms.ends_when_idle => Admission::Aim(Aim::Terminated),
            (State::Running, Aim::Running) => Admission::Aim(Aim::Suspended),
            (_, _) => Admission::Repeated,
        },
    }
}

fn toward(now: Aim, wanted: Aim) -> Admission {
    if now == wanted { Admission::Repeated } else { Admission::Aim(wanted) }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use api::word::Word;

    use super::*;

    const REQUESTS: [Request; 6] =
        [Request::Suspend, Request::Resume, Request::Terminate, Request::Wake, Request::Idle, Request::Expire];

    const PLAIN: Terms = Terms { auto_resume: false, ends_when_idle: false };

    #[test]
    fn the_table() {
        let mut table = String::new();
        for &state in State::ALL {
            for aim in Aim::ALL {
                for request in REQUESTS {
                    let decision = match admit(state, aim, request, PLAIN) {
                        Admission::Aim(aim) => format!("aim {}", aim.as_str()),
                        Admission::Repeated => "-".into(),
                        Admission::Refuse(refusal) => format!("refuse {refusal:?}"),
                    };
                    writeln!(
                        table,
                        "{:<12}{:<11}{:<10}{decision}",
                        state.as_str(),
                        aim.as_str(),
                        format!("{request:?}")
                    )
                    .unwrap();
                }
            }
        }
        insta::assert_snapshot!(table);
    }

    #[test]
    fn the_policy_decides_about_waking_and_idling() {
        let auto = Terms { auto_resume: true, ..PLAIN };
        let wake = |terms| admit(State::Suspended, Aim::Suspended, Request::Wake, terms);
        assert_eq!(wake(auto), Admission::Aim(Aim::Running));
        assert_eq!(wake(PLAIN), Admission::Refuse(Refusal::Asleep));
        let ends = Terms { ends_when_idle: true, ..PLAIN };
        let idle = |terms| admit(State::Running, Aim::Running, Request::Idle, terms);
        assert_eq!(idle(ends), Admission::Aim(Aim::Terminated));
        assert_eq!(idle(PLAIN), Admission::Aim(Aim::Suspended));
    }

    #[test]
    fn an_end_is_never_taken_back() {
        for &state in State::ALL {
            for request in REQUESTS {
                let decision = admit(state, Aim::Terminated, request, PLAIN);
                assert!(matches!(decision, Admission::Repeated | Admission::Refuse(Refusal::Ended)));
            }
        }
    }
}
