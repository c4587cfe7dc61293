//! The system calls that have no safe wrapper. The only file of this crate with `unsafe` in it.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::io::{self, Read, Write};
use std::mem::{self, MaybeUninit};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::jail::recipe::{EXEC_FAILED, Recipe, Step};

/// The namespaces every child gets: it sees no mount, process, shared memory or host name of the host. Its network
/// namespace is made ahead of time and entered. No user namespace: the child's own user has no rights outside of one,
/// and inside of one it would have some.
const NAMESPACES: u64 = (libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS) as u64;

/// `linux/sched.h`; libc's constant is too narrow for it.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// A child that has performed its recipe and runs its program.
#[derive(Debug)]
pub(crate) struct Born {
    pub(crate) pid: u32,
    pub(crate) pidfd: OwnedFd,
    /// From the first system call for it to the start of its program.
    pub(crate) took: Duration,
    /// Where the child's questions arrive, if its recipe asks.
    pub(crate) questions: Option<OwnedFd>,
}

/// Why there is no child.
#[derive(Debug)]
pub(crate) enum BirthError {
    /// No child could be made.
    Clone(io::Error),
    /// A step failed, by its index.
    Step(usize, io::Error),
    /// The program could not be executed.
    Exec(io::Error),
}

/// Makes a child in namespaces of its own, which performs the recipe. Blocks until its program runs or it failed; a
/// child that failed is gone.
pub(crate) fn give_birth(recipe: &Recipe) -> Result<Born, BirthError> {
    let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
        strings.iter().map(|string| string.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (arguments, environment) = (pointers(&recipe.arguments), pointers(&recipe.environment));
    // Both close by themselves when the program starts.
    let (status, status_writer) = io::pipe().map_err(BirthError::Clone)?;
    let (go, go_writer) = io::pipe().map_err(BirthError::Clone)?;
    let gaps = gaps(recipe.descriptors().into_iter().chain([0, 1, 2, status_writer.as_raw_fd(), go.as_raw_fd()]));
    let begin = Instant::now();
    let mut pidfd: RawFd = -1;
    // SAFETY: `clone_args` is plain integers, for which zero is a value.
    let mut clone_args: libc::clone_args = unsafe { mem::zeroed() };
    clone_args.flags = NAMESPACES | libc::CLONE_PIDFD as u64;
    clone_args.pidfd = &raw mut pidfd as u64;
    clone_args.exit_signal = libc::SIGCHLD as u64;
    if let Some(group) = &recipe.born_in {
        clone_args.flags |= CLONE_INTO_CGROUP;
        clone_args.cgroup = group.as_raw_fd() as u64;
    }

    // A signal must not reach the child while it still has this program's handlers, which write to this program's pipes.
    let blocked = Blocked::all();
    // SAFETY: without CLONE_VM this is a fork: the child has its own copy of memory, in which only this thread exists.
    // `perform_and_exec` makes system calls on what was allocated before, allocates nothing, takes no lock, never
    // returns. The kernel writes the pidfd to `pidfd`, which lives across the call.
    let pid = unsafe {
        let pid = libc::syscall(libc::SYS_clone3, &raw mut clone_args, mem::size_of::<libc::clone_args>());
        if pid == 0 {
            // At once: its copies of locks, listening sockets and pipes of ours would outlive us.
            for (first, last) in &gaps {
                libc::syscall(libc::SYS_close_range, *first, *last, 0);
            }
            perform_and_exec(recipe, &arguments, &environment, status_writer.as_raw_fd(), go.as_raw_fd());
        }
        pid
    };
    drop(blocked);
    if pid < 0 {
        return Err(BirthError::Clone(io::Error::last_os_error()));
    }
    // SAFETY: the kernel made this descriptor for us, and nobody else knows of it.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    drop((status_writer, go));
    let outcome = await_exec(status, go_writer, &pidfd);
    if outcome.is_err() {
        let _ = rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL);
        reap(&pidfd);
    }
    outcome.map(|questions| Born { pid: pid as u32, pidfd, took: begin.elapsed(), questions })
}

