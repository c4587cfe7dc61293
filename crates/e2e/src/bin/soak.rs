//! `make soak CYCLES=N`: suspend and wake N times, and look after each whether anything was lost. 1000 unless told.

#![forbid(unsafe_code)]

use std::{process::ExitCode, time::Duration};

use anyhow::Context;
use e2e::{
    Stage,
    soak::{self, Outcome},
    sweep,
};

/// Cycles when none are asked for.
const CYCLES: usize = 1000;

fn main() -> ExitCode {
    let done = sweep::on_interrupt().and_then(|()| soak());
    sweep::everything();
    match done {
        Ok(outcome) if outcome.failures.is_empty() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("soak: {error:?}");
            ExitCode::FAILURE
        }
    }
}

fn soak() -> anyhow::Result<Outcome> {
    let cycles = match std::env::args().nth(1).filter(|text| !text.is_empty()) {
        Some(text) => text.parse().with_context(|| format!("CYCLES is a number, not '{text}'"))?,
        None => CYCLES,
    };
    eprintln!("building the image (512 MiB baseline, 2 GiB guest) ...");
    let stage = Stage::set(&soak::source(), 512)?;
    let outcome = soak::run(&stage, &stage.image.arn, cycles, |line| eprintln!("{line}"))?;
    report(&outcome);
    stage.no_orphans()?;
    Ok(outcome)
}

fn report(outcome: &Outcome) {
    println!("{} cycles, {} failures", outcome.cycles, outcome.failures.len());
    for failure in &outcome.failures {
        println!("  {failure}");
    }
    let ms = |times: &[Duration]| times.iter().map(|time| time.as_secs_f64() * 1e3).collect();
    let mb = |bytes: &[u64]| bytes.iter().map(|bytes| *bytes as f64 / 1e6).collect();
    println!("{:<28} {:>10} {:>10} {:>10}", "per cycle", "p50", "p95", "p99");
    line("suspend, ms", ms(&outcome.suspends));
    line("wake, ms", ms(&outcome.wakes));
    line("written by the server, MB", mb(&outcome.written));
    line("suspend snapshot, MB", mb(&outcome.kept));
}

fn line(name: &str, mut values: Vec<f64>) {
    values.sort_by(f64::total_cmp);
    let [p50, p95, p99] = [0.5, 0.95, 0.99].map(|share| quantile(&values, share));
    println!("{name:<28} {p50:>10.1} {p95:>10.1} {p99:>10.1}");
}

/// The nearest of sorted values from above; nothing was measured if there is none.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let at = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(at.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::quantile;

    #[test]
    fn quantiles_are_the_nearest_from_above() {
        let sorted: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!([0.5, 0.95, 0.99].map(|share| quantile(&sorted, share)), [50.0, 95.0, 99.0]);
        assert_eq!(quantile(&[7.0], 0.5), 7.0);
        assert!(quantile(&[], 0.5).is_nan());
    }
}
