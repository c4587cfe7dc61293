//! The terminal that the command was started in.

use std::{
    io::{self, Read},
    os::fd::AsFd,
};

use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::sync::mpsc;

/// Bytes read at once.
const READ_BYTES: usize = 4096;

/// Reads that wait to be sent.
const READS_MAX: usize = 8;

/// Lets keys through as they are, until it is dropped: however the command ends but by SIGKILL, the terminal is what it was.
pub struct Raw {
    before: Option<Termios>,
}

impl Raw {
    /// Changes standard input, if it is a terminal.
    pub fn enter() -> io::Result<Self> {
        let stdin = io::stdin();
        if !isatty(&stdin) {
            return Ok(Self { before: None });
        }
        let before = tcgetattr(&stdin)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Flush, &raw)?;
        Ok(Self { before: Some(before) })
    }

    /// Whether there is a terminal.
    pub fn is_terminal(&self) -> bool {
        self.before.is_some()
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            // Not to discard what was typed ahead: it is for whatever comes next.
            let _ = tcsetattr(io::stdin(), OptionalActions::Drain, before);
        }
    }
}

/// Columns and rows of standard output, or else of standard input; `None` if neither is a terminal.
pub fn size() -> Option<(u16, u16)> {
    let of = |descriptor: &dyn AsFd| {
        tcgetwinsize(descriptor.as_fd()).ok().filter(|size| size.ws_col > 0).map(|size| (size.ws_col, size.ws_row))
    };
    of(&io::stdout()).or_else(|| of(&io::stdin()))
}

/// What is typed, until the end of it. A thread of its own reads, which nobody waits for in the end: a read cannot be
/// called off.
pub fn keys() -> mpsc::Receiver<Vec<u8>> {
    let (sender, keys) = mpsc::channel(READS_MAX);
    std::thread::spawn(move || {
        let mut stdin = io::stdin().lock();
        let mut buffer = [0; READ_BYTES];
        loop {
            match stdin.read(&mut buffer) {
                Ok(0) => return,
                Ok(bytes) => {
                    if sender.blocking_send(buffer[..bytes].to_vec()).is_err() {
                        return;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    });
    keys
}
