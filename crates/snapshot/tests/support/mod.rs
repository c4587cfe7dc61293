//! A real `pilotlight-pager` and what it is started with. The test's process is the VMM.

use std::fs::{self, File};
use std::io::Read;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::FdFlags;
use rustix::process::{Pid, PidfdFlags, Signal};
use snapshot::pager::GuestMemory;
use snapshot::write_layer;

pub const PAGE: u64 = 4096;

/// Memory for a VM, or the printed reason why there can be none here.
pub fn guest(bytes: u64) -> Option<GuestMemory> {
    match GuestMemory::new(bytes) {
        Ok(memory) => Some(memory),
        Err(error) => {
            println!("skipped: userfaultfd cannot be had here: {error}");
            None
        }
    }
}

/// A base with holes, and a layer with pages of data and of zeroes.
pub struct Files {
    pub dir: tempfile::TempDir,
    pub pages: u64,
}

/// What a page of [`Files`] begins with; all of it follows from that.
fn fill(page: u64, of: u64) -> [u8; PAGE as usize] {
    let mut bytes = [0; PAGE as usize];
    for (index, word) in bytes.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        *word = ((page + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ (of << 32) ^ index as u64).to_le_bytes();
    }
    bytes
}

fn is_hole(page: u64) -> bool {
    page % 64 >= 48
}

fn in_layer(page: u64) -> bool {
    page % 11 < 3
}

fn zero_in_layer(page: u64) -> bool {
    page % 11 == 1
}

impl Files {
    pub fn new(pages: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let base = File::create(dir.path().join("base")).unwrap();
        base.set_len(pages * PAGE).unwrap();
        for page in (0..pages).filter(|page| !is_hole(*page)) {
            base.write_all_at(&fill(page, 1), page * PAGE).unwrap();
        }
        let runs: Vec<_> =
            (0..pages).filter(|page| in_layer(*page)).map(|page| page * PAGE..(page + 1) * PAGE).collect();
        write_layer(&dir.path().join("layer"), pages * PAGE, &runs, &mut |offset, buffer| {
            for (index, bytes) in buffer.chunks_mut(PAGE as usize).enumerate() {
                let page = offset / PAGE + index as u64;
                bytes.copy_from_slice(&if zero_in_layer(page) { [0; PAGE as usize] } else { fill(page, 2) });
            }
            Ok(())
        })
        .unwrap();
        Self { dir, pages }
    }

    pub fn bytes(&self) -> u64 {
        self.pages * PAGE
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What a guest must find in a page.
    pub fn expected(page: u64, with_layer: bool) -> [u8; PAGE as usize] {
        match (with_layer && in_layer(page), is_hole(page)) {
            (true, _) if zero_in_layer(page) => [0; PAGE as usize],
            (true, _) => fill(page, 2),
            (false, true) => [0; PAGE as usize],
            (false, false) => fill(page, 1),
        }
    }

    pub fn pager(&self) -> Pager {
        Pager::start(self, &["--base-fd"], &[self.path("base")])
    }

    pub fn pager_with_layer(&self) -> Pager {
        Pager::start(self, &["--base-fd", "--layer-fd"], &[self.path("base"), self.path("layer")])
    }
}

/// A running pager. Killed when dropped.
pub struct Pager {
    child: Child,
    pub socket: PathBuf,
}

/// Descriptors are inherited for as long as nobody else starts a process.
static STARTING: Mutex<()> = Mutex::new(());

impl Pager {
    /// Starts a pager with files for these arguments; files that are not there are made.
    pub fn start(files: &Files, arguments: &[&str], paths: &[PathBuf]) -> Self {
        static COUNT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let socket = files.path(&format!("pager.{number}.sock"));
        let listener = UnixListener::bind(&socket).unwrap();
        let open =
            |path: &PathBuf| File::options().read(true).write(true).create(true).truncate(false).open(path).unwrap();
        let opened: Vec<File> = paths.iter().map(open).collect();
        let mut command = Command::new(env!("CARGO_BIN_EXE_pilotlight-pager"));
        command.args(["--memory-bytes", &files.bytes().to_string(), "--handshake-seconds", "1"]);
        let mut pass = |name: &str, fd: BorrowedFd<'_>| {
            rustix::io::fcntl_setfd(fd, FdFlags::empty()).unwrap();
            command.args([name, &fd.as_raw_fd().to_string()]);
        };
        let starting = STARTING.lock().unwrap();
        pass("--listen-fd", listener.as_fd());
        for (name, file) in arguments.iter().zip(&opened) {
            pass(name, file.as_fd());
        }
        let child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        drop((listener, opened));
        drop(starting);
        Self { child, socket }
    }

    pub fn connect(&self) -> UnixStream {
        UnixStream::connect(&self.socket).unwrap()
    }

    /// Connects and hands the memory over; the connection is to be kept.
    pub fn serve(&self, memory: &GuestMemory) -> UnixStream {
        let connection = self.connect();
        memory.hand_over(&connection).unwrap();
        connection
    }

    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    pub fn signal(&self, signal: Signal) {
        rustix::process::kill_process(self.pid(), signal).unwrap();
    }

    /// Waits for the end, through a pidfd as a daemon would, and returns how it was and what was said.
    pub fn ended(&mut self) -> (ExitStatus, String) {
        let pidfd = rustix::process::pidfd_open(self.pid(), PidfdFlags::empty()).unwrap();
        let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
        let timeout = Timespec { tv_sec: 10, tv_nsec: 0 };
        assert_eq!(rustix::event::poll(&mut fds, Some(&timeout)).unwrap(), 1, "the pager does not end");
        let mut said = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        (self.child.wait().unwrap(), said)
    }

    /// Processor time its serving thread has used so far.
    pub fn busy(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/schedstat", self.child.id())).unwrap();
        Duration::from_nanos(stat.split(' ').next().unwrap().parse().unwrap())
    }

    /// The lines of its status about resident memory.
    pub fn resident(&self) -> String {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let lines = status.lines().filter(|line| line.contains("Rss") || line.contains("RSS"));
        lines.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>().join(", ")
    }
}

impl Drop for Pager {
    fn drop(&mut self) {
        // Ended already, or nobody cares how.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs what would wait for ever if a page never came.
pub fn in_time<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, result) = mpsc::channel();
    thread::spawn(move || done.send(work()));
    result.recv_timeout(Duration::from_secs(60)).expect("a page never came, or a thread failed")
}

/// How many pages of this process are there. Asks the kernel, touches nothing.
pub fn present(addresses: Range<u64>) -> u64 {
    let map = File::open("/proc/self/pagemap").unwrap();
    let mut entries = vec![0; ((addresses.end - addresses.start) / PAGE * 8) as usize];
    map.read_exact_at(&mut entries, addresses.start / PAGE * 8).unwrap();
    entries.as_chunks::<8>().0.iter().filter(|entry| u64::from_ne_bytes(**entry) >> 63 == 1).count() as u64
}

/// Waits for something to become so.
pub fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        thread::sleep(Duration::from_micros(200));
    }
}

/// Opens what a pager recorded.
pub fn recorded(path: &Path, memory_bytes: u64) -> Vec<Range<u64>> {
    snapshot::pager::read_touched(&File::open(path).unwrap(), memory_bytes).unwrap()
}
