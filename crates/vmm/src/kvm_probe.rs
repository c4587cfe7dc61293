//! Whether KVM is of any use here.
//!
//! That `/dev/kvm` exists, or even opens, proves nothing: inside some virtual machines every instruction of a
//! guest is emulated, and a guest seems to hang. So a few thousand instructions are run and timed.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};

use crate::sys::GuestPage;

/// Real hardware does some billions of instructions a second, emulation about one million.
const USABLE_PER_SECOND: u64 = 20_000_000;
/// The probe answers within this time, whatever happens.
const DEADLINE: Duration = Duration::from_millis(300);
/// Rounds double until one takes this long; a shorter one measures the way in and out.
const LONG_ENOUGH: Duration = Duration::from_millis(2);
/// Instructions of the first round: a few milliseconds under emulation.
const FIRST_ROUND: u32 = 4_000;
const LAST_ROUND: u32 = 64_000_000;

const CODE_ADDRESS: u64 = 0x1000;
/// Real mode: `dec ecx; jnz -4; hlt`. Two instructions a turn.
const CODE: [u8; 5] = [0x66, 0x49, 0x75, 0xfc, 0xf4];

/// What the probe found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KvmVerdict {
    /// Guests run on the processor.
    Usable {
        /// The speed measured, a lower bound.
        instructions_per_second: u64,
    },
    /// `/dev/kvm` works, but something emulates the instructions of guests.
    PresentButEmulated {
        /// The speed measured; 0 if nothing was done in time.
        instructions_per_second: u64,
    },
    /// There is no KVM, or it may not be used.
    Absent {
        /// Why.
        reason: String,
    },
}

/// Runs a few instructions in a throw-away virtual machine and times them. Blocks for 300 ms at most.
pub fn probe_kvm() -> KvmVerdict {
    let give_up = Arc::new(AtomicBool::new(false));
    let (report, result) = mpsc::channel();
    let stop = Arc::clone(&give_up);
    let spawned = thread::Builder::new().name("kvm-probe".to_owned()).spawn(move || {
        // A receiver that is gone gave up waiting.
        let _ = report.send(measure(&stop));
    });
    if let Err(error) = spawned {
        return KvmVerdict::Absent { reason: format!("no thread to probe with: {error}") };
    }
    let outcome = result.recv_timeout(DEADLINE);
    // A round that is still going on ends by itself and is the last.
    give_up.store(true, Ordering::Relaxed);
    match outcome {
        Ok(Ok(instructions_per_second)) if instructions_per_second >= USABLE_PER_SECOND => {
            KvmVerdict::Usable { instructions_per_second }
        }
        Ok(Ok(instructions_per_second)) => KvmVerdict::PresentButEmulated { instructions_per_second },
        Ok(Err(reason)) => KvmVerdict::Absent { reason },
        Err(_) => KvmVerdict::PresentButEmulated { instructions_per_second: 0 },
    }
}

/// Instructions a second, or why none could be run.
fn measure(give_up: &AtomicBool) -> Result<u64, String> {
    let step = |what: &'static str| move |error: kvm_ioctls::Error| format!("{what}: {error}");
    let kvm = Kvm::new().map_err(step("open /dev/kvm"))?;
    let page = GuestPage::with_code(&CODE).map_err(|e: io::Error| format!("map a page: {e}"))?;
    let vm = kvm.create_vm().map_err(step("create a machine"))?;
    page.give_to(&vm, CODE_ADDRESS).map_err(step("give it memory"))?;
    let mut vcpu = vm.create_vcpu(0).map_err(step("create a processor"))?;
    let mut instructions = FIRST_ROUND;
    loop {
        let took = round(&mut vcpu, instructions / 2)?;
        let per_second = (f64::from(instructions) / took.as_secs_f64().max(1e-9)) as u64;
        if took >= LONG_ENOUGH || instructions >= LAST_ROUND || give_up.load(Ordering::Relaxed) {
            // The machine goes before the page: it is declared later.
            return Ok(per_second);
        }
        instructions *= 4;
    }
}

/// Runs the loop once, in real mode.
fn round(vcpu: &mut VcpuFd, turns: u32) -> Result<Duration, String> {
    let step = |what: &'static str| move |error: kvm_ioctls::Error| format!("{what}: {error}");
    let mut special = vcpu.get_sregs().map_err(step("read registers"))?;
    special.cs.base = 0;
    special.cs.selector = 0;
    vcpu.set_sregs(&special).map_err(step("set registers"))?;
    let mut registers = vcpu.get_regs().map_err(step("read registers"))?;
    registers.rip = CODE_ADDRESS;
    registers.rcx = u64::from(turns.max(1));
    registers.rflags = 2;
    vcpu.set_regs(&registers).map_err(step("set registers"))?;
    let begin = Instant::now();
    match vcpu.run() {
        Ok(VcpuExit::Hlt) => Ok(begin.elapsed()),
        Ok(other) => Err(format!("the guest did not halt: {other:?}")),
        Err(error) => Err(format!("run the processor: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_in_time_and_consistently() {
        let begin = Instant::now();
        let verdict = probe_kvm();
        assert!(begin.elapsed() < DEADLINE + Duration::from_secs(1));
        println!("{verdict:?} after {:?}", begin.elapsed());
        match verdict {
            KvmVerdict::Usable { instructions_per_second } => assert!(instructions_per_second >= USABLE_PER_SECOND),
            KvmVerdict::PresentButEmulated { instructions_per_second } => {
                assert!(instructions_per_second < USABLE_PER_SECOND)
            }
            KvmVerdict::Absent { reason } => {
                assert!(!reason.is_empty());
                assert!(std::fs::File::open("/dev/kvm").is_err() || !reason.contains("open"));
            }
        }
    }
}
