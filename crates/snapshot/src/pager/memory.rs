//! The guest's memory, filled page by page. One thread does it all, so a page's state and the page change together:
//! were a page looked up by one thread while another read the event of its removal, it would come back from the dead.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::handshake::Regions;
use super::pages::{Origin, PageSet};
use super::source::Source;
use crate::format::PAGE;
use crate::sys::{self, Filled};

/// The window of pages filled at a fault, aligned to its size, in bytes: 4 pages. Measured, a page costs 11 µs by itself.
/// In windows of 16 KiB it costs 4 µs where the guest wants the neighbours and 17 µs where it never does; of 64 KiB, 2.5
/// and 33. And each neighbour is a page of the host's memory that this VM does not share any more, used or not.
pub(crate) const FAULT_AROUND: u64 = 16 << 10;
/// The same for pages of zeroes, which stay shared until written to.
pub(crate) const ZERO_AROUND: u64 = 64 << 10;

/// What became of a fault or a piece of prefetching.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// This many bytes are where they belong now that were not before.
    Filled(u64),
    /// Not now: pages are being removed.
    Later,
    /// The VM is no more.
    Gone,
}

pub(crate) struct Memory<'a> {
    uffd: OwnedFd,
    regions: Regions,
    source: &'a Source,
    /// Filled, and not removed since. What is filled may yet be missing: a removal takes effect after its event is
    /// read. So this spares work and is never proof.
    filled: PageSet,
    /// Removed at least once: zeroes from then on.
    removed: PageSet,
    /// Whether neighbours are filled at a fault.
    around: bool,
}

impl<'a> Memory<'a> {
    pub(crate) fn new(uffd: OwnedFd, regions: Regions, source: &'a Source, memory_bytes: u64, around: bool) -> Self {
        let (filled, removed) = (PageSet::new(memory_bytes), PageSet::new(memory_bytes));
        Self { uffd, regions, source, filled, removed, around }
    }

