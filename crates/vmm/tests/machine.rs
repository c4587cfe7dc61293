//! Real machines with a guest of a few bytes: a multiboot kernel that counts in memory and prints.
//!
//! Needs `qemu-system-x86_64`; without it the tests say so and pass.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::io::AsyncReadExt;
use vmm::{Accel, GuestMemory, MemoryBacking, RunState, SaveError, StartError, Vm, VmSpec};

const MEMORY_MIB: u64 = 32;
/// Where the guest counts: a 32-bit number.
const COUNTER: u64 = 0x20_0000;
/// Pages the guest writes once, some way from each other.
const TOUCHED: [u64; 3] = [0x30_0000, 0x30_1000, 0x80_0000];
const PATIENCE: Duration = Duration::from_secs(60);

/// Header, then 32-bit code without paging.
fn guest() -> Vec<u8> {
    const BASE: u32 = 0x10_0000;
    const FLAGS: u32 = 1 << 16;
    const MAGIC: u32 = 0x1BAD_B002;
    let mut image = Vec::new();
    for word in [
        MAGIC,
        FLAGS,
        0u32.wrapping_sub(MAGIC).wrapping_sub(FLAGS),
        BASE,      // where this header goes
        BASE,      // where the image goes
        0,         // all of it is loaded
        0,         // no bss
        BASE + 32, // entry
    ] {
        image.extend(word.to_le_bytes());
    }
    for page in TOUCHED {
        // mov byte [page], 0x5a
        image.extend([0xc6, 0x05]);
        image.extend((page as u32).to_le_bytes());
        image.push(0x5a);
    }
    let start = image.len();
    // inc dword [COUNTER]
    image.extend([0xff, 0x05]);
    image.extend((COUNTER as u32).to_le_bytes());
    // test dword [COUNTER], 0x3ffff
    image.extend([0xf7, 0x05]);
    image.extend((COUNTER as u32).to_le_bytes());
    image.extend(0x3ffffu32.to_le_bytes());
    // jnz start
    image.push(0x75);
    image.push((start as i64 - image.len() as i64 - 1) as i8 as u8);
    // mov dx, 0x3f8; mov al, '.'; out dx, al
    image.extend([0x66, 0xba, 0xf8, 0x03, 0xb0, b'.', 0xee]);
    // jmp start
    image.push(0xeb);
    image.push((start as i64 - image.len() as i64 - 1) as i8 as u8);
    image
}

/// A directory for machines; what still runs in it at the end is killed.
struct Bench {
    root: TempDir,
}

impl Bench {
    fn new() -> Option<Self> {
        if vmm::qemu_version(Path::new("qemu-system-x86_64")).is_err() {
            println!("skipped: there is no qemu-system-x86_64");
            return None;
        }
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("guest"), guest()).unwrap();
        Some(Self { root })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn spec(&self, dir: &str, memory: MemoryBacking) -> VmSpec {
        let dir = self.path(dir);
        fs::create_dir_all(&dir).unwrap();
        VmSpec {
            name: "test".into(),
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
            binary: None,
        }
    }

    /// A base to restore from: its memory file, device state and count.
    async fn base(&self) -> (PathBuf, PathBuf, u32) {
        let memory = self.path("base");
        let state = self.path("base.state");
        let vm = Vm::boot(&self.spec("build", MemoryBacking::Shared(memory.clone()))).await.unwrap();
        assert_eq!(vm.run_state().await.unwrap(), RunState::Running);
        wait_for_dots(&vm).await;
        vm.pause().await.unwrap();
        assert_eq!(vm.run_state().await.unwrap(), RunState::Paused);
        vm.save_device_state(&state).await.unwrap();
        assert!(vm.memory().is_err(), "shared memory has no pages of its own");
        vm.kill().await.unwrap();
        let bytes = fs::read(&memory).unwrap();
        let at = COUNTER as usize;
        let count = u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        assert!(count > 0);
        (memory, state, count)
    }

    async fn restore(&self, dir: &str, memory: &Path, state: &Path, pages: Vec<(u64, Vec<u8>)>) -> Vm {
        let spec = self.spec(dir, MemoryBacking::CopyOnWrite(memory.to_owned()));
        let begin = Instant::now();
        let vm = Vm::restore(&spec, state, move |memory| {
            pages.iter().try_for_each(|(offset, page)| memory.write(*offset, page))
        })
        .await
        .unwrap();
        println!("restored in {:?}", begin.elapsed());
        vm
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        for (pid, _) in vmm::find_stray(self.root.path()) {
            let _ = std::process::Command::new("kill").args(["-9", &pid.to_string()]).status();
        }
    }
}

