//! The jail a VMM process lives in, whichever driver runs it.
//!
//! ```text
//!   user and group   of its own, no capability, none to be had
//!   root directory   the program, its libraries, its firmware: read-only; nothing else, no /proc, no /sys
//!   namespaces       mount, process, IPC, host name; network: the VM's, made ahead of time
//!   descriptors      disks, tap, sockets: opened by the daemon, inherited
//!   system calls     what no VMM needs fails (see `seccomp`)
//!   limits           open files, file size, processes; memory, processor, I/O by control group; no core dumps
//! ```
//!
//! The daemon performs the recipe in the child between fork and exec: there is no helper program to be found, trusted
//! or kept in step, and nothing of the jail is left on the host when the process is gone, but for its control group.

pub(crate) mod cgroup;
pub(crate) mod opener;
mod program;
pub(crate) mod recipe;
mod seccomp;

use std::ffi::{CString, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

pub use cgroup::Hierarchies;
pub use program::{Program, ProgramError};

use crate::start::StartError;
use crate::sys::{self, BirthError, Born};
use cgroup::Group;
use recipe::{Recipe, Step};

/// Bytes and files of the file systems in memory a jail gets for devices and sockets.
const TINY: &str = "size=64k,nr_inodes=16,mode=0700";
/// The name every jailed process has for its host.
const HOST_NAME: &[u8] = b"vm";

/// Who a VMM process is and what it may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Jail {
    /// The process's user and group, which must be no other process's: its limits and its end go by it. Not 0.
    pub uid: u32,
    /// The control group it is put into, below each controller's root, e.g. `pilotlight/3f/7`; made, and removed when
    /// the VM is gone. None where the host has no controllers.
    pub cgroup: Option<PathBuf>,
    /// What it may use.
    pub limits: Limits,
}

/// What a VMM process may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Memory beside the guest's, in bytes: the VMM's own, and an emulator's translated code. With the guest's it is
    /// the control group's limit; a VMM beyond it is killed.
    pub overhead_bytes: u64,
    /// Share of the processors under contention, 1 to 10,000; 100 is everybody's.
    pub cpu_weight: u32,
    /// Most processor time, in hundredths of one processor; none: as many as the host has.
    pub cpu_quota_percent: Option<u32>,
    /// Most threads.
    pub processes: u32,
    /// Most open files.
    pub open_files: u64,
    /// Most bytes a second read from, and as many written to, the device under the VM's directory, where the host can
    /// limit it; none: as many as there are.
    pub io_bytes_per_second: Option<u64>,
}

impl Limits {
    /// What a VM of this many processors needs, and little more.
    pub fn of(vcpus: u32) -> Self {
        Self {
            // QEMU's code cache for an emulated guest is 256 MiB; the rest is its heap, stacks, and page tables.
            overhead_bytes: 512 << 20,
            cpu_weight: 100,
            cpu_quota_percent: None,
            // QEMU's thread pool for disk requests has 64 at most; then one a processor, and a few of its own.
            processes: 96 + vcpus,
            open_files: 256,
            io_bytes_per_second: None,
        }
    }
}

/// A file of the host that is shown in the jail at one of [`Program::PLACES`].
#[derive(Debug, Clone)]
pub(crate) struct Shown {
    pub(crate) from: PathBuf,
    pub(crate) place: &'static str,
    pub(crate) writable: bool,
}

/// A process to be started in a jail.
#[derive(Debug)]
pub(crate) struct Inmate<'a> {
    pub(crate) jail: &'a Jail,
    pub(crate) program: &'a Program,
    pub(crate) arguments: Vec<OsString>,
    /// An existing directory of the host, to mount the new root on; nothing is written to it.
    pub(crate) mount_point: &'a Path,
    pub(crate) network: Option<OwnedFd>,
    /// A tap device of the network namespace, and the number of the inherited descriptor that becomes it.
    pub(crate) tap: Option<(&'a str, RawFd)>,
    pub(crate) shown: Vec<Shown>,
    pub(crate) devices: &'a [Device],
    pub(crate) keep: Vec<RawFd>,
    pub(crate) output: OwnedFd,
    pub(crate) error: OwnedFd,
    /// Whether opening the guest's memory is to be answered by the daemon.
    pub(crate) asks: bool,
    pub(crate) sockets: Sockets,
    /// The largest file it may write, in bytes.
    pub(crate) file_bytes: u64,
    /// The guest's memory, for the control group's limit.
    pub(crate) memory_bytes: u64,
}

