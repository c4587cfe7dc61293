//! Writing a layer.

use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::Path;

use crate::durable::{Pending, WriteError};
use crate::format::{BUFFER, HEADER, Header, MAX_RUNS, PAGE, Run, memory_size_ok, run_ok};
use crate::sys;

/// What a layer came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LayerStats {
    /// Runs in its table.
    pub runs: u64,
    /// Pages it is about.
    pub pages: u64,
    /// Those of them that are all zero and take no room.
    pub zero_pages: u64,
    /// Size of the file in bytes.
    pub file_bytes: u64,
}

/// Writes the pages `runs` of a memory of `memory_bytes` bytes to `path`, durably. `read` copies memory at an
/// offset; it is called with whole pages, at most 1 MiB at a time, each page once. The runs must be whole pages
/// of 4096 bytes, in order, not overlapping. On error nothing is left behind.
pub fn write_layer(
    path: &Path,
    memory_bytes: u64,
    runs: &[Range<u64>],
    read: &mut dyn FnMut(u64, &mut [u8]) -> io::Result<()>,
) -> Result<LayerStats, WriteError> {
    check(path, memory_bytes, runs)?;
    let failed = |e| WriteError::at("write", path, e);
    let mut pending = Pending::create(path)?;
    let mut early = EarlyWriteback { file: pending.file.try_clone().map_err(failed)?, written: 0, begun: 0 };
    let mut out = BufWriter::with_capacity(BUFFER, &mut pending.file);
    // Room for the header, which is only known at the end.
    out.write_all(&[0; HEADER]).map_err(failed)?;

    let mut table = Table::default();
    let mut stats = LayerStats::default();
    let mut data_crc = 0;
    let mut buffer = vec![0; BUFFER];
    for run in runs {
        let mut at = run.start;
        while at < run.end {
            let length = (run.end - at).min(BUFFER as u64);
            let chunk = &mut buffer[..length as usize];
            read(at, chunk).map_err(|source| WriteError::Source {
                path: path.to_owned(),
                offset: at,
                length,
                source,
            })?;
            for (zero, pages) in alternating(chunk) {
                let start = at + pages.start as u64;
                table.add(start..at + pages.end as u64, zero);
                let count = pages.len() as u64 / PAGE;
                stats.pages += count;
                if zero {
                    stats.zero_pages += count;
                } else {
                    data_crc = crc32c::crc32c_append(data_crc, &chunk[pages.clone()]);
                    early.written += pages.len() as u64;
                    out.write_all(&chunk[pages]).map_err(failed)?;
                }
            }
            at += length;
            early.go_on();
        }
    }

    stats.runs = table.0.len() as u64;
    if stats.runs > MAX_RUNS {
        return Err(WriteError::TooManyRuns { path: path.to_owned(), runs: stats.runs });
    }
    let mut table_crc = 0;
    for run in &table.0 {
        let entry = run.to_bytes();
        table_crc = crc32c::crc32c_append(table_crc, &entry);
        out.write_all(&entry).map_err(failed)?;
    }
    stats.file_bytes = out.stream_position().map_err(failed)?;
    let header = Header { memory_bytes, runs: stats.runs, table_crc, data_crc };
    out.seek(SeekFrom::Start(0)).map_err(failed)?;
    out.write_all(&header.to_bytes()).map_err(failed)?;
    out.flush().map_err(failed)?;
    drop(out);
    pending.commit()?;
    Ok(stats)
}

fn check(path: &Path, memory_bytes: u64, runs: &[Range<u64>]) -> Result<(), WriteError> {
    if !memory_size_ok(memory_bytes) {
        return Err(WriteError::MemorySize { path: path.to_owned(), memory_bytes });
    }
    let mut previous_end = 0;
    for (index, run) in runs.iter().enumerate() {
        if !run_ok(run, previous_end, memory_bytes) {
            return Err(WriteError::Runs {
                path: path.to_owned(),
                index,
                start: run.start,
                end: run.end,
                memory_bytes,
            });
        }
        previous_end = run.end;
    }
    Ok(())
}

/// Has the disk begin while the rest is still being read, so that the sync at the end finds little left to do.
struct EarlyWriteback {
    file: File,
    written: u64,
    begun: u64,
}

impl EarlyWriteback {
    /// Enough for a disk to be written to at its speed.
    const STEP: u64 = 8 << 20;

    fn go_on(&mut self) {
        if self.written - self.begun >= Self::STEP {
            // What cannot be begun early is done by the sync, which says what is wrong.
            let _ = sys::begin_writeback(&self.file, self.begun..self.written);
            self.begun = self.written;
        }
    }
}

/// The runs of a file, neighbours of one kind joined.
#[derive(Default)]
struct Table(Vec<Run>);

impl Table {
    fn add(&mut self, range: Range<u64>, zero: bool) {
        match self.0.last_mut() {
            Some(last) if last.range.end == range.start && last.zero == zero => {
                last.range.end = range.end;
            }
            _ => self.0.push(Run { range, zero }),
        }
    }
}

/// Whole pages cut into stretches of zero and other pages, as byte ranges.
fn alternating(chunk: &[u8]) -> impl Iterator<Item = (bool, Range<usize>)> {
    const PAGE_LENGTH: usize = PAGE as usize;
    const ZEROES: [u8; PAGE_LENGTH] = [0; PAGE_LENGTH];
    let is_zero = |page: &[u8]| *page == ZEROES[..page.len()];
    let mut at = 0;
    std::iter::from_fn(move || {
        let rest = chunk.get(at..).filter(|rest| !rest.is_empty())?;
        let mut pages = rest.chunks(PAGE_LENGTH).map(is_zero);
        let zero = pages.next()?;
        let count = 1 + pages.take_while(|&other| other == zero).count();
        let start = at;
        at += count * PAGE_LENGTH;
        Some((zero, start..at))
    })
}
