//! What every driver must do, run against every driver there is: QEMU with a guest of a few bytes, emulated, and Firecracker
//! with the toy guest wherever its program is found (`PILOTLIGHT_FIRECRACKER`, or on the PATH) and `/dev/kvm` opens.
//!
//! Whether KVM is any good does not matter here: the toy guest runs on one that is itself emulated.

mod support;
mod toy;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use support::{Bench, COUNTER, MEMORY_MIB, PATIENCE, TOUCHED, has, process_is_gone, programs, runs_as_root};
use tokio::io::AsyncReadExt;
use vmm::{
    Accel, ChangedPages, Changes, ControlError, Disk, Driver, MemoryBacking, Program, RunState, SaveError, Standstill,
    StartError, Vm, VmSpec,
};

/// A driver, and a guest for it.
struct Subject {
    bench: Bench,
    driver: Driver,
    pager: Option<Program>,
}

/// Every driver that can be tested here; says why another cannot.
fn subjects() -> Vec<Subject> {
    let qemu = Bench::new().map(|bench| Subject { bench, driver: Driver::Qemu, pager: None });
    qemu.into_iter().chain(firecracker()).collect()
}

fn firecracker() -> Option<Subject> {
    let skip = |why: String| println!("skipped for Firecracker: {why}");
    if !runs_as_root() {
        skip("a jail needs root".to_owned());
        return None;
    }
    let binary = std::env::var_os("PILOTLIGHT_FIRECRACKER").map_or("firecracker".into(), PathBuf::from);
    if let Err(error) = vmm::firecracker_version(&binary) {
        skip(error.to_string());
        return None;
    }
    if let Err(error) = fs::File::options().read(true).write(true).open("/dev/kvm") {
        skip(format!("/dev/kvm: {error}"));
        return None;
    }
    // Beside the directory this program is in.
    let pager = std::env::current_exe().unwrap().parent().unwrap().with_file_name("pilotlight-pager");
    let pager = Program::plain(&pager, &programs()).map_err(|error| skip(format!("restores with pages: {error}"))).ok();
    let bench = Bench::with(Program::plain(&binary, &programs()).unwrap());
    fs::write(bench.path("guest"), toy::elf()).unwrap();
    Some(Subject { bench, driver: Driver::Firecracker, pager })
}

impl Subject {
    fn spec(&self, dir: &str, memory: MemoryBacking) -> VmSpec {
        let mut spec = self.bench.spec(dir, memory);
        spec.driver = self.driver;
        spec.pager.clone_from(&self.pager);
        if self.driver == Driver::Firecracker {
            spec.accel = Accel::Kvm;
        }
        spec
    }

    /// A disk nobody looks at, so that a machine has one.
    fn with_disks(&self, mut spec: VmSpec) -> VmSpec {
        for (name, read_only) in [("root", true), ("scratch", false)] {
            let path = self.bench.path(&format!("{name}-{}", spec.jail.uid));
            fs::File::create(&path).unwrap().set_len(1 << 20).unwrap();
            spec.disks.push(Disk { path, read_only });
        }
        spec
    }

    async fn boot(&self) -> Vm {
        let spec = self.spec("build", MemoryBacking::Shared(self.bench.path("base")));
        let vm = Vm::boot(&self.with_disks(spec)).await.unwrap();
        hear(&vm).await;
        vm
    }

    /// A base to restore from.
    async fn base(&self) -> (PathBuf, PathBuf) {
        let vm = self.boot().await;
        vm.pause().await.unwrap();
        let state = self.bench.path("base.state");
        vm.snapshot_full(&state).await.unwrap();
        vm.kill().await.unwrap();
        (self.bench.path("base"), state)
    }

    async fn restore(&self, dir: &str, (memory, state): (&Path, &Path), pages: Option<ChangedPages>) -> Vm {
        let spec = self.spec(dir, MemoryBacking::CopyOnWrite(memory.to_owned()));
        let begin = Instant::now();
        let vm = Vm::restore(&self.with_disks(spec), state, pages).await.unwrap();
        println!("{:?} restored in {:?}", self.driver, begin.elapsed());
        vm
    }
}

