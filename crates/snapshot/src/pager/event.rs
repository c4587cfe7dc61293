//! What a userfaultfd says.

use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;

use rustix::io::Errno;

/// Bytes of `struct uffd_msg`.
const MESSAGE: usize = 32;
/// How many are read at once. A VM has about as many threads that can wait for a page as it has processors.
const BATCH: usize = 64;

/// An event of a userfaultfd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// A thread waits for the page of an address.
    Missing(u64),
    /// Memory is about to be given back, once this was read.
    Removed(Range<u64>),
    /// Something that was never asked for.
    Other(u8),
}

impl Event {
    fn parse(message: &[u8; MESSAGE]) -> Self {
        /// linux/userfaultfd.h.
        const PAGEFAULT: u8 = 0x12;
        const REMOVE: u8 = 0x15;
        /// The page is there and write-protected, or is in a file and only not mapped.
        const NOT_MISSING: u64 = 1 << 1 | 1 << 2;
        let number = |at: usize| u64::from_ne_bytes(message[at..at + 8].try_into().expect("8 bytes"));
        match message[0] {
            PAGEFAULT if number(8) & NOT_MISSING == 0 => Self::Missing(number(16)),
            REMOVE => Self::Removed(number(8)..number(16)),
            other => Self::Other(other),
        }
    }
}

/// Appends the events that wait, as far as they fit a batch. Returns whether there may be more.
pub(crate) fn read_events(uffd: BorrowedFd<'_>, events: &mut Vec<Event>) -> io::Result<bool> {
    let mut buffer = [0; MESSAGE * BATCH];
    match rustix::io::read(uffd, &mut buffer) {
        Ok(length) => {
            events.extend(buffer[..length].as_chunks::<MESSAGE>().0.iter().map(Event::parse));
            Ok(length == buffer.len())
        }
        // Whoever shared the descriptor was faster, or the fault's thread was killed.
        Err(Errno::AGAIN | Errno::INTR) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(event: u8, first: u64, second: u64) -> Event {
        let mut message = [0; MESSAGE];
        message[0] = event;
        message[8..16].copy_from_slice(&first.to_ne_bytes());
        message[16..24].copy_from_slice(&second.to_ne_bytes());
        Event::parse(&message)
    }

    #[test]
    fn events_are_told_apart() {
        assert_eq!(message(0x12, 1, 0x7000_1000), Event::Missing(0x7000_1000), "a write is a fault as a read is");
        assert_eq!(message(0x15, 0x1000, 0x3000), Event::Removed(0x1000..0x3000));
        assert_eq!(message(0x12, 1 << 1, 0x1000), Event::Other(0x12), "write-protected");
        assert_eq!(message(0x13, 0, 0), Event::Other(0x13), "a fork");
    }
}
