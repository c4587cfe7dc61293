//! What the client, the operator and chance do in a history, one step after the other.

use std::{
    sync::{Arc, PoisonError},
    time::Duration,
};

use api::{
    error::ServiceError,
    images::{GetMicrovmImageRequest, ImageState},
    microvms::{
        GetMicrovmRequest, IdlePolicy, MicrovmState as State, ResumeMicrovmRequest, RunMicrovmRequest,
        SuspendMicrovmRequest, TerminateMicrovmRequest,
    },
};
use control::http::Operations;
use http::StatusCode;
use tokio::time::sleep;
use vmm::ExitReport;

use super::{
    chance::{Chance, number_of},
    images::{IMAGE, Images, arn, creation, word},
    server::Server,
    session::Session,
    vm::App,
    world::{Weather, World},
};

/// MicroVMs of one history that have not ended.
const SESSIONS_MAX: usize = 4;

/// How a life of the server ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It was killed.
    Killed,
    /// It did not come up.
    NotStarted,
    /// It was stopped in good order.
    Stopped,
    /// The history is over.
    Over,
}

/// What kind of history it is.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// What goes wrong by itself.
    pub weather: Weather,
    /// Whether the daemon is killed now and then.
    pub kills: bool,
    /// Whether VMs die, apps exit, and snapshots are damaged.
    pub deaths: bool,
    /// Whether the disk runs full.
    pub fills: bool,
    /// Steps to take.
    pub steps: u64,
    /// Whether the image has hooks.
    pub hooked: bool,
    /// Whether several requests are sent to one microVM at a time. The runtime wakes those that wait for one thing in an
    /// order that is its own to choose, so such a history may come out otherwise when it is played again.
    pub crowded: bool,
}

impl Plan {
    fn of(seed: u64, can_fill: bool) -> Self {
        let mut chance = Chance::of(&[seed, number_of("plan")]);
        let rate = chance.pick(&[15, 40, 120]);
        let kind = chance.below(8);
        let (kills, faults, deaths) = (matches!(kind, 2..=4 | 6..), kind >= 5, matches!(kind, 4..));
        let of = |wanted: bool| if wanted { rate } else { 0 };
        Self {
            weather: Weather { fail: of(faults), hang: of(faults) * 2, crash: of(kills) * 2, guest: of(kind >= 4) },
            kills,
            deaths,
            fills: can_fill && matches!(kind, 5..) && chance.one_in(2),
            steps: chance.between(10, 40),
            hooked: chance.one_in(2),
            crowded: chance.one_in(4),
        }
    }

    /// Nothing is done but what its owner asks for.
    fn is_calm(&self) -> bool {
        !self.kills && !self.deaths && self.weather.fail == 0
    }
}

/// A history, as far as it has come.
pub struct Story {
    pub(super) world: Arc<World>,
    seed: u64,
    /// What kind it is.
    pub plan: Plan,
    step: u64,
    /// The microVMs it has asked for.
    pub(super) sessions: Vec<Session>,
    /// A launch of which it is not known whether it was taken.
    asked: Option<RunMicrovmRequest>,
    pub(super) images: Images,
    image_wanted: bool,
    /// How far its end has come.
    pub(super) ending: u32,
}

impl Story {
    /// The history of this seed.
    pub fn new(world: &Arc<World>, seed: u64, can_fill: bool) -> Self {
        Self {
            world: Arc::clone(world),
            seed,
            plan: Plan::of(seed, can_fill),
            step: 0,
            sessions: vec![],
            asked: None,
            images: Images::default(),
            image_wanted: true,
            ending: 0,
        }
    }

    /// Goes on with it, over a server that has just started.
    pub async fn live(&mut self, server: Server, life: u32) -> End {
        // Requests in progress ended with the life before.
        for session in &self.sessions {
            session.tally().open = 0;
        }
        if self.image_wanted {
            self.make_image(&server).await;
            self.image_wanted = false;
            self.world.set_weather(self.plan.weather);
        }
        if let Some(request) = self.asked.clone() {
            self.run(&server, request).await;
        }
        while self.step < self.plan.steps {
            self.step += 1;
            let mut chance = Chance::of(&[self.seed, number_of("step"), self.step]);
            let restart = self.take_step(&mut chance, &server, life).await;
            self.world.pause(Duration::from_micros(chance.between(2000, 400_000))).await;
            self.look(&server).await;
            if self.world.violation().is_some() {
                return End::Over;
            }
            if restart {
                self.world.log("the daemon is stopped");
                server.stop().await;
                // What others do in this very moment is done to its end.
                self.world.pause(Duration::from_millis(1)).await;
                return End::Stopped;
            }
        }
        self.finish(server, life).await
    }

