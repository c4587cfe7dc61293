//! Control groups: what a VMM process may use of memory, processors, processes and I/O. Version 2 where the host has
//! its controllers there, version 1 where that is what it has.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::Limits;

/// The controllers used, by their names in version 2 and version 1.
const CONTROLLERS: [(&str, &str); 4] = [("memory", "memory"), ("cpu", "cpu"), ("pids", "pids"), ("io", "blkio")];
/// The period a quota is of, in microseconds: the kernel's default.
const PERIOD: u64 = 100_000;
/// How long a group whose last process has just gone may refuse to.
const REMOVE_TIMEOUT: Duration = Duration::from_secs(1);

/// Where this host has its controllers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchies {
    /// Version 2: all in one tree. Version 1: a tree a controller.
    trees: Vec<Tree>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Tree {
    root: PathBuf,
    version: Version,
    /// Names in version 2's words.
    controllers: Vec<&'static str>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// A group, in the form a new process gets into it without waiting: writing to `cgroup.procs` stops every fork and exit of
/// the machine for some milliseconds.
#[derive(Debug)]
pub(super) enum Group {
    /// Version 1: the process, which has one thread, writes that into this file itself.
    Tasks(File),
    /// Version 2: the process is born in it.
    Directory(File),
}

/// Limits as they are applied to one group.
pub(super) struct Applied<'a> {
    pub(super) memory_bytes: u64,
    pub(super) limits: &'a Limits,
    /// A path on the device whose I/O is limited.
    pub(super) device_of: &'a Path,
}

impl Hierarchies {
    /// Looks at what is mounted.
    pub fn find() -> Self {
        Self::from_mounts(&fs::read_to_string("/proc/self/mounts").unwrap_or_default(), &|root| {
            fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default()
        })
    }

    fn from_mounts(mounts: &str, controllers_of: &dyn Fn(&Path) -> String) -> Self {
        let mut trees = Vec::new();
        for line in mounts.lines() {
            let mut fields = line.split(' ');
            let (Some(root), Some(kind), Some(options)) = (fields.nth(1), fields.next(), fields.next()) else {
                continue;
            };
            let root = PathBuf::from(root);
            let (version, controllers): (_, Vec<_>) = match kind {
                "cgroup2" => {
                    let there = controllers_of(&root);
                    let there: Vec<_> = there.split_ascii_whitespace().collect();
                    (Version::Two, CONTROLLERS.iter().map(|c| c.0).filter(|c| there.contains(c)).collect())
                }
                "cgroup" => {
                    let there: Vec<_> = options.split(',').collect();
                    let ours = CONTROLLERS.iter().filter(|c| there.contains(&c.1)).map(|c| c.0);
                    (Version::One, ours.collect())
                }
                _ => continue,
            };
            if !controllers.is_empty() {
                trees.push(Tree { root, version, controllers });
            }
        }
        Self { trees }
    }

