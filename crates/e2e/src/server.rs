//! One `pilotlight serve`, or one `sim serve`: started, killed, started again.

use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    io::{BufRead, BufReader, Write},
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use crate::{machine, repository, sweep, until};

/// Longest wait for `ready`.
const READY_MAX: Duration = Duration::from_secs(60);

/// Longest wait for a server to reach the step it is to die at. A build is on the way to some.
const DEATH_MAX: Duration = Duration::from_secs(180);

/// Longest wait for an orderly end.
const DRAIN_MAX: Duration = Duration::from_secs(60);

/// A subnet that the configuration of every server here declares; it leads nowhere.
pub const OFFLINE_SUBNET: &str = "subnet-offline";

/// A server and where it keeps its things.
pub struct Server {
    program: PathBuf,
    arguments: Vec<String>,
    child: Option<Child>,
    data_dir: PathBuf,
    log: PathBuf,
    ports: Option<(u16, u16)>,
}

/// The program under test; other programs that a test or a benchmark runs lie beside it.
#[must_use]
pub fn program() -> PathBuf {
    std::env::var_os("PILOTLIGHT").map_or_else(|| repository().join("target/release/pilotlight"), PathBuf::from)
}

/// The server over pretend VMs.
#[must_use]
pub fn simulation() -> PathBuf {
    program().with_file_name("sim")
}

/// The program whose failpoints are armed.
#[must_use]
pub fn armed() -> PathBuf {
    program().with_file_name("pilotlight-failpoints")
}

impl Server {
    /// A server that is not started.
    #[must_use]
    pub fn new(data_dir: PathBuf, log: PathBuf) -> Self {
        Self::of(program(), &[], data_dir, log)
    }

    /// A server of this program, with more arguments than every server has; not started.
    #[must_use]
    pub fn of(program: PathBuf, arguments: &[&str], data_dir: PathBuf, log: PathBuf) -> Self {
        let arguments = arguments.iter().map(|&argument| argument.to_owned()).collect();
        Self { program, arguments, child: None, data_dir, log, ports: None }
    }

    /// A process that plays these roles with the data, the ports and the log of this server, which was started before and must
    /// not run meanwhile; not started.
    #[must_use]
    pub fn with_roles(&self, roles: &str) -> Self {
        let arguments = self.arguments.iter().cloned().chain(["--roles".to_owned(), roles.to_owned()]).collect();
        let (program, data_dir, log) = (self.program.clone(), self.data_dir.clone(), self.log.clone());
        Self { program, arguments, child: None, data_dir, log, ports: self.ports }
    }

    /// Its data directory.
    #[must_use]
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// Starts it and waits until it is ready. The first start chooses free ports, later ones keep them, because
    /// endpoints that users hold name the port.
    pub fn start(&mut self) -> anyhow::Result<()> {
        let program = self.program.clone();
        self.start_program(&program, None)
    }

    /// Starts the program that dies at a step, until that is reached.
    pub fn start_to_die_at(&mut self, step: &str) -> anyhow::Result<()> {
        self.start_program(&armed(), Some(step))
    }

    /// Waits for it to die by a kill of its own.
    pub fn await_death(&mut self) -> anyhow::Result<()> {
        let child = self.child.as_mut().context("the server is not running")?;
        let status = until("the server to die", DEATH_MAX, || child.try_wait()?.context("it lives"))?;
        self.child = None;
        ensure!(status.signal() == Some(rustix::process::Signal::KILL.as_raw()), "the server ended with {status}");
        Ok(())
    }

