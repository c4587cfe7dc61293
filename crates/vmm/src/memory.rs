//! The memory of a running or paused guest, as offsets in its memory file.
//!
//! Everything goes through `/proc/<pid>/mem` and `/proc/<pid>/pagemap`, opened while the process is known to be
//! the right one: an open descriptor stays with that process's address space, so a reused pid is never touched.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::process::Identity;
use crate::procfs::{self, Mapping};

/// Bytes of `pagemap` per page.
const ENTRY: u64 = 8;
/// Entries of `pagemap` read at once: 1 MiB.
const CHUNK_ENTRIES: u64 = 128 * 1024;

const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const FILE_BACKED: u64 = 1 << 61;

/// A guest's memory, mapped copy-on-write over its base file.
///
/// Offsets are offsets in the memory file. Reads and scans are only meaningful while the guest is paused.
/// All calls block for as long as the copy takes.
#[derive(Debug)]
pub struct GuestMemory {
    pid: u32,
    memory: File,
    pagemap: File,
    /// Where the file is mapped: in order, without gaps, from offset 0.
    segments: Vec<Segment>,
    bytes: u64,
    page: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Segment {
    offset: u64,
    address: u64,
    length: u64,
}

impl GuestMemory {
    /// Opens the memory of a process, which maps `path`, of `bytes` bytes.
    pub(crate) fn open(process: &Identity, path: &Path, bytes: u64) -> Result<Self, MemoryError> {
        let pid = process.pid;
        let open = |source| MemoryError::Open { pid, source };
        let memory = File::options().read(true).write(true).open(format!("/proc/{pid}/mem")).map_err(open)?;
        let pagemap = File::open(format!("/proc/{pid}/pagemap")).map_err(open)?;
        let mappings = procfs::mappings(pid).map_err(open)?;
        // After the opens: had the pid changed hands before them, this would show it.
        if procfs::start_time(pid).map_err(open)? != Some(process.start_time) {
            return Err(MemoryError::Gone { pid });
        }
        let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let inode = fs::metadata(&path).map_or(0, |metadata| metadata.ino());
        let segments = segments(&mappings, &path, inode, bytes).ok_or(MemoryError::Unmapped { pid, path })?;
        Ok(Self { pid, memory, pagemap, segments, bytes, page: rustix::param::page_size() as u64 })
    }

    /// Size of the guest's memory in bytes.
    pub fn size(&self) -> u64 {
        self.bytes
    }

    /// The pages that differ from the memory file because the guest, or [`GuestMemory::write`], wrote them: page
    /// aligned, in order, neighbours joined.
    ///
    /// Read from `pagemap`, 8 bytes a page: some milliseconds for a guest of 2 GiB. The `PAGEMAP_SCAN` call is a little
    /// faster, but Linux 6.18 was seen to answer with overlapping runs, and a page missed is a session lost.
    pub fn dirty(&self) -> Result<Vec<Range<u64>>, MemoryError> {
        self.pages(|entry| entry & (PRESENT | SWAPPED) != 0 && entry & FILE_BACKED == 0)
    }

    /// The pages that are mapped, changed or not: what the guest and its VMM have looked at, and a few neighbours of that
    /// which the kernel mapped along. In the form of [`GuestMemory::dirty`].
    pub fn touched(&self) -> Result<Vec<Range<u64>>, MemoryError> {
        self.pages(|entry| entry & (PRESENT | SWAPPED) != 0)
    }

    fn pages(&self, wanted: impl Fn(u64) -> bool) -> Result<Vec<Range<u64>>, MemoryError> {
        self.read_pagemap(wanted).map_err(|source| MemoryError::Scan { pid: self.pid, source })
    }

    fn read_pagemap(&self, wanted: impl Fn(u64) -> bool) -> io::Result<Vec<Range<u64>>> {
        let mut buffer = vec![0; (CHUNK_ENTRIES * ENTRY) as usize];
        let mut runs = Runs::default();
        for segment in &self.segments {
            let pages = segment.length / self.page;
            let mut at = 0;
            while at < pages {
                let count = CHUNK_ENTRIES.min(pages - at);
                let chunk = &mut buffer[..(count * ENTRY) as usize];
                self.pagemap.read_exact_at(chunk, (segment.address / self.page + at) * ENTRY)?;
                for (index, entry) in (at..).zip(chunk.as_chunks::<{ ENTRY as usize }>().0) {
                    let entry = u64::from_ne_bytes(*entry);
                    if wanted(entry) {
                        let start = segment.offset + index * self.page;
                        runs.add(start..start + self.page);
                    }
                }
                at += count;
            }
        }
        Ok(runs.0)
    }

    /// Copies guest memory at `offset` into `buffer`.
    pub fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.each_part(offset, buffer.len(), |address, part| self.memory.read_exact_at(&mut buffer[part], address))
    }

