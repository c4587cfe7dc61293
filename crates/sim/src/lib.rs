//! The whole server over pretend VMs.
//!
//! Control, the HTTP front, S3, the gateway and the edge are the real ones; the host is [`PretendHost`], which keeps the
//! contract of [`api::host::Host`] and runs nothing. Code artifacts are really fetched, unpacked and checked; what they
//! would do is what the image's environment variables say ([`Script`]).
//!
//! In [`histories`] the host is the real one too, and only what it stands on is pretended: for the promises that hold
//! whatever goes wrong, and whenever.

#![forbid(unsafe_code)]

mod app;
mod command;
mod edge;
pub mod histories;
mod host;
mod image;
mod script;
mod train;
mod upstream;

pub use command::command;
pub use host::PretendHost;
pub use script::{Delays, Script};
