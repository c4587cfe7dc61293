//! The Firecracker program: is it one for this machine, and which?

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};

use super::release::Version;

/// The most of its answer that is read; it is one line.
const ANSWER_BYTES_MAX: u64 = 4096;

/// How often an ending program is looked at.
const LOOK: Duration = Duration::from_millis(5);

/// Refuses what is not an ELF program for this architecture, before it is run.
pub fn check_machine(path: &Path, arch: &str) -> anyhow::Result<()> {
    let mut header = [0; 20];
    File::open(path).and_then(|mut file| file.read_exact(&mut header)).context("it has no ELF header")?;
    // ELF: e_ident with its magic, 64 bits (2), least significant byte first (1); then e_type and e_machine.
    let [b'\x7f', b'E', b'L', b'F', 2, 1, .., kind, 0, low, high] = header else {
        bail!("it is not a 64-bit ELF file");
    };
    // ET_EXEC, or ET_DYN as a static position-independent program says.
    ensure!(matches!(kind, 2 | 3), "it is an ELF file of kind {kind}, not a program");
    let machine = u16::from_le_bytes([low, high]);
    // EM_X86_64 and EM_AARCH64.
    let wanted = match arch {
        "x86_64" => 62,
        "aarch64" => 183,
        _ => bail!("no Firecracker is known for {arch}"),
    };
    ensure!(machine == wanted, "it is for ELF machine {machine}, and {arch} is {wanted}");
    Ok(())
}

/// The version it says it is, within this time.
pub fn version(path: &Path, within: Duration) -> anyhow::Result<Version> {
    let until = Instant::now() + within;
    let mut child = Running(start(path, until)?);
    let (send, receive) = mpsc::channel();
    // In a thread, because a read from a pipe cannot be given up. It ends with the pipe: at the latest when the
    // program is killed.
    let pipe = child.0.stdout.take().context("it has no standard output")?;
    thread::spawn(move || {
        let mut answer = Vec::new();
        let read = pipe.take(ANSWER_BYTES_MAX).read_to_end(&mut answer);
        let _ = send.send(read.map(|_| answer));
    });
    let late = || format!("{} --version did not end within {within:?}", path.display());
    let answer = receive.recv_timeout(within).ok().with_context(late)?.context("cannot read its answer")?;
    let status = loop {
        match child.0.try_wait().context("cannot wait for it")? {
            Some(status) => break status,
            None if Instant::now() >= until => bail!(late()),
            None => thread::sleep(LOOK),
        }
    };
    let answer = String::from_utf8_lossy(&answer);
    let line = answer.lines().next().unwrap_or_default();
    match line.strip_prefix("Firecracker ").map(str::parse) {
        Some(Ok(version)) if status.success() => Ok(version),
        _ => {
            let line: String = line.chars().take(200).collect();
            bail!("{} --version ends with {status} and says {line:?}, not \"Firecracker vX.Y.Z\"", path.display())
        }
    }
}

fn start(path: &Path, until: Instant) -> anyhow::Result<Child> {
    loop {
        let started = Command::new(path)
            .arg("--version")
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        match started {
            // A thread that starts another program holds, for the moment before that program is executed, all files
            // that are open here, and one of them may have been ours for writing.
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy && Instant::now() < until => {
                thread::sleep(LOOK);
            }
            started => return started.with_context(|| format!("cannot run {}", path.display())),
        }
    }
}

/// Ends with this.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Both say nothing but that it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
