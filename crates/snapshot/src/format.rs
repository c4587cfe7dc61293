//! The layout of a layer file, all numbers little-endian.
//!
//! ```text
//! 0    8   magic "PLLAYER\n"
//! 8    4   version, 1
//! 12   4   page size
//! 16   8   memory size in bytes
//! 24   8   number of runs
//! 32   4   crc32c of the run table
//! 36   4   crc32c of the page data
//! 40   4   reserved, 0
//! 44   4   crc32c of bytes 0..44
//! 48       page data: the runs that are not zeroes, one after the other
//! ..       run table: per run 8 bytes offset in memory, 8 bytes length with bit 0 set for a run of zeroes;
//!          the file ends with it
//! ```

use std::ops::Range;

pub(crate) const MAGIC: [u8; 8] = *b"PLLAYER\n";
pub(crate) const VERSION: u32 = 1;
pub(crate) const HEADER: usize = 48;
/// Bytes of a run in the table.
pub(crate) const ENTRY: usize = 16;
/// The page size of every layer written. Lengths are multiples of it, which leaves bit 0 for a mark.
pub(crate) const PAGE: u64 = 4096;
/// The largest memory a layer is about: 16 TiB.
pub(crate) const MAX_MEMORY: u64 = 1 << 44;
/// The most runs read: every second page of 64 GiB. Bounds the table in memory to 128 MiB.
pub(crate) const MAX_RUNS: u64 = 8 << 20;
/// How much is read, checked and handed on at a time.
pub(crate) const BUFFER: usize = 1 << 20;

/// The fixed part of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) memory_bytes: u64,
    pub(crate) runs: u64,
    pub(crate) table_crc: u32,
    pub(crate) data_crc: u32,
}

/// Why a header is not one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HeaderFault {
    Magic,
    Checksum,
    Version(u32),
    PageSize(u32),
    MemorySize(u64),
    RunCount(u64),
}

impl Header {
    pub(crate) fn to_bytes(self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[0..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&(PAGE as u32).to_le_bytes());
        bytes[16..24].copy_from_slice(&self.memory_bytes.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.runs.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.table_crc.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.data_crc.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..44]);
        bytes[44..48].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    pub(crate) fn parse(bytes: &[u8; HEADER]) -> Result<Self, HeaderFault> {
        if bytes[0..8] != MAGIC {
            return Err(HeaderFault::Magic);
        }
        if u32_at(bytes, 44) != crc32c::crc32c(&bytes[..44]) {
            return Err(HeaderFault::Checksum);
        }
        let version = u32_at(bytes, 8);
        if version != VERSION {
            return Err(HeaderFault::Version(version));
        }
        let page = u32_at(bytes, 12);
        if u64::from(page) != PAGE {
            return Err(HeaderFault::PageSize(page));
        }
        let header = Self {
            memory_bytes: u64_at(bytes, 16),
            runs: u64_at(bytes, 24),
            table_crc: u32_at(bytes, 32),
            data_crc: u32_at(bytes, 36),
        };
        if !memory_size_ok(header.memory_bytes) {
            return Err(HeaderFault::MemorySize(header.memory_bytes));
        }
        if header.runs > MAX_RUNS.min(header.memory_bytes / PAGE) {
            return Err(HeaderFault::RunCount(header.runs));
        }
        Ok(header)
    }
}

/// Whether a memory of this size can have a layer.
pub(crate) fn memory_size_ok(bytes: u64) -> bool {
    bytes.is_multiple_of(PAGE) && bytes <= MAX_MEMORY
}

/// Whether a run is of whole pages, not empty, within the memory and after `previous_end`.
pub(crate) fn run_ok(run: &Range<u64>, previous_end: u64, memory_bytes: u64) -> bool {
    run.start < run.end
        && run.start >= previous_end
        && run.end <= memory_bytes
        && run.start.is_multiple_of(PAGE)
        && run.end.is_multiple_of(PAGE)
}

/// What these cover: in order, neighbours joined.
pub(crate) fn joined(mut parts: Vec<Range<u64>>) -> Vec<Range<u64>> {
    parts.sort_by_key(|part| part.start);
    let mut runs: Vec<Range<u64>> = Vec::with_capacity(parts.len());
    for part in parts {
        match runs.last_mut() {
            Some(last) if last.end >= part.start => last.end = last.end.max(part.end),
            _ => runs.push(part),
        }
    }
    runs
}

/// A run and whether it is of zeroes, which have no page data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) range: Range<u64>,
    pub(crate) zero: bool,
}

impl Run {
    pub(crate) fn to_bytes(&self) -> [u8; ENTRY] {
        let length = (self.range.end - self.range.start) | u64::from(self.zero);
        let mut bytes = [0; ENTRY];
        bytes[..8].copy_from_slice(&self.range.start.to_le_bytes());
        bytes[8..].copy_from_slice(&length.to_le_bytes());
        bytes
    }

    /// `None` if the end is beyond what a number can hold; nothing else is checked.
    pub(crate) fn parse(bytes: &[u8; ENTRY]) -> Option<Self> {
        let start = u64_at(bytes, 0);
        let length = u64_at(bytes, 8);
        Some(Self { range: start..start.checked_add(length & !1)?, zero: length & 1 == 1 })
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("a slice of 4 bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("a slice of 8 bytes"))
}
