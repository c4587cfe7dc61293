//! The plain-text log of one build, bounded: what a Dockerfile prints is up to the Dockerfile.

use std::{
    io,
    path::{Path, PathBuf},
};

use tokio::{
    fs::{File, OpenOptions},
    io::AsyncWriteExt,
};

use crate::Cause;

/// Longest log of one build.
const LOG_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// The log of one build.
pub(crate) struct BuildLog {
    file: File,
    path: PathBuf,
    room: u64,
    cut: bool,
}

impl BuildLog {
    /// Opens a log for appending.
    pub(crate) async fn open(path: &Path) -> Result<Self, Cause> {
        let file = OpenOptions::new().create(true).append(true).open(path).await;
        let file = file.map_err(|source| failed("opening the log", path, source))?;
        Ok(Self { file, path: path.to_owned(), room: LOG_BYTES_MAX, cut: false })
    }

    /// Appends what a tool printed; past the limit it is dropped.
    pub(crate) async fn write(&mut self, bytes: &[u8]) -> Result<(), Cause> {
        if self.cut {
            return Ok(());
        }
        let Some(room) = self.room.checked_sub(bytes.len() as u64) else {
            self.cut = true;
            let marker = format!("\n[the log is cut here: it reached {} MiB]\n", LOG_BYTES_MAX >> 20);
            return self.put(marker.as_bytes()).await;
        };
        self.room = room;
        self.put(bytes).await
    }

    /// Appends a line of our own, even past the limit: there are only a few.
    pub(crate) async fn say(&mut self, line: &str) -> Result<(), Cause> {
        self.put(format!("{line}\n").as_bytes()).await
    }

    async fn put(&mut self, bytes: &[u8]) -> Result<(), Cause> {
        let written = async {
            self.file.write_all(bytes).await?;
            self.file.flush().await
        };
        written.await.map_err(|source| failed("writing the log", &self.path, source))
    }
}

fn failed(step: &'static str, path: &Path, source: io::Error) -> Cause {
    Cause::File { step, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_log_ends_at_its_limit() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("log");
        let mut log = BuildLog::open(&path).await.expect("a log");
        let chunk = vec![b'x'; 1024 * 1024];
        for _ in 0..20 {
            log.write(&chunk).await.expect("written");
        }
        log.say("the end").await.expect("said");
        let text = std::fs::read_to_string(&path).expect("the log");
        assert!(text.len() < 16 * 1024 * 1024 + 200);
        assert_eq!(text.matches("the log is cut here").count(), 1);
        assert!(text.ends_with("the end\n"));
    }
}
