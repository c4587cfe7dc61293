//! The program that serves a VM's memory. All of it is [`snapshot::pager`].
#![deny(unsafe_code)]

use std::error::Error;
use std::io::Write;
use std::process::ExitCode;

use snapshot::pager::{Arguments, CommandError};

fn main() -> ExitCode {
    let arguments = Arguments::parse(std::env::args_os().skip(1)).map_err(CommandError::from);
    match arguments.and_then(|arguments| arguments.run(|error| complain(error))) {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error);
            ExitCode::FAILURE
        }
    }
}

/// Says what is wrong, with all that led to it, on one line.
fn complain(error: &dyn Error) {
    let mut message = format!("pilotlight-pager: {error}");
    let mut source = error.source();
    while let Some(error) = source {
        message.push_str(&format!(": {error}"));
        source = error.source();
    }
    // With nobody to read it the exit code has to do.
    let _ = writeln!(std::io::stderr(), "{message}");
}
