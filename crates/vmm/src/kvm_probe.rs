//! Whether KVM is of any use here.
//!
//! That `/dev/kvm` exists, or even opens, proves nothing: inside some virtual machines every instruction that a guest's
//! kernel executes is emulated, a thousand times slower, and some not at all, so that a guest seems to hang. So some are
//! run in a throw-away machine, in ring 0, and timed; `cmpxchg16b` and `popcnt`, which a Linux kernel needs and such
//! emulators lack, among them.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use kvm_bindings::kvm_segment;
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};

use crate::sys::GuestPages;

/// Real hardware does some billions of instructions a second, emulation about one million.
const USABLE_PER_SECOND: u64 = 20_000_000;
/// The probe answers within this time, whatever happens.
const DEADLINE: Duration = Duration::from_millis(300);
/// Rounds quadruple until one takes this long; a shorter one measures the way in and out.
const LONG_ENOUGH: Duration = Duration::from_millis(2);
/// Turns of the first round: a few milliseconds under emulation, which then needs no second.
const FIRST_ROUND: u64 = 2_000;
/// Turns of the last: a few hundred thousand instructions, less than a millisecond where they are executed.
const LAST_ROUND: u64 = 16_000_000;
/// Turns of the loop with the instructions that emulators lack.
const RARE_ROUND: u64 = 64 * 1024;

const PAGE: usize = 4096;
const CODE_ADDRESS: u64 = 0x1000;
/// `dec rcx; jnz -5; hlt`. Two instructions a turn.
const PLAIN: [u8; 6] = [0x48, 0xff, 0xc9, 0x75, 0xfb, 0xf4];
const RARE_ADDRESS: u64 = 0x1800;
/// `popcnt rax, rcx; cmpxchg16b [rdi]; dec rcx; jnz -14; hlt`. Four instructions a turn.
const RARE: [u8; 15] = [0xf3, 0x48, 0x0f, 0xb8, 0xc1, 0x48, 0x0f, 0xc7, 0x0f, 0x48, 0xff, 0xc9, 0x75, 0xf2, 0xf4];
/// 16 bytes to compare and exchange.
const OPERAND_ADDRESS: u64 = 0x5000;
/// Page tables that map the first 2 MiB onto themselves.
const TABLES: [(u64, u64); 3] = [
    // present, writable; the last: a large page
    (0x2000, 0x3000 | 3),
    (0x3000, 0x4000 | 3),
    (0x4000, 0x83),
];
const MEMORY: usize = 6 * PAGE;

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
        Ok(Ok(Measured { instructions_per_second, complete: true })) => KvmVerdict::Usable { instructions_per_second },
        Ok(Ok(Measured { instructions_per_second, .. })) => KvmVerdict::PresentButEmulated { instructions_per_second },
        Ok(Err(reason)) => KvmVerdict::Absent { reason },
        Err(_) => KvmVerdict::PresentButEmulated { instructions_per_second: 0 },
    }
}

/// What was measured.
struct Measured {
    instructions_per_second: u64,
    /// Whether the instructions that emulators lack were executed.
    complete: bool,
}

/// What KVM can do, or why nothing could be run.
fn measure(give_up: &AtomicBool) -> Result<Measured, String> {
    let step = |what: &'static str| move |error: kvm_ioctls::Error| format!("{what}: {error}");
    let kvm = Kvm::new().map_err(step("open /dev/kvm"))?;
    let mut memory = vec![0; MEMORY];
    for (address, code) in [(CODE_ADDRESS, &PLAIN[..]), (RARE_ADDRESS, &RARE[..])] {
        memory[address as usize..][..code.len()].copy_from_slice(code);
    }
    for (address, entry) in TABLES {
        memory[address as usize..][..8].copy_from_slice(&entry.to_le_bytes());
    }
    let pages = GuestPages::with(&memory).map_err(|e: io::Error| format!("map memory: {e}"))?;
    let vm = kvm.create_vm().map_err(step("create a machine"))?;
    pages.give_to(&vm, 0).map_err(step("give it memory"))?;
    let (mut turns, mut rounds) = (FIRST_ROUND, 0);
    let instructions_per_second = loop {
        let Some(took) = round(&vm, rounds, CODE_ADDRESS, turns)? else {
            return Ok(Measured { instructions_per_second: 0, complete: false });
        };
        let per_second = (2.0 * turns as f64 / took.as_secs_f64().max(1e-9)) as u64;
        if took >= LONG_ENOUGH || turns >= LAST_ROUND || give_up.load(Ordering::Relaxed) {
            break per_second;
        }
        turns *= 4;
        rounds += 1;
    };
    // Where the others are emulated these would take too long, if they come to an end at all.
    let complete =
        instructions_per_second >= USABLE_PER_SECOND && round(&vm, rounds + 1, RARE_ADDRESS, RARE_ROUND)?.is_some();
    // The machine goes before its memory: it is declared later.
    Ok(Measured { instructions_per_second, complete })
}

/// Runs a loop on a processor of this number, in ring 0 of long mode; `None` if the guest did anything but come to its end.
fn round(vm: &VmFd, number: u64, code: u64, turns: u64) -> Result<Option<Duration>, String> {
    let step = |what: &'static str| move |error: kvm_ioctls::Error| format!("{what}: {error}");
    let mut vcpu = vm.create_vcpu(number).map_err(step("create a processor"))?;
    long_mode(&vcpu).map_err(step("set registers"))?;
    let mut registers = vcpu.get_regs().map_err(step("read registers"))?;
    registers.rip = code;
    registers.rcx = turns;
    registers.rdi = OPERAND_ADDRESS;
    registers.rflags = 2;
    vcpu.set_regs(&registers).map_err(step("set registers"))?;
    let begin = Instant::now();
    match vcpu.run() {
        Ok(VcpuExit::Hlt) => Ok(Some(begin.elapsed())),
        Ok(_) => Ok(None),
        Err(error) => Err(format!("run the processor: {error}")),
    }
}

/// Straight into 64-bit mode, with the page tables of [`TABLES`].
fn long_mode(vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    let mut special = vcpu.get_sregs()?;
    let segment = |kind, long: bool| kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector: 8,
        type_: kind,
        present: 1,
        dpl: 0,
        db: u8::from(!long),
        s: 1,
        l: u8::from(long),
        g: 1,
        ..Default::default()
    };
    // Code, execute and read; data, read and write. Both accessed.
    special.cs = segment(11, true);
    for data in [&mut special.ds, &mut special.es, &mut special.ss] {
        *data = segment(3, false);
    }
    special.cr3 = TABLES[0].0;
    // PAE; PE, ET and PG; LME and LMA.
    special.cr4 = 1 << 5;
    special.cr0 = 1 | 1 << 4 | 1 << 31;
    special.efer = 1 << 8 | 1 << 10;
    vcpu.set_sregs(&special)
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
