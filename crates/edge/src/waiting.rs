//! How many requests wait for one microVM, and for all.

use std::sync::{Mutex, MutexGuard, PoisonError};

use api::ids::MicrovmId;

use crate::tally::Tally;

/// The queues' lengths; those nobody waits for take no room.
pub(crate) struct Waiting {
    per_microvm: usize,
    total: usize,
    counts: Mutex<Counts>,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Counts {
    microvms: Tally<MicrovmId>,
    all: usize,
}

/// A place among those who wait, given up when dropped.
pub(crate) struct Place<'a> {
    waiting: &'a Waiting,
    microvm: MicrovmId,
    /// Nobody else waits for this microVM.
    pub(crate) is_first: bool,
}

impl Waiting {
    pub(crate) fn new(per_microvm: usize, total: usize) -> Self {
        Self { per_microvm, total, counts: Mutex::default() }
    }

    // No panic can leave the counts half-changed, so a poisoned lock is still good.
    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many wait.
    pub(crate) fn count(&self) -> usize {
        self.counts().all
    }

    /// `None` if too many wait already.
    pub(crate) fn enter(&self, microvm: MicrovmId) -> Option<Place<'_>> {
        let mut counts = self.counts();
        if counts.all >= self.total {
            return None;
        }
        let before = counts.microvms.enter(microvm, self.per_microvm)?;
        counts.all += 1;
        Some(Place { waiting: self, microvm, is_first: before == 0 })
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut counts = self.waiting.counts();
        counts.all -= 1;
        counts.microvms.leave(&self.microvm);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_microvm_has_its_own_places() {
        let waiting = Waiting::new(1, 2);
        let (one, other) = (MicrovmId::random(), MicrovmId::random());
        let place = waiting.enter(one).unwrap();
        assert!(waiting.enter(one).is_none());
        assert!(waiting.enter(other).is_some());
        drop(place);
        assert!(waiting.enter(one).is_some());
        assert_eq!(*waiting.counts(), Counts::default());
    }

    #[test]
    fn there_is_an_end_to_all_places() {
        let waiting = Waiting::new(1, 2);
        let places = [MicrovmId::random(), MicrovmId::random()].map(|microvm| waiting.enter(microvm).unwrap());
        assert!(waiting.enter(MicrovmId::random()).is_none());
        drop(places);
        assert!(waiting.enter(MicrovmId::random()).is_some());
    }
}
