//! What a VM uses of the host.

use std::fs;
use std::io;
use std::time::Duration;

/// What a VMM process uses. Bytes are resident in memory now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Processor time since the VMM's start.
    pub cpu_time: Duration,
    /// All of the VMM's memory, what it shares with others included.
    pub resident_bytes: u64,
    /// What is this VMM's alone: the pages the guest changed, and the VMM's own.
    pub private_bytes: u64,
    /// What is its pager's alone; 0 without one.
    pub pager_bytes: u64,
}

impl Usage {
    pub(crate) fn of(pid: u32, pager: Option<u32>) -> io::Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let ticks = ticks(&stat)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("unexpected /proc/{pid}/stat")))?;
        let (resident_bytes, private_bytes) = memory(pid)?;
        Ok(Self {
            cpu_time: Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64),
            resident_bytes,
            private_bytes,
            pager_bytes: pager.map_or(Ok(0), |pid| memory(pid).map(|(_, private)| private))?,
        })
    }
}

/// User and system time in a `stat` file.
fn ticks(stat: &str) -> Option<u64> {
    // The program's name, in parentheses, may itself contain parentheses and spaces.
    let mut fields = stat[stat.rfind(')')? + 1..].split_ascii_whitespace().skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

/// Resident and private bytes.
fn memory(pid: u32) -> io::Result<(u64, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let kib = |name: &str| -> u64 {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|rest| rest.trim().strip_suffix(" kB")?.trim().parse().ok()).unwrap_or(0)
    };
    Ok((kib("Rss:") * 1024, (kib("Private_Clean:") + kib("Private_Dirty:")) * 1024))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_this_process() {
        let usage = Usage::of(std::process::id(), None).unwrap();
        assert!(usage.resident_bytes >= usage.private_bytes && usage.private_bytes > 0, "{usage:?}");
        assert_eq!(ticks("1 (a) b) R 0 0 0 0 0 0 0 0 0 0 7 5 0 0"), Some(12));
    }
}
