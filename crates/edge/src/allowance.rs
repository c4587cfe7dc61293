//! What each microVM may take of the edge: connections and shells at once, requests per second, bytes per second.
//!
//! The limits may depend on the microVM's size, as the service's do. A client's connection counts for a microVM from its
//! first admitted request on, until it and all that it began have ended; so nobody without a token counts for anything.

use std::{
    collections::HashMap,
    num::NonZeroU32,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use api::{ids::MicrovmId, size::Size};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter, clock::Clock};
use tokio::time::Instant;

use crate::{config::PerMicrovm, pace::Bandwidth, refusal::Refusal};

/// How long what a microVM took is remembered after its last connection. Longer than any of it counts: a rate's bucket is
/// full after a second, and a bandwidth's debt is one piece per request in flight.
const KEPT: Duration = Duration::from_secs(60);

/// Those of all microVMs.
#[derive(Debug)]
pub(crate) struct Allowances {
    limits: PerMicrovm,
    of: Mutex<HashMap<MicrovmId, (Arc<Allowance>, Instant)>>,
}

/// One microVM's.
#[derive(Debug)]
pub(crate) struct Allowance {
    connections: Places,
    shells: Places,
    requests: Option<DefaultDirectRateLimiter>,
    pub(crate) bandwidth: Option<Arc<Bandwidth>>,
}

/// So many at once.
#[derive(Debug)]
struct Places {
    most: Option<u32>,
    taken: AtomicU32,
}

/// A connection's share of a microVM's, until it is dropped.
#[derive(Debug)]
pub(crate) struct Seat {
    pub(crate) microvm: MicrovmId,
    allowance: Arc<Allowance>,
}

/// A shell's, likewise.
#[derive(Debug)]
pub(crate) struct ShellPlace {
    pub(crate) microvm: MicrovmId,
    allowance: Arc<Allowance>,
}

impl Allowances {
    pub(crate) fn new(limits: PerMicrovm) -> Self {
        Self { limits, of: Mutex::default() }
    }

    // An entry is written in one step, so a poisoned lock is still good.
    fn map(&self) -> MutexGuard<'_, HashMap<MicrovmId, (Arc<Allowance>, Instant)>> {
        self.of.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A seat for one more connection to this microVM.
    pub(crate) fn seat(&self, microvm: MicrovmId, size: Size) -> Result<Seat, Refusal> {
        let allowance = {
            let mut map = self.map();
            let new = || (Arc::new(Allowance::of(&self.limits, size)), Instant::now());
            let (allowance, last) = map.entry(microvm).or_insert_with(new);
            *last = Instant::now();
            Arc::clone(allowance)
        };
        allowance.connections.take().map_err(Refusal::TooManyToMicrovm)?;
        Ok(Seat { microvm, allowance })
    }

    /// Forgets microVMs that nobody has talked to for a while.
    pub(crate) fn sweep(&self) {
        self.map().retain(|_, (allowance, last)| {
            if Arc::strong_count(allowance) > 1 {
                *last = Instant::now();
            }
            last.elapsed() < KEPT
        });
    }
}

impl Allowance {
    fn of(limits: &PerMicrovm, size: Size) -> Self {
        let rate = |quota: NonZeroU32| RateLimiter::direct(Quota::per_second(quota));
        Self {
            connections: Places::new(limits.connections_of(size)),
            shells: Places::new(limits.shells_at_once()),
            requests: limits.requests_per_second_of(size).and_then(NonZeroU32::new).map(rate),
            bandwidth: limits.bytes_per_second_of(size).map(|rate| Arc::new(Bandwidth::new(rate))),
        }
    }
}

impl Places {
    fn new(most: Option<u32>) -> Self {
        Self { most, taken: AtomicU32::new(0) }
    }

