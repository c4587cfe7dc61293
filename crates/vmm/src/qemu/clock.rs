//! Moves the clocks of saved device state forward, so that a guest that stood still finds the time it missed on its
//! monotonic clock too, as if it had slept.
//!
//! An emulated guest's clocks are two numbers in the section `timer` of the saved state: ticks of its time stamp counter,
//! and nanoseconds that every other timer counts by. A timer whose time is over by then fires as soon as the guest runs.
//!
//! Only a guest that was idle or parked gets this. Linux charges the time between two looks at the clock to the process
//! that runs: after a night, it would not let that process run again before every other one that wants to had as much.
//! When every processor is halted, nobody runs; when it is parked, one that does not mind.

use std::time::Duration;

use crate::start::Standstill;

// migration/savevm.c of QEMU: what begins a section that is whole, and what follows each.
const SECTION_FULL: u8 = 0x04;
const SECTION_FOOTER: u8 = 0x7e;

/// `vmstate_timers` of softmmu/cpu-timers.c: ticks, 8 unused bytes, nanoseconds.
const TIMER: Kind = Kind { name: b"timer", version: 2, bytes: 24 };

/// `vmstate_cpu_common` of softmmu/cpus.c: whether the processor is halted, and its interrupt requests.
const CPU: Kind = Kind { name: b"cpu_common", version: 1, bytes: 8 };

/// Ticks in a nanosecond that are believed: counters run at some gigahertz.
const TICKS_PER_NANO: std::ops::RangeInclusive<i128> = 0..=20;

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The clocks are later now.
    Advanced,
    /// A processor was at work for anybody: they are as they were.
    Busy,
    /// This is not the state of a machine of this many processors as this knows it: it is as it was.
    Unknown,
}

/// Moves the clocks of this state of a machine forward.
pub(crate) fn advance(state: &mut [u8], vcpus: u32, stood_still: Standstill) -> Outcome {
    let processors = find(state, &CPU);
    if processors.len() != vcpus as usize {
        return Outcome::Unknown;
    }
    if !stood_still.parked && processors.iter().any(|at| state[*at..*at + 4] != 1u32.to_be_bytes()) {
        return Outcome::Busy;
    }
    let [at] = find(state, &TIMER)[..] else { return Outcome::Unknown };
    let Some((ticks, nanos)) = later(number(state, at), number(state, at + 16), stood_still.time) else {
        return Outcome::Unknown;
    };
    state[at..at + 8].copy_from_slice(&ticks.to_be_bytes());
    state[at + 16..at + 24].copy_from_slice(&nanos.to_be_bytes());
    Outcome::Advanced
}

/// Both counters began with the machine, so their ratio is how fast the first one ticks.
fn later(ticks: i64, nanos: i64, by: Duration) -> Option<(i64, i64)> {
    if ticks <= 0 || nanos <= 0 || !TICKS_PER_NANO.contains(&(i128::from(ticks) / i128::from(nanos))) {
        return None;
    }
    let by = i64::try_from(by.as_nanos()).ok()?;
    let by_ticks = i128::from(by) * i128::from(ticks) / i128::from(nanos);
    Some((ticks.checked_add(i64::try_from(by_ticks).ok()?)?, nanos.checked_add(by)?))
}

fn number(state: &[u8], at: usize) -> i64 {
    i64::from_be_bytes(state[at..at + 8].try_into().expect("eight bytes"))
}

/// A kind of section.
struct Kind {
    name: &'static [u8],
    version: u32,
    /// Of its content.
    bytes: usize,
}