/// Waits for the guest to print something that it prints when it counts.
async fn hear(vm: &Vm) {
    let mut console = vm.console().await.unwrap();
    let heard = async {
        let mut byte = [0];
        let mut dots = 0;
        while dots < 2 {
            console.read_exact(&mut byte).await.unwrap();
            dots += i32::from(byte[0] == b'.');
        }
    };
    tokio::time::timeout(PATIENCE, heard).await.expect("the guest prints");
}

fn number_at(bytes: &[u8]) -> u32 {
    u32::from_le_bytes(bytes[..4].try_into().unwrap())
}

fn count_in_base(base: &Path) -> u32 {
    number_at(&fs::read(base).unwrap()[COUNTER as usize..])
}

fn count_in(changes: &Changes) -> u32 {
    let mut word = [0; 4];
    changes.read(COUNTER, &mut word).unwrap();
    number_at(&word)
}

/// Writes a layer of what changed, above the layer that was there before, as a host does.
fn layer(changes: &Changes, to: &Path) -> ChangedPages {
    let bytes = MEMORY_MIB << 20;
    let mut read = |offset: u64, buffer: &mut [u8]| changes.read(offset, buffer);
    match changes.earlier() {
        None => snapshot::write_layer(to, bytes, changes.runs(), &mut read),
        Some(earlier) => {
            let earlier = snapshot::open_layer(earlier).unwrap();
            let merged = snapshot::Merged::new(&earlier, changes.runs()).unwrap();
            snapshot::write_layer(to, bytes, &merged.runs(), &mut |offset, buffer| {
                merged.read(offset, buffer, &mut read)
            })
        }
    }
    .unwrap();
    let layer = snapshot::open_layer(to).unwrap();
    ChangedPages {
        file: to.to_owned(),
        touched: None,
        record: None,
        apply: Box::new(move |write| Ok(layer.visit(write)?)),
    }
}

#[tokio::test]
async fn a_paused_guest_stands_still_and_a_resumed_one_goes_on() {
    for subject in subjects() {
        let vm = subject.boot().await;
        assert_eq!(vm.run_state().await.unwrap(), RunState::Running);
        vm.pause().await.unwrap();
        vm.pause().await.unwrap();
        assert_eq!(vm.run_state().await.unwrap(), RunState::Paused);
        vm.resume().await.unwrap();
        hear(&vm).await;
        let usage = vm.usage().unwrap();
        assert!(usage.resident_bytes >= usage.private_bytes && usage.private_bytes > 0, "{usage:?}");
        assert!(usage.cpu_time > Duration::ZERO);
        vm.kill().await.unwrap();
    }
}

#[tokio::test]
async fn many_machines_go_on_from_one_base() {
    for subject in subjects() {
        let (memory, state) = subject.base().await;
        let before = fs::read(&memory).unwrap();
        assert!(count_in_base(&memory) > 0);
        for page in TOUCHED {
            assert_eq!(before[page as usize], 0x5a, "written before the snapshot");
        }
        let one = subject.restore("one", (&memory, &state), None).await;
        let two = subject.restore("two", (&memory, &state), None).await;
        for vm in [&one, &two] {
            assert_eq!(vm.run_state().await.unwrap(), RunState::Paused);
            vm.resume().await.unwrap();
        }
        hear(&one).await;
        hear(&two).await;
        one.kill().await.unwrap();
        two.kill().await.unwrap();
        assert!(fs::read(&memory).unwrap() == before, "somebody wrote to the base");
    }
}

