//! QEMU: everywhere, with KVM or without.
//!
//! It is started stopped and told the rest through its machine protocol. All it needs is inherited: sockets, disks, the
//! tap; memory through [`opener`](crate::jail::opener). Incremental snapshots are not QEMU's own, which would write all of
//! memory: device state comes from QEMU, changed pages from the kernel ([`GuestMemory`]).

mod clock;
mod command;
pub(crate) mod commands;
pub(crate) mod qmp;
mod version;

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use tokio::time::Instant;

use crate::jail::opener::Opener;
use crate::jail::{self, Device, Inmate, Shown, Sockets};
use crate::memory::GuestMemory;
use crate::process::{self, Process, Unwatched};
use crate::record::VmRecord;
use crate::spec::{Accel, MemoryBacking, VmSpec};
use crate::start::{ChangedPages, Guard, Standstill, StartError, joined};
use crate::vm::{RunState, SaveError};
use crate::words::cleaned;
use clock::Outcome;
use command::{Begin, Inherited};
use commands::{AddFd, Cont, MigrateIncoming, QueryMigrate, QueryStatus, RemoveFd, SaveDevices, Stop};
use qmp::{Qmp, QmpError};

pub(crate) use version::program_says;
pub use version::{VersionError, qemu_version};

const QMP_SOCKET: &str = "qmp.sock";
const CONSOLE_SOCKET: &str = "console.sock";
/// How long QEMU may take from its start to its first answer: tens of milliseconds on an idle machine.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// How long loading device state may take: tens of milliseconds too.
const LOAD_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a QEMU whose connection closed may take to be gone.
const EXIT_TIMEOUT: Duration = Duration::from_secs(2);
/// How often the load is asked about.
const LOAD_POLL: Duration = Duration::from_millis(1);
/// How long a guest's outstanding disk requests may take when it is paused, and saving its devices after that.
const QUIESCE_TIMEOUT: Duration = Duration::from_secs(60);
/// Device state is a few hundred kilobytes; something larger than this is something else.
const MAX_STATE: u64 = 64 * 1024 * 1024;

/// A QEMU that runs.
#[derive(Debug)]
pub(crate) struct Qemu {
    qmp: Qmp,
}

/// What a driver makes of a spec.
pub(crate) type Started<T> = (Process, VmRecord, T);

/// Starts a machine at its kernel; returns when it runs.
pub(crate) async fn boot(spec: &VmSpec) -> Result<Started<Qemu>, StartError> {
    let (starting, _) = Starting::spawn(spec, Begin::Boot).await?;
    starting.run(Cont {}).await?;
    Ok(starting.finish())
}

/// A QEMU that maps its machine's memory and has its devices, and waits for their state.
#[derive(Debug)]
pub(crate) struct Waiting {
    starting: Starting,
    /// Where device state is sent, and the number QEMU knows the other end by.
    incoming: (UnixStream, i32),
}

impl Waiting {
    pub(crate) async fn start(spec: &VmSpec) -> Result<Self, StartError> {
        let (starting, incoming) = Starting::spawn(spec, Begin::Incoming).await?;
        Ok(Self { starting, incoming: incoming.expect("a process that waits for state has a socket for it") })
    }

    pub(crate) fn process(&self) -> &Process {
        self.starting.guard.process()
    }

    /// Gives it a saved machine's memory and device state; returns when it is loaded, paused.
    pub(crate) async fn load(
        self,
        spec: &VmSpec,
        state: &Path,
        stood_still: Standstill,
        pages: Option<ChangedPages>,
    ) -> Result<Started<Qemu>, StartError> {
        let Self { mut starting, incoming: (socket, number) } = self;
        starting.record = VmRecord::new(spec, starting.record.process);
        let (record, dir) = (starting.record.clone(), spec.dir.clone());
        let recorded = tokio::task::spawn_blocking(move || {
            let recorded = record.write(&dir);
            recorded.map_err(|source| StartError::Prepare { what: "record the process in", path: dir, source })
        });
        joined(recorded.await)??;
        // Devices look at memory while they load, so all of it must be there.
        let written = async {
            let Some(pages) = pages else { return Ok(()) };
            let record = starting.record.clone();
            let written = tokio::task::spawn_blocking(move || {
                let memory = GuestMemory::open(&record.process, &record.memory_path, record.memory_bytes)?;
                let mut write = |offset: u64, page: &[u8]| memory.write(offset, page);
                (pages.apply)(&mut write).map_err(|source| StartError::WritePages { source })
            });
            joined(written.await)?
        };
        let (state, ()) = tokio::try_join!(saved_devices(spec, state, stood_still), written)?;

        let sent = tokio::task::spawn_blocking(move || send_state(&state, socket));
        starting.run(MigrateIncoming { uri: format!("fd:{number}") }).await?;
        starting.loaded().await?;
        joined(sent.await)??;
        Ok(starting.finish())
    }
}

