//! The operator's program that sets TXT records.
//!
//! It is run as `program… present|cleanup <record name> <value>`, and has done it once it ends with status 0: for `present`,
//! once the world can see the record. There may be several values of one name at a time.

use std::{
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{
    io::AsyncReadExt,
    net::unix::pipe,
    process::{Child, Command},
    time::timeout,
};
use tokio_util::task::AbortOnDropHandle;

use super::ledger::Record;

/// How much of what it says is told; the last of it, where programs say why they fail.
const SAID_BYTES_MAX: usize = 2048;

/// How long its output is waited for when it is over: what it left running may hold it open for ever.
const OUTPUT_TIME_MAX: Duration = Duration::from_millis(200);

/// Why it did not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    /// It cannot be run.
    #[error("tls.acme.hook: {program} cannot be run")]
    Start {
        /// The program.
        program: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It failed.
    #[error("tls.acme.hook: `{program} {action} {name}` failed with {status}; {said}")]
    Failed {
        /// The program.
        program: String,
        /// What it should have done.
        action: &'static str,
        /// The record's name.
        name: String,
        /// How it ended.
        status: ExitStatus,
        /// What it said.
        said: String,
    },
    /// It was ended.
    #[error(
        "tls.acme.hook: `{program} {action} {name}` was not done after {seconds} s (tls.acme.hook_timeout_seconds), and was \
         ended; {said}"
    )]
    TimedOut {
        /// The program.
        program: String,
        /// What it should have done.
        action: &'static str,
        /// The record's name.
        name: String,
        /// How long it had.
        seconds: u64,
        /// What it said.
        said: String,
    },
}

/// The program.
#[derive(Debug)]
pub(crate) struct Hook {
    command: Vec<String>,
    time_max: Duration,
}

impl Hook {
    pub(crate) fn new(command: Vec<String>, time_max: Duration) -> Self {
        Self { command, time_max }
    }

    pub(crate) async fn present(&self, record: &Record) -> Result<(), HookError> {
        self.run("present", record).await
    }

    pub(crate) async fn clean_up(&self, record: &Record) -> Result<(), HookError> {
        self.run("cleanup", record).await
    }

    async fn run(&self, action: &'static str, record: &Record) -> Result<(), HookError> {
        let program = self.command.first().cloned().unwrap_or_default();
        let (name, seconds) = (record.name.clone(), self.time_max.as_secs());
        let (running, said) =
            self.start(action, record).map_err(|source| HookError::Start { program: program.clone(), source })?;
        let ended = timeout(self.time_max, running.end()).await;
        let said = said.end().await;
        match ended {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(Ok(status)) => Err(HookError::Failed { program, action, name, status, said }),
            Ok(Err(source)) => Err(HookError::Start { program, source }),
            Err(_) => Err(HookError::TimedOut { program, action, name, seconds, said }),
        }
    }

    fn start(&self, action: &str, record: &Record) -> std::io::Result<(Running, Said)> {
        let (writer, reader) = pipe::pipe()?;
        let writer = writer.into_blocking_fd()?;
        let [program, arguments @ ..] = &self.command[..] else { return Err(std::io::ErrorKind::NotFound.into()) };
        let child = Command::new(program)
            .args(arguments)
            .args([action, &record.name, &record.value])
            .stdin(Stdio::null())
            .stdout(writer.try_clone()?)
            .stderr(writer)
            // So that what it starts is ended with it.
            .process_group(0)
            .spawn()?;
        Ok((Running { child }, Said::listen(reader)))
    }
}

/// The program while it runs; it is ended when this is dropped, and what it started too.
struct Running {
    child: Child,
}

