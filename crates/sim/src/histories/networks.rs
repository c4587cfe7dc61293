//! Whose each network is in one life of the daemon, by the same rules as a real host's: one that somebody works on, or has a
//! handle on, is nobody else's; one whose handle was dropped without being given back may be reclaimed.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

/// The networks that somebody has, or has left.
#[derive(Default)]
pub struct Claims(Mutex<BTreeMap<String, Claim>>);

enum Claim {
    /// It is being made or removed.
    AtWork,
    /// Whoever has this handle uses it.
    Handle(Weak<()>),
}

impl Claim {
    fn is_abandoned(&self) -> bool {
        matches!(self, Self::Handle(handle) if handle.strong_count() == 0)
    }
}

/// Work on a network. Dropped before its end, it leaves it to nobody.
pub struct Work<'a> {
    claims: &'a Claims,
    network: String,
}

impl Work<'_> {
    /// Which network.
    pub fn network(&self) -> &str {
        &self.network
    }

    /// It is whoever's who has this handle.
    pub fn hand_over(self) -> Arc<()> {
        self.claims.adopt(&self.network)
    }

    /// It is gone.
    pub fn free(self) {
        self.claims.locked().remove(&self.network);
    }
}

impl Drop for Work<'_> {
    fn drop(&mut self) {
        if let Some(claim @ Claim::AtWork) = self.claims.locked().get_mut(&self.network) {
            *claim = Claim::Handle(Weak::new());
        }
    }
}

impl Claims {
    fn locked(&self) -> MutexGuard<'_, BTreeMap<String, Claim>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One that is being made.
    pub fn make(&self, network: &str) -> Work<'_> {
        self.locked().insert(network.to_owned(), Claim::AtWork);
        Work { claims: self, network: network.to_owned() }
    }

    /// Whoever gets this handle has it from now on.
    pub fn adopt(&self, network: &str) -> Arc<()> {
        let handle = Arc::new(());
        self.locked().insert(network.to_owned(), Claim::Handle(Arc::downgrade(&handle)));
        handle
    }

    /// One that its user, or whoever comes after a restart, is done with; `None` if somebody is at it already.
    pub fn give_back(&self, network: &str) -> Option<Work<'_>> {
        self.take_if(network, |claim| !matches!(claim, Some(Claim::AtWork)))
    }

    /// One that is nobody's.
    pub fn reclaim(&self, network: &str) -> Option<Work<'_>> {
        self.take_if(network, |claim| claim.is_none_or(Claim::is_abandoned))
    }

    /// One that somebody had and left.
    pub fn reclaim_abandoned(&self, network: &str) -> Option<Work<'_>> {
        self.take_if(network, |claim| claim.is_some_and(Claim::is_abandoned))
    }

    fn take_if(&self, network: &str, may: impl FnOnce(Option<&Claim>) -> bool) -> Option<Work<'_>> {
        let mut claims = self.locked();
        if !may(claims.get(network)) {
            return None;
        }
        claims.insert(network.to_owned(), Claim::AtWork);
        Some(Work { claims: self, network: network.to_owned() })
    }

    /// Did somebody have it and leave it?
    pub fn is_abandoned(&self, network: &str) -> bool {
        self.locked().get(network).is_some_and(Claim::is_abandoned)
    }

    /// Those that somebody had and left.
    pub fn abandoned(&self) -> Vec<String> {
        self.locked().iter().filter(|(_, claim)| claim.is_abandoned()).map(|(network, _)| network.clone()).collect()
    }
}
