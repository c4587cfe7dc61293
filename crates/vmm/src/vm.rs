//! A handle on one machine.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::net::UnixStream;

use crate::memory::{GuestMemory, MemoryError};
use crate::process::{self, CONSOLE_SOCKET, ExitReport, Process, QMP_SOCKET};
use crate::procfs;
use crate::qmp::{Qmp, QmpError};
use crate::record::{RecordError, VmRecord};
use crate::sys;

/// How long a killed process may take to be gone.
const KILL_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a guest's outstanding disk requests may take when it is paused, and saving its devices after that.
const QUIESCE_TIMEOUT: Duration = Duration::from_secs(60);
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
    qmp: Qmp,
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
    /// Anything else, in QEMU's words.
    Other(String),
}

impl Vm {
    pub(crate) fn new(dir: PathBuf, record: VmRecord, process: Process, qmp: Qmp) -> Self {
        Self(Arc::new(Inner { dir, record, process, qmp }))
    }

    /// Finds the machine that was started in `dir`, by this process or an earlier one; `None` if there was none
    /// or it is gone. Other handles on it must have been dropped: QEMU talks to one at a time.
    pub async fn attach(dir: &Path) -> Result<Option<Vm>, AttachError> {
        let owned = dir.to_owned();
        let read = tokio::task::spawn_blocking(move || VmRecord::read(&owned)).await;
        let Some(record) = read.map_err(|_| AttachError::ShuttingDown)?? else {
            return Ok(None);
        };
        let pid = record.pid;
        let adopted = Process::adopt(&record, dir);
        let Some(process) = adopted.map_err(|source| AttachError::Adopt { pid, source })? else {
            return Ok(None);
        };
        let connected = async {
            let stream = connect(dir, QMP_SOCKET)
                .await
                .map_err(|source| AttachError::Connect { path: dir.join(QMP_SOCKET), source })?;
            let qmp = Qmp::connect(stream, QUIESCE_TIMEOUT).await;
            qmp.map_err(|source| AttachError::Control { pid, source })
        };
        match connected.await {
            Ok(qmp) => Ok(Some(Self::new(dir.to_owned(), record, process, qmp))),
            // It ended meanwhile.
            Err(_) if procfs::start_time(pid).is_ok_and(|t| t != Some(record.start_time)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The id of the VM's process.
    pub fn pid(&self) -> u32 {
        self.0.process.pid
    }

    /// The VM's directory.
    pub fn dir(&self) -> &Path {
        &self.0.dir
    }

    /// Stops the guest's processors; returns when its disk requests are done too.
    pub async fn pause(&self) -> Result<(), ControlError> {
        let done = self.0.qmp.execute_within("stop", None, QUIESCE_TIMEOUT);
        done.await.map(drop).map_err(|e| self.control_error(e))
    }

    /// Lets the guest's processors run.
    pub async fn resume(&self) -> Result<(), ControlError> {
        // It may stand behind a stop or a save that was given up.
        let done = self.0.qmp.execute_within("cont", None, QUIESCE_TIMEOUT).await;
        done.map(drop).map_err(|e| self.control_error(e))
    }

    /// What the machine is doing.
    pub async fn run_state(&self) -> Result<RunState, ControlError> {
        let status = self.0.qmp.execute("query-status", None).await;
        let status = status.map_err(|e| self.control_error(e))?;
        Ok(match status["status"].as_str().unwrap_or("") {
            "running" => RunState::Running,
            "paused" => RunState::Paused,
            "prelaunch" | "inmigrate" | "preconfig" => RunState::NotStarted,
            "io-error" => RunState::IoError,
            other => RunState::Other(other.to_owned()),
        })
    }

    /// Writes the state of processors and devices (not memory, not disks) to `to`, and makes it and the disks
    /// the guest wrote to durable. The guest must be paused. If this fails, no file is left and the machine is
    /// as usable as before.
    pub async fn save_device_state(&self, to: &Path) -> Result<(), SaveError> {
        let state = self.run_state().await.map_err(SaveError::State)?;
        if state != RunState::Paused {
            return Err(SaveError::NotPaused { state });
        }
        let text = to.to_str().filter(|_| to.is_absolute());
        let Some(text) = text else {
            return Err(SaveError::Path(to.to_owned()));
        };
        // "live": QEMU keeps its disks open and usable; otherwise it would hand them over to someone else.
        let arguments = json!({ "filename": text, "live": false });
        let saved = self.0.qmp.execute_within("xen-save-devices-state", Some(arguments), QUIESCE_TIMEOUT).await;
        let path = to.to_owned();
        let disks = self.0.record.writable_disks.clone();
        let finished = tokio::task::spawn_blocking(move || match saved {
            Ok(_) => sync_all(disks.into_iter().chain([path])),
            Err(source) => {
                let full = path.parent().is_some_and(has_no_room);
                remove_partial(&path);
                Err(if full { SaveError::NoRoom { path, source } } else { SaveError::Control { path, source } })
            }
        });
        finished.await.unwrap_or(Err(SaveError::ShuttingDown))
    }

    /// The guest's memory, if it is mapped copy-on-write.
    pub fn memory(&self) -> Result<GuestMemory, MemoryError> {
        let record = &self.0.record;
        if record.memory_shared {
            return Err(MemoryError::Shared { pid: record.pid });
        }
        GuestMemory::open(record.pid, record.start_time, &record.memory_path, record.memory_bytes)
    }

    /// Connects to the serial console. One connection at a time is served; what the guest writes while there is
    /// none is lost. Whoever holds one must read it: the guest waits for a reader that does not.
    pub async fn console(&self) -> Result<UnixStream, ControlError> {
        connect(&self.0.dir, CONSOLE_SOCKET)
            .await
            .map_err(|source| ControlError::Console { path: self.0.dir.join(CONSOLE_SOCKET), source })
    }

    /// Ends the machine as a power cut would, and waits until its process is gone. One that is gone already is
    /// no error.
    pub async fn kill(&self) -> Result<(), KillError> {
        let pid = self.pid();
        self.0.process.kill().map_err(|source| KillError::Signal { pid, source })?;
        match tokio::time::timeout(KILL_TIMEOUT, self.exited()).await {
            Ok(_) => Ok(()),
            Err(_) => Err(KillError::StillThere { pid }),
        }
    }

    /// Ends a process that [`find_stray`](crate::find_stray) found in `dir`, and waits until it is gone. A
    /// process that is not QEMU in that directory any more is left alone.
    pub async fn kill_stray(pid: u32, dir: &Path) -> Result<(), KillError> {
        let signal = |source| KillError::Signal { pid, source };
        let pidfd = match process::open_pidfd(pid) {
            Ok(pidfd) => pidfd,
            Err(e) if e.raw_os_error() == Some(libc::ESRCH) => return Ok(()),
            Err(e) => return Err(signal(e)),
        };
        // After the open, so that the check is about the process that is held.
        if procfs::qemu_dir(pid).as_deref() != Some(dir) {
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

    fn control_error(&self, source: QmpError) -> ControlError {
        ControlError::Qmp { pid: self.pid(), source }
    }
}

async fn connect(dir: &Path, socket: &str) -> io::Result<UnixStream> {
    let dir = process::open_dir(dir)?;
    UnixStream::connect(process::through(&dir, socket)).await
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
    Qmp {
        /// The VM's process.
        pid: u32,
        /// What happened.
        #[source]
        source: QmpError,
    },
    /// The serial console could not be connected to.
    #[error("cannot connect to the console {}", path.display())]
    Console {
        /// The console's socket.
        path: PathBuf,
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
    /// QEMU is told paths as absolute UTF-8 text.
    #[error("the path {} is not absolute, or not UTF-8", .0.display())]
    Path(PathBuf),
    /// The file system is full.
    #[error("no room for the device state {}", path.display())]
    NoRoom {
        /// The state file.
        path: PathBuf,
        /// QEMU's answer.
        #[source]
        source: QmpError,
    },
    /// QEMU failed to save.
    #[error("cannot save the device state {}", path.display())]
    Control {
        /// The state file.
        path: PathBuf,
        /// QEMU's answer.
        #[source]
        source: QmpError,
    },
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
        #[source]
        source: QmpError,
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
