//! How many requests wait for one microVM.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use api::ids::MicrovmId;

/// The queue's length per microVM; those nobody waits for take no room.
pub(crate) struct Waiting {
    limit: usize,
    counts: Mutex<HashMap<MicrovmId, usize>>,
}

/// A place among those who wait, given up when dropped.
pub(crate) struct Place<'a> {
    waiting: &'a Waiting,
    microvm: MicrovmId,
}

impl Waiting {
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit, counts: Mutex::default() }
    }

    // A count is changed in one step, so a poisoned lock is still good.
    fn counts(&self) -> MutexGuard<'_, HashMap<MicrovmId, usize>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `None` if too many wait already.
    pub(crate) fn enter(&self, microvm: MicrovmId) -> Option<Place<'_>> {
        let mut counts = self.counts();
        let count = counts.get(&microvm).copied().unwrap_or(0);
        if count >= self.limit {
            return None;
        }
        counts.insert(microvm, count + 1);
        Some(Place { waiting: self, microvm })
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut counts = self.waiting.counts();
        if let Some(count) = counts.get_mut(&self.microvm) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.microvm);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_microvm_has_its_own_places() {
        let waiting = Waiting::new(1);
        let (one, other) = (MicrovmId::random(), MicrovmId::random());
        let place = waiting.enter(one).unwrap();
        assert!(waiting.enter(one).is_none());
        assert!(waiting.enter(other).is_some());
        drop(place);
        assert!(waiting.enter(one).is_some());
        assert!(waiting.counts().is_empty());
    }
}
