//! Giving a VM the pages the one before it touched, before it asks.
//!
//! A thread of its own waits for the disk: it reads the pages into the page cache, and says so. The thread that serves
//! faults copies what was read into the guest, a piece at a time, whenever no fault waits.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rustix::event::EventfdFlags;

use super::memory::{FillError, Memory, Outcome};
use super::source::Source;

/// Touched pages are put in order within groups of this many bytes: processors that touch pages by turns leave a list in
/// which no two neighbours follow each other. Also what is read from disk before it is said that it was.
const GROUP: u64 = 2 << 20;
/// What is copied at a time, in bytes. The most a fault waits for prefetching: below 100 µs at 3 GB/s; smaller pieces
/// take longer in all.
const PIECE: u64 = 256 << 10;

/// Pages to be given, and how far that is.
pub(crate) struct Prefetch {
    groups: Vec<Vec<Range<u64>>>,
    /// How many groups have been read.
    warm: AtomicUsize,
    /// Readable when `warm` has changed.
    progress: OwnedFd,
    stop: AtomicBool,
}

impl Prefetch {
    pub(crate) fn new(touched: Vec<Range<u64>>) -> io::Result<Self> {
        let progress = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let (warm, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
        Ok(Self { groups: grouped(&touched), warm, progress, stop })
    }

    /// Reads everything, in order. Run by the thread that waits for the disk.
    pub(crate) fn warm(&self, source: &Source) {
        for (index, group) in self.groups.iter().enumerate() {
            for run in group {
                if self.stop.load(Ordering::Relaxed) {
                    return;
                }
                source.warm(run.clone());
            }
            self.warm.store(index + 1, Ordering::Release);
            // Cannot fail but by a count of 2^64 that nobody read.
            let _ = rustix::io::write(&self.progress, &1u64.to_ne_bytes());
        }
    }

    /// Ends [`Prefetch::warm`] before its next read.
    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// The serving thread's place in a [`Prefetch`].
pub(crate) struct Cursor<'a> {
    prefetch: &'a Prefetch,
    group: usize,
    run: usize,
    /// Bytes of the run that are done.
    done: u64,
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(prefetch: &'a Prefetch) -> Self {
        Self { prefetch, group: 0, run: 0, done: 0 }
    }

    /// Whether there is something that was read and not given yet.
    pub(crate) fn is_ready(&self) -> bool {
        self.group < self.prefetch.warm.load(Ordering::Acquire)
    }

    /// What to wait on until there is more to give.
    pub(crate) fn progress(&self) -> BorrowedFd<'_> {
        self.prefetch.progress.as_fd()
    }

    /// Resets what `progress` says.
    pub(crate) fn noticed(&self) {
        let mut count = [0; 8];
        // Whatever it says: nothing there is fine.
        let _ = rustix::io::read(&self.prefetch.progress, &mut count);
    }

    /// Gives the next piece.
    pub(crate) fn step(&mut self, memory: &mut Memory<'_>) -> Result<Outcome, FillError> {
        let mut left = PIECE;
        let mut given = 0;
        // Short runs are many; one look for faults every few of them is enough.
        while left > 0 && self.is_ready() {
            let group = &self.prefetch.groups[self.group];
            let Some(run) = group.get(self.run) else {
                (self.group, self.run, self.done) = (self.group + 1, 0, 0);
                continue;
            };
            let from = run.start + self.done;
            if from >= run.end {
                (self.run, self.done) = (self.run + 1, 0);
                continue;
            }
            let (next, outcome) = memory.prefetch(from..run.end, left)?;
            self.done = next - run.start;
            match outcome {
                Outcome::Filled(bytes) => given += bytes,
                Outcome::Later | Outcome::Gone => return Ok(outcome),
            }
            left = left.saturating_sub((next - from).max(MIN_COST));
        }
        Ok(Outcome::Filled(given))
    }
}

/// What even the smallest run counts as, in bytes: a system call takes as long as copying some pages.
const MIN_COST: u64 = 16 << 10;

/// Cuts runs into groups of about [`GROUP`] bytes, each in order of memory, neighbours and overlaps joined.
fn grouped(touched: &[Range<u64>]) -> Vec<Vec<Range<u64>>> {
    let mut groups = Vec::new();
    let mut group: Vec<Range<u64>> = Vec::new();
    let mut bytes = 0;
    for run in touched {
        let mut start = run.start;
        while start < run.end {
            let end = run.end.min(start + (GROUP - bytes));
            group.push(start..end);
            bytes += end - start;
            start = end;
            if bytes == GROUP {
                groups.push(joined(std::mem::take(&mut group)));
                bytes = 0;
            }
        }
    }
    if !group.is_empty() {
        groups.push(joined(group));
    }
    groups
}

fn joined(mut runs: Vec<Range<u64>>) -> Vec<Range<u64>> {
    runs.sort_unstable_by_key(|run| run.start);
    runs.dedup_by(|next, run| {
        let joins = next.start <= run.end;
        if joins {
            run.end = run.end.max(next.end);
        }
        joins
    });
    runs.shrink_to_fit();
    runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::PAGE;

    #[test]
    fn what_processors_touched_by_turns_is_joined() {
        let touched: Vec<_> =
            (0..8).map(|turn| (turn % 2) * 100 + turn / 2).map(|p| p * PAGE..(p + 1) * PAGE).collect();
        assert_eq!(grouped(&touched), [[0..4 * PAGE, 100 * PAGE..104 * PAGE]]);
    }

    #[test]
    fn long_runs_are_cut_and_early_ones_stay_early() {
        let touched = [50 * GROUP..52 * GROUP + PAGE, 0..PAGE];
        let groups = grouped(&touched);
        assert_eq!(groups[0], std::slice::from_ref(&(50 * GROUP..51 * GROUP)));
        assert_eq!(groups[1], std::slice::from_ref(&(51 * GROUP..52 * GROUP)));
        assert_eq!(groups[2], [0..PAGE, 52 * GROUP..52 * GROUP + PAGE]);
        assert!(grouped(&[]).is_empty());
    }
}
