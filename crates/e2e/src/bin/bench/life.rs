//! The groups `launch`, `suspend` and `wake`: one microVM at a time.

use std::time::{Duration, Instant};

use anyhow::ensure;
use e2e::{Microvm, Stage, bare::Bare, machine};

use crate::{PATH, ROUNDS, Row, WARM_UPS, quantiles};

/// How much memory the app writes before it is suspended, in MiB.
const DIRTY_MIB: [u32; 3] = [1, 64, 256];

/// How long a suspended microVM is left alone: short beside anybody's absence, long enough for what is done ahead of a wake.
const AWAY: Duration = Duration::from_secs(1);

/// RunMicrovm → first 200 through HTTPS with token.
pub fn launch(stage: &Stage, bare: &Bare) -> anyhow::Result<Vec<Row>> {
    let (mut ours, mut floor, mut bytes) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..WARM_UPS + ROUNDS {
        eprintln!("launch {round}/{ROUNDS}");
        let by_hand = bare.launch(PATH)?.to_first_answer;
        let (microvm, took) = timed_launch(stage)?;
        if round >= WARM_UPS {
            floor.push(by_hand);
            ours.push(took);
            bytes.push(machine::bytes_on_disk(&stage.directory_of(&microvm.id)));
        }
        stage.terminate(&microvm.id)?;
    }
    let mut rows = quantiles("launch", "RunMicrovm → first 200", ours, floor);
    bytes.sort_unstable();
    rows.push(Row {
        group: "launch",
        name: "disk of a second microVM".into(),
        unit: "bytes",
        value: bytes[bytes.len() / 2] as f64,
        baseline: None,
    });
    Ok(rows)
}

fn timed_launch(stage: &Stage) -> anyhow::Result<(Microvm, Duration)> {
    let begin = Instant::now();
    let microvm = stage.begin_launch()?;
    ask(stage, &microvm, PATH)?;
    Ok((microvm, begin.elapsed()))
}

fn ask(stage: &Stage, microvm: &Microvm, path: &str) -> anyhow::Result<()> {
    let answer = stage.get(microvm, path)?;
    ensure!(answer.status == 200, "HTTP {}: {}", answer.status, answer.body);
    Ok(())
}

/// For each amount of changed memory: SuspendMicrovm → SUSPENDED; a request to it → 200; and once more SuspendMicrovm →
/// SUSPENDED, of a microVM that has done next to nothing since, beside a copy of all that ever changed.
pub fn suspend_and_wake(stage: &Stage, bare: &Bare) -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for mib in DIRTY_MIB {
        let dirty = format!("/probe/dirty?mib={mib}");
        let (mut suspends, mut wakes, mut agains) = (vec![], vec![], vec![]);
        let (mut suspends_floor, mut wakes_floor) = (vec![], vec![]);
        for round in 0..WARM_UPS + ROUNDS {
            eprintln!("suspend and wake with {mib} MiB {round}/{ROUNDS}");
            let saved = bare.suspend(bare.launch(&dirty)?)?;
            let woken = bare.wake(&saved, PATH)?.to_first_answer;

            let (microvm, _) = timed_launch(stage)?;
            ask(stage, &microvm, &dirty)?;
            let suspended = stage.timed_suspend(&microvm)?;
            std::thread::sleep(AWAY);
            let begin = Instant::now();
            ask(stage, &microvm, PATH)?;
            let woke = begin.elapsed();
            let again = stage.timed_suspend(&microvm)?;
            stage.terminate(&microvm.id)?;
            if round >= WARM_UPS {
                suspends.push(suspended);
                suspends_floor.push(saved.took);
                wakes.push(woke);
                wakes_floor.push(woken);
                agains.push(again);
            }
        }
        rows.extend(quantiles("suspend", &format!("suspend, {mib} MiB changed"), suspends, suspends_floor.clone()));
        rows.extend(quantiles("suspend", &format!("once more, {mib} MiB changed before"), agains, suspends_floor));
        rows.extend(quantiles("wake", &format!("request → wake → 200, {mib} MiB"), wakes, wakes_floor));
    }
    Ok(rows)
}
