//! Keeps everything but the agent off the processors for a moment, in which the host stops the VM.
//!
//! A guest that was stopped finds the time it missed on its clocks, and Linux charges the time between two looks at the
//! clock to the process that ran: after a night, a fair scheduler would not let it run again before every other one had
//! as much. So on each processor a thread of the agent runs instead, of a scheduling class that is not about fairness,
//! and it is charged. It does nothing; whom it took the processor from notices no more than it would of any other process.
//!
//! The time is bounded by the guest's own clock, so that a host that does not stop the VM, or is no more, costs an app a
//! moment. After a restore that clock has moved on, and the threads end by themselves.

use crate::sys;
use rustix::process::Pid;
use rustix::thread::{CpuSet, gettid, sched_getaffinity, sched_setaffinity, sched_yield};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak, mpsc};
use std::thread;
use std::time::{Duration, Instant};

/// The longest that a host may ask for.
const TIME_MAX: Duration = Duration::from_secs(2);

/// How long the threads may take to get to their processors.
const GATHER_TIME_MAX: Duration = Duration::from_millis(200);

/// Priorities of `SCHED_FIFO`: the threads that hold the processors, and the agent above them. The kernel's own threads
/// for interrupts are at 50.
const HOLDER_PRIORITY: u8 = 1;
const AGENT_PRIORITY: u8 = 2;

/// Of a thread that only waits.
const STACK_BYTES: usize = 64 * 1024;

/// The kernel lets such threads run for 95 % of the time only, and would make up for the time missed; -1 is all of it.
const REALTIME_SHARE: &str = "/proc/sys/kernel/sched_rt_runtime_us";

/// Why the processors could not be held.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ParkError {
    /// The kernel refused a step.
    #[error("cannot {step}")]
    Step {
        /// What was tried.
        step: &'static str,
        #[source]
        source: io::Error,
    },
    /// Some thread did not get to its processor.
    #[error("{} of {processors} processors could not be held", processors - held)]
    Late {
        /// Those that were.
        held: usize,
        /// All.
        processors: usize,
    },
    /// It is being done.
    #[error("the processors are held already")]
    Twice,
}

/// The processors, held or not.
#[derive(Default)]
pub(crate) struct Park(Mutex<Weak<Hold>>);

impl Park {
    /// Returns when all processors are held.
    pub(crate) fn begin(&self, time_max: Duration) -> Result<(), ParkError> {
        let mut held = self.held();
        if held.strong_count() != 0 {
            return Err(ParkError::Twice);
        }
        let hold = Arc::new(Hold::new(Instant::now() + time_max.min(TIME_MAX))?);
        *held = Arc::downgrade(&hold);
        hold.occupy_all().inspect_err(|_| hold.over.store(true, Ordering::Relaxed))
    }

    /// Lets everybody run again.
    pub(crate) fn end(&self) {
        if let Some(hold) = self.held().upgrade() {
            hold.over.store(true, Ordering::Relaxed);
        }
    }

    fn held(&self) -> MutexGuard<'_, Weak<Hold>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One time that the processors are held. The last of its threads makes the agent an ordinary process again.
struct Hold {
    over: AtomicBool,
    until: Instant,
    agent: Pid,
    share_before: String,
}

impl Hold {
    /// Puts the agent before everybody, so that it still gets a processor.
    fn new(until: Instant) -> Result<Hold, ParkError> {
        let share_before = std::fs::read_to_string(REALTIME_SHARE).map_err(failed("read the realtime share"))?;
        let hold = Hold { over: AtomicBool::new(false), until, agent: gettid(), share_before };
        std::fs::write(REALTIME_SHARE, "-1").map_err(failed("raise the realtime share"))?;
        sys::schedule(hold.agent, Some(AGENT_PRIORITY)).map_err(failed("put the agent first"))?;
        Ok(hold)
    }

    /// A thread for each processor; returns when they are there.
    fn occupy_all(self: &Arc<Self>) -> Result<(), ParkError> {
        let processors = sched_getaffinity(None).map_err(|errno| failed("list the processors")(errno.into()))?;
        let processors: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|processor| processors.is_set(*processor)).collect();
        let (arrived, arrivals) = mpsc::channel();
        for processor in processors.iter().copied() {
            let (hold, arrived) = (Arc::clone(self), arrived.clone());
            let thread = move || {
                // A thread that cannot is missed below.
                if occupy(processor).is_ok() && arrived.send(()).is_ok() {
                    hold.wait();
                }
                // The time missed is charged to this thread before the kernel looks at shares again.
                sched_yield();
                drop(hold);
            };
            let builder = thread::Builder::new().stack_size(STACK_BYTES);
            builder.spawn(thread).map_err(failed("make a thread"))?;
        }
        let gathered = Instant::now() + GATHER_TIME_MAX;
        for held in 0..processors.len() {
            let left = gathered.saturating_duration_since(Instant::now());
            arrivals.recv_timeout(left).map_err(|_| ParkError::Late { held, processors: processors.len() })?;
        }
        Ok(())
    }

    fn wait(&self) {
        while !self.over.load(Ordering::Relaxed) && Instant::now() < self.until {
            std::hint::spin_loop();
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        // Neither can be mended if it fails: the agent would stay before the others.
        let _ = sys::schedule(self.agent, None);
        let _ = std::fs::write(REALTIME_SHARE, &self.share_before);
    }
}

/// Makes the calling thread the one that this processor runs, unless the agent has something to do.
fn occupy(processor: usize) -> io::Result<()> {
    let mut only = CpuSet::new();
    only.set(processor);
    sched_setaffinity(None, &only)?;
    // It came with the agent's priority, so that nobody could keep it from getting here.
    sys::schedule(gettid(), Some(HOLDER_PRIORITY))
}

fn failed(step: &'static str) -> impl Fn(io::Error) -> ParkError {
    move |source| ParkError::Step { step, source }
}
