//! Running a tool so that it can be stopped together with everything it started.
//!
//! A tool runs in its own mount, PID and IPC namespaces: its mounts vanish with it, the processes of a Dockerfile's `RUN`
//! see and reach only each other, and killing the first process ends them all.

use std::{
    ffi::{OsStr, OsString},
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal};
use tokio::{
    io::AsyncReadExt,
    net::unix::pipe::Receiver,
    process::{Child, Command},
    time::{Instant, interval, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{Cause, log::BuildLog};

/// Where tools are looked for: the system's directories, whatever the server's own `PATH` is.
pub(crate) const TOOL_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Variables of the server that tools get: how to reach registries and who to be there.
const PASSED_ON: [&str; 12] = [
    "HOME",
    "XDG_RUNTIME_DIR",
    "DOCKER_CONFIG",
    "REGISTRY_AUTH_FILE",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
];

/// Longest answer of a tool that is read.
const ANSWER_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Longest complaint of a tool that is kept.
const SAID_BYTES_MAX: u64 = 4096;

/// A build stops when its disk has less room than this: filling it would take the microVMs down too.
const DISK_FREE_MIN: u64 = 512 * 1024 * 1024;

/// How often the disk's room is looked at.
const DISK_LOOK: Duration = Duration::from_secs(1);

/// Longest wait for killed processes to be gone.
const DEATH_MAX: Duration = Duration::from_secs(10);

/// A tool that did not do its work.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProcessError {
    /// It could not be started.
    #[error("starting {program}")]
    Start {
        /// The tool.
        program: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Its output could not be read.
    #[error("reading what {program} prints")]
    Read {
        /// The tool.
        program: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It failed.
    #[error("{program} ended with {how}{}{said}", if said.is_empty() { "" } else { ": " })]
    Failed {
        /// The tool.
        program: String,
        /// Its exit status in words.
        how: String,
        /// The end of what it printed, when that was not written to a log.
        said: String,
    },
}

/// A tool about to be run.
pub(crate) struct Tool {
    program: String,
    args: Vec<OsString>,
    env: Vec<(String, OsString)>,
}

/// What bounds a tool's run.
pub(crate) struct Bounds<'a> {
    /// Stops it.
    pub(crate) cancel: &'a CancellationToken,
    /// When it must have ended.
    pub(crate) deadline: Instant,
    /// How long it had in all, to say so.
    pub(crate) allowed: Duration,
    /// The directory whose disk it fills; also where its complaints are kept.
    pub(crate) job: &'a Path,
}

/// How a run ended.
pub(crate) enum End {
    /// By itself.
    Done(Vec<u8>),
    /// By itself, badly.
    Failed(ProcessError),
    /// It was stopped.
    Stopped(Cause),
}

impl Tool {
    pub(crate) fn new(program: &str) -> Self {
        Self { program: program.to_owned(), args: Vec::new(), env: Vec::new() }
    }

    pub(crate) fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    pub(crate) fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.env.push((name.to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Runs it, everything it prints going to the log.
    pub(crate) async fn run_logged(self, bounds: &Bounds<'_>, log: &mut BuildLog) -> End {
        self.run(bounds, Some(log)).await
    }

    /// Runs it and returns what it prints on its standard output.
    pub(crate) async fn run_for_answer(self, bounds: &Bounds<'_>) -> End {
        self.run(bounds, None).await
    }

    async fn run(self, bounds: &Bounds<'_>, log: Option<&mut BuildLog>) -> End {
        let program = self.program.clone();
        let complaints = bounds.job.join("stderr");
        let started = self.start(log.is_none().then_some(&complaints));
        let (child, output) = match started {
            Ok(started) => started,
            Err(source) => return End::Failed(ProcessError::Start { program, source }),
        };
        let mut running = Running { child, output };
        if let Some(id) = running.child.id() {
            note_process(bounds.job, id);
        }
        let end = running.watch(bounds, log, &program).await;
        match end {
            Ok((status, answer)) if status.success() => End::Done(answer),
            Ok((status, _)) => {
                let said = tail(&complaints).await;
                End::Failed(ProcessError::Failed { program, how: status.to_string(), said })
            }
            Err(end) => {
                running.kill().await;
                end
            }
        }
    }

    fn start(self, complaints: Option<&PathBuf>) -> io::Result<(Child, Receiver)> {
        let (read, write) = io::pipe()?;
        let stderr = match complaints {
            Some(path) => Stdio::from(std::fs::File::create(path)?),
            None => Stdio::from(write.try_clone()?),
        };
        let mut command = Command::new("/usr/bin/unshare");
        command.args([
            "--mount",
            "--pid",
            "--ipc",
            "--fork",
            "--kill-child",
            "--mount-proc",
            "--propagation",
            "private",
        ]);
        command.arg("--").arg(&self.program).args(&self.args);
        command.env_clear().env("PATH", TOOL_PATH).env("LC_ALL", "C.UTF-8");
        for name in PASSED_ON {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command.envs(self.env);
        command.stdin(Stdio::null()).stdout(write).stderr(stderr);
        command.process_group(0).kill_on_drop(true);
        let child = command.spawn()?;
        // The command holds the pipe's writing end; the reader would wait for it.
        drop(command);
        Ok((child, Receiver::from_owned_fd(OwnedFd::from(read))?))
    }
}

/// A started tool.
struct Running {
    child: Child,
    output: Receiver,
}

impl Running {
    async fn watch(
        &mut self,
        bounds: &Bounds<'_>,
        log: Option<&mut BuildLog>,
        program: &str,
    ) -> Result<(ExitStatus, Vec<u8>), End> {
        tokio::select! {
            biased;
            () = bounds.cancel.cancelled() => Err(End::Stopped(Cause::Cancelled)),
            () = sleep_until(bounds.deadline) => Err(End::Stopped(Cause::TimedOut { after: bounds.allowed })),
            () = disk_fills(bounds.job) => Err(End::Stopped(Cause::DiskFull { path: bounds.job.to_owned() })),
            end = self.follow(log, program) => end,
        }
    }

    /// Reads until everything that could print is gone, then asks how it ended.
    async fn follow(&mut self, mut log: Option<&mut BuildLog>, program: &str) -> Result<(ExitStatus, Vec<u8>), End> {
        let failed = |source| End::Failed(ProcessError::Read { program: program.to_owned(), source });
        let mut answer = Vec::new();
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let count = self.output.read(&mut buffer).await.map_err(failed)?;
            let bytes = &buffer[..count];
            match &mut log {
                _ if count == 0 => break,
                Some(log) => log.write(bytes).await.map_err(End::Stopped)?,
                None if (answer.len() + count) as u64 > ANSWER_BYTES_MAX => {
                    return Err(failed(io::Error::other("the answer is too long")));
                }
                None => answer.extend_from_slice(bytes),
            }
        }
        let status = self.child.wait().await.map_err(failed)?;
        Ok((status, answer))
    }

    /// Kills the whole group and waits until its last process has let go of the pipe.
    async fn kill(&mut self) {
        if let Some(group) = self.child.id().and_then(|id| Pid::from_raw(id.cast_signed())) {
            let _ = rustix::process::kill_process_group(group, Signal::KILL);
        }
        let gone = async {
            let mut buffer = vec![0; 64 * 1024];
            while !matches!(self.output.read(&mut buffer).await, Ok(0) | Err(_)) {}
            let _ = self.child.wait().await;
        };
        if timeout(DEATH_MAX, gone).await.is_err() {
            tracing::warn!("the processes of a stopped build are not gone yet");
        }
    }
}

/// Returns once the disk of a directory is nearly full.
async fn disk_fills(path: &Path) {
    let mut look = interval(DISK_LOOK);
    loop {
        look.tick().await;
        if disk_is_full(path) {
            return;
        }
    }
}

/// Has the disk of a directory less room than a build may leave?
pub(crate) fn disk_is_full(path: &Path) -> bool {
    rustix::fs::statvfs(path).is_ok_and(|disk| disk.f_bavail.saturating_mul(disk.f_frsize) < DISK_FREE_MIN)
}

/// The file that names a job's running process, for the sweep after a crash.
pub(crate) const PROCESS_FILE: &str = "process";

fn note_process(job: &Path, id: u32) {
    // Without it a crash costs no more than the build running on to its end.
    if let Some(started) = started_at(id) {
        let _ = std::fs::write(job.join(PROCESS_FILE), format!("{id} {started}"));
    }
}

/// When a process was started, in the kernel's ticks: with its id it names a process for good.
pub(crate) fn started_at(id: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // The name before the last parenthesis may hold anything. The start time is the 22nd field, 20th after it.
    stat.rsplit_once(") ")?.1.split(' ').nth(19)?.parse().ok()
}

async fn tail(path: &Path) -> String {
    let Ok(file) = tokio::fs::File::open(path).await else { return String::new() };
    let mut text = Vec::new();
    let _ = file.take(SAID_BYTES_MAX).read_to_end(&mut text).await;
    String::from_utf8_lossy(&text).trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn run(job: &Path, cancel: &CancellationToken, allowed: Duration, script: &str) -> End {
        let bounds = Bounds { cancel, deadline: Instant::now() + allowed, allowed, job };
        Tool::new("sh").args(["-c", script]).run_for_answer(&bounds).await
    }

    fn is_root() -> bool {
        let root = rustix::process::geteuid().is_root();
        if !root {
            println!("skipped: making namespaces needs root");
        }
        root
    }

    #[tokio::test]
    async fn answers_and_failures() {
        if !is_root() {
            return;
        }
        let job = tempfile::tempdir().expect("a directory");
        let cancel = CancellationToken::new();
        let minute = Duration::from_secs(60);
        let end = run(job.path(), &cancel, minute, "echo out; echo err >&2; echo $$").await;
        assert!(matches!(end, End::Done(answer) if answer == b"out\n1\n"));
        let end = run(job.path(), &cancel, minute, "echo no >&2; exit 3").await;
        assert!(
            matches!(end, End::Failed(ProcessError::Failed { how, said, .. }) if how.contains('3') && said == "no")
        );
    }

    #[tokio::test]
    async fn a_stopped_tool_leaves_no_process() {
        if !is_root() {
            return;
        }
        let job = tempfile::tempdir().expect("a directory");
        // A child that left the group and the session, as a hostile RUN would.
        let marker = format!("86399.{}", std::process::id());
        let script = format!("setsid sleep {marker} & exec sleep {marker}");
        let alive = || {
            std::fs::read_dir("/proc").expect("proc").flatten().any(|process| {
                std::fs::read(process.path().join("cmdline")).is_ok_and(|line| {
                    line.starts_with(b"sleep\0") && line.windows(marker.len()).any(|part| part == marker.as_bytes())
                })
            })
        };
        let cancel = CancellationToken::new();
        let canceller = async {
            while !alive() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            cancel.cancel();
        };
        let minute = Duration::from_secs(60);
        let (end, ()) = tokio::join!(run(job.path(), &cancel, minute, &script), canceller);
        assert!(matches!(end, End::Stopped(Cause::Cancelled)));
        assert!(!alive());

        let end = run(job.path(), &CancellationToken::new(), Duration::from_millis(200), &script).await;
        assert!(matches!(end, End::Stopped(Cause::TimedOut { .. })));
        assert!(!alive());
    }
}
