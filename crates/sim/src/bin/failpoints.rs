//! The command with armed failpoints: a daemon in a history dies at named steps too. Never shipped.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    sim::command()
}
