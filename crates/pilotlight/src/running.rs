//! What a running server tells the other verbs, in `server.json` under its data directory.

use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};

/// Where the server can be reached. The file is there while it runs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Running {
    /// Its process.
    pub pid: u32,
    /// URL for AWS clients.
    pub api_url: String,
    /// Port of the endpoints.
    pub edge_port: u16,
    /// Certificate authority of the endpoints, if it is one that nobody else knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// Region it answers as.
    pub region: String,
}

impl Running {
    fn path(data_dir: &Path) -> PathBuf {
        data_dir.join("server.json")
    }

    /// Says that the server runs.
    pub fn announce(&self, data_dir: &Path) -> anyhow::Result<()> {
        snapshot::write_whole(&Self::path(data_dir), self).context("cannot write server.json")
    }

    /// Says that it does not any more.
    pub fn retract(data_dir: &Path) {
        let _ = std::fs::remove_file(Self::path(data_dir));
    }

    /// The server of this data directory.
    pub fn find(data_dir: &Path) -> anyhow::Result<Self> {
        let path = Self::path(data_dir);
        let text = std::fs::read(&path).with_context(|| {
            format!(
                "no server runs with the data directory {}; start one with `pilotlight serve`, or name its directory \
                 with --data-dir",
                data_dir.display()
            )
        })?;
        serde_json::from_slice(&text).with_context(|| format!("{} is damaged", path.display()))
    }
}
