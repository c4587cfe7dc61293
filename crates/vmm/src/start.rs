//! From a spec to a machine: booted, or loaded with saved state.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::memory::MemoryError;
use crate::process::{ExitReport, Process};
use crate::record::VmRecord;
use crate::spec::{Driver, SpecError, VmSpec};
use crate::vm::{Control, KillError, Vm};
use crate::{firecracker, qemu, vm};

/// How long a saved machine stood still, which its guest is to find on its clocks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Standstill {
    /// The time.
    pub time: Duration,
    /// No process of its guest's was on a processor when it was stopped: all were idle, or held by one that is not
    /// scheduled by its share of the time.
    pub parked: bool,
}

/// Writes pages: offset in guest memory, contents.
pub type WritePage<'a> = dyn FnMut(u64, &[u8]) -> io::Result<()> + 'a;

/// Writes all pages there are.
pub type WriteAll = dyn FnOnce(&mut WritePage<'_>) -> Result<(), BoxError> + Send;

/// The pages in which a machine's memory differs from its memory file.
pub struct ChangedPages {
    /// The file they are in, of a form the pager reads.
    pub file: PathBuf,
    /// A list of pages that will be wanted, as a pager recorded it; they are brought before anybody asks.
    pub touched: Option<PathBuf>,
    /// Where the pager's list of the pages that were wanted goes when the machine ends: a file that is made.
    pub record: Option<PathBuf>,
    /// Writes all of them, on a thread that may block.
    pub apply: Box<WriteAll>,
}

/// An error of whoever was called.
pub type BoxError = Box<dyn Error + Send + Sync>;

impl Vm {
    /// Starts a machine at its kernel; returns when it runs.
    pub async fn boot(spec: &VmSpec) -> Result<Vm, StartError> {
        spec.check()?;
        Ok(match spec.driver {
            Driver::Qemu => Self::started(spec, qemu::boot(spec).await?, Control::Qemu),
            Driver::Firecracker => Self::started(spec, firecracker::boot(spec).await?, Control::Firecracker),
        })
    }

    /// Starts a machine and gives it a saved one's memory and device state; returns when it is loaded, paused.
    ///
    /// Its memory is the memory file's, copy-on-write, and `pages` where there are any.
    pub async fn restore(spec: &VmSpec, state: &Path, pages: Option<ChangedPages>) -> Result<Vm, StartError> {
        Self::restore_after(spec, state, Standstill::default(), pages).await
    }

    /// The same for a machine that stood still for so long, which its guest is to find on its monotonic clock. That is
    /// done for guests that QEMU emulates, and that were idle or parked; others go on from where they were.
    pub async fn restore_after(
        spec: &VmSpec,
        state: &Path,
        stood_still: Standstill,
        pages: Option<ChangedPages>,
    ) -> Result<Vm, StartError> {
        Self::prepare(spec).await?.load(spec, state, stood_still, pages).await
    }

    /// Does of a restore what needs no saved state: QEMU is started, which is the longer part; Firecracker, which is there
    /// in milliseconds, is not.
    pub async fn prepare(spec: &VmSpec) -> Result<Prepared, StartError> {
        spec.check()?;
        Ok(Prepared(match spec.driver {
            Driver::Qemu => Some(qemu::Waiting::start(spec).await?),
            Driver::Firecracker => None,
        }))
    }

    fn started<T>(spec: &VmSpec, (process, record, driver): (Process, VmRecord, T), wrap: fn(T) -> Control) -> Self {
        Self::new(spec.dir.clone(), record, process, wrap(driver))
    }
}

/// A restore that has begun, and waits for the machine it is to be. Dropped, nothing is left of it but files.
#[derive(Debug)]
pub struct Prepared(Option<qemu::Waiting>);

impl Prepared {
    /// Whether its process has ended, so that it is good for nothing any more.
    pub fn has_exited(&self) -> bool {
        self.0.as_ref().is_some_and(|waiting| waiting.process().has_exited())
    }

    /// Gives it up; returns when its process is gone.
    pub async fn end(self) -> Result<(), KillError> {
        match self.0 {
            Some(waiting) => vm::end(waiting.process()).await,
            None => Ok(()),
        }
    }

    /// As [`Vm::restore_after`]. Its directory and its disks may have been renamed since; `spec` names them as they are now,
    /// and is otherwise that it was prepared with.
    pub async fn load(
        self,
        spec: &VmSpec,
        state: &Path,
        stood_still: Standstill,
        pages: Option<ChangedPages>,
    ) -> Result<Vm, StartError> {
        Ok(match self.0 {
            Some(waiting) => Vm::started(spec, waiting.load(spec, state, stood_still, pages).await?, Control::Qemu),
            None => Vm::started(spec, firecracker::restore(spec, state, pages).await?, Control::Firecracker),
        })
    }
}

/// A process that is killed unless it is released.
#[derive(Debug)]
pub(crate) struct Guard(Option<Process>);

impl Guard {
    pub(crate) fn new(process: Process) -> Self {
        Self(Some(process))
    }

    pub(crate) fn process(&self) -> &Process {
        self.0.as_ref().expect("only the release takes the process")
    }

    pub(crate) fn release(mut self) -> Process {
        self.0.take().expect("only the release takes the process")
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(process) = self.0.take()
            && let Err(error) = process.kill()
        {
            tracing::error!(%error, pid = process.pid, "a VM that did not start could not be killed");
        }
    }
}

/// The result of a blocking task; a panic in it goes on here, a shutdown of the runtime is an error.
pub(crate) fn joined<T>(result: Result<T, tokio::task::JoinError>) -> Result<T, StartError> {
    result.map_err(|error| match error.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(_) => StartError::ShuttingDown,
    })
}

