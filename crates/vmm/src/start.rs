//! From a spec to a machine: booted, or loaded with saved state.

use std::error::Error;
use std::fs::{self, File};
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::command::Begin;
use crate::memory::{GuestMemory, MemoryError};
use crate::process::{self, Connections, ExitReport, Process};
use crate::qmp::{Qmp, QmpError};
use crate::record::VmRecord;
use crate::spec::{MemoryBacking, SpecError, VmSpec};
use crate::vm::Vm;

/// How long QEMU may take from its start to its first answer: tens of milliseconds on an idle machine.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// How long loading device state may take: tens of milliseconds too.
const LOAD_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a QEMU whose connection closed may take to be gone.
const EXIT_TIMEOUT: Duration = Duration::from_secs(2);
/// How often the load is asked about.
const LOAD_POLL: Duration = Duration::from_millis(1);
/// Device state is a few hundred kilobytes; something larger than this is something else.
const MAX_STATE: u64 = 64 * 1024 * 1024;

impl Vm {
    /// Starts a machine at its kernel; returns when it runs.
    pub async fn boot(spec: &VmSpec) -> Result<Vm, StartError> {
        let (starting, _) = Starting::spawn(spec, Begin::Boot).await?;
        starting.execute("cont", None).await?;
        Ok(starting.finish(spec))
    }

    /// Starts a machine and gives it a saved one's memory and device state; returns when it is loaded, paused.
    ///
    /// `write_pages` is called, on a thread that may block, when the memory is mapped; it writes the pages that
    /// differ from the memory file. Devices read them while they load, so all must be there when it returns.
    pub async fn restore<E>(
        spec: &VmSpec,
        state: &Path,
        write_pages: impl FnOnce(&GuestMemory) -> Result<(), E> + Send + 'static,
    ) -> Result<Vm, StartError>
    where
        E: Into<Box<dyn Error + Send + Sync>> + Send + 'static,
    {
        let path = state.to_owned();
        let state = tokio::task::spawn_blocking(move || open_state(&path));
        let state = joined(state.await)??;
        let (starting, incoming) = Starting::spawn(spec, Begin::Incoming).await?;
        let Some((socket, number)) = incoming else {
            unreachable!("a process that waits for state has a socket for it")
        };

        if matches!(spec.memory, MemoryBacking::CopyOnWrite(_)) {
            let record = starting.record.clone();
            let written = tokio::task::spawn_blocking(move || {
                let memory =
                    GuestMemory::open(record.pid, record.start_time, &record.memory_path, record.memory_bytes)?;
                write_pages(&memory).map_err(|e| StartError::WritePages { source: e.into() })
            });
            joined(written.await)??;
        }

        let sent = tokio::task::spawn_blocking(move || send_state(state, socket));
        let uri = json!({ "uri": format!("fd:{number}") });
        starting.execute("migrate-incoming", Some(uri)).await?;
        starting.loaded().await?;
        joined(sent.await)??;
        Ok(starting.finish(spec))
    }
}

/// A process that is killed unless it is released.
struct Guard(Option<Process>);

impl Guard {
    fn process(&self) -> &Process {
        self.0.as_ref().expect("only the release takes the process")
    }

