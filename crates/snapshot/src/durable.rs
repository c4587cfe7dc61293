//! Files that are whole or not there.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// Why a file was not written. Nothing is left of it, and a file that was there before is as it was.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The file system has no room left, or the quota has none.
    #[error("no room to write {}", path.display())]
    StorageFull {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A step of writing failed.
    #[error("cannot {step} {}", path.display())]
    Write {
        /// The step.
        step: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// What was to be written could not be read.
    #[error("cannot read the {length} bytes at {offset:#x} that belong into {}", path.display())]
    Source {
        /// The file.
        path: PathBuf,
        /// Where in the source.
        offset: u64,
        /// How many bytes.
        length: u64,
        /// What the source said.
        #[source]
        source: io::Error,
    },
    /// The runs of a layer are not page aligned, not in order, or outside of the memory.
    #[error("run {index} of {} is {start:#x}..{end:#x}: not whole pages in order within {memory_bytes} bytes", path.display())]
    Runs {
        /// The file.
        path: PathBuf,
        /// Which run.
        index: usize,
        /// Its first byte.
        start: u64,
        /// The byte after its last.
        end: u64,
        /// The size of the memory.
        memory_bytes: u64,
    },
    /// The memory's size is no number of whole pages, or too large.
    #[error("{memory_bytes} bytes are no memory size for {}", path.display())]
    MemorySize {
        /// The file.
        path: PathBuf,
        /// The size.
        memory_bytes: u64,
    },
    /// A layer would have more runs than one may have.
    #[error("{runs} runs are too many for {}", path.display())]
    TooManyRuns {
        /// The file.
        path: PathBuf,
        /// How many.
        runs: u64,
    },
    /// The document cannot be written as JSON.
    #[error("cannot express {} as JSON", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

impl WriteError {
    pub(crate) fn at(step: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::StorageFull { path, source },
            _ => Self::Write { step, path, source },
        }
    }
}

/// A file under a temporary name; removed on drop unless [committed](Pending::commit).
pub(crate) struct Pending {
    pub(crate) file: File,
    path: PathBuf,
    temporary: Option<PathBuf>,
}

impl Pending {
    /// Begins a file that will replace `path`. Two writers of one path must not run at once.
    pub(crate) fn create(path: &Path) -> Result<Self, WriteError> {
        let mut name = OsString::from(path.file_name().unwrap_or_default());
        name.push(".partial");
        let temporary = path.with_file_name(name);
        let file = File::options()
            .create(true)
            .truncate(true)
            .read(true)
            .write(true)
            .open(&temporary)
            .map_err(|e| WriteError::at("create", path, e))?;
        Ok(Self { file, path: path.to_owned(), temporary: Some(temporary) })
    }

    /// Makes the file durable, then gives it its name, then makes that durable.
    pub(crate) fn commit(mut self) -> Result<(), WriteError> {
        let fail = |step, path: &Path| {
            let path = path.to_owned();
            move |e| WriteError::at(step, &path, e)
        };
        self.file.sync_all().map_err(fail("sync", &self.path))?;
        if let Some(temporary) = &self.temporary {
            fs::rename(temporary, &self.path).map_err(fail("rename into place", &self.path))?;
        }
        self.temporary = None;
        sync_parent(&self.path).map_err(fail("sync the directory of", &self.path))
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            // The error that led here is the one to report; a leftover is overwritten by the next attempt.
            let _ = fs::remove_file(temporary);
        }
    }
}

fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(parent)?.sync_all()
}
