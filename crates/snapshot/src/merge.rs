//! Two generations of changed pages as one.

use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use crate::format::{PAGE, joined};
use crate::layer::{Layer, ReadError};

/// The pages of a layer, and newer ones above them.
///
/// For a VMM that knows what changed since a machine was restored: what it was restored with is in `earlier`.
pub struct Merged<'a> {
    earlier: &'a Layer,
    /// Where the earlier pages are in memory, and where in the layer's file; nowhere if they are zeroes.
    pieces: Vec<(Range<u64>, Option<Range<u64>>)>,
    newer: &'a [Range<u64>],
}

impl<'a> Merged<'a> {
    /// Puts `newer`, whole pages in order, above a layer, all of which is verified first.
    pub fn new(earlier: &'a Layer, newer: &'a [Range<u64>]) -> Result<Self, ReadError> {
        earlier.verify()?;
        Ok(Self { earlier, pieces: earlier.pieces().collect(), newer })
    }

    /// Where either has pages: in order, neighbours joined.
    pub fn runs(&self) -> Vec<Range<u64>> {
        joined(self.pieces.iter().map(|(range, _)| range.clone()).chain(self.newer.iter().cloned()).collect())
    }

    /// Copies whole pages at `offset`, within one of the runs: the newer ones through `read_newer`.
    pub fn read(
        &self,
        offset: u64,
        buffer: &mut [u8],
        read_newer: &mut dyn FnMut(u64, &mut [u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        for (index, page) in buffer.chunks_mut(PAGE as usize).enumerate() {
            let at = offset + index as u64 * PAGE;
            if find(self.newer, at, |run| run).is_some() {
                read_newer(at, page)?;
                continue;
            }
            match find(&self.pieces, at, |(run, _)| run) {
                Some((run, Some(data))) => self.earlier.data().0.read_exact_at(page, data.start + (at - run.start))?,
                Some((_, None)) => page.fill(0),
                None => {
                    let what = format!("neither generation has the page at {at:#x}");
                    return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
                }
            }
        }
        Ok(())
    }
}

/// The one of these that is about an offset.
fn find<T>(sorted: &[T], at: u64, range: impl Fn(&T) -> &Range<u64>) -> Option<&T> {
    let after = sorted.partition_point(|item| range(item).start <= at);
    sorted[..after].last().filter(|item| range(item).contains(&at))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{open_layer, write_layer};

    const PAGES: u64 = 64;

    fn runs_of(pages: &[bool]) -> Vec<Range<u64>> {
        let mut runs: Vec<Range<u64>> = Vec::new();
        for (index, _) in pages.iter().enumerate().filter(|(_, there)| **there) {
            let run = index as u64 * PAGE..(index as u64 + 1) * PAGE;
            match runs.last_mut() {
                Some(last) if last.end == run.start => last.end = run.end,
                _ => runs.push(run),
            }
        }
        runs
    }

    /// Every third page of the earlier generation is zero.
    fn fill(generation: u8, offset: u64, buffer: &mut [u8]) {
        for (index, page) in buffer.chunks_mut(PAGE as usize).enumerate() {
            let number = offset / PAGE + index as u64;
            page.fill(if generation == 1 && number.is_multiple_of(3) {
                0
            } else {
                generation * 80 + number as u8 % 64 + 1
            });
        }
    }

    proptest! {
        #[test]
        fn newer_pages_hide_earlier_ones(
            old in prop::collection::vec(any::<bool>(), PAGES as usize),
            new in prop::collection::vec(any::<bool>(), PAGES as usize),
        ) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("layer");
            let (old_runs, newer) = (runs_of(&old), runs_of(&new));
            let mut read = |offset, buffer: &mut [u8]| { fill(1, offset, buffer); Ok(()) };
            write_layer(&path, PAGES * PAGE, &old_runs, &mut read).unwrap();
            let layer = open_layer(&path).unwrap();
            let merged = Merged::new(&layer, &newer).unwrap();
            let either: Vec<_> = old.iter().zip(&new).map(|(a, b)| *a || *b).collect();
            prop_assert_eq!(merged.runs(), runs_of(&either));
            for run in merged.runs() {
                let mut found = vec![0; (run.end - run.start) as usize];
                merged.read(run.start, &mut found, &mut |offset, page| { fill(2, offset, page); Ok(()) }).unwrap();
                for (index, page) in found.chunks(PAGE as usize).enumerate() {
                    let number = run.start / PAGE + index as u64;
                    let mut expected = vec![0; PAGE as usize];
                    fill(if new[number as usize] { 2 } else { 1 }, number * PAGE, &mut expected);
                    prop_assert_eq!(page, &expected[..]);
                }
            }
        }
    }
}