/// Where the content of each section of this kind begins. The state tells no section's length, so they are looked for;
/// what is found has its head and its footer, which repeat a number, at the right distance.
fn find(state: &[u8], kind: &Kind) -> Vec<usize> {
    let length = u8::try_from(kind.name.len()).expect("names are short");
    let name = [&[length], kind.name].concat();
    let mut found = Vec::new();
    for at in 0..state.len().saturating_sub(name.len()) {
        if state[at] != length || !state[at..].starts_with(&name) || at < 5 || state[at - 5] != SECTION_FULL {
            continue;
        }
        // After the name: the instance, the version, the content.
        let after = at + name.len();
        let content = after + 8;
        let footer = [&[SECTION_FOOTER], &state[at - 4..at]].concat();
        let versioned = state.get(after + 4..content) == Some(&kind.version.to_be_bytes());
        if versioned && state.get(content + kind.bytes..).is_some_and(|rest| rest.starts_with(&footer)) {
            found.push(content);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn section(id: u32, kind: &Kind, instance: u32, content: &[u8]) -> Vec<u8> {
        let mut bytes = vec![SECTION_FULL];
        bytes.extend(id.to_be_bytes());
        bytes.push(kind.name.len() as u8);
        bytes.extend(kind.name);
        bytes.extend(instance.to_be_bytes());
        bytes.extend(kind.version.to_be_bytes());
        bytes.extend(content);
        bytes.push(SECTION_FOOTER);
        bytes.extend(id.to_be_bytes());
        bytes
    }

    fn idle_for(time: Duration) -> Standstill {
        Standstill { time, parked: false }
    }

    fn timer(ticks: i64, nanos: i64) -> Vec<u8> {
        section(0, &TIMER, 0, &[ticks.to_be_bytes(), [0; 8], nanos.to_be_bytes()].concat())
    }

    fn processor(instance: u32, halted: u32) -> Vec<u8> {
        section(4 + instance, &CPU, instance, &[halted.to_be_bytes(), 2u32.to_be_bytes()].concat())
    }

    fn saved(parts: &[Vec<u8>]) -> Vec<u8> {
        // As QEMU 7.2 begins.
        [b"QEVM\0\0\0\x03".to_vec(), parts.concat(), b"\0more\x05timer".to_vec()].concat()
    }

    #[test]
    fn both_counters_of_an_idle_machine_are_moved_and_nothing_else() {
        let mut state = saved(&[timer(60_000_000_000, 30_000_000_000), processor(0, 1), processor(1, 1)]);
        let hours = Duration::from_secs(8 * 3600);
        assert_eq!(advance(&mut state, 2, idle_for(hours)), Outcome::Advanced);
        let expected = timer(60_000_000_000 + 2 * 28_800_000_000_000, 30_000_000_000 + 28_800_000_000_000);
        assert_eq!(state, saved(&[expected, processor(0, 1), processor(1, 1)]));
    }

    #[test]
    fn a_machine_at_work_is_left_alone_unless_it_was_parked() {
        let work = processor(1, 0);
        let before = saved(&[timer(60, 30), processor(0, 1), work.clone()]);
        let mut state = before.clone();
        assert_eq!(advance(&mut state, 2, idle_for(Duration::from_secs(1))), Outcome::Busy);
        assert_eq!(state, before);
        let parked = Standstill { time: Duration::from_nanos(100), parked: true };
        assert_eq!(advance(&mut state, 2, parked), Outcome::Advanced);
        assert_eq!(state, saved(&[timer(260, 130), processor(0, 1), work]));
    }

    #[test]
    fn what_is_not_known_is_left_alone() {
        let idle = processor(0, 1);
        for parts in [
            vec![],
            vec![idle.clone()],
            vec![timer(60, 30)],
            vec![timer(60, 30), idle.clone(), processor(1, 1)],
            vec![timer(60, 30), timer(60, 30), idle.clone()],
            vec![timer(0, 0), idle.clone()],
            vec![timer(-60, 30), idle.clone()],
            vec![timer(6000, 30), idle.clone()],
            vec![timer(i64::MAX - 1, i64::MAX - 1), idle.clone()],
        ] {
            let before = saved(&parts);
            let mut state = before.clone();
            assert_eq!(advance(&mut state, 1, idle_for(Duration::from_secs(1))), Outcome::Unknown);
            assert_eq!(state, before);
        }
        let whole = [timer(60, 30), idle].concat();
        for cut in 0..whole.len() {
            assert_eq!(
                advance(&mut whole[..cut].to_vec(), 1, idle_for(Duration::from_secs(1))),
                Outcome::Unknown,
                "{cut}"
            );
        }
    }
}
