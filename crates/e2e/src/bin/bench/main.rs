//! `make bench [ONLY=group]`: what a user waits for, beside the bare baseline measured in the same run.
//!
//! Each figure is taken ten times after one warm-up, bare and through Pilotlight in turn, so that a slow minute of the
//! machine slows both.

#![forbid(unsafe_code)]

mod api;
mod burst;
mod crowd;
mod driver;
mod edge;
mod life;
mod load;

use std::{fs, process::ExitCode, time::Duration};

use anyhow::{Context, ensure};
use e2e::{Stage, bare::Bare, image::Source, repository, sweep};
use serde_json::json;

/// How often each figure is taken.
const ROUNDS: usize = 10;

/// Rounds before them that do not count.
const WARM_UPS: usize = 1;

/// What the app is asked.
const PATH: &str = "/";

const GROUPS: [&str; 8] = ["launch", "suspend", "wake", "burst", "crowd", "driver", "api", "edge"];

/// Those that need no VM.
const WITHOUT_VMS: [&str; 2] = ["api", "edge"];

fn main() -> ExitCode {
    let asked: Vec<String> = std::env::args().skip(1).filter(|group| !group.is_empty()).collect();
    let done = sweep::on_interrupt().and_then(|()| bench(&asked));
    sweep::everything();
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:?}");
            ExitCode::FAILURE
        }
    }
}

/// One line of the table.
struct Row {
    group: &'static str,
    name: String,
    unit: &'static str,
    value: f64,
    baseline: Option<f64>,
}

impl Row {
    fn ratio(&self) -> Option<f64> {
        self.baseline.filter(|baseline| *baseline > 0.0).map(|baseline| self.value / baseline)
    }
}

fn bench(asked: &[String]) -> anyhow::Result<()> {
    for group in asked {
        ensure!(GROUPS.contains(&group.as_str()), "there is no group '{group}'; the groups are {}", GROUPS.join(", "));
    }
    let wanted = |group: &str| asked.is_empty() || asked.iter().any(|name| name == group);
    let mut rows = Vec::new();
    if wanted("api") {
        rows.extend(api::bench()?);
    }
    if wanted("edge") {
        rows.extend(edge::bench()?);
    }
    if GROUPS.into_iter().any(|group| !WITHOUT_VMS.contains(&group) && wanted(group)) {
        rows.extend(over_vms(wanted)?);
    }
    report(&rows)
}

/// The groups that need an image and VMs.
fn over_vms(wanted: impl Fn(&str) -> bool) -> anyhow::Result<Vec<Row>> {
    eprintln!("building the image (512 MiB baseline, 2 GiB guest) ...");
    let mut stage = Stage::set(&Source::probe()?, 512)?;
    eprintln!("built in {:.1} s", stage.build_time.as_secs_f64());
    let model = stage.launch()?;
    let vmm = stage.vmm_of(&model.id)?;
    let by_hand = |name: &str| Bare::like(&vmm, &stage.version_dir()?, &stage.scratch(name));
    let bare = by_hand("bare")?;
    let mut rows = Vec::new();
    if wanted("driver") {
        rows.push(driver::idle_qemu(&stage, &model)?);
    }
    stage.terminate(&model.id)?;
    if wanted("launch") {
        rows.extend(life::launch(&stage, &bare)?);
    }
    if wanted("suspend") || wanted("wake") {
        rows.extend(life::suspend_and_wake(&stage, &bare)?.into_iter().filter(|row| wanted(row.group)));
    }
    if wanted("burst") {
        let many: Vec<_> = (0..burst::COUNT).map(|index| by_hand(&format!("bare{index}"))).collect::<Result<_, _>>()?;
        rows.extend(burst::bench(&stage, &many)?);
    }
    if wanted("crowd") {
        rows.extend(crowd::bench(&mut stage)?);
    }
    if wanted("driver") {
        rows.extend(driver::bench(&stage.scratch("driver"))?);
    }
    Ok(rows)
}

fn quantiles(group: &'static str, name: &str, mut ours: Vec<Duration>, mut floor: Vec<Duration>) -> Vec<Row> {
    ours.sort_unstable();
    floor.sort_unstable();
    [("p50", 0.5), ("p95", 0.95)]
        .into_iter()
        .map(|(label, share)| Row {
            group,
            name: format!("{name}, {label}"),
            unit: "ms",
            value: quantile(&ours, share),
            baseline: (!floor.is_empty()).then(|| quantile(&floor, share)),
        })
        .collect()
}

/// In milliseconds, between the two nearest of sorted values.
fn quantile(sorted: &[Duration], share: f64) -> f64 {
    let at = share * (sorted.len() - 1) as f64;
    let (low, high) = (sorted[at.floor() as usize].as_secs_f64(), sorted[at.ceil() as usize].as_secs_f64());
    (low + (high - low) * at.fract()) * 1000.0
}

/// Places behind the point that a value deserves.
fn digits(value: f64) -> usize {
    if value < 10.0 { 2 } else { 1 }
}

fn report(rows: &[Row]) -> anyhow::Result<()> {
    println!("{:<8} {:<42} {:>12} {:>12} {:>7}", "group", "figure", "pilotlight", "bare", "ratio");
    for row in rows {
        let or_dash = |value: Option<f64>, digits: usize| value.map_or("-".into(), |value| format!("{value:.digits$}"));
        let value = if row.unit == "bytes" {
            format!("{:.1} MB", row.value / 1e6)
        } else {
            format!("{:.*} {}", digits(row.value), row.value, row.unit)
        };
        let baseline = or_dash(row.baseline, row.baseline.map_or(1, digits));
        let baseline = if row.baseline.is_some() { format!("{baseline} {}", row.unit) } else { baseline };
        println!("{:<8} {:<42} {value:>12} {baseline:>12} {:>7}", row.group, row.name, or_dash(row.ratio(), 2));
    }
    let list: Vec<_> = rows
        .iter()
        .map(|row| {
            json!({
                "group": row.group, "name": row.name, "unit": row.unit, "value": row.value,
                "baseline": row.baseline, "ratio": row.ratio(),
            })
        })
        .collect();
    let path = repository().join("target/bench.json");
    fs::write(&path, serde_json::to_vec_pretty(&list)?).with_context(|| format!("writing {}", path.display()))?;
    println!("written to target/bench.json");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_between_the_nearest_values() {
        let sorted: Vec<_> = (1..=10).map(|number| Duration::from_millis(number * 10)).collect();
        assert!((quantile(&sorted, 0.5) - 55.0).abs() < 1e-6);
        assert!((quantile(&sorted, 0.95) - 95.5).abs() < 1e-6);
        assert!((quantile(&sorted[..1], 0.95) - 10.0).abs() < 1e-6);
    }
}
