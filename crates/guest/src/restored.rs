//! What must change in a machine that wakes from a snapshot before anything else happens in it.

use crate::sys::{self, SEED_BYTES};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustix::time::{ClockId, Timespec, clock_settime};
use std::fs::File;
use std::io;

/// Why a restored VM cannot be made fit to run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RestoredError {
    /// The host's time is out of range.
    #[error("the time {unix_nanos} ns is out of range")]
    Time {
        /// Nanoseconds since the Unix epoch.
        unix_nanos: u64,
    },
    /// The kernel refused the time.
    #[error("cannot set the clock")]
    Clock(#[source] io::Error),
    /// The seed is not base64.
    #[error("the seed is not base64")]
    SeedText(#[source] base64::DecodeSliceError),
    /// The seed has another length than it should.
    #[error("the seed has {bytes} bytes instead of {SEED_BYTES}")]
    SeedLength {
        /// Length of the seed.
        bytes: usize,
    },
    /// The kernel refused the seed.
    #[error("cannot reseed the random pool")]
    Reseed(#[source] io::Error),
}

/// Sets the wall clock.
pub(crate) fn set_clock(unix_nanos: u64) -> Result<(), RestoredError> {
    let seconds = i64::try_from(unix_nanos / 1_000_000_000).map_err(|_| RestoredError::Time { unix_nanos })?;
    let time = Timespec { tv_sec: seconds, tv_nsec: (unix_nanos % 1_000_000_000) as _ };
    clock_settime(ClockId::Realtime, time).map_err(|errno| RestoredError::Clock(errno.into()))
}

/// Makes the kernel's random numbers this microVM's own.
pub(crate) fn reseed(random: &File, seed: &str) -> Result<(), RestoredError> {
    sys::reseed(random, decode_seed(seed)?).map_err(RestoredError::Reseed)
}

fn decode_seed(text: &str) -> Result<[u8; SEED_BYTES], RestoredError> {
    // Room for one more group than a seed has, so that a longer one is refused and not cut.
    let mut bytes = [0u8; SEED_BYTES + 4];
    let length = STANDARD.decode_slice(text, &mut bytes).map_err(RestoredError::SeedText)?;
    bytes[..length].try_into().map_err(|_| RestoredError::SeedLength { bytes: length })
}

#[cfg(test)]
mod tests {
    use super::{RestoredError, decode_seed};
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;

    #[test]
    fn a_seed_has_exactly_32_bytes() {
        assert_eq!(decode_seed(&STANDARD.encode([7; 32])).expect("a good seed"), [7; 32]);
        assert!(matches!(decode_seed(&STANDARD.encode([7; 31])), Err(RestoredError::SeedLength { bytes: 31 })));
        assert!(matches!(decode_seed(&STANDARD.encode([7; 33])), Err(RestoredError::SeedLength { bytes: 33 })));
        assert!(matches!(decode_seed(&STANDARD.encode([7; 4096])), Err(RestoredError::SeedText(_))));
        assert!(matches!(decode_seed("no base64!"), Err(RestoredError::SeedText(_))));
    }
}
