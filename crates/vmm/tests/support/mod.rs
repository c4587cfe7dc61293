//! What the tests of real machines share: a guest of a few bytes, directories, and users nobody else has.
#![allow(dead_code, unused_imports, reason = "each test program uses its part of it")]

mod multiboot;

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

pub use multiboot::{COUNTER, TOUCHED, guest};
use tempfile::TempDir;
use tokio::io::AsyncReadExt;
use vmm::{Accel, Arch, Driver, GuestMemory, Jail, Limits, MemoryBacking, Program, Vm, VmSpec};

pub const MEMORY_MIB: u64 = 32;
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Users a test program may give to machines: beyond those a server takes.
const FIRST_UID: u32 = 0x7800_0000;
const UIDS_A_BENCH: u32 = 16;

/// Where the copies of programs are: shared by all tests, so that they are made once.
pub fn programs() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("programs")
}

/// A directory for machines, and users for them; what still runs at the end is killed.
pub struct Bench {
    root: TempDir,
    uids: Range<u32>,
    used: AtomicU32,
    pub program: Program,
}

impl Bench {
    /// For QEMU; `None`, with a word why, where it cannot be.
    pub fn new() -> Option<Self> {
        if !runs_as_root() {
            println!("skipped: a jail needs root");
            return None;
        }
        match Program::qemu(Path::new("qemu-system-x86_64"), &programs()) {
            Ok(program) => Some(Self::with(program)),
            Err(error) => {
                println!("skipped: {error}");
                None
            }
        }
    }

    pub fn with(program: Program) -> Self {
        static BENCHES: AtomicU32 = AtomicU32::new(0);
        // Two test programs at once have different numbers; a number comes again only after thousands of others.
        let first = FIRST_UID
            + std::process::id() % 0x1000 * 0x1000
            + BENCHES.fetch_add(1, Ordering::Relaxed) % 0x100 * UIDS_A_BENCH;
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("guest"), guest()).unwrap();
        Self { root, uids: first..first + UIDS_A_BENCH, used: AtomicU32::new(0), program }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    pub fn uid(&self) -> u32 {
        let used = self.used.fetch_add(1, Ordering::Relaxed);
        assert!(used < UIDS_A_BENCH, "a bench has {UIDS_A_BENCH} users");
        self.uids.start + used
    }

    /// The user given last.
    pub fn last_uid(&self) -> u32 {
        self.uids.start + self.used.load(Ordering::Relaxed) - 1
    }

    /// Processes of this bench that live.
    pub fn strays(&self) -> Vec<u32> {
        vmm::find_strays(self.uids.clone()).into_iter().map(|(pid, _)| pid).collect()
    }

    pub fn spec(&self, dir: &str, memory: MemoryBacking) -> VmSpec {
        let dir = self.path(dir);
        fs::create_dir_all(&dir).unwrap();
        let uid = self.uid();
        VmSpec {
            name: "test".into(),
            driver: Driver::Qemu,
            program: self.program.clone(),
            pager: None,
            jail: Jail { uid, cgroup: Some(format!("pilotlight-test/{uid}").into()), limits: Limits::of(1) },
            arch: Arch::X86_64,
            accel: Accel::Tcg,
            vcpus: 1,
            memory_mib: MEMORY_MIB,
            kernel: self.path("guest"),
            initrd: None,
            cmdline: String::new(),
            disks: vec![],
            memory,
            network: None,
            dir,
        }
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        for pid in self.strays() {
            let _ = std::process::Command::new("kill").args(["-9", &pid.to_string()]).status();
        }
    }
}

pub async fn wait_for_dots(vm: &Vm) {
    let mut console = vm.console().await.unwrap();
    let mut text = [0; 3];
    tokio::time::timeout(PATIENCE, console.read_exact(&mut text)).await.expect("the guest prints").unwrap();
    assert!(text.ends_with(b".."), "{text:?}");
}

pub fn count(memory: &GuestMemory) -> u32 {
    let mut word = [0; 4];
    memory.read(COUNTER, &mut word).unwrap();
    u32::from_le_bytes(word)
}

pub fn has(runs: &[Range<u64>], offset: u64) -> bool {
    runs.iter().any(|run| run.contains(&offset))
}

pub fn process_is_gone(pid: u32) -> bool {
    !Path::new(&format!("/proc/{pid}")).exists()
}

pub fn runs_as_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0)
}
