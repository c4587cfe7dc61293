//! The command with armed failpoints, for the fault test. Never shipped.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    pilotlight::command()
}
