//! Histories: the real control, host and edge over VMs that are none, with a clock that jumps, and with everything going
//! wrong that can. What happens in a history follows from its seed.
//!
//! ```text
//! story   requests, waits, restarts, deaths      session   what their owner may expect
//!   │                                               ▲
//! server  control ─ host ─ edge, in a runtime of their own, dropped where they stand when the daemon is killed
//!   │
//! platform, guest   calls that fail, hang, or kill the daemon
//!   │
//! world   VMs, networks, files: what outlives the daemon
//! ```
//!
//! When time has passed in which nothing went wrong, everything must have come to rest, nothing be left over, and every
//! number that was answered be there still, unless the microVM has ended for a reason that explains it.

mod chance;
mod ending;
mod frozen;
mod guest;
mod images;
pub mod many;
mod place;
mod platform;
mod server;
mod session;
mod story;
mod vm;
mod world;

use std::{
    io,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use control::Gauge;
use failpoint::Listener;
use tokio::time::sleep;

pub use self::place::Place;
use self::{
    frozen::Frozen,
    server::{Server, database_dir, runtime},
    story::{End, Story},
    world::World,
};

/// How often a server may fail to start, one time after the other: it is started again each second, and a disk may be full.
const STARTS_MAX: u32 = 200;

/// Lives of a server in one history; more means that it does not come to its end.
const LIVES_MAX: u32 = 1000;

/// What a history came to.
#[derive(Debug)]
pub struct Outcome {
    /// What was so that must never be.
    pub violation: Option<String>,
    /// Everything that happened.
    pub log: Vec<String>,
    /// How much virtual time passed.
    pub elapsed: Duration,
    /// How many faults there were.
    pub faults: usize,
    /// How many servers it took.
    pub lives: u32,
    /// The named steps at which one of them died.
    pub died_at: Vec<&'static str>,
}

/// Plays the history of this seed.
pub fn play(seed: u64, place: &Place) -> io::Result<Outcome> {
    place.clear()?;
    let world = World::new(seed, place.path("data"), place.path("filler"));
    std::fs::create_dir(&world.data)?;
    std::fs::create_dir(database_dir(&world.data, 1))?;
    let mut story = Story::new(&world, seed, place.can_be_filled());
    world.log(format_args!("{:?}", story.plan));
    let (mut lives, mut starts) = (0, 0);
    loop {
        lives += 1;
        let at_step = Arc::new(Mutex::new(None));
        let listener: Listener = {
            let (world, at_step, away) = (Arc::clone(&world), Arc::clone(&at_step), place.path("away"));
            Arc::new(move |step| {
                if world.dies_at(step) {
                    // At once, for whoever came here goes on until it has to wait for something.
                    let frozen = Frozen::take(&world, away.clone(), lives);
                    *at_step.lock().unwrap_or_else(PoisonError::into_inner) = Some(frozen);
                    world.announce_death();
                }
            })
        };
        let gauge = Arc::new(OnceLock::new());
        let runtime = runtime(&gauge, &listener)?;
        failpoint::listen(Some(listener));
        let end = runtime.block_on(async {
            let gauge = gauge.get_or_init(Gauge::with_turns).clone();
            live(&world, &mut story, gauge).await
        });
        failpoint::listen(None);
        let at_step = at_step.lock().unwrap_or_else(PoisonError::into_inner).take();
        let frozen = match (end, at_step) {
            (End::Stopped, _) => None,
            (_, Some(frozen)) => Some(frozen?),
            (_, None) => Some(Frozen::take(&world, place.path("away"), lives)?),
        };
        drop(runtime);
        match frozen {
            Some(frozen) => frozen.put_back(&world)?,
            None => std::fs::rename(database_dir(&world.data, lives), database_dir(&world.data, lives + 1))?,
        }
        starts = if end == End::NotStarted { starts + 1 } else { 0 };
        if starts > STARTS_MAX || lives > LIVES_MAX {
            world.violated(format_args!("the server does not come up: {starts} times, and {lives} in all"));
        }
        if starts > 20 {
            // Whoever looks after the machine makes room.
            world.set_disk_full(false);
        }
        if end == End::Over || world.violation().is_some() {
            break;
        }
    }
    let (violation, elapsed, faults) = (world.violation(), world.elapsed(), world.faults_in_all());
    Ok(Outcome { violation, died_at: world.died_at(), log: world.take_log(), elapsed, faults, lives })
}

async fn live(world: &Arc<World>, story: &mut Story, gauge: Gauge) -> End {
    let life = world.begin_life();
    world.log(format_args!("life {life}"));
    let live = async {
        match Server::start(world, life, gauge).await {
            Ok(server) => story.live(server, life).await,
            Err(why) => {
                world.log(format_args!("the server does not start: {why}"));
                sleep(Duration::from_secs(1)).await;
                End::NotStarted
            }
        }
    };
    let end = tokio::select! {
        biased;
        () = world.death() => End::Killed,
        end = live => end,
    };
    world.end_life();
    end
}

#[cfg(test)]
mod tests;
