//! The end-to-end tests: `cargo run --release -p e2e -- [FILTER] [--list] …`, arguments as of any Rust test program.

#![forbid(unsafe_code)]

mod suite;

use std::process::ExitCode;

use e2e::{image::Source, sweep};

fn main() -> ExitCode {
    let mut arguments = libtest_mimic::Arguments::from_args();
    // One server, one machine of two processors: tests that share them would only measure each other.
    arguments.test_threads = Some(1);
    if let Err(error) = sweep::on_interrupt() {
        eprintln!("e2e: {error:#}");
        return ExitCode::FAILURE;
    }
    let conclusion = libtest_mimic::run(&arguments, suite::trials());
    suite::strike();
    sweep::everything();
    conclusion.exit_code()
}

/// The example's app with doors for the tests.
fn source() -> anyhow::Result<Source> {
    let example = Source::example("flask-counter")?;
    let dockerfile = example.text("Dockerfile").unwrap_or_default();
    // The last CMD counts; ENTRYPOINT is emptied with it.
    let dockerfile = format!("{dockerfile}\nCOPY probe.py ./\nENTRYPOINT []\nCMD [\"python3\", \"probe.py\"]\n");
    let probe = include_bytes!("../probe/probe.py");
    Ok(example.with("Dockerfile", dockerfile.as_bytes()).with("probe.py", probe))
}
