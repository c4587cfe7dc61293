//! The group `burst`: many microVMs launched, and woken, at once.

use std::{thread, time::Instant};

use anyhow::ensure;
use e2e::{
    HttpAnswer, Microvm, Stage,
    bare::{Bare, Running, Saved},
};

use crate::{PATH, Row, quantiles};

/// MicroVMs in a burst.
pub const COUNT: usize = 20;

/// How often each figure is taken: a burst takes seconds.
const ROUNDS: usize = 3;

/// Until the last of them has answered.
pub fn bench(stage: &Stage, by_hand: &[Bare]) -> anyhow::Result<Vec<Row>> {
    let (mut launches, mut launches_floor, mut wakes, mut wakes_floor) = (vec![], vec![], vec![], vec![]);
    for round in 0..ROUNDS {
        eprintln!("burst {round}/{ROUNDS}");
        let begin = Instant::now();
        let running = at_once(by_hand.iter().collect(), |bare| bare.launch(PATH))?;
        launches_floor.push(begin.elapsed());
        let together: Vec<(&Bare, Running)> = by_hand.iter().zip(running).collect();
        let saved: Vec<Saved> =
            together.into_iter().map(|(bare, running)| bare.suspend(running)).collect::<Result<_, _>>()?;
        let begin = Instant::now();
        let running = at_once(by_hand.iter().zip(&saved).collect(), |(bare, saved)| bare.wake(saved, PATH))?;
        wakes_floor.push(begin.elapsed());
        drop(running);

        let begin = Instant::now();
        let microvms: Vec<_> = (0..COUNT).map(|_| stage.begin_launch()).collect::<Result<_, _>>()?;
        all_answer(stage, &microvms)?;
        launches.push(begin.elapsed());
        for microvm in &microvms {
            stage.suspend(microvm)?;
        }
        let begin = Instant::now();
        all_answer(stage, &microvms)?;
        wakes.push(begin.elapsed());
        for microvm in &microvms {
            stage.terminate(&microvm.id)?;
        }
    }
    // Of three, the median alone says something.
    let mut rows = quantiles("burst", &format!("{COUNT} launches at once → all 200"), launches, launches_floor);
    rows.truncate(1);
    rows.extend(
        quantiles("burst", &format!("{COUNT} wakes at once → all 200"), wakes, wakes_floor).into_iter().take(1),
    );
    Ok(rows)
}

/// Does the same with each, on a thread of its own.
fn at_once<S: Send, T: Send>(subjects: Vec<S>, work: impl Fn(S) -> anyhow::Result<T> + Sync) -> anyhow::Result<Vec<T>> {
    thread::scope(|scope| {
        let threads: Vec<_> = subjects.into_iter().map(|subject| scope.spawn(|| work(subject))).collect();
        let join = |thread: thread::ScopedJoinHandle<'_, anyhow::Result<T>>| {
            thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?
        };
        threads.into_iter().map(join).collect()
    })
}

fn all_answer(stage: &Stage, microvms: &[Microvm]) -> anyhow::Result<()> {
    let asked: Vec<_> = microvms.iter().map(|microvm| stage.get_later(microvm, PATH)).collect::<Result<_, _>>()?;
    for pending in asked {
        let answer: HttpAnswer = serde_json::from_value(pending.wait()?)?;
        ensure!(answer.status == 200, "HTTP {}: {}", answer.status, answer.body);
    }
    Ok(())
}
