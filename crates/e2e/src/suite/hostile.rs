//! Guests that do their worst from inside: the host stays as it was, and so do their neighbours.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use anyhow::{Context, ensure};
use e2e::{Microvm, Stage, machine, until};

use super::Test;

pub const TESTS: &[Test] = &[
    ("hostile::a_flood_of_output_costs_the_host_bounded_disk_and_memory", flood),
    ("hostile::the_agents_port_is_not_for_the_app", agent),
    ("hostile::a_guest_out_of_memory_and_processes_harms_itself_alone", exhaust),
    ("hostile::a_full_guest_disk_is_the_guests_trouble_alone", fill),
    ("hostile::a_flood_of_the_serial_console_costs_the_host_bounded_disk", console),
    ("hostile::a_fork_bomb_harms_its_own_microvm_alone", bomb),
    ("hostile::a_guest_that_ruins_its_own_disk_before_a_suspend_ruins_nothing_else", scribble),
];

/// What two files of a bounded log may have, and the last write beyond.
const LOG_BYTES_MAX: u64 = (2 << 20) + (64 << 10);

/// What a flood may cost the server: buffers of a connection, not the flood.
const SERVER_GROWTH_MAX: u64 = 64 << 20;

fn flood(stage: &mut Stage) -> anyhow::Result<()> {
    let microvm = stage.launch()?;
    stage.count(&microvm)?;
    let before = resident(stage.server.pid()?)?;
    let wrote = stage.fetch(&microvm, "/probe/flood?mib=8")?;
    ensure!(wrote["mib"] == 8, "{wrote}");
    ensure!(stage.count(&microvm)? == 2, "it does not answer as before");
    let logs = stage.server.data_dir().join("logs/microvms").join(&microvm.id);
    until("the flood to be seen in the log", Duration::from_secs(20), || {
        ensure!(size_of_files(&logs)? > 1 << 20, "only {} bytes", size_of_files(&logs)?);
        Ok(())
    })?;
    let kept = size_of_files(&logs)?;
    ensure!(kept <= 2 * LOG_BYTES_MAX, "{kept} bytes of logs are kept, of the app and of the console together");
    let grown = resident(stage.server.pid()?)?.saturating_sub(before);
    ensure!(grown < SERVER_GROWTH_MAX, "the server grew by {grown} bytes");
    sleeps_and_wakes(stage, &microvm, 3)
}

/// The agent serves its link's other end; what runs beside it in the guest is not that.
fn agent(stage: &mut Stage) -> anyhow::Result<()> {
    let microvm = stage.launch()?;
    let own = "127.0.0.1:8080";
    let port = guest_protocol::AGENT_PORT;
    let query: String = [guest_protocol::GUEST_ADDRESS.to_string(), "127.0.0.1".to_owned(), "[::1]".to_owned()]
        .iter()
        .map(|address| format!("to={address}:{port}&"))
        .collect();
    // Opening a connection may succeed; being served may not.
    let answer = stage.fetch(&microvm, &format!("/probe/talk?{query}"))?;
    ensure!(answer["answered"] == serde_json::json!([]), "the agent answered the app: {answer}");
    let answer = stage.fetch(&microvm, &format!("/probe/connect?to={own}"))?;
    ensure!(answer["reached"] == serde_json::json!([own]), "the question is not answered truthfully: {answer}");
    sleeps_and_wakes(stage, &microvm, 1)
}

fn exhaust(stage: &mut Stage) -> anyhow::Result<()> {
    let (one, two) = (stage.launch()?, stage.launch()?);
    stage.count(&two)?;
    let vmm = stage.vmm_of(&one.id)?;
    // An emulated guest takes a while to touch all it has, and answers badly when it has nothing left.
    stage.fetch(&one, "/probe/eat")?;
    until("the guest's kernel to end what eats its memory", Duration::from_secs(240), || {
        std::thread::sleep(Duration::from_secs(1));
        match stage.fetch(&one, "/probe/eat") {
            Ok(ate) if ate["signal"] == 9 => Ok(()),
            Ok(ate) => anyhow::bail!("{ate}"),
            // The guest's kernel may have chosen the app after all; then its end must be told as what it was.
            Err(error) => {
                let now = stage.describe(&one.id)?;
                ensure!(now["state"] == "TERMINATED", "{error:#}; {now}");
                Ok(())
            }
        }
    })?;
    let now = stage.describe(&one.id)?;
    if now["state"] == "TERMINATED" {
        let reason = now["stateReason"].as_str().unwrap_or_default();
        ensure!(reason.contains("Exit Code: 137"), "{now}");
        ensure!(stage.count(&two)? == 2, "its neighbour does not answer as before");
        return stage.no_orphans();
    }
    within_its_group(vmm.pid)?;
    let forked = stage.fetch(&one, "/probe/fork?most=40")?;
    ensure!(forked["children"].as_u64().is_some_and(|children| children > 0), "{forked}");
    ensure!(machine::is_alive(vmm.pid), "the VMM did not survive its guest's troubles");
    ensure!(stage.count(&one)? == 1 && stage.count(&two)? == 2, "somebody does not answer as before");
    sleeps_and_wakes(stage, &one, 2)?;
    stage.no_orphans()
}

