//! Removing what a crashed process's builds left.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::process::{Pid, Signal};
use tokio::time::{Instant, sleep};

use crate::{
    Cause,
    build::Inner,
    process::{PROCESS_FILE, started_at},
};

/// Longest wait for a left-over process to be gone.
const DEATH_MAX: Duration = Duration::from_secs(5);

/// Longest file that names a process.
const PROCESS_FILE_BYTES_MAX: usize = 64;

impl Inner {
    /// Ends the processes of left-over jobs, then removes their files, containers and layers.
    pub(crate) async fn sweep(&self) -> Result<(), Cause> {
        self.store.prepare().await?;
        let jobs = self.store.jobs();
        for path in left_over(&jobs).await.map_err(|source| failed("listing", &jobs, source))? {
            end_process(&path).await;
            let removed = match tokio::fs::symlink_metadata(&path).await {
                Ok(meta) if meta.is_dir() => tokio::fs::remove_dir_all(&path).await,
                Ok(_) => tokio::fs::remove_file(&path).await,
                Err(error) => Err(error),
            };
            removed.map_err(|source| failed("removing", &path, source))?;
            tracing::info!(path = %path.display(), "removed what a crashed build left");
        }
        // It counts mounts that are gone with their namespaces.
        let run_root = self.store.run_root();
        match tokio::fs::remove_dir_all(&run_root).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed("removing", &run_root, error));
            }
            _ => {}
        }
        self.mark_untidy();
        self.tidy().await;
        Ok(())
    }
}

async fn left_over(jobs: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    let mut entries = tokio::fs::read_dir(jobs).await?;
    while let Some(entry) = entries.next_entry().await? {
        paths.push(entry.path());
    }
    Ok(paths)
}

/// Kills the process group that a job noted, if it is still the same process; its namespace ends with it.
async fn end_process(job: &Path) {
    let Ok(noted) = tokio::fs::read(job.join(PROCESS_FILE)).await else { return };
    let Some((id, started)) = parse(&noted) else { return };
    if started_at(id) != Some(started) {
        return;
    }
    if let Some(group) = Pid::from_raw(id.cast_signed()) {
        tracing::warn!(id, "ending a build that outlived its server");
        let _ = rustix::process::kill_process_group(group, Signal::KILL);
    }
    let deadline = Instant::now() + DEATH_MAX;
    while started_at(id) == Some(started) && Instant::now() < deadline {
        sleep(Duration::from_millis(20)).await;
    }
}

fn parse(noted: &[u8]) -> Option<(u32, u64)> {
    let text = std::str::from_utf8(noted.get(..noted.len().min(PROCESS_FILE_BYTES_MAX))?).ok()?;
    let (id, started) = text.trim().split_once(' ')?;
    // 0 and 1 would name our own group and everything.
    let id: u32 = id.parse().ok().filter(|id| (2..=i32::MAX as u32).contains(id))?;
    Some((id, started.parse().ok()?))
}

fn failed(step: &'static str, path: &Path, source: io::Error) -> Cause {
    Cause::File { step, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_names_a_process() {
        assert_eq!(parse(b"1234 5678\n"), Some((1234, 5678)));
        for bad in ["", "1234", "0 1", "1 1", "-5 1", "4294967295 1", "x y"] {
            assert_eq!(parse(bad.as_bytes()), None, "{bad:?}");
        }
    }
}