/// The saved state of devices, with its clocks moved on.
async fn saved_devices(spec: &VmSpec, state: &Path, stood_still: Standstill) -> Result<Vec<u8>, StartError> {
    let (path, vcpus) = (state.to_owned(), spec.vcpus);
    // With KVM, clocks are told in other sections.
    let moved_on = (spec.accel == Accel::Tcg && !stood_still.time.is_zero()).then_some(stood_still);
    let read = tokio::task::spawn_blocking(move || {
        let mut state = read_state(&path)?;
        let clocks = moved_on.map(|by| clock::advance(&mut state, vcpus, by));
        Ok::<_, StartError>((state, clocks))
    });
    let (state, clocks) = joined(read.await)??;
    match clocks {
        None | Some(Outcome::Advanced) => {}
        Some(Outcome::Busy) => tracing::info!(vm = spec.name, "its clocks go on from where they were: it was not idle"),
        Some(Outcome::Unknown) => tracing::warn!(vm = spec.name, "its clocks are not found in its saved state"),
    }
    Ok(state)
}

/// A machine that is not usable yet; dropped early, it is killed.
#[derive(Debug)]
struct Starting {
    guard: Guard,
    record: VmRecord,
    qmp: Qmp,
}

impl Starting {
    async fn spawn(spec: &VmSpec, begin: Begin) -> Result<(Self, Option<(UnixStream, i32)>), StartError> {
        let owned = spec.clone();
        let spawned = joined(tokio::task::spawn_blocking(move || spawn(&owned, begin)).await)??;
        let Spawned { unwatched, record, qmp, incoming, opener } = spawned;
        let in_dir = |what| {
            let path = spec.dir.clone();
            move |source| StartError::Prepare { what, path, source }
        };
        let process = unwatched.watch(&spec.dir).map_err(in_dir("watch the process in"))?;
        let guard = Guard::new(process);
        let stream = qmp
            .set_nonblocking(true)
            .and_then(|()| tokio::net::UnixStream::from_std(qmp))
            .map_err(in_dir("use the control socket in"))?;
        let connected = Qmp::connect(stream, START_TIMEOUT).await;
        // It has opened all it may open. The thread that answered is at its end.
        drop(opener);
        match connected {
            Ok(qmp) => Ok((Self { guard, record, qmp }, incoming)),
            Err(source) => Err(failed(&guard, source).await),
        }
    }

    async fn run<C: qapi_spec::Command>(&self, command: C) -> Result<C::Ok, StartError> {
        match self.qmp.execute(command).await {
            Ok(value) => Ok(value),
            Err(source) => Err(failed(&self.guard, source).await),
        }
    }

    /// Waits for the device state to be loaded.
    async fn loaded(&self) -> Result<(), StartError> {
        let deadline = Instant::now() + LOAD_TIMEOUT;
        loop {
            let migration = self.run(QueryMigrate {}).await?;
            match migration.status.as_str() {
                "completed" => return Ok(()),
                "failed" | "cancelled" => {
                    // Most versions exit on a failed load; their words are worth a moment.
                    let exited = self.guard.process().exited();
                    return Err(match tokio::time::timeout(EXIT_TIMEOUT, exited).await {
                        Ok(report) => StartError::Exited { report },
                        Err(_) => StartError::LoadFailed { description: cleaned(&migration.error) },
                    });
                }
                _ if Instant::now() > deadline => return Err(StartError::LoadTimeout { after: LOAD_TIMEOUT }),
                _ => tokio::time::sleep(LOAD_POLL).await,
            }
        }
    }

