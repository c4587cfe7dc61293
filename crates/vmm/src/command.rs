//! The command line: a pure function of the spec and of the descriptors the process inherits.

use std::ffi::{OsStr, OsString};
use std::os::fd::RawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use crate::spec::{Accel, MemoryBacking, VmSpec};

/// How the machine begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Begin {
    /// At the kernel.
    Boot,
    /// With device state that will be sent to it.
    Incoming,
}

/// Numbers of the listening sockets the process inherits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Listeners {
    pub(crate) qmp: RawFd,
    pub(crate) console: RawFd,
}

/// First PCI slot of the disks. Slots are fixed so that a device keeps its address, which the saved state names,
/// whatever else the machine has.
const FIRST_DISK_SLOT: usize = 0x10;

/// Translated code is a cache: this much (MiB) holds a busy guest's, and the default of 1 GiB per VM would let
/// emulated guests crowd out each other's memory.
const TCG_CACHE_MIB: u32 = 256;

/// All arguments after the program's name.
pub(crate) fn arguments(spec: &VmSpec, begin: Begin, listeners: Listeners) -> Vec<OsString> {
    let mut args = Args(Vec::with_capacity(64));
    args.flags(&["-nodefaults", "-no-user-config", "-no-reboot", "-S"]);
    args.option("-display", "none");
    args.option("-name", format!("guest={}", spec.name));
    args.option("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");

    let (cpu, accel) = match spec.accel {
        Accel::Kvm => ("host,migratable=on", "kvm".to_owned()),
        Accel::Tcg => ("max", format!("tcg,thread=multi,tb-size={TCG_CACHE_MIB}")),
    };
    // mem-merge and dump-guest-core off: guests share nothing by content, and no core dump holds their memory.
    args.option(
        "-machine",
        "pc-q35-6.2,usb=off,sata=off,smbus=off,vmport=off,smm=off,mem-merge=off,dump-guest-core=off,\
         suppress-vmdesc=on,memory-backend=ram",
    );
    args.option("-accel", accel);
    args.option("-cpu", cpu);
    args.option("-smp", format!("cpus={}", spec.vcpus));
    args.option("-m", format!("size={}M", spec.memory_mib));
    let (path, share) = match &spec.memory {
        MemoryBacking::Shared(path) => (path, "on"),
        MemoryBacking::CopyOnWrite(path) => (path, "off"),
    };
    args.with_path(
        "-object",
        &format!(
            "memory-backend-file,id=ram,size={}M,share={share},reserve=off,prealloc=off,mem-path=",
            spec.memory_mib
        ),
        path.as_os_str(),
        "",
    );

    for (chardev, fd) in [("qmp", listeners.qmp), ("console", listeners.console)] {
        args.option("-chardev", format!("socket,id={chardev},fd={fd},server=on,wait=off"));
    }
    args.option("-mon", "chardev=qmp,mode=control");
    args.option("-serial", "chardev:console");

    for (index, disk) in spec.disks.iter().enumerate() {
        // Through the page cache, and a guest's flush does not wait for the device: after a power cut the VM's
        // memory is gone and with it the use of its disk. What must last is synced when the state is saved.
        let mode = if disk.read_only {
            "read-only=on"
        } else {
            "read-only=off,discard=unmap,detect-zeroes=unmap,cache.no-flush=on"
        };
        args.with_path(
            "-blockdev",
            &format!("driver=raw,node-name=disk{index},{mode},file.driver=file,file.aio=threads,file.filename="),
            disk.path.as_os_str(),
            "",
        );
        args.option(
            "-device",
            format!("virtio-blk-pci,id=vd{index},drive=disk{index},addr={:#x}", FIRST_DISK_SLOT + index),
        );
    }
    if let Some(network) = &spec.network {
        args.option("-netdev", format!("tap,id=net0,ifname={},script=no,downscript=no,vhost=off", network.tap));
        let [a, b, c, d, e, f] = network.guest_mac;
        args.option(
            "-device",
            format!(
                "virtio-net-pci,id=eth0,netdev=net0,mac={a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x},romfile=,addr=0x2"
            ),
        );
    }
    args.option("-object", "rng-random,id=random,filename=/dev/urandom");
    args.option("-device", "virtio-rng-pci,id=rng0,rng=random,addr=0x3");

    match begin {
        Begin::Boot => {
            args.with_path("-kernel", "", spec.kernel.as_os_str(), "");
            if let Some(initrd) = &spec.initrd {
                args.with_path("-initrd", "", initrd.as_os_str(), "");
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

    /// An option whose value holds a path. Inside a list of `key=value` a comma in the path is doubled; an
    /// option that is only a path is taken as it is.
    fn with_path(&mut self, flag: &str, before: &str, path: &OsStr, after: &str) {
        let mut value = before.as_bytes().to_vec();
        for &byte in path.as_bytes() {
            value.push(byte);
            if byte == b',' && !before.is_empty() {
                value.push(b',');
            }
        }
        value.extend_from_slice(after.as_bytes());
        self.option(flag, OsString::from_vec(value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{Disk, Network};

    fn spec() -> VmSpec {
        VmSpec {
            name: "vm-1".into(),
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
            binary: None,
        }
    }

    fn line(spec: &VmSpec, begin: Begin) -> Vec<String> {
        arguments(spec, begin, Listeners { qmp: 7, console: 8 })
            .into_iter()
            .map(|arg| arg.into_string().expect("test paths are UTF-8"))
            .collect()
    }

    fn value<'a>(line: &'a [String], flag: &str) -> Option<&'a str> {
        let at = line.iter().position(|arg| arg == flag)?;
        Some(&line[at + 1])
    }

    #[test]
    fn commas_in_paths_cannot_become_options() {
        let line = line(&spec(), Begin::Boot);
        assert!(line.iter().any(|arg| arg.ends_with("mem-path=/mem,,ory")));
        assert!(line.iter().any(|arg| arg.ends_with("file.filename=/data/a,,b/root")));
        assert_eq!(value(&line, "-kernel"), Some("/k,ernel"));
        assert_eq!(value(&line, "-append"), Some("console=ttyS0 a,b"));
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
    fn names_that_would_be_read_as_options_are_refused() {
        for name in ["", "a,process=b", "a b", "a/b"] {
            assert!(VmSpec { name: name.into(), ..spec() }.check().is_err(), "{name:?}");
        }
        assert!(spec().check().is_ok());
    }
}