/// A character device a VMM needs by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Device {
    Kvm,
    Tun,
    Userfaultfd,
}

impl Device {
    /// Its path below the root, in the jail as on the host.
    fn name(self) -> &'static str {
        match self {
            Self::Kvm => "dev/kvm",
            Self::Tun => "dev/net/tun",
            Self::Userfaultfd => "dev/userfaultfd",
        }
    }
}

/// Where a VMM has its sockets from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sockets {
    /// All are inherited.
    Inherited,
    /// It makes unix sockets, in a directory `/run` of its own.
    Own,
}

/// Starts a process in its jail. Blocks for some milliseconds.
pub(crate) fn start(inmate: Inmate<'_>) -> Result<Born, StartError> {
    let program = inmate.program.path().to_owned();
    let jail = |what: &'static str| move |source: io::Error| StartError::Jail { what, source };
    let groups = match &inmate.jail.cgroup {
        Some(name) => {
            let limits = cgroup::Applied {
                memory_bytes: inmate.memory_bytes + inmate.jail.limits.overhead_bytes,
                limits: &inmate.jail.limits,
                device_of: inmate.mount_point,
            };
            Hierarchies::find().create(name, &limits).map_err(jail("make the control group"))?
        }
        None => Vec::new(),
    };
    let cgroup = inmate.jail.cgroup.clone();
    let recipe = recipe(inmate, groups)?;
    sys::give_birth(&recipe).map_err(|error| {
        if let Some(name) = cgroup {
            Hierarchies::find().remove(&name);
        }
        match error {
            BirthError::Clone(source) => StartError::Jail { what: "make a process", source },
            BirthError::Step(step, source) => {
                StartError::Jail { what: recipe.steps.get(step).map_or("start", Step::what), source }
            }
            BirthError::Exec(source) => StartError::Spawn { program, source },
        }
    })
}