    /// The controllers there are, in version 2's words.
    pub fn controllers(&self) -> Vec<&'static str> {
        self.trees.iter().flat_map(|tree| tree.controllers.clone()).collect()
    }

    /// Which version they are of, in words.
    pub fn version(&self) -> &'static str {
        match self.trees.first().map(|tree| tree.version) {
            Some(Version::Two) => "version 2",
            Some(Version::One) => "version 1",
            None => "none",
        }
    }

    /// Makes a group with these limits in every tree.
    pub(super) fn create(&self, name: &Path, applied: &Applied<'_>) -> io::Result<Vec<Group>> {
        let made: io::Result<Vec<Group>> = self.trees.iter().map(|tree| tree.create(name, applied)).collect();
        if made.is_err() {
            self.remove(name);
        }
        made
    }

    /// Removes a group whose processes are gone, from every tree. One that is not there is fine.
    pub fn remove(&self, name: &Path) {
        let begin = Instant::now();
        for tree in &self.trees {
            let dir = tree.root.join(name);
            loop {
                match fs::remove_dir(&dir) {
                    // The kernel lets go of a process a little after it is reaped.
                    Err(e) if e.kind() == io::ErrorKind::ResourceBusy && begin.elapsed() < REMOVE_TIMEOUT => {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    Err(e) if e.kind() != io::ErrorKind::NotFound => {
                        tracing::warn!(error = %e, path = %dir.display(), "a control group stays");
                        break;
                    }
                    _ => break,
                }
            }
        }
    }

    /// Removes every group below this one that has no process in it, and this one if it is empty then.
    pub fn sweep(&self, parent: &Path) {
        for tree in &self.trees {
            let dir = tree.root.join(parent);
            for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    // Refused while there is a process in it.
                    let _ = fs::remove_dir(entry.path());
                }
            }
            let _ = fs::remove_dir(&dir);
        }
    }

    /// How often the kernel killed a process of this group for want of memory within its limit.
    pub(crate) fn memory_kills(&self, name: &Path) -> u64 {
        let tree = self.trees.iter().find(|tree| tree.controllers.contains(&"memory"));
        let Some(tree) = tree else { return 0 };
        let file = match tree.version {
            Version::Two => "memory.events",
            Version::One => "memory.oom_control",
        };
        let text = fs::read_to_string(tree.root.join(name).join(file)).unwrap_or_default();
        text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok()).unwrap_or(0)
    }
}

impl Tree {
    fn create(&self, name: &Path, applied: &Applied<'_>) -> io::Result<Group> {
        let dir = self.root.join(name);
        // In version 2 a controller works in a group only if every group above hands it down.
        let mut parent = self.root.clone();
        for part in name.iter() {
            if self.version == Version::Two {
                self.hand_down(&parent)?;
            }
            parent.push(part);
            match fs::create_dir(&parent) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
                _ => {}
            }
        }
        for (file, value) in self.values(applied) {
            match fs::write(dir.join(file), &value) {
                Ok(()) => {}
                // What this kernel was built without: weights and throttling of I/O, accounting of swap.
                Err(e) if e.kind() == io::ErrorKind::NotFound || is_optional(file) => {
                    tracing::debug!(error = %e, file, value, "a limit is not applied");
                }
                Err(e) => return Err(io::Error::new(e.kind(), format!("{file} = {value}: {e}"))),
            }
        }
        match self.version {
            Version::One => File::options().write(true).open(dir.join("tasks")).map(Group::Tasks),
            Version::Two => File::open(&dir).map(Group::Directory),
        }
    }

    fn hand_down(&self, parent: &Path) -> io::Result<()> {
        let file = parent.join("cgroup.subtree_control");
        let there = fs::read_to_string(&file)?;
        let missing: Vec<_> = self
            .controllers
            .iter()
            .filter(|controller| !there.split_ascii_whitespace().any(|name| name == **controller))
            .map(|controller| format!("+{controller}"))
            .collect();
        if missing.is_empty() { Ok(()) } else { fs::write(file, missing.join(" ")) }
    }

    /// What is written where, in order.
    fn values(&self, applied: &Applied<'_>) -> Vec<(&'static str, String)> {
        let Applied { memory_bytes, limits, device_of } = applied;
        let quota = limits.cpu_quota_percent.map(|percent| u64::from(percent) * PERIOD / 100);
        let weight = limits.cpu_weight.clamp(1, 10_000);
        let io = limits.io_bytes_per_second.and_then(|bytes| Some((device_under(device_of)?, bytes)));
        let mut values = Vec::new();
        for controller in &self.controllers {
            match (*controller, self.version) {
                ("memory", Version::Two) => {
                    values.push(("memory.max", memory_bytes.to_string()));
                    // A guest that swaps is slow to no purpose, and its memory would be on the host's swap, in clear.
                    values.push(("memory.swap.max", "0".to_owned()));
                    values.push(("memory.oom.group", "1".to_owned()));
                }
                ("memory", Version::One) => {
                    values.push(("memory.limit_in_bytes", memory_bytes.to_string()));
                    values.push(("memory.memsw.limit_in_bytes", memory_bytes.to_string()));
                }
                ("cpu", Version::Two) => {
                    values.push(("cpu.weight", weight.to_string()));
                    let quota = quota.map_or("max".to_owned(), |quota| quota.to_string());
                    values.push(("cpu.max", format!("{quota} {PERIOD}")));
                }
                ("cpu", Version::One) => {
                    // 1024 shares are what 100 is in version 2.
                    values.push(("cpu.shares", (u64::from(weight) * 1024 / 100).max(2).to_string()));
                    values.push(("cpu.cfs_period_us", PERIOD.to_string()));
                    values.push(("cpu.cfs_quota_us", quota.map_or("-1".to_owned(), |quota| quota.to_string())));
                }
                ("pids", _) => values.push(("pids.max", limits.processes.to_string())),
                ("io", Version::Two) => {
                    if let Some((device, bytes)) = &io {
                        values.push(("io.max", format!("{device} rbps={bytes} wbps={bytes}")));
                    }
                }
                ("io", Version::One) => {
                    if let Some((device, bytes)) = &io {
                        values.push(("blkio.throttle.read_bps_device", format!("{device} {bytes}")));
                        values.push(("blkio.throttle.write_bps_device", format!("{device} {bytes}")));
                    }
                }
                _ => {}
            }
        }
        values
    }
}

