//! What a new process does between its birth and its program: a list, made beforehand, of plain system calls.
//!
//! Between fork and exec a child of a program with threads may neither allocate nor lock, so everything a step needs is
//! made before; [`crate::sys`] only performs it. A step that fails ends the child, and the parent learns which one.

use std::ffi::CString;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

/// One step. In the order of a [`Recipe`]'s list; each says what it is for.
#[derive(Debug)]
pub(crate) enum Step {
    /// A session of its own: the end of the daemon's is not its end.
    NewSession,
    /// Into a control group of version 1, by writing to its `tasks`.
    JoinCgroup(OwnedFd),
    /// Into a network namespace.
    EnterNetwork(OwnedFd),
    /// Attach a tap device of this network namespace to a descriptor of this number.
    AttachTap { name: CString, number: RawFd },
    /// What is mounted from here on is this process's alone.
    PrivateMounts,
    /// Show a file or directory of the host somewhere else.
    Bind { from: CString, to: CString },
    /// Take rights from something bound: `MS_RDONLY`, `MS_NOSUID`, `MS_NODEV`, `MS_NOEXEC`.
    Restrict { at: CString, flags: libc::c_ulong },
    /// A small file system in memory.
    Tmpfs { at: CString, flags: libc::c_ulong, options: CString },
    /// A directory.
    Directory(CString),
    /// A character device.
    Device { at: CString, number: libc::dev_t, owner: u32 },
    /// Make this directory the root, and forget every other file system.
    ChangeRoot(CString),
    /// A host name that says nothing.
    HostName(&'static [u8]),
    /// Standard input, output and error.
    Standard { input: OwnedFd, output: OwnedFd, error: OwnedFd },
    /// No inherited descriptor but standard ones and these survives the program's start.
    KeepOnly(Vec<RawFd>),
    /// A resource limit, soft and hard.
    Limit { resource: libc::__rlimit_resource_t, value: u64 },
    /// A write beyond the file size limit, or to a pipe nobody reads, fails instead of ending the process.
    Signals,
    /// No capability can come back, whatever is executed.
    DropBoundingSet,
    /// Another user and group, and with them every capability gone.
    Identity { uid: u32, gid: u32 },
    /// No program executed later has more rights than this one.
    NoNewPrivileges,
    /// Opening a file for reading and writing is asked of the parent; see [`super::opener`].
    AskParent(seccompiler::BpfProgram),
    /// System calls that fail from here on.
    Filter(seccompiler::BpfProgram),
}

impl Step {
    /// What failed, in words that follow "cannot".
    pub(crate) fn what(&self) -> &'static str {
        match self {
            Self::NewSession => "begin a session",
            Self::JoinCgroup(_) => "join the control group",
            Self::EnterNetwork(_) => "enter the network namespace",
            Self::AttachTap { .. } => "attach the tap device",
            Self::PrivateMounts => "make mounts private",
            Self::Bind { .. } => "bind a file into the jail",
            Self::Restrict { .. } => "restrict a mount of the jail",
            Self::Tmpfs { .. } => "mount a file system in the jail",
            Self::Directory(_) => "make a directory in the jail",
            Self::Device { .. } => "make a device in the jail",
            Self::ChangeRoot(_) => "change the root",
            Self::HostName(_) => "set the host name",
            Self::Standard { .. } => "set up standard input and output",
            Self::KeepOnly(_) => "close inherited descriptors",
            Self::Limit { .. } => "set a resource limit",
            Self::Signals => "reset signals",
            Self::DropBoundingSet => "drop capabilities",
            Self::Identity { .. } => "change the user",
            Self::NoNewPrivileges => "forbid new privileges",
            Self::AskParent(_) => "install the filter for opened files",
            Self::Filter(_) => "install the system call filter",
        }
    }
}

/// All of it: the steps, then the program.
#[derive(Debug)]
pub(crate) struct Recipe {
    pub(crate) steps: Vec<Step>,
    /// The directory of the control group of version 2 it is born in.
    pub(crate) born_in: Option<OwnedFd>,
    /// The program's path inside the jail.
    pub(crate) program: CString,
    /// Its arguments, its own name first.
    pub(crate) arguments: Vec<CString>,
    /// Its environment, `NAME=value`.
    pub(crate) environment: Vec<CString>,
}

impl Recipe {
    /// The descriptors its steps use or keep.
    pub(crate) fn descriptors(&self) -> Vec<RawFd> {
        let of_step = |step: &Step| match step {
            Step::JoinCgroup(fd) | Step::EnterNetwork(fd) => vec![fd.as_raw_fd()],
            Step::Standard { input, output, error } => [input, output, error].map(AsRawFd::as_raw_fd).to_vec(),
            Step::KeepOnly(keep) => keep.clone(),
            _ => vec![],
        };
        self.steps.iter().flat_map(of_step).collect()
    }
}

/// What a child that did not reach its program says: the number of the step, or [`EXEC_FAILED`].
pub(crate) const EXEC_FAILED: u32 = u32::MAX;
