//! Was it for want of memory that the app ended? The kernel's log knows whom it ended for that.

use guest_protocol::OutOfMemory;
use rustix::process::Pid;
use rustix::time::{ClockId, clock_gettime};
use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

/// The kernel's log, a record for each read.
const LOG: &str = "/dev/kmsg";

/// The longest record, as the kernel hands it out (`CONSOLE_EXT_LOG_MAX`).
const RECORD_BYTES_MAX: usize = 8192;

/// Records gone through at most; the kernel keeps some thousands.
const RECORDS_MAX: usize = 65_536;

/// How long an app may take to end after a process it cannot do without was ended: that one must be gone first, and
/// taking back its memory takes a while.
const AFTERMATH: Duration = Duration::from_secs(30);

/// Why the app ended with this code, if it was for want of memory: the kernel ended its first process, or another one
/// just before and the app gave up.
pub(super) fn cause(app: Pid, code: i32) -> Option<OutOfMemory> {
    // The log need not be read when nobody was ended.
    if code == 0 || !kills_counted() {
        return None;
    }
    let log = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(LOG).ok()?;
    let now = clock_gettime(ClockId::Monotonic);
    let now = Duration::new(u64::try_from(now.tv_sec).ok()?, u32::try_from(now.tv_nsec).ok()?);
    find(records(log), app.as_raw_nonzero().get(), now)
}

fn kills_counted() -> bool {
    std::fs::read_to_string("/proc/vmstat")
        .is_ok_and(|counters| counters.lines().any(|line| line.starts_with("oom_kill ") && line != "oom_kill 0"))
}

fn records(mut log: File) -> impl Iterator<Item = String> {
    let mut buffer = vec![0; RECORD_BYTES_MAX];
    let read = move || loop {
        match log.read(&mut buffer) {
            Ok(bytes) => return Some(String::from_utf8_lossy(&buffer[..bytes]).into_owned()),
            // What came next has been overwritten meanwhile; reading goes on with what is there.
            Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
            // The end of the log, for now.
            Err(_) => return None,
        }
    };
    std::iter::from_fn(read).take(RECORDS_MAX)
}

/// The last record that explains the end of `app` at the time `now` since boot.
fn find(records: impl Iterator<Item = String>, app: i32, now: Duration) -> Option<OutOfMemory> {
    records
        .filter_map(|record| Kill::read(&record))
        .filter(|kill| kill.pid == app || kill.at + AFTERMATH >= now)
        .last()
        .map(|kill| kill.victim)
}

/// A process that the kernel ended.
struct Kill {
    at: Duration,
    pid: i32,
    victim: OutOfMemory,
}

impl Kill {
    /// From a record such as
    /// `3,812,52001234,-;Out of memory: Killed process 97 (python3) total-vm:9kB, anon-rss:8kB, file-rss:0kB, …`.
    fn read(record: &str) -> Option<Kill> {
        let (prefix, text) = record.split_once(';')?;
        let mut prefix = prefix.split(',');
        // Above 7, the record is of a program: the kernel's facility is 0.
        prefix.next()?.parse::<u8>().ok().filter(|priority| *priority < 8)?;
        let at = Duration::from_micros(prefix.nth(1)?.parse().ok()?);
        let (_, text) = text.split_once(": Killed process ")?;
        let (pid, text) = text.split_once(" (")?;
        // A process names itself, brackets and all.
        let (process, numbers) = text.rsplit_once(") total-vm:")?;
        let kib = |name: &str| -> Option<u64> {
            numbers.split(", ").find_map(|part| part.strip_prefix(name))?.strip_suffix("kB")?.parse().ok()
        };
        let resident_kib = kib("anon-rss:")?.saturating_add(kib("file-rss:")?).saturating_add(kib("shmem-rss:")?);
        Some(Kill { at, pid: pid.parse().ok()?, victim: OutOfMemory { process: process.to_owned(), resident_kib } })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kill(at: u64, pid: i32, process: &str) -> String {
        format!(
            "3,812,{at}000000,-;Out of memory: Killed process {pid} ({process}) total-vm:2097152kB, anon-rss:1900000kB, \
             file-rss:96kB, shmem-rss:4kB, UID:0 pgtables:3800kB oom_score_adj:0\n SUBSYSTEM=mm\n"
        )
    }

    fn found(records: &[String], app: i32, now: u64) -> Option<(String, u64)> {
        let found = find(records.iter().cloned(), app, Duration::from_secs(now));
        found.map(|found| (found.process, found.resident_kib))
    }

    #[test]
    fn the_apps_own_end_is_found_however_long_ago_and_anothers_only_just_before() {
        let log = ["6,1,0,-;Linux version 6.1\n".to_owned(), kill(50, 97, "python3"), kill(60, 99, "worker")];
        assert_eq!(found(&log, 97, 1000), Some(("python3".to_owned(), 1_900_100)));
        assert_eq!(found(&log, 1, 90), Some(("worker".to_owned(), 1_900_100)));
        assert_eq!(found(&log, 1, 91), None);
        assert_eq!(found(&[], 1, 0), None);
    }

    #[test]
    fn names_may_look_like_anything() {
        assert_eq!(found(&[kill(1, 5, "a) total-vm:1")], 5, 1).map(|found| found.0).as_deref(), Some("a) total-vm:1"));
        assert_eq!(found(&[kill(1, 5, "")], 5, 1).map(|found| found.0).as_deref(), Some(""));
    }

    #[test]
    fn what_a_program_says_to_the_log_is_not_the_kernel() {
        let forged = kill(1, 5, "python3").replacen("3,", "11,", 1);
        assert_eq!(found(&[forged], 5, 1), None);
        for broken in ["", ";", "3,1;x", "3,1,x,-;Out of memory: Killed process 5 (a) total-vm:1kB"] {
            assert_eq!(found(&[broken.to_owned()], 5, 1), None);
        }
    }
}
