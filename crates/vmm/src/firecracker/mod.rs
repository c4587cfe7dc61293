//! Firecracker: guests on KVM, with little beside them.
//!
//! It opens what it needs by path, so its jail shows it the kernel, disks and memory of this VM at fixed places; those paths
//! are what its snapshots name, so that a snapshot fits every VM of a version. It makes its API's socket itself, in a
//! file system only its jail has.
//!
//! What changed is Firecracker's own diff snapshot, which knows what was written since the start or the load. Diffs are
//! written into one file for the VM's whole life, where older ones stay: one that came to nothing, because the host's
//! disk was full say, is not lost to the next. A machine restored with changed pages has a [pager](pager) for them, and
//! its next snapshot has those that changed since; [`Changes::earlier`] names the others.

mod api;
mod pager;
mod version;

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::changes::Changes;
use crate::jail::{self, Device, Inmate, Program, Shown, Sockets};
use crate::process::{self, Process, Unwatched};
use crate::qemu::Started;
use crate::record::VmRecord;
use crate::spec::{MemoryBacking, VmSpec};
use crate::start::{BoxError, ChangedPages, Guard, StartError, joined};
use crate::vm::{RunState, SaveError};
use api::{Api, Backend};
use pager::Pager;

pub use api::ApiError;
#[cfg(test)]
pub(crate) use api::judge;
pub use version::firecracker_version;

/// The API's socket, in the jail.
const API_SOCKET: &str = "/run/api.sock";
/// How long Firecracker may take from its start to its first answer: a few milliseconds on an idle machine.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// How often it is asked until then.
const START_POLL: Duration = Duration::from_micros(500);
/// How long one that closed its connection may take to be gone.
const EXIT_TIMEOUT: Duration = Duration::from_secs(2);
/// Device state is some ten kilobytes; something larger than this is something else.
const MAX_STATE: u64 = 64 * 1024 * 1024;
/// The network card's name in API calls and snapshots.
const CARD: &str = "eth0";
/// Where Firecracker writes device state, in the VM's directory and, as a place, in the jail.
const OUT_STATE: &str = "out.state";
/// Where it writes what changed.
const OUT_MEMORY: &str = "out.memory";
/// Another name of the changed pages a machine was restored with.
const EARLIER: &str = "earlier.layer";

/// A Firecracker that runs.
#[derive(Debug)]
pub(crate) struct Firecracker {
    api: Api,
    /// Ends the VM when its pager ends, as long as there is a handle.
    _pager: Option<Pager>,
}

/// Starts a machine at its kernel; returns when it runs.
pub(crate) async fn boot(spec: &VmSpec) -> Result<Started<Firecracker>, StartError> {
    let MemoryBacking::Shared(memory) = &spec.memory else {
        return Err(StartError::Spec(crate::spec::SpecError::BootCopyOnWrite));
    };
    let mut shown = vec![Shown { from: spec.kernel.clone(), place: "kernel", writable: false }];
    shown.extend(spec.initrd.iter().map(|initrd| Shown { from: initrd.clone(), place: "initrd", writable: false }));
    let starting = Starting::spawn(spec, shown, Some(memory.clone()), &[Device::Kvm]).await?;
    let mut boot_source = json!({ "kernel_image_path": "/kernel", "boot_args": spec.cmdline });
    if spec.initrd.is_some() {
        boot_source["initrd_path"] = "/initrd".into();
    }
    let configured = async {
        let api = &starting.api;
        // That written pages are known from the start makes the first snapshot sparse.
        let machine = json!({
            "vcpu_count": spec.vcpus, "mem_size_mib": spec.memory_mib, "smt": false, "track_dirty_pages": true,
        });
        api.put("/machine-config", &machine).await?;
        api.put("/boot-source", &boot_source).await?;
        for (index, disk) in spec.disks.iter().enumerate() {
            let id = format!("disk{index}");
            let drive = json!({
                "drive_id": id, "path_on_host": format!("/{id}"), "is_root_device": false,
                "is_read_only": disk.read_only, "cache_type": "Unsafe", "io_engine": "Sync",
            });
            api.put_to("/drives", &id, &drive).await?;
        }
        if let Some(network) = &spec.network {
            let mac = network.guest_mac.map(|byte| format!("{byte:02x}")).join(":");
            let card = json!({ "iface_id": CARD, "host_dev_name": network.tap, "guest_mac": mac });
            api.put_to("/network-interfaces", CARD, &card).await?;
        }
        api.put("/entropy", &json!({})).await?;
        api.put("/balloon", &json!({ "amount_mib": 0, "deflate_on_oom": true })).await?;
        api.put("/actions", &json!({ "action_type": "InstanceStart" })).await
    };
    match configured.await {
        Ok(()) => Ok(starting.finish(None)),
        Err(source) => Err(starting.failed(source).await),
    }
}