#[tokio::test]
async fn a_prepared_machine_is_loaded_where_it_was_moved_to() {
    for subject in subjects() {
        let (memory, state) = subject.base().await;
        let mut spec = subject.with_disks(subject.spec("waiting", MemoryBacking::CopyOnWrite(memory)));
        let prepared = Vm::prepare(&spec).await.unwrap();
        let moved = subject.bench.path("moved");
        fs::rename(&spec.dir, &moved).unwrap();
        spec.dir.clone_from(&moved);
        for disk in &mut spec.disks {
            let to = disk.path.with_extension("moved");
            fs::rename(&disk.path, &to).unwrap();
            disk.path = to;
        }
        assert!(!prepared.has_exited());
        let vm = prepared.load(&spec, &state, Standstill::default(), None).await.unwrap();
        vm.resume().await.unwrap();
        hear(&vm).await;
        drop(vm);
        let vm = Vm::attach(&moved).await.unwrap().expect("it is found where it is now");
        vm.pause().await.unwrap();
        // Which syncs the disks it writes to.
        vm.snapshot_incremental(&subject.bench.path("moved.state")).await.unwrap();
        vm.kill().await.unwrap();
        assert!(moved.join("vmm.log").exists(), "{:?} has no log where it is now", subject.driver);
    }
}

