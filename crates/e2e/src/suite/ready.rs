//! VMs that are ready before anybody asks for one.

use std::{collections::BTreeSet, path::Path, time::Duration};

use anyhow::ensure;
use e2e::{Stage, machine, until};
use serde_json::Value;

use super::Test;

pub const TESTS: &[Test] = &[
    ("ready::launches_and_wakes_take_what_is_ready", taken),
    ("ready::one_that_is_killed_is_not_missed", killed),
    ("ready::what_is_ready_goes_with_its_microvm", given_up),
    ("ready::what_is_ready_goes_with_the_server", server_goes),
];

const PATIENCE: Duration = Duration::from_secs(60);

/// The processes that wait.
fn waiting(data_dir: &Path) -> BTreeSet<u32> {
    let dir = data_dir.join("ready");
    let pid_in = |unit: String| {
        let record = std::fs::read(dir.join(unit).join("vm/vm.json")).ok()?;
        let pid = serde_json::from_slice::<Value>(&record).ok()?["process"]["pid"].as_u64()?;
        u32::try_from(pid).ok().filter(|pid| machine::is_alive(*pid))
    };
    machine::names_in(&dir).into_iter().filter_map(pid_in).collect()
}

/// Those that wait, once they are so many.
fn wait_for(stage: &Stage, count: usize) -> anyhow::Result<BTreeSet<u32>> {
    let mut found = BTreeSet::new();
    until("VMs to be ready", PATIENCE, || {
        found = waiting(stage.server.data_dir());
        ensure!(found.len() == count, "{} are ready, not {count}", found.len());
        Ok(())
    })?;
    Ok(found)
}

/// Two launches, so that two more are prepared for; the microVMs, and what waits for launches.
fn two(stage: &Stage) -> anyhow::Result<([String; 2], BTreeSet<u32>)> {
    let [one, two] = [stage.launch()?, stage.launch()?];
    Ok(([one.id, two.id], wait_for(stage, 2)?))
}

fn taken(stage: &mut Stage) -> anyhow::Result<()> {
    let (_, for_launches) = two(stage)?;
    let microvm = stage.launch()?;
    ensure!(stage.count(&microvm)? == 1);
    ensure!(for_launches.contains(&stage.vmm_of(&microvm.id)?.pid), "it was launched in another VM");
    let for_launches = wait_for(stage, 2)?;
    stage.suspend(&microvm)?;
    let all = wait_for(stage, 3)?;
    ensure!(stage.count(&microvm)? == 2);
    let vmm = stage.vmm_of(&microvm.id)?.pid;
    ensure!(all.contains(&vmm) && !for_launches.contains(&vmm), "{vmm} is not the one of {all:?} for its wake");
    ensure!(wait_for(stage, 2)? == for_launches, "those for launches are others");
    stage.no_orphans()
}

fn killed(stage: &mut Stage) -> anyhow::Result<()> {
    let (_, ready) = two(stage)?;
    for pid in &ready {
        machine::kill(*pid)?;
    }
    let microvm = stage.launch()?;
    ensure!(stage.count(&microvm)? == 1);
    ensure!(wait_for(stage, 2)?.is_disjoint(&ready));
    stage.no_orphans()
}

fn given_up(stage: &mut Stage) -> anyhow::Result<()> {
    let ([one, _], for_launches) = two(stage)?;
    let microvm = stage.launch()?;
    wait_for(stage, 2)?;
    stage.suspend(&microvm)?;
    wait_for(stage, 3)?;
    stage.terminate(&microvm.id)?;
    // Soon, and not at once, where it was still being prepared.
    wait_for(stage, 2)?;
    ensure!(!for_launches.contains(&stage.vmm_of(&one)?.pid), "one VM was taken twice");
    stage.no_orphans()
}

fn server_goes(stage: &mut Stage) -> anyhow::Result<()> {
    let (microvms, ready) = two(stage)?;
    stage.server.crash()?;
    ensure!(ready.iter().all(|pid| machine::is_alive(*pid)), "they were not left behind");
    stage.server.start()?;
    ensure!(!ready.iter().any(|pid| machine::is_alive(*pid)), "what was left behind still waits");
    stage.no_orphans()?;

    let microvm = stage.launch()?;
    let ready = wait_for(stage, 1)?;
    stage.server.stop()?;
    ensure!(!ready.iter().any(|pid| machine::is_alive(*pid)), "it waits without a server");
    stage.server.start()?;
    for id in microvms.iter().chain([&microvm.id]) {
        ensure!(stage.describe(id)?["state"] == "RUNNING", "{id} was not left alone");
    }
    stage.no_orphans()
}