fn fill(stage: &mut Stage) -> anyhow::Result<()> {
    let microvm = stage.launch()?;
    let filled = stage.fetch(&microvm, "/probe/fill")?;
    ensure!(filled["error"] == "ENOSPC", "{filled}");
    ensure!(filled["bytes"].as_u64().is_some_and(|bytes| bytes > 1 << 30), "{filled}");
    let taken = machine::bytes_on_disk(&stage.directory_of(&microvm.id));
    ensure!(taken < 512 << 20, "a guest that reserved its whole disk takes {taken} bytes of the host's");
    // Full, and suspended so.
    stage.suspend(&microvm)?;
    ensure!(stage.count(&microvm)? == 1, "it does not answer as before");
    let emptied = stage.fetch(&microvm, "/probe/file?text=room%20again")?;
    ensure!(emptied["text"] == "room again", "{emptied}");
    Ok(())
}

/// Root in the guest opens `/dev/console`, and makes the nodes it is not given: an ordinary container may do both.
fn console(stage: &mut Stage) -> anyhow::Result<()> {
    let microvm = stage.launch()?;
    let before = resident(stage.server.pid()?)?;
    let took = stage.fetch(&microvm, "/probe/console?kib=1152")?;
    // What is said to /dev/kmsg the kernel keeps for itself.
    let said: u64 = ["console", "ttyS0"].iter().filter_map(|way| took[way].as_u64()).sum();
    ensure!(said > LOG_BYTES_MAX, "the console takes too little, so this tests nothing: {took}");
    let log = stage.server.data_dir().join("logs/microvms").join(&microvm.id).join("console.log");
    until("the console's log to be full once", Duration::from_secs(20), || {
        ensure!(log.with_extension("log.1").exists(), "{took}");
        Ok(())
    })?;
    let kept = fs::metadata(&log)?.len() + fs::metadata(log.with_extension("log.1"))?.len();
    ensure!(kept <= LOG_BYTES_MAX, "{kept} bytes of the console are kept, of {took}");
    let grown = resident(stage.server.pid()?)?.saturating_sub(before);
    ensure!(grown < SERVER_GROWTH_MAX, "the server grew by {grown} bytes");
    sleeps_and_wakes(stage, &microvm, 1)
}

/// A VMM whose guest took all it has is within its control group's limit, and was not the one to be ended for it.
fn within_its_group(vmm: u32) -> anyhow::Result<()> {
    // Without a controller there is no limit to stay within; `pilotlight doctor` says so.
    let Some(group) = Group::of(vmm)? else { return Ok(()) };
    let limit = group.read("memory.max", "memory.limit_in_bytes")?;
    let used = group.read("memory.current", "memory.usage_in_bytes")?;
    // 2 GiB, which is what a guest of 512 MiB sees, and the VMM's own 512 MiB.
    ensure!(limit == 2560 << 20, "the group's limit is {limit} bytes");
    ensure!((1 << 30..=limit).contains(&used), "{used} bytes are in use after a guest took all it has");
    let events =
        fs::read_to_string(group.dir.join(if group.unified { "memory.events" } else { "memory.oom_control" }))?;
    ensure!(events.lines().any(|line| line == "oom_kill 0"), "the host's kernel ended something:\n{events}");
    Ok(())
}

