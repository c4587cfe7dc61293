//! Meeting the VMM: one connection, one message, one userfaultfd, within a deadline.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SocketFlags};
use rustix::process::PidfdFlags;

use super::handshake::{HandshakeError, MAX_MESSAGE, Regions, parse_handshake};
use crate::format::PAGE;
use crate::sys;

/// A VMM that has said what its memory is.
pub(crate) struct Vmm {
    pub(crate) uffd: OwnedFd,
    pub(crate) regions: Regions,
    pub(crate) life: Life,
}

/// By what the end of a VMM is seen.
pub(crate) enum Life {
    /// Its process. Firecracker up to 1.10 closes the connection at once, so it says nothing by itself.
    Process(OwnedFd),
    /// The connection, which later ones never close: where the system does not tell who connected.
    Connection(OwnedFd),
}

impl Life {
    fn of(connection: OwnedFd) -> Self {
        let process = sys::peer_pidfd(connection.as_fd()).or_else(|_| {
            // Before Linux 6.5. Between the two calls the process may end and its id be taken by another, which would be
            // watched in its stead; ids come round too slowly for that to be worth more than this remark.
            let peer = rustix::net::sockopt::socket_peercred(&connection)?;
            rustix::process::pidfd_open(peer.pid, PidfdFlags::empty()).map_err(io::Error::from)
        });
        match process {
            Ok(process) => Self::Process(process),
            Err(_) => Self::Connection(connection),
        }
    }

    /// Becomes ready, by any of [`PollFlags`], when the VMM has ended. What the VMM may send is never noticed.
    pub(crate) fn poll_fd(&self) -> PollFd<'_> {
        match self {
            Self::Process(process) => PollFd::new(process, PollFlags::IN),
            Self::Connection(connection) => PollFd::new(connection, PollFlags::RDHUP),
        }
    }
}

/// Waits for the VMM. `None` if `stop` became readable first.
pub(crate) fn meet(
    listener: &OwnedFd,
    stop: Option<BorrowedFd<'_>>,
    memory_bytes: u64,
    patience: Duration,
) -> Result<Option<Vmm>, MeetError> {
    let deadline = Instant::now() + patience;
    // Who connects may be gone before it is accepted, and then there would be nobody to wait for.
    rustix::io::ioctl_fionbio(listener, true).map_err(|e| MeetError::Accept(e.into()))?;
    let connection = loop {
        if !wait(listener.as_fd(), stop, deadline, patience)? {
            return Ok(None);
        }
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        match rustix::net::accept_with(listener, flags) {
            Ok(connection) => break connection,
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => {}
            Err(e) => return Err(MeetError::Accept(e.into())),
        }
    };
    let mut message = Vec::new();
    let mut descriptors = Vec::new();
    // The connection stays open, so the message ends where its array does. Should a `]` end a part of it by chance it is
    // refused, as is everything that is not what Firecracker sends.
    while message.last() != Some(&b']') {
        if !wait(connection.as_fd(), stop, deadline, patience)? {
            return Ok(None);
        }
        if !receive(&connection, &mut message, &mut descriptors)? {
            break;
        }
        if message.len() > MAX_MESSAGE {
            return Err(HandshakeError::TooLong.into());
        }
    }
    let regions = parse_handshake(&message, memory_bytes)?;
    if descriptors.len() != 1 {
        return Err(MeetError::Descriptors { count: descriptors.len() });
    }
    let uffd = descriptors.remove(0);
    for region in regions.iter() {
        // Nobody waits yet; what is no userfaultfd does not know the request.
        sys::wake(uffd.as_fd(), region.address..region.address + PAGE).map_err(MeetError::NotUserfaultfd)?;
    }
    rustix::io::ioctl_fionbio(&uffd, true).map_err(|e| MeetError::NotUserfaultfd(e.into()))?;
    Ok(Some(Vmm { uffd, regions, life: Life::of(connection) }))
}

/// Reads what has arrived. Returns whether the connection goes on.
fn receive(socket: &OwnedFd, message: &mut Vec<u8>, descriptors: &mut Vec<OwnedFd>) -> Result<bool, MeetError> {
    let mut bytes = [0; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let received = match rustix::net::recvmsg(socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
        Ok(received) => received,
        Err(Errno::AGAIN | Errno::INTR) => return Ok(true),
        Err(e) => return Err(MeetError::Receive(e.into())),
    };
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(sent) = part {
            descriptors.extend(sent);
        }
    }
    // What did not fit was closed by the kernel.
    let cut = received.flags.contains(ReturnFlags::CTRUNC);
    if cut || descriptors.len() > 1 {
        return Err(MeetError::Descriptors { count: descriptors.len() + usize::from(cut) });
    }
    message.extend_from_slice(&bytes[..received.bytes]);
    Ok(received.bytes > 0)
}

/// Waits until a descriptor is readable. Returns `false` if `stop` is.
fn wait(
    fd: BorrowedFd<'_>,
    stop: Option<BorrowedFd<'_>>,
    deadline: Instant,
    patience: Duration,
) -> Result<bool, MeetError> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(MeetError::Deadline { patience });
        }
        // Without `stop`, twice the same: a list of one kind of length is simpler than two.
        let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN), PollFd::from_borrowed_fd(fd, PollFlags::IN)];
        if let Some(stop) = stop {
            fds[1] = PollFd::from_borrowed_fd(stop, PollFlags::IN);
        }
        let timeout = Timespec::try_from(left).map_err(|_| MeetError::Deadline { patience })?;
        match rustix::event::poll(&mut fds, Some(&timeout)) {
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) if stop.is_some() && !fds[1].revents().is_empty() => return Ok(false),
            Ok(_) => return Ok(true),
            Err(e) => return Err(MeetError::Wait(e.into())),
        }
    }
}

/// Why no VMM is served.
#[derive(Debug, thiserror::Error)]
pub enum MeetError {
    /// Nothing came, or not all of it, in time.
    #[error("no VMM has said what its memory is within {patience:?}")]
    Deadline {
        /// How long was waited.
        patience: Duration,
    },
    /// Waiting failed.
    #[error("cannot wait for the VMM")]
    Wait(#[source] io::Error),
    /// The connection could not be accepted.
    #[error("cannot accept the VMM's connection")]
    Accept(#[source] io::Error),
    /// The message could not be received.
    #[error("cannot receive the VMM's message")]
    Receive(#[source] io::Error),
    /// The message was refused.
    #[error("the VMM's memory is refused")]
    Message(#[from] HandshakeError),
    /// There is no descriptor with the message, or more than one.
    #[error("the VMM sent {count} descriptors, not one userfaultfd")]
    Descriptors {
        /// How many, at least.
        count: usize,
    },
    /// The descriptor is something else.
    #[error("the VMM sent something that is no userfaultfd of this memory")]
    NotUserfaultfd(#[source] io::Error),
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    fn has_ended(life: &Life) -> bool {
        rustix::event::poll(&mut [life.poll_fd()], Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() == 1
    }

    #[test]
    fn where_only_the_connection_tells_its_end_is_the_end() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let life = Life::Connection(ours.into());
        theirs.write_all(b"what nobody asked for").unwrap();
        assert!(!has_ended(&life));
        drop(theirs);
        assert!(has_ended(&life));
    }

    #[test]
    fn where_the_process_is_known_the_connection_tells_nothing() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let life = Life::of(ours.into());
        assert!(matches!(life, Life::Process(_)));
        drop(theirs);
        assert!(!has_ended(&life));
    }
}
