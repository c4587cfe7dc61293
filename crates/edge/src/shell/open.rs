//! How many shells are open in each microVM.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use api::ids::MicrovmId;

/// The counts; microVMs without a shell take no room.
pub(crate) struct OpenShells {
    per_microvm: u32,
    counts: Mutex<HashMap<MicrovmId, u32>>,
}

/// A place among the shells of a microVM, given up when dropped.
pub(crate) struct Place {
    shells: Arc<OpenShells>,
    microvm: MicrovmId,
}

impl OpenShells {
    /// 0 is no limit.
    pub(crate) fn new(per_microvm: u32) -> Arc<Self> {
        Arc::new(Self { per_microvm, counts: Mutex::default() })
    }

    // No panic can leave the counts half-changed, so a poisoned lock is still good.
    fn counts(&self) -> MutexGuard<'_, HashMap<MicrovmId, u32>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `None` if there are too many already.
    pub(crate) fn enter(self: &Arc<Self>, microvm: MicrovmId) -> Option<Place> {
        let mut counts = self.counts();
        let count = counts.get(&microvm).copied().unwrap_or(0);
        if self.per_microvm > 0 && count >= self.per_microvm {
            return None;
        }
        counts.insert(microvm, count + 1);
        Some(Place { shells: Arc::clone(self), microvm })
    }
}

impl Place {
    /// Whose it is.
    pub(crate) fn microvm(&self) -> MicrovmId {
        self.microvm
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.shells.counts();
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
    fn each_microvm_has_so_many_and_gets_them_back() {
        let shells = OpenShells::new(2);
        let (one, other) = (MicrovmId::random(), MicrovmId::random());
        let places = [one, one, other].map(|microvm| shells.enter(microvm).unwrap());
        assert!(shells.enter(one).is_none());
        drop(places);
        assert!(shells.counts().is_empty());
        assert!(shells.enter(one).is_some());
        let unlimited = OpenShells::new(0);
        assert!((0..100).map(|_| unlimited.enter(one)).collect::<Vec<_>>().iter().all(Option::is_some));
    }
}