    fn start_program(&mut self, program: &Path, die_at: Option<&str>) -> anyhow::Result<()> {
        let (api, edge) = self.ports.unwrap_or((0, 0));
        let log = OpenOptions::new().create(true).append(true).open(&self.log)?;
        let mut command = Command::new(program);
        command.arg("serve").envs(die_at.map(|step| (failpoint::VARIABLE, step)));
        if !self.arguments.iter().any(|argument| argument == "--config") {
            command.arg("--config").arg(repository().join("crates/e2e/server.toml"));
        }
        let mut child = command
            .arg("--data-dir")
            .arg(&self.data_dir)
            .arg("--initramfs")
            .arg(repository().join("target/guest/initramfs.img"))
            .args(["--api-address", &format!("127.0.0.1:{api}"), "--edge-port", &edge.to_string()])
            .args(["--region", "us-east-1"])
            .args(&self.arguments)
            .current_dir(repository())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .with_context(|| format!("starting {} (made by `make setup-tests`)", program.display()))?;
        let stdout = BufReader::new(child.stdout.take().context("stdout is piped")?);
        self.child = Some(child);
        // After the start, so that either this or the sweep sees the process.
        if sweep::is_interrupted() {
            self.crash()?;
            bail!("interrupted");
        }
        let (said, lines) = mpsc::channel();
        // Reads to the end, so that the server never blocks on a full pipe.
        thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let _ = said.send(line);
            }
        });
        let begin = Instant::now();
        loop {
            let left = READY_MAX.saturating_sub(begin.elapsed());
            match lines.recv_timeout(left) {
                Ok(line) if line.starts_with("ready") => break,
                Ok(_) => {}
                Err(_) => bail!("the server did not get ready; the end of its log:\n{}", self.log_tail()),
            }
        }
        if self.ports.is_some() {
            return Ok(());
        }
        let facts = self.facts()?;
        let api: u16 = facts["api_url"]
            .as_str()
            .and_then(|url| url.rsplit(':').next()?.trim_end_matches('/').parse().ok())
            .with_context(|| format!("no port in server.json: {facts}"))?;
        let edge = facts["edge_port"].as_u64().context("no edge_port in server.json")?;
        self.ports = Some((api, u16::try_from(edge)?));
        Ok(())
    }

    /// What the server says of itself.
    pub fn facts(&self) -> anyhow::Result<Value> {
        let path = self.data_dir.join("server.json");
        let text = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        Ok(serde_json::from_slice(&text)?)
    }

    /// Its process.
    pub fn pid(&self) -> anyhow::Result<u32> {
        Ok(self.child.as_ref().context("the server is not running")?.id())
    }

    /// Is it up?
    pub fn is_up(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Kills it as a crash would.
    pub fn crash(&mut self) -> anyhow::Result<()> {
        let mut child = self.child.take().context("the server is not running")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Asks it to end and waits.
    pub fn stop(&mut self) -> anyhow::Result<ExitStatus> {
        let mut child = self.child.take().context("the server is not running")?;
        machine::signal(child.id(), rustix::process::Signal::TERM)?;
        let ended = until("the server to drain", DRAIN_MAX, || child.try_wait()?.context("it still runs"));
        if ended.is_err() {
            child.kill()?;
            child.wait()?;
        }
        ended
    }

    /// What `pilotlight env` prints.
    pub fn environment(&self) -> anyhow::Result<BTreeMap<String, String>> {
        let output = Command::new(program()).arg("env").arg("--data-dir").arg(&self.data_dir).output()?;
        if !output.status.success() {
            bail!("pilotlight env: {}", String::from_utf8_lossy(&output.stderr));
        }
        let text = String::from_utf8(output.stdout)?;
        let environment: BTreeMap<_, _> = text
            .lines()
            .filter_map(|line| line.strip_prefix("export ")?.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.trim_matches(['\'', '"']).to_owned()))
            .collect();
        for name in ["AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "PILOTLIGHT_CA_BUNDLE"] {
            environment.get(name).with_context(|| format!("pilotlight env prints no {name}:\n{text}"))?;
        }
        Ok(environment)
    }

    /// `pilotlight iam` with these arguments and this on standard input; what it prints. The server need not run.
    pub fn iam(&self, arguments: &[&str], input: &str) -> anyhow::Result<String> {
        let mut child = Command::new(program())
            .args(["iam", "--data-dir"])
            .arg(&self.data_dir)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        child.stdin.take().context("stdin is piped")?.write_all(input.as_bytes())?;
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!("pilotlight iam {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    /// What it logged last.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let text = fs::read(&self.log).map(|text| String::from_utf8_lossy(&text).into_owned()).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Already ended is as good; the sweep sees to the rest.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