/// Starts a machine with a saved one's memory and device state; returns when it is loaded, paused.
pub(crate) async fn restore(
    spec: &VmSpec,
    state: &Path,
    pages: Option<ChangedPages>,
) -> Result<Started<Firecracker>, StartError> {
    let MemoryBacking::CopyOnWrite(memory) = &spec.memory else {
        return Err(StartError::Spec(crate::spec::SpecError::RestoreShared));
    };
    let (path, base, expected) = (state.to_owned(), memory.clone(), spec.memory_bytes());
    joined(tokio::task::spawn_blocking(move || check_files(&path, &base, expected)).await)??;
    let mut shown = vec![Shown { from: state.to_owned(), place: "state", writable: false }];
    let mut devices = vec![Device::Kvm];
    // What writes the pages is of no use to a pager, which reads their file itself.
    let files = pages.map(|pages| pager::Files {
        base: memory.clone(),
        layer: pages.file,
        touched: pages.touched,
        record: pages.record,
    });
    let pager = match files {
        None => {
            shown.push(Shown { from: memory.clone(), place: "memory", writable: false });
            None
        }
        Some(files) => {
            let program = spec.pager.as_ref().ok_or(StartError::NoPager)?;
            let earlier = spec.dir.join(EARLIER);
            let (from, to) = (files.layer.clone(), earlier.clone());
            let linked = joined(tokio::task::spawn_blocking(move || keep(&from, &to)).await)?;
            linked.map_err(|source| StartError::Prepare {
                what: "keep the changed pages in",
                path: earlier,
                source,
            })?;
            let pager = Pager::start(spec, program, files).await?;
            shown.push(Shown { from: pager.socket().to_owned(), place: "pager.sock", writable: true });
            devices.push(Device::Userfaultfd);
            Some(pager)
        }
    };
    let starting = Starting::spawn(spec, shown, None, &devices).await?;
    let (backend, path) = if pager.is_some() { (Backend::Uffd, "/pager.sock") } else { (Backend::File, "/memory") };
    let overrides: Vec<Value> =
        spec.network.iter().map(|network| json!({ "iface_id": CARD, "host_dev_name": network.tap })).collect();
    match starting.api.load_snapshot("/state", backend, path, &overrides).await {
        Ok(()) => starting.finish_with(spec, pager).await,
        Err(source) => Err(starting.failed(source).await),
    }
}