async fn wait_for_dots(vm: &Vm) {
    let mut console = vm.console().await.unwrap();
    let mut text = [0; 3];
    tokio::time::timeout(PATIENCE, console.read_exact(&mut text)).await.expect("the guest prints").unwrap();
    assert_eq!(&text, b"...");
}

fn count(memory: &GuestMemory) -> u32 {
    let mut word = [0; 4];
    memory.read(COUNTER, &mut word).unwrap();
    u32::from_le_bytes(word)
}

fn has(runs: &[Range<u64>], offset: u64) -> bool {
    runs.iter().any(|run| run.contains(&offset))
}

fn process_is_gone(pid: u32) -> bool {
    !Path::new(&format!("/proc/{pid}")).exists()
}

#[tokio::test]
async fn a_machine_goes_on_from_its_base_and_its_changed_pages() {
    let Some(bench) = Bench::new() else { return };
    let (base, base_state, base_count) = bench.base().await;
    let base_bytes = fs::read(&base).unwrap();

    let vm = bench.restore("first", &base, &base_state, vec![]).await;
    assert_eq!(vm.run_state().await.unwrap(), RunState::Paused);
    let memory = vm.memory().unwrap();
    assert_eq!(count(&memory), base_count);
    assert!(!has(&memory.dirty().unwrap(), COUNTER), "nothing ran yet");
    vm.resume().await.unwrap();
    wait_for_dots(&vm).await;
    vm.pause().await.unwrap();
    let dirty = memory.dirty().unwrap();
    assert!(has(&dirty, COUNTER));
    assert!(!has(&dirty, TOUCHED[0]), "written only before the base");
    assert!(dirty.iter().all(|run| run.start % 4096 == 0 && run.end % 4096 == 0));
    let second_count = count(&memory);
    assert!(second_count > base_count);
    let state = bench.path("second.state");
    vm.save_device_state(&state).await.unwrap();
    let pages = dirty
        .iter()
        .map(|run| {
            let mut page = vec![0; (run.end - run.start) as usize];
            memory.read(run.start, &mut page).unwrap();
            (run.start, page)
        })
        .collect();
    // A machine whose state was saved is as usable as before.
    vm.resume().await.unwrap();
    wait_for_dots(&vm).await;
    vm.kill().await.unwrap();

    let vm = bench.restore("second", &base, &state, pages).await;
    let memory = vm.memory().unwrap();
    assert_eq!(count(&memory), second_count);
    assert!(has(&memory.dirty().unwrap(), COUNTER), "written pages are its own");
    vm.resume().await.unwrap();
    wait_for_dots(&vm).await;
    vm.pause().await.unwrap();
    assert!(count(&memory) > second_count);
    vm.kill().await.unwrap();
    assert_eq!(fs::read(&base).unwrap(), base_bytes, "nobody wrote to the base");
}

#[tokio::test]
async fn memory_refuses_what_is_outside_of_it() {
    let Some(bench) = Bench::new() else { return };
    let (base, state, _) = bench.base().await;
    let vm = bench.restore("vm", &base, &state, vec![]).await;
    let memory = vm.memory().unwrap();
    assert_eq!(memory.size(), MEMORY_MIB << 20);
    let mut page = vec![0; 4096];
    memory.read(memory.size() - 4096, &mut page).unwrap();
    assert!(memory.read(memory.size() - 4095, &mut page).is_err());
    assert!(memory.write(u64::MAX - 1, &page).is_err());
    memory.write(0x100_0000, &[7; 8192]).unwrap();
    assert!(memory.dirty().unwrap().contains(&(0x100_0000..0x100_2000)));
    vm.kill().await.unwrap();
    assert!(memory.read(0, &mut page).is_err(), "of a process that is gone");
}

#[tokio::test]
async fn a_dropped_machine_is_found_again() {
    let Some(bench) = Bench::new() else { return };
    let (base, state, _) = bench.base().await;
    let vm = bench.restore("vm", &base, &state, vec![]).await;
    let pid = vm.pid();
    vm.resume().await.unwrap();
    drop(vm);
    assert_eq!(vmm::find_stray(bench.root.path()), [(pid, fs::canonicalize(bench.path("vm")).unwrap())]);

    let vm = Vm::attach(&bench.path("vm")).await.unwrap().expect("it lives");
    assert_eq!(vm.pid(), pid);
    assert_eq!(vm.run_state().await.unwrap(), RunState::Running);
    wait_for_dots(&vm).await;
    vm.pause().await.unwrap();
    assert!(has(&vm.memory().unwrap().dirty().unwrap(), COUNTER));
    vm.kill().await.unwrap();
    assert!(Vm::attach(&bench.path("vm")).await.unwrap().is_none());
    assert!(Vm::attach(&bench.path("nothing")).await.unwrap().is_none());
    assert!(vmm::find_stray(bench.root.path()).is_empty());
}

