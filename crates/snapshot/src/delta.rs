//! What of a guest's memory is not as a layer has it.

use std::io;
use std::ops::Range;

use crate::format::{BUFFER, PAGE, joined};
use crate::layer::{Layer, ReadError};

/// The pages of `runs` that differ from what `ground` has, or that it does not have: page aligned, in order, neighbours
/// joined. `None` if the ground has pages outside of `runs`: what is there now would not be known.
///
/// Found by comparing: a VMM that writes pages back at a resume makes them its own, so that the kernel's marks say nothing
/// about what the guest has written since. `read` copies memory at an offset, at most 1 MiB at a time. All of the ground is
/// verified on the way.
pub fn changed_since(
    ground: &Layer,
    runs: &[Range<u64>],
    read: &mut dyn FnMut(u64, &mut [u8]) -> io::Result<()>,
) -> Result<Option<Vec<Range<u64>>>, ReadError> {
    let known = ground.runs();
    if !covers(runs, &known) {
        return Ok(None);
    }
    let mut changed: Vec<Range<u64>> = runs.iter().flat_map(|run| without(run, &known)).collect();
    let mut now = vec![0; BUFFER];
    ground.visit(&mut |offset, then| {
        let now = &mut now[..then.len()];
        read(offset, now)?;
        if now == then {
            return Ok(());
        }
        let pages = (offset..).step_by(PAGE as usize);
        for (at, (now, then)) in pages.zip(now.chunks(PAGE as usize).zip(then.chunks(PAGE as usize))) {
            if now != then {
                changed.push(at..at + PAGE);
            }
        }
        Ok(())
    })?;
    Ok(Some(joined(changed)))
}

/// Is each of `parts` within one of `runs`? Both are in order, and their neighbours are joined.
fn covers(runs: &[Range<u64>], parts: &[Range<u64>]) -> bool {
    parts.iter().all(|part| {
        let after = runs.partition_point(|run| run.start <= part.start);
        runs[..after].last().is_some_and(|run| part.end <= run.end)
    })
}

/// What of `run` is in none of `parts`.
fn without(run: &Range<u64>, parts: &[Range<u64>]) -> Vec<Range<u64>> {
    let first = parts.partition_point(|part| part.end <= run.start);
    let mut left = Vec::new();
    let mut at = run.start;
    for part in parts[first..].iter().take_while(|part| part.start < run.end) {
        if at < part.start {
            left.push(at..part.start);
        }
        at = part.end;
    }
    if at < run.end {
        left.push(at..run.end);
    }
    left
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{open_layer, write_layer};

    const PAGES: usize = 48;

    fn runs_of(pages: &[u8]) -> Vec<Range<u64>> {
        let there = pages.iter().enumerate().filter(|(_, kind)| **kind > 0);
        joined(there.map(|(index, _)| index as u64 * PAGE..(index as u64 + 1) * PAGE).collect())
    }

    /// Of a page of kind 1 all is zero.
    fn copy(pages: &[u8], offset: u64, buffer: &mut [u8]) {
        for (index, page) in buffer.chunks_mut(PAGE as usize).enumerate() {
            page.fill(pages[(offset / PAGE) as usize + index].saturating_sub(1));
            // One byte may be all the difference.
            page[PAGE as usize - 1] = pages[(offset / PAGE) as usize + index].saturating_sub(1) / 2;
        }
    }

    proptest! {
        #[test]
        fn exactly_what_differs_is_found(
            then in prop::collection::vec(0u8..5, PAGES),
            now in prop::collection::vec(0u8..5, PAGES),
        ) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("layer");
            let mut read = |offset, buffer: &mut [u8]| { copy(&then, offset, buffer); Ok(()) };
            write_layer(&path, PAGES as u64 * PAGE, &runs_of(&then), &mut read).unwrap();
            let ground = open_layer(&path).unwrap();
            let mut read = |offset, buffer: &mut [u8]| { copy(&now, offset, buffer); Ok(()) };
            let found = changed_since(&ground, &runs_of(&now), &mut read).unwrap();
            let gone = then.iter().zip(&now).any(|(then, now)| *then > 0 && *now == 0);
            let differs: Vec<u8> = then.iter().zip(&now).map(|(then, now)| u8::from(then != now)).collect();
            prop_assert_eq!(found, (!gone).then(|| runs_of(&differs)));
        }
    }

    #[test]
    fn a_damaged_ground_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("layer");
        let runs = [0..2 * PAGE, 3 * PAGE..4 * PAGE];
        let mut read = |_, buffer: &mut [u8]| {
            buffer.fill(7);
            Ok(())
        };
        write_layer(&path, 8 * PAGE, &runs, &mut read).unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[100] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let refused = changed_since(&open_layer(&path).unwrap(), &runs, &mut read);
        assert!(matches!(refused, Err(ReadError::Damaged { .. })), "{refused:?}");
    }
}