    fn finish(self) -> Started<Qemu> {
        let Self { guard, record, qmp } = self;
        (guard.release(), record, Qemu { qmp })
    }
}

/// The error of a start: QEMU's own last words if it ended, and the process's end in any case.
async fn failed(guard: &Guard, source: QmpError) -> StartError {
    if matches!(source, QmpError::Disconnected { .. }) {
        // A closed connection and the end of the process are not seen in one instant.
        if let Ok(report) = tokio::time::timeout(EXIT_TIMEOUT, guard.process().exited()).await {
            return StartError::Exited { report };
        }
    }
    StartError::Control { source: Box::new(source) }
}

/// A process just started, and our ends of what connects to it.
struct Spawned {
    unwatched: Unwatched,
    record: VmRecord,
    qmp: UnixStream,
    /// Where device state is sent, and the number QEMU knows the other end by.
    incoming: Option<(UnixStream, i32)>,
    opener: Opener,
}

/// Starts QEMU in its jail and records it. Blocks.
fn spawn(spec: &VmSpec, begin: Begin) -> Result<Spawned, StartError> {
    let prepare = |what: &'static str, path: &Path| {
        let path = path.to_owned();
        move |source: io::Error| StartError::Prepare { what, path, source }
    };
    let memory = open_memory(spec)?;
    let dir = process::open_dir(&spec.dir).map_err(prepare("open the directory", &spec.dir))?;
    // Listening sockets are made here and inherited, so that a client need not wait for them to appear.
    let listen = |name| process::listen(&spec.dir, &dir, name).map_err(prepare("listen on", &spec.dir.join(name)));
    let (qmp_listener, console_listener) = (listen(QMP_SOCKET)?, listen(CONSOLE_SOCKET)?);
    let qmp = UnixStream::connect(process::through(&dir, QMP_SOCKET))
        .map_err(prepare("connect to", &spec.dir.join(QMP_SOCKET)))?;
    let incoming = match begin {
        Begin::Boot => None,
        Begin::Incoming => Some(
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
                .map_err(|e| prepare("make a socket for", &spec.dir)(e.into()))?,
        ),
    };
    let (log, words) = process::words().map_err(prepare("make a pipe for", &spec.dir))?;
    let words_too = words.try_clone().map_err(prepare("make a pipe for", &spec.dir))?;
    let mut disks = Vec::with_capacity(spec.disks.len());
    for disk in &spec.disks {
        disks.push(jail::open_for(&disk.path, !disk.read_only)?);
    }
    // The tap takes the number of a descriptor that is opened for that.
    let network = spec.network.as_ref().map(|network| {
        let namespace = File::open(&network.namespace);
        let namespace = namespace.map_err(prepare("open the network namespace", &network.namespace))?;
        let number = File::open("/dev/null").map_err(prepare("open", Path::new("/dev/null")))?;
        Ok::<_, StartError>((OwnedFd::from(namespace), network.tap.as_str(), number))
    });
    let network = network.transpose()?;
    let tap = network.as_ref().map(|(_, name, number)| (*name, number.as_raw_fd()));

    let inherited = Inherited {
        qmp: qmp_listener.as_raw_fd(),
        console: console_listener.as_raw_fd(),
        tap: tap.map(|(_, number)| number),
        disks: disks.iter().map(|(_, number)| *number).collect(),
    };
    let mut keep = vec![inherited.qmp, inherited.console];
    keep.extend(incoming.as_ref().map(|(_, theirs)| theirs.as_raw_fd()));
    keep.extend(inherited.tap);
    keep.extend(&inherited.disks);
    let mut shown = Vec::new();
    if begin == Begin::Boot {
        shown.push(Shown { from: spec.kernel.clone(), place: &command::KERNEL[1..], writable: false });
        shown.extend(spec.initrd.iter().map(|initrd| Shown {
            from: initrd.clone(),
            place: &command::INITRD[1..],
            writable: false,
        }));
    }
    // A leftover record must not lead to a process that only once had this directory.
    VmRecord::remove(&spec.dir).map_err(prepare("remove the old record in", &spec.dir))?;
    let mount_point = spec.dir.join("root");
    fs::create_dir_all(&mount_point).map_err(prepare("make", &mount_point))?;
    let (namespace, number) = network.map(|(namespace, _, number)| (namespace, number)).unzip();
    let born = jail::start(Inmate {
        jail: &spec.jail,
        program: &spec.program,
        arguments: command::arguments(spec, begin, &inherited),
        mount_point: &mount_point,
        network: namespace,
        tap: spec.network.as_ref().map(|network| network.tap.as_str()).zip(inherited.tap),
        shown,
        devices: if spec.accel == Accel::Kvm { &[Device::Kvm] } else { &[] },
        keep,
        output: words,
        error: words_too,
        asks: true,
        sockets: Sockets::Inherited,
        file_bytes: largest_file(spec),
        memory_bytes: spec.memory_bytes(),
    });
    drop(number);
    let mut born = born?;
    let questions = born.questions.take().expect("its recipe asks");
    let pid = born.pid;
    let recorded = || -> io::Result<(Unwatched, VmRecord)> {
        let unwatched = Unwatched::new(born, spec.jail.cgroup.clone(), log, process::VMM_LOG)?;
        let record = VmRecord::new(spec, unwatched.identity());
        record.write(&spec.dir)?;
        Ok((unwatched, record))
    };
    let (unwatched, record) = recorded().map_err(prepare("record the process in", &spec.dir))?;
    let opener = Opener::start(pid, questions, memory).map_err(prepare("answer the process in", &spec.dir))?;
    let incoming = incoming.map(|(ours, theirs)| (ours.into(), theirs.as_raw_fd()));
    Ok(Spawned { unwatched, record, qmp, incoming, opener })
}

