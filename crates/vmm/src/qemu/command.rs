//! The command line: a pure function of the spec and of the descriptors the process inherits.

use std::ffi::OsString;
use std::os::fd::RawFd;

use crate::jail::opener::MEMORY_PATH;
use crate::spec::{Accel, Arch, MemoryBacking, VmSpec};

/// How the machine begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Begin {
    /// At the kernel.
    Boot,
    /// With device state that will be sent to it.
    Incoming,
}

/// Numbers of the descriptors the process inherits: in its jail it can open next to nothing by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Inherited {
    pub(crate) qmp: RawFd,
    pub(crate) console: RawFd,
    /// The network card's tap.
    pub(crate) tap: Option<RawFd>,
    /// The disks, in order.
    pub(crate) disks: Vec<RawFd>,
}

/// Where the jail shows the kernel.
pub(crate) const KERNEL: &str = "/kernel";
/// Where the jail shows its initramfs.
pub(crate) const INITRD: &str = "/initrd";

/// First PCI slot of the disks. Slots are fixed so that a device keeps its address, which the saved state names,
/// whatever else the machine has.
const FIRST_DISK_SLOT: usize = 0x10;

/// Translated code is a cache: this much (MiB) holds a busy guest's, and the default of 1 GiB per VM would let
/// emulated guests crowd out each other's memory.
const TCG_CACHE_MIB: u32 = 256;

/// All arguments after the program's name.
pub(crate) fn arguments(spec: &VmSpec, begin: Begin, inherited: &Inherited) -> Vec<OsString> {
    let mut args = Args(Vec::with_capacity(64));
    args.flags(&["-nodefaults", "-no-user-config", "-no-reboot", "-S"]);
    args.option("-display", "none");
    args.option("-name", format!("guest={}", spec.name));
    args.option("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");

    let (cpu, accel) = match spec.accel {
        Accel::Kvm => ("host,migratable=on", "kvm".to_owned()),
        Accel::Tcg => ("max", format!("tcg,thread=multi,tb-size={TCG_CACHE_MIB}")),
    };
    // The machine's version is pinned: a snapshot is of one machine. mem-merge and dump-guest-core off: guests share
    // nothing by content, and no core dump holds their memory.
    let machine = match spec.arch {
        Arch::X86_64 => "pc-q35-6.2,usb=off,sata=off,smbus=off,vmport=off,smm=off",
        Arch::Aarch64 => "virt-6.2,gic-version=3",
    };
    let common = "mem-merge=off,dump-guest-core=off,suppress-vmdesc=on,memory-backend=ram";
    args.option("-machine", format!("{machine},{common}"));
    args.option("-accel", accel);
    args.option("-cpu", cpu);
    args.option("-smp", format!("cpus={}", spec.vcpus));
    args.option("-m", format!("size={}M", spec.memory_mib));
    let share = match &spec.memory {
        MemoryBacking::Shared(_) => "on",
        MemoryBacking::CopyOnWrite(_) => "off",
    };
    args.option(
        "-object",
        format!(
            "memory-backend-file,id=ram,size={}M,share={share},reserve=off,prealloc=off,mem-path={MEMORY_PATH}",
            spec.memory_mib
        ),
    );

    for (chardev, fd) in [("qmp", inherited.qmp), ("console", inherited.console)] {
        args.option("-chardev", format!("socket,id={chardev},fd={fd},server=on,wait=off"));
    }
    args.option("-mon", "chardev=qmp,mode=control");
    args.option("-serial", "chardev:console");

    for (index, (disk, fd)) in spec.disks.iter().zip(&inherited.disks).enumerate() {
        // Through the page cache, and a guest's flush does not wait for the device: after a power cut the VM's
        // memory is gone and with it the use of its disk. What must last is synced when the state is saved.
        let mode = if disk.read_only {
            "read-only=on"
        } else {
            "read-only=off,discard=unmap,detect-zeroes=unmap,cache.no-flush=on"
        };
        args.option("-add-fd", format!("fd={fd},set={index},opaque=disk{index}"));
        args.option(
            "-blockdev",
            format!(
                "driver=raw,node-name=disk{index},{mode},file.driver=file,file.aio=threads,\
                 file.filename=/dev/fdset/{index}"
            ),
        );
        args.option(
            "-device",
            format!("virtio-blk-pci,id=vd{index},drive=disk{index},addr={:#x}", FIRST_DISK_SLOT + index),
        );
    }
    if let (Some(network), Some(tap)) = (&spec.network, inherited.tap) {
        args.option("-netdev", format!("tap,id=net0,fd={tap},vhost=off"));
        let [a, b, c, d, e, f] = network.guest_mac;
        args.option(
            "-device",
            format!(
                "virtio-net-pci,id=eth0,netdev=net0,mac={a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x},romfile=,addr=0x2"
            ),
        );
    }
    args.option("-object", "rng-builtin,id=random");
    args.option("-device", "virtio-rng-pci,id=rng0,rng=random,addr=0x3");

    match begin {
        Begin::Boot => {
            args.option("-kernel", KERNEL);
            if spec.initrd.is_some() {
                args.option("-initrd", INITRD);
            }
            if !spec.cmdline.is_empty() {
                args.option("-append", &spec.cmdline);
            }
        }
        // Kernel and initramfs are in the guest's memory already.
        Begin::Incoming => {
            // What `xen-save-devices-state` writes has no configuration section.
            args.option("-global", "migration.send-configuration=off");
            args.option("-incoming", "defer");
        }
    }
    args.0
}

