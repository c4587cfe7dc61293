//! What happens at each limit of a jail: this very program, started in QEMU's place, goes to them.
//!
//! Needs root; without it the test says so and passes. It has no test harness, because inside the jail the same program is
//! given QEMU's arguments: what to try is in the kernel's command line.

mod support;

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use support::{Bench, programs, runs_as_root};
use vmm::{ExitReport, Hierarchies, MemoryBacking, Program, StartError, Vm, VmSpec};

const MIB: u64 = 1 << 20;

type Test = fn(&tokio::runtime::Runtime);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    if let Some(at) = arguments.iter().position(|argument| argument == "-append") {
        go_to(&arguments[at + 1]);
        return ExitCode::SUCCESS;
    }
    if !runs_as_root() {
        println!("skipped: a jail needs root");
        return ExitCode::SUCCESS;
    }
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let tests: [(&str, Test); 7] = [
        ("open_files_come_to_an_end", open_files),
        ("threads_come_to_an_end", threads),
        ("a_file_that_is_too_large_fails_and_ends_nobody", file_size),
        ("core_dumps_are_off", core_dumps),
        ("a_vmm_that_takes_too_much_memory_is_ended_and_the_report_says_so", memory),
        ("processor_time_is_held_to_its_quota", processor),
        ("disk_reads_are_held_to_their_rate", disk),
    ];
    println!("running {} tests", tests.len());
    for (name, test) in tests {
        test(&runtime);
        println!("test {name} ... ok");
    }
    println!("test result: ok. {} passed; 0 failed; 0 ignored; 0 measured; 0 filtered out", tests.len());
    ExitCode::SUCCESS
}

/// Starts this program in a jail to try something; what it said, and how it ended.
fn jailed(runtime: &tokio::runtime::Runtime, what: &str, change: impl FnOnce(&mut VmSpec)) -> (String, ExitReport) {
    let own = std::env::current_exe().expect("a program has a path");
    let bench = Bench::with(Program::plain(&own, &programs()).expect("this program can be copied"));
    let mut spec = bench.spec("vm", MemoryBacking::Shared(bench.path("memory")));
    spec.cmdline = what.to_owned();
    change(&mut spec);
    match runtime.block_on(Vm::boot(&spec)) {
        Err(StartError::Exited { report }) => {
            (fs::read_to_string(spec.dir.join("vmm.log")).unwrap_or_default(), report)
        }
        other => panic!("{what}: {other:?}"),
    }
}

/// The number after this word.
fn number(said: &str, word: &str) -> u64 {
    let after = said.split_once(word).unwrap_or_else(|| panic!("no {word:?} in {said:?}")).1.trim_start();
    let end = after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len());
    after[..end].parse().unwrap_or_else(|_| panic!("no number after {word:?} in {said:?}"))
}

fn open_files(runtime: &tokio::runtime::Runtime) {
    let (said, _) = jailed(runtime, "files", |spec| spec.jail.limits.open_files = 64);
    // Standard ones and the sockets are among them.
    assert!((40..64).contains(&number(&said, "opened")), "{said}");
    assert!(said.contains("Too many open files"), "{said}");
}

fn threads(runtime: &tokio::runtime::Runtime) {
    let (said, _) = jailed(runtime, "threads", |spec| spec.jail.limits.processes = 20);
    // The first one counts.
    assert_eq!(number(&said, "started"), 19, "{said}");
    assert!(said.contains("temporarily unavailable"), "{said}");
}

fn file_size(runtime: &tokio::runtime::Runtime) {
    // The largest a VM without disks writes is its devices' state.
    let (said, report) = jailed(runtime, "file", |_| ());
    assert_eq!(number(&said, "wrote"), 64 * MIB, "{said}");
    assert!(said.contains("File too large") && said.contains("alive"), "{said}");
    assert_eq!(report.code, Some(0));
}

fn core_dumps(runtime: &tokio::runtime::Runtime) {
    let (said, _) = jailed(runtime, "core", |_| ());
    // Not 0, which a program that dumps are piped to would not be held to.
    assert_eq!(number(&said, "limit"), 1, "{said}");
}

fn memory(runtime: &tokio::runtime::Runtime) {
    if !Hierarchies::find().controllers().contains(&"memory") {
        println!("skipped: this host has no controller for memory");
        return;
    }
    let (said, report) = jailed(runtime, "memory", |spec| spec.jail.limits.overhead_bytes = 32 * MIB);
    assert_eq!((report.signal, report.out_of_memory), (Some(9), true), "{report:?}: {said}");
    assert!(report.to_string().contains("more memory needed than its limit"), "{report}");
    let touched = said.lines().filter(|line| line.starts_with("touched")).count() as u64;
    assert!((16..64).contains(&touched), "the limit is 64 MiB, {touched} were had");
}