    async fn make_image(&mut self, server: &Server) {
        let made = server.control.create_microvm_image(&server.caller, creation(IMAGE, self.plan.hooked)).await;
        if let Err(error) = made {
            return self.world.violated(format_args!("an image is not made in calm weather: {error:?}"));
        }
        for _ in 0..600 {
            let request = GetMicrovmImageRequest { image: arn(IMAGE) };
            match server.control.get_microvm_image(&server.caller, request).await {
                Ok(told) if told.state == ImageState::Created => return,
                Ok(told) if told.state == ImageState::Creating => sleep(Duration::from_secs(1)).await,
                told => return self.world.violated(format_args!("an image is not built in calm weather: {told:?}")),
            }
        }
        self.world.violated("an image is not built in ten minutes");
    }

    /// Takes a step; whether it is to be followed by a restart.
    async fn take_step(&mut self, chance: &mut Chance, server: &Server, life: u32) -> bool {
        let living: Vec<usize> = (0..self.sessions.len()).filter(|&at| self.sessions[at].lives()).collect();
        let what = chance.below(100);
        if living.is_empty() || (what < 10 && living.len() < SESSIONS_MAX) {
            let request = self.launch(chance);
            self.run(server, request).await;
            return false;
        }
        let at = chance.pick(&living);
        let id = self.sessions[at].id;
        let name = self.world.name(&id.to_string());
        let microvm_identifier = id.to_string();
        match what {
            10..40 => self.request(at, server, "/count"),
            40..45 => self.request(at, server, "/check"),
            45..54 => {
                self.sessions[at].suspend_asked = true;
                let request = SuspendMicrovmRequest { microvm_identifier };
                let answer = server.control.suspend_microvm(&server.caller, request).await.map(drop);
                self.world.log(format_args!("suspend {name}: {}", word(answer)));
            }
            54..62 => {
                let request = ResumeMicrovmRequest { microvm_identifier };
                let answer = server.control.resume_microvm(&server.caller, request).await.map(drop);
                self.world.log(format_args!("resume {name}: {}", word(answer)));
            }
            62..64 => {
                // Whatever the answer is, it may have been taken.
                self.sessions[at].end_asked = true;
                let request = TerminateMicrovmRequest { microvm_identifier };
                let answer = server.control.terminate_microvm(&server.caller, request).await.map(drop);
                self.world.log(format_args!("terminate {name}: {}", word(answer)));
            }
            64..74 => self.world.pause(Duration::from_millis(chance.below(4000))).await,
            74..80 => {
                let wait = Duration::from_secs(chance.between(10, 700));
                self.world.log(format_args!("wait {} s", wait.as_secs()));
                self.world.pause(wait).await;
            }
            80 if chance.one_in(6) => {
                let wait = Duration::from_secs(chance.between(3600, 30_000));
                self.world.log(format_args!("wait {} s", wait.as_secs()));
                self.world.pause(wait).await;
            }
            80..84 => self.images.change(chance, server, &self.world, self.plan.hooked).await,
            84..88 if self.plan.deaths => self.die(at, chance, life),
            88..90 if self.plan.deaths => self.damage(at, chance),
            90..93 if self.plan.fills => {
                let full = !self.world.disk_is_full();
                self.world.set_disk_full(full);
            }
            93..97 if self.plan.kills => {
                let (world, after) = (Arc::clone(&self.world), Duration::from_micros(chance.below(2_000_000)));
                tokio::spawn(async move {
                    world.pause(after).await;
                    world.kill_daemon(life, "by a timer").await;
                });
            }
            97..100 => return true,
            _ => self.world.pause(Duration::from_millis(chance.below(100))).await,
        }
        false
    }

    fn launch(&mut self, chance: &mut Chance) -> RunMicrovmRequest {
        let idle_policy = (!chance.one_in(4)).then(|| IdlePolicy {
            max_idle_duration_seconds: u32::try_from(chance.between(60, 900)).unwrap_or(60),
            suspended_duration_seconds: chance.pick(&[0, 600, 3600, 28_800, 28_800]),
            auto_resume_enabled: !chance.one_in(4),
        });
        RunMicrovmRequest {
            image: arn(IMAGE),
            image_version: None,
            ingress_network_connectors: None,
            egress_network_connectors: None,
            execution_role_arn: None,
            idle_policy,
            logging: None,
            kms_key_identifier: None,
            run_hook_payload: None,
            maximum_duration_in_seconds: chance
                .one_in(3)
                .then(|| u32::try_from(chance.between(60, 28_800)).unwrap_or(60)),
            client_token: Some(format!("token-{}", self.step)),
        }
    }

    async fn run(&mut self, server: &Server, request: RunMicrovmRequest) {
        self.asked = Some(request.clone());
        let begun = self.world.elapsed();
        let answer = server.control.run_microvm(&server.caller, request).await;
        self.asked = None;
        match answer {
            Ok(told) => {
                self.world.log(format_args!("run {}", self.world.name(&told.microvm_id.to_string())));
                // One that was asked for before a crash may have begun then.
                self.sessions.push(Session::new(&told, self.plan.hooked, begun));
            }
            Err(error) => {
                self.world.log(format_args!("run: {error:?}"));
                if self.plan.is_calm() {
                    self.world.violated(format_args!("a launch is refused in calm weather: {error:?}"));
                }
            }
        }
    }

