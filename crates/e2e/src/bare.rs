//! The bare baseline: the same snapshot, restored by a plain QEMU command and asked over plain HTTP, with nothing of
//! Pilotlight in between. What a user would get who did it all by hand, and the floor that Pilotlight is measured
//! against.
//!
//! The command line is a running VM's own, with other paths; the network is a namespace with a tap of its own. Making
//! the namespace and the copy of the writable disk is not timed.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    os::{
        fd::AsFd,
        unix::{fs::FileExt, net::UnixStream},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use guest_protocol::{GUEST_ADDRESS, HOST_ADDRESS, LINK_PREFIX};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::{Value, json};

use crate::machine::Process;

/// Longest wait for any step; twenty VMs that start at once on two processors take their time.
const STEP_MAX: Duration = Duration::from_secs(120);

const PAGE: u64 = 4096;

/// Makes the names of namespaces differ.
static COUNT: AtomicU32 = AtomicU32::new(0);

/// In `/proc/<pid>/pagemap`: the page is there, and is the file's own.
const PRESENT: u64 = 1 << 63;
const OF_FILE: u64 = 1 << 61;

/// A VM that runs; it ends when this is dropped.
pub struct Running {
    /// From starting its process to the first 200.
    pub to_first_answer: Duration,
    vm: Vm,
}

/// What a suspend by hand left.
pub struct Saved {
    /// Stop, device state, search for changed pages, copy of them.
    pub took: Duration,
    /// Offsets in guest memory and contents of the changed pages.
    pages: Vec<(u64, Vec<u8>)>,
    device_state: PathBuf,
}

/// The means to restore by hand.
pub struct Bare {
    arguments: Vec<String>,
    version_dir: PathBuf,
    work_dir: PathBuf,
    namespace: String,
}