fn processor(runtime: &tokio::runtime::Runtime) {
    if !Hierarchies::find().controllers().contains(&"cpu") {
        println!("skipped: this host has no controller for processors");
        return;
    }
    let (said, _) = jailed(runtime, "processor", |spec| spec.jail.limits.cpu_quota_percent = Some(20));
    let (used, took) = (number(&said, "used"), number(&said, "in"));
    // A fifth, and as much again for the periods it began and ended in.
    assert!(used * 5 <= took * 2, "{used} ms of processor time in {took} ms");
}

fn disk(runtime: &tokio::runtime::Runtime) {
    let limited = |rate| {
        jailed(runtime, "disk", |spec| {
            spec.jail.limits.io_bytes_per_second = rate;
            fs::write(&spec.kernel, vec![7; 2 * MIB as usize]).unwrap();
            File::open(&spec.kernel).unwrap().sync_all().unwrap();
        })
        .0
    };
    let free = limited(None);
    if !Hierarchies::find().controllers().contains(&"io") || free.contains("cannot") {
        println!("skipped: this host has no controller for I/O, or no disk under its temporary files: {}", free.trim());
        return;
    }
    let held = limited(Some(MIB));
    // Two MiB at one a second; the first are not waited for.
    assert!(number(&held, "took") > 700, "held: {held}free: {free}");
}

/// What is tried, inside the jail.
fn go_to(limit: &str) {
    match limit {
        "files" => {
            let mut files = Vec::new();
            let error = loop {
                match File::open("/kernel") {
                    Ok(file) => files.push(file),
                    Err(error) => break error,
                }
            };
            let opened = files.len();
            // The log is written through descriptors that are there already.
            println!("opened {opened}, then: {error}");
        }
        "threads" => {
            let mut started = 0;
            let error = loop {
                let sleep = || std::thread::sleep(Duration::from_secs(600));
                match std::thread::Builder::new().stack_size(64 * 1024).spawn(sleep) {
                    Ok(_) => started += 1,
                    Err(error) => break error,
                }
            };
            println!("started {started}, then: {error}");
            std::process::exit(0);
        }
        "file" => {
            let file = rustix::fs::memfd_create("large", rustix::fs::MemfdFlags::CLOEXEC).expect("memory for a file");
            let mut file = File::from(file);
            let mut wrote = 0;
            let error = loop {
                match file.write(&[1; 64 * 1024]) {
                    Ok(length) => wrote += length,
                    Err(error) => break error,
                }
            };
            println!("wrote {wrote}, then: {error}");
            println!("alive");
        }
        "core" => {
            let limit = rustix::process::getrlimit(rustix::process::Resource::Core);
            println!("limit {}", limit.maximum.unwrap_or(u64::MAX));
        }
        "memory" => {
            let mut taken = Vec::new();
            loop {
                taken.push(vec![1u8; MIB as usize]);
                println!("touched {}", taken.len());
                let _ = io::stdout().flush();
            }
        }
        "processor" => {
            let begin = Instant::now();
            let burn = move || while begin.elapsed() < Duration::from_millis(1500) {};
            let burners = [std::thread::spawn(burn), std::thread::spawn(burn)];
            for burner in burners {
                let _ = burner.join();
            }
            let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
            let used = used.tv_sec as u64 * 1000 + used.tv_nsec as u64 / 1_000_000;
            println!("used {used} ms in {} ms", begin.elapsed().as_millis());
        }
        "disk" => match read_directly() {
            Ok(took) => println!("took {} ms", took.as_millis()),
            Err(error) => println!("cannot read past the page cache: {error}"),
        },
        other => println!("no such limit: {other}"),
    }
}

/// Reads the file past the page cache, and says how long it took.
fn read_directly() -> io::Result<Duration> {
    // Direct reads go to memory that is aligned as the disk's blocks are.
    let mut space = vec![0; 256 * 1024 + 4096];
    let start = space.as_ptr().align_offset(4096);
    let buffer = &mut space[start..start + 256 * 1024];
    let begin = Instant::now();
    let mut file = File::options().read(true).custom_flags(libc::O_DIRECT).open("/kernel")?;
    while file.read(buffer)? > 0 {}
    Ok(begin.elapsed())
}
