//! The whole server over pretend VMs.
//!
//! Control, the HTTP front, S3, the gateway and the edge are the real ones; the host is [`PretendHost`], which keeps the
//! contract of [`api::host::Host`] and runs nothing. Code artifacts are really fetched, unpacked and checked; what they
//! would do is what the image's environment variables say ([`Script`]).

#![forbid(unsafe_code)]

mod app;
mod host;
mod image;
mod script;

pub use host::PretendHost;
pub use script::{Delays, Script};