#[tokio::test]
async fn a_prepared_machine_that_is_not_needed_leaves_no_process() {
    for subject in subjects() {
        let (memory, _) = subject.base().await;
        let spec = subject.with_disks(subject.spec("waiting", MemoryBacking::CopyOnWrite(memory)));
        let uids = spec.jail.uid..spec.jail.uid + 1;
        Vm::prepare(&spec).await.unwrap().end().await.unwrap();
        assert!(vmm::find_strays(uids.clone()).is_empty());
        // Dropped, it goes too, a little later.
        drop(Vm::prepare(&spec).await.unwrap());
        let begin = Instant::now();
        while !vmm::find_strays(uids.clone()).is_empty() {
            assert!(begin.elapsed() < PATIENCE, "it stays");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

#[tokio::test]
async fn what_changed_is_kept_over_many_suspends() {
    for subject in subjects() {
        if subject.driver == Driver::Firecracker && subject.pager.is_none() {
            continue;
        }
        let (memory, state) = subject.base().await;
        let mut last = count_in_base(&memory);
        let mut vm = subject.restore("0", (&memory, &state), None).await;
        for round in 1..4 {
            vm.resume().await.unwrap();
            hear(&vm).await;
            vm.pause().await.unwrap();
            let state = subject.bench.path(&format!("{round}.state"));
            let changes = vm.snapshot_incremental(&state).await.unwrap();
            assert!(has(changes.runs(), COUNTER), "the guest counts");
            assert!(!has(changes.runs(), TOUCHED[0]), "written only before the base");
            assert!(changes.bytes() < 8 << 20, "{} bytes changed", changes.bytes());
            let count = count_in(&changes);
            assert!(count > last, "{count} after {last} in round {round}");
            last = count;
            let pages = layer(&changes, &subject.bench.path(&format!("{round}.layer")));
            vm.kill().await.unwrap();
            vm = subject.restore(&round.to_string(), (&memory, &state), Some(pages)).await;
        }
        vm.kill().await.unwrap();
    }
}

#[tokio::test]
async fn a_snapshot_that_came_to_nothing_loses_no_change() {
    for subject in subjects() {
        let (memory, state) = subject.base().await;
        let vm = subject.restore("vm", (&memory, &state), None).await;
        vm.resume().await.unwrap();
        hear(&vm).await;
        vm.pause().await.unwrap();
        let first = vm.snapshot_incremental(&subject.bench.path("1")).await.unwrap();
        let (count, runs) = (count_in(&first), first.runs().to_vec());
        drop(first);
        // Nobody kept it; nothing ran since.
        let again = vm.snapshot_incremental(&subject.bench.path("2")).await.unwrap();
        assert_eq!(count_in(&again), count);
        assert!(runs.iter().all(|run| has(again.runs(), run.start)), "{runs:?} is not in {:?}", again.runs());
        vm.resume().await.unwrap();
        hear(&vm).await;
        vm.kill().await.unwrap();
    }
}

#[tokio::test]
async fn a_save_is_refused_where_it_makes_no_sense_and_harms_nothing() {
    for subject in subjects() {
        let vm = subject.boot().await;
        let state = subject.bench.path("state");
        assert!(matches!(vm.snapshot_full(&state).await, Err(SaveError::NotPaused { .. })));
        vm.pause().await.unwrap();
        assert!(matches!(vm.snapshot_incremental(&state).await, Err(SaveError::Shared)));
        assert!(matches!(vm.snapshot_full(Path::new("relative")).await, Err(SaveError::Path(_))));
        assert!(vm.snapshot_full(&subject.bench.path("no/such/dir")).await.is_err());
        assert!(!state.exists());
        vm.snapshot_full(&state).await.unwrap();
        vm.resume().await.unwrap();
        hear(&vm).await;
        vm.kill().await.unwrap();
    }
}

#[tokio::test]
async fn a_machine_outlives_its_handle_and_is_found_again() {
    for subject in subjects() {
        let vm = subject.boot().await;
        let (pid, dir) = (vm.pid(), vm.dir().to_owned());
        drop(vm);
        assert_eq!(subject.bench.strays(), [pid]);
        let vm = Vm::attach(&dir).await.unwrap().expect("it lives");
        assert_eq!((vm.pid(), vm.run_state().await.unwrap()), (pid, RunState::Running));
        hear(&vm).await;
        vm.kill().await.unwrap();
        assert!(Vm::attach(&dir).await.unwrap().is_none());
    }
}

#[tokio::test]
async fn the_end_is_reported_and_leaves_nothing() {
    for subject in subjects() {
        let vm = subject.boot().await;
        let pid = vm.pid();
        let uid = subject.bench.last_uid();
        assert_eq!(vmm::find_strays(uid..uid + 1), [(pid, uid)]);
        Vm::kill_stray(pid, uid).await.unwrap();
        let report = tokio::time::timeout(PATIENCE, vm.exited()).await.unwrap();
        assert_eq!((report.signal, report.out_of_memory, report.blame), (Some(9), false, None));
        assert!(process_is_gone(pid) && vm.has_exited());
        assert!(vm.pause().await.is_err());
        vm.kill().await.unwrap();
        for root in ["/sys/fs/cgroup", "/sys/fs/cgroup/memory", "/sys/fs/cgroup/pids"] {
            assert!(!Path::new(root).join(format!("pilotlight-test/{uid}")).exists(), "a control group is left");
        }
    }
}

#[tokio::test]
async fn a_failed_start_says_why_and_leaves_nothing() {
    for subject in subjects() {
        let (memory, state) = subject.base().await;
        let whole = fs::read(&state).unwrap();
        let cut = subject.bench.path("cut.state");
        fs::write(&cut, &whole[..whole.len() / 2]).unwrap();
        let spec = |dir: &str, memory| subject.with_disks(subject.spec(dir, memory));
        let error =
            Vm::restore(&spec("cut", MemoryBacking::CopyOnWrite(memory.clone())), &cut, None).await.unwrap_err();
        println!("{:?}: {}", subject.driver, chain(&error));
        assert!(matches!(error, StartError::Exited { .. } | StartError::Control { .. }), "{error:?}");

        fs::write(subject.bench.path("short"), b"short").unwrap();
        let short = MemoryBacking::CopyOnWrite(subject.bench.path("short"));
        let error = Vm::restore(&spec("short-vm", short), &state, None).await.unwrap_err();
        assert!(matches!(error, StartError::MemorySize { found: 5, .. }), "{error:?}");

        fs::write(subject.bench.path("no-kernel"), b"").unwrap();
        let mut no_kernel = spec("kernel", MemoryBacking::Shared(subject.bench.path("m2")));
        no_kernel.kernel = subject.bench.path("no-kernel");
        let error = Vm::boot(&no_kernel).await.unwrap_err();
        println!("{:?}: {}", subject.driver, chain(&error));
        assert!(chain(&error).to_lowercase().contains("kernel"), "{error:?}");

        let begin = Instant::now();
        while !subject.bench.strays().is_empty() {
            assert!(begin.elapsed() < PATIENCE, "a failed start left a process");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[tokio::test]
async fn what_only_one_driver_can_do_is_asked_for_first() {
    for subject in subjects() {
        let vm = subject.boot().await;
        let can = vm.capabilities();
        assert_eq!(can, subject.driver.capabilities());
        let set = vm.set_balloon(0).await;
        if can.balloon {
            // The toy guest has no driver for it, and Firecracker says so.
            let error = set.expect_err("nobody has activated it");
            assert!(chain(&error).contains("not activated"), "{error:?}");
        } else {
            assert!(matches!(set, Err(ControlError::Unsupported { .. })), "{set:?}");
        }
        vm.kill().await.unwrap();
    }
}

#[tokio::test]
async fn a_vm_ends_with_its_pager_and_says_why() {
    let Some(subject) = firecracker().filter(|subject| subject.pager.is_some()) else { return };
    let (memory, state) = subject.base().await;
    let vm = subject.restore("one", (&memory, &state), None).await;
    vm.resume().await.unwrap();
    hear(&vm).await;
    vm.pause().await.unwrap();
    let state = subject.bench.path("one.state");
    let changes = vm.snapshot_incremental(&state).await.unwrap();
    let pages = layer(&changes, &subject.bench.path("one.layer"));
    vm.kill().await.unwrap();
    for adopted in [false, true] {
        let apply = Box::new(|_: &mut vmm::WritePage<'_>| Ok(()));
        let pages = ChangedPages { file: pages.file.clone(), touched: None, record: None, apply };
        let dir = format!("paged-{adopted}");
        let mut vm = subject.restore(&dir, (&memory, &state), Some(pages)).await;
        vm.resume().await.unwrap();
        hear(&vm).await;
        assert!(vm.usage().unwrap().pager_bytes > 0);
        println!("{:?}", vm.usage().unwrap());
        if adopted {
            drop(vm);
            vm = Vm::attach(&subject.bench.path(&dir)).await.unwrap().expect("it lives");
            hear(&vm).await;
        }
        let mut found = subject.bench.strays();
        let mut known = vm.pids();
        found.sort_unstable();
        known.sort_unstable();
        assert_eq!(found, known, "nothing of it is taken for a stray");
        let pager = found.into_iter().find(|pid| *pid != vm.pid()).expect("it has a pager");
        let killed = std::process::Command::new("kill").args(["-9", &pager.to_string()]).status().unwrap();
        assert!(killed.success());
        let report = tokio::time::timeout(PATIENCE, vm.exited()).await.expect("the VM ends too");
        assert!(report.to_string().contains("memory ended"), "{report}");
    }
}

#[tokio::test]
async fn what_was_wanted_is_brought_the_next_time() {
    let Some(subject) = firecracker().filter(|subject| subject.pager.is_some()) else { return };
    let (memory, state) = subject.base().await;
    let vm = subject.restore("one", (&memory, &state), None).await;
    vm.resume().await.unwrap();
    hear(&vm).await;
    vm.pause().await.unwrap();
    let state = subject.bench.path("one.state");
    let pages = layer(&vm.snapshot_incremental(&state).await.unwrap(), &subject.bench.path("one.layer"));
    vm.kill().await.unwrap();
    let record = subject.bench.path("touched");
    for (round, touched) in [None, Some(record.clone())].into_iter().enumerate() {
        let again = ChangedPages {
            file: pages.file.clone(),
            record: touched.is_none().then(|| record.clone()),
            touched,
            apply: Box::new(|_| Ok(())),
        };
        let vm = subject.restore(&format!("paged-{round}"), (&memory, &state), Some(again)).await;
        vm.resume().await.unwrap();
        hear(&vm).await;
        vm.kill().await.unwrap();
        let begin = Instant::now();
        while !subject.bench.strays().is_empty() {
            assert!(begin.elapsed() < PATIENCE, "the pager outlives its VM");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let wanted = snapshot::pager::read_touched(&fs::File::open(&record).unwrap(), MEMORY_MIB << 20).unwrap();
        assert!(has(&wanted, COUNTER), "{wanted:?}");
        let bytes: u64 = wanted.iter().map(|run| run.end - run.start).sum();
        assert!(bytes < 1 << 20, "the guest touches little: {bytes} bytes");
    }
}
