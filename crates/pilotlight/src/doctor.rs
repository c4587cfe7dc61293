//! `pilotlight doctor`: what this machine can do, and what is chosen because of it.

use std::{fmt::Write as _, path::Path, process::Command};

use anyhow::bail;
use serde::Serialize;
use vmm::{Accel, KvmVerdict};

use crate::{
    cli::DoctorArguments,
    config::{Accelerator, Config},
};

/// Free disk below which a first image hardly fits.
const DISK_FREE_GIB_MIN: u64 = 4;

/// How guests are executed, and why.
pub struct Choice {
    /// For the host.
    pub accel: Accel,
    /// For people.
    pub name: &'static str,
    /// For people.
    pub because: String,
}

/// Decides by evidence, unless the configuration insists.
pub async fn choose_accelerator(wanted: Accelerator) -> anyhow::Result<Choice> {
    let tcg = |because| Choice { accel: Accel::Tcg, name: "QEMU, emulated", because };
    let kvm = |because| Choice { accel: Accel::Kvm, name: "QEMU with KVM", because };
    if wanted == Accelerator::Tcg {
        return Ok(tcg("the configuration says tcg".to_owned()));
    }
    let verdict = tokio::task::spawn_blocking(vmm::probe_kvm).await?;
    let words = kvm_words(&verdict);
    match (verdict, wanted) {
        (KvmVerdict::Usable { .. }, _) => Ok(kvm(words)),
        (_, Accelerator::Auto) => Ok(tcg(words)),
        (_, _) => bail!("the configuration insists on KVM, but {words}; set accelerator = \"auto\""),
    }
}

