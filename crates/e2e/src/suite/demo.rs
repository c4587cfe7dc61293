//! What `make demo` runs shows what it says, so that the first thing a user tries is tested as everything else is.

use std::process::Command;

use anyhow::ensure;
use e2e::{Stage, aws, repository};

use super::Test;

pub const TESTS: &[Test] = &[("demo::the_demo_shows_what_it_says", demo)];

fn demo(_: &mut Stage) -> anyhow::Result<()> {
    let output = Command::new(aws::python()).arg(repository().join("scripts/demo.py")).env_remove("KEEP").output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{}\n{said}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    ensure!(said.contains("SuspendMicrovm"), "it showed something else:\n{said}");
    Ok(())
}
