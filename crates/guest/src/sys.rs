//! The agent's door to the kernel for what no safe wrapper offers. All the `unsafe` of this crate is here.

use rustix::process::Pid;
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::mem::size_of;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use tokio::io::unix::AsyncFd;

/// One network interface, configured with the ioctls that `ifconfig` and `route` use.
pub(crate) struct Interface {
    socket: UdpSocket,
    request: libc::ifreq,
}

impl Interface {
    /// Opens a socket for the settings of the interface of that name.
    pub(crate) fn new(name: &str) -> io::Result<Interface> {
        // SAFETY: ifreq is plain data (numbers, arrays, a union of such); all zeroes is a valid value of it.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        // One byte stays zero: the kernel reads a C string.
        if name.len() >= request.ifr_name.len() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        for (target, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *target = byte as libc::c_char;
        }
        Ok(Interface { socket: UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?, request })
    }

    /// Sets `IFF_UP`.
    pub(crate) fn up(&self) -> io::Result<()> {
        let mut request = self.request;
        request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
        self.ioctl(libc::SIOCSIFFLAGS, &mut request)
    }

    /// Sets the IPv4 address.
    pub(crate) fn set_address(&self, address: Ipv4Addr) -> io::Result<()> {
        let mut request = self.request;
        request.ifr_ifru.ifru_addr = socket_address(address);
        self.ioctl(libc::SIOCSIFADDR, &mut request)
    }

    /// Sets the IPv4 network mask.
    pub(crate) fn set_netmask(&self, mask: Ipv4Addr) -> io::Result<()> {
        let mut request = self.request;
        request.ifr_ifru.ifru_netmask = socket_address(mask);
        self.ioctl(libc::SIOCSIFNETMASK, &mut request)
    }

    /// Routes everything through a gateway on this interface.
    pub(crate) fn add_default_route(&self, gateway: Ipv4Addr) -> io::Result<()> {
        // SAFETY: rtentry is plain data with one nullable pointer; all zeroes is a valid value of it.
        let mut route: libc::rtentry = unsafe { std::mem::zeroed() };
        route.rt_dst = socket_address(Ipv4Addr::UNSPECIFIED);
        route.rt_genmask = socket_address(Ipv4Addr::UNSPECIFIED);
        route.rt_gateway = socket_address(gateway);
        route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
        let mut device = self.request.ifr_name;
        route.rt_dev = device.as_mut_ptr();
        self.ioctl(libc::SIOCADDRT, &mut route)
    }

