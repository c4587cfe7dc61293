//! A microVM's life: launch, suspend, wake, resume, end.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, ensure};
use e2e::{Stage, machine, until};
use serde_json::json;

use super::Test;

pub const TESTS: &[Test] = &[
    ("life::a_microvm_answers_at_its_own_endpoint", answers),
    ("life::memory_and_files_survive_a_suspend_and_the_next_request_wakes_it", request_wakes),
    ("life::memory_and_files_survive_a_suspend_and_resume", resume),
    ("life::suspending_and_resuming_again_and_again_loses_nothing", again_and_again),
    ("life::a_suspend_writes_only_what_changed_and_frees_the_vm", suspend_writes_little),
    ("life::a_second_suspend_writes_only_what_changed_since_the_first", second_suspend),
    ("life::two_microvms_of_one_image_do_not_see_each_others_writes", isolated),
    ("life::a_second_microvm_takes_at_most_20_mb_of_disk", second_is_small),
    ("life::fifty_requests_at_once_wake_it_once", one_wake),
    ("life::clones_draw_different_random_numbers", random),
    ("life::the_clock_is_right_after_a_wake", clock),
    ("life::the_guest_has_the_size_and_environment_of_the_table", size),
    ("life::verbs_can_be_repeated", repeated),
    ("life::a_terminated_microvm_leaves_nothing", terminate),
    ("life::a_suspended_microvm_can_be_terminated", terminate_suspended),
    ("life::an_app_that_exits_ends_its_microvm", app_exits),
];

fn answers(stage: &mut Stage) -> anyhow::Result<()> {
    let microvm = stage.launch()?;
    let answer = stage.get(&microvm, "/")?;
    ensure!(answer.status == 200, "HTTP {}: {}", answer.status, answer.body);
    ensure!(stage.count(&microvm)? == 1 && stage.count(&microvm)? == 2, "the counter does not count");
    let got = stage.describe(&microvm.id)?;
    ensure!(got["endpoint"] == json!(microvm.endpoint) && got["state"] == "RUNNING", "{got}");
    ensure!(got["stateReason"].is_null() && got["terminatedAt"].is_null(), "{got}");
    ensure!(got["imageVersion"] == "1.0" && got["maximumDurationInSeconds"] == 28800, "{got}");
    Ok(())
}

fn request_wakes(stage: &mut Stage) -> anyhow::Result<()> {
    let microvm = stage.launch()?;
    stage.count(&microvm)?;
    stage.fetch(&microvm, "/probe/file?text=kept")?;
    stage.suspend(&microvm)?;
    ensure!(stage.count(&microvm)? == 2, "the counter was lost");
    ensure!(stage.fetch(&microvm, "/probe/file")?["text"] == "kept", "the file was lost");
    stage.await_state(&microvm.id, "RUNNING")?;
    Ok(())
}

fn resume(stage: &mut Stage) -> anyhow::Result<()> {
    let microvm = stage.launch_with(json!({}))?;
    stage.count(&microvm)?;
    stage.fetch(&microvm, "/probe/file?text=kept")?;
    stage.suspend(&microvm)?;
    stage.aws.microvms("resume_microvm", json!({"microvmIdentifier": microvm.id}))?;
    stage.await_state(&microvm.id, "RUNNING")?;
    ensure!(stage.count(&microvm)? == 2, "the counter was lost");
    ensure!(stage.fetch(&microvm, "/probe/file")?["text"] == "kept", "the file was lost");
    Ok(())
}

fn again_and_again(stage: &mut Stage) -> anyhow::Result<()> {
    let microvm = stage.launch()?;
    for round in 1..=4 {
        ensure!(stage.count(&microvm)? == round, "the counter was lost in round {round}");
        stage.fetch(&microvm, &format!("/probe/file?text=round{round}"))?;
        stage.fetch(&microvm, "/probe/dirty?mib=2")?;
        stage.suspend(&microvm)?;
        let kept = stage.fetch(&microvm, "/probe/file")?;
        ensure!(kept["text"] == json!(format!("round{round}")), "{kept} in round {round}");
    }
    ensure!(stage.fetch(&microvm, "/probe/dirty?mib=1")?["mib"] == 9, "memory was lost");
    Ok(())
}

