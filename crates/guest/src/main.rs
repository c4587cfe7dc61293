//! PID 1 inside a microVM: the guest agent.
//!
//! It lives in the initramfs for ever, so nothing in the image's own files can replace it, and it is the only thing
//! that lives there. The app runs beside it as a container would, in its own mount and PID namespaces, rooted in an
//! overlay of the image's read-only disk and the scratch disk:
//!
//! ```text
//! initramfs /init (this) ── TCP from the host alone ──► control: start, restored, quiesce, park, status
//!   │                                                   connect: bytes to 127.0.0.1:port
//!   │                                                   shell: a terminal in the app's namespaces
//!   └─ clone(new PID and mount namespaces) ─► the app, PID 1 there, its root = /rootfs
//! ```
//!
//! One thread, no thread pool; for the moment before a suspend there are more, see [`park`]. After a restore under emulation
//! every instruction runs for the first time again, so what a first connection costs is how much *distinct* code lies between
//! `accept` and the first byte.

mod agent;
mod app;
mod boot;
mod connections;
mod control;
mod outbound;
mod output;
mod park;
mod restored;
mod serve;
mod shell;
mod stream;
mod sys;

use boot::BootError;
use std::convert::Infallible;

fn main() {
    if std::process::id() != 1 {
        eprintln!("the guest agent runs as PID 1 of a microVM and nowhere else");
        std::process::exit(1);
    }
    std::panic::set_hook(Box::new(|panic| boot::console::say(&format!("pilotlight-agent panicked: {panic}"))));
    let ended = std::panic::catch_unwind(boot_and_serve);
    if let Ok(Err(error)) = ended {
        boot::console::say(&format!("pilotlight-agent failed: {}", boot::console::chain(&error)));
    }
    boot::power_off()
}

/// The life of the agent, in the order it happens.
fn boot_and_serve() -> Result<Infallible, BootError> {
    // 1. What the kernel shows as files.
    boot::filesystems::mount_kernel_filesystems()?;
    boot::console::open();
    boot::prepare_process()?;
    // 2. Drivers for the disks and the network.
    boot::modules::load()?;
    // 3. The link to the host.
    boot::network::bring_up()?;
    // 4. The app's root: the image below, the scratch disk above.
    let scratch = boot::filesystems::assemble_root()?;
    // 5. and 6. Listen for the host, say so, and serve it for ever.
    serve::run(agent::Agent::new(scratch)?)
}