/// What is between these numbers, and above them.
fn gaps(numbers: impl Iterator<Item = RawFd>) -> Vec<(libc::c_uint, libc::c_uint)> {
    let mut numbers: Vec<_> = numbers.map(|number| number as libc::c_uint).collect();
    numbers.sort_unstable();
    numbers.dedup();
    let before = [None].into_iter().chain(numbers.iter().copied().map(Some));
    let after = numbers.iter().copied().map(Some).chain([None]);
    before
        .zip(after)
        .map(|(before, after)| (before.map_or(0, |n| n + 1), after.map_or(libc::c_uint::MAX, |n| n.saturating_sub(1))))
        .filter(|(first, last)| first <= last && !(*first == 0 && *last == 0))
        .collect()
}

/// Follows the child up to its program: hands over its questions' descriptor, then waits for the pipe's end.
fn await_exec(
    mut status: io::PipeReader,
    mut go: io::PipeWriter,
    pidfd: &OwnedFd,
) -> Result<Option<OwnedFd>, BirthError> {
    let mut questions = None;
    loop {
        let mut word = [0; 8];
        match status.read_exact(&mut word) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(questions),
            Err(error) => return Err(BirthError::Clone(error)),
        }
        let [index, value] = [&word[..4], &word[4..]].map(|half| u32::from_ne_bytes(half.try_into().expect("4 bytes")));
        match index {
            LISTENER => {
                // SAFETY: a plain system call on numbers; what it returns is a new descriptor nobody else knows of.
                let fetched = unsafe {
                    let fd = libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), value as RawFd, 0);
                    if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(fd as RawFd)) }
                };
                questions = Some(fetched.map_err(BirthError::Clone)?);
                // A byte, not the pipe's end: a child made meanwhile by another thread holds copies of both.
                go.write_all(&[0]).map_err(BirthError::Clone)?;
            }
            EXEC_FAILED => return Err(BirthError::Exec(io::Error::from_raw_os_error(value as i32))),
            step => return Err(BirthError::Step(step as usize, io::Error::from_raw_os_error(value as i32))),
        }
    }
}

/// In place of a step's number: the value is the number of the descriptor with the child's questions.
const LISTENER: u32 = u32::MAX - 1;

/// How a child of this process ended; `None` if it was none, or was reaped before. Blocks until it ends.
pub(crate) fn reap(pidfd: &OwnedFd) -> Option<rustix::process::WaitIdStatus> {
    use rustix::process::{WaitId, WaitIdOptions, waitid};
    use std::os::fd::AsFd;
    waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED).ok().flatten()
}

/// How long a child waits for its parent to take its questions, which takes microseconds.
const GO_TIMEOUT_MS: libc::c_int = 5_000;

/// All signals blocked in this thread; on drop as before.
struct Blocked(libc::sigset_t);

impl Blocked {
    fn all() -> Self {
        let mut before = MaybeUninit::uninit();
        // SAFETY: both sets are ours; `sigfillset` and `pthread_sigmask` initialise what they are given to write to.
        unsafe {
            let mut all = MaybeUninit::uninit();
            libc::sigfillset(all.as_mut_ptr());
            libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr());
            Self(before.assume_init())
        }
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        // SAFETY: the set was filled by `pthread_sigmask`.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, std::ptr::null_mut()) };
    }
}

