//! The conformance suite: `cargo run --release -p e2e --bin conformance -- [FILTER] [--list] …`.
//!
//! Real clients against the real control, HTTP front, S3 and edge over pretend VMs. It is driven by a table with an entry
//! for each operation ([`entries`]) and by the public service model: an operation that is served without an entry fails,
//! as does an answer the model does not allow. What it finds is the table in docs/compatibility.md ([`document`]).

#![forbid(unsafe_code)]

mod builds;
mod checks;
mod clients;
mod document;
mod entries;
mod ground;
mod rust_sdk;
mod s3;
mod states;

use std::process::ExitCode;

use e2e::sweep;
use libtest_mimic::{Arguments, Failed, Trial};

use ground::Ground;

/// One test.
type Test = (&'static str, fn(&Ground) -> anyhow::Result<()>);

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Tests share one server and spend their time waiting for it; the clients are processes of their own.
    arguments.test_threads.get_or_insert(2);
    if let Err(error) = sweep::on_interrupt() {
        eprintln!("conformance: {error:#}");
        return ExitCode::FAILURE;
    }
    let named = [checks::TESTS, states::TESTS, builds::TESTS, clients::TESTS, s3::TESTS, document::TESTS];
    let mut trials: Vec<_> = named.into_iter().flatten().map(|(name, test)| trial((*name).to_owned(), *test)).collect();
    for entry in entries::entries() {
        for (what, check) in checks::PER_OPERATION {
            trials.push(trial(format!("{}::{what}", entry.name), move |ground| check(ground, entry)));
        }
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    sweep::everything();
    conclusion.exit_code()
}

fn trial(name: String, test: impl Fn(&Ground) -> anyhow::Result<()> + Send + 'static) -> Trial {
    Trial::test(name, move || {
        let ground = Ground::get().map_err(|error| Failed::from(format!("there is no server: {error}")))?;
        test(ground)
            .map_err(|error| format!("{error:?}\n\nthe server said last:\n{}", ground.front.server.log_tail()).into())
    })
}
