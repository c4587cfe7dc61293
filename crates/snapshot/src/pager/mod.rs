//! Serves the page faults of one Firecracker VM: its memory comes page by page, when it is touched, from the version's
//! base and the microVM's layer above it.
//!
//! ```text
//!   base ────┐                    ┌── poll: faults, the VMM's end, SIGTERM, read-ahead
//!            ├─► pages ──► memory ┤
//!   layer ───┘    (where each     └── UFFDIO_COPY / UFFDIO_ZEROPAGE ──► the VMM's memory
//!                  page is from)
//!   touched pages ─► prefetch (reads ahead on a thread of its own) ─┘
//! ```
//!
//! One process serves one VM and outlives the daemon that started it; it ends with its VM. It needs no privilege and no
//! files, only inherited descriptors, so it can live in an empty jail. Of what a guest that took its VMM over can do to
//! it, the worst is to make it give up, and the VM with it.
//!
//! Its death is the VM's: Firecracker keeps the userfaultfd open, so a vCPU that touches a missing page waits for ever.
//! Whoever started the pager must watch it and end the VM in that case; and who ends the pager with SIGTERM, to have
//! what was touched recorded, ends the VM as well.

mod accept;
mod command;
mod event;
mod guest;
mod handshake;
mod memory;
mod pages;
mod prefetch;
mod serve;
mod source;
mod touched;

pub use accept::MeetError;
pub use command::{Arguments, CommandError, DEFAULT_PATIENCE, UsageError};
pub use guest::{GuestMemory, send_with_descriptors};
pub use handshake::{HandshakeError, MAX_MESSAGE, MAX_REGIONS, Region, Regions, parse_handshake};
pub use memory::FillError;
pub use serve::{Pager, PagerError, Served};
pub use source::SourceError;
pub use touched::{MAX_TOUCHED_RUNS, TouchedError, read_touched, write_touched};