fn suspend_writes_little(stage: &mut Stage) -> anyhow::Result<()> {
    let microvm = stage.launch()?;
    stage.count(&microvm)?;
    let vmm = stage.vmm_of(&microvm.id)?;
    stage.suspend(&microvm)?;
    until("the VMM to be gone", Duration::from_secs(5), || {
        ensure!(!machine::is_alive(vmm.pid), "process {} lives", vmm.pid);
        ensure!(stage.vmm_of(&microvm.id).is_err(), "another VMM lives");
        Ok(())
    })?;
    let bytes = machine::bytes_on_disk(&stage.directory_of(&microvm.id));
    // The guest sees 2 GiB and has touched over 100 MB of them.
    ensure!(bytes < 64 << 20, "a suspended microVM that served one request takes {bytes} bytes");
    stage.fetch(&microvm, "/probe/dirty?mib=100")?;
    stage.suspend(&microvm)?;
    let bytes = machine::bytes_on_disk(&stage.directory_of(&microvm.id));
    ensure!(bytes > 100 << 20, "100 MiB were written in the guest and only {bytes} bytes kept");
    Ok(())
}

fn second_suspend(stage: &mut Stage) -> anyhow::Result<()> {
    let microvm = stage.launch()?;
    stage.fetch(&microvm, "/probe/dirty?mib=64")?;
    let before = stage.fetch(&microvm, "/probe/ballast")?;
    stage.suspend(&microvm)?;
    let suspended = stage.directory_of(&microvm.id).join("suspended");
    let bytes = |name: &str| Ok::<_, anyhow::Error>(std::fs::metadata(suspended.join(name))?.len());
    let first = bytes("memory.layer")?;
    for round in 1..=2 {
        ensure!(stage.count(&microvm)? == round, "the counter was lost");
        stage.suspend(&microvm)?;
        let delta = bytes("memory.delta")?;
        ensure!(delta < first / 3, "suspend {round} after the first wrote {delta} bytes, the first {first}");
        ensure!(bytes("memory.layer")? == first, "the first suspend's memory was written again");
    }
    let after = stage.fetch(&microvm, "/probe/ballast")?;
    ensure!(before == after, "memory was {before} and is {after}");
    Ok(())
}

fn isolated(stage: &mut Stage) -> anyhow::Result<()> {
    let (one, two) = (stage.launch()?, stage.launch()?);
    for _ in 0..3 {
        stage.count(&one)?;
    }
    stage.fetch(&one, "/probe/file?text=of-one")?;
    ensure!(stage.count(&two)? == 1, "a counter is shared");
    ensure!(stage.fetch(&two, "/probe/file")?["text"].is_null(), "a file is shared");
    stage.suspend(&one)?;
    let three = stage.launch()?;
    ensure!(stage.count(&three)? == 1, "a suspend changed what launches start from");
    ensure!(stage.fetch(&three, "/probe/file")?["text"].is_null(), "a suspend changed the base disk");
    ensure!(stage.count(&one)? == 4 && stage.count(&two)? == 2, "a counter was lost");
    Ok(())
}

fn second_is_small(stage: &mut Stage) -> anyhow::Result<()> {
    stage.launch()?;
    let second = stage.launch()?;
    let bytes = machine::bytes_on_disk(&stage.directory_of(&second.id));
    ensure!(bytes <= 20_000_000, "a second microVM takes {bytes} bytes");
    Ok(())
}

fn one_wake(stage: &mut Stage) -> anyhow::Result<()> {
    let microvm = stage.launch()?;
    ensure!(stage.count(&microvm)? == 1);
    stage.suspend(&microvm)?;
    let answers = stage.aws.ask_many(stage.request(&microvm, "/probe/count"), 50)?;
    let mut counts: Vec<u64> =
        answers.iter().map(|answer| answer.json()?["count"].as_u64().context("no count")).collect::<Result<_, _>>()?;
    counts.sort_unstable();
    ensure!(counts == (2..=51).collect::<Vec<_>>(), "counts: {counts:?}");
    stage.vmm_of(&microvm.id)?;
    Ok(())
}

fn random(stage: &mut Stage) -> anyhow::Result<()> {
    let (one, two) = (stage.launch()?, stage.launch()?);
    let mut drawn = Vec::new();
    for microvm in [&one, &two] {
        for _ in 0..2 {
            drawn.push(stage.fetch(microvm, "/probe/random")?["random"].to_string());
        }
    }
    drawn.sort();
    drawn.dedup();
    ensure!(drawn.len() == 4, "clones drew the same random numbers: {drawn:?}");
    Ok(())
}

