//! The pages a guest changed.

use std::io;
use std::ops::Range;

use crate::memory::GuestMemory;

/// Pages that are not the memory file's any more: offsets in it, and what is there instead. To be read while the guest
/// stands still.
#[derive(Debug)]
pub struct Changes {
    memory: GuestMemory,
    runs: Vec<Range<u64>>,
}

impl Changes {
    pub(crate) fn new(memory: GuestMemory, runs: Vec<Range<u64>>) -> Self {
        Self { memory, runs }
    }

    /// Page aligned, in order, neighbours joined.
    pub fn runs(&self) -> &[Range<u64>] {
        &self.runs
    }

    /// How many bytes they are.
    pub fn bytes(&self) -> u64 {
        self.runs.iter().map(|run| run.end - run.start).sum()
    }

    /// Copies what is at `offset` into `buffer`.
    pub fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.memory.read(offset, buffer)
    }
}
