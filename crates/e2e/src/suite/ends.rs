//! Ends that nobody asked for, and what a user is told of them.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use e2e::{Microvm, Stage, image, until};
use serde_json::{Value, json};

use super::{Test, images::remove};

pub const TESTS: &[Test] = &[
    ("ends::an_exit_is_known_at_once", exit_at_once),
    ("ends::an_app_that_the_guest_has_no_memory_for_ends_for_that_reason", app_out_of_memory),
    ("ends::an_app_that_gives_up_for_want_of_memory_ends_for_that_reason", child_out_of_memory),
    ("ends::a_kernel_that_panics_is_said_to_have_panicked", panic),
];

/// From an exit to TERMINATED; the real service takes 15 s. Nearly all of it is for a machine with much else to do.
const EXIT_SEEN_MAX: Duration = Duration::from_secs(5);

/// An emulated guest takes a while to touch all memory it has.
const MEMORY_GONE_MAX: Duration = Duration::from_secs(240);

fn exit_at_once(stage: &mut Stage) -> anyhow::Result<()> {
    let microvm = stage.launch_counting(json!({}))?;
    stage.fetch(&microvm, "/probe/exit?code=7")?;
    let begin = Instant::now();
    let ended = stage.await_state(&microvm.id, "TERMINATED")?;
    ensure!(begin.elapsed() < EXIT_SEEN_MAX, "seen after {:?}", begin.elapsed());
    ensure!(ended["stateReason"] == "Container Stopped with Exit Code: 7", "{ended}");
    Ok(())
}

fn ended(stage: &Stage, microvm: &Microvm) -> anyhow::Result<Value> {
    until("the microVM to end", MEMORY_GONE_MAX, || {
        let now = stage.describe(&microvm.id)?;
        ensure!(now["state"] == "TERMINATED", "{now}");
        Ok(now)
    })
}

fn out_of_memory(stage: &Stage, who: &str, code: i32) -> anyhow::Result<()> {
    let microvm = stage.launch_counting(json!({}))?;
    stage.fetch(&microvm, &format!("/probe/eat_and_end?who={who}"))?;
    let ended = ended(stage, &microvm)?;
    let reason = ended["stateReason"].as_str().context("no reason")?;
    let beginning = format!("Container Stopped with Exit Code: {code} (out of memory: ");
    ensure!(reason.starts_with(&beginning), "{reason}");
    ensure!(reason.contains("'python3', which held 1"), "not who it was, or not with its over 1000 MiB: {reason}");
    stage.no_orphans()
}

fn app_out_of_memory(stage: &mut Stage) -> anyhow::Result<()> {
    out_of_memory(stage, "app", 137)
}

fn child_out_of_memory(stage: &mut Stage) -> anyhow::Result<()> {
    out_of_memory(stage, "child", 3)
}

fn panic(stage: &mut Stage) -> anyhow::Result<()> {
    let mut parameters = image::create_parameters("powerful", "stage.zip");
    parameters["additionalOsCapabilities"] = json!(["ALL"]);
    let created = stage.aws.microvms("create_microvm_image", parameters)?;
    let image = image::settled(&stage.aws, created)?;
    ensure!(image.state() == "CREATED", "{}", image.reason());
    let microvm = stage.launch_counting(json!({"imageIdentifier": image.arn}))?;
    stage.fetch(&microvm, "/probe/panic")?;
    let begin = Instant::now();
    let ended = stage.await_state(&microvm.id, "TERMINATED")?;
    let reason = &ended["stateReason"];
    ensure!(reason == "The guest's kernel panicked: sysrq triggered crash", "{reason}");
    // A panic has its own time to be told on an emulated serial line.
    ensure!(begin.elapsed() < Duration::from_secs(15), "seen after {:?}", begin.elapsed());
    stage.no_orphans()?;
    remove(stage, &image.arn)
}
