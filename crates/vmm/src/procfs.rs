//! What `/proc` says about processes.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The kernel's mark on links to files that were removed.
const DELETED: &[u8] = b" (deleted)";
/// The longest `/proc/<pid>/maps` that is read; QEMU's has a few hundred lines.
const MAX_MAPS: u64 = 4 * 1024 * 1024;

/// When the process began, in clock ticks since boot; `None` if there is no such process or it only waits to be
/// reaped. Together with the pid this names one process for the whole uptime of the machine.
pub(crate) fn start_time(pid: u32) -> io::Result<Option<u64>> {
    let stat = match fs::read(format!("/proc/{pid}/stat")) {
        Ok(stat) => stat,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        // Read of a process that went away between open and read.
        Err(e) if e.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
        Err(e) => return Err(e),
    };
    parse_stat(&stat).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("unexpected /proc/{pid}/stat")))
}

/// The start time in the text of a `stat` file; `Some(None)` for a zombie.
fn parse_stat(stat: &[u8]) -> Option<Option<u64>> {
    // The program's name, in parentheses, may itself contain parentheses and spaces.
    let after_name = stat.iter().rposition(|&b| b == b')')? + 1;
    let text = std::str::from_utf8(&stat[after_name..]).ok()?;
    let mut fields = text.split_ascii_whitespace();
    if matches!(fields.next()?, "Z" | "X" | "x") {
        return Some(None);
    }
    Some(Some(fields.nth(18)?.parse().ok()?))
}

/// An identifier of this boot of the machine.
pub(crate) fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// A line of `/proc/<pid>/maps`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mapping {
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) offset: u64,
    pub(crate) inode: u64,
    pub(crate) path: PathBuf,
}

/// The file mappings of a process.
pub(crate) fn mappings(pid: u32) -> io::Result<Vec<Mapping>> {
    let mut text = Vec::new();
    fs::File::open(format!("/proc/{pid}/maps"))?.take(MAX_MAPS).read_to_end(&mut text)?;
    Ok(text.split(|&b| b == b'\n').filter_map(parse_map).collect())
}

/// `start-end perms offset dev inode   path`; `None` for a line without a file.
fn parse_map(line: &[u8]) -> Option<Mapping> {
    let mut rest = line;
    let mut field = || {
        let length = rest.iter().position(|&b| b == b' ')?;
        let (field, after) = rest.split_at(length);
        rest = &after[1..];
        std::str::from_utf8(field).ok()
    };
    let (start, end) = field()?.split_once('-')?;
    let _permissions = field()?;
    let offset = field()?;
    let _device = field()?;
    let inode = field()?;
    let path = rest.trim_ascii_start();
    if !path.starts_with(b"/") {
        return None;
    }
    Some(Mapping {
        start: u64::from_str_radix(start, 16).ok()?,
        end: u64::from_str_radix(end, 16).ok()?,
        offset: u64::from_str_radix(offset, 16).ok()?,
        inode: inode.parse().ok()?,
        path: without_deleted(path).into(),
    })
}

fn without_deleted(path: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(path.strip_suffix(DELETED).unwrap_or(path)))
}

/// Every live process whose user is one of `uids`, with that user: also those a daemon started and did not live to
/// record. A jailed process cannot change its user, so this finds all of them and nothing else.
pub fn find_strays(uids: Range<u32>) -> Vec<(u32, u32)> {
    let Ok(processes) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    processes
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(|pid| Some((pid, uid_of(pid)?)))
        .filter(|(pid, uid)| uids.contains(uid) && matches!(start_time(*pid), Ok(Some(_))))
        .collect()
}

/// Ticks a second in which the kernel tells processor time: the same on every architecture we run on.
const TICKS_PER_SECOND: u64 = 100;

/// Processor time that all threads of a process have used, those that ended included.
pub(crate) fn cpu_time(pid: u32) -> Option<Duration> {
    parse_cpu_time(&fs::read(format!("/proc/{pid}/stat")).ok()?)
}

fn parse_cpu_time(stat: &[u8]) -> Option<Duration> {
    // The name may have anything in it, brackets included; what follows the last one are numbers.
    let rest = &stat[stat.iter().rposition(|&byte| byte == b')')? + 1..];
    let mut fields = std::str::from_utf8(rest).ok()?.split_ascii_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    let ticks = ticks()?.saturating_add(ticks()?);
    Some(Duration::from_millis(ticks.saturating_mul(1000 / TICKS_PER_SECOND)))
}

/// Whether a thread of a process runs just now, or wants to.
pub(crate) fn at_work(pid: u32) -> bool {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return false };
    // One that ended meanwhile does not run.
    threads.flatten().any(|thread| fs::read(thread.path().join("stat")).is_ok_and(|stat| runs(&stat)))
}

fn runs(stat: &[u8]) -> bool {
    let name_end = stat.iter().rposition(|&byte| byte == b')');
    name_end.and_then(|end| stat.get(end + 2)) == Some(&b'R')
}

/// The user a process is.
pub(crate) fn uid_of(pid: u32) -> Option<u32> {
    // The directory itself belongs to root for a process that may not be dumped.
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_runs_is_told_from_one_that_waits() {
        assert!(runs(b"7 (CPU 0/TCG) R 1 7 7 0"));
        assert!(runs(b"7 (a) S b) R 1 7 7 0"));
        for other in [&b"7 (R) S 1 7 7 0"[..], b"7 (a) D 1", b"7 (a)", b"7 (a) ", b""] {
            assert!(!runs(other));
        }
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let settled = (0..600).any(|_| {
            std::thread::sleep(Duration::from_millis(100));
            !at_work(child.id())
        });
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(settled);
        assert!(at_work(std::process::id()));
    }

    #[test]
    fn stat_with_a_hostile_name_is_read_right() {
        let stat = b"42 (a) R 1 (b) S 1 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 100 1 2";
        assert_eq!(parse_stat(stat), Some(Some(987_654)));
        let zombie = b"42 (qemu) Z 1 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 0 0";
        assert_eq!(parse_stat(zombie), Some(None));
        assert_eq!(parse_stat(b"nonsense"), None);
        // Five ticks in the program and six in the kernel.
        assert_eq!(parse_cpu_time(stat), Some(Duration::from_millis(110)));
        assert_eq!(parse_cpu_time(b"nonsense"), None);
        assert!(cpu_time(std::process::id()).is_some());
    }

    #[test]
    fn own_process_is_alive_and_an_impossible_one_is_not() {
        assert!(start_time(std::process::id()).unwrap().is_some());
        assert_eq!(start_time(u32::MAX - 1).unwrap(), None);
    }

    #[test]
    fn maps_lines() {
        let line = b"7f00-7f10 rw-p 00001000 fe:00 1234                       /a b/memory (deleted)";
        assert_eq!(
            parse_map(line),
            Some(Mapping { start: 0x7f00, end: 0x7f10, offset: 0x1000, inode: 1234, path: "/a b/memory".into() })
        );
        assert_eq!(parse_map(b"7f00-7f10 rw-p 00000000 00:00 0 "), None);
        assert_eq!(parse_map(b"7f00-7f10 rw-p 00000000 00:00 0          [heap]"), None);
    }
}
