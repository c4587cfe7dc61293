//! VMs prepared before anybody asks for one: what of a launch or a wake needs no request to be done.
//!
//! A launch is likely to be of a version that was launched lately, and what is woken is likely to have been suspended
//! lately; so the last few of each are what one VM is kept ready for. A VM that is ready has a network, a process that maps
//! its version's memory, and its disk; it lacks its state, which is the guest. It costs a process; a QEMU has 16 MB of its
//! own then.
//!
//! ```text
//!   wanted ── prepare ──► ready/<vm id>/ ── take, and rename into microvms/<microvm id>/ ──► load
//! ```
//!
//! Whoever finds none ready makes one the same way; who needs just what is being prepared gets it. While anybody launches
//! or wakes, nothing is begun for those to come: it would be taken from them.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, Weak},
    time::Duration,
};

use api::{
    host::{ImageRef, MicrovmSpec},
    ids::{MicrovmId, VmId},
    images::Architecture,
    size::Size,
};
use tokio::sync::{Notify, oneshot};
use vmm::MemoryBacking;

use crate::{
    capacity,
    files::{MicrovmFiles, WorkDir},
    launch::LaunchError,
    local::LocalHost,
    manifest,
    platform::{Platform, PreparedVm, SharedNetwork, VmPlan},
    verbs::{blocking, reason_of},
};

/// How long nothing is prepared where there is no room for it, or where it failed, unless something changes.
const PAUSE: Duration = Duration::from_secs(10);

/// What a VM is prepared for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Purpose {
    image: ImageRef,
    architecture: Option<Architecture>,
    size: Size,
    /// The suspended microVM it would go on with; otherwise it is for any launch.
    wakes: Option<MicrovmId>,
}

impl Purpose {
    /// A launch like this one.
    pub fn launch(spec: &MicrovmSpec) -> Self {
        Self { image: spec.image.clone(), architecture: spec.architecture, size: spec.size, wakes: None }
    }

    /// The next wake of this microVM.
    pub fn wake(spec: &MicrovmSpec) -> Self {
        Self { wakes: Some(spec.microvm_id), ..Self::launch(spec) }
    }

    /// Is it about this microVM?
    pub fn is_of(&self, microvm: &MicrovmId) -> bool {
        self.wakes.as_ref() == Some(microvm)
    }

    /// Is it about this image version?
    pub fn is_from(&self, image: &ImageRef) -> bool {
        self.image == *image
    }
}

/// A VM that waits for its state.
pub struct Unit {
    /// Its incarnation.
    pub vm_id: VmId,
    /// Its process.
    pub vm: Box<dyn PreparedVm>,
    /// Its network.
    pub network: SharedNetwork,
    /// A directory of its own, with the VM's directory, and the writable disk if it is for a launch.
    pub dir: WorkDir,
}

impl Unit {
    /// Ends it, and leaves nothing.
    pub async fn end(self, platform: &dyn Platform) {
        self.vm.end().await;
        platform.give_back_network(self.network.name()).await;
    }
}

/// What is ready and what should be.
pub struct Ready {
    launches: usize,
    wakes: usize,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    /// The last launches and suspends, latest first.
    wanted: VecDeque<Purpose>,
    units: Vec<(Purpose, Unit)>,
    /// What is being prepared, and who waits for it.
    making: Option<(Purpose, Option<oneshot::Sender<Unit>>)>,
    /// Launches and wakes that go on.
    at_work: usize,
    closing: bool,
}

/// What there is for somebody who needs a VM.
pub enum Taken {
    /// One that is ready.
    Now(Unit),
    /// One that is being prepared; or nothing, if that fails.
    Soon(oneshot::Receiver<Unit>),
    /// Nothing.
    Nothing,
}

/// What is to be done.
enum Next {
    Make(Purpose),
    End(Unit),
    Wait,
    Close,
}

/// Somebody launches or wakes.
pub struct AtWork<'a>(&'a Ready);

impl Drop for AtWork<'_> {
    fn drop(&mut self) {
        self.0.locked().at_work -= 1;
        self.0.changed.notify_one();
    }
}

