//! The secrets of a data directory: made at first start, readable by its owner alone.

use std::{
    fs::{DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use anyhow::Context;
use control::iam::SealingKey;
use rand::Rng;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// The access key AWS clients sign with.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LocalKey {
    /// As AWS_ACCESS_KEY_ID.
    pub access_key_id: String,
    /// As AWS_SECRET_ACCESS_KEY.
    pub secret_access_key: String,
}

#[derive(Serialize, Deserialize)]
struct StoredSealingKey {
    secret: [u8; 32],
}

/// Where the access key is.
fn local_key_path(data_dir: &Path) -> PathBuf {
    data_dir.join("secrets/access-key.json")
}

/// The access key, made if there is none.
pub fn local_key(data_dir: &Path) -> anyhow::Result<LocalKey> {
    load_or_make(&local_key_path(data_dir), || LocalKey {
        // The form of AWS's own: clients and their configuration files check it.
        access_key_id: format!("AKIAPILOT{}", random_text(11, b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567")),
        secret_access_key: random_text(40, b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"),
    })
}

/// The access key of a server that has run before.
pub fn existing_local_key(data_dir: &Path) -> anyhow::Result<LocalKey> {
    read(&local_key_path(data_dir))
}

/// The key that the secrets of users' access keys and the keys of tokens are sealed with, made if there is none. It may be a
/// link to a file elsewhere; where that is missing, none is made.
pub fn sealing_key(data_dir: &Path) -> anyhow::Result<SealingKey> {
    let path = data_dir.join("secrets/iam-key.json");
    let stored = load_or_make(&path, || StoredSealingKey { secret: rand::rng().random() })?;
    Ok(SealingKey::new(stored.secret))
}

fn random_text(length: usize, alphabet: &[u8]) -> String {
    let mut random = rand::rng();
    (0..length).map(|_| char::from(alphabet[random.random_range(0..alphabet.len())])).collect()
}

/// What is in a file of secrets.
pub fn read<T: DeserializeOwned>(path: &Path) -> anyhow::Result<T> {
    let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{} is damaged", path.display()))
}

/// Puts a new file of secrets in place of the one there is, if there is one: whole and durable, or not at all.
pub fn replace(path: &Path, with: &impl Serialize) -> anyhow::Result<()> {
    let failed = || format!("cannot write {}", path.display());
    let temporary = path.with_extension("new");
    write(&temporary, with).with_context(failed)?;
    std::fs::rename(&temporary, path).with_context(failed)?;
    sync_directory_of(path).with_context(failed)
}

/// Overwrites what is in a file that nobody needs any more. A file system that never writes in place, and a disk that moves
/// what is written, keep the old bytes for a while nevertheless.
pub fn wipe(file: &File) -> io::Result<()> {
    let bytes = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
    file.write_all_at(&vec![0; bytes], 0)?;
    file.sync_all()
}

/// Makes it durable which files there are beside this one.
pub fn sync_directory_of(path: &Path) -> io::Result<()> {
    File::open(path.parent().expect("a secret is in a directory"))?.sync_all()
}

/// Writes a file that only its owner may read, and makes what is in it durable.
fn write(path: &Path, text: &impl Serialize) -> anyhow::Result<()> {
    let _ = std::fs::remove_file(path);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(&serde_json::to_vec(text)?)?;
    Ok(file.sync_all()?)
}

fn load_or_make<T: Serialize + DeserializeOwned>(path: &Path, make: impl FnOnce() -> T) -> anyhow::Result<T> {
    if path.exists() {
        return read(path);
    }
    let made = make();
    let failed = || format!("cannot make {}", path.display());
    let dir = path.parent().expect("a secret is in a directory");
    DirBuilder::new().recursive(true).mode(0o700).create(dir).with_context(failed)?;
    // Two who make it at once, a server and a command say, each write a file of their own, and the first one stays.
    let temporary = path.with_extension(format!("{}.new", std::process::id()));
    write(&temporary, &made).with_context(failed)?;
    let placed = std::fs::hard_link(&temporary, path);
    let _ = std::fs::remove_file(&temporary);
    match placed {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return read(path),
        Err(error) => return Err(error).with_context(failed),
    }
    sync_directory_of(path).with_context(failed)?;
    Ok(made)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_is_made_once_and_is_private() {
        let dir = tempfile::tempdir().expect("a directory");
        let first = local_key(dir.path()).expect("a key");
        let second = local_key(dir.path()).expect("the same key");
        assert_eq!(first.secret_access_key, second.secret_access_key);
        assert_eq!((first.access_key_id.len(), first.secret_access_key.len()), (20, 40));
        let mode = std::fs::metadata(local_key_path(dir.path())).expect("the file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        sealing_key(dir.path()).expect("a sealing key");
        assert_eq!(std::fs::read_dir(dir.path().join("secrets")).expect("a list").count(), 2, "nothing is left over");
    }
}
