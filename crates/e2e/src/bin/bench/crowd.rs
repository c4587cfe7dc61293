//! The group `crowd`: two hundred microVMs asleep, a server that is killed, and as many awake as the host takes.
//!
//! Whoever is lost, or remembers something else than its own, fails the run.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use e2e::{Microvm, Stage, machine};

use crate::{Row, quantile};

/// MicroVMs in the crowd.
const COUNT: usize = 200;

/// Counts that a microVM is told apart by: neighbours differ.
const COUNTS: usize = 5;

/// One of the crowd, and how far it has counted.
struct Member {
    microvm: Microvm,
    counted: u64,
}

pub fn bench(stage: &mut Stage) -> anyhow::Result<Vec<Row>> {
    let mut crowd = Vec::new();
    let begin = Instant::now();
    for index in 0..COUNT {
        if index % 20 == 0 {
            eprintln!("crowd: {index}/{COUNT} asleep");
        }
        let microvm = stage.launch()?;
        let mut counted = 0;
        for _ in 0..=index % COUNTS {
            counted = stage.count(&microvm)?;
        }
        stage.suspend(&microvm)?;
        crowd.push(Member { microvm, counted });
    }
    let each = begin.elapsed() / u32::try_from(COUNT)?;
    let bytes = machine::bytes_on_disk(&stage.server.data_dir().join("microvms")) / COUNT as u64;

    stage.server.crash()?;
    let begin = Instant::now();
    stage.server.start()?;
    let restart = begin.elapsed();
    stage.no_orphans()?;
    let asleep = stage.live()?.into_iter().filter(|(_, state)| state == "SUSPENDED").count();
    ensure!(asleep == COUNT, "{asleep} of {COUNT} sleep after the server was killed");

    let before = available_bytes()?;
    let (awake, wakes) = wake(stage, &mut crowd)?;
    let memory = before.saturating_sub(available_bytes()?) / awake as u64;
    for member in &crowd {
        stage.terminate(&member.microvm.id)?;
    }
    stage.no_orphans()?;

    let row = |name: &str, unit, value| Row { group: "crowd", name: name.to_owned(), unit, value, baseline: None };
    Ok(vec![
        row("launch, use and suspend one of 200", "ms", each.as_secs_f64() * 1e3),
        row("disk of one that sleeps", "bytes", bytes as f64),
        row("start of the server with 200 asleep", "ms", restart.as_secs_f64() * 1e3),
        row("awake at once", "", awake as f64),
        row("wake beside them, p50", "ms", quantile(&wakes, 0.5)),
        row("memory of one awake", "bytes", memory as f64),
    ])
}

/// Wakes one after the other until the host has no more room. Whoever does not get in sleeps on, and whoever is awake
/// still answers in the end.
fn wake(stage: &Stage, crowd: &mut [Member]) -> anyhow::Result<(usize, Vec<Duration>)> {
    let mut wakes = Vec::new();
    for member in &mut *crowd {
        if wakes.len() % 20 == 0 {
            eprintln!("crowd: {} awake", wakes.len());
        }
        let begin = Instant::now();
        let answer = stage.get(&member.microvm, "/probe/count")?;
        if answer.status != 200 {
            let told = stage.describe(&member.microvm.id)?;
            ensure!(told["state"] == "SUSPENDED", "HTTP {}, and {told}", answer.status);
            eprintln!("crowd: no room for another: {} {}", told["stateReason"], answer.body);
            break;
        }
        wakes.push(begin.elapsed());
        check(member, answer.json()?["count"].as_u64().context("no count")?)?;
    }
    ensure!(!wakes.is_empty(), "none woke");
    for member in &mut crowd[..wakes.len()] {
        let count = stage.count(&member.microvm)?;
        check(member, count)?;
    }
    let awake = wakes.len();
    wakes.sort_unstable();
    Ok((awake, wakes))
}

fn check(member: &mut Member, count: u64) -> anyhow::Result<()> {
    member.counted += 1;
    ensure!(count == member.counted, "{} counts {count} instead of {}", member.microvm.id, member.counted);
    Ok(())
}

/// Memory that could be had without swapping.
fn available_bytes() -> anyhow::Result<u64> {
    let info = fs::read_to_string("/proc/meminfo")?;
    let line = info.lines().find_map(|line| line.strip_prefix("MemAvailable:")).context("no MemAvailable")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}
