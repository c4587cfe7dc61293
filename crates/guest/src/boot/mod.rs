//! From the kernel's hand to a machine that can serve: everything here runs once, and an error ends the VM.

pub(crate) mod console;
pub(crate) mod filesystems;
pub(crate) mod modules;
pub(crate) mod network;

use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::system::{RebootCommand, reboot};
use std::io;

/// Why the microVM cannot boot.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BootError {
    /// A file system could not be mounted.
    #[error("cannot mount {what} at {target}")]
    Mount {
        /// Device or kind of file system.
        what: &'static str,
        /// Where it was to go.
        target: &'static str,
        #[source]
        source: io::Error,
    },
    /// A disk did not appear.
    #[error("the disk {0} did not appear")]
    NoDisk(&'static str),
    /// A file or directory the boot needs could not be read or written.
    #[error("cannot {verb} {path}")]
    File {
        /// What was tried.
        verb: &'static str,
        /// On which path.
        path: String,
        #[source]
        source: io::Error,
    },
    /// The kernel refused a module.
    #[error("cannot load the kernel module {name}")]
    Module {
        /// File name in `/modules`.
        name: String,
        #[source]
        source: io::Error,
    },
    /// A network interface could not be configured.
    #[error("cannot {step} of {interface}")]
    Network {
        /// What was tried.
        step: &'static str,
        /// On which interface.
        interface: &'static str,
        #[source]
        source: io::Error,
    },
    /// The limit on open files could not be raised.
    #[error("cannot raise the limit on open files")]
    Limit(#[source] io::Error),
    /// There is no way to end connections at a restore.
    #[error("cannot prepare for a restore")]
    Outbound(#[source] crate::outbound::OutboundError),
    /// The event loop could not be made.
    #[error("cannot start the event loop")]
    Runtime(#[source] io::Error),
    /// The agent's port could not be opened.
    #[error("cannot listen on {address}")]
    Listen {
        /// Address and port.
        address: std::net::SocketAddrV4,
        #[source]
        source: io::Error,
    },
}

/// Open files the agent may have: two sockets for each of its connections, and room to spare.
const AGENT_FILES_MAX: u64 = 8192;

/// Makes the agent the last process the kernel would kill, and lets it hold all the sockets it may need.
pub(crate) fn prepare_process() -> Result<(), BootError> {
    let limit = Rlimit { current: Some(AGENT_FILES_MAX), maximum: Some(AGENT_FILES_MAX) };
    setrlimit(Resource::Nofile, limit).map_err(|errno| BootError::Limit(errno.into()))?;
    let path = "/proc/self/oom_score_adj";
    std::fs::write(path, "-1000").map_err(|source| BootError::File { verb: "write", path: path.to_owned(), source })
}

/// Ends the VM. There is nobody to return an error to.
pub(crate) fn power_off() -> ! {
    rustix::fs::sync();
    if let Err(errno) = reboot(RebootCommand::PowerOff) {
        console::say(&format!("pilotlight-agent cannot power off: {errno}"));
    }
    // Leaving makes the kernel panic, which ends the VM too when the command line says panic=-1.
    std::process::exit(1)
}
