//! Suspend and wake, again and again: a guest that knows what its memory, files, timers, clocks and connections must
//! be like is asked after every wake, and what a suspend and a wake take is measured.

use std::{
    collections::HashSet,
    fs,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, ensure};
use serde_json::json;

use crate::{
    Microvm, Stage,
    image::{self, Source},
    machine,
    microvm::waking,
    outside::Outside,
};

/// MiB of the guest's memory that are checked.
const MEMORY_MIB: u32 = 256;

/// How wrong the guest's wall clock may be when it answers for the first time after a wake.
const CLOCK_OFF_MAX: f64 = 0.5;

/// How long one token is used; it is good for half an hour.
const TOKEN_USED_MAX: Duration = Duration::from_secs(20 * 60);

/// Cycles that may fail before the rest is given up.
const FAILURES_MAX: usize = 10;

/// What came of it.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Cycles that were gone through.
    pub cycles: usize,
    /// What failed, each with its cycle.
    pub failures: Vec<String>,
    /// SuspendMicrovm → SUSPENDED.
    pub suspends: Vec<Duration>,
    /// A request to it → 200.
    pub wakes: Vec<Duration>,
    /// Bytes the server wrote to files, per suspend.
    pub written: Vec<u64>,
    /// Bytes of the suspend snapshots.
    pub kept: Vec<u64>,
}

/// The image's source.
#[must_use]
pub fn source() -> Source {
    let dockerfile = "FROM pilotlight/python:3\nWORKDIR /app\nCOPY soak.py keepsakes.py ./\nEXPOSE 8080\n\
                      CMD [\"python3\", \"soak.py\"]\n";
    Source::dockerfile(dockerfile)
        .with("soak.py", include_bytes!("../probe/soak.py"))
        .with("keepsakes.py", include_bytes!("../probe/keepsakes.py"))
}

/// Goes through so many cycles with one microVM of this image, and removes it.
pub fn run(stage: &Stage, image_arn: &str, cycles: usize, mut told: impl FnMut(&str)) -> anyhow::Result<Outcome> {
    let outside = Outside::open()?;
    let mut microvm = stage.launch_with(json!({"imageIdentifier": image_arn, "idlePolicy": waking()}))?;
    let mut minted = Instant::now();
    stage.fetch(&microvm, &format!("/prepare?mib={MEMORY_MIB}&call={}", outside.address()))?;
    let mut outcome = Outcome::default();
    let mut drawn = HashSet::new();
    for number in 1..=cycles {
        if minted.elapsed() >= TOKEN_USED_MAX {
            microvm.token = stage.token(&microvm.id, json!([{"allPorts": {}}]))?;
            minted = Instant::now();
        }
        let failed = cycle(stage, &microvm, number, &mut outcome, &mut drawn);
        outcome.cycles = number;
        let lost = failed.is_err();
        let failures = failed.unwrap_or_else(|error| vec![format!("{error:#}")]);
        for failure in failures {
            told(&format!("cycle {number} FAILED: {failure}"));
            outcome.failures.push(format!("cycle {number}: {failure}"));
        }
        if lost || outcome.failures.len() >= FAILURES_MAX {
            break;
        }
        if number % 10 == 0 {
            let (suspend, wake) = (outcome.suspends[number - 1], outcome.wakes[number - 1]);
            let failures = outcome.failures.len();
            told(&format!("cycle {number}/{cycles}: {failures} failures, suspend {suspend:.2?}, wake {wake:.2?}"));
        }
    }
    stage.terminate(&microvm.id)?;
    Ok(outcome)
}

/// One cycle; what the guest found wrong, or why it could not be asked.
fn cycle(
    stage: &Stage,
    microvm: &Microvm,
    number: usize,
    outcome: &mut Outcome,
    drawn: &mut HashSet<String>,
) -> anyhow::Result<Vec<String>> {
    let before = written(stage)?;
    outcome.suspends.push(stage.timed_suspend(microvm)?);
    outcome.written.push(written(stage)? - before);
    outcome.kept.push(machine::bytes_on_disk(&stage.directory_of(&microvm.id).join("suspended")));

    let begin = Instant::now();
    let woken = stage.get(microvm, "/")?;
    outcome.wakes.push(begin.elapsed());
    ensure!(woken.status == 200, "woken with HTTP {}: {}", woken.status, woken.body);

    let asked = now()?;
    let answer = stage.fetch(microvm, &format!("/cycle?number={number}"))?;
    let answered = now()?;
    let failures = answer["failures"].as_array().context("no failures")?;
    let mut failures: Vec<String> = failures.iter().filter_map(|failure| failure.as_str().map(str::to_owned)).collect();
    let unix = answer["unix"].as_f64().context("no unix")?;
    if unix < asked - CLOCK_OFF_MAX || unix > answered + CLOCK_OFF_MAX {
        failures.push(format!("the wall clock says {unix} between {asked} and {answered}"));
    }
    if !drawn.insert(answer["random"].as_str().context("no random")?.to_owned()) {
        failures.push("random numbers were drawn before".to_owned());
    }
    Ok(failures)
}

fn now() -> anyhow::Result<f64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64())
}

/// Bytes that the server has written, or will have, to a disk.
fn written(stage: &Stage) -> anyhow::Result<u64> {
    let counters = fs::read_to_string(format!("/proc/{}/io", stage.server.pid()?))?;
    let line = counters.lines().find_map(|line| line.strip_prefix("write_bytes: ")).context("no write_bytes")?;
    Ok(line.parse()?)
}

/// Builds the image on this stage; its ARN.
pub fn build(stage: &Stage) -> anyhow::Result<String> {
    let zip = stage.scratch("soak.zip");
    source().zip(&zip)?;
    let image = image::settled(&stage.aws, image::create(&stage.aws, "soak", &zip)?)?;
    ensure!(image.state() == "CREATED", "{}", image.reason());
    Ok(image.arn)
}
