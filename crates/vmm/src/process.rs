//! The QEMU process: how it is started, watched and ended.
//!
//! A process belongs to its own session and is never killed by the daemon's end. It is held by a pidfd, which
//! names this process even after its number was given to another.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, PidfdFlags, Signal};
use tokio::io::AsyncWriteExt;
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe;
use tokio::sync::watch;

use crate::command::{self, Begin, Listeners};
use crate::procfs;
use crate::record::VmRecord;
use crate::spec::VmSpec;
use crate::start::StartError;
use crate::sys;

pub(crate) const QMP_SOCKET: &str = "qmp.sock";
pub(crate) const CONSOLE_SOCKET: &str = "console.sock";
const LOG: &str = "qemu.log";
/// The log's size limit. What QEMU says beyond it is lost: a guest may be able to make it talk.
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
    /// The last lines QEMU wrote, at most 2 KiB.
    pub log_tail: String,
}

impl fmt::Display for ExitReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
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
    pidfd: OwnedFd,
    exit: watch::Receiver<Option<ExitReport>>,
}

/// Our ends of what connects to a new process.
pub(crate) struct Connections {
    pub(crate) qmp: UnixStream,
    /// Where device state is sent, and the number QEMU knows the other end by.
    pub(crate) incoming: Option<(UnixStream, i32)>,
}

/// A process just started, and the ends of what connects to it.
pub(crate) struct Spawned {
    record: VmRecord,
    connections: Connections,
    child: Unwatched,
    pidfd: OwnedFd,
    log: OwnedFd,
}

/// A child nobody watches yet; dropped, for instance with a start that was given up, it is killed and reaped.
struct Unwatched(Option<Child>);

impl Drop for Unwatched {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            // Both fail only for a child that is gone.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Starts QEMU and records it. Blocks.
pub(crate) fn spawn(spec: &VmSpec, begin: Begin) -> Result<Spawned, StartError> {
    let prepare = |what: &'static str, path: &Path| {
        let path = path.to_owned();
        move |source: io::Error| StartError::Prepare { what, path, source }
    };
    let dir = open_dir(&spec.dir).map_err(prepare("open the directory", &spec.dir))?;
    // Listening sockets are made here and inherited, so that a client need not wait for them to appear.
    let listen = |name| listen(&spec.dir, &dir, name).map_err(prepare("listen on", &spec.dir.join(name)));
    let qmp_listener = listen(QMP_SOCKET)?;
    let console_listener = listen(CONSOLE_SOCKET)?;
    let qmp =
        UnixStream::connect(through(&dir, QMP_SOCKET)).map_err(prepare("connect to", &spec.dir.join(QMP_SOCKET)))?;
    let incoming = match begin {
        Begin::Boot => None,
        Begin::Incoming => Some(
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
                .map_err(|e| prepare("make a socket for", &spec.dir)(e.into()))?,
        ),
    };
    // The ends never block: a full pipe makes QEMU lose words, not time.
    let log_path = spec.dir.join(LOG);
    let (log, log_writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)
        .map_err(|e| prepare("make a pipe for", &log_path)(e.into()))?;
    let log_writer_2 = log_writer.try_clone().map_err(prepare("make a pipe for", &log_path))?;
    let namespace = match &spec.network {
        Some(network) => {
            let file = File::open(&network.namespace);
            Some(file.map_err(prepare("open the network namespace", &network.namespace))?.into())
        }
        None => None,
    };
    // A leftover record must not lead to a process that only once had this directory.
    VmRecord::remove(&spec.dir).map_err(prepare("remove the old record in", &spec.dir))?;
    let boot_id = procfs::boot_id().map_err(prepare("read the boot id for", &spec.dir))?;

