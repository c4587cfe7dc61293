//! When an app that does not say so itself is ready for its snapshot: what it does is all there is to go by.

use std::time::Duration;

use tokio::time::Instant;

/// How long an app is waited for that does nothing.
const IDLE_TIME_MAX: Duration = Duration::from_secs(30);

/// How long one is waited for that is at work. Emulated on a machine with other things to do, a start takes minutes.
const WORK_TIME_MAX: Duration = Duration::from_secs(300);

/// How long it must have done nothing by then.
const QUIET_TIME: Duration = Duration::from_secs(5);

/// The part of a processor that a guest uses at least while it is at work. An idle one's emulation needs a hundredth.
const WORK_PART: f64 = 0.1;

/// An app that does not listen yet.
#[derive(Debug)]
pub struct Settling {
    begin: Instant,
    /// When it was last looked at, and how much processor time its VM had used.
    seen: Option<(Instant, Duration)>,
    worked: Instant,
}

impl Settling {
    /// It starts now.
    pub fn new(now: Instant) -> Self {
        Self { begin: now, seen: None, worked: now }
    }

    /// Whether it is not to be waited for any longer. To be asked every now and then, with the processor time its VM has
    /// used by then.
    pub fn is_over(&mut self, now: Instant, used: Option<Duration>) -> bool {
        match (self.seen, used) {
            // Time is told in hundredths of a second, so a look at less than a second says nothing.
            (Some((before, _)), Some(_)) if now - before < Duration::from_secs(1) => {}
            (Some((before, used_before)), Some(used)) => {
                if used.saturating_sub(used_before) >= (now - before).mul_f64(WORK_PART) {
                    self.worked = now;
                }
                self.seen = Some((now, used));
            }
            (_, used) => self.seen = used.map(|used| (now, used)),
        }
        let waited = now - self.begin;
        waited >= WORK_TIME_MAX || (waited >= IDLE_TIME_MAX && now - self.worked >= QUIET_TIME)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// After how long an app is given up that works for so long, looked at five times a second.
    fn over_after(work: Duration, part: f64) -> Duration {
        let begin = Instant::now();
        let mut settling = Settling::new(begin);
        let mut passed = Duration::ZERO;
        loop {
            let used = passed.min(work).mul_f64(part) + passed.mul_f64(0.01);
            if settling.is_over(begin + passed, Some(used)) {
                return passed;
            }
            passed += Duration::from_millis(200);
        }
    }

    #[test]
    fn an_idle_app_has_half_a_minute_and_one_at_work_as_long_as_it_takes() {
        let seconds = Duration::from_secs;
        assert_eq!(over_after(seconds(0), 1.0), IDLE_TIME_MAX);
        assert_eq!(over_after(seconds(20), 1.0), IDLE_TIME_MAX);
        for part in [0.2, 1.0, 2.0] {
            let over = over_after(seconds(90), part);
            assert!(over >= seconds(95) && over <= seconds(97), "{over:?}");
        }
        assert_eq!(over_after(seconds(90), 0.05), IDLE_TIME_MAX);
        assert_eq!(over_after(seconds(1000), 1.0), WORK_TIME_MAX);
    }

    #[test]
    fn one_that_cannot_be_looked_at_has_half_a_minute() {
        let begin = Instant::now();
        let mut settling = Settling::new(begin);
        assert!(!settling.is_over(begin + IDLE_TIME_MAX - Duration::from_millis(1), None));
        assert!(settling.is_over(begin + IDLE_TIME_MAX, None));
    }
}
