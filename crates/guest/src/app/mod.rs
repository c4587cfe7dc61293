//! The app: one process started once, its output, its end.
//!
//! ```text
//! NotStarted ─ start ─► Starting ─ it executes ─► Running ─ it ends ─► Exited
//!      ▲                   │  └──── it ends before that is known ────────►┘
//!      └── it cannot be ───┘
//! ```

mod child;
mod etc;
mod filesystems;
mod identity;
mod launch;
mod oom;
mod privileges;
mod program;
pub(crate) mod shell;

use crate::agent::Agent;
use crate::output::Output;
use guest_protocol::{AppEnd, AppSpec, AppStatus, Stream};
use rustix::process::{Pid, WaitOptions, WaitStatus, wait};
use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::signal::unix::Signal;
use tokio::sync::oneshot;

/// Bytes read from the app at a time.
const READ_BYTES: usize = 16 * 1024;

/// Why the app did not start. The text reaches the user whose image it is.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    /// An app is there already.
    #[error("the app was started before")]
    Twice,
    /// There is no program to run.
    #[error("there is no program to run: the image has neither ENTRYPOINT nor CMD")]
    NoProgram,
    /// A text for the kernel contains a zero byte or, in the name of a variable, an equals sign.
    #[error("{what} {text:?} holds a character that is not allowed there")]
    Text {
        /// What the text is.
        what: &'static str,
        /// The text.
        text: String,
    },
    /// The host name was refused.
    #[error("cannot set the host name {name:?}")]
    Hostname {
        /// The name.
        name: String,
        #[source]
        source: io::Error,
    },
    /// A pipe to the app could not be made or read.
    #[error("cannot make the pipes to the app")]
    Pipe(#[source] io::Error),
    /// The process could not be made.
    #[error("cannot make the app's process")]
    Clone(#[source] io::Error),
    /// The process was made and could not become the app; it said why.
    #[error("{0}")]
    Child(String),
}

/// The app's state.
#[derive(Default)]
pub(crate) struct App {
    life: Life,
    /// What it printed and the host does not have yet.
    pub(crate) output: Output,
    /// Output streams that are still open.
    streams_open: u8,
    /// What it was started as, for shells to be like it.
    spec: Option<Arc<AppSpec>>,
    /// Shells that live, and who waits for their ends.
    shells: HashMap<Pid, oneshot::Sender<i32>>,
}

#[derive(Default)]
enum Life {
    #[default]
    NotStarted,
    Starting {
        pid: Option<Pid>,
        ended: Option<AppEnd>,
    },
    Running(Pid),
    Exited(AppEnd),
}

impl App {
    /// How the app is, as the host is told.
    pub(crate) fn status(&self) -> AppStatus {
        match &self.life {
            Life::NotStarted | Life::Starting { .. } => AppStatus::NotStarted,
            Life::Running(_) => AppStatus::Running,
            Life::Exited(end) => AppStatus::Exited(end.clone()),
        }
    }

    /// The app's first process, and what it was started as.
    fn running(&self) -> Option<(Pid, Arc<AppSpec>)> {
        match (&self.life, &self.spec) {
            (Life::Running(pid), Some(spec)) => Some((*pid, Arc::clone(spec))),
            _ => None,
        }
    }

    /// The status once the app has ended and the host has all it printed.
    pub(crate) fn finished(&self) -> Option<AppStatus> {
        let over = matches!(self.life, Life::Exited(_)) && self.streams_open == 0 && self.output.is_empty();
        over.then(|| self.status())
    }

    /// A process that was a child of the agent is gone. Orphans of the app have their own PID 1 to end up at, so this
    /// is the app, a shell, or something that left its namespace and died.
    fn reaped(&mut self, gone: Pid, status: WaitStatus) {
        if let Some(waiting) = self.shells.remove(&gone) {
            // Whoever waited may have gone away: that ended it, most likely.
            let _ = waiting.send(exit_code(status));
            return;
        }
        let end = || {
            let code = exit_code(status);
            AppEnd { code, out_of_memory: oom::cause(gone, code) }
        };
        match &mut self.life {
            Life::Starting { pid: Some(pid), ended } if *pid == gone => *ended = Some(end()),
            Life::Running(pid) if *pid == gone => self.life = Life::Exited(end()),
            Life::NotStarted | Life::Starting { .. } | Life::Running(_) | Life::Exited(_) => {}
        }
    }
}

/// Exit code of a process, or 128 + the number of the signal that ended it.
fn exit_code(status: WaitStatus) -> i32 {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => code,
        (None, Some(signal)) => 128 + signal,
        (None, None) => 255,
    }
}

/// Starts the app; returns once its program runs, or says why it cannot.
pub(crate) async fn start(agent: Arc<Agent>, spec: AppSpec) -> Result<(), StartError> {
    {
        let mut app = agent.app();
        if !matches!(app.life, Life::NotStarted) {
            return Err(StartError::Twice);
        }
        app.life = Life::Starting { pid: None, ended: None };
    }
    let started = launch(&agent, spec).await;
    let mut app = agent.app();
    app.life = match (&started, std::mem::take(&mut app.life)) {
        // Nothing is left of a failed start, so the next one finds what this one found.
        (Err(_), _) => Life::NotStarted,
        (Ok(()), Life::Starting { ended: Some(end), .. }) => Life::Exited(end),
        (Ok(()), Life::Starting { pid: Some(pid), .. }) => Life::Running(pid),
        (Ok(()), other) => other,
    };
    drop(app);
    agent.news.notify_one();
    started
}

async fn launch(agent: &Arc<Agent>, spec: AppSpec) -> Result<(), StartError> {
    let spec = Arc::new(spec);
    let plan = child::Plan::new(Arc::clone(&spec))?;
    let launched = launch::launch(&plan)?;
    {
        // No wait lies between the birth of the process and this, so its end cannot have been reaped yet.
        let mut app = agent.app();
        app.life = Life::Starting { pid: Some(launched.pid), ended: None };
        app.streams_open = 2;
        app.spec = Some(spec);
    }
    tokio::spawn(collect(Arc::clone(agent), Stream::Stdout, launched.stdout));
    tokio::spawn(collect(Arc::clone(agent), Stream::Stderr, launched.stderr));
    launch::outcome(launched.outcome).await
}

/// Moves what the app prints into the queue. A full queue drops its oldest bytes, so the app never waits for a host.
async fn collect(agent: Arc<Agent>, stream: Stream, mut pipe: pipe::Receiver) {
    let mut buffer = vec![0u8; READ_BYTES];
    loop {
        match pipe.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(bytes) => agent.app().output.push(stream, &buffer[..bytes]),
        }
        agent.news.notify_one();
    }
    let mut app = agent.app();
    app.streams_open = app.streams_open.saturating_sub(1);
    drop(app);
    agent.news.notify_one();
}

/// Reaps every child that ends, for ever: PID 1 inherits whatever nobody else waits for.
pub(crate) async fn reap_children(agent: Arc<Agent>, mut signal: Signal) {
    loop {
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            agent.app().reaped(pid, status);
            agent.news.notify_one();
        }
        if signal.recv().await.is_none() {
            return;
        }
    }
}