#[tokio::test]
async fn a_record_of_another_process_is_not_followed() {
    let Some(bench) = Bench::new() else { return };
    let (base, state, _) = bench.base().await;
    let vm = bench.restore("vm", &base, &state, vec![]).await;
    let record = bench.path("vm/vm.json");
    let text = fs::read_to_string(&record).unwrap();
    let forged = text.replace(&format!("\"pid\": {}", vm.pid()), &format!("\"pid\": {}", std::process::id()));
    assert_ne!(text, forged);
    fs::write(&record, forged).unwrap();
    assert!(Vm::attach(&bench.path("vm")).await.unwrap().is_none());
    vm.kill().await.unwrap();
}

#[tokio::test]
async fn the_end_is_reported_and_leaves_no_zombie() {
    let Some(bench) = Bench::new() else { return };
    let vm = Vm::boot(&bench.spec("vm", MemoryBacking::Shared(bench.path("memory")))).await.unwrap();
    let pid = vm.pid();
    let waiting = tokio::spawn({
        let vm = vm.clone();
        async move { vm.exited().await }
    });
    let killed = std::process::Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap();
    assert!(killed.success());
    let report = tokio::time::timeout(PATIENCE, waiting).await.unwrap().unwrap();
    assert_eq!(report.signal, Some(9));
    assert!(process_is_gone(pid), "reaped");
    assert!(vm.has_exited());
    vm.kill().await.unwrap();
    vm.kill().await.unwrap();
    assert!(vm.pause().await.is_err());
}

#[tokio::test]
async fn strays_are_killed_only_where_they_were_found() {
    let Some(bench) = Bench::new() else { return };
    let vm = Vm::boot(&bench.spec("vm", MemoryBacking::Shared(bench.path("memory")))).await.unwrap();
    Vm::kill_stray(vm.pid(), Path::new("/elsewhere")).await.unwrap();
    assert_eq!(vm.run_state().await.unwrap(), RunState::Running);
    let found = vmm::find_stray(bench.root.path());
    let [(pid, dir)] = found.as_slice() else { panic!("{found:?}") };
    Vm::kill_stray(*pid, dir).await.unwrap();
    vm.exited().await;
    Vm::kill_stray(*pid, dir).await.unwrap();
}