impl Running {
    async fn end(mut self) -> std::io::Result<ExitStatus> {
        self.child.wait().await
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // None once it has been waited for, when its number may be another's.
        let group = self.child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        if let Some(group) = group {
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

/// What it says.
struct Said {
    tail: Arc<Mutex<Vec<u8>>>,
    listening: AbortOnDropHandle<()>,
}

impl Said {
    fn listen(mut reader: pipe::Receiver) -> Self {
        let tail = Arc::<Mutex<Vec<u8>>>::default();
        let kept = Arc::clone(&tail);
        let listening = tokio::spawn(async move {
            let mut chunk = [0; 1024];
            while let Ok(length @ 1..) = reader.read(&mut chunk).await {
                let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                kept.extend_from_slice(&chunk[..length]);
                let beyond = kept.len().saturating_sub(SAID_BYTES_MAX);
                kept.drain(..beyond);
            }
        });
        Self { tail, listening: AbortOnDropHandle::new(listening) }
    }

    /// As one line.
    async fn end(mut self) -> String {
        let _ = timeout(OUTPUT_TIME_MAX, &mut self.listening).await;
        let tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        let text = String::from_utf8_lossy(&tail);
        let lines: Vec<_> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        if lines.is_empty() { "it said nothing".to_owned() } else { format!("it said: {}", lines.join(" / ")) }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Instant};

    use super::*;

    fn record() -> Record {
        Record { name: "_acme-challenge.a.test".to_owned(), value: "va-lue_1".to_owned() }
    }

    fn hook(script: &str, time_max: Duration) -> Hook {
        Hook::new(["/bin/sh", "-c", script, "hook", "extra"].map(str::to_owned).to_vec(), time_max)
    }

    #[tokio::test]
    async fn it_is_told_what_to_do_after_its_own_arguments() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("told");
        let hook = hook(&format!("echo \"$@\" >> {}", out.display()), Duration::from_secs(20));
        hook.present(&record()).await.unwrap();
        hook.clean_up(&record()).await.unwrap();
        let told = fs::read_to_string(out).unwrap();
        assert_eq!(
            told,
            "extra present _acme-challenge.a.test va-lue_1\nextra cleanup _acme-challenge.a.test va-lue_1\n"
        );
    }

    #[tokio::test]
    async fn a_failure_says_how_and_what_it_said_last() {
        let script = "echo one; head -c 5000 /dev/zero | tr '\\0' x; echo; echo no such zone >&2; exit 3";
        let error = hook(script, Duration::from_secs(20)).present(&record()).await.unwrap_err().to_string();
        assert!(
            error.starts_with("tls.acme.hook: `/bin/sh present _acme-challenge.a.test` failed with exit status: 3")
        );
        assert!(error.ends_with("x / no such zone") && !error.contains("one /"), "{error}");
        assert!(error.len() < SAID_BYTES_MAX + 200, "{}", error.len());
        let error = hook("exit 1", Duration::from_secs(20)).present(&record()).await.unwrap_err().to_string();
        assert!(error.ends_with("it said nothing"), "{error}");
    }

    #[tokio::test]
    async fn what_is_not_there_is_named() {
        let hook = Hook::new(vec!["/nowhere/hook".to_owned()], Duration::from_secs(20));
        let error = hook.present(&record()).await.unwrap_err();
        assert_eq!(error.to_string(), "tls.acme.hook: /nowhere/hook cannot be run");
    }

    #[tokio::test]
    async fn one_that_hangs_is_ended_with_all_that_it_started() {
        let dir = tempfile::tempdir().unwrap();
        let pid = dir.path().join("pid");
        let script = format!("echo waiting for the zone; sleep 600 & echo $! > {}; wait", pid.display());
        let error = hook(&script, Duration::from_secs(1)).present(&record()).await.unwrap_err().to_string();
        assert!(error.contains("was not done after 1 s (tls.acme.hook_timeout_seconds)"), "{error}");
        assert!(error.ends_with("it said: waiting for the zone"), "{error}");
        let pid: i32 = fs::read_to_string(pid).unwrap().trim().parse().unwrap();
        // Its parent is gone, so somebody else reaps it, or nobody does; either way it does not run any more.
        let runs = || fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "));
        let begin = Instant::now();
        while runs() {
            assert!(begin.elapsed() < Duration::from_secs(10), "it still runs");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    #[tokio::test]
    async fn what_it_leaves_running_holds_nobody_up() {
        let begin = Instant::now();
        hook("sleep 5 &", Duration::from_secs(20)).present(&record()).await.unwrap();
        assert!(begin.elapsed() < Duration::from_secs(4));
    }
}