fn run(program: &str, arguments: &[&str]) -> anyhow::Result<()> {
    let output = Command::new(program).args(arguments).output().with_context(|| format!("starting {program}"))?;
    if !output.status.success() {
        bail!("{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

impl Bare {
    /// Learns the command line from a running VM and prepares the network. One VM at a time runs in a `work_dir`.
    pub fn like(vmm: &Process, version_dir: &Path, work_dir: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(work_dir)?;
        let own = |name: &str| work_dir.join(name).to_string_lossy().into_owned();
        let mut arguments = Vec::new();
        for argument in &vmm.arguments {
            // The VMM inherited its sockets, disks and tap; by hand they have names.
            let argument = if let Some(socket) = argument.strip_prefix("socket,id=") {
                let (head, tail) = argument.split_once("fd=").context("a socket without fd=")?;
                let rest = tail.split_once(',').map_or("", |(_, rest)| rest);
                let id = socket.split(',').next().unwrap_or_default();
                format!("{head}path={},{rest}", own(&format!("{id}.sock")))
            } else if argument.starts_with("fd=") {
                // With the flag before it.
                arguments.pop();
                continue;
            } else if argument.starts_with("tap,") {
                "tap,id=net0,ifname=tap0,script=no,downscript=no,vhost=off".to_owned()
            } else {
                let root = version_dir.join("root.erofs").to_string_lossy().into_owned();
                let memory = version_dir.join("memory.img").to_string_lossy().into_owned();
                argument
                    .replace("/dev/fdset/0", &root)
                    .replace("/dev/fdset/1", &own("scratch.img"))
                    .replace("mem-path=/memory", &format!("mem-path={memory}"))
            };
            arguments.push(argument);
        }
        let named = |path: &str| arguments.iter().any(|argument| argument.contains(path));
        ensure!(named(&own("scratch.img")), "the VM's command line has no writable disk: {:?}", vmm.arguments);
        ensure!(named(&version_dir.join("memory.img").to_string_lossy()), "the VM does not map the version's memory");
        let namespace = format!("plbare-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let bare = Self {
            arguments,
            version_dir: version_dir.to_owned(),
            work_dir: work_dir.to_owned(),
            namespace: namespace.clone(),
        };
        let mac = vmm.arguments.iter().find_map(|argument| argument.split("mac=").nth(1)?.split(',').next());
        let mac = mac.context("the VM has no network card")?;
        run("ip", &["netns", "add", &namespace])?;
        let inside: [&[&str]; 6] = [
            &["link", "set", "lo", "up"],
            &["tuntap", "add", "dev", "tap0", "mode", "tap", "vnet_hdr"],
            &["link", "set", "tap0", "address", "06:00:a9:fe:64:01"],
            &["address", "add", &format!("{HOST_ADDRESS}/{LINK_PREFIX}"), "dev", "tap0"],
            &["link", "set", "tap0", "up"],
            &["neighbour", "replace", &GUEST_ADDRESS.to_string(), "lladdr", mac, "dev", "tap0", "nud", "permanent"],
        ];
        for arguments in inside {
            run("ip", &[&["-netns", &namespace], arguments].concat())?;
        }
        Ok(bare)
    }

    /// Runs something on a thread that has moved into the namespace.
    fn inside<T: Send>(&self, work: impl FnOnce() -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
        thread::scope(|scope| {
            let worker = scope.spawn(|| {
                let namespace = File::open(Path::new("/run/netns").join(&self.namespace))?;
                move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
                work()
            });
            worker.join().map_err(|_| anyhow::anyhow!("the worker panicked"))?
        })
    }

    /// Puts the writable disk back to the snapshot's.
    fn fresh_disk(&self) -> anyhow::Result<()> {
        let (from, to) = (self.version_dir.join("scratch.img"), self.work_dir.join("scratch.img"));
        run("cp", &["--sparse=always", "--reflink=auto", &from.to_string_lossy(), &to.to_string_lossy()])
    }

    /// Launches by hand and asks for `path` until it is answered.
    pub fn launch(&self, path: &str) -> anyhow::Result<Running> {
        self.fresh_disk()?;
        self.start(&self.version_dir.join("device.state"), &[], path)
    }

    /// Suspends by hand.
    pub fn suspend(&self, mut running: Running) -> anyhow::Result<Saved> {
        running.vm.save(&self.version_dir.join("memory.img"), self.work_dir.join("device.state"))
    }

    /// Wakes by hand what was suspended last, and asks for `path` until it is answered.
    pub fn wake(&self, saved: &Saved, path: &str) -> anyhow::Result<Running> {
        self.start(&saved.device_state, &saved.pages, path)
    }

    fn start(&self, device_state: &Path, pages: &[(u64, Vec<u8>)], path: &str) -> anyhow::Result<Running> {
        self.inside(|| {
            let begin = Instant::now();
            let vm = self.restore(device_state, pages)?;
            get(path)?;
            Ok(Running { to_first_answer: begin.elapsed(), vm })
        })
    }

    fn restore(&self, device_state: &Path, pages: &[(u64, Vec<u8>)]) -> anyhow::Result<Vm> {
        for name in ["qmp.sock", "console.sock", "incoming.sock"] {
            // Absent at the first run.
            let _ = fs::remove_file(self.work_dir.join(name));
        }
        let log = File::create(self.work_dir.join("qemu.log"))?;
        let (program, arguments) = self.arguments.split_first().context("an empty command line")?;
        let child = Command::new(program)
            .args(arguments)
            .current_dir(&self.work_dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("starting QEMU")?;
        let child = Killed(child);
        let qmp = Qmp::connect(&self.work_dir.join("qmp.sock"))
            .with_context(|| fs::read_to_string(self.work_dir.join("qemu.log")).unwrap_or_default())?;
        let mut vm = Vm { child, qmp };
        if !pages.is_empty() {
            let base = vm.mapping(&self.version_dir.join("memory.img"))?.0;
            let memory = OpenOptions::new().write(true).open(format!("/proc/{}/mem", vm.child.0.id()))?;
            for (offset, bytes) in pages {
                memory.write_all_at(bytes, base + offset)?;
            }
        }
        load(&mut vm.qmp, &self.work_dir.join("incoming.sock"), device_state)?;
        Ok(vm)
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        // Best effort: the names carry this process's number and clash with nothing.
        let _ = run("ip", &["netns", "delete", &self.namespace]);
        let _ = fs::remove_dir_all(&self.work_dir);
    }
}

/// A process that ends with its owner.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Vm {
    child: Killed,
    qmp: Qmp,
}

impl Vm {
    /// Where a file is mapped in the VMM, and how long the mapping is.
    fn mapping(&self, file: &Path) -> anyhow::Result<(u64, u64)> {
        let name = file.to_string_lossy();
        let maps = fs::read_to_string(format!("/proc/{}/maps", self.child.0.id()))?;
        let line = maps.lines().find(|line| line.ends_with(&*name)).with_context(|| format!("{name} is not mapped"))?;
        let (range, _) = line.split_once(' ').context("a line of maps")?;
        let (start, end) = range.split_once('-').context("a range of maps")?;
        let (start, end) = (u64::from_str_radix(start, 16)?, u64::from_str_radix(end, 16)?);
        Ok((start, end - start))
    }

    fn save(&mut self, memory: &Path, device_state: PathBuf) -> anyhow::Result<Saved> {
        let pid = self.child.0.id();
        let (base, length) = self.mapping(memory)?;
        let begin = Instant::now();
        self.qmp.execute("stop", json!({}))?;
        self.qmp.execute("xen-save-devices-state", json!({"filename": device_state, "live": false}))?;
        let mut entries = vec![0; usize::try_from(length / PAGE * 8)?];
        File::open(format!("/proc/{pid}/pagemap"))?.read_exact_at(&mut entries, base / PAGE * 8)?;
        let memory = File::open(format!("/proc/{pid}/mem"))?;
        let mut copy = File::create(self.pages_file(&device_state))?;
        let mut pages: Vec<(u64, Vec<u8>)> = Vec::new();
        let mut start = None;
        let mut take = |from: u64, to: u64| -> anyhow::Result<()> {
            let mut bytes = vec![0; usize::try_from((to - from) * PAGE)?];
            memory.read_exact_at(&mut bytes, base + from * PAGE)?;
            copy.write_all(&bytes)?;
            pages.push((from * PAGE, bytes));
            Ok(())
        };
        for (index, entry) in (0..).zip(entries.chunks_exact(8)) {
            let entry = u64::from_le_bytes(entry.try_into()?);
            let changed = entry & PRESENT != 0 && entry & OF_FILE == 0;
            match (changed, start) {
                (true, None) => start = Some(index),
                (false, Some(from)) => {
                    take(from, index)?;
                    start = None;
                }
                _ => {}
            }
        }
        if let Some(from) = start {
            take(from, length / PAGE)?;
        }
        let took = begin.elapsed();
        ensure!(!pages.is_empty(), "no page was changed: the search is wrong");
        Ok(Saved { took, pages, device_state })
    }

    fn pages_file(&self, device_state: &Path) -> PathBuf {
        device_state.with_extension("pages")
    }
}

/// A QEMU that waits for state is given it, through this socket, and set going.
pub fn load(qmp: &mut Qmp, incoming: &Path, device_state: &Path) -> anyhow::Result<()> {
    qmp.execute("migrate-incoming", json!({"uri": format!("unix:{}", incoming.display())}))?;
    let mut stream = connect(incoming)?;
    stream.write_all(&fs::read(device_state)?)?;
    drop(stream);
    let begin = Instant::now();
    loop {
        let migration = qmp.execute("query-migrate", json!({}))?;
        match migration["status"].as_str() {
            Some("completed") => break,
            Some("failed") => bail!("the load failed: {migration}"),
            _ => ensure!(begin.elapsed() < STEP_MAX, "the load does not end: {migration}"),
        }
        thread::sleep(Duration::from_micros(500));
    }
    qmp.execute("cont", json!({})).map(drop)
}

/// The least client of QEMU's machine protocol there is.
pub struct Qmp {
    reader: BufReader<UnixStream>,
    writer: UnixStream,
}

impl Qmp {
    /// Connects, and takes it into command mode.
    pub fn connect(socket: &Path) -> anyhow::Result<Self> {
        let writer = connect(socket)?;
        writer.set_read_timeout(Some(STEP_MAX))?;
        let mut qmp = Self { reader: BufReader::new(writer.try_clone()?), writer };
        qmp.next()?;
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    fn next(&mut self) -> anyhow::Result<Value> {
        let mut line = String::new();
        ensure!(self.reader.read_line(&mut line)? > 0, "QEMU closed its control socket");
        Ok(serde_json::from_str(&line)?)
    }

    fn execute(&mut self, command: &str, arguments: Value) -> anyhow::Result<Value> {
        let line = json!({"execute": command, "arguments": arguments});
        self.writer.write_all(format!("{line}\n").as_bytes())?;
        loop {
            let mut answer = self.next()?;
            if let Some(error) = answer.get("error") {
                bail!("{command}: {error}");
            }
            if answer.get("return").is_some() {
                return Ok(answer["return"].take());
            }
        }
    }
}

/// Connects to a socket as soon as it is there.
pub fn connect(socket: &Path) -> anyhow::Result<UnixStream> {
    let begin = Instant::now();
    loop {
        match UnixStream::connect(socket) {
            Ok(stream) => return Ok(stream),
            Err(error) if begin.elapsed() > STEP_MAX => {
                return Err(error).with_context(|| format!("connecting to {}", socket.display()));
            }
            Err(_) => thread::sleep(Duration::from_micros(200)),
        }
    }
}

// The least HTTP client there is, from inside the namespace to the guest's own address.
fn get(path: &str) -> anyhow::Result<()> {
    let begin = Instant::now();
    loop {
        match try_get(path) {
            Ok(head) if head.starts_with("HTTP/1.1 200") || head.starts_with("HTTP/1.0 200") => return Ok(()),
            Ok(head) => bail!("the app answered {head:?}"),
            Err(error) if begin.elapsed() > STEP_MAX => return Err(error).context("asking the app"),
            Err(_) => thread::sleep(Duration::from_millis(1)),
        }
    }
}

fn try_get(path: &str) -> io::Result<String> {
    let address = SocketAddr::from((GUEST_ADDRESS, 8080));
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(STEP_MAX))?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: app\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).lines().next().unwrap_or_default().to_owned())
}
