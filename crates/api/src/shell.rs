//! A shell in a microVM, as it is carried between who opened it and who looks at it: a host on one side, the edge on the
//! other.

use std::io;

/// Bytes of a terminal in one piece at most.
pub const PIECE_BYTES_MAX: usize = 4096;

/// What goes to a shell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToShell {
    /// Typed into its terminal; 1 to [`PIECE_BYTES_MAX`] bytes.
    Bytes(Vec<u8>),
    /// Its terminal has another size.
    Resize {
        /// Columns.
        cols: u16,
        /// Rows.
        rows: u16,
    },
}

/// What comes from a shell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FromShell {
    /// To be shown; [`PIECE_BYTES_MAX`] bytes at most.
    Bytes(Vec<u8>),
    /// It ended, and all that there was to show has been shown.
    Ended {
        /// Exit code, or 128 + the signal's number.
        code: i32,
    },
}

/// The half of a shell that is typed into. The shell ends once both halves are dropped.
#[async_trait::async_trait]
pub trait Typing: Send {
    /// Returns once it is on its way; waits while the shell does not read.
    async fn send(&mut self, what: ToShell) -> io::Result<()>;
}

/// The half of a shell that shows.
#[async_trait::async_trait]
pub trait Showing: Send {
    /// Waits for what is next. An error is the end of the connection, or of the VM. Not to be called again after the end, nor
    /// after a call that was dropped.
    async fn next(&mut self) -> io::Result<FromShell>;
}

/// A shell, open.
pub struct Shell {
    /// Into it.
    pub typing: Box<dyn Typing>,
    /// Out of it.
    pub showing: Box<dyn Showing>,
}

/// Why there is no shell.
#[derive(Debug, thiserror::Error)]
pub enum ShellError {
    /// That VM is no more (suspended or ended since): ask the directory again.
    #[error("the VM is gone")]
    Gone,
    /// The guest said no: its image has no shell, or too many are open.
    #[error("the guest opens no shell: {reason}")]
    Refused {
        /// Its words.
        reason: String,
    },
    /// The guest could not be reached.
    #[error("the guest could not be reached")]
    Unreachable(#[source] io::Error),
}
