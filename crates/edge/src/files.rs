//! Files that are there whole or not at all, whenever this process is killed.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use uuid::Uuid;

/// Writes a file whole, then renames it; it outlives a crash of the machine from then on.
pub(crate) fn replace(path: &Path, mode: u32, content: &[u8]) -> io::Result<()> {
    let draft = write_draft(path, mode, content)?;
    fs::rename(&draft, path)?;
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(dir)?.sync_all()
}

/// The content in a file of a name of its own, beside the path.
pub(crate) fn write_draft(path: &Path, mode: u32, content: &[u8]) -> io::Result<PathBuf> {
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
    write().inspect_err(|_| {
        // What is left of it would only puzzle people; that it may not be removable either is no second error.
        let _ = fs::remove_file(&draft);
    })?;
    Ok(draft)
}
