//! What silence does: suspends the idle, and neither the busy, where the configuration says so, nor whoever is waited for.

use std::time::{Duration, Instant};

use anyhow::ensure;
use e2e::{Stage, until};
use serde_json::json;

use super::Test;

pub const TESTS: &[Test] = &[("idle::silence_suspends_the_idle_and_spares_the_busy_and_the_awaited", silence)];

/// The shortest idle duration there is.
const IDLE: Duration = Duration::from_secs(60);

/// How long the busy one works, and the awaited one thinks.
const WORK: Duration = Duration::from_secs(75);

/// How late a suspend may begin: what is asked for, and as much again for this machine and the question.
const LATE: Duration = Duration::from_secs(4);

/// Time between two looks at a microVM's work.
const LOOK: Duration = Duration::from_secs(5);

fn silence(stage: &mut Stage) -> anyhow::Result<()> {
    let policy = json!({"maxIdleDurationSeconds": 60, "suspendedDurationSeconds": 600, "autoResumeEnabled": true});
    let launch = || stage.launch_with(json!({"idlePolicy": policy}));
    let (idle, busy, awaited) = (launch()?, launch()?, launch()?);
    let state = |id: &str| -> anyhow::Result<String> {
        Ok(stage.describe(id)?["state"].as_str().unwrap_or_default().to_owned())
    };
    let seconds = WORK.as_secs();
    let answer = stage.get_later(&awaited, &format!("/probe/think?seconds={seconds}"))?;
    stage.fetch(&busy, &format!("/probe/spin?seconds={seconds}"))?;
    let working = Instant::now();
    stage.count(&idle)?;
    let silent = Instant::now();
    until("the idle one to be suspended", IDLE + LATE, || {
        let now = state(&idle.id)?;
        ensure!(now == "SUSPENDING" || now == "SUSPENDED", "it is {now} after {:?}", silent.elapsed());
        Ok(())
    })?;
    ensure!(silent.elapsed() + Duration::from_secs(1) > IDLE, "suspended after {:?}", silent.elapsed());
    while working.elapsed() + Duration::from_secs(2) < WORK {
        for id in [&busy.id, &awaited.id] {
            ensure!(state(id)? == "RUNNING", "{id} was suspended after {:?}", working.elapsed());
        }
        std::thread::sleep(Duration::from_secs(1));
    }
    let answer = answer.wait()?;
    ensure!(answer["status"] == 200, "a request that was waited for was cut off: {answer}");
    let left = (WORK + IDLE + LOOK + LATE).saturating_sub(working.elapsed());
    until("the busy one to be suspended", left, || {
        let now = state(&busy.id)?;
        ensure!(now == "SUSPENDING" || now == "SUSPENDED", "it is {now} after {:?}", working.elapsed());
        Ok(())
    })?;
    ensure!(working.elapsed() + LOOK > WORK + IDLE, "the busy one was suspended after {:?}", working.elapsed());
    ensure!(stage.count(&busy)? == 1 && stage.count(&idle)? == 2, "a counter was lost");
    Ok(())
}
