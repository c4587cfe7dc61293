//! The group `driver`: a driver by itself, with guests of a few bytes, beside the same done by hand.
//!
//! By hand is, for Firecracker, its own jailer and curl; for QEMU a plain QEMU without a jail, with the same arguments.
//! `PILOTLIGHT_FIRECRACKER` names Firecracker, otherwise it is looked for on the PATH; the jailer is looked for beside it.

#[path = "../../../../vmm/tests/support/multiboot.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod multiboot;
#[path = "../../../../vmm/tests/toy/mod.rs"]
mod toy;

use std::{
    fs,
    io::Read,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use e2e::{Microvm, Stage, bare, repository};
use serde_json::json;
use tokio::io::AsyncReadExt;
use vmm::{Accel, Arch, Driver, Jail, Limits, MemoryBacking, Program, Vm, VmSpec};

use crate::{ROUNDS, Row, WARM_UPS, quantiles};

const GROUP: &str = "driver";
const MEMORY_MIB: u64 = 128;
/// Users of these machines: beyond those a server takes.
const FIRST_UID: u32 = 0x7900_0000;
const STEP_MAX: Duration = Duration::from_secs(30);

/// What a real guest's QEMU has of the host's memory beside the guest's own pages.
pub fn idle_qemu(stage: &Stage, microvm: &Microvm) -> anyhow::Result<Row> {
    let pid = stage.vmm_of(&microvm.id)?.pid;
    let memory = stage.version_dir()?.join("memory.img");
    bytes_row("resident beside guest pages, idle QEMU, Linux guest", private_beside(pid, &memory)?)
}

fn bytes_row(name: &str, bytes: u64) -> anyhow::Result<Row> {
    Ok(Row { group: GROUP, name: name.to_owned(), unit: "bytes", value: bytes as f64, baseline: None })
}

/// A process's own memory, without its mapping of this file.
fn private_beside(pid: u32, file: &Path) -> anyhow::Result<u64> {
    let name = file.file_name().context("a file has a name")?.to_string_lossy().into_owned();
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    let (mut sum, mut counts) = (0, true);
    for line in smaps.lines() {
        let first = line.split_ascii_whitespace().next().unwrap_or_default();
        if first.contains('-') && !first.ends_with(':') {
            // Firecracker's is seen by its name in the jail.
            counts = !line.ends_with(&name) && !line.ends_with("/memory");
        } else if counts && (first == "Private_Clean:" || first == "Private_Dirty:") {
            let kib = line.split_ascii_whitespace().nth(1).context("a size")?;
            sum += kib.parse::<u64>()? * 1024;
        }
    }
    Ok(sum)
}

/// A driver with a guest, and what is needed to do by hand what it does.
struct Subject {
    driver: Driver,
    program: Program,
    binary: PathBuf,
    dir: PathBuf,
}

/// What a base consists of.
struct Base {
    memory: PathBuf,
    state: PathBuf,
}

/// Every driver there is.
pub fn bench(dir: &Path) -> anyhow::Result<Vec<Row>> {
    let runtime = tokio::runtime::Runtime::new()?;
    let store = repository().join("target/tmp/programs");
    let mut subjects = vec![Subject {
        driver: Driver::Qemu,
        program: Program::qemu(Path::new("qemu-system-x86_64"), &store)?,
        binary: "qemu-system-x86_64".into(),
        dir: dir.join("qemu"),
    }];
    let binary = std::env::var_os("PILOTLIGHT_FIRECRACKER").map_or("firecracker".into(), PathBuf::from);
    match vmm::firecracker_version(&binary) {
        Ok(_) if Path::new("/dev/kvm").exists() => {
            let program = Program::plain(&binary, &store)?;
            subjects.push(Subject { driver: Driver::Firecracker, program, binary, dir: dir.join("firecracker") });
        }
        Ok(_) => eprintln!("no /dev/kvm: Firecracker is left out"),
        Err(error) => eprintln!("{error}: it is left out"),
    }
    let mut rows = Vec::new();
    for subject in subjects {
        rows.extend(subject.bench(&runtime)?);
    }
    Ok(rows)
}

impl Subject {
    fn bench(&self, runtime: &tokio::runtime::Runtime) -> anyhow::Result<Vec<Row>> {
        fs::create_dir_all(&self.dir)?;
        let name = self.driver.name();
        let base = runtime.block_on(self.base())?;
        let (mut ours, mut floor, mut jails, mut resident) = (vec![], vec![], vec![], 0);
        for round in 0..WARM_UPS + ROUNDS {
            eprintln!("{name} {round}/{ROUNDS}");
            let by_hand = self.by_hand(&base, round)?;
            let (took, jail, beside) = runtime.block_on(self.restore(&base, round))?;
            if round >= WARM_UPS {
                floor.extend(by_hand);
                ours.push(took);
                jails.push(jail);
                resident = beside;
            }
        }
        let mut rows = quantiles(GROUP, &format!("{name}: restore → first guest byte"), ours, floor);
        rows.extend(quantiles(GROUP, &format!("{name}: jail, up to the start of the program"), jails, vec![]));
        rows.push(bytes_row(&format!("{name}: resident beside guest pages, idle"), resident)?);
        Ok(rows)
    }

    fn spec(&self, name: &str, uid: u32, memory: MemoryBacking) -> anyhow::Result<VmSpec> {
        let dir = self.dir.join(name);
        fs::create_dir_all(&dir)?;
        let kernel = self.dir.join("guest");
        let (image, accel) = match self.driver {
            Driver::Qemu => (multiboot::guest(), Accel::Tcg),
            Driver::Firecracker => (toy::elf(), Accel::Kvm),
        };
        fs::write(&kernel, image)?;
        Ok(VmSpec {
            name: name.to_owned(),
            driver: self.driver,
            program: self.program.clone(),
            pager: None,
            jail: Jail { uid, cgroup: Some(format!("pilotlight-bench/{uid}").into()), limits: Limits::of(1) },
            arch: Arch::host().context("guests run on x86-64 and Arm")?,
            accel,
            vcpus: 1,
            memory_mib: MEMORY_MIB,
            kernel,
            initrd: None,
            cmdline: String::new(),
            disks: vec![],
            memory,
            network: None,
            dir,
        })
    }

    async fn base(&self) -> anyhow::Result<Base> {
        let base = Base { memory: self.dir.join("memory.img"), state: self.dir.join("device.state") };
        let vm = Vm::boot(&self.spec("build", FIRST_UID, MemoryBacking::Shared(base.memory.clone()))?).await?;
        first_byte(&vm).await?;
        vm.pause().await?;
        vm.snapshot_full(&base.state).await?;
        vm.kill().await?;
        for path in [&base.memory, &base.state] {
            // As a host does with a version's files: every jailed user reads them, none owns them.
            fs::set_permissions(path, fs::Permissions::from_mode(0o444))?;
        }
        Ok(base)
    }

    /// Through the driver: to the first byte, the jail of it, and what stays resident.
    async fn restore(&self, base: &Base, round: usize) -> anyhow::Result<(Duration, Duration, u64)> {
        let memory = MemoryBacking::CopyOnWrite(base.memory.clone());
        let spec = self.spec(&format!("vm-{round}"), FIRST_UID + 1 + round as u32, memory)?;
        let begin = Instant::now();
        let vm = Vm::restore(&spec, &base.state, None).await?;
        vm.resume().await?;
        first_byte(&vm).await?;
        let took = begin.elapsed();
        let jail = vm.jail_time().context("it was started here")?;
        let beside = private_beside(vm.pid(), &base.memory)?;
        vm.kill().await?;
        Ok((took, jail, beside))
    }

    /// As a careful person would; `None` if there is nothing to do it with.
    fn by_hand(&self, base: &Base, round: usize) -> anyhow::Result<Option<Duration>> {
        match self.driver {
            Driver::Qemu => self.qemu_by_hand(base).map(Some),
            Driver::Firecracker => {
                let jailer = self.binary.with_file_name("jailer");
                if jailer.is_file() { self.jailer_by_hand(&jailer, base, round).map(Some) } else { Ok(None) }
            }
        }
    }

    /// A plain QEMU with the arguments a driver gives it, paths in the place of descriptors.
    fn qemu_by_hand(&self, base: &Base) -> anyhow::Result<Duration> {
        let dir = self.dir.join("by-hand");
        fs::create_dir_all(&dir)?;
        let path = |name: &str| dir.join(name).to_string_lossy().into_owned();
        for name in ["qmp.sock", "console.sock", "incoming.sock"] {
            // Absent at the first time.
            let _ = fs::remove_file(dir.join(name));
        }
        let begin = Instant::now();
        let child = Command::new(&self.binary)
            .args(["-nodefaults", "-no-user-config", "-no-reboot", "-S", "-display", "none"])
            .args([
                "-machine",
                "pc-q35-6.2,usb=off,sata=off,smbus=off,vmport=off,smm=off,mem-merge=off,memory-backend=ram",
            ])
            .args(["-accel", "tcg,thread=multi,tb-size=256", "-cpu", "max", "-smp", "cpus=1"])
            .args(["-m", &format!("size={MEMORY_MIB}M"), "-object"])
            .arg(format!(
                "memory-backend-file,id=ram,size={MEMORY_MIB}M,share=off,reserve=off,prealloc=off,mem-path={}",
                base.memory.display()
            ))
            .args(["-qmp", &format!("unix:{},server=on,wait=off", path("qmp.sock"))])
            .args(["-chardev", &format!("socket,id=console,path={},server=on,wait=off", path("console.sock"))])
            .args(["-serial", "chardev:console", "-object", "rng-builtin,id=random"])
            .args(["-device", "virtio-rng-pci,id=rng0,rng=random,addr=0x3"])
            .args(["-global", "migration.send-configuration=off", "-incoming", "defer"])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("starting QEMU")?;
        let _child = Ended(child);
        let mut qmp = bare::Qmp::connect(&dir.join("qmp.sock"))?;
        bare::load(&mut qmp, &dir.join("incoming.sock"), &base.state)?;
        let mut console = bare::connect(&dir.join("console.sock"))?;
        console.set_read_timeout(Some(STEP_MAX))?;
        console.read_exact(&mut [0])?;
        Ok(begin.elapsed())
    }

    /// The jailer, then curl. Placing the files is not timed.
    fn jailer_by_hand(&self, jailer: &Path, base: &Base, round: usize) -> anyhow::Result<Duration> {
        let id = format!("hand{round}");
        let jails = self.dir.join("jails");
        let root = jails.join("firecracker").join(&id).join("root");
        let binary = jails.join("firecracker-binary/firecracker");
        fs::create_dir_all(&root)?;
        fs::create_dir_all(binary.parent().context("it has a directory")?)?;
        fs::copy(&self.binary, &binary)?;
        for (from, to) in [(&base.memory, "mem"), (&base.state, "state")] {
            fs::hard_link(from, root.join(to))?;
        }
        let uid = (FIRST_UID + 500 + round as u32).to_string();
        let begin = Instant::now();
        let mut child = Command::new(jailer)
            .args(["--id", &id, "--uid", &uid, "--gid", &uid, "--cgroup-version", "2", "--exec-file"])
            .arg(&binary)
            .arg("--chroot-base-dir")
            .arg(&jails)
            .args(["--", "--api-sock", "/s", "--level", "Off"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("starting the jailer")?;
        let mut console = child.stdout.take().context("its output is a pipe")?;
        let _child = Ended(child);
        let socket = root.join("s");
        while !socket.exists() {
            ensure!(begin.elapsed() < STEP_MAX, "the jailer does not come up");
            std::thread::sleep(Duration::from_micros(200));
        }
        let body = json!({
            "snapshot_path": "/state", "mem_backend": { "backend_type": "File", "backend_path": "/mem" },
            "track_dirty_pages": true, "resume_vm": true,
        });
        loop {
            let loaded = Command::new("curl")
                .args(["-sS", "--fail", "-o", "/dev/null", "-X", "PUT", "http://localhost/snapshot/load", "-d"])
                .arg(body.to_string())
                .arg("--unix-socket")
                .arg(&socket)
                .stderr(Stdio::null())
                .status()
                .context("running curl")?;
            if loaded.success() {
                break;
            }
            ensure!(begin.elapsed() < STEP_MAX, "the snapshot is not loaded");
        }
        console.read_exact(&mut [0])?;
        let took = begin.elapsed();
        drop(_child);
        fs::remove_dir_all(jails.join("firecracker"))?;
        Ok(took)
    }
}

/// A process that ends with its owner.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn first_byte(vm: &Vm) -> anyhow::Result<()> {
    let mut console = vm.console().await?;
    tokio::time::timeout(STEP_MAX, console.read_exact(&mut [0])).await.context("the guest says nothing")??;
    Ok(())
}
