//! The pages a VM touched, in the order it first did: what the next one is given before it asks.
//!
//! All numbers little-endian:
//!
//! ```text
//! 0    8   magic "PLTOUCH\n"
//! 8    4   version, 1
//! 12   4   page size
//! 16   8   memory size in bytes
//! 24   8   number of runs
//! 32   4   crc32c of the runs
//! 36   4   crc32c of bytes 0..36
//! 40       per run 8 bytes offset in memory, 8 bytes length; the file ends with the last
//! ```
//!
//! It is a hint and not part of a snapshot: whoever cannot read it does without, so it is not written durably, and the
//! checksums tell a file that was never finished.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use crate::format::{PAGE, run_ok};

const MAGIC: &[u8; 8] = b"PLTOUCH\n";
const VERSION: u32 = 1;
const HEADER: usize = 40;
const ENTRY: usize = 16;
/// The most runs: a GiB of pages none of which follows another, 4 MiB of file.
pub const MAX_TOUCHED_RUNS: usize = 1 << 18;

/// Pages in the order of their first touch. Beyond [`MAX_TOUCHED_RUNS`] nothing is taken in: the first are the ones
/// that matter.
#[derive(Debug, Default)]
pub(crate) struct Touched(Vec<Range<u64>>);

impl Touched {
    pub(crate) fn add(&mut self, offset: u64) {
        let full = self.0.len() == MAX_TOUCHED_RUNS;
        match self.0.last_mut() {
            Some(last) if last.end == offset => last.end += PAGE,
            _ if full => {}
            _ => self.0.push(offset..offset + PAGE),
        }
    }

    pub(crate) fn runs(&self) -> &[Range<u64>] {
        &self.0
    }
}

/// Replaces a file's content with these runs of whole pages of 4096 bytes, given in bytes, of a memory of
/// `memory_bytes` bytes. Not durable.
pub fn write_touched(file: &File, memory_bytes: u64, runs: &[Range<u64>]) -> Result<(), TouchedError> {
    if runs.len() > MAX_TOUCHED_RUNS {
        return Err(TouchedError::Count { runs: runs.len() as u64 });
    }
    let mut bytes = vec![0; HEADER + runs.len() * ENTRY];
    let (header, entries) = bytes.split_at_mut(HEADER);
    for (index, (run, entry)) in runs.iter().zip(entries.as_chunks_mut::<ENTRY>().0).enumerate() {
        check(index, run, memory_bytes)?;
        entry[..8].copy_from_slice(&run.start.to_le_bytes());
        entry[8..].copy_from_slice(&(run.end - run.start).to_le_bytes());
    }
    header[..8].copy_from_slice(MAGIC);
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    header[12..16].copy_from_slice(&(PAGE as u32).to_le_bytes());
    header[16..24].copy_from_slice(&memory_bytes.to_le_bytes());
    header[24..32].copy_from_slice(&(runs.len() as u64).to_le_bytes());
    header[32..36].copy_from_slice(&crc32c::crc32c(entries).to_le_bytes());
    let crc = crc32c::crc32c(&header[..36]);
    header[36..].copy_from_slice(&crc.to_le_bytes());
    file.set_len(0).and_then(|()| file.write_all_at(&bytes, 0)).map_err(TouchedError::Write)
}

/// Reads what [`write_touched`] wrote about a memory of this size.
pub fn read_touched(file: &File, memory_bytes: u64) -> Result<Vec<Range<u64>>, TouchedError> {
    let found = file.metadata().map_err(TouchedError::Read)?.len();
    let mut header = [0; HEADER];
    file.read_exact_at(&mut header, 0).map_err(TouchedError::Read)?;
    let u32_at = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("4 bytes"));
    let u64_at = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().expect("8 bytes"));
    if header[..8] != *MAGIC {
        return Err(TouchedError::NotOne);
    }
    if u32_at(36) != crc32c::crc32c(&header[..36]) {
        return Err(TouchedError::Damaged { what: "its header" });
    }
    if u32_at(8) != VERSION {
        return Err(TouchedError::Version { version: u32_at(8) });
    }
    if u64::from(u32_at(12)) != PAGE || u64_at(16) != memory_bytes {
        return Err(TouchedError::OtherMemory { expected: memory_bytes, found: u64_at(16), page: u32_at(12) });
    }
    let runs = u64_at(24);
    if runs > MAX_TOUCHED_RUNS as u64 {
        return Err(TouchedError::Count { runs });
    }
    if found != HEADER as u64 + runs * ENTRY as u64 {
        return Err(TouchedError::Damaged { what: "its length" });
    }
    let mut bytes = vec![0; runs as usize * ENTRY];
    file.read_exact_at(&mut bytes, HEADER as u64).map_err(TouchedError::Read)?;
    if crc32c::crc32c(&bytes) != u32_at(32) {
        return Err(TouchedError::Damaged { what: "its list" });
    }
    let run_of = |(index, entry): (usize, &[u8; ENTRY])| {
        let number = |at: usize| u64::from_le_bytes(entry[at..at + 8].try_into().expect("8 bytes"));
        // An end beyond all numbers becomes an empty run, which is refused.
        let run = number(0)..number(0).checked_add(number(8)).unwrap_or(0);
        check(index, &run, memory_bytes).map(|()| run)
    };
    bytes.as_chunks::<ENTRY>().0.iter().enumerate().map(run_of).collect()
}

fn check(index: usize, run: &Range<u64>, memory_bytes: u64) -> Result<(), TouchedError> {
    if run_ok(run, 0, memory_bytes) {
        return Ok(());
    }
    Err(TouchedError::Run { index, start: run.start, end: run.end, memory_bytes })
}

/// Why a list of touched pages was not written or read.
#[derive(Debug, thiserror::Error)]
pub enum TouchedError {
    /// It could not be written.
    #[error("cannot write the list of touched pages")]
    Write(#[source] io::Error),
    /// It could not be read.
    #[error("cannot read the list of touched pages")]
    Read(#[source] io::Error),
    /// The file is something else.
    #[error("the file is no list of touched pages")]
    NotOne,
    /// The file was written by another version of this program.
    #[error("the list of touched pages has version {version}, which is not known")]
    Version {
        /// Its version.
        version: u32,
    },
    /// The file is not what was written.
    #[error("the list of touched pages is damaged: {what} is not what it should be")]
    Damaged {
        /// What is wrong.
        what: &'static str,
    },
    /// The list is about another memory.
    #[error("the list of touched pages is of {found} bytes in pages of {page}, not of {expected} in pages of {PAGE}")]
    OtherMemory {
        /// The size of the memory in bytes.
        expected: u64,
        /// The size the list is about, in bytes.
        found: u64,
        /// Its page size in bytes.
        page: u32,
    },
    /// There are more runs than can be.
    #[error("{runs} runs of touched pages are more than {MAX_TOUCHED_RUNS}")]
    Count {
        /// How many.
        runs: u64,
    },
    /// A run is not of whole pages within the memory.
    #[error("run {index} of touched pages is {start:#x}..{end:#x}: not whole pages within {memory_bytes} bytes")]
    Run {
        /// Which run.
        index: usize,
        /// Its first byte.
        start: u64,
        /// The byte after its last.
        end: u64,
        /// The size of the memory in bytes.
        memory_bytes: u64,
    },
}
