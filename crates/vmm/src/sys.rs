//! The system calls that have no safe wrapper. The only file of this crate with `unsafe` in it.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use rustix::thread::LinkNameSpaceType;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Arranges what happens in the child between fork and exec: a session of its own, the network namespace, and no
/// inherited descriptor but standard ones and `keep`.
///
/// The descriptors of `keep` must stay open until the command was spawned.
pub(crate) fn isolate_child(command: &mut Command, namespace: Option<OwnedFd>, keep: Vec<RawFd>) {
    let in_child = move || -> io::Result<()> {
        rustix::process::setsid()?;
        if let Some(namespace) = &namespace {
            rustix::thread::move_into_link_name_space(
                std::os::fd::AsFd::as_fd(namespace),
                Some(LinkNameSpaceType::Network),
            )?;
        }
        // Marked, not closed: the descriptor through which a failed exec is reported must stay open until then.
        // SAFETY: a plain system call on numbers; it changes only this (forked) process's descriptor flags.
        let marked = unsafe {
            libc::syscall(libc::SYS_close_range, 3 as libc::c_uint, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC)
        };
        if marked != 0 {
            return Err(io::Error::last_os_error());
        }
        for &fd in &keep {
            // SAFETY: a plain system call on a number; on a descriptor that is not open it fails with EBADF.
            if unsafe { libc::fcntl(fd, libc::F_SETFD, 0) } != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: the closure runs in the forked child and makes only system calls; it neither allocates nor locks.
    unsafe { command.pre_exec(in_child) };
}

/// Makes a descriptor awaitable. Must be called within a runtime.
pub(crate) fn watch_fd(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is one open descriptor for as long as it lives, and `AsyncFd` owns it from here on.
    Ok(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?)
}

/// One page of memory shared with a throw-away virtual machine; unmapped on drop.
pub(crate) struct GuestPage {
    address: *mut libc::c_void,
}

// SAFETY: the page is plain memory owned by this value alone.
unsafe impl Send for GuestPage {}

impl GuestPage {
    /// Size of the page.
    pub(crate) const SIZE: usize = 4096;

    /// A page that begins with `code`.
    pub(crate) fn with_code(code: &[u8]) -> io::Result<Self> {
        assert!(code.len() <= Self::SIZE, "code longer than its page");
        // SAFETY: a new anonymous mapping at an address the kernel chooses; no existing memory is affected.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                Self::SIZE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the mapping is `SIZE` bytes, `code` is no longer than that (asserted), and nothing else knows
        // of the mapping yet.
        unsafe { std::ptr::copy_nonoverlapping(code.as_ptr(), address.cast(), code.len()) };
        Ok(Self { address })
    }

    /// Makes the page the machine's memory at `guest_address`. The page must be dropped after the machine.
    pub(crate) fn give_to(&self, vm: &VmFd, guest_address: u64) -> Result<(), kvm_ioctls::Error> {
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: guest_address,
            memory_size: Self::SIZE as u64,
            userspace_addr: self.address as u64,
        };
        // SAFETY: the region is exactly this mapping, which stays mapped until `self` is dropped; its owner
        // drops it after the machine.
        unsafe { vm.set_user_memory_region(region) }
    }
}

impl Drop for GuestPage {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `with_code` with this size and is not used after this.
        unsafe { libc::munmap(self.address, Self::SIZE) };
    }
}
