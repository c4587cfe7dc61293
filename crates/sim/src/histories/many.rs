//! Many histories at once, and one by itself.

use std::{
    collections::BTreeSet,
    ops::Range,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use failpoint::{BUILD, RESUME, RUN, SUSPEND, TERMINATE};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use super::{Outcome, Place, play};

/// Failures that are told in full: when it is played again a history may come out otherwise.
const TOLD_MAX: usize = 20;

/// How often a history that failed is played again, to say whether it does so every time.
const REPLAYS: u32 = 3;

/// Of so many histories one may differ when it is played again: the runtime has dice of its own for whom it wakes first of
/// several that wait for one thing. Some three in a hundred do.
const DIFFER_PART_MAX: u64 = 8;

/// In so many histories a server has died at every named step.
const EVERY_STEP: u64 = 10_000;

#[derive(Default)]
struct Sums {
    played: u64,
    elapsed: Duration,
    faults: usize,
    lives: u64,
    died_at: BTreeSet<&'static str>,
    failed: Vec<u64>,
    differ: u64,
}

/// Plays the histories of these seeds; an error, if one of them came to what must never be.
pub fn play_many(seeds: Range<u64>, threads: Option<usize>, twice: bool) -> anyhow::Result<()> {
    let threads = threads.or_else(|| std::thread::available_parallelism().ok().map(Into::into)).unwrap_or(1);
    let (next, sums) = (AtomicU64::new(seeds.start), Mutex::new(Sums::default()));
    let begin = Instant::now();
    let work = || -> anyhow::Result<()> {
        let place = Place::new().context("there is no place for the files of histories")?;
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return Ok(());
            }
            let outcome = play(seed, &place).with_context(|| format!("history {seed} cannot be played"))?;
            let replay = || play(seed, &place).with_context(|| format!("history {seed} cannot be played again"));
            let wrong = match &outcome.violation {
                None => None,
                Some(wrong) => {
                    let mut times = 0;
                    for _ in 0..REPLAYS {
                        times += u32::from(replay()?.violation.is_some());
                    }
                    Some(format!("{wrong} (and again {times} times of {REPLAYS})"))
                }
            };
            let differs = if twice && wrong.is_none() { difference(&outcome, &replay()?) } else { None };
            let mut sums = sums.lock().unwrap_or_else(PoisonError::into_inner);
            sums.played += 1;
            sums.elapsed += outcome.elapsed;
            sums.faults += outcome.faults;
            sums.lives += u64::from(outcome.lives);
            sums.died_at.extend(&outcome.died_at);
            if let Some(differs) = differs {
                sums.differ += 1;
                println!("seed {seed}: {differs}");
            }
            if let Some(wrong) = wrong {
                sums.failed.push(seed);
                if sums.failed.len() <= TOLD_MAX {
                    tell(seed, &wrong, &outcome.log);
                }
            }
        }
    };
    std::thread::scope(|scope| {
        let work = &work;
        let on = |number| {
            stay_on_one_processor(number);
            work()
        };
        let workers: Vec<_> = (0..threads).map(|number| scope.spawn(move || on(number))).collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })?;
    let Sums { played, elapsed, faults, lives, died_at, mut failed, differ } =
        sums.into_inner().unwrap_or_else(PoisonError::into_inner);
    println!(
        "{played} histories from seed {}: {} servers, {faults} faults, {} hours of theirs in {:.0} s; {} failed",
        seeds.start,
        lives,
        elapsed.as_secs() / 3600,
        begin.elapsed().as_secs_f64(),
        failed.len()
    );
    if failpoint::ARMED {
        let steps = [RUN, SUSPEND, RESUME, TERMINATE, BUILD].concat();
        let missed: Vec<_> = steps.iter().filter(|step| !died_at.contains(*step)).collect();
        println!("a server died at {} of the {} named steps", died_at.len(), steps.len());
        if played >= EVERY_STEP && !missed.is_empty() {
            bail!("no server died at {missed:?}");
        }
    }
    if differ * DIFFER_PART_MAX > played {
        bail!("{differ} of {played} histories were not the same again");
    }
    if failed.is_empty() {
        return Ok(());
    }
    failed.sort_unstable();
    failed.truncate(TOLD_MAX);
    bail!(
        "these seeds failed, among others where there are {TOLD_MAX}: {failed:?}; play one again with `make sim SEED=n`"
    );
}

/// Keeps this thread, and those that the databases of its histories start, on one processor: they do nothing but wait for each
/// other, and to wake one elsewhere takes longer than most of what it is woken for. With it histories take half the time.
fn stay_on_one_processor(number: usize) {
    let Ok(allowed) = sched_getaffinity(None) else { return };
    let processors: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|&processor| allowed.is_set(processor)).collect();
    let mut one = CpuSet::new();
    one.set(processors[number % processors.len()]);
    // They are the same histories without.
    let _ = sched_setaffinity(None, &one);
}

fn tell(seed: u64, wrong: &str, log: &[String]) {
    println!("seed {seed}: {wrong}");
    for line in log {
        println!("    {line}");
    }
}

fn difference(one: &Outcome, other: &Outcome) -> Option<String> {
    // What happens at one time to several microVMs has no order.
    let sorted = |outcome: &Outcome| {
        let mut log = outcome.log.clone();
        log.sort();
        log
    };
    let (one, other) = (sorted(one), sorted(other));
    match one.iter().zip(&other).find(|(one, other)| one != other) {
        Some((one, other)) => Some(format!("played again it differs: {one:?} and {other:?}")),
        None if one.len() != other.len() => Some("played again it has another length".to_owned()),
        None => None,
    }
}

/// Plays one history and prints what happens in it.
pub fn play_one(seed: u64, logs: bool) -> anyhow::Result<()> {
    if logs {
        pilotlight::server::log_to_stderr();
    }
    let outcome = play(seed, &Place::new()?)?;
    for line in &outcome.log {
        println!("{line}");
    }
    match outcome.violation {
        Some(wrong) => bail!("seed {seed}: {wrong}"),
        None => Ok(()),
    }
}
