//! The system calls that have no safe wrapper. The only file of this crate with `unsafe` in it.
//!
//! The userfaultfd calls are spelled out instead of taken from the `userfaultfd` crate: five of them are needed, that
//! crate generates them at build time with libclang, and it loses the kernel's errno when a copy stops half way.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// `struct uffdio_copy`.
#[repr(C)]
struct Copy {
    to: u64,
    from: u64,
    bytes: u64,
    mode: u64,
    /// The kernel's answer: bytes copied, or a negative errno.
    copied: i64,
}

/// `struct uffdio_zeropage`.
#[repr(C)]
struct Zero {
    start: u64,
    bytes: u64,
    mode: u64,
    /// The kernel's answer: bytes zeroed, or a negative errno.
    zeroed: i64,
}

/// `struct uffdio_range`.
#[repr(C)]
struct Span {
    start: u64,
    bytes: u64,
}

/// `struct uffdio_register`.
#[repr(C)]
struct Register {
    start: u64,
    bytes: u64,
    mode: u64,
    ioctls: u64,
}

/// `struct uffdio_api`.
#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

/// Has the kernel begin to write this part of a file to its disk; waits only where the disk has more than enough to do.
pub(crate) fn begin_writeback(file: &File, range: Range<u64>) -> io::Result<()> {
    let out_of_range = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let start = libc::off64_t::try_from(range.start).map_err(out_of_range)?;
    let length = libc::off64_t::try_from(range.end - range.start).map_err(out_of_range)?;
    // SAFETY: the call takes a descriptor, which lives until it returns, and numbers.
    match unsafe { libc::sync_file_range(file.as_raw_fd(), start, length, libc::SYNC_FILE_RANGE_WRITE) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// An ioctl's number from its direction, number and argument, as `_IOC` of asm-generic/ioctl.h with type 0xAA.
const fn request(direction: u32, number: u32, size: usize) -> libc::Ioctl {
    // Signed in one C library, unsigned in the other; the bits are the same.
    (direction << 30 | (size as u32) << 16 | 0xAA << 8 | number) as libc::Ioctl
}

const READ: u32 = 2;
const READ_WRITE: u32 = 3;
const UFFDIO_REGISTER: libc::Ioctl = request(READ_WRITE, 0x00, size_of::<Register>());
const UFFDIO_WAKE: libc::Ioctl = request(READ, 0x02, size_of::<Span>());
const UFFDIO_COPY: libc::Ioctl = request(READ_WRITE, 0x03, size_of::<Copy>());
const UFFDIO_ZEROPAGE: libc::Ioctl = request(READ_WRITE, 0x04, size_of::<Zero>());
const UFFDIO_API: libc::Ioctl = request(READ_WRITE, 0x3F, size_of::<Api>());
const USERFAULTFD_IOC_NEW: libc::Ioctl = request(0, 0x00, 0);

// The sizes are in the numbers, so this holds both to linux/userfaultfd.h.
const _: () = {
    assert!(UFFDIO_REGISTER as u32 == 0xC020_AA00);
    assert!(UFFDIO_WAKE as u32 == 0x8010_AA02);
    assert!(UFFDIO_COPY as u32 == 0xC028_AA03);
    assert!(UFFDIO_ZEROPAGE as u32 == 0xC020_AA04);
    assert!(UFFDIO_API as u32 == 0xC018_AA3F);
    assert!(USERFAULTFD_IOC_NEW as u32 == 0xAA00);
    assert!(size_of::<usize>() == size_of::<u64>());
};

/// `UFFD_API`.
const API_VERSION: u64 = 0xAA;
/// `UFFD_FEATURE_EVENT_REMOVE`: the one feature Firecracker asks for.
const EVENT_REMOVE: u64 = 1 << 3;
/// `UFFDIO_REGISTER_MODE_MISSING`.
const MODE_MISSING: u64 = 1;

/// What became of a request to fill pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Filled {
    /// Every page.
    All,
    /// This many bytes from the start, at least a page; the next page was not.
    Part(u64),
    /// None: the first page is there already.
    Exists,
    /// None: an event of removal waits to be read, or its effect to come.
    Changing,
    /// None: the memory is no more.
    Gone,
}

/// Reads a system call's answer, where `done` is what the kernel wrote into the argument.
fn filled(status: libc::c_int, done: i64) -> io::Result<Filled> {
    if status == 0 {
        return Ok(Filled::All);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        // One errno, two meanings, told apart by the count.
        Some(libc::EAGAIN) if done > 0 => Ok(Filled::Part(done as u64)),
        Some(libc::EAGAIN) => Ok(Filled::Changing),
        Some(libc::EEXIST) => Ok(Filled::Exists),
        Some(libc::ESRCH | libc::ENOENT) => Ok(Filled::Gone),
        _ => Err(error),
    }
}

/// Copies `from` of a file's mapping into the memory at `to` and wakes who waits for it there.
pub(crate) fn copy(uffd: BorrowedFd<'_>, to: u64, source: &Mapping, from: Range<u64>) -> io::Result<Filled> {
    assert!(from.start < from.end && from.end <= source.bytes, "{from:?} of {} bytes", source.bytes);
    let mut argument =
        Copy { to, from: source.address as u64 + from.start, bytes: from.end - from.start, mode: 0, copied: 0 };
    // SAFETY: the argument is the structure this request takes. The kernel reads from the mapping, within its bounds
    // by the assertion, and writes to the memory of the process that made the userfaultfd, which is another one or
    // has registered that memory for it; what it cannot read or write it answers with an errno, not with a signal.
    let status = unsafe { libc::ioctl(uffd.as_raw_fd(), UFFDIO_COPY, &raw mut argument) };
    filled(status, argument.copied)
}

/// Fills memory with zeroes that take no room until written to, and wakes who waits for it there.
pub(crate) fn zero(uffd: BorrowedFd<'_>, memory: Range<u64>) -> io::Result<Filled> {
    let mut argument = Zero { start: memory.start, bytes: memory.end - memory.start, mode: 0, zeroed: 0 };
    // SAFETY: the argument is the structure this request takes; it changes only pages that are missing in memory that
    // its owner has registered for this.
    let status = unsafe { libc::ioctl(uffd.as_raw_fd(), UFFDIO_ZEROPAGE, &raw mut argument) };
    filled(status, argument.zeroed)
}

/// Wakes who waits for this memory; who still misses it says so again. Fails on what is no userfaultfd.
pub(crate) fn wake(uffd: BorrowedFd<'_>, memory: Range<u64>) -> io::Result<()> {
    let mut argument = Span { start: memory.start, bytes: memory.end - memory.start };
    // SAFETY: the argument is the structure this request takes; a descriptor that is none answers with an errno.
    done(unsafe { libc::ioctl(uffd.as_raw_fd(), UFFDIO_WAKE, &raw mut argument) })
}

fn done(status: libc::c_int) -> io::Result<()> {
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Makes an inherited descriptor ours. The caller vouches that the parent opened it for us and that it is taken once.
pub(crate) fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: a plain system call on a number; on a descriptor that is not open it fails with EBADF.
    if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open, and by the caller's word nothing else in this process owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// A descriptor that is readable once SIGTERM or SIGINT came, which do nothing else from here on. To be called before
/// there are other threads.
pub(crate) fn termination() -> io::Result<OwnedFd> {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: `sigemptyset` initialises the set, the others change and read it; a null old set is allowed; -1 asks for
    // a new descriptor.
    let fd = unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), libc::SIGTERM);
        libc::sigaddset(set.as_mut_ptr(), libc::SIGINT);
        let blocked = libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut());
        if blocked != 0 {
            return Err(io::Error::from_raw_os_error(blocked));
        }
        libc::signalfd(-1, set.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
    };
    new_fd(fd)
}

