//! A VMM process: how it is watched and ended.
//!
//! A process belongs to its own session and is never killed by the daemon's end. It is held by a pidfd, which
//! names this process even after its number was given to another.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, PidfdFlags, Signal};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe;
use tokio::sync::watch;

use crate::jail::Hierarchies;
use crate::procfs;
use crate::sys::{self, Born};

/// What a VMM says goes into this file of its VM's directory.
pub(crate) const VMM_LOG: &str = "vmm.log";
/// The log's size limit. What a VMM says beyond it is lost: a guest may be able to make it talk.
const MAX_LOG: u64 = 64 * 1024;
/// How much of the log's end a report carries.
const TAIL: u64 = 2 * 1024;
/// Where a VMM stands when the kernel must choose what to end: above ordinary processes (0), below what asks to be
/// ended first (1000).
const OOM_SCORE_ADJ: &str = "500";

/// How a VM's process ended.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ExitReport {
    /// Its exit code, if it exited and was this process's child.
    pub code: Option<i32>,
    /// The signal that ended it, if one did and it was this process's child.
    pub signal: Option<i32>,
    /// Whether the kernel ended it because it needed more memory than its limit.
    pub out_of_memory: bool,
    /// Why this process had it ended, where it was not to be.
    pub blame: Option<&'static str>,
    /// The last lines the VMM wrote, at most 2 KiB.
    pub log_tail: String,
}

impl fmt::Display for ExitReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.out_of_memory {
            write!(f, "more memory needed than its limit; ")?;
        }
        if let Some(blame) = self.blame {
            write!(f, "{blame}; ")?;
        }
        match (self.code, self.signal) {
            (Some(code), _) => write!(f, "exit code {code}")?,
            (None, Some(signal)) => write!(f, "signal {signal}")?,
            (None, None) => write!(f, "unknown status")?,
        }
        match self.log_tail.trim() {
            "" => Ok(()),
            tail => write!(f, ": {tail}"),
        }
    }
}

/// A watched process.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    pidfd: Arc<OwnedFd>,
    exit: watch::Receiver<Option<ExitReport>>,
    blame: Arc<OnceLock<&'static str>>,
    jail_time: Option<Duration>,
}

/// What names a process for good: its number, when it began, and the boot of the machine; and its control group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Identity {
    pub(crate) pid: u32,
    /// In clock ticks since boot.
    pub(crate) start_time: u64,
    pub(crate) boot_id: String,
    /// Removed when the process is gone.
    pub(crate) cgroup: Option<PathBuf>,
}

/// A child nobody watches yet; dropped, for instance with a start that was given up, it is killed and reaped.
#[derive(Debug)]
pub(crate) struct Unwatched {
    identity: Identity,
    child: Child,
    log: OwnedFd,
    log_name: &'static str,
    jail_time: Duration,
}

impl Unwatched {
    /// Takes charge of a child that was just started. `log` is what it writes its words to, `log_name` where they go.
    pub(crate) fn new(born: Born, cgroup: Option<PathBuf>, log: OwnedFd, log_name: &'static str) -> io::Result<Self> {
        let pid = born.pid;
        let jail_time = born.took;
        let child = Child { pidfd: Some(born.pidfd), cgroup: cgroup.clone() };
        // Short of memory, the kernel is to end a guest, not whoever looks after all of them. A kernel that will not be
        // told so is no reason not to start.
        let _ = std::fs::write(format!("/proc/{pid}/oom_score_adj"), OOM_SCORE_ADJ);
        // One that ended already has none; the connection's end will tell, with its words from the log.
        let start_time = procfs::start_time(pid)?.unwrap_or(0);
        let identity = Identity { pid, start_time, boot_id: procfs::boot_id()?, cgroup };
        Ok(Self { identity, child, log, log_name, jail_time })
    }

    pub(crate) fn identity(&self) -> Identity {
        self.identity.clone()
    }

    /// Begins to watch the process. To be called within a runtime.
    pub(crate) fn watch(mut self, dir: &Path) -> io::Result<Process> {
        let words = pipe::Receiver::from_owned_fd(self.log)?;
        let pidfd = self.child.pidfd.as_ref().expect("taken only here").try_clone()?;
        let ended = sys::watch_fd(pidfd.try_clone()?)?;
        let child = self.child.pidfd.take();
        let log = LogFile::in_dir(dir, self.log_name)?;
        let process = Process::watch(&self.identity, pidfd, ended, child, Some(words), log);
        Ok(Process { jail_time: Some(self.jail_time), ..process })
    }
}

/// Killed and reaped on drop.
#[derive(Debug)]
struct Child {
    pidfd: Option<OwnedFd>,
    cgroup: Option<PathBuf>,
}

