//! Whose each slot of a host's networks is. A slot that somebody works on, or has a handle on, is nobody else's; one whose
//! handle was dropped without being given back belongs to nobody, and may be reclaimed by whoever looks for such.

use std::{
    collections::BTreeMap,
    os::fd::OwnedFd,
    sync::{Mutex, MutexGuard, Weak},
};

/// How many VMs a host can have at once: its addresses are a /18, four to a VM.
pub const SLOTS: u32 = 4096;

/// The slots that are not free.
#[derive(Debug, Default)]
pub(super) struct Claims(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    slots: BTreeMap<u32, Claim>,
    /// Where the search for a free slot starts. Slots go round, because the kernel takes down the links of a deleted
    /// namespace a little later, and their names with them.
    next: u32,
}

#[derive(Debug)]
enum Claim {
    /// It is being made or removed.
    AtWork,
    /// Whoever has this handle uses it.
    Handle(Weak<OwnedFd>),
}

impl Claim {
    fn is_abandoned(&self) -> bool {
        matches!(self, Self::Handle(handle) if handle.strong_count() == 0)
    }
}

/// Work on a slot. Dropped before its end, it leaves the slot to nobody.
#[derive(Debug)]
pub(super) struct Work<'a> {
    claims: &'a Claims,
    slot: u32,
}

impl Work<'_> {
    /// Which slot.
    pub(super) fn slot(&self) -> u32 {
        self.slot
    }

    /// It is whoever's who has this handle.
    pub(super) fn hand_over(self, handle: Weak<OwnedFd>) {
        self.claims.locked().slots.insert(self.slot, Claim::Handle(handle));
        std::mem::forget(self);
    }

    /// There is nothing in it any more.
    pub(super) fn free(self) {
        self.claims.locked().slots.remove(&self.slot);
        std::mem::forget(self);
    }
}

impl Drop for Work<'_> {
    fn drop(&mut self) {
        self.claims.locked().slots.insert(self.slot, Claim::Handle(Weak::new()));
    }
}

impl Claims {
    fn locked(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no holder of this lock panics")
    }

    /// A free slot; `None` if there is none.
    pub(super) fn reserve(&self) -> Option<Work<'_>> {
        let mut state = self.locked();
        let start = state.next;
        let mut slots = (0..SLOTS).map(|offset| (start + offset) % SLOTS);
        let slot = slots.find(|slot| !state.slots.contains_key(slot))?;
        state.slots.insert(slot, Claim::AtWork);
        state.next = (slot + 1) % SLOTS;
        Some(Work { claims: self, slot })
    }

    /// A slot that its user, or whoever comes after a restart, is done with; `None` if somebody is at it already.
    pub(super) fn give_back(&self, slot: u32) -> Option<Work<'_>> {
        self.take_if(slot, |claim| !matches!(claim, Some(Claim::AtWork)))
    }

    /// A slot that is nobody's, free or abandoned.
    pub(super) fn reclaim(&self, slot: u32) -> Option<Work<'_>> {
        self.take_if(slot, |claim| claim.is_none_or(Claim::is_abandoned))
    }

    /// A slot that somebody had and left.
    pub(super) fn reclaim_abandoned(&self, slot: u32) -> Option<Work<'_>> {
        self.take_if(slot, |claim| claim.is_some_and(Claim::is_abandoned))
    }

    fn take_if(&self, slot: u32, may: impl FnOnce(Option<&Claim>) -> bool) -> Option<Work<'_>> {
        let mut state = self.locked();
        if !may(state.slots.get(&slot)) {
            return None;
        }
        state.slots.insert(slot, Claim::AtWork);
        Some(Work { claims: self, slot })
    }

    /// The slot of a namespace that was found and is used from now on.
    pub(super) fn adopt(&self, slot: u32, handle: Weak<OwnedFd>) {
        self.locked().slots.insert(slot, Claim::Handle(handle));
    }

    /// Did somebody have this slot and leave it?
    pub(super) fn is_abandoned(&self, slot: u32) -> bool {
        self.locked().slots.get(&slot).is_some_and(Claim::is_abandoned)
    }

    /// Slots that somebody had and left.
    pub(super) fn abandoned(&self) -> Vec<u32> {
        self.locked().slots.iter().filter(|(_, claim)| claim.is_abandoned()).map(|(slot, _)| *slot).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, sync::Arc};

    use super::*;

    fn handle() -> Arc<OwnedFd> {
        Arc::new(File::open("/dev/null").expect("there is one").into())
    }

    #[test]
    fn what_is_used_or_worked_on_is_nobody_elses() {
        let claims = Claims::default();
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
        let claims = Claims::default();
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
        let claims = Claims::default();
        let first = claims.reserve().unwrap();
        assert_eq!(first.slot(), 0);
        first.free();
        let all: Vec<_> = (0..SLOTS).map(|_| claims.reserve().unwrap()).collect();
        assert_eq!((all[0].slot(), all[4095].slot()), (1, 0));
        assert!(claims.reserve().is_none());
    }
}