/// The memory file, open for no more than the machine needs. A private mapping needs a file of the right size; a shared
/// one is made if it is not there.
fn open_memory(spec: &VmSpec) -> Result<File, StartError> {
    let path = spec.memory.path();
    let wrap = |source| StartError::MemoryFile { path: path.to_owned(), source };
    let file = match &spec.memory {
        MemoryBacking::Shared(path) => {
            let file = File::options().create(true).truncate(false).read(true).write(true).open(path).map_err(wrap)?;
            if file.metadata().map_err(wrap)?.len() == 0 {
                file.set_len(spec.memory_bytes()).map_err(wrap)?;
            }
            file
        }
        MemoryBacking::CopyOnWrite(path) => File::open(path).map_err(wrap)?,
    };
    let found = file.metadata().map_err(wrap)?.len();
    if found == spec.memory_bytes() {
        Ok(file)
    } else {
        Err(StartError::MemorySize { path: path.to_owned(), found, expected: spec.memory_bytes() })
    }
}

/// The size of the largest file the machine writes: a disk, or its devices' state.
fn largest_file(spec: &VmSpec) -> u64 {
    let disks = spec.disks.iter().filter(|disk| !disk.read_only);
    disks.filter_map(|disk| fs::metadata(&disk.path).ok()).map(|disk| disk.len()).fold(MAX_STATE, u64::max)
}

fn read_state(path: &Path) -> Result<Vec<u8>, StartError> {
    let wrap = |source| StartError::State { path: path.to_owned(), source };
    let file = File::open(path).map_err(wrap)?;
    let bytes = file.metadata().map_err(wrap)?.len();
    if bytes > MAX_STATE {
        return Err(StartError::StateSize { path: path.to_owned(), bytes });
    }
    let mut state = Vec::new();
    file.take(MAX_STATE).read_to_end(&mut state).map_err(wrap)?;
    Ok(state)
}

/// Ends when all is sent, or with an error when QEMU ends: it holds the only other end.
fn send_state(state: &[u8], mut socket: UnixStream) -> Result<(), StartError> {
    socket.write_all(state).map_err(|source| StartError::SendState { source })
}