fn new_fd(fd: libc::c_int) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: every caller hands on what a system call that opens a descriptor just returned.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A pidfd of the process that connected a unix socket. Linux 6.5 can.
pub(crate) fn peer_pidfd(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    /// asm-generic/socket.h.
    const SO_PEERPIDFD: libc::c_int = 77;
    let mut fd: libc::c_int = -1;
    let mut length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the option's value is one int, and there is room for one.
    let status = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_PEERPIDFD,
            (&raw mut fd).cast::<libc::c_void>(),
            &raw mut length,
        )
    };
    done(status)?;
    new_fd(fd)
}

/// A file mapped to be copied from by the kernel. Nothing in this process reads through it: a page that cannot be read
/// from disk, or that the file lost, would be a signal here, and is an errno there.
#[derive(Debug)]
pub(crate) struct Mapping {
    address: *mut libc::c_void,
    bytes: u64,
}

// SAFETY: the mapping is read-only and only the kernel reads it.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the first `bytes` bytes, at least one, of a file.
    pub(crate) fn of(file: &File, bytes: u64) -> io::Result<Self> {
        let address = map(bytes, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd())?;
        Ok(Self { address, bytes })
    }

    /// Reads a part of the file into the page cache and the page tables; returns when it is there. A hint: what fails
    /// fails again, and is reported, when it is copied.
    pub(crate) fn warm(&self, part: Range<u64>) {
        assert!(part.start <= part.end && part.end <= self.bytes, "{part:?} of {} bytes", self.bytes);
        let start = part.start & !4095;
        // SAFETY: whole pages within this mapping; populating for reading changes nothing of it.
        unsafe {
            let at = self.address.byte_add(start as usize);
            libc::madvise(at, (part.end - start) as usize, libc::MADV_POPULATE_READ);
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: made by `of` with this size, and nothing uses it after this.
        unsafe { libc::munmap(self.address, self.bytes as usize) };
    }
}

