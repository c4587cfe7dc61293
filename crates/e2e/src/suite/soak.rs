//! A short `make soak`.

use anyhow::ensure;
use e2e::{Stage, soak};

use super::{Test, images::remove};

pub const TESTS: &[Test] = &[("soak::nothing_is_lost_in_many_suspends_and_wakes", short)];

/// Enough for each of the files to be written once in a cycle and read in later ones, and for memory to change all over.
const CYCLES: usize = 20;

fn short(stage: &mut Stage) -> anyhow::Result<()> {
    let image = soak::build(stage)?;
    let outcome = soak::run(stage, &image, CYCLES, |_| {})?;
    ensure!(outcome.cycles == CYCLES && outcome.failures.is_empty(), "{outcome:#?}");
    stage.no_orphans()?;
    remove(stage, &image)
}
