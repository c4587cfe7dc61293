//! Requests that find a microVM on its way somewhere: they are held, and answered.

use anyhow::{Context, ensure};
use e2e::{HttpAnswer, Stage, disk};
use serde_json::json;

use super::Test;

pub const TESTS: &[Test] = &[
    ("held::requests_to_a_microvm_that_is_being_launched_are_answered", launching),
    ("held::requests_to_a_microvm_that_is_being_suspended_wake_it_again", suspending),
    ("held::requests_that_wait_for_a_suspend_that_fails_are_answered", suspend_fails),
    ("held::twenty_microvms_wake_together", twenty),
];

/// Every one was answered, and none twice.
fn all_counted(answers: &[HttpAnswer], from: u64) -> anyhow::Result<()> {
    let mut counts: Vec<u64> =
        answers.iter().map(|answer| answer.json()?["count"].as_u64().context("no count")).collect::<Result<_, _>>()?;
    counts.sort_unstable();
    let wanted: Vec<_> = (from..from + answers.len() as u64).collect();
    ensure!(counts == wanted, "counts: {counts:?}");
    Ok(())
}

fn launching(stage: &mut Stage) -> anyhow::Result<()> {
    let microvm = stage.begin_launch()?;
    all_counted(&stage.aws.ask_many(stage.request(&microvm, "/probe/count"), 10)?, 1)
}

fn suspending(stage: &mut Stage) -> anyhow::Result<()> {
    let microvm = stage.launch()?;
    ensure!(stage.count(&microvm)? == 1);
    // Enough to write that the suspend lasts until the requests are there.
    stage.fetch(&microvm, "/probe/dirty?mib=96")?;
    for round in 0..3 {
        stage.aws.microvms("suspend_microvm", json!({"microvmIdentifier": microvm.id}))?;
        all_counted(&stage.aws.ask_many(stage.request(&microvm, "/probe/count"), 10)?, 2 + 10 * round)?;
        let now = stage.describe(&microvm.id)?;
        ensure!(now["state"] == "RUNNING" && now["stateReason"].is_null(), "{now}");
    }
    stage.no_orphans()
}

fn suspend_fails(stage: &mut Stage) -> anyhow::Result<()> {
    let microvm = stage.launch()?;
    ensure!(stage.count(&microvm)? == 1);
    stage.fetch(&microvm, "/probe/dirty?mib=96")?;
    let filler = disk::Filler::leave(&stage.disk(), 24 << 20)?;
    stage.aws.microvms("suspend_microvm", json!({"microvmIdentifier": microvm.id}))?;
    let answers = stage.aws.ask_many(stage.request(&microvm, "/probe/count"), 10)?;
    drop(filler);
    all_counted(&answers, 2)?;
    stage.await_state(&microvm.id, "RUNNING")?;
    stage.no_orphans()
}

fn twenty(stage: &mut Stage) -> anyhow::Result<()> {
    let microvms = (0..20).map(|_| stage.launch()).collect::<Result<Vec<_>, _>>()?;
    for microvm in &microvms {
        ensure!(stage.count(microvm)? == 1);
        stage.aws.microvms("suspend_microvm", json!({"microvmIdentifier": microvm.id}))?;
    }
    for microvm in &microvms {
        stage.await_state(&microvm.id, "SUSPENDED")?;
    }
    let asked = microvms.iter().map(|it| stage.get_later(it, "/probe/count")).collect::<Result<Vec<_>, _>>()?;
    for (microvm, asked) in microvms.iter().zip(asked) {
        let answer = asked.wait()?;
        let body = answer["body"].as_str().unwrap_or_default();
        let count: serde_json::Value =
            serde_json::from_str(body).with_context(|| format!("{}: {answer}", microvm.id))?;
        ensure!(count["count"] == 2, "{}: {answer}", microvm.id);
    }
    stage.no_orphans()
}
