//! When a microVM is suspended or ended without anybody asking. Pure: time is an argument.

use std::time::Duration;

use super::{
    admission::Request,
    record::{Fate, Record},
    state::State,
};
use crate::clock::Moment;

/// Longest sleep between two looks at the clock: a sleep does not go on while the host itself is asleep.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// What time asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Due {
    /// This, now.
    Now(Request),
    /// Nothing; look again then.
    In(Duration),
}

/// What is due of a microVM at `now` that has been idle for so long. While a verb is in progress only its maximum duration
/// counts.
///
/// Limits since a [`Moment`] go on while the daemon is down; the idle clock, which needs it, starts again with it.
pub(crate) fn due(record: &Record, now: &Moment, idle: Duration, busy: bool) -> Due {
    let Record { contract, fate: Fate { state, suspended_at, .. }, started_at, .. } = record;
    if matches!(state, State::Terminating | State::Terminated) {
        return Due::In(LOOK_AGAIN);
    }
    let left_of = |since: &Moment, seconds: u32| Duration::from_secs(seconds.into()).saturating_sub(since.age(now));
    let life = left_of(started_at, contract.maximum_duration_s);
    if life.is_zero() {
        return Due::Now(Request::Expire);
    }
    let mut next = life.min(LOOK_AGAIN);
    if let (Some(policy), false) = (&contract.idle_policy, busy) {
        let (left, request) = match (state, suspended_at) {
            (State::Running, _) => {
                let idle_max = Duration::from_secs(policy.max_idle_duration_seconds.into());
                (idle_max.saturating_sub(idle), Request::Idle)
            }
            (State::Suspended, Some(since)) => (left_of(since, policy.suspended_duration_seconds), Request::Expire),
            (_, _) => return Due::In(next),
        };
        if left.is_zero() {
            return Due::Now(request);
        }
        next = next.min(left);
    }
    Due::In(next)
}

#[cfg(test)]
mod tests {
    use api::microvms::IdlePolicy;
    use uuid::Uuid;

    use super::*;
    use crate::{clock::BootTime, testing};

    /// So long after the start of a boot; the wall clock is far off, and does not count.
    fn at(ms: i64) -> Moment {
        Moment { unix_ms: -7 * ms, boot: Some(BootTime { boot: Uuid::from_u128(1), ms }) }
    }

    fn record(state: State, suspended_at: Option<Moment>, policy: Option<(u32, u32)>) -> Record {
        let mut record = testing::record();
        record.fate.state = state;
        record.fate.suspended_at = suspended_at;
        record.started_at = at(1_000_000);
        record.contract.maximum_duration_s = 1000;
        record.contract.idle_policy = policy.map(|(idle, suspended)| IdlePolicy {
            max_idle_duration_seconds: idle,
            suspended_duration_seconds: suspended,
            auto_resume_enabled: true,
        });
        record
    }

    const NONE: Duration = Duration::ZERO;

    #[test]
    fn every_live_state_expires_busy_or_not() {
        for state in [State::Pending, State::Running, State::Suspending, State::Suspended] {
            let record = record(state, None, None);
            for busy in [false, true] {
                assert_eq!(due(&record, &at(1_999_999), NONE, busy), Due::In(Duration::from_millis(1)));
                assert_eq!(due(&record, &at(2_000_000), NONE, busy), Due::Now(Request::Expire));
            }
        }
        for state in [State::Terminating, State::Terminated] {
            assert_eq!(due(&record(state, None, None), &at(9_000_000), NONE, false), Due::In(LOOK_AGAIN));
        }
    }

    #[test]
    fn only_silence_suspends_and_only_with_a_policy() {
        let with = record(State::Running, None, Some((10, 0)));
        let idle = Duration::from_secs;
        assert_eq!(due(&with, &at(1_500_000), idle(9), false), Due::In(idle(1)));
        assert_eq!(due(&with, &at(1_500_000), idle(10), false), Due::Now(Request::Idle));
        assert_eq!(due(&with, &at(1_500_000), idle(10), true), Due::In(LOOK_AGAIN));
        let without = record(State::Running, None, None);
        assert_eq!(due(&without, &at(1_500_000), idle(100), false), Due::In(LOOK_AGAIN));
    }

    #[test]
    fn suspension_has_an_end() {
        let record = record(State::Suspended, Some(at(1_500_000)), Some((10, 20)));
        assert_eq!(due(&record, &at(1_519_999), NONE, false), Due::In(Duration::from_millis(1)));
        assert_eq!(due(&record, &at(1_520_000), NONE, false), Due::Now(Request::Expire));
        assert_eq!(due(&record, &at(1_520_000), NONE, true), Due::In(LOOK_AGAIN));
    }
}