    /// The request must be the type that the ioctl number is defined for; the four callers above see to it.
    fn ioctl<T>(&self, number: libc::c_ulong, request: &mut T) -> io::Result<()> {
        // SAFETY: the descriptor is open, `request` is a live exclusive reference to the structure that `number`
        // stands for, and the kernel reads (and at most rewrites) that structure only.
        let result = unsafe { libc::ioctl(self.socket.as_raw_fd(), number as _, ptr::from_mut(request)) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

fn socket_address(address: Ipv4Addr) -> libc::sockaddr {
    const { assert!(size_of::<libc::sockaddr>() == size_of::<libc::sockaddr_in>()) };
    let inet = libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: 0,
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(address.octets()) },
        sin_zero: [0; 8],
    };
    // SAFETY: both are plain data of the same size (asserted above), and the family says which of them it is.
    unsafe { std::mem::transmute(inet) }
}

/// Lets a descriptor that does not block be waited for.
pub(crate) fn watch(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is the same open descriptor for as long as it lives, and the `AsyncFd` owns it and gives out
    // no exclusive reference through which it could be replaced.
    unsafe { AsyncFd::register(descriptor) }.map_err(io::Error::from)
}

/// Bytes of a seed that the kernel's pool can make use of at once.
pub(crate) const SEED_BYTES: usize = 32;

/// `struct rand_pool_info` with room for one seed.
#[repr(C)]
struct PoolInfo {
    entropy_count: libc::c_int,
    buf_size: libc::c_int,
    buf: [u8; SEED_BYTES],
}

const RNDADDENTROPY: libc::c_ulong = 0x4008_5203;
const RNDRESEEDCRNG: libc::c_ulong = 0x5207;
const _: () = assert!(size_of::<PoolInfo>() == 8 + SEED_BYTES);

/// Mixes a seed into the kernel's random pool, credits it, and makes the generator start over from the pool, so that
/// two microVMs of one snapshot draw different numbers from now on.
pub(crate) fn reseed(random: &File, seed: [u8; SEED_BYTES]) -> io::Result<()> {
    let pool =
        PoolInfo { entropy_count: (SEED_BYTES * 8) as libc::c_int, buf_size: SEED_BYTES as libc::c_int, buf: seed };
    // SAFETY: the descriptor is open, and the kernel reads `buf_size` bytes of the `buf` that is part of `pool`.
    let added = unsafe { libc::ioctl(random.as_raw_fd(), RNDADDENTROPY as _, ptr::from_ref(&pool)) };
    if added != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open and this ioctl takes no argument.
    let reseeded = unsafe { libc::ioctl(random.as_raw_fd(), RNDRESEEDCRNG as _) };
    if reseeded == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Puts a thread before all ordinary ones (`SCHED_FIFO`), or makes it one of them.
pub(crate) fn schedule(thread: Pid, priority: Option<u8>) -> io::Result<()> {
    let policy = if priority.is_some() { libc::SCHED_FIFO } else { libc::SCHED_OTHER };
    // The kernel's structure; musl's is larger, and its function for this call refuses.
    let parameters: libc::c_int = priority.unwrap_or_default().into();
    let thread = thread.as_raw_nonzero().get();
    // SAFETY: the kernel reads one integer, which is live.
    let result = unsafe { libc::syscall(libc::SYS_sched_setscheduler, thread, policy, ptr::from_ref(&parameters)) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Starts a child that is PID 1 of a new PID namespace and has a mount namespace of its own.
pub(crate) fn spawn_in_namespaces(child: impl FnOnce() -> i32) -> io::Result<Pid> {
    clone((libc::CLONE_NEWPID | libc::CLONE_NEWNS) as u64, child)
}

/// Starts a child in the namespaces of this process, or those that its children are to be in.
pub(crate) fn spawn(child: impl FnOnce() -> i32) -> io::Result<Pid> {
    clone(0, child)
}

/// Threads of this process.
pub(crate) fn threads() -> io::Result<usize> {
    Ok(std::fs::read_dir("/proc/self/task")?.count())
}

/// The child runs `child`, which normally ends in [`execute`], and leaves with the code it returns.
fn clone(namespaces: u64, child: impl FnOnce() -> i32) -> io::Result<Pid> {
    // With a second thread, the child could find a lock of the allocator held by a thread it does not have.
    if threads()? != 1 {
        return Err(io::Error::other("the agent has more than one thread"));
    }
    // SAFETY: clone_args is numbers only; all zeroes is a valid value of it.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = namespaces;
    arguments.exit_signal = libc::SIGCHLD as u64;
    // SAFETY: without CLONE_VM this is a fork: the child has a copy of this memory and goes on from here on a copy of
    // this stack. This process has one thread (checked above), so that copy is consistent, and the child never
    // returns from the branch below into code that believes to be the parent.
    let result = unsafe { libc::syscall(libc::SYS_clone3, ptr::from_ref(&arguments), size_of::<libc::clone_args>()) };
    if result == 0 {
        let code = catch_unwind(AssertUnwindSafe(child)).unwrap_or(127);
        // SAFETY: ends the child at once, without the parent's exit handlers.
        unsafe { libc::_exit(code) }
    }
    i32::try_from(result).ok().filter(|pid| *pid > 0).and_then(Pid::from_raw).ok_or_else(io::Error::last_os_error)
}

/// Replaces this process by a program, with the dispositions of signals a program expects. Returns only on failure.
pub(crate) fn execute(program: &CString, arguments: &[CString], environment: &[CString]) -> io::Error {
    let arguments = pointers(arguments);
    let environment = pointers(environment);
    // SAFETY: Rust ignores SIGPIPE and `execve` keeps what is ignored; the default disposition runs no code of ours.
    // Both arrays end in a null pointer and hold pointers to strings that outlive the call.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        libc::execve(program.as_ptr(), arguments.as_ptr(), environment.as_ptr());
    }
    io::Error::last_os_error()
}

fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect()
}
