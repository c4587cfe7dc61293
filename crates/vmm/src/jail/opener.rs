//! Opens the guest's memory on behalf of a jailed QEMU.
//!
//! QEMU opens the file of `memory-backend-file` for reading and writing, whatever it is going to do with it (only 8.2
//! and later can be told otherwise). A file all microVMs of an image map must not be writable to any of them, and a
//! private mapping needs no more than a file open for reading. So until QEMU is up, every opening for reading and
//! writing waits for an answer from here: for the memory it is the descriptor that is fit, for everything else it is
//! up to the kernel. Afterwards nobody answers, and every such opening fails.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::thread::{self, JoinHandle};

use rustix::event::{PollFd, PollFlags, poll};

use crate::sys;

/// The path QEMU is told.
pub(crate) const MEMORY_PATH: &str = "/memory";

/// Answers until dropped.
#[derive(Debug)]
pub(crate) struct Opener {
    /// Closing it ends the thread.
    stop: Option<io::PipeWriter>,
    thread: Option<JoinHandle<()>>,
}

impl Opener {
    /// Begins to answer the questions of process `pid`: opening [`MEMORY_PATH`] gives it `memory`.
    pub(crate) fn start(pid: u32, questions: OwnedFd, memory: File) -> io::Result<Self> {
        let process_memory = match File::open(format!("/proc/{pid}/mem")) {
            Ok(file) => file,
            // It has ended already, and asks nothing any more; whoever waits for it finds out how.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ESRCH | libc::ENOENT)) => {
                return Ok(Self { stop: None, thread: None });
            }
            Err(error) => return Err(error),
        };
        let (stopped, stop) = io::pipe()?;
        let thread = thread::Builder::new().name("jail-opener".to_owned()).spawn(move || {
            if let Err(error) = answer_all(&questions, &stopped, &process_memory, &memory) {
                tracing::warn!(%error, pid, "a VMM's questions are not answered any more");
            }
        })?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Opener {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn answer_all(questions: &OwnedFd, stopped: &io::PipeReader, asker: &File, memory: &File) -> io::Result<()> {
    loop {
        let mut fds = [PollFd::from_borrowed_fd(questions.as_fd(), PollFlags::IN), PollFd::new(stopped, PollFlags::IN)];
        match poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => continue,
            other => other.map(drop)?,
        }
        // The asker is gone, or nobody waits for us.
        if !fds[1].revents().is_empty() || !fds[0].revents().contains(PollFlags::IN) {
            return Ok(());
        }
        let Some(question) = sys::next_question(questions)? else { continue };
        // `open` has its path first, `openat` second.
        let is_memory = question.arguments[..2].iter().any(|address| path_at(asker, *address));
        let answered = sys::answer(questions, question, is_memory.then(|| memory.as_raw_fd()));
        match answered {
            // The asker was killed meanwhile.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            other => other?,
        }
    }
}

/// Is the path of the memory at this address?
fn path_at(asker: &File, address: u64) -> bool {
    let mut text = [0; MEMORY_PATH.len() + 1];
    // An address that is none is no path.
    asker.read_exact_at(&mut text, address).is_ok()
        && text[..MEMORY_PATH.len()] == *MEMORY_PATH.as_bytes()
        && text[MEMORY_PATH.len()] == 0
}
