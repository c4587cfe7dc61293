//! A handle on one machine.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncRead;

use crate::changes::Changes;
use crate::firecracker::{self, Firecracker};
use crate::memory::{GuestMemory, MemoryError};
use crate::process::{self, ExitReport, Process};
use crate::procfs;
use crate::qemu::{AttachFailure, Qemu};
use crate::record::{RecordError, VmRecord};
use crate::spec::{Capabilities, Driver};
use crate::start::BoxError;
use crate::sys;
use crate::usage::Usage;

/// How long a killed process may take to be gone.
const KILL_TIMEOUT: Duration = Duration::from_secs(30);
/// Below this much room a failed save is blamed on it.
const NO_ROOM: u64 = 1024 * 1024;

/// A running or paused machine. Clones are handles on the same one; dropping them all leaves it as it is.
#[derive(Debug, Clone)]
pub struct Vm(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    record: VmRecord,
    process: Process,
    control: Control,
}

/// How the VMM is told things.
#[derive(Debug)]
pub(crate) enum Control {
    Qemu(Qemu),
    Firecracker(Firecracker),
}

/// What a machine is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunState {
    /// The guest runs.
    Running,
    /// The guest is paused, by request.
    Paused,
    /// The guest has not begun: its state is not loaded, or it was never started.
    NotStarted,
    /// The guest was paused because a disk failed, most likely for lack of room on the host.
    IoError,
    /// Anything else, in the VMM's words.
    Other(String),
}

/// What a guest's serial console writes.
pub type Console = Box<dyn AsyncRead + Send + Unpin>;

impl Vm {
    pub(crate) fn new(dir: PathBuf, record: VmRecord, process: Process, control: Control) -> Self {
        Self(Arc::new(Inner { dir, record, process, control }))
    }

