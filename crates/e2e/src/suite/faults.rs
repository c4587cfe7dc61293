//! What breaks under a microVM, and what its user is told.

use std::{fs::OpenOptions, os::unix::fs::FileExt, time::Duration};

use anyhow::{Context, ensure};
use e2e::{Stage, disk, machine, until};
use serde_json::json;

use super::Test;

pub const TESTS: &[Test] = &[
    ("faults::a_vmm_that_is_killed_ends_its_microvm_and_leaves_nothing", vmm_killed),
    ("faults::a_full_disk_leaves_a_suspending_microvm_running_and_says_why", disk_full),
    ("faults::a_damaged_suspend_file_is_not_resumed", damaged),
];

fn vmm_killed(stage: &mut Stage) -> anyhow::Result<()> {
    let (doomed, other) = (stage.launch()?, stage.launch()?);
    let vmm = stage.vmm_of(&doomed.id)?;
    machine::kill(vmm.pid)?;
    let ended = stage.await_state(&doomed.id, "TERMINATED")?;
    let reason = ended["stateReason"].as_str().context("no stateReason")?;
    ensure!(!reason.is_empty() && reason != "Success.", "the reason is '{reason}'");
    ensure!(stage.count(&other)? == 1, "another microVM was hurt");
    stage.no_orphans()
}

fn disk_full(stage: &mut Stage) -> anyhow::Result<()> {
    let microvm = stage.launch()?;
    stage.count(&microvm)?;
    stage.fetch(&microvm, "/probe/dirty?mib=96")?;
    let vmm = stage.vmm_of(&microvm.id)?;
    let filler = disk::Filler::leave(&stage.disk(), 24 << 20)?;
    // The service's own answer to a suspend is that it was asked for; a refusal at once is as true.
    let asked = stage.aws.microvms("suspend_microvm", json!({"microvmIdentifier": microvm.id}));
    let told = until("the microVM to be running again and say why", Duration::from_secs(60), || {
        let now = stage.describe(&microvm.id)?;
        ensure!(now["state"] == "RUNNING" && !now["stateReason"].is_null(), "{now}, asked: {asked:?}");
        Ok(now["stateReason"].as_str().unwrap_or_default().to_lowercase())
    })?;
    ensure!(["space", "disk", "storage"].iter().any(|word| told.contains(word)), "the reason is '{told}'");
    ensure!(stage.vmm_of(&microvm.id)? == vmm, "it is not the same VM any more");
    ensure!(stage.count(&microvm)? == 2, "the counter was lost");
    drop(filler);
    let left = machine::bytes_on_disk(&stage.directory_of(&microvm.id));
    ensure!(left < 48 << 20, "the failed suspend left {left} bytes");
    stage.suspend(&microvm)?;
    ensure!(stage.count(&microvm)? == 3, "the counter was lost in the suspend after it");
    ensure!(stage.describe(&microvm.id)?["stateReason"].is_null(), "the old reason is still told");
    stage.no_orphans()
}

fn damaged(stage: &mut Stage) -> anyhow::Result<()> {
    let microvm = stage.launch()?;
    stage.count(&microvm)?;
    stage.suspend(&microvm)?;
    let layer = stage.directory_of(&microvm.id).join("suspended/memory.layer");
    let file =
        OpenOptions::new().read(true).write(true).open(&layer).with_context(|| format!("{}", layer.display()))?;
    let mut byte = [0];
    let middle = file.metadata()?.len() / 2;
    file.read_exact_at(&mut byte, middle)?;
    file.write_all_at(&[byte[0] ^ 0x10], middle)?;
    drop(file);
    let answer = stage.get(&microvm, "/probe/count")?;
    ensure!(answer.status == 502, "a damaged microVM answered {}: {}", answer.status, answer.body);
    let now = until("it to settle", Duration::from_secs(30), || {
        let now = stage.describe(&microvm.id)?;
        ensure!(["SUSPENDED", "TERMINATED"].iter().any(|state| now["state"] == *state), "{now}");
        Ok(now)
    })?;
    let reason = now["stateReason"].as_str().context("nothing says why")?.to_lowercase();
    ensure!(["damage", "corrupt", "checksum"].iter().any(|word| reason.contains(word)), "the reason is '{reason}'");
    stage.no_orphans()
}
