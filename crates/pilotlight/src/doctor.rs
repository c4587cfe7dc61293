//! `pilotlight doctor`: what this machine can do, and what is chosen because of it.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::bail;
use serde::Serialize;
use vmm::{Accel, Driver, KvmVerdict};

use crate::{
    cli::DoctorArguments,
    config::{Accelerator, Config, Driver as Wanted},
};

/// Free disk below which a first image hardly fits.
const DISK_FREE_GIB_MIN: u64 = 4;

/// How guests are executed, and why.
#[derive(Debug)]
pub struct Choice {
    /// Which VMM.
    pub driver: Driver,
    /// Its program.
    pub program: PathBuf,
    /// On the processor, or emulated.
    pub accel: Accel,
    /// For people.
    pub name: &'static str,
    /// For people.
    pub because: String,
}

/// Decides by evidence, unless the configuration insists. Blocks for as long as the probe of KVM takes.
pub fn choose(config: &Config) -> anyhow::Result<Choice> {
    let kvm = match (config.accelerator, config.driver) {
        // Nothing hangs on it, and nothing needs it.
        (Accelerator::Tcg, Wanted::Auto | Wanted::Qemu) => KvmVerdict::Absent { reason: "not asked for".to_owned() },
        _ => vmm::probe_kvm(),
    };
    decide(config, &kvm, &vmm::firecracker_version(&config.firecracker()).map_err(|error| error.to_string()))
}