impl Ready {
    /// Room for so many of each kind.
    pub fn new(launches: usize, wakes: usize) -> Self {
        Self { launches, wakes, state: Mutex::default(), changed: Notify::new() }
    }

    /// While it lives nothing is prepared.
    pub fn work(&self) -> AtWork<'_> {
        self.locked().at_work += 1;
        AtWork(self)
    }

    /// One for this; and from now on another is wanted, if it is for a launch.
    pub fn take(&self, purpose: &Purpose) -> Taken {
        let mut state = self.locked();
        if purpose.wakes.is_some() {
            state.wanted.retain(|other| other != purpose);
        } else {
            state.want(purpose.clone(), self.launches);
        }
        let fit = |(other, unit): &(Purpose, Unit)| other == purpose && !unit.vm.has_exited();
        if let Some(at) = state.units.iter().position(fit) {
            return Taken::Now(state.units.swap_remove(at).1);
        }
        match &mut state.making {
            Some((made, waiter @ None)) if made == purpose => {
                let (send, receive) = oneshot::channel();
                *waiter = Some(send);
                Taken::Soon(receive)
            }
            _ => Taken::Nothing,
        }
    }

    /// A microVM was suspended: somebody will wake it.
    pub fn want(&self, purpose: Purpose) {
        self.locked().want(purpose, self.wakes);
        self.changed.notify_one();
    }

    /// What is for such purposes is not wanted any more; returned is what there is of it, to be ended.
    pub fn give_up(&self, such: impl Fn(&Purpose) -> bool) -> Vec<Unit> {
        let mut state = self.locked();
        state.wanted.retain(|purpose| !such(purpose));
        state.units.extract_if(.., |(purpose, _)| such(purpose)).map(|(_, unit)| unit).collect()
    }

    /// What was being prepared is, or could not be.
    fn made(&self, unit: Option<Unit>) {
        let mut state = self.locked();
        let Some((purpose, waiter)) = state.making.take() else { return };
        let left = match (unit, waiter) {
            (Some(unit), Some(waiter)) => waiter.send(unit).err(),
            (unit, _) => unit,
        };
        state.units.extend(left.map(|unit| (purpose, unit)));
    }

    fn close(&self) {
        self.locked().closing = true;
        self.changed.notify_one();
    }

    fn next(&self) -> Next {
        let mut state = self.locked();
        if let Some(at) = state.surplus() {
            return Next::End(state.units.swap_remove(at).1);
        }
        if state.closing {
            return Next::Close;
        }
        match state.missing() {
            Some(purpose) if state.at_work == 0 => {
                state.making = Some((purpose.clone(), None));
                Next::Make(purpose)
            }
            _ => Next::Wait,
        }
    }

    fn locked(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }
}

impl State {
    /// Wants it, and of its kind so many in all.
    fn want(&mut self, purpose: Purpose, limit: usize) {
        let (wakes, mut room) = (purpose.wakes.is_some(), limit);
        self.wanted.push_front(purpose);
        self.wanted.retain(|other| {
            let counts = other.wakes.is_some() == wakes;
            let stays = !counts || room > 0;
            room = room.saturating_sub(usize::from(counts));
            stays
        });
    }

    /// Everything else is wanted first.
    fn postpone(&mut self, purpose: &Purpose) {
        let (such, others): (VecDeque<_>, VecDeque<_>) = self.wanted.drain(..).partition(|other| other == purpose);
        self.wanted = others;
        self.wanted.extend(such);
    }

    fn count(&self, purpose: &Purpose) -> usize {
        let wanted = self.wanted.iter().filter(|other| *other == purpose).count();
        if self.closing { 0 } else { wanted }
    }

    fn have(&self, purpose: &Purpose) -> usize {
        self.units.iter().filter(|(other, _)| other == purpose).count()
    }

    fn surplus(&self) -> Option<usize> {
        self.units.iter().position(|(purpose, unit)| unit.vm.has_exited() || self.have(purpose) > self.count(purpose))
    }

    /// What somebody may wait for soonest.
    fn missing(&self) -> Option<Purpose> {
        self.wanted.iter().find(|purpose| self.have(purpose) < self.count(purpose)).cloned()
    }
}

