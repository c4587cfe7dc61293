//! Makes this machine's microVMs be what control asked.
//!
//! ```text
//! api::host::Host ─► LocalHost ─┬─ build      zip ─► root disk ─► booted app ─► snapshot
//!                               ├─ verbs      run, suspend, resume, terminate
//!                               └─ reconcile  after a restart
//! api::directory::Dialer ─► Way: a byte stream to an app, through the agent; for a process that is not the host as well
//! ```
//!
//! All of it stands on a [`platform::Platform`]: `system` is this machine's, with its VMM and its network namespaces.
//!
//! A machine is a VM that runs; its process outlives this one. The module `files` says what lies where and which renames
//! decide what is true.

#![forbid(unsafe_code)]

mod agent;
mod build;
mod capacity;
mod config;
mod console;
mod ends;
mod files;
mod hooks;
mod launch;
mod local;
mod log;
mod machine;
mod manifest;
pub mod network;
pub mod platform;
mod prefetch;
mod ready;
mod reconcile;
mod saved;
mod settle;
mod shell;
mod stream;
mod system;
mod tidy;
mod verbs;
mod way;

pub use config::HostConfig;
pub use local::{LocalHost, StartError};
pub use way::Way;
