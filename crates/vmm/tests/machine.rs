//! Real QEMU machines with a guest of a few bytes: a multiboot kernel that counts in memory and prints.
//!
//! Needs `qemu-system-x86_64` and root; without them the tests say so and pass.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use support::{
    Bench, COUNTER, MEMORY_MIB, PATIENCE, TOUCHED, count, has, process_is_gone, programs, runs_as_root, wait_for_dots,
};
use vmm::{Arch, ChangedPages, MemoryBacking, Program, RunState, SaveError, StartError, Vm, VmSpec};

impl Bench {
    /// A base to restore from: its memory file, device state and count.
    async fn base(&self) -> (PathBuf, PathBuf, u32) {
        let memory = self.path("base");
        let state = self.path("base.state");
        let vm = Vm::boot(&self.spec("build", MemoryBacking::Shared(memory.clone()))).await.unwrap();
        assert_eq!(vm.run_state().await.unwrap(), RunState::Running);
        wait_for_dots(&vm).await;
        vm.pause().await.unwrap();
        assert_eq!(vm.run_state().await.unwrap(), RunState::Paused);
        vm.snapshot_full(&state).await.unwrap();
        assert!(vm.memory().is_err(), "shared memory has no pages of its own");
        assert!(vm.snapshot_incremental(&self.path("no")).await.is_err());
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
        let vm = Vm::restore(&spec, state, Some(changed(pages))).await.unwrap();
        println!("restored in {:?}", begin.elapsed());
        vm
    }
}