    /// Finds the machine that was started in `dir`, by this process or an earlier one; `None` if there was none
    /// or it is gone. Other handles on it must have been dropped: a VMM talks to one at a time.
    pub async fn attach(dir: &Path) -> Result<Option<Vm>, AttachError> {
        let owned = dir.to_owned();
        let read = tokio::task::spawn_blocking(move || VmRecord::read(&owned)).await;
        let Some(record) = read.map_err(|_| AttachError::ShuttingDown)?? else {
            return Ok(None);
        };
        let pid = record.process.pid;
        let adopted = Process::adopt(&record.process, dir, process::VMM_LOG);
        let Some(process) = adopted.map_err(|source| AttachError::Adopt { pid, source })? else {
            return Ok(None);
        };
        let connected = async {
            match record.driver {
                Driver::Qemu => Qemu::attach(dir).await.map(Control::Qemu).map_err(|failure| match failure {
                    AttachFailure::Connect { path, source } => AttachError::Connect { path, source },
                    AttachFailure::Control(source) => AttachError::Control { pid, source: source.into() },
                }),
                Driver::Firecracker => Firecracker::attach(&record, &process, dir)
                    .await
                    .map(Control::Firecracker)
                    .map_err(|source| AttachError::Control { pid, source }),
            }
        };
        match connected.await {
            Ok(control) => Ok(Some(Self::new(dir.to_owned(), record, process, control))),
            // It ended meanwhile.
            Err(_) if procfs::start_time(pid).is_ok_and(|t| t != Some(record.process.start_time)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The id of the VM's process.
    pub fn pid(&self) -> u32 {
        self.0.process.pid
    }

    /// Processor time that the VMM has used, the guest's included; `None` if it is no more.
    pub fn cpu_time(&self) -> Option<std::time::Duration> {
        procfs::cpu_time(self.pid())
    }

    /// Whether the VMM runs just now or wants to, rather than wait, as it does for a guest that is idle.
    pub fn at_work(&self) -> bool {
        procfs::at_work(self.pid())
    }

    /// The ids of all of the VM's processes: of the VMM, and of its pager if it has one.
    pub fn pids(&self) -> Vec<u32> {
        let pager = self.0.record.pager.as_ref().map(|pager| pager.pid);
        [self.pid()].into_iter().chain(pager).collect()
    }

    /// The VM's directory.
    pub fn dir(&self) -> &Path {
        &self.0.dir
    }

    /// What its driver can do.
    pub fn capabilities(&self) -> Capabilities {
        self.0.record.driver.capabilities()
    }

    /// How long its jail took to make, up to the start of its program; unknown for a machine that was found again.
    pub fn jail_time(&self) -> Option<Duration> {
        self.0.process.jail_time()
    }

    /// Stops the guest's processors; returns when its disk requests are done too.
    pub async fn pause(&self) -> Result<(), ControlError> {
        match &self.0.control {
            Control::Qemu(qemu) => qemu.pause().await.map_err(|e| self.control_error(e)),
            Control::Firecracker(firecracker) => firecracker.pause().await.map_err(|e| self.control_error(e)),
        }
    }

    /// Lets the guest's processors run.
    pub async fn resume(&self) -> Result<(), ControlError> {
        match &self.0.control {
            Control::Qemu(qemu) => qemu.resume().await.map_err(|e| self.control_error(e)),
            Control::Firecracker(firecracker) => firecracker.resume().await.map_err(|e| self.control_error(e)),
        }
    }

    /// What the machine is doing.
    pub async fn run_state(&self) -> Result<RunState, ControlError> {
        match &self.0.control {
            Control::Qemu(qemu) => qemu.run_state().await.map_err(|e| self.control_error(e)),
            Control::Firecracker(firecracker) => firecracker.run_state().await.map_err(|e| self.control_error(e)),
        }
    }

    /// Takes a whole snapshot of a paused machine that was booted with
    /// [`MemoryBacking::Shared`](crate::MemoryBacking::Shared): the memory file has its memory then, and `state`, a new
    /// file, the state of its processors and devices. Both are made durable, and the disks the guest wrote to. If this
    /// fails, no state file is left and the machine is as usable as before.
    pub async fn snapshot_full(&self, state: &Path) -> Result<(), SaveError> {
        if !self.0.record.memory_shared {
            return Err(SaveError::NotShared);
        }
        self.check_save(state).await?;
        let saved = match &self.0.control {
            Control::Qemu(qemu) => qemu.save_device_state(state.to_owned()).await,
            Control::Firecracker(firecracker) => firecracker.save(&self.0.dir, state).await,
        };
        self.finish_save(state, saved, [self.0.record.memory_path.clone()]).await
    }

    /// Takes a snapshot of a paused machine whose memory is copy-on-write: of what changed. `state` gets the state of
    /// its processors and devices as in [`Vm::snapshot_full`]; the changed pages are to be read before the machine is
    /// resumed or ended.
    pub async fn snapshot_incremental(&self, state: &Path) -> Result<Changes, SaveError> {
        if self.0.record.memory_shared {
            return Err(SaveError::Shared);
        }
        self.check_save(state).await?;
        let saved = match &self.0.control {
            Control::Qemu(qemu) => qemu.save_device_state(state.to_owned()).await,
            Control::Firecracker(firecracker) => firecracker.save(&self.0.dir, state).await,
        };
        self.finish_save(state, saved, []).await?;
        let changes = self.changes().await;
        if changes.is_err() {
            remove_partial(state);
        }
        changes
    }

    async fn changes(&self) -> Result<Changes, SaveError> {
        if let Control::Firecracker(_) = &self.0.control {
            return firecracker::changes(&self.0.dir, self.0.record.earlier.clone()).await;
        }
        let memory = self.memory().map_err(SaveError::Memory)?;
        let scanned =
            tokio::task::spawn_blocking(move || memory.dirty().map(|runs| Changes::of_process(memory, runs))).await;
        scanned.map_err(|_| SaveError::ShuttingDown)?.map_err(SaveError::Memory)
    }

    async fn check_save(&self, state: &Path) -> Result<(), SaveError> {
        let found = self.run_state().await.map_err(SaveError::State)?;
        if found != RunState::Paused {
            return Err(SaveError::NotPaused { state: found });
        }
        if state.is_absolute() { Ok(()) } else { Err(SaveError::Path(state.to_owned())) }
    }

    /// Makes what was saved last, or takes it back.
    async fn finish_save<const N: usize>(
        &self,
        state: &Path,
        saved: Result<(), SaveError>,
        more: [PathBuf; N],
    ) -> Result<(), SaveError> {
        let path = state.to_owned();
        let disks = self.0.record.writable_disks.clone();
        let finished = tokio::task::spawn_blocking(move || {
            let synced = saved.and_then(|()| sync_all(disks.into_iter().chain(more)));
            synced.map_err(|error| {
                let full = path.parent().is_some_and(has_no_room);
                remove_partial(&path);
                if full { SaveError::NoRoom { path, source: error.into() } } else { error }
            })
        });
        finished.await.unwrap_or(Err(SaveError::ShuttingDown))
    }

    /// The guest's memory, if it is mapped copy-on-write.
    pub fn memory(&self) -> Result<GuestMemory, MemoryError> {
        let record = &self.0.record;
        if record.memory_shared {
            return Err(MemoryError::Shared { pid: self.pid() });
        }
        GuestMemory::open(&record.process, &record.memory_path, record.memory_bytes)
    }

    /// Connects to the serial console. One connection at a time is served; what the guest writes while there is
    /// none is lost, or, as far as a pipe holds it, comes first. Whoever holds one must read it: a guest may wait for a reader
    /// that does not.
    pub async fn console(&self) -> Result<Console, ControlError> {
        let opened: io::Result<Console> = match &self.0.control {
            Control::Qemu(_) => Qemu::console(&self.0.dir).await.map(|stream| Box::new(stream) as Console),
            Control::Firecracker(_) => process::reopen_pipe(self.pid(), 1).map(|pipe| Box::new(pipe) as Console),
        };
        opened.map_err(|source| ControlError::Console { pid: self.pid(), source })
    }

    /// Takes this much memory from the guest, in MiB, as far as it has it to give; 0 gives all of it back. Only where
    /// [`Capabilities::balloon`] says so.
    pub async fn set_balloon(&self, mib: u64) -> Result<(), ControlError> {
        match &self.0.control {
            Control::Qemu(_) => {
                Err(ControlError::Unsupported { what: "a balloon", driver: self.0.record.driver.name() })
            }
            Control::Firecracker(firecracker) => firecracker.set_balloon(mib).await.map_err(|e| self.control_error(e)),
        }
    }

    /// What it uses of this host.
    pub fn usage(&self) -> io::Result<Usage> {
        Usage::of(self.pid(), self.0.record.pager.as_ref().map(|pager| pager.pid))
    }

    /// Ends the machine as a power cut would, and waits until its process is gone. One that is gone already is
    /// no error.
    pub async fn kill(&self) -> Result<(), KillError> {
        end(&self.0.process).await
    }

    /// Ends a process that [`find_strays`](crate::find_strays) found to be of user `uid`, and waits until it is gone. A
    /// process that is not that user's any more is left alone.
    pub async fn kill_stray(pid: u32, uid: u32) -> Result<(), KillError> {
        let signal = |source| KillError::Signal { pid, source };
        let pidfd = match process::open_pidfd(pid) {
            Ok(pidfd) => pidfd,
            Err(e) if e.raw_os_error() == Some(libc::ESRCH) => return Ok(()),
            Err(e) => return Err(signal(e)),
        };
        // After the open, so that the check is about the process that is held.
        if procfs::uid_of(pid) != Some(uid) {
            return Ok(());
        }
        process::kill_pidfd(&pidfd).map_err(signal)?;
        let ended = sys::watch_fd(pidfd).map_err(signal)?;
        match tokio::time::timeout(KILL_TIMEOUT, ended.readable()).await {
            Ok(_) => Ok(()),
            Err(_) => Err(KillError::StillThere { pid }),
        }
    }

    /// Waits for the end of the VM's process, whoever or whatever ends it.
    pub async fn exited(&self) -> ExitReport {
        self.0.process.exited().await
    }

    /// Whether the VM's process is known to have ended.
    pub fn has_exited(&self) -> bool {
        self.0.process.has_exited()
    }

    fn control_error(&self, source: impl Into<BoxError>) -> ControlError {
        ControlError::Vmm { pid: self.pid(), source: source.into() }
    }
}

/// Kills a process and waits until it is gone.
pub(crate) async fn end(process: &Process) -> Result<(), KillError> {
    let pid = process.pid;
    process.kill().map_err(|source| KillError::Signal { pid, source })?;
    match tokio::time::timeout(KILL_TIMEOUT, process.exited()).await {
        Ok(_) => Ok(()),
        Err(_) => Err(KillError::StillThere { pid }),
    }
}

fn sync_all(paths: impl IntoIterator<Item = PathBuf>) -> Result<(), SaveError> {
    paths.into_iter().try_for_each(|path| {
        File::open(&path).and_then(|file| file.sync_all()).map_err(|source| SaveError::Sync { path, source })
    })
}

fn has_no_room(dir: &Path) -> bool {
    rustix::fs::statvfs(dir).is_ok_and(|stat| stat.f_bavail.saturating_mul(stat.f_frsize) < NO_ROOM)
}

fn remove_partial(path: &Path) {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(%error, path = %path.display(), "half a device state could not be removed");
        }
        _ => {}
    }
}

/// Why a machine did not do as told.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The command failed or had no answer.
    #[error("VM process {pid} did not do as told")]
    Vmm {
        /// The VM's process.
        pid: u32,
        /// What happened.
        source: BoxError,
    },
    /// Its driver cannot do that; see [`Capabilities`].
    #[error("{driver} has no support for {what}")]
    Unsupported {
        /// What was asked for.
        what: &'static str,
        /// The driver's name.
        driver: &'static str,
    },
    /// The serial console could not be connected to.
    #[error("cannot connect to the console of VM process {pid}")]
    Console {
        /// The VM's process.
        pid: u32,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// Why device state was not saved.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// The state of the machine could not be learned.
    #[error("the machine cannot be asked whether it is paused")]
    State(#[source] ControlError),
    /// The guest was not paused.
    #[error("the machine is {state:?}, not paused")]
    NotPaused {
        /// What it is.
        state: RunState,
    },
    /// The path is relative.
    #[error("the path {} is not absolute", .0.display())]
    Path(PathBuf),
    /// A whole snapshot is of a machine that was booted to be snapshotted.
    #[error("the machine's memory is copy-on-write: only what changed can be saved")]
    NotShared,
    /// The memory file of this machine is its memory.
    #[error("the machine's memory is shared with its file: only all of it can be saved")]
    Shared,
    /// The file system is full.
    #[error("no room for the snapshot {}", path.display())]
    NoRoom {
        /// The state file.
        path: PathBuf,
        /// What failed for want of it.
        source: BoxError,
    },
    /// The VMM failed to save.
    #[error("the VMM cannot save its devices' state")]
    Control {
        /// Its answer.
        source: BoxError,
    },
    /// The state could not be written.
    #[error("cannot write the device state {}", path.display())]
    Write {
        /// The state file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The changed pages could not be found.
    #[error("the guest's changed memory cannot be found")]
    Memory(#[source] MemoryError),
    /// The state or a disk could not be made durable.
    #[error("cannot sync {}", path.display())]
    Sync {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The daemon is shutting down.
    #[error("the program is shutting down")]
    ShuttingDown,
}

/// Why a machine could not be found again.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// Its record cannot be used.
    #[error("the VM's record cannot be used")]
    Record(#[from] RecordError),
    /// Its process cannot be held.
    #[error("cannot adopt VM process {pid}")]
    Adopt {
        /// The VM's process.
        pid: u32,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Its control socket cannot be connected to.
    #[error("cannot connect to {}", path.display())]
    Connect {
        /// The control socket.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It does not answer, for instance because another handle still talks to it.
    #[error("VM process {pid} does not answer")]
    Control {
        /// The VM's process.
        pid: u32,
        /// What happened.
        source: BoxError,
    },
    /// The daemon is shutting down.
    #[error("the program is shutting down")]
    ShuttingDown,
}

/// Why a machine could not be ended.
#[derive(Debug, thiserror::Error)]
pub enum KillError {
    /// The signal could not be sent.
    #[error("cannot kill VM process {pid}")]
    Signal {
        /// The VM's process.
        pid: u32,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The process was killed and does not go; it hangs in the kernel.
    #[error("VM process {pid} is still there {KILL_TIMEOUT:?} after it was killed")]
    StillThere {
        /// The VM's process.
        pid: u32,
    },
}
