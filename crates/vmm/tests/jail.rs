//! A compromised VMM: this very program, started in the jail in QEMU's place, tries what an attacker would.
//!
//! Needs root; without it the test says so and passes. It has no test harness, because inside the jail the same program is
//! given QEMU's arguments.

mod support;

use std::fs;
use std::io;
use std::net::{TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, ExitCode};

use support::{Bench, programs, runs_as_root};
use vmm::{MemoryBacking, Program, StartError, Vm};

fn main() -> ExitCode {
    if std::env::args().any(|argument| argument == "-nodefaults") {
        attack();
        return ExitCode::SUCCESS;
    }
    if !runs_as_root() {
        println!("skipped: a jail needs root");
        return ExitCode::SUCCESS;
    }
    println!("running 1 test");
    tokio::runtime::Runtime::new().expect("a runtime").block_on(a_compromised_vmm_gets_nothing());
    println!("test a_compromised_vmm_gets_nothing ... ok");
    println!("test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out");
    ExitCode::SUCCESS
}

async fn a_compromised_vmm_gets_nothing() {
    let own = std::env::current_exe().expect("a program has a path");
    let bench = Bench::with(Program::plain(&own, &programs()).expect("this program can be copied"));
    let memory = bench.path("memory");
    let spec = bench.spec("vm", MemoryBacking::Shared(memory));
    let cgroup = spec.jail.cgroup.clone().expect("the bench names one");
    let error = Vm::boot(&spec).await.expect_err("it is no QEMU");
    assert!(matches!(error, StartError::Exited { .. }), "{error:?}");
    let log = fs::read_to_string(spec.dir.join("vmm.log")).expect("it had something to say");
    println!("{log}");
    let got: Vec<_> = log.lines().filter(|line| line.starts_with("GOT")).collect();
    assert!(got.is_empty(), "a compromised VMM got: {got:#?}");
    let tried = log.lines().filter(|line| line.starts_with("denied")).count();
    assert!(tried >= 20, "the attack went wrong after {tried} tries");
    assert!(log.trim_end().ends_with("done"), "the attack did not come to its end");
    for root in ["/sys/fs/cgroup", "/sys/fs/cgroup/memory", "/sys/fs/cgroup/pids"] {
        assert!(!Path::new(root).join(&cgroup).exists(), "a control group is left in {root}");
    }
}

/// Tries one thing; it must fail.
fn try_to<T>(what: &str, attempt: io::Result<T>) {
    match attempt {
        Ok(_) => println!("GOT {what}"),
        Err(error) => println!("denied {what}: {error}"),
    }
}

fn attack() {
    for path in ["/etc/passwd", "/etc/shadow", "/root", "/proc/1/environ", "/proc/self/mem", "/sys/kernel", "/dev/kvm"]
    {
        try_to(&format!("to read {path}"), fs::metadata(path));
    }
    for path in ["/dev/mem", "/dev/net/tun", "/dev/sda", "/run/netns", "/tmp", "/var"] {
        try_to(&format!("to look at {path}"), fs::metadata(path));
    }
    for path in ["/x", "/kernel", "/dev/x", "/run/x", "/lib/x", "/proc/x"] {
        try_to(&format!("to write {path}"), fs::write(path, "x"));
    }
    let own =
        std::env::current_exe().or_else(|_| std::env::args().next().map(Into::into).ok_or(io::ErrorKind::NotFound));
    if let Ok(own) = own {
        try_to("to change its program", fs::OpenOptions::new().append(true).open(own).map(drop));
    }
    try_to("a shell", Command::new("/bin/sh").arg("-c").arg("id").status());
    // Its network namespace here is the host's: the filter has to hold by itself.
    try_to("a connection to this host", TcpStream::connect("127.0.0.1:22"));
    try_to("a socket for datagrams", UdpSocket::bind("127.0.0.1:0"));
    try_to("a connection to a socket of the host", UnixStream::connect("/run/docker.sock"));
    try_to("a mount of its own", mount());
    try_to("another root", chroot());
    try_to("to be root", become_root());
    try_to("to signal its parent", signal_parent());
    for pid in [2, 3, 100, 1000] {
        try_to(&format!("to signal process {pid}"), signal(pid));
    }
    println!("done");
}

fn mount() -> io::Result<()> {
    Ok(rustix::mount::mount("none", "/dev", "tmpfs", rustix::mount::MountFlags::empty(), None)?)
}

fn chroot() -> io::Result<()> {
    Ok(rustix::process::chroot("/lib")?)
}

fn become_root() -> io::Result<()> {
    Ok(rustix::thread::set_thread_uid(rustix::process::Uid::ROOT)?)
}

/// The parent of a jailed process is in another process namespace: it has no number here.
fn signal_parent() -> io::Result<()> {
    let parent = rustix::process::getppid().ok_or(io::ErrorKind::NotFound)?;
    Ok(rustix::process::test_kill_process(parent)?)
}

fn signal(pid: i32) -> io::Result<()> {
    let pid = rustix::process::Pid::from_raw(pid).ok_or(io::ErrorKind::NotFound)?;
    Ok(rustix::process::test_kill_process(pid)?)
}
