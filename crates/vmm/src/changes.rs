//! The pages a guest changed, from wherever its driver has them.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::memory::GuestMemory;

/// Pages that are not the memory file's any more: offsets in it, and what is there instead. To be read while the guest
/// stands still.
#[derive(Debug)]
pub struct Changes {
    runs: Vec<Range<u64>>,
    source: Source,
    earlier: Option<PathBuf>,
}

#[derive(Debug)]
enum Source {
    /// The VMM's own memory.
    Process(GuestMemory),
    /// A file with holes where nothing changed.
    File(File),
}

impl Changes {
    pub(crate) fn of_process(memory: GuestMemory, runs: Vec<Range<u64>>) -> Self {
        Self { runs, source: Source::Process(memory), earlier: None }
    }

    /// What is not a hole in this file changed, widened to pages of this size; `earlier` has what had changed before.
    pub fn of_file(file: File, page: u64, earlier: Option<PathBuf>) -> io::Result<Self> {
        let runs = data_in(&file, page)?;
        Ok(Self { runs, source: Source::File(file), earlier })
    }

    /// Page aligned, in order, neighbours joined.
    pub fn runs(&self) -> &[Range<u64>] {
        &self.runs
    }

    /// How many bytes they are.
    pub fn bytes(&self) -> u64 {
        self.runs.iter().map(|run| run.end - run.start).sum()
    }

    /// Copies what is at `offset`, within one run, into `buffer`.
    pub fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        match &self.source {
            Source::Process(memory) => memory.read(offset, buffer),
            Source::File(file) => file.read_exact_at(buffer, offset),
        }
    }

    /// The changed pages the machine was restored with, where these are only what changed since: another name of
    /// [`ChangedPages::file`](crate::ChangedPages::file), in the VM's directory.
    pub fn earlier(&self) -> Option<&Path> {
        self.earlier.as_deref()
    }
}

/// The parts of a file that are not holes, widened to pages.
fn data_in(file: &File, page: u64) -> io::Result<Vec<Range<u64>>> {
    use rustix::fs::{SeekFrom, seek};
    use rustix::io::Errno;

    let mut runs: Vec<Range<u64>> = Vec::new();
    let mut at = 0;
    loop {
        let start = match seek(file, SeekFrom::Data(at)) {
            Ok(start) => start,
            // No data after this.
            Err(Errno::NXIO) => return Ok(runs),
            Err(error) => return Err(error.into()),
        };
        at = seek(file, SeekFrom::Hole(start))?;
        let run = start / page * page..at.next_multiple_of(page);
        match runs.last_mut() {
            Some(last) if last.end >= run.start => last.end = run.end.max(last.end),
            _ => runs.push(run),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_what_changed() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        for page in [3u64, 4, 9, 255] {
            file.write_all_at(&[page as u8; 4096], page * 4096).unwrap();
        }
        let changes = Changes::of_file(file, 4096, None).unwrap();
        assert_eq!(changes.runs(), [3 * 4096..5 * 4096, 9 * 4096..10 * 4096, 255 * 4096..256 * 4096]);
        assert_eq!(changes.bytes(), 4 * 4096);
        let mut byte = [0];
        changes.read(9 * 4096 + 5, &mut byte).unwrap();
        assert_eq!(byte, [9]);
    }
}