    /// Copies `data` into guest memory at `offset`. The pages become the process's own; the memory file does not
    /// change.
    pub fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.each_part(offset, data.len(), |address, part| self.memory.write_all_at(&data[part], address))
    }

    fn each_part(
        &self,
        offset: u64,
        length: usize,
        mut copy: impl FnMut(u64, Range<usize>) -> io::Result<()>,
    ) -> io::Result<()> {
        let end = offset.checked_add(length as u64).filter(|&end| end <= self.bytes);
        let Some(end) = end else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{length} bytes at {offset:#x} are outside of {} bytes of guest memory", self.bytes),
            ));
        };
        for segment in &self.segments {
            let from = offset.max(segment.offset);
            let to = end.min(segment.offset + segment.length);
            if from < to {
                copy(segment.address + (from - segment.offset), (from - offset) as usize..(to - offset) as usize)?;
            }
        }
        Ok(())
    }
}

/// Ranges in ascending order, neighbours joined.
#[derive(Default)]
struct Runs(Vec<Range<u64>>);

impl Runs {
    fn add(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        match self.0.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => self.0.push(range),
        }
    }
}

/// Where a process maps a file: by path, or by inode where the path in `maps` is not the one we know (a bind
/// mount, an overlay, another root). `None` unless the whole file is mapped exactly once.
fn segments(mappings: &[Mapping], path: &Path, inode: u64, bytes: u64) -> Option<Vec<Segment>> {
    let cover = |matches: &dyn Fn(&Mapping) -> bool| {
        let mut segments: Vec<Segment> = mappings
            .iter()
            .filter(|mapping| matches(mapping))
            .filter_map(|mapping| {
                Some(Segment {
                    offset: mapping.offset,
                    address: mapping.start,
                    length: mapping.end.checked_sub(mapping.start)?,
                })
            })
            .collect();
        segments.sort_by_key(|segment| segment.offset);
        let covered = segments.iter().try_fold(0, |at, segment| (segment.offset == at).then(|| at + segment.length));
        (covered == Some(bytes)).then_some(segments)
    };
    cover(&|mapping| mapping.path == path).or_else(|| cover(&|mapping| inode != 0 && mapping.inode == inode))
}

/// Why guest memory could not be reached or scanned.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The process's memory could not be opened.
    #[error("cannot open the memory of process {pid}")]
    Open {
        /// The VM's process.
        pid: u32,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The process ended.
    #[error("process {pid} is gone")]
    Gone {
        /// The VM's process.
        pid: u32,
    },
    /// The process does not map its memory file, or not all of it.
    #[error("process {pid} does not map the whole of {}", path.display())]
    Unmapped {
        /// The VM's process.
        pid: u32,
        /// The memory file.
        path: PathBuf,
    },
    /// The guest's memory is the file itself: it has no pages of its own.
    #[error("the memory of process {pid} is shared with its file and has no pages of its own")]
    Shared {
        /// The VM's process.
        pid: u32,
    },
    /// The page map could not be read.
    #[error("cannot scan the page map of process {pid}")]
    Scan {
        /// The VM's process.
        pid: u32,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(start: u64, end: u64, offset: u64) -> Mapping {
        Mapping { start, end, offset, inode: 7, path: "/memory".into() }
    }

    #[test]
    fn a_file_mapped_in_parts_is_put_together() {
        let maps = [mapping(0x9000, 0xa000, 0x2000), mapping(0x1000, 0x3000, 0)];
        let found = segments(&maps, Path::new("/memory"), 0, 0x3000).unwrap();
        assert_eq!(found[0].address, 0x1000);
        assert_eq!(found[1].address, 0x9000);
        assert!(segments(&maps, Path::new("/other"), 7, 0x3000).is_some());
    }

    #[test]
    fn gaps_overlaps_and_short_mappings_are_refused() {
        let path = Path::new("/memory");
        let gap = [mapping(0x1000, 0x2000, 0), mapping(0x9000, 0xa000, 0x2000)];
        let twice = [mapping(0x1000, 0x2000, 0), mapping(0x9000, 0xa000, 0)];
        assert_eq!(segments(&gap, path, 0, 0x3000), None);
        assert_eq!(segments(&twice, path, 0, 0x1000), None);
        assert_eq!(segments(&[mapping(0x1000, 0x2000, 0)], path, 0, 0x3000), None);
        assert_eq!(segments(&[], path, 0, 0x3000), None);
    }

    #[test]
    fn neighbouring_runs_are_joined() {
        let mut runs = Runs::default();
        for range in [0..4096, 4096..8192, 8192..8192, 16384..20480] {
            runs.add(range);
        }
        assert_eq!(runs.0, [0..8192, 16384..20480]);
    }
}