/// A link to the changed pages that lives as long as the VM's directory, whatever becomes of their own name; a copy if they
/// are on another file system.
fn keep(from: &Path, to: &Path) -> io::Result<()> {
    match fs::remove_file(to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    match fs::hard_link(from, to) {
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => fs::copy(from, to).map(drop),
        result => result,
    }
}

fn check_files(state: &Path, memory: &Path, expected: u64) -> Result<(), StartError> {
    let size = |path: &Path| fs::metadata(path).map(|file| file.len());
    let bytes = size(state).map_err(|source| StartError::State { path: state.to_owned(), source })?;
    if bytes > MAX_STATE {
        return Err(StartError::StateSize { path: state.to_owned(), bytes });
    }
    let found = size(memory).map_err(|source| StartError::MemoryFile { path: memory.to_owned(), source })?;
    if found == expected { Ok(()) } else { Err(StartError::MemorySize { path: memory.to_owned(), found, expected }) }
}

/// A machine that is not usable yet; dropped early, it is killed.
struct Starting {
    guard: Guard,
    record: VmRecord,
    api: Api,
}

impl Starting {
    /// Starts Firecracker, and waits until it listens.
    async fn spawn(
        spec: &VmSpec,
        shown: Vec<Shown>,
        memory: Option<PathBuf>,
        devices: &[Device],
    ) -> Result<Self, StartError> {
        let (owned, devices) = (spec.clone(), devices.to_vec());
        let spawned = tokio::task::spawn_blocking(move || spawn(&owned, shown, memory, devices)).await;
        let (unwatched, record) = joined(spawned)??;
        let process = unwatched.watch(&spec.dir).map_err(|source| StartError::Prepare {
            what: "watch the process in",
            path: spec.dir.clone(),
            source,
        })?;
        let guard = Guard::new(process);
        let api = Api::of(record.process.pid, API_SOCKET);
        let deadline = Instant::now() + START_TIMEOUT;
        let listens = async {
            while !api.answers().await {
                if Instant::now() > deadline {
                    return Err(StartError::Control {
                        source: Box::new(ApiError::Timeout { path: "/", after: START_TIMEOUT }),
                    });
                }
                tokio::time::sleep(START_POLL).await;
            }
            Ok(())
        };
        tokio::select! {
            listens = listens => listens?,
            report = guard.process().exited() => return Err(StartError::Exited { report }),
        }
        Ok(Self { guard, record, api })
    }

    /// The error of a start: Firecracker's own words, and those of its end if it ended of it.
    async fn failed(self, source: ApiError) -> StartError {
        // A failed load ends the process, a moment after the answer that says why.
        let exited = tokio::time::timeout(EXIT_TIMEOUT, self.guard.process().exited());
        if source.is_of_the_dead()
            && let Ok(report) = exited.await
        {
            return StartError::Exited { report };
        }
        StartError::Control { source: Box::new(source) }
    }

    fn finish(self, pager: Option<Pager>) -> Started<Firecracker> {
        let Self { guard, record, api } = self;
        (guard.release(), record, Firecracker { api, _pager: pager })
    }

    /// Records the pager, and binds the two to each other.
    async fn finish_with(mut self, spec: &VmSpec, pager: Option<Pager>) -> Result<Started<Firecracker>, StartError> {
        let Some(mut pager) = pager else { return Ok(self.finish(None)) };
        self.record.pager = Some(pager.identity().clone());
        self.record.earlier = Some(spec.dir.join(EARLIER));
        let (record, dir) = (self.record.clone(), spec.dir.clone());
        let written = joined(tokio::task::spawn_blocking(move || record.write(&dir)).await)?;
        written.map_err(|source| StartError::Prepare {
            what: "record the pager in",
            path: spec.dir.clone(),
            source,
        })?;
        pager.bind_to(self.guard.process());
        Ok(self.finish(Some(pager)))
    }
}

/// Starts Firecracker in its jail and records it. Blocks.
fn spawn(
    spec: &VmSpec,
    mut shown: Vec<Shown>,
    memory: Option<PathBuf>,
    devices: Vec<Device>,
) -> Result<(Unwatched, VmRecord), StartError> {
    let prepare = |what: &'static str, path: &Path| {
        let path = path.to_owned();
        move |source: io::Error| StartError::Prepare { what, path, source }
    };
    for file in &shown {
        if !file.writable {
            readable(&file.from).map_err(prepare("make readable", &file.from))?;
        }
    }
    for (disk, place) in spec.disks.iter().zip(Program::DISKS) {
        match disk.read_only {
            true => readable(&disk.path).map_err(prepare("make readable", &disk.path))?,
            false => own(&disk.path, spec.jail.uid).map_err(prepare("give away", &disk.path))?,
        }
        shown.push(Shown { from: disk.path.clone(), place, writable: !disk.read_only });
    }
    // Made beforehand: the jail has no directory to make files in.
    let memory = memory.unwrap_or_else(|| spec.dir.join(OUT_MEMORY));
    for (path, place) in [(spec.dir.join(OUT_STATE), OUT_STATE), (memory, OUT_MEMORY)] {
        let made = File::options().create(true).truncate(false).write(true).open(&path);
        made.and_then(|_| own(&path, spec.jail.uid)).map_err(prepare("make", &path))?;
        shown.push(Shown { from: path, place, writable: true });
    }
    let mut devices = devices;
    let network = match &spec.network {
        None => None,
        Some(network) => {
            devices.push(Device::Tun);
            let namespace = File::open(&network.namespace);
            Some(namespace.map_err(prepare("open the network namespace", &network.namespace))?.into())
        }
    };
    VmRecord::remove(&spec.dir).map_err(prepare("remove the old record in", &spec.dir))?;
    let mount_point = spec.dir.join("root");
    fs::create_dir_all(&mount_point).map_err(prepare("make", &mount_point))?;
    let pipes = || -> io::Result<_> { Ok((process::words()?, process::words()?)) };
    let ((console, output), (log, error)) = pipes().map_err(prepare("make pipes for", &spec.dir))?;
    let largest = spec.disks.iter().filter_map(|disk| fs::metadata(&disk.path).ok()).map(|disk| disk.len());
    let born = jail::start(Inmate {
        jail: &spec.jail,
        program: &spec.program,
        // The log would be on the console, and an end of the console's reader then the end of the process.
        arguments: ["--id", "vm", "--api-sock", API_SOCKET, "--level", "Off"].map(Into::into).to_vec(),
        mount_point: &mount_point,
        network,
        tap: None,
        shown,
        devices: &devices,
        keep: vec![],
        output,
        error,
        asks: false,
        sockets: Sockets::Own,
        file_bytes: largest.fold(spec.memory_bytes().max(MAX_STATE), u64::max),
        memory_bytes: spec.memory_bytes(),
    })?;
    // Read through the process's own descriptor, whoever does; see `Vm::console`.
    drop::<OwnedFd>(console);
    let recorded = || -> io::Result<(Unwatched, VmRecord)> {
        let unwatched = Unwatched::new(born, spec.jail.cgroup.clone(), log, process::VMM_LOG)?;
        let record = VmRecord::new(spec, unwatched.identity());
        record.write(&spec.dir)?;
        Ok((unwatched, record))
    };
    recorded().map_err(prepare("record the process in", &spec.dir))
}

