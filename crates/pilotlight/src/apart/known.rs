//! What an edge knows of microVMs from what it was told: data, and no I/O beyond opening a VM's network.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use api::{
    apart::{Place, Whereabouts},
    directory::Behind,
    ids::{EndpointId, MicrovmId, VmId},
};
use host::Way;

/// How often it is said at most that a microVM has traffic. Idle clocks run in minutes.
const TOUCH_EVERY: Duration = Duration::from_millis(250);

/// How long after traffic a microVM surely is not suspended for want of it. The shortest idle duration is a minute. Later it
/// is asked, once: a request must not race the suspend that is due just then.
const BUSY_FOR: Duration = Duration::from_secs(10);

/// Opens the way into a VM; `None` if there is none.
pub type Opener = Box<dyn Fn(&Place) -> Option<Way> + Send + Sync>;

/// How much of an incarnation is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// A network of that name was opened, which may be another VM's by now: until it is said once more that the VM is there.
    Candidate,
    /// It takes requests.
    Runs,
    /// It is being suspended, or ends: whoever has a new request for it asks.
    Rests,
}

#[derive(Clone, Copy)]
struct Found {
    behind: Behind,
    /// It was said over the present connection: a control that comes back may be configured otherwise.
    is_fresh: bool,
}

struct Life {
    vm: VmId,
    way: Arc<Way>,
    stage: Stage,
    /// It was said over the present connection.
    is_fresh: bool,
    touched: Option<Instant>,
}

/// What is known.
#[derive(Default)]
pub struct Known {
    endpoints: HashMap<EndpointId, Found>,
    lives: HashMap<MicrovmId, Life>,
    /// What was said since then may not have arrived.
    doubtful_since: Option<Instant>,
}

impl Known {
    /// What is behind an endpoint, if that need not be asked.
    pub fn behind(&self, endpoint: &EndpointId, linked: bool) -> Option<Behind> {
        let Found { behind, is_fresh } = *self.endpoints.get(endpoint)?;
        let is_busy = |life: &Life| {
            let busy = life.touched.is_some_and(|touched| touched.elapsed() < BUSY_FOR);
            busy && life.is_fresh && life.stage == Stage::Runs
        };
        (!linked || is_fresh && self.lives.get(&behind.microvm).is_some_and(is_busy)).then_some(behind)
    }

    /// Takes in what is behind an endpoint.
    pub fn learn(&mut self, endpoint: EndpointId, behind: Option<Behind>, endpoints_max: usize) {
        let Some(behind) = behind else {
            self.endpoints.remove(&endpoint);
            return;
        };
        if self.endpoints.len() >= endpoints_max {
            let lives = &self.lives;
            self.endpoints.retain(|_, found| lives.contains_key(&found.behind.microvm));
        }
        if self.endpoints.len() < endpoints_max || self.lives.contains_key(&behind.microvm) {
            self.endpoints.insert(endpoint, Found { behind, is_fresh: true });
        }
    }

    /// The incarnation that takes requests, if that need not be asked.
    pub fn running(&self, microvm: &MicrovmId, linked: bool) -> Option<VmId> {
        let life = self.lives.get(microvm)?;
        (life.stage == Stage::Runs && (life.is_fresh || !linked)).then_some(life.vm)
    }

    /// How much of the incarnation is known that a microVM has.
    pub fn life(&self, microvm: &MicrovmId) -> Option<(VmId, Stage)> {
        self.lives.get(microvm).map(|life| (life.vm, life.stage))
    }

    /// The way into an incarnation that is not over.
    pub fn way(&self, microvm: &MicrovmId, vm: &VmId) -> Option<Arc<Way>> {
        let life = self.lives.get(microvm).filter(|life| life.vm == *vm && life.stage != Stage::Candidate)?;
        Some(Arc::clone(&life.way))
    }

    /// Takes in that a microVM runs, as an answer to a question that was asked when `knowing` was its incarnation here.
    pub fn runs(&mut self, microvm: MicrovmId, at: &Whereabouts, knowing: Option<VmId>, open: &Opener) {
        if let Some(life) = self.lives.get_mut(&microvm).filter(|life| life.vm == at.vm) {
            // Its network was open when this was asked, and is still that VM's.
            if knowing == Some(at.vm) {
                (life.stage, life.is_fresh) = (Stage::Runs, true);
            }
            return;
        }
        self.forget(&microvm);
        let Some(way) = at.place.as_ref().and_then(open) else { return };
        let life = Life { vm: at.vm, way: Arc::new(way), stage: Stage::Candidate, is_fresh: true, touched: None };
        self.lives.insert(microvm, life);
    }

    /// Takes in that an incarnation takes no new requests.
    pub fn rests(&mut self, microvm: &MicrovmId, vm: &VmId) {
        if let Some(life) = self.lives.get_mut(microvm).filter(|life| life.vm == *vm && life.stage == Stage::Runs) {
            life.stage = Stage::Rests;
        }
    }

    /// Takes in that an incarnation is over, which ends its streams.
    pub fn over(&mut self, microvm: &MicrovmId, vm: &VmId) {
        if self.lives.get(microvm).is_some_and(|life| life.vm == *vm) {
            self.forget(microvm);
        }
    }

    fn forget(&mut self, microvm: &MicrovmId) {
        if let Some(life) = self.lives.remove(microvm) {
            life.way.close();
        }
    }

    /// There is traffic now; should it be said?
    pub fn touch(&mut self, microvm: &MicrovmId) -> bool {
        let Some(life) = self.lives.get_mut(microvm) else { return false };
        let now = Instant::now();
        let is_due = life.touched.is_none_or(|touched| now - touched >= TOUCH_EVERY);
        if is_due {
            life.touched = Some(now);
        }
        is_due
    }

    /// It could not be said.
    pub fn untouch(&mut self, microvm: &MicrovmId) {
        if let Some(life) = self.lives.get_mut(microvm) {
            life.touched = None;
        }
    }

    /// A connection begins: which incarnations are to be followed again, and which microVMs have had traffic that the other
    /// side may not know of.
    pub fn begin(&mut self) -> (Vec<(MicrovmId, VmId)>, Vec<MicrovmId>) {
        for life in self.lives.values_mut() {
            life.is_fresh = false;
        }
        for found in self.endpoints.values_mut() {
            found.is_fresh = false;
        }
        let held = self.lives.iter().map(|(microvm, life)| (*microvm, life.vm)).collect();
        let doubtful =
            |life: &Life| life.touched.is_some_and(|at| self.doubtful_since.is_some_and(|since| at >= since));
        let touched = self.lives.iter().filter(|(_, life)| doubtful(life)).map(|(microvm, _)| *microvm).collect();
        (held, touched)
    }

    /// It ended; what was said since then may not have arrived.
    pub fn end(&mut self, doubtful_since: Instant) {
        self.doubtful_since = Some(doubtful_since);
    }
}