/// The decision, of what was found.
fn decide(config: &Config, kvm: &KvmVerdict, firecracker: &Result<String, String>) -> anyhow::Result<Choice> {
    let words = kvm_words(kvm);
    let qemu = |accel, name, because| Choice { driver: Driver::Qemu, program: config.qemu(), accel, name, because };
    let firecracker_with = |because| Choice {
        driver: Driver::Firecracker,
        program: config.firecracker(),
        accel: Accel::Kvm,
        name: "Firecracker",
        because,
    };
    let usable = matches!(kvm, KvmVerdict::Usable { .. });
    match (config.driver, config.accelerator) {
        (Wanted::Firecracker, Accelerator::Tcg) => {
            bail!(
                "driver = \"firecracker\" and accelerator = \"tcg\" contradict each other: Firecracker has no emulation"
            )
        }
        (Wanted::Firecracker, _) => match (usable, firecracker) {
            (true, Ok(version)) => {
                Ok(firecracker_with(format!("the configuration says so; {words}; version {version}")))
            }
            (false, _) => bail!("driver = \"firecracker\" needs KVM, but {words}; set driver = \"auto\""),
            (true, Err(error)) => bail!("driver = \"firecracker\": {error}; run `pilotlight setup firecracker`"),
        },
        (_, Accelerator::Tcg) => Ok(qemu(Accel::Tcg, "QEMU, emulated", "the configuration says tcg".to_owned())),
        (Wanted::Auto, _) if usable && firecracker.is_ok() => {
            Ok(firecracker_with(format!("{words}; version {}", firecracker.as_deref().unwrap_or_default())))
        }
        (_, _) if usable => Ok(qemu(Accel::Kvm, "QEMU with KVM", words)),
        (_, Accelerator::Kvm) => {
            bail!("the configuration insists on KVM, but {words}; set accelerator = \"auto\"")
        }
        (_, Accelerator::Auto) => Ok(qemu(Accel::Tcg, "QEMU, emulated", words)),
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
    let firecracker = vmm::firecracker_version(&config.firecracker()).map_err(|error| error.to_string());
    let chosen = match decide(&config, &verdict, &firecracker) {
        Ok(choice) => format!("{}: {}", choice.name, choice.because),
        Err(error) => format!("nothing: {error}"),
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
    findings.push(match vmm::qemu_version(&config.qemu()) {
        Ok(version) => finding("QEMU", true, version),
        Err(error) => finding("QEMU", false, format!("{error}: run `make setup`")),
    });
    findings.push(match vmm::firecracker_version(&config.firecracker()) {
        Ok(version) => soft("Firecracker", true, version),
        Err(error) => {
            soft("Firecracker", false, format!("{error}: machines with KVM can `pilotlight setup firecracker`"))
        }
    });
    findings.push(file("guest kernel", &config.kernel(Driver::Qemu)));
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
    findings.extend(side_channels());
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
    let found = vmm::Hierarchies::find();
    let controllers = found.controllers();
    let missing: Vec<_> = ["memory", "cpu", "pids"].into_iter().filter(|name| !controllers.contains(name)).collect();
    let (verdict, words) = if missing.is_empty() {
        (Verdict::Good, format!("{}: {}", found.version(), controllers.join(", ")))
    } else {
        (Verdict::Slow, format!("no controller for {}: microVMs run without these limits", missing.join(", ")))
    };
    Finding { subject: "cgroups", verdict, words }
}

/// What of the host lets guests learn of each other through shared hardware; see docs/threat-model.md.
fn side_channels() -> Vec<Finding> {
    let read = |path: &str| std::fs::read_to_string(path).map(|text| text.trim().to_owned()).ok();
    let mut findings = Vec::new();
    let mut finding = |subject, good: bool, words: String| {
        findings.push(Finding { subject, verdict: if good { Verdict::Good } else { Verdict::Slow }, words });
    };
    match read("/sys/devices/system/cpu/smt/active").as_deref() {
        Some("1") => {
            finding("SMT", false, "on: guests on one core can watch each other; see docs/threat-model.md".into())
        }
        _ => finding("SMT", true, "off".into()),
    }
    match read("/sys/kernel/mm/ksm/run").as_deref() {
        Some("1") => finding("KSM", false, "on: equal pages of different programs are merged, and can be told".into()),
        _ => finding("KSM", true, "off".into()),
    }
    let vulnerable: Vec<_> = std::fs::read_dir("/sys/devices/system/cpu/vulnerabilities")
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| std::fs::read_to_string(entry.path()).is_ok_and(|text| text.starts_with("Vulnerable")))
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    match vulnerable.as_slice() {
        [] => finding("processor", true, "no known flaw without a counter-measure".into()),
        names => finding("processor", false, format!("vulnerable, says the kernel: {}", names.join(", "))),
    }
    findings
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_choice_is_by_evidence_unless_the_configuration_insists() {
        let usable = KvmVerdict::Usable { instructions_per_second: 1_000_000_000 };
        let emulated = KvmVerdict::PresentButEmulated { instructions_per_second: 1_000_000 };
        let absent = KvmVerdict::Absent { reason: "no".into() };
        let (there, missing) = (Ok("1.16.1".to_owned()), Err("there is none".to_owned()));
        let choice = |driver, accelerator, kvm: &KvmVerdict, firecracker: &Result<String, String>| {
            let config = Config { driver, accelerator, ..Config::default() };
            decide(&config, kvm, firecracker)
                .map(|choice| (choice.driver, choice.accel))
                .map_err(|error| error.to_string())
        };
        use Accelerator::{Auto, Kvm, Tcg};
        assert_eq!(choice(Wanted::Auto, Auto, &usable, &there), Ok((Driver::Firecracker, Accel::Kvm)));
        assert_eq!(choice(Wanted::Auto, Auto, &usable, &missing), Ok((Driver::Qemu, Accel::Kvm)));
        assert_eq!(choice(Wanted::Qemu, Auto, &usable, &there), Ok((Driver::Qemu, Accel::Kvm)));
        for kvm in [&emulated, &absent] {
            assert_eq!(choice(Wanted::Auto, Auto, kvm, &there), Ok((Driver::Qemu, Accel::Tcg)));
            assert!(choice(Wanted::Auto, Kvm, kvm, &there).unwrap_err().contains("accelerator"));
            assert!(choice(Wanted::Firecracker, Auto, kvm, &there).unwrap_err().contains("needs KVM"));
        }
        assert_eq!(choice(Wanted::Auto, Tcg, &usable, &there), Ok((Driver::Qemu, Accel::Tcg)));
        assert_eq!(choice(Wanted::Firecracker, Kvm, &usable, &there), Ok((Driver::Firecracker, Accel::Kvm)));
        assert!(choice(Wanted::Firecracker, Auto, &usable, &missing).unwrap_err().contains("setup firecracker"));
        assert!(choice(Wanted::Firecracker, Tcg, &usable, &there).unwrap_err().contains("contradict"));
    }
}