impl Drop for Child {
    fn drop(&mut self) {
        if let Some(pidfd) = self.pidfd.take() {
            let _ = kill_pidfd(&pidfd);
            sys::reap(&pidfd);
            if let Some(cgroup) = &self.cgroup {
                Hierarchies::find().remove(cgroup);
            }
        }
    }
}

impl Process {
    fn watch(
        identity: &Identity,
        pidfd: OwnedFd,
        ended: AsyncFd<OwnedFd>,
        child: Option<OwnedFd>,
        words: Option<pipe::Receiver>,
        log: LogFile,
    ) -> Self {
        let (publish, exit) = watch::channel(None);
        let blame = Arc::new(OnceLock::new());
        let watched = Watched { child, log, cgroup: identity.cgroup.clone(), blame: Arc::clone(&blame) };
        tokio::spawn(supervise(ended, watched, words, publish));
        Self { pid: identity.pid, pidfd: Arc::new(pidfd), exit, blame, jail_time: None }
    }

    /// Watches a process that an earlier daemon, or another handle, started; `None` if it is gone.
    pub(crate) fn adopt(identity: &Identity, dir: &Path, log_name: &'static str) -> io::Result<Option<Self>> {
        if identity.boot_id != procfs::boot_id()? {
            return Ok(None);
        }
        let pid = identity.pid;
        let pidfd = match open_pidfd(pid) {
            Ok(pidfd) => pidfd,
            Err(e) if e.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
            Err(e) => return Err(e),
        };
        // After the open: if the process with this start time lives now, the pidfd is its.
        if procfs::start_time(pid)? != Some(identity.start_time) {
            return Ok(None);
        }
        // Its standard error is a pipe whose reader may be gone; a pipe can be opened again for reading.
        let words = reopen_pipe(pid, 2).ok();
        let ended = sys::watch_fd(pidfd.try_clone()?)?;
        Ok(Some(Self::watch(identity, pidfd, ended, None, words, LogFile::in_dir(dir, log_name)?)))
    }

    /// As [`Process::kill`]; the report of its end says why.
    pub(crate) fn kill_because(&self, blame: &'static str) -> io::Result<()> {
        self.handle().kill_because(blame)
    }

    /// Sends SIGKILL. A process that is gone already is no error.
    pub(crate) fn kill(&self) -> io::Result<()> {
        kill_pidfd(&self.pidfd)
    }

    pub(crate) fn jail_time(&self) -> Option<Duration> {
        self.jail_time
    }

    /// A handle for somebody else, who may wait for its end, or end it.
    pub(crate) fn handle(&self) -> Handle {
        Handle {
            pid: self.pid,
            pidfd: Arc::clone(&self.pidfd),
            exit: self.exit.clone(),
            blame: Arc::clone(&self.blame),
        }
    }

    /// Waits for the end of the process.
    pub(crate) async fn exited(&self) -> ExitReport {
        let mut exit = self.exit.clone();
        let report = exit.wait_for(Option::is_some).await.ok().and_then(|report| report.clone());
        match report {
            Some(report) => report,
            // The watcher only ends without a report when the runtime shuts down.
            None => std::future::pending().await,
        }
    }

    pub(crate) fn has_exited(&self) -> bool {
        self.exit.borrow().is_some()
    }
}

/// A watched process, in the hands of somebody who does not own it.
#[derive(Debug)]
pub(crate) struct Handle {
    pid: u32,
    pidfd: Arc<OwnedFd>,
    exit: watch::Receiver<Option<ExitReport>>,
    blame: Arc<OnceLock<&'static str>>,
}

impl Handle {
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Kills it; the report of its end says why.
    pub(crate) fn kill_because(&self, blame: &'static str) -> io::Result<()> {
        // A second reason is of no more use than the first.
        let _ = self.blame.set(blame);
        kill_pidfd(&self.pidfd)
    }

    /// Waits for its end.
    pub(crate) async fn ended(&self) {
        // Without its watcher the runtime is shutting down.
        let _ = self.exit.clone().wait_for(Option::is_some).await;
    }
}

/// A new reader of the pipe that is a process's descriptor of this number.
pub(crate) fn reopen_pipe(pid: u32, number: u32) -> io::Result<pipe::Receiver> {
    let path = format!("/proc/{pid}/fd/{number}");
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    pipe::Receiver::from_file(file)
}

/// A pipe for what a VMM says. Its ends never block: a full pipe makes a VMM lose words, not time.
pub(crate) fn words() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?)
}

/// Opens a pidfd.
pub(crate) fn open_pidfd(pid: u32) -> io::Result<OwnedFd> {
    let pid =
        i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))?;
    Ok(rustix::process::pidfd_open(pid, PidfdFlags::empty())?)
}