/// The argument list under construction.
struct Args(Vec<OsString>);

impl Args {
    fn flags(&mut self, flags: &[&str]) {
        self.0.extend(flags.iter().map(OsString::from));
    }

    fn option(&mut self, flag: &str, value: impl Into<OsString>) {
        self.0.push(flag.into());
        self.0.push(value.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jail::{Jail, Limits};
    use crate::spec::{Disk, Driver, Network};

    fn spec() -> VmSpec {
        VmSpec {
            name: "vm-1".into(),
            driver: Driver::Qemu,
            program: crate::jail::Program::pretend(),
            pager: None,
            jail: Jail { uid: 1, cgroup: None, limits: Limits::of(2) },
            arch: Arch::host().expect("tests run where guests do"),
            accel: Accel::Tcg,
            vcpus: 2,
            memory_mib: 512,
            kernel: "/k,ernel".into(),
            initrd: Some("/initrd".into()),
            cmdline: "console=ttyS0 a,b".into(),
            disks: vec![
                Disk { path: "/data/a,b/root".into(), read_only: true },
                Disk { path: "/scratch".into(), read_only: false },
            ],
            memory: MemoryBacking::CopyOnWrite("/mem,ory".into()),
            network: Some(Network {
                namespace: "/run/netns/x".into(),
                tap: "tap0".into(),
                guest_mac: [2, 0, 0, 0, 0, 0xab],
            }),
            dir: "/vm".into(),
        }
    }

    fn line(spec: &VmSpec, begin: Begin) -> Vec<String> {
        let tap = spec.network.as_ref().map(|_| 9);
        arguments(spec, begin, &Inherited { qmp: 7, console: 8, tap, disks: vec![10, 11] })
            .into_iter()
            .map(|arg| arg.into_string().expect("arguments are UTF-8"))
            .collect()
    }

    fn value<'a>(line: &'a [String], flag: &str) -> Option<&'a str> {
        let at = line.iter().position(|arg| arg == flag)?;
        Some(&line[at + 1])
    }

    #[test]
    fn no_path_of_the_host_is_told() {
        let line = line(&spec(), Begin::Boot);
        assert_eq!(value(&line, "-append"), Some("console=ttyS0 a,b"));
        for arg in &line {
            for path in ["/k,ernel", "/data", "/scratch", "/mem,ory", "/run", "/vm"] {
                assert!(!arg.contains(path), "{arg} tells of {path}");
            }
        }
    }

    #[test]
    fn a_restore_reads_no_kernel_and_waits_for_state() {
        let line = line(&spec(), Begin::Incoming);
        assert_eq!(value(&line, "-kernel"), None);
        assert_eq!(value(&line, "-initrd"), None);
        assert_eq!(value(&line, "-incoming"), Some("defer"));
    }

    #[test]
    fn devices_keep_their_slots_when_others_go() {
        let with = line(&spec(), Begin::Boot);
        let without = line(&VmSpec { network: None, ..spec() }, Begin::Boot);
        let slot = |line: &[String], device: &str| {
            line.iter().find(|arg| arg.starts_with(device)).and_then(|arg| arg.split("addr=").nth(1).map(str::to_owned))
        };
        for device in ["virtio-blk-pci,id=vd1", "virtio-rng-pci"] {
            assert!(slot(&with, device).is_some());
            assert_eq!(slot(&with, device), slot(&without, device));
        }
        assert!(!without.iter().any(|arg| arg.contains("virtio-net")));
    }

    #[test]
    fn what_would_be_misread_is_refused() {
        use crate::spec::SpecError;

        for name in ["", "a,process=b", "a b", "a/b"] {
            assert!(VmSpec { name: name.into(), ..spec() }.check().is_err(), "{name:?}");
        }
        assert!(spec().check().is_ok());
        let mut root = spec();
        root.jail.uid = 0;
        assert!(matches!(root.check(), Err(SpecError::Root)));
        let emulated = VmSpec { driver: Driver::Firecracker, ..spec() };
        assert!(matches!(emulated.check(), Err(SpecError::NeedsKvm { .. })));
        let other = if Arch::host() == Some(Arch::X86_64) { Arch::Aarch64 } else { Arch::X86_64 };
        assert!(VmSpec { arch: other, ..spec() }.check().is_ok(), "emulated");
        assert!(matches!(VmSpec { arch: other, accel: Accel::Kvm, ..spec() }.check(), Err(SpecError::Foreign { .. })));
    }
}