/// Lets every user read a file: a jailed one opens it by path. That it is shown to nobody else is up to its directory.
fn readable(path: &Path) -> io::Result<()> {
    let mode = fs::metadata(path)?.permissions().mode();
    if mode & 0o004 != 0 { Ok(()) } else { fs::set_permissions(path, fs::Permissions::from_mode(mode | 0o444)) }
}

/// Makes a file a VMM's own.
fn own(path: &Path, uid: u32) -> io::Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    std::os::unix::fs::chown(path, Some(uid), Some(uid))
}

impl Firecracker {
    /// Finds the machine of a process that was adopted.
    pub(crate) async fn attach(record: &VmRecord, process: &Process, dir: &Path) -> Result<Self, BoxError> {
        let api = Api::of(record.process.pid, API_SOCKET);
        api.state().await?;
        let pager = match &record.pager {
            None => None,
            Some(identity) => Some(Pager::adopt(identity, process, dir)?),
        };
        Ok(Self { api, _pager: pager })
    }

    pub(crate) async fn pause(&self) -> Result<(), ApiError> {
        self.api.patch("/vm", &json!({ "state": "Paused" })).await
    }

    pub(crate) async fn resume(&self) -> Result<(), ApiError> {
        self.api.patch("/vm", &json!({ "state": "Resumed" })).await
    }

    pub(crate) async fn run_state(&self) -> Result<RunState, ApiError> {
        Ok(match self.api.state().await?.as_str() {
            "Running" => RunState::Running,
            "Paused" => RunState::Paused,
            "Not started" => RunState::NotStarted,
            other => RunState::Other(other.to_owned()),
        })
    }

    pub(crate) async fn set_balloon(&self, mib: u64) -> Result<(), ApiError> {
        self.api.patch("/balloon", &json!({ "amount_mib": mib })).await
    }

    /// Has device state and changed memory written to where they go in `dir`, and takes the state to `to`.
    pub(crate) async fn save(&self, dir: &Path, to: &Path) -> Result<(), SaveError> {
        let saved = self.api.create_snapshot(&format!("/{OUT_STATE}"), &format!("/{OUT_MEMORY}")).await;
        saved.map_err(|source| SaveError::Control { source: Box::new(source) })?;
        let (from, path) = (dir.join(OUT_STATE), to.to_owned());
        let copied = tokio::task::spawn_blocking(move || copy_state(&from, &path)).await;
        copied.map_err(|_| SaveError::ShuttingDown)?.map_err(|source| SaveError::Write { path: to.to_owned(), source })
    }
}

/// Copies device state, which its VMM may still write to, to where it is kept, and makes it last.
fn copy_state(from: &Path, to: &Path) -> io::Result<()> {
    use std::io::Read;

    let mut file = File::create(to)?;
    let bytes = io::copy(&mut File::open(from)?.take(MAX_STATE + 1), &mut file)?;
    if bytes > MAX_STATE {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("more than {MAX_STATE} bytes of device state"),
        ));
    }
    file.sync_all()
}

/// What the machine of this directory has changed since it was restored.
pub(crate) async fn changes(dir: &Path, earlier: Option<PathBuf>) -> Result<Changes, SaveError> {
    let path = dir.join(OUT_MEMORY);
    let opened = path.clone();
    let changes = tokio::task::spawn_blocking(move || {
        Changes::of_file(File::open(opened)?, rustix::param::page_size() as u64, earlier)
    });
    changes.await.map_err(|_| SaveError::ShuttingDown)?.map_err(|source| SaveError::Write { path, source })
}
