//! The loop of a pager: faults first, then prefetching, otherwise sleep.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use super::accept::{MeetError, Vmm, meet};
use super::event::{Event, read_events};
use super::memory::{FillError, Memory, Outcome};
use super::prefetch::{Cursor, Prefetch};
use super::source::{Source, SourceError};
use super::touched::{Touched, TouchedError, write_touched};

/// The most faults kept for later while memory is removed: many times the threads a VMM has.
const MAX_WAITING: usize = 4096;
/// The most batches of events read before they are handled.
const MAX_BATCHES: usize = 16;
/// How long is waited before a removal is expected to have taken effect, at first and at most. It takes microseconds,
/// unless the VMM was stopped in the middle of it, or never means to finish.
const PAUSE: Duration = Duration::from_micros(20);
const MAX_PAUSE: Duration = Duration::from_millis(20);
/// The stack of the thread that waits for the disk, in bytes: it has a few small frames.
const WARM_STACK: usize = 64 << 10;

/// What a pager serves, and to whom.
#[derive(Debug)]
pub struct Pager {
    /// A listening unix socket. One connection is accepted.
    pub listener: OwnedFd,
    /// Readable when the pager is to end, whatever its VM does.
    pub stop: Option<OwnedFd>,
    /// The memory file of the version.
    pub base: File,
    /// The pages that differ from it.
    pub layer: Option<File>,
    /// Size of the memory in bytes.
    pub memory_bytes: u64,
    /// Pages to be given without being asked, as runs in bytes.
    pub prefetch: Vec<Range<u64>>,
    /// Where the touched pages are written at the end. Recording, the pager gives a page at a fault and no neighbours,
    /// so that what is recorded is what was touched.
    pub record: Option<File>,
    /// How long the VMM may take to say what its memory is.
    pub patience: Duration,
}

/// What a pager did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Served {
    /// Faults that were answered.
    pub faults: u64,
    /// Bytes that were given at faults.
    pub faulted_bytes: u64,
    /// Bytes that were given before they were asked for.
    pub prefetched_bytes: u64,
}

impl Pager {
    /// Serves one VM until it ends, or `stop` is readable.
    pub fn serve(self) -> Result<Served, PagerError> {
        let source = Source::open(self.memory_bytes, &self.base, self.layer)?;
        let stop = self.stop.as_ref().map(AsFd::as_fd);
        let vmm = meet(&self.listener, stop, self.memory_bytes, self.patience)?;
        let Some(vmm) = vmm else { return Ok(Served::default()) };
        // Whoever else connects is told so instead of waiting for ever.
        drop(self.listener);
        let prefetches = !self.prefetch.is_empty();
        let prefetch = Prefetch::new(self.prefetch).map_err(PagerError::Prefetch)?;
        let Vmm { uffd, regions, life } = vmm;
        let mut server = Server {
            memory: Memory::new(uffd, regions, &source, self.memory_bytes, self.record.is_none()),
            touched: self.record.is_some().then(Touched::default),
            waiting: Vec::new(),
            served: Served::default(),
        };
        thread::scope(|scope| {
            if prefetches {
                let warm = || prefetch.warm(&source);
                let thread = thread::Builder::new().name("warm".into()).stack_size(WARM_STACK);
                thread.spawn_scoped(scope, warm).map_err(PagerError::Prefetch)?;
            }
            let ended = server.run(&life.poll_fd(), stop, Cursor::new(&prefetch));
            prefetch.stop();
            ended
        })?;
        if let (Some(file), Some(touched)) = (&self.record, &server.touched) {
            write_touched(file, self.memory_bytes, touched.runs())?;
        }
        Ok(server.served)
    }
}

struct Server<'a> {
    memory: Memory<'a>,
    touched: Option<Touched>,
    /// Offsets of faults that could not be answered yet.
    waiting: Vec<u64>,
    served: Served,
}

/// Whether the VM goes on.
#[derive(PartialEq, Eq)]
enum Next {
    Go,
    End,
}

