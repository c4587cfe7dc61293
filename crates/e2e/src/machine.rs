//! What a server left on, or took from, the machine: processes, namespaces, mounts, bytes.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
};

use anyhow::Context;

/// A process.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// Its arguments.
    pub arguments: Vec<String>,
}

/// Every process that works in this directory, or names it in its arguments or environment.
#[must_use]
pub fn processes_of(directory: &Path) -> Vec<Process> {
    let me = std::process::id();
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let mut found: Vec<Process> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| *pid != me)
        .filter_map(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            let lives_there = fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(directory));
            let name = directory.as_os_str().as_bytes();
            // A jailed VMM is told nothing of the host but, in its environment, whose it is.
            let names_it =
                [&line, &environment].iter().any(|text| contains(text, name, b'/') || contains(text, name, 0));
            let arguments = line
                .split(|byte| *byte == 0)
                .filter(|argument| !argument.is_empty())
                .map(|argument| String::from_utf8_lossy(argument).into_owned())
                .collect();
            (lives_there || names_it).then_some(Process { pid, arguments })
        })
        .collect();
    found.sort();
    found
}

// Does the name occur, followed by this byte (so that `/a/b` is not found in `/a/bc`)?
fn contains(line: &[u8], name: &[u8], then: u8) -> bool {
    line.windows(name.len() + 1).any(|window| &window[..name.len()] == name && window[name.len()] == then)
}

/// The VMM processes that work for this directory.
#[must_use]
pub fn vmms_of(directory: &Path) -> Vec<Process> {
    processes_of(directory)
        .into_iter()
        .filter(|process| {
            process
                .arguments
                .first()
                .is_some_and(|program| program.rsplit('/').next().is_some_and(|name| name.starts_with("qemu-system")))
        })
        .collect()
}

/// Is this a VMM that was started ahead of time and waits? Its directory is as its environment says until it is somebody's.
#[must_use]
pub fn is_ready(vmm: &Process, data_dir: &Path) -> bool {
    let environment = fs::read(format!("/proc/{}/environ", vmm.pid)).unwrap_or_default();
    let dir = environment.split(|byte| *byte == 0).find_map(|entry| entry.strip_prefix(b"PILOTLIGHT_VM_DIR="));
    let dir = dir.map(|dir| Path::new(std::ffi::OsStr::from_bytes(dir)));
    dir.is_some_and(|dir| dir.starts_with(data_dir.join("ready")) && dir.exists())
}

/// Is there a process of this number that is not a zombie?
#[must_use]
pub fn is_alive(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .ok()
        .and_then(|stat| stat.rsplit(')').next().map(|rest| !rest.trim_start().starts_with(['Z', 'X'])))
        .unwrap_or(false)
}

/// Kills a process without a chance to clean up.
pub fn kill(pid: u32) -> anyhow::Result<()> {
    signal(pid, rustix::process::Signal::KILL)
}

/// Sends a signal.
pub fn signal(pid: u32, signal: rustix::process::Signal) -> anyhow::Result<()> {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid)?).context("process 0")?;
    rustix::process::kill_process(pid, signal).with_context(|| format!("signalling {pid:?}"))
}

/// The mark in the names of what belongs to a data directory: its namespaces, links and packet rules. A hash that the
/// server keeps stable over releases (FNV-1a), because it must find its own again.
#[must_use]
pub fn owner(data_dir: &Path) -> String {
    format!("{:06x}", hash(data_dir) & 0xff_ffff)
}

fn hash(data_dir: &Path) -> u64 {
    data_dir
        .as_os_str()
        .as_bytes()
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The user whom a VMM in this slot of a data directory runs as; as stable as the mark.
#[must_use]
pub fn slot_user(data_dir: &Path, slot: u32) -> u32 {
    let range = u32::try_from(hash(data_dir) >> 32 & 0x7fff).expect("15 bits");
    0x7000_0000 | (range * 4096) | slot
}

/// Network namespaces of a data directory.
#[must_use]
pub fn namespaces_of(data_dir: &Path) -> BTreeSet<String> {
    names_beginning("/run/netns", &format!("pl-{}-", owner(data_dir)))
}

/// Host ends of the network links of a data directory.
#[must_use]
pub fn links_of(data_dir: &Path) -> BTreeSet<String> {
    names_beginning("/sys/class/net", &format!("plv{}", owner(data_dir)))
}

fn names_beginning(directory: &str, prefix: &str) -> BTreeSet<String> {
    names_in(Path::new(directory)).into_iter().filter(|name| name.starts_with(prefix)).collect()
}

/// Mount points below a directory, the deepest first.
#[must_use]
pub fn mounts_below(directory: &Path) -> Vec<PathBuf> {
    let Ok(table) = fs::read_to_string("/proc/self/mountinfo") else { return Vec::new() };
    let mut points: Vec<PathBuf> = table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|point| PathBuf::from(point.replace("\\040", " ")))
        .filter(|point| point.starts_with(directory) && point != directory)
        .collect();
    points.sort_by_key(|point| std::cmp::Reverse(point.as_os_str().len()));
    points
}

/// Bytes that a directory takes on the disk, as `du` counts: allocated, every file once.
#[must_use]
pub fn bytes_on_disk(directory: &Path) -> u64 {
    let mut seen = BTreeSet::new();
    let mut bytes = 0;
    let mut left = vec![directory.to_owned()];
    while let Some(path) = left.pop() {
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        if seen.insert((metadata.dev(), metadata.ino())) {
            bytes += metadata.blocks() * 512;
        }
        if metadata.is_dir() {
            left.extend(fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path()));
        }
    }
    bytes
}

/// Names in a directory; none if it does not exist.
#[must_use]
pub fn names_in(directory: &Path) -> BTreeSet<String> {
    fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_found_by_its_argument_and_not_by_a_longer_one() {
        let directory = tempfile::tempdir().unwrap();
        let inside = directory.path().join("x");
        let mut child = std::process::Command::new("sleep").arg("60").current_dir(directory.path()).spawn().unwrap();
        let found = processes_of(directory.path());
        let elsewhere = processes_of(&inside);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(found.iter().map(|process| process.pid).collect::<Vec<_>>(), [child.id()]);
        assert_eq!(elsewhere, []);
        assert!(contains(b"-x=/a/b/c", b"/a/b", b'/') && !contains(b"-x=/a/bc", b"/a/b", b'/'));
    }

    #[test]
    fn holes_take_no_bytes() {
        let directory = tempfile::tempdir().unwrap();
        let file = fs::File::create(directory.path().join("sparse")).unwrap();
        file.set_len(1 << 30).unwrap();
        assert!(bytes_on_disk(directory.path()) < 1 << 20);
    }

    #[test]
    fn the_dead_are_not_alive() {
        assert!(is_alive(std::process::id()));
        let mut child = std::process::Command::new("true").spawn().unwrap();
        crate::until("it to end", std::time::Duration::from_secs(5), || {
            anyhow::ensure!(!is_alive(child.id()));
            Ok(())
        })
        .unwrap();
        child.wait().unwrap();
    }
}
