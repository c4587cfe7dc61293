//! Is a microVM at work while nobody talks to it? Pure: what its VM has used, and when, are arguments.

use std::time::Duration;

use api::{host::Usage, ids::VmId};
use tokio::time::Instant;

use crate::lifecycle::Work;

/// Time between two looks. What began and ended between them counts by its average.
pub(crate) const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Of less time than this an average says nothing.
const SPAN_MIN: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy)]
struct Look {
    vm: VmId,
    at: Instant,
    usage: Usage,
}

/// What one microVM used when it was looked at last.
#[derive(Debug)]
pub(crate) struct Meter {
    work: Work,
    last: Option<Look>,
    next: Instant,
}

impl Meter {
    /// One that has not looked yet.
    pub(crate) fn new(work: Work, now: Instant) -> Self {
        Self { work, last: None, next: now }
    }

    /// When to look again.
    pub(crate) fn next(&self) -> Instant {
        self.next
    }

    /// Must it be looked again before silence can be taken for idleness?
    pub(crate) fn is_old(&self, now: Instant) -> bool {
        self.last.is_none_or(|last| now.saturating_duration_since(last.at) >= SPAN_MIN)
    }

    /// Takes what a VM has used up to now, or that nobody knows: has it worked since the last look? Of a VM that is seen
    /// for the first time nothing is known yet.
    pub(crate) fn look(&mut self, vm: VmId, at: Instant, usage: Option<Usage>) -> bool {
        self.next = at + LOOK_EVERY;
        let last = std::mem::replace(&mut self.last, usage.map(|usage| Look { vm, at, usage }));
        let (Some(usage), Some(last)) = (usage, last.filter(|last| last.vm == vm)) else { return false };
        let span = at.saturating_duration_since(last.at);
        if span < SPAN_MIN {
            self.last = Some(last);
            return false;
        }
        let cpu = usage.cpu.saturating_sub(last.usage.cpu).as_secs_f64() / span.as_secs_f64();
        let bytes = usage.network_bytes.saturating_sub(last.usage.network_bytes) as f64 / span.as_secs_f64();
        cpu * 100.0 >= f64::from(self.work.cpu_percent) || bytes >= self.work.network_bytes_per_second as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORK: Work = Work { cpu_percent: 10, network_bytes_per_second: 1000 };

    fn usage(cpu_ms: u64, network_bytes: u64) -> Option<Usage> {
        Some(Usage { cpu: Duration::from_millis(cpu_ms), network_bytes })
    }

    #[test]
    fn averages_since_the_last_look_count() {
        let (vm, begin) = (VmId::random(), Instant::now());
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mut meter = Meter::new(WORK, begin);
        assert_eq!(meter.next(), begin);
        assert!(!meter.look(vm, at(0), usage(90_000, 1 << 30)), "what was before is not known");
        assert!(!meter.look(vm, at(5), usage(90_499, (1 << 30) + 4999)));
        assert!(meter.look(vm, at(10), usage(90_999, (1 << 30) + 4999)), "half a second of five");
        assert!(meter.look(vm, at(15), usage(90_999, (1 << 30) + 9999)), "or five thousand bytes");
        assert!(!meter.look(vm, at(20), usage(90_999, (1 << 30) + 9999)));
        assert_eq!(meter.next(), at(25));
    }

    #[test]
    fn another_vm_and_no_answer_begin_anew() {
        let (vm, begin) = (VmId::random(), Instant::now());
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mut meter = Meter::new(WORK, begin);
        meter.look(vm, at(0), usage(0, 0));
        assert!(!meter.look(VmId::random(), at(5), usage(60_000, 1 << 30)));
        assert!(!meter.look(vm, at(10), None));
        assert!(!meter.look(vm, at(15), usage(120_000, 1 << 30)));
        assert!(meter.look(vm, at(20), usage(125_000, 1 << 30)));
    }

    #[test]
    fn a_moment_is_too_short_to_judge_by() {
        let (vm, begin) = (VmId::random(), Instant::now());
        let at = |ms| begin + Duration::from_millis(ms);
        let mut meter = Meter::new(WORK, begin);
        assert!(meter.is_old(at(0)));
        meter.look(vm, at(0), usage(0, 0));
        assert!(!meter.is_old(at(999)) && meter.is_old(at(1000)));
        assert!(!meter.look(vm, at(500), usage(400, 0)));
        assert!(meter.look(vm, at(1500), usage(400, 0)), "nothing of it is forgotten");
    }
}