#[tokio::test]
async fn a_failed_start_says_why_and_leaves_nothing() {
    let Some(bench) = Bench::new() else { return };
    let (base, state, _) = bench.base().await;
    let cow = MemoryBacking::CopyOnWrite(base.clone());

    // State that is cut off.
    let whole = fs::read(&state).unwrap();
    let cut = bench.path("cut.state");
    fs::write(&cut, &whole[..whole.len() / 2]).unwrap();
    let none = |_: &GuestMemory| Ok::<(), std::io::Error>(());
    let error = Vm::restore(&bench.spec("cut", cow.clone()), &cut, none).await.unwrap_err();
    println!("{error}");
    assert!(matches!(error, StartError::Exited { .. }), "{error:?}");

    // A kernel that is not there: QEMU's own words are in the error.
    let mut spec = bench.spec("kernel", MemoryBacking::Shared(bench.path("m2")));
    spec.kernel = bench.path("no-such-kernel");
    let error = Vm::boot(&spec).await.unwrap_err();
    assert!(error.to_string().contains("no-such-kernel"), "{error}");

    // Pages that cannot be written.
    let error = Vm::restore(&bench.spec("pages", cow), &state, |_: &GuestMemory| {
        Err::<(), _>(std::io::Error::other("no pages"))
    })
    .await
    .unwrap_err();
    assert!(matches!(error, StartError::WritePages { .. }), "{error:?}");

    // A base of another size.
    fs::write(bench.path("short"), b"short").unwrap();
    let short = MemoryBacking::CopyOnWrite(bench.path("short"));
    let error = Vm::boot(&bench.spec("short-vm", short)).await.unwrap_err();
    assert!(matches!(error, StartError::MemorySize { found: 5, .. }), "{error:?}");

    let begin = Instant::now();
    while !vmm::find_stray(bench.root.path()).is_empty() {
        assert!(begin.elapsed() < PATIENCE, "a failed start left a process");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_start_given_up_half_way_leaves_nothing() {
    let Some(bench) = Bench::new() else { return };
    for millis in [0, 1, 5, 20, 40, 60] {
        // A directory each: on a fast machine the later starts are over in time, and live on.
        let memory = MemoryBacking::Shared(bench.path(&format!("memory-{millis}")));
        let spec = bench.spec(&format!("vm-{millis}"), memory);
        let _ = tokio::time::timeout(Duration::from_millis(millis), Vm::boot(&spec)).await;
    }
    // A start that was not over when given up is being killed; one that was done is a machine on its own.
    for (pid, dir) in vmm::find_stray(bench.root.path()) {
        if let Ok(Some(vm)) = Vm::attach(&dir).await {
            assert_eq!(vm.pid(), pid);
            vm.kill().await.unwrap();
        }
    }
    let begin = Instant::now();
    while !vmm::find_stray(bench.root.path()).is_empty() {
        assert!(begin.elapsed() < PATIENCE, "a start that was given up left a process");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_save_that_fails_leaves_the_machine_usable() {
    let Some(bench) = Bench::new() else { return };
    let vm = Vm::boot(&bench.spec("vm", MemoryBacking::Shared(bench.path("memory")))).await.unwrap();
    let state = bench.path("state");
    assert!(vm.save_device_state(&state).await.is_err(), "of a running machine");
    vm.pause().await.unwrap();
    let nowhere = bench.path("no/such/dir/state");
    let error = vm.save_device_state(&nowhere).await.unwrap_err();
    println!("{error}");
    assert!(vm.save_device_state(Path::new("relative")).await.is_err());
    vm.save_device_state(&state).await.unwrap();
    vm.resume().await.unwrap();
    wait_for_dots(&vm).await;
    vm.kill().await.unwrap();
}

#[tokio::test]
async fn a_long_directory_is_no_obstacle() {
    let Some(bench) = Bench::new() else { return };
    let dir = format!("{}/vm, with comma", "d".repeat(150));
    let spec = bench.spec(&dir, MemoryBacking::Shared(bench.path(&format!("{dir}/memory, too"))));
    let vm = Vm::boot(&spec).await.unwrap();
    wait_for_dots(&vm).await;
    drop(vm);
    let vm = Vm::attach(&spec.dir).await.unwrap().expect("it lives");
    wait_for_dots(&vm).await;
    vm.kill().await.unwrap();
}

/// Runs itself again in a mount namespace of its own with a tiny file system, which goes with it.
#[tokio::test]
async fn a_full_disk_fails_the_save_and_nothing_else() {
    const INNER: &str = "VMM_TEST_FULL_DISK";
    let Some(bench) = Bench::new() else { return };
    let Some(full) = std::env::var_os(INNER).map(PathBuf::from) else {
        let dir = bench.path("full");
        fs::create_dir(&dir).unwrap();
        let script = "mount -t tmpfs -o size=16k none \"$1\" || exit 77; exec \"$2\" --exact \"$3\" --nocapture";
        let status = std::process::Command::new("unshare")
            .args(["--mount", "sh", "-c", script, "sh"])
            .arg(&dir)
            .arg(std::env::current_exe().unwrap())
            .arg("a_full_disk_fails_the_save_and_nothing_else")
            .env(INNER, &dir)
            .status();
        match status.map(|status| status.code()) {
            Ok(Some(0)) => {}
            Ok(Some(1 | 77)) if !runs_as_root() => println!("skipped: may not mount"),
            other => panic!("the inner test: {other:?}"),
        }
        return;
    };
    let vm = Vm::boot(&bench.spec("vm", MemoryBacking::Shared(bench.path("memory")))).await.unwrap();
    wait_for_dots(&vm).await;
    vm.pause().await.unwrap();
    let state = full.join("state");
    let error = vm.save_device_state(&state).await.unwrap_err();
    assert!(matches!(error, SaveError::NoRoom { .. }), "{error:?}");
    assert!(!state.exists(), "half a state is left");
    vm.save_device_state(&bench.path("state")).await.unwrap();
    vm.resume().await.unwrap();
    wait_for_dots(&vm).await;
    vm.kill().await.unwrap();
}

fn runs_as_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0)
}
