//! The frames between a host and the agent inside a microVM.
//!
//! The host opens TCP connections to the agent at [`AGENT_PORT`] on the guest's side of the link. Each
//! connection starts with one [`Open`] frame from the host and one [`Opened`] frame from the agent:
//!
//! ```text
//! Open{Control}            host ◄─► agent   frames both ways: Request ─► , ◄─ Message (replies and events)
//! Open{Connect{port}}      host ◄─► app     after Opened{error: None} the connection carries the app's raw bytes
//! Open{Shell{…}}           host ◄─► agent   after Opened{error: None} ShellFrames both ways: a terminal's bytes
//! ```
//!
//! But for the last, a frame is a big-endian `u32` length and that many bytes of JSON, at most [`FRAME_BYTES_MAX`].
//!
//! # Versions
//!
//! A snapshot freezes the agent of the day it was made, so a new host meets old agents for years. There is one
//! number, [`GENERATION`]; both sides say theirs in the opening and both then speak the lower of the two. New
//! members are optional; a new message is sent only to a side whose generation knows it; the newer side adapts.
//!
//! | Generation | Brought |
//! |---|---|
//! | 1 | control and connections to the app |
//! | 2 ([`PARK_SINCE`]) | [`RequestBody::Park`] |
//! | 3 ([`SHELLS_SINCE`]) | [`Purpose::Shell`] |

#![forbid(unsafe_code)]

mod frame;
mod message;
mod shell;

pub use frame::{FRAME_BYTES_MAX, FrameError, read_frame, write_frame};
pub use message::{
    AppEnd, AppSpec, AppStatus, Event, Message, Open, Opened, OutOfMemory, Purpose, Reply, Request, RequestBody, Stream,
};
pub use shell::{SHELL_BYTES_MAX, ShellFrame, read_shell_frame, write_shell_frame};

/// The generation this build speaks.
pub const GENERATION: u32 = 3;

/// The first generation that knows [`RequestBody::Park`].
pub const PARK_SINCE: u32 = 2;

/// The first generation that knows [`Purpose::Shell`].
pub const SHELLS_SINCE: u32 = 3;

/// TCP port the agent listens on. Low and unassigned in practice, so that it does not meet an app's port.
pub const AGENT_PORT: u16 = 1;

/// IPv4 address of the guest's end of its link to the host; the same in every microVM, so that a snapshot fits any.
pub const GUEST_ADDRESS: std::net::Ipv4Addr = std::net::Ipv4Addr::new(169, 254, 100, 2);

/// IPv4 address of the host's end of the link, the only peer the agent serves and the guest's default route.
pub const HOST_ADDRESS: std::net::Ipv4Addr = std::net::Ipv4Addr::new(169, 254, 100, 1);

/// Prefix length of the link.
pub const LINK_PREFIX: u8 = 30;