impl Qemu {
    /// Finds the machine of a process that was adopted.
    pub(crate) async fn attach(dir: &Path) -> Result<Self, AttachFailure> {
        let path = dir.join(QMP_SOCKET);
        let stream = connect(dir, QMP_SOCKET).await.map_err(|source| AttachFailure::Connect { path, source })?;
        let qmp = Qmp::connect(stream, QUIESCE_TIMEOUT).await.map_err(AttachFailure::Control)?;
        Ok(Self { qmp })
    }

    pub(crate) async fn pause(&self) -> Result<(), QmpError> {
        self.qmp.execute_within(Stop {}, QUIESCE_TIMEOUT).await.map(drop)
    }

    pub(crate) async fn resume(&self) -> Result<(), QmpError> {
        // It may stand behind a stop or a save that was given up.
        self.qmp.execute_within(Cont {}, QUIESCE_TIMEOUT).await.map(drop)
    }

    pub(crate) async fn run_state(&self) -> Result<RunState, QmpError> {
        let status = self.qmp.execute(QueryStatus {}).await?.status;
        Ok(match status.as_str() {
            "running" => RunState::Running,
            "paused" => RunState::Paused,
            "prelaunch" | "inmigrate" | "preconfig" => RunState::NotStarted,
            "io-error" => RunState::IoError,
            _ => RunState::Other(cleaned(&status)),
        })
    }

    /// Writes the state of processors and devices to `to`. QEMU, which cannot open files, writes to memory it is given a
    /// descriptor of; what comes out of it is bounded before it is kept.
    pub(crate) async fn save_device_state(&self, to: PathBuf) -> Result<(), SaveError> {
        let wrap = |source: QmpError| SaveError::Control { source: Box::new(source) };
        let (state, writer) = state_memory().map_err(|source| SaveError::Write { path: to.clone(), source })?;
        let set = self.qmp.execute_with_fd(AddFd {}, writer).await.map_err(wrap)?.set;
        let command = SaveDevices { filename: format!("/dev/fdset/{set}"), live: false };
        let saved = self.qmp.execute_within(command, QUIESCE_TIMEOUT).await;
        // QEMU closes it when the guest next runs.
        let removed = self.qmp.execute(RemoveFd { set }).await;
        saved.map_err(wrap)?;
        removed.map_err(wrap)?;
        let path = to.clone();
        let written = tokio::task::spawn_blocking(move || keep_state(state, &path)).await;
        written.map_err(|_| SaveError::ShuttingDown)?.map_err(|source| SaveError::Write { path: to, source })
    }

    /// Connects to the serial console.
    pub(crate) async fn console(dir: &Path) -> io::Result<tokio::net::UnixStream> {
        connect(dir, CONSOLE_SOCKET).await
    }
}

/// Memory for device state: to be read by us, and to be written through the descriptor. QEMU truncates what it opens, so
/// a pipe will not do; the VMM's own limits bound it.
fn state_memory() -> io::Result<(File, OwnedFd)> {
    let memory = File::from(rustix::fs::memfd_create("device-state", rustix::fs::MemfdFlags::CLOEXEC)?);
    // Only one that is open for nothing but writing is taken.
    let writer = File::options().write(true).open(format!("/proc/self/fd/{}", memory.as_raw_fd()))?;
    Ok((memory, writer.into()))
}

/// Copies device state into a new file, and makes it last.
fn keep_state(state: File, path: &Path) -> io::Result<()> {
    let bytes = state.metadata()?.len();
    if bytes > MAX_STATE {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("{bytes} bytes are no device state")));
    }
    let mut file = File::create(path)?;
    io::copy(&mut state.take(MAX_STATE), &mut file)?;
    file.sync_all()
}

async fn connect(dir: &Path, socket: &str) -> io::Result<tokio::net::UnixStream> {
    let dir = process::open_dir(dir)?;
    tokio::net::UnixStream::connect(process::through(&dir, socket)).await
}

/// Why a machine's control socket is of no use.
#[derive(Debug)]
pub(crate) enum AttachFailure {
    /// It cannot be connected to.
    Connect { path: PathBuf, source: io::Error },
    /// It does not answer.
    Control(QmpError),
}