/// The life of the child until its program.
///
/// # Safety
/// To be called in a child made by fork only; pointers end with null.
unsafe fn perform_and_exec(
    recipe: &Recipe,
    arguments: &[*const libc::c_char],
    environment: &[*const libc::c_char],
    status: RawFd,
    go: RawFd,
) -> ! {
    let tell = |index: u32, value: u32| {
        let mut word = [0; 8];
        word[..4].copy_from_slice(&index.to_ne_bytes());
        word[4..].copy_from_slice(&value.to_ne_bytes());
        // SAFETY: the buffer is 8 bytes long. A parent that is gone leaves nobody to tell.
        unsafe { libc::write(status, word.as_ptr().cast(), word.len()) };
    };
    for (index, step) in recipe.steps.iter().enumerate() {
        // SAFETY: this is the child, as `perform` demands.
        match unsafe { perform(step) } {
            Ok(None) => {}
            Ok(Some(listener)) => {
                tell(LISTENER, listener as u32);
                let mut wait = libc::pollfd { fd: go, events: libc::POLLIN, revents: 0 };
                // SAFETY: one `pollfd` and one byte of our own. A parent that is gone sends none, and nobody would know of
                // this child then: it ends.
                unsafe {
                    if libc::poll(&raw mut wait, 1, GO_TIMEOUT_MS) != 1
                        || libc::read(go, [0u8; 1].as_mut_ptr().cast(), 1) != 1
                    {
                        libc::_exit(127)
                    }
                }
            }
            Err(errno) => {
                tell(index as u32, errno as u32);
                // SAFETY: ends this process, running nothing of the parent's.
                unsafe { libc::_exit(127) }
            }
        }
    }
    // SAFETY: all strings and arrays were made before the fork and end with null; on success nothing of us is left.
    unsafe {
        libc::execve(recipe.program.as_ptr(), arguments.as_ptr(), environment.as_ptr());
        tell(EXEC_FAILED, *libc::__errno_location() as u32);
        libc::_exit(127)
    }
}

/// Performs one step: an error number if it fails, the descriptor with questions if it made one.
///
/// # Safety
/// To be called in a child made by fork only: it changes what is the whole process's.
unsafe fn perform(step: &Step) -> Result<Option<RawFd>, i32> {
    let check = |result: libc::c_long| -> Result<Option<RawFd>, i32> {
        // SAFETY: reads this thread's error number.
        if result < 0 { Err(unsafe { *libc::__errno_location() }) } else { Ok(None) }
    };
    let null = std::ptr::null::<libc::c_char>();
    // SAFETY: for all of them: plain system calls whose pointers are to strings and structures that live in `step` or
    // on this stack; what they change is this process, which is about to become another program.
    unsafe {
        match step {
            Step::NewSession => check(libc::setsid().into()),
            Step::JoinCgroup(procs) => check(libc::write(procs.as_raw_fd(), c"0".as_ptr().cast(), 1) as libc::c_long),
            Step::EnterNetwork(namespace) => check(libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET).into()),
            Step::AttachTap { name, number } => {
                let tun = libc::open(c"/dev/net/tun".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC);
                check(tun.into())?;
                let mut request: libc::ifreq = mem::zeroed();
                for (to, from) in request.ifr_name.iter_mut().zip(name.as_bytes_with_nul()) {
                    *to = *from as libc::c_char;
                }
                request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
                check(libc::ioctl(tun, libc::TUNSETIFF as libc::Ioctl, &raw mut request).into())?;
                check(libc::dup2(tun, *number).into())
            }
            Step::PrivateMounts => {
                check(libc::mount(null, c"/".as_ptr(), null, libc::MS_REC | libc::MS_PRIVATE, null.cast()).into())
            }
            Step::Bind { from, to } => {
                check(libc::mount(from.as_ptr(), to.as_ptr(), null, libc::MS_BIND, null.cast()).into())
            }
            Step::Restrict { at, flags } => {
                let flags = libc::MS_REMOUNT | libc::MS_BIND | flags;
                check(libc::mount(null, at.as_ptr(), null, flags, null.cast()).into())
            }
            Step::Tmpfs { at, flags, options } => check(
                libc::mount(c"none".as_ptr(), at.as_ptr(), c"tmpfs".as_ptr(), *flags, options.as_ptr().cast()).into(),
            ),
            Step::Directory(at) => check(libc::mkdir(at.as_ptr(), 0o755).into()),
            Step::Device { at, number, owner } => {
                check(libc::mknod(at.as_ptr(), libc::S_IFCHR | 0o600, *number).into())?;
                check(libc::chown(at.as_ptr(), *owner, *owner).into())
            }
            Step::ChangeRoot(root) => {
                check(libc::chdir(root.as_ptr()).into())?;
                // The old root is stacked upon the new one, and taken away.
                check(libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()))?;
                check(libc::umount2(c".".as_ptr(), libc::MNT_DETACH).into())?;
                check(libc::chdir(c"/".as_ptr()).into())
            }
            Step::HostName(name) => check(libc::sethostname(name.as_ptr().cast(), name.len()).into()),
            Step::Standard { input, output, error } => {
                check(libc::dup2(input.as_raw_fd(), 0).into())?;
                check(libc::dup2(output.as_raw_fd(), 1).into())?;
                check(libc::dup2(error.as_raw_fd(), 2).into())
            }
            Step::KeepOnly(keep) => {
                // Marked, not closed: the pipe that reports a failed exec must stay open until then.
                let (first, last) = (3 as libc::c_uint, libc::c_uint::MAX);
                check(libc::syscall(libc::SYS_close_range, first, last, libc::CLOSE_RANGE_CLOEXEC))?;
                keep.iter().try_fold(None, |_, fd| check(libc::fcntl(*fd, libc::F_SETFD, 0).into()))
            }
            Step::Limit { resource, value } => {
                let limit = libc::rlimit { rlim_cur: *value, rlim_max: *value };
                check(libc::setrlimit(*resource, &raw const limit).into())
            }
            Step::Signals => {
                libc::signal(libc::SIGPIPE, libc::SIG_IGN);
                libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
                let mut none = MaybeUninit::uninit();
                libc::sigemptyset(none.as_mut_ptr());
                check(libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), std::ptr::null_mut()).into())
            }
            Step::DropBoundingSet => {
                // Until the kernel knows no capability of that number.
                let mut capability = 0;
                while libc::prctl(libc::PR_CAPBSET_DROP, capability as libc::c_ulong, 0, 0, 0) == 0 {
                    capability += 1;
                }
                if capability == 0 { Err(libc::EPERM) } else { Ok(None) }
            }
            Step::Identity { uid, gid } => {
                libc::umask(0o077);
                check(libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()))?;
                check(libc::syscall(libc::SYS_setresgid, *gid, *gid, *gid))?;
                check(libc::syscall(libc::SYS_setresuid, *uid, *uid, *uid))
            }
            Step::NoNewPrivileges => check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0).into()),
            Step::AskParent(program) => {
                let fd = install_filter(program, libc::SECCOMP_FILTER_FLAG_NEW_LISTENER);
                check(fd)?;
                Ok(Some(fd as RawFd))
            }
            Step::Filter(program) => check(install_filter(program, 0)),
        }
    }
}

