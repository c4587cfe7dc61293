//! What time it is, on the two clocks of a host.
//!
//! The wall clock is what callers are shown, and anybody may set it at any time. The kernel's `CLOCK_BOOTTIME` only goes
//! forward, also while the host sleeps, but begins again with every boot. So durations are counted on the second as long
//! as the boot is the same, and on the first across a reboot only.

use std::{
    fmt,
    str::FromStr,
    time::{Duration, SystemTime},
};

use api::timestamp::Timestamp;
use rustix::time::{ClockId, clock_gettime};
use uuid::Uuid;

use crate::config::Simulation;

/// Where the kernel tells which boot this is.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// A time on the clock of one boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BootTime {
    /// Which boot.
    pub(crate) boot: Uuid,
    /// Milliseconds since it; negative for what began in an earlier one.
    pub(crate) ms: i64,
}

/// A moment on both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Moment {
    /// Milliseconds since the Unix epoch, as the wall clock was set then.
    pub(crate) unix_ms: i64,
    /// The same on the clock of the boot. Records of before it was kept have none.
    pub(crate) boot: Option<BootTime>,
}

impl Moment {
    /// How long ago this was. Never negative, whichever way the wall clock was set.
    pub(crate) fn age(&self, now: &Self) -> Duration {
        let ms = match (self.boot, now.boot) {
            (Some(then), Some(now)) if then.boot == now.boot => now.ms.saturating_sub(then.ms),
            (_, _) => now.unix_ms.saturating_sub(self.unix_ms),
        };
        Duration::from_millis(u64::try_from(ms).unwrap_or(0))
    }

    /// This moment on the clock of the present boot, so that from now on no setting of the wall clock counts. Callers
    /// are shown the same as before.
    pub(crate) fn carried_to(&self, now: &Self) -> Self {
        let age = i64::try_from(self.age(now).as_millis()).unwrap_or(i64::MAX);
        let boot = now.boot.map(|BootTime { boot, ms }| BootTime { boot, ms: ms.saturating_sub(age) });
        Self { boot, ..*self }
    }
}

impl fmt::Display for BootTime {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} {}", self.boot, self.ms)
    }
}

/// A text that is no [`BootTime`].
#[derive(Debug, thiserror::Error)]
#[error("a boot's id, a space, and milliseconds were expected")]
pub(crate) struct ParseBootTimeError;

impl FromStr for BootTime {
    type Err = ParseBootTimeError;

    fn from_str(text: &str) -> Result<Self, ParseBootTimeError> {
        let (boot, ms) = text.split_once(' ').ok_or(ParseBootTimeError)?;
        Ok(Self {
            boot: boot.parse().map_err(|_| ParseBootTimeError)?,
            ms: ms.parse().map_err(|_| ParseBootTimeError)?,
        })
    }
}

/// The clocks of this host.
#[derive(Debug)]
pub(crate) struct Clock {
    boot: Option<Uuid>,
    simulation: Option<Simulation>,
    /// By how many milliseconds a test has set the wall clock forward.
    #[cfg(test)]
    pub(crate) set_forward_ms: std::sync::atomic::AtomicI64,
}

impl Clock {
    /// Asks the kernel which boot this is. Without an answer everything is counted on the wall clock.
    pub(crate) fn of_this_boot() -> Self {
        let boot = std::fs::read_to_string(BOOT_ID).ok().and_then(|text| text.trim().parse().ok());
        if boot.is_none() {
            tracing::warn!("{BOOT_ID} cannot be read: durations follow the host's wall clock wherever it is set");
        }
        Self {
            boot,
            simulation: None,
            #[cfg(test)]
            set_forward_ms: 0.into(),
        }
    }

    /// The clocks of a boot that a test chooses.
    #[cfg(test)]
    pub(crate) fn of_boot(boot: Uuid, set_forward_ms: i64) -> Self {
        Self { boot: Some(boot), simulation: None, set_forward_ms: set_forward_ms.into() }
    }

    /// The clocks of a simulation: one for both, of a boot that never ends.
    pub(crate) fn simulated(simulation: Simulation) -> Self {
        Self {
            boot: Some(Uuid::nil()),
            simulation: Some(simulation),
            #[cfg(test)]
            set_forward_ms: 0.into(),
        }
    }

    /// Now.
    pub(crate) fn now(&self) -> Moment {
        if let Some(simulation) = &self.simulation {
            let ms = Timestamp::from((simulation.now)()).unix_ms();
            return Moment { unix_ms: ms, boot: self.boot.map(|boot| BootTime { boot, ms }) };
        }
        let unix_ms = Timestamp::from(SystemTime::now()).unix_ms();
        #[cfg(test)]
        let unix_ms = unix_ms.saturating_add(self.set_forward_ms.load(std::sync::atomic::Ordering::Relaxed));
        let since = clock_gettime(ClockId::Boottime);
        let ms = since.tv_sec.saturating_mul(1000).saturating_add(since.tv_nsec / 1_000_000);
        Moment { unix_ms, boot: self.boot.map(|boot| BootTime { boot, ms }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Uuid = Uuid::from_u128(1);
    const OTHER: Uuid = Uuid::from_u128(2);

    fn moment(unix_ms: i64, boot: Uuid, ms: i64) -> Moment {
        Moment { unix_ms, boot: Some(BootTime { boot, ms }) }
    }

    #[test]
    fn a_set_wall_clock_counts_for_nothing_within_a_boot() {
        let then = moment(1_000_000, ONE, 5_000);
        for wall in [-9_000_000, 0, 1_000_000, 90_000_000, i64::MAX] {
            assert_eq!(then.age(&moment(wall, ONE, 7_500)), Duration::from_millis(2_500), "{wall}");
        }
    }

    #[test]
    fn across_a_reboot_the_wall_clock_counts_but_never_backwards() {
        let then = moment(1_000_000, ONE, 5_000);
        assert_eq!(then.age(&moment(1_060_000, OTHER, 100)), Duration::from_secs(60));
        assert_eq!(then.age(&moment(0, OTHER, 100)), Duration::ZERO);
        let old = Moment { unix_ms: 1_000_000, boot: None };
        assert_eq!(old.age(&moment(1_001_000, ONE, 5)), Duration::from_secs(1));
    }

    #[test]
    fn what_was_carried_over_is_counted_on_the_new_clock() {
        let then = moment(1_000_000, ONE, 5_000);
        let start = moment(1_060_000, OTHER, 100);
        let carried = then.carried_to(&start);
        assert_eq!(carried, moment(1_000_000, OTHER, -59_900));
        // Set back by an hour, a second later.
        assert_eq!(carried.age(&moment(1_061_000 - 3_600_000, OTHER, 1_100)), Duration::from_secs(61));
        assert_eq!(carried.carried_to(&moment(0, OTHER, 9)), carried, "once is enough");
    }

    #[test]
    fn boot_times_are_kept_as_text() {
        for ms in [i64::MIN, -1, 0, 12_345] {
            let time = BootTime { boot: ONE, ms };
            assert_eq!(time.to_string().parse::<BootTime>().unwrap(), time);
        }
        for bad in ["", "1", "x 1", "00000000-0000-0000-0000-000000000001 x", "00000000-0000-0000-0000-000000000001"] {
            assert!(bad.parse::<BootTime>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_kernel_tells_both() {
        let clock = Clock::of_this_boot();
        let (one, two) = (clock.now(), clock.now());
        assert!(one.boot.is_some() && one.age(&two) < Duration::from_secs(10));
    }
}