fn map(bytes: u64, protection: libc::c_int, flags: libc::c_int, fd: RawFd) -> io::Result<*mut libc::c_void> {
    // SAFETY: a new mapping at an address the kernel chooses; no existing memory is affected.
    let address = unsafe { libc::mmap(std::ptr::null_mut(), bytes as usize, protection, flags, fd, 0) };
    if address == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(address) }
}

/// Anonymous memory of which a userfaultfd says every missing page: what a VMM makes of a guest's memory.
#[derive(Debug)]
pub(crate) struct Missing {
    address: *mut libc::c_void,
    bytes: u64,
    uffd: OwnedFd,
}

// SAFETY: plain memory, read and written below by volatile access of single bytes alone, from any thread.
unsafe impl Send for Missing {}
// SAFETY: as above.
unsafe impl Sync for Missing {}

impl Missing {
    pub(crate) fn new(bytes: u64) -> io::Result<Self> {
        let uffd = match File::open("/dev/userfaultfd") {
            // SAFETY: a plain request without an argument but flags.
            Ok(device) => new_fd(unsafe {
                libc::ioctl(device.as_raw_fd(), USERFAULTFD_IOC_NEW, libc::O_CLOEXEC | libc::O_NONBLOCK)
            })?,
            // SAFETY: a plain system call on numbers.
            Err(_) => new_fd(unsafe {
                libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | libc::O_NONBLOCK) as libc::c_int
            })?,
        };
        let mut api = Api { api: API_VERSION, features: EVENT_REMOVE, ioctls: 0 };
        // SAFETY: the argument is the structure this request takes.
        done(unsafe { libc::ioctl(uffd.as_raw_fd(), UFFDIO_API, &raw mut api) })?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let address = map(bytes, libc::PROT_READ | libc::PROT_WRITE, flags, -1)?;
        let memory = Self { address, bytes, uffd };
        let mut register = Register { start: address as u64, bytes, mode: MODE_MISSING, ioctls: 0 };
        // SAFETY: the argument is the structure this request takes, about a mapping of ours.
        done(unsafe { libc::ioctl(memory.uffd.as_raw_fd(), UFFDIO_REGISTER, &raw mut register) })?;
        Ok(memory)
    }

    pub(crate) fn address(&self) -> u64 {
        self.address as u64
    }

    pub(crate) fn uffd(&self) -> BorrowedFd<'_> {
        self.uffd.as_fd()
    }

    fn at(&self, offset: u64, bytes: usize) -> *mut u8 {
        assert!(offset.checked_add(bytes as u64).is_some_and(|end| end <= self.bytes), "outside of the memory");
        self.address.cast::<u8>().wrapping_add(offset as usize)
    }

    /// Copies memory out; waits for what is missing.
    pub(crate) fn read(&self, offset: u64, into: &mut [u8]) {
        let from = self.at(offset, into.len());
        for (index, byte) in into.iter_mut().enumerate() {
            // SAFETY: within the mapping, as `at` asserted.
            *byte = unsafe { from.add(index).read_volatile() };
        }
    }

    /// Writes one byte; waits for its page if it is missing.
    pub(crate) fn write(&self, offset: u64, byte: u8) {
        let to = self.at(offset, 1);
        // SAFETY: within the mapping, as `at` asserted.
        unsafe { to.write_volatile(byte) };
    }

    /// Gives pages back, as a balloon does. Waits until the userfaultfd's event of it was read.
    pub(crate) fn remove(&self, memory: Range<u64>) -> io::Result<()> {
        let bytes = (memory.end - memory.start) as usize;
        let at = self.at(memory.start, bytes);
        // SAFETY: whole pages of this mapping, which nothing holds references into.
        done(unsafe { libc::madvise(at.cast(), bytes, libc::MADV_DONTNEED) })
    }
}

impl Drop for Missing {
    fn drop(&mut self) {
        // SAFETY: made by `new` with this size, and nothing uses it after this.
        unsafe { libc::munmap(self.address, self.bytes as usize) };
    }
}