/// # Safety
/// In a child made by fork only.
unsafe fn install_filter(program: &[seccompiler::sock_filter], flags: libc::c_ulong) -> libc::c_long {
    let program = libc::sock_fprog { len: program.len() as libc::c_ushort, filter: program.as_ptr().cast_mut().cast() };
    // SAFETY: the kernel copies the program, whose length is right, and writes nothing to it.
    unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) }
}

/// A system call of a child that waits for an answer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Question {
    id: u64,
    /// The arguments of the call.
    pub(crate) arguments: [u64; 6],
}

/// The next question; `None` if its asker is gone.
pub(crate) fn next_question(listener: &OwnedFd) -> io::Result<Option<Question>> {
    // SAFETY: plain integers, for which zero is a value; the kernel demands zeros.
    let mut asked: libc::seccomp_notif = unsafe { mem::zeroed() };
    // SAFETY: the kernel writes one `seccomp_notif`, which this is.
    let received = unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut asked) };
    match received {
        0 => Ok(Some(Question { id: asked.id, arguments: asked.data.args })),
        _ => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            error => Err(error),
        },
    }
}

/// Answers: the call returns a copy of this descriptor, or is made as if nobody had asked.
pub(crate) fn answer(listener: &OwnedFd, question: Question, with: Option<RawFd>) -> io::Result<()> {
    let answered = match with {
        Some(fd) => {
            let answer = libc::seccomp_notif_addfd {
                id: question.id,
                flags: libc::SECCOMP_ADDFD_FLAG_SEND as u32,
                srcfd: fd as u32,
                newfd: 0,
                newfd_flags: libc::O_CLOEXEC as u32,
            };
            // SAFETY: the kernel reads one `seccomp_notif_addfd`, which this is.
            unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_ADDFD, &raw const answer) }
        }
        None => {
            let answer = libc::seccomp_notif_resp {
                id: question.id,
                val: 0,
                error: 0,
                flags: libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32,
            };
            // SAFETY: the kernel reads one `seccomp_notif_resp`, which this is.
            unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &raw const answer) }
        }
    };
    if answered < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Makes a descriptor awaitable. Must be called within a runtime.
