//! One network namespace per VM, all alike inside, so that a snapshot fits any of them.
//!
//! ```text
//! host ── plv…  100.x.y.1 ══ veth ══ 100.x.y.2  up0 ┐ namespace pl-…
//!                                                   │ forwards and masquerades
//!                      169.254.100.1  tap0 ─────────┘
//!                                      │ virtio-net
//!                      169.254.100.2  eth0   guest
//! ```
//!
//! Namespaces are made ahead of time by a [`Pool`], used once and destroyed: nothing of one guest (neighbours,
//! connections being tracked) is left for the next. The host's own addresses and every private network are out of a
//! guest's reach; see [`rules`].

pub mod claims;
mod namespace;
mod pool;
pub mod rules;

pub use namespace::{GUEST_MAC, Namespace};
pub use pool::{Pool, PoolConfig};

/// Why the network could not be prepared.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// A tool of the system could not be run.
    #[error("cannot run {program}: is its package installed?")]
    Spawn {
        /// The tool.
        program: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A tool refused.
    #[error("{program} failed: {stderr}")]
    Failed {
        /// The tool.
        program: &'static str,
        /// What it said.
        stderr: String,
    },
    /// A namespace's file could not be opened.
    #[error("cannot open network namespace {name}")]
    Open {
        /// Its name.
        name: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Every slot is taken.
    #[error("all {limit} network slots of this host are in use")]
    Exhausted {
        /// How many there are.
        limit: u32,
    },
}

/// How long a tool may take; they take milliseconds.
const TOOL_TIME_MAX: std::time::Duration = std::time::Duration::from_secs(30);

/// Runs a tool with a script on its standard input.
async fn run(program: &'static str, arguments: &[&str], input: &str) -> Result<String, NetworkError> {
    use tokio::io::AsyncWriteExt;

    let spawn_error = |source| NetworkError::Spawn { program, source };
    let mut child = tokio::process::Command::new(program)
        .args(arguments)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(spawn_error)?;
    let mut stdin = child.stdin.take().expect("stdin is piped");
    // A tool that stops reading early reports why by its exit status.
    let _ = stdin.write_all(input.as_bytes()).await;
    drop(stdin);
    let output = tokio::time::timeout(TOOL_TIME_MAX, child.wait_with_output())
        .await
        .unwrap_or_else(|_| Err(std::io::Error::from(std::io::ErrorKind::TimedOut)))
        .map_err(spawn_error)?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        let stderr = String::from_utf8_lossy(&output.stderr).trim().chars().take(500).collect();
        Err(NetworkError::Failed { program, stderr })
    }
}
