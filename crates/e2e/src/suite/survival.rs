//! The server goes and comes back; the microVMs do not notice, or end in a state that is true.

use std::{
    fs,
    os::unix::process::CommandExt,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use e2e::{Stage, machine, until};
use serde_json::json;

use super::Test;

pub const TESTS: &[Test] = &[
    ("survival::running_microvms_survive_a_crash_of_the_server", running),
    ("survival::suspended_microvms_survive_a_crash_of_the_server", suspended),
    ("survival::a_crash_in_the_middle_of_a_suspend_ends_in_a_true_state", mid_suspend),
    ("survival::a_crash_in_the_middle_of_a_wake_ends_in_a_true_state", mid_wake),
    ("survival::a_crash_in_the_middle_of_a_launch_leaves_no_orphan", mid_launch),
    ("survival::a_crash_in_the_middle_of_a_build_leaves_no_orphan", mid_build),
    ("survival::a_vm_that_died_while_the_server_was_down_is_known_to_have_ended", died_meanwhile),
    ("survival::what_is_nobodys_goes_while_everything_goes_on", tidied),
    ("survival::sigterm_drains_and_leaves_running_microvms_to_the_next_server", drains),
];

fn running(stage: &mut Stage) -> anyhow::Result<()> {
    let (one, two) = (stage.launch()?, stage.launch()?);
    stage.count(&one)?;
    let before = (stage.vmm_of(&one.id)?, stage.vmm_of(&two.id)?);
    stage.server.crash()?;
    ensure!(machine::is_alive(before.0.pid), "the VM died with the server");
    stage.server.start()?;
    ensure!((stage.vmm_of(&one.id)?, stage.vmm_of(&two.id)?) == before, "the VMs are not the same");
    ensure!(stage.describe(&one.id)?["state"] == "RUNNING", "{}", stage.describe(&one.id)?);
    ensure!(stage.count(&one)? == 2 && stage.count(&two)? == 1, "a counter was lost");
    stage.no_orphans()?;
    // Taken over means more than answering: the verbs and the watch over it work.
    stage.suspend(&one)?;
    ensure!(stage.count(&one)? == 3, "the counter was lost in the suspend after it");
    stage.fetch(&two, "/probe/exit?code=9")?;
    let ended = stage.await_state(&two.id, "TERMINATED")?;
    ensure!(ended["stateReason"] == "Container Stopped with Exit Code: 9", "{ended}");
    stage.no_orphans()
}

fn suspended(stage: &mut Stage) -> anyhow::Result<()> {
    let microvm = stage.launch()?;
    stage.count(&microvm)?;
    stage.fetch(&microvm, "/probe/file?text=kept")?;
    stage.suspend(&microvm)?;
    stage.server.crash()?;
    stage.server.start()?;
    ensure!(stage.describe(&microvm.id)?["state"] == "SUSPENDED", "{}", stage.describe(&microvm.id)?);
    stage.no_orphans()?;
    ensure!(stage.count(&microvm)? == 2, "the counter was lost");
    ensure!(stage.fetch(&microvm, "/probe/file")?["text"] == "kept", "the file was lost");
    stage.no_orphans()
}

/// Crashes the server so long after an instant, and starts it again.
fn crash_after(stage: &mut Stage, begin: Instant, delay: Duration) -> anyhow::Result<()> {
    thread::sleep(delay.saturating_sub(begin.elapsed()));
    stage.server.crash()?;
    stage.server.start()
}

fn mid_suspend(stage: &mut Stage) -> anyhow::Result<()> {
    let microvm = stage.launch()?;
    // Enough to write that the suspend has a middle.
    stage.fetch(&microvm, "/probe/dirty?mib=64")?;
    let mut ends = Vec::new();
    for (round, delay) in [0, 5, 15, 30, 60, 120, 250].into_iter().enumerate() {
        let count = stage.count(&microvm)?;
        ensure!(count == round as u64 + 1, "the counter is {count} in round {round}: {ends:?}");
        let begin = Instant::now();
        let asked = stage.aws.call_later("suspend_microvm", json!({"microvmIdentifier": microvm.id}))?;
        crash_after(stage, begin, Duration::from_millis(delay))?;
        // Answered or cut off: both happen.
        let _ = asked.wait();
        let state = until("a settled state", Duration::from_secs(30), || {
            let now = stage.describe(&microvm.id)?;
            ensure!(now["state"] == "RUNNING" || now["state"] == "SUSPENDED", "after {delay} ms: {now}");
            Ok(now["state"].as_str().unwrap_or_default().to_owned())
        })?;
        ends.push(format!("{delay} ms: {state}"));
        stage.no_orphans()?;
    }
    ensure!(stage.count(&microvm)? == 8, "the counter was lost: {ends:?}");
    ensure!(stage.fetch(&microvm, "/probe/dirty?mib=1")?["mib"] == 65, "memory was lost");
    Ok(())
}

fn mid_wake(stage: &mut Stage) -> anyhow::Result<()> {
    let microvm = stage.launch()?;
    let mut last = stage.count(&microvm)?;
    for delay in [5, 40, 100, 200, 400] {
        stage.suspend(&microvm)?;
        let begin = Instant::now();
        let asked = stage.get_later(&microvm, "/probe/count")?;
        crash_after(stage, begin, Duration::from_millis(delay))?;
        let _ = asked.wait();
        until("a settled state", Duration::from_secs(30), || {
            let now = stage.describe(&microvm.id)?;
            ensure!(now["state"] == "RUNNING" || now["state"] == "SUSPENDED", "after {delay} ms: {now}");
            Ok(())
        })?;
        stage.no_orphans()?;
        // The request that was cut off may have been counted, or not; never twice, and nothing before it is lost.
        let count = stage.count(&microvm)?;
        ensure!((last + 1..=last + 2).contains(&count), "from {last} to {count} after {delay} ms");
        last = count;
    }
    Ok(())
}

fn mid_launch(stage: &mut Stage) -> anyhow::Result<()> {
    for delay in [0, 20, 60, 150, 300] {
        let begin = Instant::now();
        let asked = stage.aws.call_later("run_microvm", json!({"imageIdentifier": stage.image.arn}))?;
        crash_after(stage, begin, Duration::from_millis(delay))?;
        let _ = asked.wait();
        stage.no_orphans().with_context(|| format!("after {delay} ms"))?;
        stage.clear()?;
    }
    Ok(())
}

fn mid_build(stage: &mut Stage) -> anyhow::Result<()> {
    let zip = stage.scratch("crash.zip");
    e2e::image::Source::dockerfile("FROM pilotlight/debian:12\nRUN sleep 600\nCMD [\"true\"]\n").zip(&zip)?;
    let before = stage.settled()?;
    let created = e2e::image::create(&stage.aws, "crash", &zip)?;
    until("the build to be inside its RUN step", Duration::from_secs(90), || {
        let logs = stage.server.data_dir().join("logs/builds");
        let told = std::process::Command::new("grep").args(["-rq", "sleep 600"]).arg(logs).status()?.success();
        ensure!(told, "no build log shows the step");
        Ok(())
    })?;
    stage.server.crash()?;
    stage.server.start()?;
    let image = e2e::image::settled(&stage.aws, created)?;
    ensure!(image.state() == "CREATE_FAILED" && !image.reason().is_empty(), "{:?}: {}", image.states, image.reason());
    stage.same_as_soon(&before)?;
    stage.aws.microvms("delete_microvm_image", json!({"imageIdentifier": image.arn}))?;
    stage.no_orphans()
}

fn died_meanwhile(stage: &mut Stage) -> anyhow::Result<()> {
    let microvm = stage.launch()?;
    let vmm = stage.vmm_of(&microvm.id)?;
    stage.server.crash()?;
    machine::kill(vmm.pid)?;
    stage.server.start()?;
    let ended = stage.await_state(&microvm.id, "TERMINATED")?;
    ensure!(ended["stateReason"].as_str().is_some_and(|reason| !reason.is_empty()), "{ended}");
    stage.no_orphans()
}

fn tidied(stage: &mut Stage) -> anyhow::Result<()> {
    let (busy, asleep) = (stage.launch()?, stage.launch()?);
    stage.count(&asleep)?;
    stage.suspend(&asleep)?;
    let data = stage.server.data_dir().to_owned();
    // As verbs that were dropped half way leave things; of slots that nobody uses.
    let uuid = "00000000-0000-4000-8000-00000000dead";
    let left = [data.join(format!("microvms/microvm-{uuid}")), data.join(format!("builds/{uuid}"))];
    for directory in &left {
        fs::create_dir(directory)?;
        fs::write(directory.join("scratch.img"), "left")?;
    }
    let namespace = format!("pl-{}-4000", machine::owner(&data));
    ensure!(Command::new("ip").args(["netns", "add", &namespace]).status()?.success(), "no namespace");
    let mut stray = Command::new("sleep").arg("600").uid(machine::slot_user(&data, 4001)).spawn()?;
    let mut count = 0;
    let gone = until("what is nobody's to be gone", Duration::from_secs(80), || {
        // Meanwhile verbs go on, and none is disturbed.
        stage.suspend(&busy)?;
        count += 1;
        ensure!(stage.count(&busy)? == count, "the counter was lost");
        let fresh = stage.launch()?;
        ensure!(stage.count(&fresh)? == 1);
        stage.terminate(&fresh.id)?;
        ensure!(!left.iter().any(|it| it.exists()), "files are left");
        ensure!(!machine::namespaces_of(&data).contains(&namespace), "the namespace is left");
        ensure!(stray.try_wait()?.is_some(), "the process is left");
        Ok(())
    });
    // Ended already, if all is well.
    let _ = stray.kill();
    stray.wait()?;
    gone?;
    ensure!(stage.count(&asleep)? == 2, "the counter of the one that slept was lost");
    stage.no_orphans()
}

fn drains(stage: &mut Stage) -> anyhow::Result<()> {
    let (awake, asleep) = (stage.launch()?, stage.launch()?);
    stage.count(&awake)?;
    stage.count(&asleep)?;
    stage.suspend(&asleep)?;
    // A request in flight is answered before the server ends.
    let slow = stage.get_later(&awake, "/probe/stream")?;
    thread::sleep(Duration::from_millis(500));
    let status = stage.server.stop()?;
    ensure!(status.success(), "the server ended with {status}");
    let slow = slow.wait()?;
    ensure!(slow["body"] == "piece 0\npiece 1\npiece 2\n", "a request in flight was cut off: {slow}");
    let traces = stage.traces();
    ensure!(traces.vmms == 1 && traces.microvms.len() == 2, "{traces:?}");
    let namespaces = machine::namespaces_of(stage.server.data_dir());
    ensure!(namespaces.len() == 1, "namespaces that nobody uses: {namespaces:?}");
    stage.server.start()?;
    ensure!(stage.count(&awake)? == 2 && stage.count(&asleep)? == 2, "a counter was lost");
    stage.no_orphans()
}
