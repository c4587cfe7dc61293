//! Chores of this repository. `cargo run --release -p xtask -- check` is the border check.

#![forbid(unsafe_code)]

mod check;
mod edges;
mod source;
mod strip;
mod workspace;

use std::process::ExitCode;

use anyhow::Context;

fn main() -> ExitCode {
    let verbs: Vec<String> = std::env::args().skip(1).collect();
    let done = match verbs.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["check"] => check(),
        _ => Err(anyhow::anyhow!("usage: cargo run --release -p xtask -- check")),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn check() -> anyhow::Result<bool> {
    let workspace = workspace::read().context("reading the workspace")?;
    let violations = check::all(&workspace);
    for violation in &violations {
        eprintln!("{violation}\n");
    }
    match violations.len() {
        0 => println!(
            "borders hold: {} crates, {} source files, {} rules",
            workspace.crates.len(),
            workspace.files.len(),
            check::RULES.len()
        ),
        count => eprintln!("{count} violations of the borders"),
    }
    Ok(violations.is_empty())
}