    /// Takes one; if there is none left, how many there are.
    fn take(&self) -> Result<(), u32> {
        let most = self.most.unwrap_or(u32::MAX);
        let more = |taken: u32| (taken < most).then(|| taken + 1);
        self.taken.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).map(drop).map_err(|_| most)
    }

    fn give_back(&self) {
        self.taken.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Seat {
    /// A place for one more shell.
    pub(crate) fn shell(&self) -> Result<ShellPlace, Refusal> {
        self.allowance.shells.take().map_err(|_| Refusal::TooManyShells)?;
        Ok(ShellPlace { microvm: self.microvm, allowance: Arc::clone(&self.allowance) })
    }

    /// Takes one request of this second's.
    pub(crate) fn request(&self) -> Result<(), Refusal> {
        let Some(bucket) = &self.allowance.requests else { return Ok(()) };
        bucket.check().map_err(|until| {
            let wait = until.wait_time_from(bucket.clock().now());
            // In whole seconds, as the header has it, and never at once.
            Refusal::TooFast { retry_after_seconds: wait.as_secs().saturating_add(1) }
        })
    }

    pub(crate) fn bandwidth(&self) -> Option<&Arc<Bandwidth>> {
        self.allowance.bandwidth.as_ref()
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.allowance.connections.give_back();
    }
}

impl Drop for ShellPlace {
    fn drop(&mut self) {
        self.allowance.shells.give_back();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seats_are_counted_per_microvm_and_given_back() {
        let allowances = Allowances::new(PerMicrovm { connections: 2, ..PerMicrovm::unlimited() });
        let (one, other) = (MicrovmId::random(), MicrovmId::random());
        let seat = |microvm| allowances.seat(microvm, Size::DEFAULT);
        let seats = [seat(one).unwrap(), seat(one).unwrap()];
        assert!(matches!(seat(one), Err(Refusal::TooManyToMicrovm(2))));
        assert!(seat(other).is_ok());
        drop(seats);
        assert!(seat(one).is_ok());
    }

    #[test]
    fn each_microvm_has_so_many_shells_and_gets_them_back() {
        let allowances = Allowances::new(PerMicrovm { shells: 2, ..PerMicrovm::unlimited() });
        let [one, other] = [(); 2].map(|()| allowances.seat(MicrovmId::random(), Size::DEFAULT).unwrap());
        let places = [&one, &one, &other].map(|seat| seat.shell().unwrap());
        assert!(matches!(one.shell(), Err(Refusal::TooManyShells)));
        // Whoever has another connection shares them.
        assert!(allowances.seat(one.microvm, Size::DEFAULT).unwrap().shell().is_err());
        drop(places);
        assert!(one.shell().is_ok());
        let unlimited = Allowances::new(PerMicrovm::unlimited());
        let seat = unlimited.seat(one.microvm, Size::DEFAULT).unwrap();
        assert!((0..100).map(|_| seat.shell()).collect::<Vec<_>>().iter().all(Result::is_ok));
    }

    #[test]
    fn the_limits_by_size_are_the_services() {
        let limits = PerMicrovm {
            connections_per_vcpu: 8,
            requests_per_second_per_vcpu: 10,
            bytes_per_second_per_vcpu: 1_000_000,
            ..PerMicrovm::unlimited()
        };
        let rows = Size::BASELINES_MIB.map(|mib| {
            let size = Size::from_baseline_mib(mib).unwrap();
            (limits.connections_of(size), limits.requests_per_second_of(size), limits.bytes_per_second_of(size))
        });
        let row = |vcpus: u32| (Some(8 * vcpus), Some(10 * vcpus), Some(1_000_000 * u64::from(vcpus)));
        assert_eq!(rows, [row(1), row(2), row(4), row(8), row(16)]);
        // Of both kinds the lower one counts, and 0 is none.
        let both = |connections, connections_per_vcpu| {
            PerMicrovm { connections, connections_per_vcpu, ..PerMicrovm::unlimited() }.connections_of(Size::DEFAULT)
        };
        assert_eq!(
            [both(0, 0), both(5, 0), both(5, 1), both(3, 1), both(0, 1)],
            [None, Some(5), Some(4), Some(3), Some(4)]
        );
    }

    #[test]
    fn a_second_has_so_many_requests() {
        let allowances = Allowances::new(PerMicrovm { requests_per_second: 3, ..PerMicrovm::unlimited() });
        let microvm = MicrovmId::random();
        let seats = [(); 2].map(|()| allowances.seat(microvm, Size::DEFAULT).unwrap());
        for number in 0..3 {
            seats[number % 2].request().unwrap();
        }
        assert!(matches!(seats[0].request(), Err(Refusal::TooFast { retry_after_seconds: 1 })));
    }

    #[tokio::test(start_paused = true)]
    async fn those_nobody_talks_to_are_forgotten() {
        let allowances = Allowances::new(PerMicrovm::unlimited());
        let seat = allowances.seat(MicrovmId::random(), Size::DEFAULT).unwrap();
        tokio::time::advance(KEPT * 2).await;
        allowances.sweep();
        assert_eq!(allowances.map().len(), 1, "somebody is connected");
        drop(seat);
        tokio::time::advance(KEPT / 2).await;
        allowances.sweep();
        assert_eq!(allowances.map().len(), 1, "it was left just now");
        tokio::time::advance(KEPT).await;
        allowances.sweep();
        assert!(allowances.map().is_empty());
    }
}
