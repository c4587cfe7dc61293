//! Real binaries, real VMs, real clients: what the tests and the benchmarks share.
//!
//! A [`Stage`] is one `pilotlight serve` on a small disk of its own, an unmodified boto3 beside it ([`aws`]), and one
//! image built at the start. A [`Front`] is one `sim serve` and a boto3: everything before a VM. Everything a stage made is removed when it is dropped, on a panic and on ctrl-C.

#![forbid(unsafe_code)]

pub mod aws;
pub mod bare;
pub mod disk;
pub mod front;
pub mod image;
pub mod machine;
pub mod microvm;
pub mod model;
pub mod outside;
pub mod server;
pub mod soak;
pub mod stage;
pub mod sweep;

pub use aws::{Aws, AwsError, HttpAnswer};
pub use front::Front;
pub use microvm::Microvm;
pub use stage::Stage;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

/// The repository.
#[must_use]
pub fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).map(PathBuf::from).unwrap_or_default()
}

/// Asks until there is an answer, for at most so long; the error of the last try says what was seen instead.
pub fn until<T>(what: &str, patience: Duration, mut ask: impl FnMut() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let begin = Instant::now();
    loop {
        match ask() {
            Ok(answer) => return Ok(answer),
            Err(error) if begin.elapsed() > patience => {
                return Err(error.context(format!("waited {} s for {what}", patience.as_secs())));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}