fn changed(pages: Vec<(u64, Vec<u8>)>) -> ChangedPages {
    let apply =
        move |write: &mut vmm::WritePage<'_>| Ok(pages.iter().try_for_each(|(offset, page)| write(*offset, page))?);
    ChangedPages { file: PathBuf::new(), touched: None, record: None, apply: Box::new(apply) }
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
    let changes = vm.snapshot_incremental(&state).await.unwrap();
    assert_eq!(changes.runs(), dirty);
    let pages = dirty
        .iter()
        .map(|run| {
            let mut page = vec![0; (run.end - run.start) as usize];
            changes.read(run.start, &mut page).unwrap();
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
    assert_eq!(bench.strays(), [pid]);

    let vm = Vm::attach(&bench.path("vm")).await.unwrap().expect("it lives");
    assert_eq!(vm.pid(), pid);
    assert_eq!(vm.run_state().await.unwrap(), RunState::Running);
    wait_for_dots(&vm).await;
    vm.pause().await.unwrap();
    assert!(has(&vm.memory().unwrap().dirty().unwrap(), COUNTER));
    vm.kill().await.unwrap();
    assert!(Vm::attach(&bench.path("vm")).await.unwrap().is_none());
    assert!(Vm::attach(&bench.path("nothing")).await.unwrap().is_none());
    assert!(bench.strays().is_empty());
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
async fn strays_are_killed_only_as_the_user_they_were_found_as() {
    let Some(bench) = Bench::new() else { return };
    let spec = bench.spec("vm", MemoryBacking::Shared(bench.path("memory")));
    let uid = spec.jail.uid;
    let vm = Vm::boot(&spec).await.unwrap();
    Vm::kill_stray(vm.pid(), uid + 1).await.unwrap();
    assert_eq!(vm.run_state().await.unwrap(), RunState::Running);
    let found = vmm::find_strays(uid..uid + 1);
    assert_eq!(found, [(vm.pid(), uid)]);
    Vm::kill_stray(vm.pid(), uid).await.unwrap();
    vm.exited().await;
    Vm::kill_stray(vm.pid(), uid).await.unwrap();
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
    let error = Vm::restore(&bench.spec("cut", cow.clone()), &cut, None).await.unwrap_err();
    println!("{error}");
    assert!(matches!(error, StartError::Exited { .. }), "{error:?}");

    // A kernel that is none: QEMU's own words are in the error.
    let mut spec = bench.spec("kernel", MemoryBacking::Shared(bench.path("m2")));
    fs::write(bench.path("no-kernel"), b"").unwrap();
    spec.kernel = bench.path("no-kernel");
    let error = Vm::boot(&spec).await.unwrap_err();
    assert!(error.to_string().contains("kernel"), "{error}");
    // One that is not there cannot be shown to it.
    spec.kernel = bench.path("no-such-kernel");
    assert!(matches!(Vm::boot(&spec).await, Err(StartError::Jail { .. })));

    // Pages that cannot be written.
    let no_pages =
        ChangedPages { file: PathBuf::new(), touched: None, record: None, apply: Box::new(|_| Err("no pages".into())) };
    let error = Vm::restore(&bench.spec("pages", cow), &state, Some(no_pages)).await.unwrap_err();
    assert!(matches!(error, StartError::WritePages { .. }), "{error:?}");

    // A base of another size.
    fs::write(bench.path("short"), b"short").unwrap();
    let short = MemoryBacking::CopyOnWrite(bench.path("short"));
    let error = Vm::boot(&bench.spec("short-vm", short)).await.unwrap_err();
    assert!(matches!(error, StartError::MemorySize { found: 5, .. }), "{error:?}");

    let begin = Instant::now();
    while !bench.strays().is_empty() {
        assert!(begin.elapsed() < PATIENCE, "a failed start left a process");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_start_given_up_half_way_leaves_nothing() {
    let Some(bench) = Bench::new() else { return };
    let tries = [0, 1, 5, 20, 40, 60];
    for millis in tries {
        // A directory each: on a fast machine the later starts are over in time, and live on.
        let memory = MemoryBacking::Shared(bench.path(&format!("memory-{millis}")));
        let spec = bench.spec(&format!("vm-{millis}"), memory);
        let _ = tokio::time::timeout(Duration::from_millis(millis), Vm::boot(&spec)).await;
    }
    // A start that was not over when given up is being killed; one that was done is a machine on its own.
    for millis in tries {
        if let Ok(Some(vm)) = Vm::attach(&bench.path(&format!("vm-{millis}"))).await {
            vm.kill().await.unwrap();
        }
    }
    let begin = Instant::now();
    while !bench.strays().is_empty() {
        assert!(begin.elapsed() < PATIENCE, "a start that was given up left a process");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_save_that_fails_leaves_the_machine_usable() {
    let Some(bench) = Bench::new() else { return };
    let vm = Vm::boot(&bench.spec("vm", MemoryBacking::Shared(bench.path("memory")))).await.unwrap();
    let state = bench.path("state");
    assert!(vm.snapshot_full(&state).await.is_err(), "of a running machine");
    vm.pause().await.unwrap();
    let nowhere = bench.path("no/such/dir/state");
    let error = vm.snapshot_full(&nowhere).await.unwrap_err();
    println!("{error}");
    assert!(vm.snapshot_full(Path::new("relative")).await.is_err());
    vm.snapshot_full(&state).await.unwrap();
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
    let error = vm.snapshot_full(&state).await.unwrap_err();
    assert!(matches!(error, SaveError::NoRoom { .. }), "{error:?}");
    assert!(!state.exists(), "half a state is left");
    vm.snapshot_full(&bench.path("state")).await.unwrap();
    vm.resume().await.unwrap();
    wait_for_dots(&vm).await;
    vm.kill().await.unwrap();
}

#[tokio::test]
async fn exactly_the_written_pages_are_dirty() {
    use std::collections::BTreeSet;

    const PAGE: u64 = 4096;
    /// Pages whose marks are read at once.
    const CHUNK: u64 = 128 * 1024;

    let Some(bench) = Bench::new() else { return };
    let base = bench.path("base");
    let mut spec = bench.spec("vm", MemoryBacking::CopyOnWrite(base.clone()));
    spec.memory_mib = 2048;
    fs::File::create(&base).unwrap().set_len(spec.memory_mib << 20).unwrap();
    let vm = Vm::boot(&spec).await.unwrap();
    vm.pause().await.unwrap();
    let memory = vm.memory().unwrap();
    // What QEMU and the guest wrote is there from the start.
    let before = memory.dirty().unwrap();
    // Single pages of all alignments, over a boundary of read chunks, and the last page.
    let pages = memory.size() / PAGE;
    let mut written: Vec<u64> = (0..12_288).map(|i| 4096 + i * 2 + i % 3 / 2).collect();
    written.extend(CHUNK - 2..CHUNK + 2);
    written.push(pages - 1);
    for &index in &written {
        memory.write(index * PAGE, &[1]).unwrap();
    }
    // Reading makes a page present, not dirty.
    memory.read((pages - 5) * PAGE, &mut [0; 1]).unwrap();

    let each_page = |runs: &[std::ops::Range<u64>]| -> BTreeSet<u64> {
        runs.iter().flat_map(|run| run.start / PAGE..run.end / PAGE).collect()
    };
    let mut expected = each_page(&before);
    expected.extend(written);
    let dirty = memory.dirty().unwrap();
    assert!(dirty.is_sorted_by(|a, b| a.end < b.start), "runs are in order and apart");
    assert_eq!(each_page(&dirty), expected);
    vm.kill().await.unwrap();
}

/// As the other guest, for another processor: counts in memory, prints a dot each 2^18 counts.
fn arm_guest() -> Vec<u8> {
    let code: [u32; 10] = [
        0xd2a1_2000, // movz x0, #0x0900, lsl #16     the serial port's data register
        0x5280_05c1, // movz w1, #'.'
        0xd2a8_0402, // movz x2, #0x4020, lsl #16     COUNTER, in memory that begins at 1 GiB
        0xb940_0043, // ldr w3, [x2]
        0x1100_0463, // add w3, w3, #1
        0xb900_0043, // str w3, [x2]
        0x7200_447f, // tst w3, #0x3ffff
        0x54ff_ff81, // b.ne -4
        0xb900_0001, // str w1, [x0]
        0x17ff_fffa, // b -6
    ];
    code.map(u32::to_le_bytes).concat()
}

#[tokio::test]
async fn an_arm_guest_is_emulated_suspended_and_resumed() {
    let program = match Program::qemu(Path::new("qemu-system-aarch64"), &programs()) {
        Ok(program) if runs_as_root() => program,
        Ok(_) => return println!("skipped: a jail needs root"),
        Err(error) => return println!("skipped: {error}"),
    };
    let bench = Bench::with(program);
    fs::write(bench.path("guest"), arm_guest()).unwrap();
    let spec = |dir: &str, memory| VmSpec { arch: Arch::Aarch64, ..bench.spec(dir, memory) };
    let memory = bench.path("base");
    let vm = Vm::boot(&spec("build", MemoryBacking::Shared(memory.clone()))).await.unwrap();
    wait_for_dots(&vm).await;
    vm.pause().await.unwrap();
    let state = bench.path("base.state");
    vm.snapshot_full(&state).await.unwrap();
    vm.kill().await.unwrap();

    let cow = MemoryBacking::CopyOnWrite(memory);
    let vm = Vm::restore(&spec("one", cow.clone()), &state, None).await.unwrap();
    let before = count(&vm.memory().unwrap());
    vm.resume().await.unwrap();
    wait_for_dots(&vm).await;
    vm.pause().await.unwrap();
    let changes = vm.snapshot_incremental(&bench.path("one.state")).await.unwrap();
    assert!(has(changes.runs(), COUNTER));
    let mut page = vec![0; 4096];
    changes.read(COUNTER, &mut page).unwrap();
    let counted = u32::from_le_bytes(page[..4].try_into().unwrap());
    assert!(counted > before);
    vm.kill().await.unwrap();

    let pages = changed(vec![(COUNTER, page)]);
    let vm = Vm::restore(&spec("two", cow), &bench.path("one.state"), Some(pages)).await.unwrap();
    assert_eq!(count(&vm.memory().unwrap()), counted);
    vm.resume().await.unwrap();
    wait_for_dots(&vm).await;
    vm.kill().await.unwrap();
}
