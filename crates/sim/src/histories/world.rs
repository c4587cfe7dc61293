//! What outlives the daemon: processes, networks, the clock, and the list of what was done to them.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    future::pending,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use super::{
    chance::{Chance, number_of},
    vm::PretendVm,
};

/// When every history begins: 2026-01-01.
const BEGIN: Duration = Duration::from_secs(1_767_225_600);

/// What all microVMs have in common.
pub const COMMON: &str = "networks";

/// How long something hangs before its own limit ends it.
const HANG: Duration = Duration::from_secs(30);

/// A daemon comes to named steps more often than it calls for something, and is not to die of nothing else.
const STEPS_TO_A_CALL: u64 = 2;

/// How often what goes wrong: once in so many calls, never where it is 0.
#[derive(Debug, Clone, Copy, Default)]
pub struct Weather {
    /// A call fails.
    pub fail: u64,
    /// A call hangs until its limit.
    pub hang: u64,
    /// The daemon is killed in a call, or at a step.
    pub crash: u64,
    /// A hook or the agent does not do what it should.
    pub guest: u64,
}

/// Something that was made to go wrong.
#[derive(Debug, Clone)]
pub struct Fault {
    /// With which microVM; all of them, if none.
    pub who: Option<String>,
    /// What.
    pub what: &'static str,
}

/// What a call comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It does what it should.
    Does,
    /// It fails.
    Fails,
}

