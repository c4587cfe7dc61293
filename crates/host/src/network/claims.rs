//! Whose each slot of a host's networks is. A slot that somebody works on, or has a handle on, is nobody else's; one whose
//! handle was dropped without being given back belongs to nobody, and may be reclaimed by whoever looks for such.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, Weak},
};

/// How many VMs a host can have at once: its addresses are a /18, four to a VM.
pub const SLOTS: u32 = 4096;

/// The slots that are not free. Whoever uses one has a handle, an `H`, which is known here by whether it is still there.
#[derive(Debug)]
pub struct Claims<H>(Mutex<State<H>>);

#[derive(Debug)]
struct State<H> {
    slots: BTreeMap<u32, Claim<H>>,
    /// Where the search for a free slot starts. Slots go round, because the kernel takes down the links of a deleted
    /// namespace a little later, and their names with them.
    next: u32,
}

#[derive(Debug)]
enum Claim<H> {
    /// It is being made or removed.
    AtWork,
    /// Whoever has this handle uses it.
    Handle(Weak<H>),
}

impl<H> Claim<H> {
    fn is_abandoned(&self) -> bool {
        matches!(self, Self::Handle(handle) if handle.strong_count() == 0)
    }
}

/// Work on a slot. Dropped before its end, it leaves the slot to nobody.
#[derive(Debug)]
pub struct Work<'a, H> {
    claims: &'a Claims<H>,
    slot: u32,
}

impl<H> Work<'_, H> {
    /// Which slot.
    pub fn slot(&self) -> u32 {
        self.slot
    }

    /// It is whoever's who has this handle.
    pub fn hand_over(self, handle: Weak<H>) {
        self.claims.locked().slots.insert(self.slot, Claim::Handle(handle));
        std::mem::forget(self);
    }

    /// There is nothing in it any more.
    pub fn free(self) {
        self.claims.locked().slots.remove(&self.slot);
        std::mem::forget(self);
    }
}

impl<H> Drop for Work<'_, H> {
    fn drop(&mut self) {
        self.claims.locked().slots.insert(self.slot, Claim::Handle(Weak::new()));
    }
}

impl<H> Default for Claims<H> {
    fn default() -> Self {
        Self(Mutex::new(State { slots: BTreeMap::new(), next: 0 }))
    }
}

impl<H> Claims<H> {
    fn locked(&self) -> MutexGuard<'_, State<H>> {
        self.0.lock().expect("no holder of this lock panics")
    }

    /// A free slot; `None` if there is none.
    pub fn reserve(&self) -> Option<Work<'_, H>> {
        let mut state = self.locked();
        let start = state.next;
        let mut slots = (0..SLOTS).map(|offset| (start + offset) % SLOTS);
        let slot = slots.find(|slot| !state.slots.contains_key(slot))?;
        state.slots.insert(slot, Claim::AtWork);
        state.next = (slot + 1) % SLOTS;
        Some(Work { claims: self, slot })
    }

    /// A slot that its user, or whoever comes after a restart, is done with; `None` if somebody is at it already.
    pub fn give_back(&self, slot: u32) -> Option<Work<'_, H>> {
        self.take_if(slot, |claim| !matches!(claim, Some(Claim::AtWork)))
    }

    /// A slot that is nobody's, free or abandoned.
    pub fn reclaim(&self, slot: u32) -> Option<Work<'_, H>> {
        self.take_if(slot, |claim| claim.is_none_or(Claim::is_abandoned))
    }

    /// A slot that somebody had and left.
    pub fn reclaim_abandoned(&self, slot: u32) -> Option<Work<'_, H>> {
        self.take_if(slot, |claim| claim.is_some_and(Claim::is_abandoned))
    }

    fn take_if(&self, slot: u32, may: impl FnOnce(Option<&Claim<H>>) -> bool) -> Option<Work<'_, H>> {
        let mut state = self.locked();
        if !may(state.slots.get(&slot)) {
            return None;
        }
        state.slots.insert(slot, Claim::AtWork);
        Some(Work { claims: self, slot })
    }

    /// The slot of a namespace that was found and is used from now on.
    pub fn adopt(&self, slot: u32, handle: Weak<H>) {
        self.locked().slots.insert(slot, Claim::Handle(handle));
    }

    /// Did somebody have this slot and leave it?
    pub fn is_abandoned(&self, slot: u32) -> bool {
        self.locked().slots.get(&slot).is_some_and(Claim::is_abandoned)
    }

    /// Slots that somebody had and left.
    pub fn abandoned(&self) -> Vec<u32> {
        self.locked().slots.iter().filter(|(_, claim)| claim.is_abandoned()).map(|(slot, _)| *slot).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::fd::OwnedFd, sync::Arc};

    use super::*;

    fn handle() -> Arc<OwnedFd> {
        Arc::new(File::open("/dev/null").expect("there is one").into())
    }

    #[test]
    fn what_is_used_or_worked_on_is_nobody_elses() {
        let claims = Claims::<OwnedFd>::default();
        let handle = handle();
        let making = claims.reserve().unwrap();
        let slot = making.slot();
        assert!(claims.reclaim(slot).is_none() && claims.give_back(slot).is_none(), "it is being made");
        making.hand_over(Arc::downgrade(&handle));
        assert!(claims.reclaim(slot).is_none() && claims.reclaim_abandoned(slot).is_none(), "it is used");
        assert_ne!(claims.reserve().unwrap().slot(), slot);
        let removing = claims.give_back(slot).expect("its user is done with it");
        assert!(claims.reclaim(slot).is_none() && claims.give_back(slot).is_none(), "it is being removed");
        removing.free();
        assert!(claims.reclaim_abandoned(slot).is_none(), "there is nothing of it");
        claims.reclaim(slot).expect("it is free").free();
    }

    #[test]
    fn what_was_dropped_half_way_is_nobodys() {
        let claims = Claims::<OwnedFd>::default();
        let slot = claims.reserve().unwrap().slot();
        assert_eq!(claims.abandoned(), [slot], "its making was dropped");
        let handle = handle();
        claims.reclaim_abandoned(slot).unwrap().hand_over(Arc::downgrade(&handle));
        assert!(claims.abandoned().is_empty());
        drop(handle);
        assert_eq!(claims.abandoned(), [slot], "its user was dropped");
        drop(claims.give_back(slot).unwrap());
        assert_eq!(claims.abandoned(), [slot], "its removal was dropped");
    }

    #[test]
    fn slots_go_round_and_come_to_an_end() {
        let claims = Claims::<OwnedFd>::default();
        let first = claims.reserve().unwrap();
        assert_eq!(first.slot(), 0);
        first.free();
        let all: Vec<_> = (0..SLOTS).map(|_| claims.reserve().unwrap()).collect();
        assert_eq!((all[0].slot(), all[4095].slot()), (1, 0));
        assert!(claims.reserve().is_none());
    }
}