    pub(crate) fn uffd(&self) -> BorrowedFd<'_> {
        self.uffd.as_fd()
    }

    /// The offset of the page of an address, if it is in the guest's memory.
    pub(crate) fn offset_of(&self, address: u64) -> Option<u64> {
        let address = address / PAGE * PAGE;
        self.regions.of_address(address).map(|region| region.offset + (address - region.address))
    }

    /// Gives who waits for a page the page, and perhaps its neighbours.
    pub(crate) fn fault(&mut self, offset: u64) -> Result<Outcome, FillError> {
        let window = self.window(offset);
        match self.fill(window.clone())? {
            // The page may be behind one that was there already.
            Filled::Part(bytes) if window.start + bytes <= offset => {}
            Filled::Exists if window.end - window.start > PAGE => {}
            Filled::Exists => return self.woken(offset),
            Filled::All => return Ok(Outcome::Filled(window.end - window.start)),
            Filled::Part(bytes) => return Ok(Outcome::Filled(bytes)),
            Filled::Changing => return Ok(Outcome::Later),
            Filled::Gone => return Ok(Outcome::Gone),
        }
        match self.fill(offset..offset + PAGE)? {
            Filled::All | Filled::Part(_) => Ok(Outcome::Filled(PAGE)),
            Filled::Exists => self.woken(offset),
            Filled::Changing => Ok(Outcome::Later),
            Filled::Gone => Ok(Outcome::Gone),
        }
    }

    /// The page is there: two processors wanted it, or prefetching was faster. Who filled it woke who waited then; this
    /// is for who came to wait in between.
    fn woken(&mut self, offset: u64) -> Result<Outcome, FillError> {
        let Some(region) = self.regions.of_offset(offset) else { return Ok(Outcome::Filled(0)) };
        let page = region.addresses(&(offset..offset + PAGE));
        sys::wake(self.uffd.as_fd(), page).map_err(|source| FillError { offset, bytes: PAGE, source })?;
        Ok(Outcome::Filled(0))
    }

    /// The missing pages around one that come from where it comes from.
    fn window(&self, offset: u64) -> Range<u64> {
        let page = offset..offset + PAGE;
        // A page that was given back and is wanted again says nothing about its neighbours.
        if !self.around || self.removed.contains(offset) {
            return page;
        }
        let Some(region) = self.regions.of_offset(offset) else { return page };
        let (origin, stretch) = self.source.pages.find(offset);
        let size = if origin == Origin::Zero { ZERO_AROUND } else { FAULT_AROUND };
        let start = (offset / size * size).max(stretch.start).max(region.offset);
        let end = (offset / size * size + size).min(stretch.end).min(region.offsets().end);
        let missing = |offset: u64| !self.filled.contains(offset) && !self.removed.contains(offset);
        let mut window = page;
        while window.start > start && missing(window.start - PAGE) {
            window.start -= PAGE;
        }
        while window.end < end && missing(window.end) {
            window.end += PAGE;
        }
        window
    }

    /// Fills the first missing pages of `offsets`, at most `limit` bytes. Returns where to go on.
    pub(crate) fn prefetch(&mut self, offsets: Range<u64>, limit: u64) -> Result<(u64, Outcome), FillError> {
        let missing = |offset: &u64| !self.filled.contains(*offset) && !self.removed.contains(*offset);
        let pages = |from: u64| (from..offsets.end).step_by(PAGE as usize);
        let Some(start) = pages(offsets.start).find(missing) else {
            return Ok((offsets.end, Outcome::Filled(0)));
        };
        let Some(region) = self.regions.of_offset(start) else {
            // The VMM has no such memory.
            return Ok((start + PAGE, Outcome::Filled(0)));
        };
        let end = (start + limit).min(offsets.end).min(region.offsets().end);
        let end = end.min(self.source.pages.find(start).1.end);
        let end = pages(start).find(|at| *at >= end || !missing(at)).unwrap_or(end);
        Ok(match self.fill(start..end)? {
            Filled::All => (end, Outcome::Filled(end - start)),
            Filled::Part(bytes) => (start + bytes, Outcome::Filled(bytes)),
            Filled::Exists => (start + PAGE, Outcome::Filled(0)),
            Filled::Changing => (start, Outcome::Later),
            Filled::Gone => (start, Outcome::Gone),
        })
    }

    /// Fills pages of one region and one origin.
    fn fill(&mut self, offsets: Range<u64>) -> Result<Filled, FillError> {
        let bytes = offsets.end - offsets.start;
        let failed = |source| FillError { offset: offsets.start, bytes, source };
        let Some(region) = self.regions.of_offset(offsets.start) else {
            return Err(failed(io::ErrorKind::AddrNotAvailable.into()));
        };
        let to = region.addresses(&offsets);
        let origin = match self.removed.contains(offsets.start) {
            true => Origin::Zero,
            false => self.source.pages.find(offsets.start).0,
        };
        let filled = match self.source.mapping(origin) {
            Some((mapping, from)) => sys::copy(self.uffd.as_fd(), to.start, mapping, from..from + bytes),
            None => sys::zero(self.uffd.as_fd(), to),
        }
        .map_err(failed)?;
        match filled {
            Filled::All => self.filled.insert(offsets),
            Filled::Part(bytes) => self.filled.insert(offsets.start..offsets.start + bytes),
            Filled::Exists => self.filled.insert(offsets.start..offsets.start + PAGE),
            Filled::Changing | Filled::Gone => {}
        }
        Ok(filled)
    }

    /// Whether a page was given back at least once.
    pub(crate) fn was_removed(&self, offset: u64) -> bool {
        self.removed.contains(offset)
    }

    /// Notes that the VMM gave memory back. Addresses that are no guest memory are ignored: a VMM may have other memory
    /// under the same userfaultfd.
    pub(crate) fn remove(&mut self, addresses: &Range<u64>) {
        for region in self.regions.iter() {
            let start = addresses.start.max(region.address);
            let end = addresses.end.min(region.address + region.bytes);
            if start < end {
                let offsets = region.offset + (start - region.address)..region.offset + (end - region.address);
                self.removed.insert(offsets.clone());
                self.filled.remove(offsets);
            }
        }
    }
}

/// Why pages could not be filled.
#[derive(Debug, thiserror::Error)]
#[error("cannot fill the {bytes} bytes of memory at {offset:#x}")]
pub struct FillError {
    offset: u64,
    bytes: u64,
    #[source]
    source: io::Error,
}