/// The whole recipe, in order; see the module's words for what it makes.
fn recipe(inmate: Inmate<'_>, groups: Vec<Group>) -> Result<Recipe, StartError> {
    let Inmate { jail, program, mount_point, .. } = inmate;
    let spec = |source| StartError::Jail { what: "describe the jail", source };
    let null = File::open("/dev/null").map_err(|source| StartError::Jail { what: "open /dev/null", source })?;
    let place = |name: &str| mount_point.join(name);
    let path = |path: &Path| cstring(path.as_os_str().as_bytes()).map_err(spec);

    let mut steps = vec![Step::NewSession];
    let mut born_in = None;
    for group in groups {
        match group {
            Group::Tasks(tasks) => steps.push(Step::JoinCgroup(tasks.into())),
            Group::Directory(directory) => born_in = Some(directory.into()),
        }
    }
    if let Some(namespace) = inmate.network {
        steps.push(Step::EnterNetwork(namespace));
    }
    if let Some((name, number)) = inmate.tap {
        steps.push(Step::AttachTap { name: cstring(name.as_bytes()).map_err(spec)?, number });
    }
    steps.push(Step::PrivateMounts);
    steps.push(Step::Bind { from: path(program.root())?, to: path(mount_point)? });
    // Read-only only after all is in place: bound files need no write, but a device needs a directory to be made in.
    for shown in &inmate.shown {
        let to = path(&place(shown.place))?;
        steps.push(Step::Bind { from: path(&shown.from)?, to: to.clone() });
        let read_only = if shown.writable { 0 } else { libc::MS_RDONLY };
        steps.push(Step::Restrict { at: to, flags: read_only | libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC });
    }
    if inmate.devices.is_empty() {
        steps.push(Step::Bind { from: path(Path::new(program::NULL))?, to: path(&place("dev/null"))? });
    } else {
        let options = format!("{TINY},uid={0},gid={0}", jail.uid);
        steps.push(Step::Tmpfs {
            at: path(&place("dev"))?,
            flags: libc::MS_NOSUID | libc::MS_NOEXEC,
            options: cstring(options.as_bytes()).map_err(spec)?,
        });
        for device in inmate.devices {
            if *device == Device::Tun {
                steps.push(Step::Directory(path(&place("dev/net"))?));
            }
            let name = device.name();
            // Some have no fixed number.
            let number = std::fs::metadata(Path::new("/").join(name)).map_err(spec)?.rdev();
            steps.push(Step::Device { at: path(&place(name))?, number, owner: jail.uid });
        }
        let null = std::fs::metadata(program::NULL).map_err(spec)?.rdev();
        steps.push(Step::Device { at: path(&place("dev/null"))?, number: null, owner: jail.uid });
        // Devices may be opened there, nothing made or written.
        steps.push(Step::Restrict {
            at: path(&place("dev"))?,
            flags: libc::MS_RDONLY | libc::MS_NOSUID | libc::MS_NOEXEC,
        });
    }
    if inmate.sockets == Sockets::Own {
        let options = format!("{TINY},uid={0},gid={0}", jail.uid);
        steps.push(Step::Tmpfs {
            at: path(&place("run"))?,
            flags: libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC,
            options: cstring(options.as_bytes()).map_err(spec)?,
        });
    }
    steps.push(Step::Restrict { at: path(mount_point)?, flags: libc::MS_RDONLY | libc::MS_NOSUID | libc::MS_NODEV });
    steps.push(Step::ChangeRoot(path(mount_point)?));
    steps.push(Step::HostName(HOST_NAME));
    steps.push(Step::Standard { input: null.into(), output: inmate.output, error: inmate.error });
    steps.push(Step::KeepOnly(inmate.keep));
    let limits = &jail.limits;
    for (resource, value) in [
        // Not 0: where dumps are piped to a program the kernel asks for no limit but this one (core(5)).
        (libc::RLIMIT_CORE, 1),
        (libc::RLIMIT_NOFILE, limits.open_files),
        (libc::RLIMIT_NPROC, u64::from(limits.processes)),
        (libc::RLIMIT_FSIZE, inmate.file_bytes),
        (libc::RLIMIT_MSGQUEUE, 0),
        (libc::RLIMIT_MEMLOCK, 0),
    ] {
        steps.push(Step::Limit { resource, value });
    }
    steps.extend([
        Step::Signals,
        Step::DropBoundingSet,
        Step::Identity { uid: jail.uid, gid: jail.uid },
        Step::NoNewPrivileges,
    ]);
    // The filter that asks comes first: the other one allows no further filter but the program's own.
    if inmate.asks {
        steps.push(Step::AskParent(seccomp::opens_for_writing()?));
    }
    steps.extend(seccomp::denied(inmate.sockets)?.map(Step::Filter));

    let mut arguments = vec![cstring(program.path().as_os_str().as_bytes()).map_err(spec)?];
    for argument in &inmate.arguments {
        arguments.push(cstring(argument.as_bytes()).map_err(spec)?);
    }
    // For people: where this process was started. A VM prepared ahead of time may be elsewhere by now.
    let mut about = b"PILOTLIGHT_VM_DIR=".to_vec();
    about.extend_from_slice(mount_point.parent().unwrap_or(mount_point).as_os_str().as_bytes());
    let environment = vec![c"LC_ALL=C".to_owned(), cstring(&about).map_err(spec)?];
    Ok(Recipe { steps, born_in, program: path(program.path())?, arguments, environment })
}

fn cstring(bytes: &[u8]) -> io::Result<CString> {
    CString::new(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))
}

/// Opens a file so that it can be inherited by number.
pub(crate) fn open_for(path: &Path, writable: bool) -> Result<(OwnedFd, RawFd), StartError> {
    let file = File::options().read(true).write(writable).open(path);
    let fd: OwnedFd =
        file.map_err(|source| StartError::Prepare { what: "open", path: path.to_owned(), source })?.into();
    let number = fd.as_raw_fd();
    Ok((fd, number))
}
