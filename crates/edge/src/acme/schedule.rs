//! When: nothing but arithmetic, with the time and the dice given.

use std::time::Duration;

use time::OffsetDateTime;

/// Pauses after orders that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pauses {
    /// The first; each is twice the one before.
    pub first: Duration,
    /// The longest.
    pub longest: Duration,
}

impl Pauses {
    /// The usual ones.
    #[must_use]
    pub fn standard() -> Self {
        // An authority that restarts is back within the first few; one that is down all day is asked six times an hour.
        Self { first: Duration::from_secs(10), longest: Duration::from_secs(600) }
    }

    /// How long to wait after so many failures, of which there is at least one; `dice` is from 0 to 1, and makes it up to a
    /// quarter longer, so that those who failed together do not come back together.
    pub(crate) fn after(&self, failures: u32, dice: f64) -> Duration {
        let doubled = 2_u32.saturating_pow(failures.saturating_sub(1).min(31));
        self.first.saturating_mul(doubled).min(self.longest).mul_f64(1.0 + dice.clamp(0.0, 1.0) / 4.0)
    }
}

/// When a certificate that is good for this time is to be renewed: at two thirds of it, up to a twentieth of it earlier by the
/// dice, so that certificates made together are not renewed together.
pub(crate) fn renewal(from: OffsetDateTime, to: OffsetDateTime, dice: f64) -> OffsetDateTime {
    let life = to - from;
    from + life * 2 / 3 - life * (dice.clamp(0.0, 1.0) / 20.0)
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    #[test]
    fn it_is_renewed_at_two_thirds_of_its_life_or_a_little_earlier() {
        let (from, to) = (datetime!(2026-01-01 0:00 UTC), datetime!(2026-04-01 0:00 UTC));
        assert_eq!(renewal(from, to, 0.0), datetime!(2026-03-02 0:00 UTC));
        assert_eq!(renewal(from, to, 1.0), datetime!(2026-02-25 12:00 UTC));
    }

    #[test]
    fn pauses_double_up_to_the_longest() {
        let pauses = Pauses::standard();
        let seconds: Vec<_> = (1..=8).map(|failures| pauses.after(failures, 0.0).as_secs()).collect();
        assert_eq!(seconds, [10, 20, 40, 80, 160, 320, 600, 600]);
        assert_eq!(pauses.after(u32::MAX, 0.0).as_secs(), 600);
        assert_eq!(pauses.after(1, 1.0).as_millis(), 12_500);
    }
}
