//! The end of a history: nothing goes wrong any more, everything comes to rest, and what is there is looked at.

use std::{collections::BTreeSet, path::Path, sync::PoisonError, time::Duration};

use api::{
    host::Layout,
    microvms::{MicrovmState as State, ResumeMicrovmRequest},
};
use control::http::Operations;
use http::StatusCode;

use super::{
    chance::{Chance, number_of},
    platform::WAITS,
    server::Server,
    story::{End, Story},
    vm::Doing,
    world::Weather,
};

/// How long everything may take to come to rest: the longest verb, and a wait of a request.
const REST_MAX: Duration = Duration::from_secs(25 * 60);

/// In which control has compared twice what the host has with what should be.
const TIDIED: Duration = Duration::from_secs(150);

/// How often it is looked whether it has.
const LOOK: Duration = Duration::from_secs(7);

impl Story {
    /// Ends the history, in two lives: what the first cannot put right, a restart must.
    pub(super) async fn finish(&mut self, server: Server, life: u32) -> End {
        self.world.set_weather(Weather::default());
        self.world.set_disk_full(false);
        if self.ending == 0 {
            self.world.log("from here on nothing goes wrong");
            self.rest(&server).await;
            // What is nobody's by now goes by itself, without a restart.
            self.world.pause(TIDIED).await;
            self.audit(&server).await;
            self.ending = 1;
            if Chance::of(&[life.into(), number_of("end")]).one_in(2) {
                server.stop().await;
                return End::Stopped;
            }
            self.world.kill_daemon(life, "at rest").await;
        }
        self.rest(&server).await;
        self.audit(&server).await;
        self.ask_all(&server).await;
        self.terminate_all(&server).await;
        self.rest(&server).await;
        self.audit(&server).await;
        End::Over
    }

    /// Waits until nothing is on its way any more.
    async fn rest(&mut self, server: &Server) {
        let begin = self.world.elapsed();
        loop {
            self.look(server).await;
            let moving = self.sessions.iter().find(|session| {
                let still = matches!(session.seen, State::Running | State::Suspended | State::Terminated);
                !session.forgotten && (!still || session.tally().open > 0)
            });
            let moving = moving.map(|session| {
                let (name, open) = (self.world.name(&session.id.to_string()), session.tally().open);
                format!("{name} is {} with {open} open requests", session.seen)
            });
            let Some(moving) = moving.or_else(|| self.images.moving()) else { return };
            if self.world.elapsed() - begin > REST_MAX {
                let seconds = REST_MAX.as_secs();
                return self.world.violated(format_args!("{moving} after {seconds} s in which nothing went wrong"));
            }
            if self.world.violation().is_some() {
                return;
            }
            self.world.pause(LOOK).await;
        }
    }

    /// Compares what control says with what is there. Something may begin meanwhile; then it is done again.
    async fn audit(&mut self, server: &Server) {
        let mut wrong = Ok(());
        for _ in 0..20 {
            self.look(server).await;
            wrong = self.compare();
            if wrong.is_ok() {
                wrong = self.images.compare(server, &Layout { data: self.world.data.clone() }).await;
            }
            if wrong.is_ok() || self.world.violation().is_some() {
                return;
            }
            self.world.pause(LOOK).await;
        }
        if let Err(wrong) = wrong {
            self.world.violated(wrong);
        }
    }

    fn compare(&self) -> Result<(), String> {
        let world = &self.world;
        let vms = world.vms.lock().unwrap_or_else(PoisonError::into_inner);
        let microvms = names_in(&world.data.join("microvms"));
        let mut networks = world.networks.lock().unwrap_or_else(PoisonError::into_inner).0.clone();
        let mut strays: Vec<_> = vms.values().filter(|vm| vm.lives()).collect();
        let mut known = BTreeSet::new();
        for session in &self.sessions {
            let (who, state) = (session.id.to_string(), session.seen);
            let name = world.name(&who);
            let dir = world.data.join("microvms").join(&who);
            let own: Vec<_> = strays.extract_if(.., |vm| vm.who == who).collect();
            let suspended = dir.join("suspended/snapshot.json").exists();
            let right = match state {
                State::Running => {
                    own.len() == 1 && own[0].doing() == Doing::Running && own[0].dir.is_dir() && !suspended
                }
                State::Suspended => own.is_empty() && (suspended || session.damaged),
                State::Terminated => own.is_empty() && !microvms.contains(&who),
                State::Pending | State::Suspending | State::Terminating => false,
            };
            if !right {
                let found: Vec<_> = own.iter().map(|vm| vm.doing()).collect();
                return Err(format!("{name} is {state}, with the VMs {found:?} and a snapshot: {suspended}"));
            }
            for vm in own {
                if !networks.remove(&vm.network) {
                    return Err(format!("{name} runs in a network that is not there"));
                }
            }
            if state != State::Terminated {
                known.insert(who);
            }
        }
        if let Some(stray) = strays.first() {
            return Err(format!("a VM of {} is nobody's", world.name(&stray.who)));
        }
        // What is ready for a launch or a wake has a network already.
        let ready = world.data.join("ready");
        for unit in names_in(&ready) {
            if let Ok(network) = std::fs::read_to_string(ready.join(unit).join("vm").join(WAITS)) {
                networks.remove(&network);
            }
        }
        if let Some(network) = networks.first() {
            return Err(format!("the network {network} is nobody's"));
        }
        if microvms != known {
            return Err(format!("{} directories of microVMs, and {} microVMs", microvms.len(), known.len()));
        }
        match names_in(&world.data.join("builds")).into_iter().next() {
            Some(build) => Err(format!("the build {} has left its files", world.name(&build))),
            None => Ok(()),
        }
    }

    /// Asks every microVM that lives what it has come to.
    async fn ask_all(&mut self, server: &Server) {
        for at in 0..self.sessions.len() {
            let session = &self.sessions[at];
            if !session.lives() || session.damaged || self.world.violation().is_some() {
                continue;
            }
            let (id, endpoint) = (session.id, session.endpoint.clone());
            let path = if session.hooked { "/hooked/check" } else { "/check" };
            let name = self.world.name(&id.to_string());
            let request = ResumeMicrovmRequest { microvm_identifier: id.to_string() };
            let resumed = server.control.resume_microvm(&server.caller, request).await;
            let mut answer = Err("not asked".to_owned());
            for _ in 0..20 {
                self.world.pause(LOOK).await;
                answer = server.client().post(id, &endpoint, path).await;
                if matches!(answer, Ok((StatusCode::OK, _))) {
                    break;
                }
            }
            self.look(server).await;
            let session = &self.sessions[at];
            let tally = *session.tally();
            match answer {
                Ok((StatusCode::OK, number)) => {
                    let number: u64 = number.parse().unwrap_or(u64::MAX);
                    if !(tally.acknowledged..=tally.sent).contains(&number) {
                        self.world.violated(format_args!("{name} has come to {number}, of {tally:?}"));
                    }
                }
                // Its time was over meanwhile.
                _ if !session.lives() => {}
                answer => self.world.violated(format_args!("{name} cannot be asked: {resumed:?}, {answer:?}")),
            }
        }
    }
}

pub fn names_in(dir: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}