    /// Sends a request, and does not wait for its answer.
    fn request(&self, at: usize, server: &Server, path: &'static str) {
        let session = &self.sessions[at];
        if session.tally().open > 0 && !self.plan.crowded {
            return;
        }
        let (id, endpoint, tally) = (session.id, session.endpoint.clone(), Arc::clone(&session.tally));
        let (client, world, calm) = (server.client(), Arc::clone(&self.world), self.plan.is_calm());
        let wakes = session.policy.is_some_and(|policy| policy.auto_resume_enabled);
        let path = if session.hooked { format!("/hooked{path}") } else { path.to_owned() };
        let counts = path.ends_with("/count");
        let name = world.name(&id.to_string());
        world.log(format_args!("request {path} to {name}"));
        tokio::spawn(async move {
            let before = {
                let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
                tally.open += 1;
                tally.sent += u64::from(counts);
                tally.acknowledged
            };
            let answer = client.post(id, &endpoint, &path).await;
            let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
            tally.open -= 1;
            match answer {
                Ok((StatusCode::OK, number)) => {
                    let number: u64 = number.parse().unwrap_or(0);
                    if number < before + u64::from(counts) || number > tally.sent {
                        let sent = tally.sent;
                        world.violated(format_args!("{name} answers {number}, after {before} and of {sent}"));
                    }
                    tally.acknowledged = tally.acknowledged.max(number);
                }
                Ok((status, _)) => {
                    world.log(format_args!("{name} answers {path} with {status}"));
                    if calm && wakes {
                        tally.refused = status.canonical_reason();
                    }
                }
                Err(why) => world.log(format_args!("{name} does not answer {path}: {why}")),
            }
        });
    }

    /// A VM or its app ends, in a moment.
    fn die(&self, at: usize, chance: &mut Chance, life: u32) {
        let (world, who) = (Arc::clone(&self.world), self.sessions[at].id.to_string());
        let (after, app) = (Duration::from_micros(chance.below(150_000)), chance.one_in(2));
        tokio::spawn(async move {
            world.pause(after).await;
            world.if_alive(life).await;
            let vm = {
                let vms = world.vms.lock().unwrap_or_else(PoisonError::into_inner);
                vms.values().find(|vm| vm.who == who && vm.lives()).cloned()
            };
            let Some(vm) = vm else { return };
            if app {
                world.fault(Some(&who), "exit");
                vm.app.send_replace(App::Exited(3));
            } else {
                world.fault(Some(&who), "death");
                vm.end(&world, ExitReport { signal: Some(11), ..ExitReport::default() });
            }
        });
    }

    /// A file of a suspend snapshot is damaged.
    fn damage(&mut self, at: usize, chance: &mut Chance) {
        let session = &mut self.sessions[at];
        let dir = self.world.data.join("microvms").join(session.id.to_string()).join("suspended");
        let path = dir.join(chance.pick(&["memory.layer", "device.state", "snapshot.json"]));
        let Ok(mut bytes) = std::fs::read(&path) else { return };
        if bytes.is_empty() {
            return;
        }
        session.damaged = true;
        self.world.fault(Some(&session.id.to_string()), "damage");
        let at = usize::try_from(chance.below(bytes.len() as u64)).unwrap_or(0);
        match chance.below(3) {
            0 => bytes[at] ^= 1 << chance.below(8),
            1 => bytes.truncate(at),
            _ => bytes.clear(),
        }
        let _ = std::fs::write(&path, bytes);
    }

    /// Looks at every microVM, and at the images.
    pub(super) async fn look(&mut self, server: &Server) {
        if let Err(wrong) = self.images.look(server, &self.world).await {
            self.world.violated(wrong);
        }
        for session in self.sessions.iter_mut().filter(|session| !session.forgotten) {
            let request = GetMicrovmRequest { microvm_identifier: session.id.to_string() };
            let wrong = match server.control.get_microvm(&server.caller, request).await {
                Ok(told) => session.learn(&told, &self.world),
                Err(ServiceError::ResourceNotFound { .. }) => session.learn_nothing(&self.world),
                Err(error) => {
                    self.world.log(format_args!("{error:?}"));
                    Ok(())
                }
            };
            if let Err(wrong) = wrong {
                self.world.violated(format_args!("{} {wrong}", self.world.name(&session.id.to_string())));
            }
        }
    }

    /// Everything that is asked for at once ends.
    pub(super) async fn terminate_all(&mut self, server: &Server) {
        for session in &mut self.sessions {
            session.end_asked = true;
            let request = TerminateMicrovmRequest { microvm_identifier: session.id.to_string() };
            match server.control.terminate_microvm(&server.caller, request).await {
                Ok(_) | Err(ServiceError::ResourceNotFound { .. }) => {}
                Err(error) if session.seen == State::Terminated => self.world.log(format_args!("{error:?}")),
                Err(error) => self.world.violated(format_args!("a terminate is refused: {error:?}")),
            }
        }
    }
}