fn kvm_words(verdict: &KvmVerdict) -> String {
    let million = |per_second: &u64| format!("{:.1} million instructions/s", *per_second as f64 / 1e6);
    match verdict {
        KvmVerdict::Usable { instructions_per_second } => {
            format!("KVM is usable ({} in a throw-away VM)", million(instructions_per_second))
        }
        KvmVerdict::PresentButEmulated { instructions_per_second } => {
            format!("KVM is present but emulated ({} in a throw-away VM)", million(instructions_per_second))
        }
        KvmVerdict::Absent { reason } => format!("KVM is absent ({reason})"),
    }
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Finding {
    /// What.
    subject: &'static str,
    /// Can microVMs be served with it so?
    verdict: Verdict,
    /// What was found and, where it is not good, what to do.
    words: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Good,
    Slow,
    Bad,
}

/// Looks at everything and prints it; fails if microVMs cannot be served.
pub fn print(arguments: &DoctorArguments) -> anyhow::Result<()> {
    let mut config = Config::load_data(&arguments.data)?;
    config.use_assets(&arguments.assets);
    let verdict = vmm::probe_kvm();
    let findings = examine(&config, &verdict);
    let chosen = match (config.accelerator, &verdict) {
        (Accelerator::Tcg, _) => "QEMU, emulated: the configuration says tcg".to_owned(),
        (_, KvmVerdict::Usable { .. }) => "QEMU with KVM".to_owned(),
        (_, _) => "QEMU, emulated: works everywhere, about five times slower than the processor itself".to_owned(),
    };
    if arguments.json {
        println!("{}", serde_json::json!({ "findings": findings, "chosen": chosen }));
    } else {
        print!("{}", table(&findings));
        println!("\nguests run with: {chosen}");
    }
    match findings.iter().filter(|finding| finding.verdict == Verdict::Bad).count() {
        0 => Ok(()),
        count => bail!("{count} of these must be put right before microVMs can be served"),
    }
}

fn table(findings: &[Finding]) -> String {
    let mut text = String::new();
    for finding in findings {
        let mark = match finding.verdict {
            Verdict::Good => "ok  ",
            Verdict::Slow => "slow",
            Verdict::Bad => "BAD ",
        };
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{mark}  {:<14} {}", finding.subject, finding.words);
    }
    text
}

fn examine(config: &Config, kvm: &KvmVerdict) -> Vec<Finding> {
    let finding = |subject, good: bool, words: String| Finding {
        subject,
        verdict: if good { Verdict::Good } else { Verdict::Bad },
        words,
    };
    let soft = |subject, good: bool, words: String| Finding {
        subject,
        verdict: if good { Verdict::Good } else { Verdict::Slow },
        words,
    };
    let file = |subject, path: &Path| match path.is_file() {
        true => finding(subject, true, path.display().to_string()),
        false => finding(subject, false, format!("not at {}: run `make setup`", path.display())),
    };
    let root = rustix::process::geteuid().is_root();
    let mut findings = vec![
        finding("permissions", root, if root { "root".into() } else { "not root: run it with sudo".into() }),
        soft("KVM", matches!(kvm, KvmVerdict::Usable { .. }), kvm_words(kvm)),
    ];
    let qemu = config.qemu.as_deref().unwrap_or(Path::new("qemu-system-x86_64"));
    findings.push(match vmm::qemu_version(qemu) {
        Ok(version) => finding("QEMU", true, version),
        Err(error) => finding("QEMU", false, format!("{error}: run `make setup`")),
    });
    findings.push(file("guest kernel", &config.kernel()));
    findings.push(file("initramfs", &config.initramfs()));
    let tun = Path::new("/dev/net/tun").exists();
    findings.push(finding(
        "tap",
        tun,
        if tun { "/dev/net/tun".into() } else { "no /dev/net/tun: load the kernel module tun".into() },
    ));
    for (subject, program, argument) in [
        ("nftables", "nft", "--version"),
        ("iproute2", "ip", "-V"),
        ("buildah", "buildah", "--version"),
        ("erofs-utils", "mkfs.erofs", "--version"),
        ("e2fsprogs", "mkfs.ext4", "-V"),
    ] {
        findings.push(program_finding(subject, program, argument));
    }
    findings.push(cgroups());
    findings.push(disk(&config.data_dir));
    findings.push(reflink(&config.data_dir));
    findings.push(localhost_names());
    findings
}

fn program_finding(subject: &'static str, program: &str, argument: &str) -> Finding {
    match Command::new(program).arg(argument).output() {
        Ok(output) => {
            let text = [output.stdout, output.stderr].concat();
            let text = String::from_utf8_lossy(&text);
            // One that knows no such flag answers with its usage; that it runs is what matters.
            let line = text.lines().next().filter(|_| output.status.success()).unwrap_or(program).trim();
            let line = line.chars().take(60).collect();
            Finding { subject, verdict: Verdict::Good, words: line }
        }
        Err(error) => {
            let words = format!("{program} cannot be run ({error}): run `make setup`");
            Finding { subject, verdict: Verdict::Bad, words }
        }
    }
}

fn cgroups() -> Finding {
    let v2 = std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
    let v1 = Path::new("/sys/fs/cgroup/memory/tasks").exists();
    let (verdict, words) = if v2.contains("memory") {
        (Verdict::Good, "version 2".to_owned())
    } else if v1 {
        (Verdict::Good, "version 1".to_owned())
    } else {
        (Verdict::Slow, "no memory controller: microVMs run without limits of their own".to_owned())
    };
    Finding { subject: "cgroups", verdict, words }
}

/// The nearest directory that exists: the data directory may not have been made yet.
fn existing(dir: &Path) -> &Path {
    dir.ancestors().find(|dir| dir.is_dir()).unwrap_or(Path::new("/"))
}

fn disk(data_dir: &Path) -> Finding {
    let dir = existing(data_dir);
    match rustix::fs::statvfs(dir) {
        Ok(disk) => {
            let gib = disk.f_bavail.saturating_mul(disk.f_frsize) >> 30;
            let verdict = if gib >= DISK_FREE_GIB_MIN { Verdict::Good } else { Verdict::Bad };
            let words = format!("{gib} GiB free under {} (at least {DISK_FREE_GIB_MIN} wanted)", dir.display());
            Finding { subject: "disk", verdict, words }
        }
        Err(error) => Finding { subject: "disk", verdict: Verdict::Bad, words: format!("{}: {error}", dir.display()) },
    }
}

fn reflink(data_dir: &Path) -> Finding {
    let dir = existing(data_dir);
    let (from, to) = (dir.join(".pilotlight-reflink-a"), dir.join(".pilotlight-reflink-b"));
    let cloned = std::fs::write(&from, [0u8; 4096]).is_ok()
        && std::fs::File::open(&from)
            .and_then(|source| Ok((source, std::fs::File::create(&to)?)))
            .is_ok_and(|(source, target)| rustix::fs::ioctl_ficlone(&target, &source).is_ok());
    for path in [from, to] {
        let _ = std::fs::remove_file(path);
    }
    let words = if cloned { "files are cloned" } else { "none (ext4 has none): disks are copied, sparsely" };
    Finding { subject: "reflink", verdict: if cloned { Verdict::Good } else { Verdict::Slow }, words: words.into() }
}

fn localhost_names() -> Finding {
    use std::net::ToSocketAddrs;

    let good = ("x.lambda-microvm.localhost", 443).to_socket_addrs().is_ok();
    let words = if good {
        "names under .localhost resolve".to_owned()
    } else {
        "names under .localhost do not resolve outside browsers and curl: install libnss-myhostname".to_owned()
    };
    Finding { subject: "names", verdict: if good { Verdict::Good } else { Verdict::Slow }, words }
}