    /// The error of a start: QEMU's own last words if it ended, and the process's end in any case.
    async fn failed(&self, source: QmpError) -> StartError {
        let process = self.process();
        if matches!(source, QmpError::Disconnected { .. }) {
            // A closed connection and the end of the process are not seen in one instant.
            if let Ok(report) = tokio::time::timeout(EXIT_TIMEOUT, process.exited()).await {
                return StartError::Exited { report };
            }
        }
        StartError::Control { source }
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

/// A machine that is not usable yet; dropped early, it is killed.
struct Starting {
    guard: Guard,
    record: VmRecord,
    qmp: Qmp,
}

impl Starting {
    async fn spawn(spec: &VmSpec, begin: Begin) -> Result<(Self, Option<(UnixStream, i32)>), StartError> {
        spec.check()?;
        let owned = spec.clone();
        let spawned = tokio::task::spawn_blocking(move || {
            check_memory_file(&owned)?;
            process::spawn(&owned, begin)
        });
        let in_dir = |what| {
            let path = spec.dir.clone();
            move |source| StartError::Prepare { what, path, source }
        };
        let watched = joined(spawned.await)??.watch(&spec.dir);
        let (process, record, Connections { qmp, incoming }) = watched.map_err(in_dir("watch the process in"))?;
        let guard = Guard(Some(process));
        let stream = qmp
            .set_nonblocking(true)
            .and_then(|()| tokio::net::UnixStream::from_std(qmp))
            .map_err(in_dir("use the control socket in"))?;
        match Qmp::connect(stream, START_TIMEOUT).await {
            Ok(qmp) => Ok((Self { guard, record, qmp }, incoming)),
            Err(source) => Err(guard.failed(source).await),
        }
    }

    async fn execute(&self, command: &'static str, arguments: Option<Value>) -> Result<Value, StartError> {
        match self.qmp.execute(command, arguments).await {
            Ok(value) => Ok(value),
            Err(source) => Err(self.guard.failed(source).await),
        }
    }

    /// Waits for the device state to be loaded.
    async fn loaded(&self) -> Result<(), StartError> {
        let deadline = Instant::now() + LOAD_TIMEOUT;
        loop {
            let migration = self.execute("query-migrate", None).await?;
            match migration["status"].as_str() {
                Some("completed") => return Ok(()),
                Some("failed" | "cancelled") => {
                    // Most versions exit on a failed load; their words are worth a moment.
                    let exited = self.guard.process().exited();
                    return Err(match tokio::time::timeout(EXIT_TIMEOUT, exited).await {
                        Ok(report) => StartError::Exited { report },
                        Err(_) => StartError::LoadFailed {
                            description: migration["error-desc"].as_str().unwrap_or("").to_owned(),
                        },
                    });
                }
                _ if Instant::now() > deadline => return Err(StartError::LoadTimeout),
                _ => tokio::time::sleep(LOAD_POLL).await,
            }
        }
    }

    fn finish(mut self, spec: &VmSpec) -> Vm {
        let process = self.guard.0.take().expect("only the release takes the process");
        Vm::new(spec.dir.clone(), self.record.clone(), process, self.qmp.clone())
    }
}

/// A private mapping needs a file of the right size; a shared one is made if it is not there.
fn check_memory_file(spec: &VmSpec) -> Result<(), StartError> {
    let path = spec.memory.path();
    let wrap = |source| StartError::MemoryFile { path: path.to_owned(), source };
    if let MemoryBacking::Shared(path) = &spec.memory {
        let file = File::options().create(true).truncate(false).write(true).open(path).map_err(wrap)?;
        if file.metadata().map_err(wrap)?.len() == 0 {
            file.set_len(spec.memory_bytes()).map_err(wrap)?;
        }
    }
    let found = fs::metadata(path).map_err(wrap)?.len();
    if found == spec.memory_bytes() {
        Ok(())
    } else {
        Err(StartError::MemorySize { path: path.to_owned(), found, expected: spec.memory_bytes() })
    }
}

fn open_state(path: &Path) -> Result<File, StartError> {
    let wrap = |source| StartError::State { path: path.to_owned(), source };
    let file = File::open(path).map_err(wrap)?;
    let bytes = file.metadata().map_err(wrap)?.len();
    if bytes > MAX_STATE {
        return Err(StartError::StateSize { path: path.to_owned(), bytes });
    }
    Ok(file)
}

/// Ends when all is sent, or with an error when QEMU ends: it holds the only other end.
fn send_state(mut state: File, mut socket: UnixStream) -> Result<(), StartError> {
    match io::copy(&mut state, &mut socket) {
        Ok(_) => Ok(()),
        Err(source) => Err(StartError::SendState { source }),
    }
}

/// The result of a blocking task; a panic in it goes on here, a shutdown of the runtime is an error.
fn joined<T>(result: Result<T, tokio::task::JoinError>) -> Result<T, StartError> {
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
    /// The program could not be run, or its child could not enter its session or namespace.
    #[error("cannot run {}", program.display())]
    Spawn {
        /// The program.
        program: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// QEMU ended before the machine was usable.
    #[error("QEMU ended while starting ({report})")]
    Exited {
        /// How, and its last words.
        report: ExitReport,
    },
    /// QEMU did not do what it was told.
    #[error("QEMU could not be driven while starting")]
    Control {
        /// What it did.
        #[source]
        source: QmpError,
    },
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
        source: Box<dyn Error + Send + Sync>,
    },
    /// The device state could not be sent whole.
    #[error("cannot send the device state to QEMU")]
    SendState {
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// QEMU did not accept the device state.
    #[error("QEMU could not load the device state: {description:?}")]
    LoadFailed {
        /// QEMU's words, if any.
        description: String,
    },
    /// QEMU took too long to load the device state.
    #[error("QEMU did not load the device state within {LOAD_TIMEOUT:?}")]
    LoadTimeout,
    /// The daemon is shutting down.
    #[error("the program is shutting down")]
    ShuttingDown,
}
