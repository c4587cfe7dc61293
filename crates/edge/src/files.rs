//! Files of secrets and certificates: read up to a bound, and written so that they are there whole or not at all, whenever this
//! process is killed.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use uuid::Uuid;

/// What could not be done with a file or a directory.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {path}")]
pub struct FileError {
    /// What was tried.
    pub operation: &'static str,
    /// The file.
    pub path: PathBuf,
    /// Why.
    #[source]
    pub source: io::Error,
}

impl FileError {
    /// Makes one of what the system says.
    pub(crate) fn when(operation: &'static str, path: &Path) -> impl Fn(io::Error) -> Self {
        move |source| Self { operation, path: path.to_owned(), source }
    }
}

/// What is in a file of no more bytes than this.
pub(crate) fn read(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    File::open(path)?.take(bytes_max + 1).read_to_end(&mut content)?;
    if content.len() as u64 > bytes_max {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok(content)
}

/// The same, if it is there.
pub(crate) fn read_if_there(path: &Path, bytes_max: u64) -> Result<Option<Vec<u8>>, FileError> {
    match read(path, bytes_max) {
        Ok(content) => Ok(Some(content)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(FileError::when("read", path)(error)),
    }
}

/// Writes a file whole, then renames it; it outlives a crash of the machine from then on.
pub(crate) fn replace(path: &Path, mode: u32, content: &[u8]) -> Result<(), FileError> {
    let draft = write_draft(path, mode, content)?;
    let rename = || {
        fs::rename(&draft, path)?;
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(dir)?.sync_all()
    };
    rename().map_err(FileError::when("replace", path))
}

/// The content in a file of a name of its own, beside the path.
pub(crate) fn write_draft(path: &Path, mode: u32, content: &[u8]) -> Result<PathBuf, FileError> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}", Uuid::new_v4()));
    let draft = path.with_file_name(name);
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&draft)?;
        // The mode at opening is cut by the umask, and everybody may read an authority's certificate.
        file.set_permissions(PermissionsExt::from_mode(mode))?;
        file.write_all(content)?;
        file.sync_all()
    };
    write().map_err(|error| {
        // What is left of it would only puzzle people; that it may not be removable either is no second error.
        let _ = fs::remove_file(&draft);
        FileError::when("write", path)(error)
    })?;
    Ok(draft)
}
