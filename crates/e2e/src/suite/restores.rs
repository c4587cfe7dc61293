//! What a restore leaves of a guest's connections: all that stay inside, none that lead out.

use std::{
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, ensure};
use e2e::{Microvm, Stage, image, outside::Outside, until};
use serde_json::{Value, json};

use super::{Test, images::remove};

pub const TESTS: &[Test] = &[
    ("restores::connections_to_the_outside_end_at_once_when_a_microvm_wakes", outbound_ends_at_a_wake),
    ("restores::connections_to_the_outside_end_at_once_at_the_first_launch", outbound_ends_at_a_launch),
    ("restores::connections_to_the_outside_outlive_the_server", outbound_outlives_the_server),
    ("restores::what_is_inside_of_a_microvm_survives_a_suspend", inside_survives),
];

/// How long after the first answer of a woken microVM its old connections may still seem to be there.
const ABORT_MAX: Duration = Duration::from_secs(5);

/// How the calls of the app went, once this many have ended.
fn calls_ended(stage: &Stage, microvm: &Microvm, number: usize) -> anyhow::Result<Vec<Value>> {
    until("the calls to end", ABORT_MAX, || {
        let told = stage.fetch(microvm, "/probe/call")?;
        let calls = told["calls"].as_array().context("no calls")?.clone();
        ensure!(calls.iter().filter(|call| !call["end"].is_null()).count() == number, "{told}");
        Ok(calls)
    })
}

fn now() -> anyhow::Result<f64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64())
}

fn outbound_ends_at_a_wake(stage: &mut Stage) -> anyhow::Result<()> {
    let outside = Outside::open()?;
    let microvm = stage.launch()?;
    let call = format!("/probe/call?to={}", outside.address());
    for round in 1..=2 {
        let told = stage.fetch(&microvm, &call)?;
        let waiting = told["calls"].as_array().and_then(|calls| calls.last()).context("no calls")?;
        ensure!(waiting["end"].is_null(), "the call ended before the suspend: {told}");
        stage.suspend(&microvm)?;
        // The end must come with the wake, not with a timeout that has run meanwhile.
        thread::sleep(Duration::from_secs(2));
        let begin = now()?;
        let calls = calls_ended(stage, &microvm, round)?;
        let last = calls.last().context("no calls")?;
        ensure!(last["end"] == "ECONNABORTED", "round {round}: {calls:?}");
        let at = last["at"].as_f64().context("no time")?;
        ensure!(at > begin - 0.5 && at < now()?, "round {round}: it ended at {at}, the wake began at {begin}");
    }
    Ok(())
}

fn outbound_ends_at_a_launch(stage: &mut Stage) -> anyhow::Result<()> {
    let outside = Outside::open()?;
    let mut parameters = image::create_parameters("calling", "stage.zip");
    parameters["environmentVariables"] = json!({"CALL": outside.address()});
    let created = stage.aws.microvms("create_microvm_image", parameters)?;
    let image = image::settled(&stage.aws, created)?;
    ensure!(image.state() == "CREATED", "{}", image.reason());
    for _ in 0..2 {
        let microvm = stage.launch_with(json!({"imageIdentifier": image.arn}))?;
        let calls = calls_ended(stage, &microvm, 1)?;
        ensure!(calls[0]["end"] == "ECONNABORTED", "{calls:?}");
    }
    stage.clear()?;
    remove(stage, &image.arn)
}

/// The VM runs on when its server is gone: nothing was restored, so nothing is to end.
fn outbound_outlives_the_server(stage: &mut Stage) -> anyhow::Result<()> {
    let outside = Outside::open()?;
    let microvm = stage.launch()?;
    stage.fetch(&microvm, &format!("/probe/call?to={}", outside.address()))?;
    stage.server.crash()?;
    stage.server.start()?;
    thread::sleep(ABORT_MAX);
    let told = stage.fetch(&microvm, "/probe/call")?;
    ensure!(told["calls"][0]["end"].is_null(), "{told}");
    Ok(())
}

fn inside_survives(stage: &mut Stage) -> anyhow::Result<()> {
    let microvm = stage.launch()?;
    let whole = |round: u32| -> anyhow::Result<Value> {
        let told = stage.fetch(&microvm, "/probe/keepsakes")?;
        ensure!(told["broken"] == json!({}), "round {round}: {told}");
        Ok(told["pid"].clone())
    };
    let pid = whole(0)?;
    for round in 1..=3 {
        stage.suspend(&microvm)?;
        ensure!(whole(round)? == pid, "another process in round {round}");
    }
    Ok(())
}