#[derive(Default)]
struct State {
    life: u32,
    dead: bool,
    before: Duration,
    since: Option<Instant>,
    weather: Weather,
    numbers: HashMap<String, u64>,
    counts: HashMap<(u64, &'static str), u64>,
    faults: Vec<Fault>,
    violations: Vec<String>,
    died_at: Vec<&'static str>,
    log: Vec<String>,
    disk_full: bool,
}

impl State {
    fn elapsed(&self) -> Duration {
        self.before + self.since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    fn log(&mut self, at: Duration, what: impl std::fmt::Display) {
        self.log.push(format!("{:>10}.{:06}  {what}", at.as_secs(), at.subsec_micros()));
    }
}

/// The world of one history.
pub struct World {
    seed: u64,
    /// The data directory of the server.
    pub data: PathBuf,
    /// Fills the disk while it is there.
    pub filler: PathBuf,
    state: Mutex<State>,
    /// VMM processes.
    pub vms: Mutex<BTreeMap<u32, Arc<PretendVm>>>,
    /// Networks, and how many there have been.
    pub networks: Mutex<(BTreeSet<String>, u32)>,
    death: watch::Sender<bool>,
}

impl World {
    /// One in which nothing has happened.
    pub fn new(seed: u64, data: PathBuf, filler: PathBuf) -> Arc<Self> {
        Arc::new(Self {
            seed,
            data,
            filler,
            state: Mutex::default(),
            vms: Mutex::default(),
            networks: Mutex::default(),
            death: watch::Sender::new(false),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Another daemon begins, in a runtime whose clock has just begun; its number.
    pub fn begin_life(&self) -> u32 {
        let mut state = self.state();
        state.life += 1;
        state.dead = false;
        state.since = Some(Instant::now());
        self.death.send_replace(false);
        state.life
    }

    /// The runtime is about to go; called in it.
    pub fn end_life(&self) {
        let mut state = self.state();
        state.dead = true;
        let lived = state.since.take().map_or(Duration::ZERO, |since| since.elapsed());
        state.before += lived;
    }

    /// Time since the beginning of the history.
    pub fn elapsed(&self) -> Duration {
        self.state().elapsed()
    }

    /// The wall clock.
    pub fn now(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + BEGIN + self.elapsed()
    }

    /// Sleeps about as long: the database has the odd milliseconds for itself.
    pub async fn pause(&self, about: Duration) {
        let lived = self.state().since.map_or(Duration::ZERO, |since| since.elapsed());
        let until = lived.saturating_add(about).as_millis() as u64;
        sleep(Duration::from_millis(until + 1 + (until + 1) % 2) - lived).await;
    }

    /// Changes the weather.
    pub fn set_weather(&self, weather: Weather) {
        self.state().weather = weather;
    }

    /// Writes down what happens.
    pub fn log(&self, what: impl std::fmt::Display) {
        let mut state = self.state();
        let at = state.elapsed();
        state.log(at, what);
    }

    /// Everything that was written down.
    pub fn take_log(&self) -> Vec<String> {
        std::mem::take(&mut self.state().log)
    }

    /// Something is so that must never be.
    pub fn violated(&self, what: impl std::fmt::Display) {
        self.log(format_args!("VIOLATED: {what}"));
        self.state().violations.push(what.to_string());
    }

    /// The first thing that was so that must never be.
    pub fn violation(&self) -> Option<String> {
        self.state().violations.first().cloned()
    }

    /// The named steps at which the daemon died.
    pub fn died_at(&self) -> Vec<&'static str> {
        self.state().died_at.clone()
    }

    /// Notes a fault.
    pub fn fault(&self, who: Option<&str>, what: &'static str) {
        self.log(format_args!("fault: {what} of {}", who.map_or("all".to_owned(), |who| self.name(who))));
        self.state().faults.push(Fault { who: who.map(str::to_owned), what });
    }

    /// Whether and how often any of these faults has befallen it.
    pub fn faults(&self, who: &str, whats: &[&str]) -> usize {
        let state = self.state();
        let hit = |fault: &&Fault| fault.who.as_deref().is_none_or(|it| it == who) && whats.contains(&fault.what);
        state.faults.iter().filter(hit).count()
    }

    /// How many faults there were of any kind.
    pub fn faults_in_all(&self) -> usize {
        self.state().faults.len()
    }

    fn number(&self, who: &str) -> u64 {
        let mut state = self.state();
        let next = state.numbers.len() as u64;
        *state.numbers.entry(who.to_owned()).or_insert(next)
    }

    /// A short name for it, the same whenever the history is played.
    pub fn name(&self, who: &str) -> String {
        format!("#{}", self.number(who))
    }

    /// Chance for the next thing of this kind that happens to it.
    pub fn chance(&self, who: &str, kind: &'static str) -> Chance {
        let number = self.number(who);
        // Of what many have in common the order must not matter: its chance is that of the moment.
        if who == COMMON {
            let state = self.state();
            return Chance::of(&[self.seed, state.life.into(), number_of(kind), state.elapsed().as_millis() as u64]);
        }
        let mut state = self.state();
        let count = state.counts.entry((number, kind)).or_insert(0);
        *count += 1;
        Chance::of(&[self.seed, number, number_of(kind), *count])
    }

    /// Whether its app has much memory: always the same, so without counting.
    pub fn is_heavy(&self, who: &str) -> bool {
        Chance::of(&[self.seed, self.number(who), number_of("heavy")]).one_in(3)
    }

    /// A daemon that is dead does nothing any more.
    pub async fn if_alive(&self, life: u32) {
        let alive = {
            let state = self.state();
            state.life == life && !state.dead
        };
        if !alive {
            pending::<()>().await;
        }
    }

    /// Kills the daemon where it stands.
    pub async fn kill_daemon(&self, life: u32, why: &str) {
        self.if_alive(life).await;
        self.log(format_args!("the daemon is killed {why}"));
        // What others do in this very moment is done to its end: how far it would have come is the machine's to say.
        self.pause(Duration::from_millis(1)).await;
        self.if_alive(life).await;
        self.state().dead = true;
        self.death.send_replace(true);
        pending::<()>().await;
    }

    /// Whether the daemon dies where it has just come to this step.
    pub fn dies_at(&self, step: &'static str) -> bool {
        let mut state = self.state();
        if state.dead {
            return false;
        }
        let at = state.elapsed();
        state.log(at, format_args!("step {step}"));
        // Of two microVMs at the same step the order must not matter: its chance is that of the moment.
        let about = [self.seed, state.life.into(), number_of(step), at.as_micros() as u64];
        let dies = Chance::of(&about).one_in(STEPS_TO_A_CALL * state.weather.crash);
        if dies {
            state.log(at, format_args!("the daemon is killed at {step}"));
            state.died_at.push(step);
            state.dead = true;
        }
        dies
    }

    /// Lets whoever waits for the daemon's death know of it.
    pub fn announce_death(&self) {
        self.death.send_replace(true);
    }

    /// Returns when the daemon has been killed.
    pub async fn death(&self) {
        let _ = self.death.subscribe().wait_for(|dead| *dead).await;
    }

    /// A call to the platform: takes its time, and may come to nothing, or to the end of the daemon.
    pub async fn call(&self, life: u32, who: &str, kind: &'static str) -> Verdict {
        self.if_alive(life).await;
        let mut chance = self.chance(who, kind);
        // A hook has a second, and is not to be late for that alone.
        let millis = if chance.one_in(20) { chance.between(100, 400) } else { chance.between(1, 60) };
        self.pause(Duration::from_millis(millis)).await;
        self.if_alive(life).await;
        let weather = self.state().weather;
        if chance.one_in(weather.crash) {
            self.kill_daemon(life, &format!("before {kind} of {}", self.name(who))).await;
        }
        if chance.one_in(weather.fail) {
            self.fault(Some(who), kind);
            return Verdict::Fails;
        }
        if chance.one_in(weather.hang) {
            self.fault(Some(who), kind);
            self.pause(HANG).await;
            self.if_alive(life).await;
            return Verdict::Fails;
        }
        self.log(format_args!("{kind} {}", self.name(who)));
        Verdict::Does
    }

    /// A call has had its effect; whether the daemon learns of it is another matter.
    pub async fn done(&self, life: u32, who: &str, kind: &'static str) {
        let mut chance = self.chance(who, "done");
        let weather = self.state().weather;
        if chance.one_in(weather.crash) {
            self.kill_daemon(life, &format!("after {kind} of {}", self.name(who))).await;
        }
    }

    /// Whether the guest of this VM does what it should this time.
    pub fn guest_fails(&self, who: &str, kind: &'static str) -> bool {
        let weather = self.state().weather;
        let fails = self.chance(who, kind).one_in(weather.guest);
        if fails {
            self.fault(Some(who), kind);
        }
        fails
    }

    /// Is the disk full?
    pub fn disk_is_full(&self) -> bool {
        self.state().disk_full
    }

    /// Fills the disk to the last byte, or makes room again.
    pub fn set_disk_full(&self, full: bool) {
        if full == self.disk_is_full() {
            return;
        }
        self.log(if full { "the disk is full" } else { "the disk has room" });
        if full {
            self.fault(None, "disk");
            fill(&self.filler);
        } else {
            let _ = std::fs::remove_file(&self.filler);
        }
        self.state().disk_full = full;
    }
}

impl World {
    /// Fills what was given free for a moment.
    pub fn refill(&self) {
        fill(&self.filler);
    }
}

fn fill(path: &std::path::Path) {
    let Ok(file) = std::fs::File::create(path) else { return };
    let (mut at, mut step) = (0, 4 << 20);
    while step >= 4096 {
        match rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), at, step) {
            Ok(()) => at += step,
            Err(_) => step /= 2,
        }
    }
}
