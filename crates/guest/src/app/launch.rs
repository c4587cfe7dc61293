//! The parent's side of a start: the pipes, the process, and the wait for its first word.

use super::StartError;
use super::child::{self, Plan};
use crate::sys;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::Pid;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

/// Longest explanation taken from a process that could not become the app.
const REASON_BYTES_MAX: u64 = 4096;

/// A process on its way to be the app.
pub(super) struct Launched {
    /// Its id in the agent's namespace.
    pub(super) pid: Pid,
    /// What it will print.
    pub(super) stdout: pipe::Receiver,
    /// The other half of what it will print.
    pub(super) stderr: pipe::Receiver,
    /// Closed when the program runs; before that, the reason why it does not.
    pub(super) outcome: pipe::Receiver,
}

/// Makes the process.
pub(super) fn launch(plan: &Plan) -> Result<Launched, StartError> {
    let (stdout, stdout_of_app) = new_pipe()?;
    let (stderr, stderr_of_app) = new_pipe()?;
    let (outcome, outcome_of_app) = new_pipe()?;
    // The host name belongs to the whole VM.
    plan.set_hostname()?;
    let pid = sys::spawn_in_namespaces(|| {
        // On success this process is another program by then, and the close-on-exec pipe says so by its end.
        let Err(error) = child::become_app(plan, &stdout_of_app, &stderr_of_app);
        let reason = crate::boot::console::chain(&error);
        let _ = std::fs::File::from(outcome_of_app).write_all(reason.as_bytes());
        127
    })
    .map_err(StartError::Clone)?;
    Ok(Launched { pid, stdout, stderr, outcome })
}

/// Waits until the program runs, or for the reason why it does not.
pub(super) async fn outcome(pipe: pipe::Receiver) -> Result<(), StartError> {
    let mut reason = Vec::new();
    pipe.take(REASON_BYTES_MAX).read_to_end(&mut reason).await.map_err(StartError::Pipe)?;
    if reason.is_empty() { Ok(()) } else { Err(StartError::Child(String::from_utf8_lossy(&reason).into_owned())) }
}

/// The end the agent reads asynchronously, and the end of the app.
pub(super) fn new_pipe() -> Result<(pipe::Receiver, OwnedFd), StartError> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).map_err(|errno| StartError::Pipe(io::Error::from(errno)))?;
    Ok((pipe::Receiver::from_owned_fd(read).map_err(StartError::Pipe)?, write))
}
