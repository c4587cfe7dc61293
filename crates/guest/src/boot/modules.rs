//! Kernel modules: `/modules/order` names them in loading order, the files lie beside it.
//!
//! A loadable module takes its parameters from whoever loads it, not from the kernel's command line; Firecracker
//! announces its devices there (`virtio_mmio.device=…`), so they are handed on as modprobe would do.

use super::{BootError, console};
use rustix::io::Errno;
use rustix::system::finit_module;
use std::ffi::CString;
use std::fs::File;
use std::path::Path;

const MODULES: &str = "/modules";

/// Loads every module of the list. One that is loaded or built in already is fine, and so is one whose hardware is
/// not there: the same initramfs serves more than one kind of VM.
pub(crate) fn load() -> Result<(), BootError> {
    let order = read(&format!("{MODULES}/order"))?;
    let command_line = read("/proc/cmdline")?;
    for name in names(&order) {
        load_one(name, &command_line)?;
    }
    Ok(())
}

fn load_one(name: &str, command_line: &str) -> Result<(), BootError> {
    let refused = |source: std::io::Error| BootError::Module { name: name.to_owned(), source };
    let file = File::open(Path::new(MODULES).join(name)).map_err(refused)?;
    let parameters =
        CString::new(parameters(name, command_line)).map_err(|error| refused(std::io::Error::other(error)))?;
    match finit_module(&file, &parameters, 0) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(Errno::NODEV) => {
            console::say(&format!("pilotlight-agent: no hardware for the kernel module {name}"));
            Ok(())
        }
        Err(errno) => Err(refused(errno.into())),
    }
}

fn read(path: &str) -> Result<String, BootError> {
    std::fs::read_to_string(path).map_err(|source| BootError::File { verb: "read", path: path.to_owned(), source })
}

/// The file names in an order file: one a line, blank lines and `#` comments aside.
fn names(order: &str) -> impl Iterator<Item = &str> {
    order.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'))
}

/// The parameters that the kernel's command line holds for a module file, as the kernel wants them.
fn parameters(file: &str, command_line: &str) -> String {
    let module = file.strip_suffix(".ko").unwrap_or(file).replace('-', "_");
    let mut found = Vec::new();
    for word in command_line.split_whitespace() {
        // What follows a bare `--` is for init.
        if word == "--" {
            break;
        }
        if let Some((owner, parameter)) = word.split_once('.')
            && owner.replace('-', "_") == module
        {
            found.push(parameter);
        }
    }
    found.join(" ")
}

#[cfg(test)]
mod tests {
    use super::{names, parameters};

    #[test]
    fn order_keeps_the_order_and_skips_what_is_no_name() {
        let order = "# drivers\nvirtio_ring.ko\n\n  virtio.ko  \nvirtio-rng.ko\n";
        assert_eq!(names(order).collect::<Vec<_>>(), ["virtio_ring.ko", "virtio.ko", "virtio-rng.ko"]);
    }

    #[test]
    fn parameters_come_from_the_command_line_in_either_spelling() {
        let line = "quiet virtio_mmio.device=4K@0xd0000000:5 virtio-mmio.device=4K@0xd0001000:6 \
                    virtio_net.napi_tx=1 console=ttyS0 -- virtio_mmio.device=no";
        assert_eq!(parameters("virtio_mmio.ko", line), "device=4K@0xd0000000:5 device=4K@0xd0001000:6");
        assert_eq!(parameters("virtio-rng.ko", line), "");
        assert_eq!(parameters("virtio.ko", line), "");
    }
}
