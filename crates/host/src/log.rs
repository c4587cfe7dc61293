//! A log file that cannot fill the disk.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

/// Most bytes of one file; there are at most two, `x.log` and the older `x.log.1`.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// What a guest writes, kept up to a bound: when the file is full it becomes the older one and a new one starts.
pub struct BoundedLog {
    path: PathBuf,
    file: File,
    bytes: u64,
    bytes_max: u64,
}

impl BoundedLog {
    /// Opens the log at this path, going on where it was.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::with_limit(path, FILE_BYTES_MAX)
    }

    fn with_limit(path: &Path, bytes_max: u64) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        let bytes = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), file, bytes, bytes_max })
    }

    /// Appends. A full disk loses log lines, never the microVM; so errors end here.
    pub fn write(&mut self, data: &[u8]) {
        if self.bytes >= self.bytes_max
            && let Err(error) = self.rotate()
        {
            tracing::warn!(path = %self.path.display(), %error, "cannot rotate a guest's log");
            return;
        }
        if self.file.write_all(data).is_ok() {
            self.bytes += data.len() as u64;
        }
    }

    fn rotate(&mut self) -> io::Result<()> {
        let mut older = self.path.clone().into_os_string();
        older.push(".1");
        std::fs::rename(&self.path, older)?;
        self.file = OpenOptions::new().create(true).append(true).open(&self.path)?;
        self.bytes = 0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::BoundedLog;

    #[test]
    fn a_flood_is_bounded_and_the_end_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.log");
        let mut log = BoundedLog::with_limit(&path, 100).unwrap();
        for number in 0..1000 {
            log.write(format!("{number:09}\n").as_bytes());
        }
        let kept: u64 =
            std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
        assert!((100..=220).contains(&kept), "{kept}");
        assert!(std::fs::read_to_string(&path).unwrap().ends_with("000000999\n"));
    }
}