    let listeners = Listeners { qmp: qmp_listener.as_raw_fd(), console: console_listener.as_raw_fd() };
    let mut keep = vec![listeners.qmp, listeners.console];
    keep.extend(incoming.as_ref().map(|(_, theirs)| theirs.as_raw_fd()));
    let mut command = Command::new(spec.program());
    command
        .args(command::arguments(spec, begin, listeners))
        .current_dir(&spec.dir)
        .stdin(Stdio::null())
        .stdout(log_writer)
        .stderr(log_writer_2);
    sys::isolate_child(&mut command, namespace, keep);
    let child = command.spawn().map_err(|source| StartError::Spawn { program: spec.program().to_owned(), source })?;
    let pid = child.id();
    let child = Unwatched(Some(child));
    // Short of memory, the kernel is to end a guest, not whoever looks after all of them. A kernel that will not be told
    // so is no reason not to start.
    let _ = std::fs::write(format!("/proc/{pid}/oom_score_adj"), OOM_SCORE_ADJ);
    // From here on `find_stray` finds the process whatever happens to us.
    let recorded = || -> io::Result<(OwnedFd, VmRecord)> {
        let pidfd = open_pidfd(pid)?;
        // One that ended already has none; the connection's end will tell, with its words from the log.
        let start_time = procfs::start_time(pid)?.unwrap_or(0);
        let record = VmRecord::new(spec, pid, start_time, boot_id);
        record.write(&spec.dir)?;
        Ok((pidfd, record))
    };
    let (pidfd, record) = recorded().map_err(prepare("record the process in", &spec.dir))?;
    Ok(Spawned {
        record,
        connections: Connections { qmp, incoming: incoming.map(|(ours, theirs)| (ours.into(), theirs.as_raw_fd())) },
        child,
        pidfd,
        log,
    })
}

impl Spawned {
    /// Begins to watch the process. Returns the connection ends too.
    pub(crate) fn watch(mut self, dir: &Path) -> io::Result<(Process, VmRecord, Connections)> {
        let log = pipe::Receiver::from_owned_fd(self.log)?;
        let process = Process::watch(self.record.pid, self.pidfd, self.child.0.take(), Some(log), dir)?;
        Ok((process, self.record, self.connections))
    }
}

impl Process {
    fn watch(
        pid: u32,
        pidfd: OwnedFd,
        child: Option<Child>,
        log: Option<pipe::Receiver>,
        dir: &Path,
    ) -> io::Result<Self> {
        let mut child = Unwatched(child);
        let (publish, exit) = watch::channel(None);
        let ended = sys::watch_fd(pidfd.try_clone()?)?;
        let child = child.0.take();
        tokio::spawn(supervise(ended, child, log, dir.join(LOG), publish));
        Ok(Self { pid, pidfd, exit })
    }

    /// Watches a process that an earlier daemon, or another handle, started; `None` if it is gone.
    pub(crate) fn adopt(record: &VmRecord, dir: &Path) -> io::Result<Option<Self>> {
        if record.boot_id != procfs::boot_id()? {
            return Ok(None);
        }
        let pidfd = match open_pidfd(record.pid) {
            Ok(pidfd) => pidfd,
            Err(e) if e.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
            Err(e) => return Err(e),
        };
        // After the open: if the process with this start time lives now, the pidfd is its.
        if procfs::start_time(record.pid)? != Some(record.start_time) {
            return Ok(None);
        }
        // Its standard error is a pipe whose reader may be gone; a pipe can be opened again for reading.
        let log = File::options()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(format!("/proc/{}/fd/2", record.pid))
            .and_then(pipe::Receiver::from_file)
            .ok();
        Self::watch(record.pid, pidfd, None, log, dir).map(Some)
    }

    /// Sends SIGKILL. A process that is gone already is no error.
    pub(crate) fn kill(&self) -> io::Result<()> {
        kill_pidfd(&self.pidfd)
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

/// Keeps the log, waits for the end, reaps, reports.
async fn supervise(
    ended: AsyncFd<OwnedFd>,
    mut child: Option<Child>,
    log: Option<pipe::Receiver>,
    log_path: PathBuf,
    publish: watch::Sender<Option<ExitReport>>,
) {
    let path = log_path.clone();
    let keep_log = async move {
        if let Some(log) = log
            && let Err(error) = copy_log(log, &path).await
        {
            tracing::debug!(%error, path = %path.display(), "QEMU's log is not kept");
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
        let _ = tokio::time::timeout(std::time::Duration::from_secs(1), keep_log).await;
    }
    let status = child.as_mut().and_then(|child| child.wait().ok());
    let log_tail = tokio::task::spawn_blocking(move || tail(&log_path).unwrap_or_default()).await.unwrap_or_default();
    publish.send_replace(Some(ExitReport {
        code: status.and_then(|status| status.code()),
        signal: status.and_then(|status| status.signal()),
        log_tail,
    }));
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

fn listen(dir: &Path, handle: &OwnedFd, name: &str) -> io::Result<UnixListener> {
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
        let path = dir.path().join(LOG);
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
