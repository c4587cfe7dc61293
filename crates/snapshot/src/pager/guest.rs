//! The other side: memory as a VMM makes it. For tests of the pager, for measuring it, and for finding out whether
//! this machine has userfaultfd at all.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

use crate::sys::Missing;

/// Memory none of whose pages is there; whoever touches one waits for a pager.
#[derive(Debug)]
pub struct GuestMemory {
    memory: Missing,
    bytes: u64,
}

impl GuestMemory {
    /// Makes memory of `bytes` bytes with a userfaultfd, as Firecracker does. Needs the right to userfaultfd: root, or
    /// access to `/dev/userfaultfd`.
    pub fn new(bytes: u64) -> io::Result<Self> {
        Ok(Self { memory: Missing::new(bytes)?, bytes })
    }

    /// Where it is in this process.
    pub fn address(&self) -> u64 {
        self.memory.address()
    }

    /// Its userfaultfd.
    pub fn userfaultfd(&self) -> BorrowedFd<'_> {
        self.memory.uffd()
    }

    /// Tells a pager of it, in one region.
    pub fn hand_over(&self, pager: &UnixStream) -> io::Result<()> {
        let (address, bytes) = (self.address(), self.bytes);
        let message = format!(
            "[{{\"base_host_virt_addr\":{address},\"size\":{bytes},\"offset\":0,\"page_size\":4096,\"page_size_kib\":4096}}]"
        );
        send_with_descriptors(pager, message.as_bytes(), &[self.userfaultfd()])
    }

    /// Copies memory out, byte by byte, waiting for pages that are missing.
    pub fn read(&self, offset: u64, into: &mut [u8]) {
        self.memory.read(offset, into);
    }

    /// Writes a byte, waiting for its page if it is missing.
    pub fn write(&self, offset: u64, byte: u8) {
        self.memory.write(offset, byte);
    }

    /// Gives whole pages back, as a balloon does. Returns after the pager has been told.
    pub fn remove(&self, offsets: Range<u64>) -> io::Result<()> {
        self.memory.remove(offsets)
    }
}

/// Sends a message with descriptors, at most 8.
pub fn send_with_descriptors(socket: &UnixStream, message: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let sent = rustix::net::sendmsg(socket.as_fd(), &[IoSlice::new(message)], &mut control, SendFlags::NOSIGNAL)?;
    if sent == message.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}