/// Sends SIGKILL through a pidfd. A process that is gone already is no error.
pub(crate) fn kill_pidfd(pidfd: &OwnedFd) -> io::Result<()> {
    match rustix::process::pidfd_send_signal(pidfd, Signal::KILL) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// What is done about a process when it ends.
struct Watched {
    /// To be reaped, if it is our child.
    child: Option<OwnedFd>,
    log: LogFile,
    cgroup: Option<PathBuf>,
    blame: Arc<OnceLock<&'static str>>,
}

/// Where a VMM's words go: a file of a directory that is held, because it may be renamed under a process that waits.
struct LogFile {
    dir: OwnedFd,
    name: &'static str,
}

impl LogFile {
    fn in_dir(dir: &Path, name: &'static str) -> io::Result<Self> {
        Ok(Self { dir: open_dir(dir)?, name })
    }

    fn path(&self) -> PathBuf {
        through(&self.dir, self.name)
    }
}

/// Keeps the log, waits for the end, reaps, reports.
async fn supervise(
    ended: AsyncFd<OwnedFd>,
    watched: Watched,
    words: Option<pipe::Receiver>,
    publish: watch::Sender<Option<ExitReport>>,
) {
    let path = watched.log.path();
    let keep_log = async move {
        if let Some(words) = words
            && let Err(error) = copy_log(words, &path).await
        {
            tracing::debug!(%error, path = %path.display(), "a VMM's log is not kept");
        }
    };
    tokio::pin!(keep_log);
    let mut log_done = false;
    loop {
        tokio::select! {
            () = &mut keep_log, if !log_done => log_done = true,
            _ = ended.readable() => break,
        }
    }
    // The process is gone and with it the last writer: what is in the pipe is read at once.
    if !log_done {
        let _ = tokio::time::timeout(Duration::from_secs(1), keep_log).await;
    }
    let report = tokio::task::spawn_blocking(move || watched.report()).await;
    publish.send_replace(Some(report.unwrap_or_default()));
}

impl Watched {
    fn report(self) -> ExitReport {
        let status = self.child.as_ref().and_then(sys::reap);
        let mut out_of_memory = false;
        if let Some(cgroup) = &self.cgroup {
            let hierarchies = Hierarchies::find();
            out_of_memory = hierarchies.memory_kills(cgroup) > 0;
            hierarchies.remove(cgroup);
        }
        ExitReport {
            code: status.as_ref().and_then(|status| status.exit_status()),
            signal: status.as_ref().and_then(|status| status.terminating_signal()),
            out_of_memory,
            blame: self.blame.get().copied(),
            log_tail: tail(&self.log.path()).unwrap_or_default(),
        }
    }
}

async fn copy_log(mut from: pipe::Receiver, path: &Path) -> io::Result<()> {
    use tokio::io::AsyncReadExt;
    let mut to = tokio::fs::OpenOptions::new().create(true).append(true).open(path).await?;
    let mut room = MAX_LOG.saturating_sub(to.metadata().await?.len());
    let mut buffer = vec![0; 4096];
    while room > 0 {
        let length = from.read(&mut buffer).await?;
        if length == 0 {
            break;
        }
        let length = length.min(usize::try_from(room).unwrap_or(usize::MAX));
        to.write_all(&buffer[..length]).await?;
        to.flush().await?;
        room -= length as u64;
    }
    Ok(())
}

fn tail(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
    let mut text = Vec::new();
    file.take(TAIL).read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// A handle on a directory, through which its files have short names: a socket's path has 108 bytes at most.
pub(crate) fn open_dir(dir: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

/// The short name of a file in a directory held open.
pub(crate) fn through(dir: &OwnedFd, name: &str) -> PathBuf {
    format!("/proc/self/fd/{}/{name}", dir.as_raw_fd()).into()
}

/// Listens on a socket in `dir`, which `handle` is open on.
pub(crate) fn listen(dir: &Path, handle: &OwnedFd, name: &str) -> io::Result<UnixListener> {
    match std::fs::remove_file(dir.join(name)) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    UnixListener::bind(through(handle, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_chatty_process_cannot_fill_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(VMM_LOG);
        for _ in 0..2 {
            let (mut writer, reader) = pipe::pipe().unwrap();
            let chat = async {
                // Ends when nobody reads any more.
                while writer.write_all(&[b'x'; 10_000]).await.is_ok() {}
            };
            let (copied, ()) = tokio::join!(copy_log(reader, &path), chat);
            copied.unwrap();
            assert_eq!(std::fs::metadata(&path).unwrap().len(), MAX_LOG);
        }
        assert_eq!(tail(&path).unwrap().len() as u64, TAIL);
    }
}