impl LocalHost {
    /// A VM for this purpose that is ready, or is so in a moment.
    pub(crate) async fn ready_for(&self, purpose: &Purpose) -> Option<Unit> {
        match self.ready.take(purpose) {
            Taken::Now(unit) => Some(unit),
            Taken::Soon(unit) => unit.await.ok(),
            Taken::Nothing => None,
        }
    }

    /// Makes ready what is wanted, and ends what is not any more, until it is told to close.
    pub(crate) async fn keep_ready(itself: Weak<Self>) {
        while let Some(host) = itself.upgrade() {
            match host.ready.next() {
                Next::Close => return,
                Next::Wait => {
                    let changed = Arc::clone(&host.ready);
                    drop(host);
                    changed.changed.notified().await;
                }
                Next::End(unit) => {
                    tracing::debug!(vm = %unit.vm_id, "ending a VM that is not needed, or has ended");
                    unit.end(&*host.platform).await;
                }
                Next::Make(purpose) => {
                    let room = capacity::check_room(&*host.platform, &host.config.layout.data, purpose.size, 0);
                    if room.is_err() {
                        host.ready.made(None);
                        let _ = tokio::time::timeout(PAUSE, host.ready.changed.notified()).await;
                        continue;
                    }
                    match host.prepare(&purpose).await {
                        Ok(unit) => {
                            tracing::debug!(vm = %unit.vm_id, ?purpose, "a VM is ready");
                            host.ready.made(Some(unit));
                        }
                        Err(error) => {
                            host.ready.made(None);
                            let error = reason_of("not prepared", &error);
                            tracing::warn!(?purpose, error, "a VM could not be prepared ahead of time");
                            host.ready.locked().postpone(&purpose);
                            let _ = tokio::time::timeout(PAUSE, host.ready.changed.notified()).await;
                        }
                    }
                }
            }
        }
    }

    /// Ends what is ready for such purposes.
    pub(crate) async fn give_up_ready(&self, such: impl Fn(&Purpose) -> bool) {
        for unit in self.ready.give_up(such) {
            unit.end(&*self.platform).await;
        }
    }

    /// Ends all that is ready, and prepares no more.
    pub(crate) async fn stop_preparing(&self) {
        self.ready.close();
        let task = self.preparing.lock().expect("no holder of this lock panics").take();
        if let Some(task) = task {
            let _ = task.await;
        }
    }

    /// Makes a VM for this purpose.
    pub(crate) async fn prepare(&self, purpose: &Purpose) -> Result<Unit, LaunchError> {
        let vm_id = VmId::random();
        let dir = WorkDir::at(self.config.layout.data.join("ready").join(vm_id.to_string()));
        let files = MicrovmFiles::at(dir.path().to_owned());
        let version = self.version_files(&purpose.image, purpose.architecture);
        let scratch_disk = match &purpose.wakes {
            Some(microvm) => self.microvm_files(microvm).scratch_disk(),
            None => files.scratch_disk(),
        };
        let (vm_dir, copied) = (files.vm_dir(), purpose.wakes.is_none());
        let (from, to) = (version.scratch_disk(), scratch_disk.clone());
        blocking(move || {
            std::fs::create_dir_all(&vm_dir)?;
            if copied {
                snapshot::copy_sparse(&from, &to).map_err(manifest::copy_into_io)?;
            }
            Ok(())
        })
        .await
        .map_err(|source| LaunchError::File { what: "copy the writable disk", source })?;
        let network = self.platform.take_network().await.map_err(LaunchError::Network)?;
        let plan = VmPlan {
            name: vm_id.to_string(),
            size: purpose.size,
            root_disk: version.root_disk(),
            scratch_disk,
            memory: MemoryBacking::CopyOnWrite(version.memory()),
            dir: files.vm_dir(),
            network: Arc::clone(&network),
        };
        match self.platform.prepare(&plan).await {
            Ok(vm) => Ok(Unit { vm_id, vm, network, dir }),
            Err(error) => {
                self.platform.give_back_network(network.name()).await;
                Err(LaunchError::Restore(error))
            }
        }
    }
}

#[cfg(test)]
#[path = "ready_tests.rs"]
mod tests;