pub(crate) fn watch_fd(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is one open descriptor for as long as it lives, and `AsyncFd` owns it from here on.
    Ok(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?)
}

/// Memory shared with a throw-away virtual machine; unmapped on drop.
pub(crate) struct GuestPages {
    address: *mut libc::c_void,
    length: usize,
}

// SAFETY: it is plain memory owned by this value alone.
unsafe impl Send for GuestPages {}

impl GuestPages {
    /// Memory with these contents, whole pages.
    pub(crate) fn with(contents: &[u8]) -> io::Result<Self> {
        let length = contents.len();
        // SAFETY: a new anonymous mapping at an address the kernel chooses; no existing memory is affected.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the mapping has `length` bytes, as many as `contents`, and nothing else knows of it yet.
        unsafe { std::ptr::copy_nonoverlapping(contents.as_ptr(), address.cast(), length) };
        Ok(Self { address, length })
    }

    /// Makes it the machine's memory at `guest_address`. It must be dropped after the machine.
    pub(crate) fn give_to(&self, vm: &VmFd, guest_address: u64) -> Result<(), kvm_ioctls::Error> {
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: guest_address,
            memory_size: self.length as u64,
            userspace_addr: self.address as u64,
        };
        // SAFETY: the region is exactly this mapping, which stays mapped until `self` is dropped; its owner
        // drops it after the machine.
        unsafe { vm.set_user_memory_region(region) }
    }
}

impl Drop for GuestPages {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `with` with this length and is not used after this.
        unsafe { libc::munmap(self.address, self.length) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The tree of version 2 is there on most machines, also where it has no controllers.
    #[test]
    fn a_child_is_born_in_its_control_group() {
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        let tree = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>()).find(|fields| fields[2] == "cgroup2");
        let Some(tree) = tree else { return println!("skipped: there is no tree of version 2") };
        let group = std::path::Path::new(tree[1]).join(format!("pilotlight-test-{}", std::process::id()));
        if let Err(error) = std::fs::create_dir(&group) {
            return println!("skipped: {}: {error}", group.display());
        }
        let recipe = Recipe {
            steps: vec![],
            born_in: Some(std::fs::File::open(&group).unwrap().into()),
            program: c"/bin/sleep".to_owned(),
            arguments: vec![c"sleep".to_owned(), c"60".to_owned()],
            environment: vec![],
        };
        let born = give_birth(&recipe).unwrap();
        let found = std::fs::read_to_string(format!("/proc/{}/cgroup", born.pid)).unwrap();
        rustix::process::pidfd_send_signal(&born.pidfd, rustix::process::Signal::KILL).unwrap();
        assert_eq!(reap(&born.pidfd).and_then(|status| status.terminating_signal()), Some(9));
        std::fs::remove_dir(&group).unwrap();
        let name = group.file_name().unwrap().to_string_lossy().into_owned();
        assert!(found.lines().any(|line| line.starts_with("0::") && line.ends_with(&name)), "{found}");
    }

    #[test]
    fn everything_else_is_in_a_gap() {
        let max = libc::c_uint::MAX;
        assert_eq!(gaps([7, 0, 1, 2, 9, 10, 9].into_iter()), [(3, 6), (8, 8), (11, max)]);
        assert_eq!(gaps([0, 1, 2].into_iter()), [(3, max)]);
    }
}