fn clock(stage: &mut Stage) -> anyhow::Result<()> {
    let off = |stage: &Stage, microvm| -> anyhow::Result<f64> {
        let now = || SystemTime::now().duration_since(UNIX_EPOCH).map(|since| since.as_secs_f64());
        let before = now()?;
        let told = stage.fetch(microvm, "/probe/clock")?["unix"].as_f64().context("no unix")?;
        let after = now()?;
        Ok(if told < before { before - told } else { (told - after).max(0.0) })
    };
    let microvm = stage.launch()?;
    let seconds = off(stage, &microvm)?;
    ensure!(seconds < 0.5, "after the launch the clock is off by {seconds} s");
    stage.suspend(&microvm)?;
    // Long enough that a clock that stood still is told from one that was set.
    std::thread::sleep(Duration::from_secs(3));
    let seconds = off(stage, &microvm)?;
    ensure!(seconds < 0.5, "after the wake the clock is off by {seconds} s");
    Ok(())
}

fn size(stage: &mut Stage) -> anyhow::Result<()> {
    let microvm = stage.launch()?;
    let machine = stage.fetch(&microvm, "/probe/machine")?;
    let memory = machine["memory_kib"].as_u64().context("no memory")? >> 10;
    ensure!((1850..=2048).contains(&memory), "512 MiB is seen as {memory} MiB");
    ensure!(machine["cpus"] == 1, "{} processors", machine["cpus"]);
    let disk = machine["disk_bytes"].as_u64().context("no disk")?;
    ensure!((7_000_000_000..=8_600_000_000).contains(&disk), "a disk of {disk} bytes");
    let env = &machine["env"];
    ensure!(env["AWS_LAMBDA_MICROVM_IMAGE_NAME"] == "stage", "{env}");
    ensure!(env["AWS_LAMBDA_MICROVM_IMAGE_ARN"] == json!(stage.image.arn), "{env}");
    ensure!(env["AWS_LAMBDA_MICROVM_IMAGE_VERSION"] == "1.0" && env["AWS_REGION"] == "us-east-1", "{env}");
    ensure!(env["FROM_THE_REQUEST"] == "yes, and = kept", "{env}");
    Ok(())
}

fn repeated(stage: &mut Stage) -> anyhow::Result<()> {
    let microvm = stage.launch()?;
    let verb = |verb: &str| stage.aws.microvms(verb, json!({"microvmIdentifier": microvm.id}));
    ensure!(verb("resume_microvm")? == json!({}), "resuming what runs");
    stage.suspend(&microvm)?;
    ensure!(verb("suspend_microvm")? == json!({}), "suspending what is suspended");
    stage.await_state(&microvm.id, "SUSPENDED")?;
    stage.terminate(&microvm.id)?;
    ensure!(verb("terminate_microvm")? == json!({}), "terminating what is terminated");
    for refused in ["suspend_microvm", "resume_microvm"] {
        let refusal = stage.aws.refusal(refused, json!({"microvmIdentifier": microvm.id}))?;
        let text = format!("The MicroVM {} has been terminated and its state cannot be changed.", microvm.id);
        ensure!(refusal.code == "ValidationException" && refusal.message == text, "{refused}: {refusal}");
    }
    Ok(())
}

fn terminate(stage: &mut Stage) -> anyhow::Result<()> {
    let before = stage.settled()?;
    let microvm = stage.launch()?;
    stage.count(&microvm)?;
    let vmm = stage.vmm_of(&microvm.id)?;
    let ended = stage.terminate(&microvm.id)?;
    ensure!(ended["terminatedAt"].is_number(), "{ended}");
    until("the VMM to be gone", Duration::from_secs(5), || {
        ensure!(!machine::is_alive(vmm.pid));
        Ok(())
    })?;
    stage.same_as(&before)?;
    stage.no_orphans()?;
    let answer = stage.get(&microvm, "/")?;
    ensure!(answer.status == 502, "a terminated microVM answers {}", answer.status);
    Ok(())
}

fn terminate_suspended(stage: &mut Stage) -> anyhow::Result<()> {
    let before = stage.settled()?;
    let microvm = stage.launch()?;
    stage.suspend(&microvm)?;
    stage.terminate(&microvm.id)?;
    stage.same_as(&before)?;
    stage.no_orphans()
}

fn app_exits(stage: &mut Stage) -> anyhow::Result<()> {
    let microvm = stage.launch()?;
    stage.fetch(&microvm, "/probe/exit?code=42")?;
    let ended = stage.await_state(&microvm.id, "TERMINATED")?;
    ensure!(ended["stateReason"] == "Container Stopped with Exit Code: 42", "{ended}");
    stage.no_orphans()
}
