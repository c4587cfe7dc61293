//! Named steps of what control and host do, at which the fault test lets the server die as by `kill -9`, and a simulated
//! history its pretended one.
//!
//! Only the feature `armed` gives a step a meaning, and only the programs `pilotlight-failpoints` and `sim-failpoints` are
//! built with it. Anywhere else [`step`] is an empty function that is gone after inlining, its name with it; a test of the
//! shipped program looks.

#![forbid(unsafe_code)]

/// Names the step to die at, in an armed server's environment.
pub const VARIABLE: &str = "PILOTLIGHT_DIE_AT";

/// Every step of a launch, in their order.
pub const RUN: &[&str] = &[
    "run.recorded",
    "run.begun",
    "run.claimed",
    "run.restored",
    "run.going",
    "run.hook-answered",
    "run.marked",
    "run.done",
];

/// Every step of a suspend.
pub const SUSPEND: &[&str] = &[
    "suspend.begun",
    "suspend.hook-answered",
    "suspend.paused",
    "suspend.devices-saved",
    "suspend.memory-saved",
    "suspend.manifest-written",
    "suspend.in-place",
    "suspend.vm-ended",
    "suspend.done",
];

/// Every step of a resume.
pub const RESUME: &[&str] = &[
    "resume.begun",
    "resume.checked",
    "resume.claimed",
    "resume.restored",
    "resume.snapshot-set-aside",
    "resume.going",
    "resume.hook-answered",
    "resume.done",
];

/// Every step of an end.
pub const TERMINATE: &[&str] =
    &["terminate.begun", "terminate.hook-answered", "terminate.vm-ended", "terminate.files-removed", "terminate.done"];

/// Every step of a build.
pub const BUILD: &[&str] = &[
    "build.begun",
    "build.fetched",
    "build.disk-made",
    "build.booted",
    "build.app-started",
    "build.ready",
    "build.saved",
    "build.in-place",
    "build.validated",
    "build.done",
];

/// Hears of each step, in a simulation, before anything else is done in the thread that came to it.
pub type Listener = std::sync::Arc<dyn Fn(&'static str) + Send + Sync>;

/// Whether steps are anything at all in this program.
pub const ARMED: bool = cfg!(feature = "armed");

/// Here the server dies, if it was told to.
#[cfg(not(feature = "armed"))]
#[inline(always)]
pub fn step(_: &'static str) {}

/// Has this listener, or none, hear of the steps in this thread.
#[cfg(not(feature = "armed"))]
pub fn listen(_: Option<Listener>) {}

#[cfg(feature = "armed")]
pub use armed::{listen, step};

#[cfg(feature = "armed")]
mod armed {
    use std::cell::RefCell;

    use super::{BUILD, Listener, RESUME, RUN, SUSPEND, TERMINATE, VARIABLE};

    thread_local! {
        static LISTENER: RefCell<Option<Listener>> = const { RefCell::new(None) };
    }

    /// Here the server dies, if it was told to.
    pub fn step(name: &'static str) {
        let known = [RUN, SUSPEND, RESUME, TERMINATE, BUILD].iter().any(|steps| steps.contains(&name));
        assert!(known, "{name} is not in the list of steps");
        if std::env::var_os(VARIABLE).is_some_and(|wanted| wanted == name) {
            eprintln!("failpoint: dying at {name}");
            // A process that cannot kill itself is no test of anything.
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL)
                .expect("it is ours");
            loop {
                std::thread::park();
            }
        }
        if let Some(listener) = LISTENER.with_borrow(Clone::clone) {
            listener(name);
        }
    }

    /// Has this listener, or none, hear of the steps in this thread.
    pub fn listen(listener: Option<Listener>) {
        LISTENER.set(listener);
    }
}
