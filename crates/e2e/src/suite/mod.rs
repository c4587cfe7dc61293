//! The tests, and the one stage they share. A test may leave microVMs behind and the server down: both are put right
//! before the next one, so no test depends on another.

mod access;
mod apart;
mod api;
mod clocks;
mod connectors;
mod demo;
mod edge;
mod ends;
mod failpoints;
mod faults;
mod held;
mod hooks;
mod hostile;
mod idle;
mod images;
mod isolation;
mod life;
mod protocols;
mod ready;
mod restores;
mod shell;
mod soak;
mod survival;
mod tags;
mod versions;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Mutex, PoisonError},
};

use e2e::{Stage, image::Source};
use libtest_mimic::{Failed, Trial};

/// One test.
pub type Test = (&'static str, fn(&mut Stage) -> anyhow::Result<()>);

/// The stage, or why there is none.
static STAGE: Mutex<Option<Result<Stage, String>>> = Mutex::new(None);

/// Every test, those that spare the server first.
pub fn trials() -> Vec<Trial> {
    [
        demo::TESTS,
        images::TESTS,
        versions::TESTS,
        connectors::TESTS,
        life::TESTS,
        restores::TESTS,
        ends::TESTS,
        clocks::TESTS,
        soak::TESTS,
        held::TESTS,
        idle::TESTS,
        hooks::TESTS,
        isolation::TESTS,
        hostile::TESTS,
        edge::TESTS,
        protocols::TESTS,
        shell::TESTS,
        api::TESTS,
        tags::TESTS,
        access::TESTS,
        faults::TESTS,
        ready::TESTS,
        survival::TESTS,
        apart::TESTS,
        failpoints::TESTS,
    ]
    .into_iter()
    .flatten()
    .map(|(name, test)| Trial::test(*name, move || on_stage(*test)))
    .collect()
}

/// Takes the stage down.
pub fn strike() {
    STAGE.lock().unwrap_or_else(PoisonError::into_inner).take();
}

fn on_stage(test: fn(&mut Stage) -> anyhow::Result<()>) -> Result<(), Failed> {
    let mut stage = STAGE.lock().unwrap_or_else(PoisonError::into_inner);
    let set = stage.get_or_insert_with(|| {
        let set = Source::probe().and_then(|source| Stage::set(&source, 512));
        set.map_err(|error| format!("{error:?}"))
    });
    let stage = set.as_mut().map_err(|error| Failed::from(format!("there is no stage: {error}")))?;
    let result = catch_unwind(AssertUnwindSafe(|| stage.clear().and_then(|()| test(stage))));
    let result = result.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        Err(anyhow::anyhow!("panicked: {}", text.unwrap_or("without a word")))
    });
    result.map_err(|error| format!("{error:?}\n\nthe server said last:\n{}", stage.server.log_tail()).into())
}