/// Why a machine did not start. Nothing of it is left running.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The spec is refused.
    #[error("the VM's specification is refused")]
    Spec(#[from] SpecError),
    /// The memory file could not be opened or made.
    #[error("cannot use the memory file {}", path.display())]
    MemoryFile {
        /// The memory file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The memory file has another size than the memory.
    #[error("the memory file {} has {found} bytes, not {expected}", path.display())]
    MemorySize {
        /// The memory file.
        path: PathBuf,
        /// Its size.
        found: u64,
        /// The memory's size.
        expected: u64,
    },
    /// Something the process needs could not be made.
    #[error("cannot {what} {}", path.display())]
    Prepare {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The jail could not be made.
    #[error("cannot {what} for the VMM")]
    Jail {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The filter of system calls could not be compiled.
    #[error("cannot compile the system call filter")]
    Filter {
        /// What is wrong with it.
        #[source]
        source: seccompiler::BackendError,
    },
    /// The program could not be run.
    #[error("cannot run {}", program.display())]
    Spawn {
        /// The program.
        program: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The VMM ended before the machine was usable.
    #[error("the VMM ended while starting ({report})")]
    Exited {
        /// How, and its last words.
        report: ExitReport,
    },
    /// The VMM did not do what it was told.
    #[error("the VMM could not be driven while starting")]
    Control {
        /// What it did.
        source: BoxError,
    },
    /// The machine needs a pager, and the spec has none.
    #[error("changed pages need a pager, and the VM's specification names none")]
    NoPager,
    /// The saved device state could not be opened.
    #[error("cannot open the device state {}", path.display())]
    State {
        /// The state file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The saved device state is too large to be one.
    #[error("{} is no device state: it has {bytes} bytes", path.display())]
    StateSize {
        /// The state file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// The guest's memory could not be reached.
    #[error("the new VM's memory cannot be reached")]
    Memory(#[from] MemoryError),
    /// The pages that differ from the memory file could not be written.
    #[error("cannot write the guest's pages")]
    WritePages {
        /// What the caller's function said.
        source: BoxError,
    },
    /// The device state could not be sent whole.
    #[error("cannot send the device state to the VMM")]
    SendState {
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The VMM did not accept the device state.
    #[error("the VMM could not load the device state: {description:?}")]
    LoadFailed {
        /// Its words, if any.
        description: String,
    },
    /// The VMM took too long to load the device state.
    #[error("the VMM did not load the device state within {after:?}")]
    LoadTimeout {
        /// How long was waited.
        after: Duration,
    },
    /// The daemon is shutting down.
    #[error("the program is shutting down")]
    ShuttingDown,
}