/// Limits a host may lack without being unsafe: swap accounting must be enabled at boot, and I/O is limited only on
/// devices, which not every file system is on.
fn is_optional(file: &str) -> bool {
    matches!(file, "memory.memsw.limit_in_bytes" | "memory.swap.max" | "io.max") || file.starts_with("blkio.")
}

/// The whole disk, as `major:minor`, that a path is on: limits are set on disks, not on their partitions.
fn device_under(path: &Path) -> Option<String> {
    let device = fs::metadata(path).ok()?.dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let sys = fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")).ok()?;
    let disk = if sys.join("partition").exists() { sys.parent()?.to_owned() } else { sys };
    fs::read_to_string(disk.join("dev")).ok().map(|text| text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_are_found_where_they_are() {
        let one = "cgroup /sys/fs/cgroup/cpu cgroup rw,relatime,cpu 0 0\n\
                   cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\n\
                   cgroup /sys/fs/cgroup/devices cgroup rw,devices 0 0\n\
                   cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        let found = Hierarchies::from_mounts(one, &|_| String::new());
        assert_eq!((found.version(), found.controllers()), ("version 1", vec!["cpu", "memory"]));
        let two = "cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n";
        let found = Hierarchies::from_mounts(two, &|_| "cpuset cpu io memory pids\n".to_owned());
        assert_eq!((found.version(), found.controllers()), ("version 2", vec!["memory", "cpu", "pids", "io"]));
        assert_eq!(Hierarchies::from_mounts("", &|_| String::new()).version(), "none");
    }

    #[test]
    fn limits_are_written_in_each_versions_words() {
        let limits = Limits { cpu_quota_percent: Some(150), cpu_weight: 50, ..Limits::of(2) };
        let applied = Applied { memory_bytes: 4096, limits: &limits, device_of: Path::new("/") };
        let values = |version| {
            Tree { root: "/".into(), version, controllers: CONTROLLERS.iter().map(|c| c.0).collect() }.values(&applied)
        };
        let two = values(Version::Two);
        assert!(two.contains(&("memory.max", "4096".to_owned())));
        assert!(two.contains(&("cpu.max", "150000 100000".to_owned())));
        assert!(two.contains(&("cpu.weight", "50".to_owned())));
        assert!(two.contains(&("pids.max", "98".to_owned())));
        let one = values(Version::One);
        assert!(one.contains(&("cpu.shares", "512".to_owned())));
        assert!(one.contains(&("cpu.cfs_quota_us", "150000".to_owned())));
    }
}
