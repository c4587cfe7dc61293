//! What a suspend saves of a VM, and what a resume loads: the devices' state, and the memory that differs from the image
//! version's.
//!
//! The memory is in one layer, or in two. A microVM that was resumed keeps the layer it was resumed with, as its *ground*;
//! its next suspend compares with it, and where little changed writes a second layer, the *delta*, with just that. So a
//! long-lived session pays for what it does, not for all it ever did. Any whole layer would do for a ground, since it is
//! its content that is compared: losing it costs time, never memory.

use std::{io, path::Path, time::SystemTime};

use api::host::SuspendReport;
use failpoint::step;
use snapshot::{Layer, changed_since, open_layer, write_layer};
use vmm::Standstill;

use crate::{
    capacity,
    files::{self, MicrovmFiles, SuspendedFiles},
    machine::Machine,
    manifest::{self, DamagedError, Suspended},
    platform::Platform,
    verbs::{blocking, rename_synced},
};

/// A smaller ground is written anew as quickly as it is compared with.
const GROUND_BYTES_MIN: u64 = 1024 * 1024;

/// A delta of more than this part of its ground is not written: both would be read at every resume from then on.
const DELTA_PART_MAX: u64 = 2;

/// Why a suspend did not happen.
#[derive(Debug, thiserror::Error)]
pub enum SuspendError {
    /// The VM.
    #[error("the VM could not be stopped")]
    Pause(#[source] vmm::ControlError),
    /// The disk is full.
    #[error("there is no room for the snapshot on this host's disk")]
    Room,
    /// The VM, again.
    #[error("the VM's state could not be saved")]
    Vm(#[source] vmm::SaveError),
    /// What the VMM itself built on.
    #[error("the memory it was resumed with cannot be read")]
    Earlier(#[source] snapshot::ReadError),
    /// The memory.
    #[error("the changed memory could not be saved")]
    Layer(#[source] snapshot::WriteError),
    /// Anything else.
    #[error("the snapshot could not be put in place")]
    File(#[source] io::Error),
}

/// The memory of a suspend snapshot.
pub struct SavedMemory {
    layer: Layer,
    delta: Option<Layer>,
    stopped: Option<Stopped>,
}

impl SavedMemory {
    /// How long its guest has stood still. A clock of the host's that was set back meanwhile moves nothing back in it.
    pub fn stood_still(&self) -> Standstill {
        let Some(Stopped { at, parked }) = self.stopped else { return Standstill::default() };
        Standstill { time: at.elapsed().unwrap_or_default(), parked }
    }

    /// Hands every page to `write`, as offset and content; a later one of the same offset counts. Whether they are what was
    /// saved is known at the end: a VM that they were written to has not run yet, and never does if they are not.
    pub fn apply(&self, write: &mut dyn FnMut(u64, &[u8]) -> io::Result<()>) -> Result<(), snapshot::ReadError> {
        self.layer.visit(write)?;
        match &self.delta {
            Some(delta) => delta.visit(write),
            None => Ok(()),
        }
    }
}

/// Checks a suspend snapshot, all of it but the pages, which are checked as they are applied.
pub async fn open(files: &SuspendedFiles) -> Result<SavedMemory, DamagedError> {
    let files = files.clone();
    let checked = tokio::task::spawn_blocking(move || {
        let Suspended { has_delta, stopped } = manifest::check_suspended(&files)?;
        let layer = open_layer(&files.layer()).map_err(DamagedError::Layer)?;
        let delta = has_delta.then(|| open_layer(&files.delta())).transpose().map_err(DamagedError::Layer)?;
        Ok(SavedMemory { layer, delta, stopped })
    });
    checked.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
}

/// Keeps the layer of a used snapshot as the ground of the next, and removes the rest.
pub async fn retire(files: &MicrovmFiles) -> io::Result<()> {
    if let Err(error) = tokio::fs::rename(files.resumed().layer(), files.ground()).await {
        tracing::debug!(%error, "a used suspend snapshot has no layer to keep");
    }
    files::remove_dir(files.resumed().dir().clone()).await
}

/// How a VM was stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stopped {
    /// Since then it stands still.
    pub at: SystemTime,
    /// Its processors were kept from its processes; see [`vmm::Standstill`].
    pub parked: bool,
}

/// Writes the snapshot of a VM that stands still; its last step makes it count.
pub async fn save(
    platform: &dyn Platform,
    machine: &Machine,
    files: &MicrovmFiles,
    stopped: Stopped,
) -> Result<SuspendReport, SuspendError> {
    let fresh = files.suspending();
    files::remove_dir(fresh.dir().clone()).await.map_err(SuspendError::File)?;
    tokio::fs::create_dir(fresh.dir()).await.map_err(SuspendError::File)?;
    let changes = machine.vm.snapshot_incremental(&fresh.device_state()).await.map_err(SuspendError::Vm)?;
    step("suspend.devices-saved");
    let memory_bytes = machine.spec.size.guest_memory_bytes();
    let ground = files.ground();
    let (plan, changes) = blocking({
        let ground = ground.clone();
        move || Ok((Plan::of(&ground, &changes), changes))
    })
    .await
    .map_err(SuspendError::File)?;
    let bytes = plan.bytes(&changes);
    if !capacity::has_room(platform, fresh.dir(), bytes).map_err(SuspendError::File)? {
        return Err(SuspendError::Room);
    }
    let report = blocking(move || {
        if let Err(error) = plan.write(&ground, &fresh, memory_bytes, &changes) {
            return Ok(Err(error));
        }
        step("suspend.memory-saved");
        let device_bytes = std::fs::metadata(fresh.device_state())?.len();
        manifest::write_suspended(&fresh, stopped)?;
        step("suspend.manifest-written");
        Ok(Ok(SuspendReport { memory_bytes: bytes, device_bytes }))
    })
    .await
    .map_err(SuspendError::File)??;
    rename_synced(files.suspending().dir(), files.suspended().dir(), files.dir()).await.map_err(SuspendError::File)?;
    // In the snapshot if it is needed.
    let _ = tokio::fs::remove_file(files.ground()).await;
    Ok(report)
}

/// How the memory is going to be written.
enum Plan {
    /// All that differs from the version's.
    Whole,
    /// What differs from the ground's, beside the ground.
    Delta(Vec<std::ops::Range<u64>>),
}

impl Plan {
    fn of(ground: &Path, changes: &vmm::Changes) -> Self {
        // A VMM that keeps two generations apart itself has compared already.
        if changes.earlier().is_some() || !ground.exists() {
            return Self::Whole;
        }
        let delta = open_layer(ground).and_then(|ground| {
            let ground_bytes = bytes_of(&ground.runs());
            if ground_bytes < GROUND_BYTES_MIN {
                return Ok(None);
            }
            let delta = changed_since(&ground, changes.runs(), &mut |offset, pages| changes.read(offset, pages))?;
            Ok(delta.filter(|delta| bytes_of(delta) <= ground_bytes / DELTA_PART_MAX))
        });
        match delta {
            Ok(Some(delta)) => Self::Delta(delta),
            Ok(None) => Self::Whole,
            Err(error) => {
                tracing::warn!(error = crate::verbs::reason_of("not compared", &error), "a suspend writes all memory");
                Self::Whole
            }
        }
    }

    fn bytes(&self, changes: &vmm::Changes) -> u64 {
        match self {
            Self::Whole => changes.bytes(),
            Self::Delta(runs) => bytes_of(runs),
        }
    }

    fn write(
        &self,
        ground: &Path,
        to: &SuspendedFiles,
        memory_bytes: u64,
        changes: &vmm::Changes,
    ) -> Result<(), SuspendError> {
        let mut read = |offset: u64, pages: &mut [u8]| changes.read(offset, pages);
        match (self, changes.earlier()) {
            (Self::Delta(runs), _) => {
                std::fs::hard_link(ground, to.layer()).map_err(SuspendError::File)?;
                write_layer(&to.delta(), memory_bytes, runs, &mut read)
            }
            (Self::Whole, None) => write_layer(&to.layer(), memory_bytes, changes.runs(), &mut read),
            (Self::Whole, Some(earlier)) => {
                let earlier = open_layer(earlier).map_err(SuspendError::Earlier)?;
                let merged = snapshot::Merged::new(&earlier, changes.runs()).map_err(SuspendError::Earlier)?;
                let mut read = |offset: u64, pages: &mut [u8]| merged.read(offset, pages, &mut read);
                write_layer(&to.layer(), memory_bytes, &merged.runs(), &mut read)
            }
        }
        .map(drop)
        .map_err(SuspendError::Layer)
    }
}

fn bytes_of(runs: &[std::ops::Range<u64>]) -> u64 {
    runs.iter().map(|run| run.end - run.start).sum()
}

#[cfg(test)]
#[path = "saved_tests.rs"]
mod tests;