impl Server<'_> {
    fn run(
        &mut self,
        life: &PollFd<'_>,
        stop: Option<BorrowedFd<'_>>,
        mut cursor: Cursor<'_>,
    ) -> Result<(), PagerError> {
        // Zero unless something is held up by a removal that has not taken effect.
        let mut pause = Duration::ZERO;
        loop {
            let sleeps = pause.is_zero() && !cursor.is_ready();
            let ready = self.wait(life, stop, &cursor, (!sleeps).then_some(pause))?;
            if ready.ended {
                return Ok(());
            }
            if ready.progress {
                cursor.noticed();
            }
            let next = if ready.faults { self.handle_events()? } else { self.retry()? };
            if next == Next::End {
                return Ok(());
            }
            let mut held_up = !self.waiting.is_empty();
            if !ready.faults && !held_up && cursor.is_ready() {
                match cursor.step(&mut self.memory)? {
                    Outcome::Filled(bytes) => self.served.prefetched_bytes += bytes,
                    Outcome::Later => held_up = true,
                    Outcome::Gone => return Ok(()),
                }
            }
            // Doubling, so that a removal that never ends costs nothing.
            pause = if held_up { (pause * 2).clamp(PAUSE, MAX_PAUSE) } else { Duration::ZERO };
        }
    }

    fn wait(
        &self,
        life: &PollFd<'_>,
        stop: Option<BorrowedFd<'_>>,
        cursor: &Cursor<'_>,
        timeout: Option<Duration>,
    ) -> Result<Ready, PagerError> {
        let uffd = self.memory.uffd();
        let readable = |fd| PollFd::from_borrowed_fd(fd, PollFlags::IN);
        // Without `stop`, twice the same: a list of one length is simpler than two.
        let mut fds = [readable(uffd), life.clone(), readable(cursor.progress()), readable(stop.unwrap_or(uffd))];
        let timeout = timeout.map(|timeout| Timespec {
            tv_sec: timeout.as_secs().cast_signed(),
            tv_nsec: timeout.subsec_nanos().into(),
        });
        match rustix::event::poll(&mut fds, timeout.as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(Ready::default()),
            Err(e) => return Err(PagerError::Wait(e.into())),
        }
        let [faults, life, progress, asked] = fds.map(|fd| fd.revents());
        let ended = !life.is_empty() || stop.is_some() && !asked.is_empty();
        if !ended && !(faults - PollFlags::IN).is_empty() {
            // It would be ready for ever and never say anything.
            return Err(PagerError::Userfaultfd);
        }
        Ok(Ready { ended, faults: !faults.is_empty(), progress: !progress.is_empty() })
    }

    fn handle_events(&mut self) -> Result<Next, PagerError> {
        let mut events = Vec::new();
        for _ in 0..MAX_BATCHES {
            if !read_events(self.memory.uffd(), &mut events).map_err(PagerError::Events)? {
                break;
            }
        }
        // Removals first: the kernel hands out faults before them, but a fault may be about what is being removed.
        for event in &events {
            match event {
                Event::Removed(addresses) => self.memory.remove(addresses),
                Event::Missing(_) => {}
                Event::Other(number) => return Err(PagerError::Unexpected { number: *number }),
            }
        }
        if self.retry()? == Next::End {
            return Ok(Next::End);
        }
        for event in events {
            let Event::Missing(address) = event else { continue };
            let Some(offset) = self.memory.offset_of(address) else {
                return Err(PagerError::Outside { address });
            };
            if self.answer(offset)? == Next::End {
                return Ok(Next::End);
            }
        }
        Ok(Next::Go)
    }

    fn answer(&mut self, offset: u64) -> Result<Next, PagerError> {
        match self.memory.fault(offset)? {
            Outcome::Filled(bytes) => {
                self.served.faults += 1;
                self.served.faulted_bytes += bytes;
                // Zero if another processor's fault was about the same page.
                if let Some(touched) = &mut self.touched
                    && bytes > 0
                    && !self.memory.was_removed(offset)
                {
                    touched.add(offset);
                }
            }
            Outcome::Later if self.waiting.len() == MAX_WAITING => return Err(PagerError::Waiting),
            Outcome::Later => self.waiting.push(offset),
            Outcome::Gone => return Ok(Next::End),
        }
        Ok(Next::Go)
    }

    /// Answers what could not be answered before, as far as it can be now.
    fn retry(&mut self) -> Result<Next, PagerError> {
        for offset in std::mem::take(&mut self.waiting) {
            if self.answer(offset)? == Next::End {
                return Ok(Next::End);
            }
        }
        Ok(Next::Go)
    }
}

#[derive(Default)]
struct Ready {
    /// The VM is to be served no more.
    ended: bool,
    faults: bool,
    progress: bool,
}

/// Why a VM is not served, or not any more.
#[derive(Debug, thiserror::Error)]
pub enum PagerError {
    /// The files cannot be used.
    #[error("the VM has no memory to be served from")]
    Source(#[from] SourceError),
    /// There is no VMM, or not a proper one.
    #[error("the VM cannot be served")]
    Meet(#[from] MeetError),
    /// Prefetching could not begin.
    #[error("cannot set up prefetching")]
    Prefetch(#[source] io::Error),
    /// Waiting failed.
    #[error("cannot wait for faults")]
    Wait(#[source] io::Error),
    /// The userfaultfd is broken, or was made to block.
    #[error("the VMM's userfaultfd tells of no faults any more")]
    Userfaultfd,
    /// Events could not be read.
    #[error("cannot read the events of the VMM's userfaultfd")]
    Events(#[source] io::Error),
    /// An event of a kind that Firecracker's userfaultfd does not have.
    #[error("the VMM's userfaultfd tells of an unexpected event {number:#x}")]
    Unexpected {
        /// Its number in linux/userfaultfd.h.
        number: u8,
    },
    /// A fault at an address the VMM did not tell of.
    #[error("a fault at {address:#x} is in no memory region of the VMM")]
    Outside {
        /// The address.
        address: u64,
    },
    /// Too many faults wait for removals to end.
    #[error("more than {MAX_WAITING} faults wait for memory to be removed")]
    Waiting,
    /// Pages could not be filled.
    #[error("the VM is missing memory")]
    Fill(#[from] FillError),
    /// The touched pages could not be written.
    #[error("what the VM touched is not recorded")]
    Record(#[from] TouchedError),
}
