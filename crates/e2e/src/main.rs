//! The end-to-end tests: `cargo run --release -p e2e -- [FILTER] [--list] …`, arguments as of any Rust test program.

#![forbid(unsafe_code)]

mod suite;

use std::process::ExitCode;

use e2e::sweep;

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