/// Whether its app outlives the bomb is the guest's kernel's choice; what is said of it must be true either way.
fn bomb(stage: &mut Stage) -> anyhow::Result<()> {
    let (one, two) = (stage.launch()?, stage.launch()?);
    let vmm = stage.vmm_of(&one.id)?;
    let group = Group::of(vmm.pid)?;
    stage.fetch(&one, "/probe/bomb")?;
    for count in 1..=3 {
        thread::sleep(Duration::from_secs(1));
        ensure!(stage.count(&two)? == count, "another microVM was hurt");
    }
    // As many as a thread a processor and a full pool for the disks, whatever the guest does.
    if let Ok(threads) = fs::read_dir(format!("/proc/{}/task", vmm.pid)) {
        let threads = threads.count();
        ensure!(threads <= 128, "the VMM has {threads} threads");
    }
    let now = stage.describe(&one.id)?;
    let ended = if now["state"] == "RUNNING" { stage.terminate(&one.id)? } else { now };
    ensure!(ended["state"] == "TERMINATED" && ended["stateReason"].is_string(), "{ended}");
    stage.no_orphans()?;
    ensure!(group.is_none_or(|group| !group.dir.exists()), "the control group is left");
    ensure!(stage.count(&two)? == 4, "another microVM was hurt");
    Ok(())
}

/// No capability beyond a container's is needed: root makes the node of its disk and writes to it.
fn scribble(stage: &mut Stage) -> anyhow::Result<()> {
    let (one, two) = (stage.launch()?, stage.launch()?);
    let server = stage.server.pid()?;
    stage.count(&two)?;
    stage.fetch(&one, "/probe/file?text=before")?;
    let wrote = stage.fetch(&one, "/probe/scribble?mib=16")?;
    ensure!(wrote["bytes"] == 16 << 20, "the disk was not written to, so this tests nothing: {wrote}");
    // A host never reads a guest's file system: to it this is a suspend as any other.
    stage.suspend(&one)?;
    // The app may have lost files it needs, and then says so or ends; what it does is its own affair.
    stage.get(&one, "/probe/count")?;
    stage.get(&one, "/probe/file?text=after")?;
    let now = until("it to settle", Duration::from_secs(30), || {
        let now = stage.describe(&one.id)?;
        ensure!(["RUNNING", "SUSPENDED", "TERMINATED"].iter().any(|state| now["state"] == *state), "{now}");
        Ok(now)
    })?;
    ensure!(now["state"] != "TERMINATED" || now["stateReason"].is_string(), "{now}");
    ensure!(stage.server.is_up() && stage.server.pid()? == server, "the server did not survive it");
    ensure!(stage.count(&two)? == 2, "another microVM was hurt");
    let three = stage.launch()?;
    ensure!(stage.fetch(&three, "/probe/file?text=fine")?["text"] == "fine", "what launches start from was hurt");
    stage.no_orphans()
}

/// The control group that a VMM is in.
struct Group {
    dir: PathBuf,
    unified: bool,
}

impl Group {
    /// The one that counts a process's memory, if it is Pilotlight's.
    fn of(pid: u32) -> anyhow::Result<Option<Self>> {
        let lines = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        let found = lines.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let (controllers, path) = (fields.next()?, fields.next()?.strip_prefix('/')?);
            let root = if controllers.is_empty() { "/sys/fs/cgroup" } else { "/sys/fs/cgroup/memory" };
            let counts = controllers.is_empty() || controllers.split(',').any(|name| name == "memory");
            let group = Self { dir: Path::new(root).join(path), unified: controllers.is_empty() };
            (counts && path.starts_with("pilotlight/")).then_some(group)
        });
        Ok(found)
    }

    /// A number, by its name in version 2 and in version 1.
    fn read(&self, two: &str, one: &str) -> anyhow::Result<u64> {
        let path = self.dir.join(if self.unified { two } else { one });
        let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        Ok(text.trim().parse()?)
    }
}

fn sleeps_and_wakes(stage: &mut Stage, microvm: &Microvm, count: u64) -> anyhow::Result<()> {
    stage.suspend(microvm)?;
    let found = stage.count(microvm)?;
    ensure!(found == count, "it counts {found} after a suspend, not {count}");
    Ok(())
}

fn resident(pid: u32) -> anyhow::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").trim().parse::<u64>()? * 1024)
}

fn size_of_files(dir: &Path) -> anyhow::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(dir)? {
        bytes += entry?.metadata()?.len();
    }
    Ok(bytes)
}
