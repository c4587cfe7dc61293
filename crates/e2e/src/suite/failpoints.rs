//! The server dies at a named step and comes back: what is there is true, and nothing of it is lost or left over.
//!
//! A step at which a hook has been called is left out: without hooks it is the step before it.

use std::{fs, time::Duration};

use anyhow::{Context, ensure};
use e2e::{
    Microvm, Stage,
    image::{self, Source},
    server, until,
};
use serde_json::{Value, json};

use super::Test;

pub const TESTS: &[Test] = &[
    ("failpoints::the_program_that_is_shipped_has_none", shipped),
    ("failpoints::a_launch_that_dies_at_any_step_is_made_again", launch),
    ("failpoints::a_suspend_that_dies_at_any_step_loses_nothing", suspend),
    ("failpoints::a_resume_that_dies_at_any_step_loses_nothing", resume),
    ("failpoints::an_end_that_dies_at_any_step_is_carried_through", terminate),
    ("failpoints::a_build_that_dies_leaves_nothing", build),
];

fn shipped(_: &mut Stage) -> anyhow::Result<()> {
    let contains = |program: &[u8], name: &str| program.windows(name.len()).any(|window| window == name.as_bytes());
    let (shipped, armed) = (fs::read(server::program())?, fs::read(server::armed())?);
    for name in [failpoint::VARIABLE, failpoint::SUSPEND[3], failpoint::RESUME[3]] {
        ensure!(contains(&armed, name), "the search would not find {name}");
        ensure!(!contains(&shipped, name), "{name} is in the program that is shipped");
    }
    Ok(())
}

/// The steps that differ from the one before them although there are no hooks.
fn steps(of: &[&'static str]) -> impl Iterator<Item = &'static str> {
    of.iter().copied().filter(|step| !step.ends_with("hook-answered")).collect::<Vec<_>>().into_iter()
}

/// Has the server die at a step of what this asks for, and come back.
fn dies_at(stage: &mut Stage, step: &str, ask: impl FnOnce(&Stage) -> anyhow::Result<()>) -> anyhow::Result<()> {
    ask(stage)?;
    stage.server.await_death().with_context(|| step.to_owned())?;
    stage.server.start()
}

/// What the app has in memory and in files.
fn sums(stage: &Stage, microvm: &Microvm) -> anyhow::Result<Value> {
    stage.fetch(microvm, "/probe/sums")
}

/// A microVM of a server that is to die, with something to lose.
fn rich(stage: &mut Stage, step: &str) -> anyhow::Result<(Microvm, Value)> {
    if stage.server.is_up() {
        stage.server.crash()?;
    }
    stage.server.start_to_die_at(step)?;
    let microvm = stage.launch()?;
    stage.count(&microvm)?;
    stage.fetch(&microvm, "/probe/dirty?mib=8")?;
    stage.fetch(&microvm, "/probe/sums?write=yes")?;
    let sums = sums(stage, &microvm)?;
    Ok((microvm, sums))
}

fn asked_later(stage: &Stage, operation: &str, microvm: &Microvm) -> anyhow::Result<()> {
    // Answered or cut off: both happen.
    stage.aws.call_later(operation, json!({"microvmIdentifier": microvm.id})).map(drop)
}

fn launch(stage: &mut Stage) -> anyhow::Result<()> {
    for step in steps(failpoint::RUN) {
        if stage.server.is_up() {
            stage.server.crash()?;
        }
        stage.server.start_to_die_at(step)?;
        let parameters = json!({"imageIdentifier": stage.image.arn, "idlePolicy": e2e::microvm::waking()});
        dies_at(stage, step, |stage| stage.aws.call_later("run_microvm", parameters).map(drop))?;
        let live = stage.live()?;
        let [(id, _)] = &live[..] else { anyhow::bail!("{step}: {live:?}") };
        let now = stage.await_state(id, "RUNNING").context(step)?;
        let endpoint = now["endpoint"].as_str().context("no endpoint")?.to_owned();
        let token = stage.token(id, json!([{"allPorts": {}}]))?;
        ensure!(stage.count(&Microvm { id: id.clone(), endpoint, token })? == 1, "{step}: it is not as launched");
        stage.no_orphans().context(step)?;
        stage.clear()?;
    }
    Ok(())
}

fn suspend(stage: &mut Stage) -> anyhow::Result<()> {
    for step in steps(failpoint::SUSPEND) {
        let (microvm, before) = rich(stage, step)?;
        dies_at(stage, step, |stage| asked_later(stage, "suspend_microvm", &microvm))?;
        // That it was to be suspended was written first, and so it is.
        stage.await_state(&microvm.id, "SUSPENDED").context(step)?;
        stage.no_orphans().context(step)?;
        ensure!(sums(stage, &microvm)? == before, "{step}: memory or files were lost");
        ensure!(stage.count(&microvm)? == 2, "{step}: the counter was lost");
        stage.no_orphans().context(step)?;
        stage.clear()?;
    }
    Ok(())
}

fn resume(stage: &mut Stage) -> anyhow::Result<()> {
    for step in steps(failpoint::RESUME) {
        let (microvm, before) = rich(stage, step)?;
        stage.suspend(&microvm)?;
        dies_at(stage, step, |stage| asked_later(stage, "resume_microvm", &microvm))?;
        stage.await_state(&microvm.id, "RUNNING").context(step)?;
        stage.no_orphans().context(step)?;
        ensure!(sums(stage, &microvm)? == before, "{step}: memory or files were lost");
        // It can be suspended again, so nothing of the resume is in the way.
        stage.suspend(&microvm)?;
        ensure!(stage.count(&microvm)? == 2, "{step}: the counter was lost");
        stage.no_orphans().context(step)?;
        stage.clear()?;
    }
    Ok(())
}

fn terminate(stage: &mut Stage) -> anyhow::Result<()> {
    for step in steps(failpoint::TERMINATE) {
        let (microvm, _) = rich(stage, step)?;
        dies_at(stage, step, |stage| asked_later(stage, "terminate_microvm", &microvm))?;
        let ended = stage.await_state(&microvm.id, "TERMINATED").context(step)?;
        ensure!(ended["stateReason"] == "Success.", "{step}: {ended}");
        stage.no_orphans().context(step)?;
    }
    Ok(())
}

fn build(stage: &mut Stage) -> anyhow::Result<()> {
    let zip = stage.scratch("failpoints.zip");
    for step in ["build.disk-made", "build.app-started", "build.saved", "build.in-place", "build.done"] {
        Source::example("flask-counter")?.zip(&zip)?;
        stage.up()?;
        let before = stage.traces();
        stage.server.crash()?;
        stage.server.start_to_die_at(step)?;
        let mut created = Value::Null;
        dies_at(stage, step, |stage| {
            created = image::create(&stage.aws, "failpoints", &zip)?;
            Ok(())
        })?;
        let image = image::settled(&stage.aws, created)?;
        ensure!(image.state() == "CREATE_FAILED" && !image.reason().is_empty(), "{step}: {:?}", image.states);
        stage.same_as_soon(&before).context(step)?;
        stage.aws.microvms("delete_microvm_image", json!({"imageIdentifier": image.arn}))?;
        until("the image to be gone", Duration::from_secs(20), || {
            stage.aws.refusal("get_microvm_image", json!({"imageIdentifier": image.arn})).map(drop)
        })?;
        stage.no_orphans().context(step)?;
    }
    Ok(())
}
