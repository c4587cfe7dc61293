//! The clocks that count from the boot move on by the time a microVM was suspended, as its wall clock does.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use e2e::{Microvm, Stage, microvm::waking, until};
use serde_json::{Value, json};

use super::Test;

pub const TESTS: &[Test] = &[
    ("clocks::monotonic_clocks_move_on_by_the_time_suspended", moves_on),
    ("clocks::a_guest_at_work_finds_the_time_too_and_loses_no_process_to_it", at_work),
];

/// How much further or less far than the suspension a clock may have moved: what a wake on a busy machine takes.
const OFF_MAX: f64 = 5.0;

/// What a microVM wakes from is as old as this says, whatever it says itself.
fn backdate(stage: &Stage, microvm: &Microvm, by: Duration) -> anyhow::Result<()> {
    let path = stage.directory_of(&microvm.id).join("suspended/snapshot.json");
    let mut manifest: Value = serde_json::from_slice(&fs::read(&path)?)?;
    let stopped = &mut manifest["vm"]["stoppedAtUnixMillis"];
    *stopped = (stopped.as_u64().context("no stoppedAtUnixMillis")? - u64::try_from(by.as_millis())?).into();
    // It would not be the sum of this any more; manifests of before there was one are good without.
    manifest.as_object_mut().and_then(|manifest| manifest.remove("crc32c")).context("no crc32c")?;
    fs::write(&path, serde_json::to_vec(&manifest)?)?;
    Ok(())
}

fn moves_on(stage: &mut Stage) -> anyhow::Result<()> {
    let microvm = stage.launch_counting(json!({"idlePolicy": waking()}))?;
    let console = stage.server.data_dir().join("logs/microvms").join(&microvm.id).join("console.log");
    // The first is a suspension as it is; the others are as long as that and what is added.
    for (round, added) in [0, 600, 28_800].map(Duration::from_secs).into_iter().enumerate() {
        // Long enough that only a clock that has moved on ends it.
        let seconds = if added.is_zero() { 3.0 } else { added.as_secs_f64() };
        stage.fetch(&microvm, &format!("/probe/sleep?seconds={seconds}"))?;
        let before = stage.fetch(&microvm, "/probe/clock")?;
        let begin = Instant::now();
        // An idle guest: what served the question is done with it.
        std::thread::sleep(Duration::from_millis(500));
        stage.suspend(&microvm)?;
        backdate(stage, &microvm, added)?;
        std::thread::sleep(Duration::from_secs(3));
        let after = stage.fetch(&microvm, "/probe/clock")?;
        let passed = (begin.elapsed() + added).as_secs_f64();
        for clock in ["monotonic", "boot"] {
            let read = |told: &Value| told[clock].as_f64().with_context(|| format!("no {clock}: {told}"));
            let moved = read(&after)? - read(&before)?;
            ensure!((moved - passed).abs() < OFF_MAX, "{clock} moved by {moved} s of {passed} s");
        }
        until("the sleep to be over", Duration::from_secs(5), || {
            let over = stage.fetch(&microvm, "/probe/sleep")?;
            ensure!(over["over"].as_array().is_some_and(|over| over.len() == round + 1), "{over}");
            Ok(())
        })?;
    }
    // It ticks on as before.
    let clock = stage.fetch(&microvm, "/probe/clock")?;
    std::thread::sleep(Duration::from_secs(2));
    let later = stage.fetch(&microvm, "/probe/clock")?;
    let ticked = later["monotonic"].as_f64().context("no clock")? - clock["monotonic"].as_f64().context("no clock")?;
    ensure!((1.9..6.0).contains(&ticked), "two seconds took {ticked}");
    let said = fs::read_to_string(&console).unwrap_or_default();
    ensure!(!said.contains("soft lockup") && !said.contains("stall"), "the kernel complained:\n{said}");
    Ok(())
}

/// Were the clock to jump under a process that computes, the kernel would have it wait for hours: the guest is parked.
fn at_work(stage: &mut Stage) -> anyhow::Result<()> {
    let microvm = stage.launch_counting(json!({"idlePolicy": waking()}))?;
    let done = || -> anyhow::Result<[u64; 2]> {
        let told = stage.fetch(&microvm, "/probe/work")?;
        let of = |index: usize| told["done"][index].as_u64().with_context(|| format!("{told}"));
        Ok([of(0)?, of(1)?])
    };
    let monotonic = || -> anyhow::Result<f64> {
        stage.fetch(&microvm, "/probe/clock")?["monotonic"].as_f64().context("no monotonic clock")
    };
    done()?;
    until("both to have begun", Duration::from_secs(20), || {
        ensure!(done()?.iter().all(|done| *done > 0));
        Ok(())
    })?;
    let share = stage.fetch(&microvm, "/probe/realtime")?;
    for _ in 0..3 {
        let (begin, clock) = (Instant::now(), monotonic()?);
        stage.suspend(&microvm)?;
        let added = Duration::from_secs(28_800);
        backdate(stage, &microvm, added)?;
        let before = done()?;
        until("both to go on", Duration::from_secs(20), || {
            let now = done()?;
            ensure!(now[0] > before[0] && now[1] > before[1], "{before:?}, {now:?}");
            Ok(())
        })?;
        let (moved, passed) = (monotonic()? - clock, (begin.elapsed() + added).as_secs_f64());
        ensure!((moved - passed).abs() < OFF_MAX, "the clock moved by {moved} s of {passed} s");
    }
    // Nothing is left of it.
    let after = stage.fetch(&microvm, "/probe/realtime")?;
    ensure!(after == share, "{share} before, {after} after");
    Ok(())
}
