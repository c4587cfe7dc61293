//! What must survive, in files that root alone reads.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use serde::{Serialize, de::DeserializeOwned};
use sha2::{Digest, Sha256};

use crate::files::{self, FileError};

/// No file of ours is larger; whatever is, is not ours.
const FILE_BYTES_MAX: u64 = 256 * 1024;

/// A file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Reading or writing failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// It is not what this server has written.
    #[error("{path} is damaged; restore it, or remove it to begin anew")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

/// The directory of one authority.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    dir: PathBuf,
}

impl Store {
    /// Makes the directory of the authority with this URL. Does file I/O and must not run on an async thread.
    pub(crate) fn open(all: &Path, url: &str) -> Result<Self, StoreError> {
        // A name for it that any URL has, and which tells a person which one it is.
        let digest = Sha256::digest(url.as_bytes());
        let number: String = digest[..4].iter().map(|byte| format!("{byte:02x}")).collect();
        let host: String = url
            .trim_start_matches("https://")
            .chars()
            .take_while(|letter| letter.is_ascii_alphanumeric() || matches!(letter, '.' | '-'))
            .take(64)
            .collect();
        let dir = all.join(format!("{host}-{number}"));
        DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(FileError::when("make", &dir))?;
        Ok(Self { dir })
    }

    /// A directory of this name in it. Does file I/O and must not run on an async thread.
    pub(crate) fn beneath(&self, name: &str) -> Result<Self, StoreError> {
        let dir = self.path(name);
        DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(FileError::when("make", &dir))?;
        Ok(Self { dir })
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// What is in a file, if it is there. Does file I/O.
    pub(crate) fn read(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(files::read_if_there(&self.path(name), FILE_BYTES_MAX)?)
    }

    /// The same, as JSON.
    pub(crate) fn read_json<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, StoreError> {
        let Some(content) = self.read(name)? else { return Ok(None) };
        let parsed = serde_json::from_slice(&content);
        parsed.map(Some).map_err(|source| StoreError::Damaged { path: self.path(name), source })
    }

    /// Writes a file whole. Does its I/O on another thread.
    pub(crate) async fn write(&self, name: &str, content: Vec<u8>) -> Result<(), StoreError> {
        let path = self.path(name);
        let target = path.clone();
        let written = tokio::task::spawn_blocking(move || files::replace(&target, 0o600, &content)).await;
        Ok(written.unwrap_or_else(|error| Err(FileError::when("write", &path)(io::Error::other(error))))?)
    }

    /// The same, as JSON.
    pub(crate) async fn write_json<T: Serialize>(&self, name: &str, value: &T) -> Result<(), StoreError> {
        let content =
            serde_json::to_vec(value).map_err(|source| StoreError::Damaged { path: self.path(name), source })?;
        self.write(name, content).await
    }

    /// The names of its files. Does file I/O.
    pub(crate) fn names(&self) -> Result<Vec<String>, StoreError> {
        let failed = || FileError::when("list", &self.dir);
        let entries = fs::read_dir(&self.dir).map_err(failed())?;
        let names = entries.map(|entry| entry.map(|entry| entry.file_name().into_string().ok()).transpose());
        Ok(names.flatten().collect::<io::Result<_>>().map_err(failed())?)
    }

    /// Removes a file. Does file I/O.
    pub(crate) fn remove(&self, name: &str) -> Result<(), StoreError> {
        let path = self.path(name);
        Ok(fs::remove_file(&path).map_err(FileError::when("remove", &path))?)
    }

    /// Removes what a writer that was killed has left. Does file I/O.
    pub(crate) fn tidy(&self) {
        let Ok(entries) = fs::read_dir(&self.dir) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name();
            // A draft has its file's name and a number of its own behind.
            let draft = name.to_str().and_then(|name| name.rsplit_once('.'));
            if draft.is_some_and(|(_, number)| uuid::Uuid::try_parse(number).is_ok()) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[tokio::test]
    async fn what_is_written_is_private_and_whole_and_each_authority_has_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("acme"), "https://acme.example.test/directory").unwrap();
        assert!(store.read("account.json").unwrap().is_none());
        store.write("account.json", b"1".to_vec()).await.unwrap();
        store.write("account.json", b"2".to_vec()).await.unwrap();
        assert_eq!(store.read("account.json").unwrap().unwrap(), b"2");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&store.dir), mode(&store.path("account.json"))), (0o700, 0o600));
        assert_eq!(fs::read_dir(&store.dir).unwrap().count(), 1, "no drafts are left");

        let other = Store::open(&dir.path().join("acme"), "https://acme.example.test/staging").unwrap();
        assert!(other.read("account.json").unwrap().is_none());
        let names = fs::read_dir(dir.path().join("acme")).unwrap().map(|entry| entry.unwrap().file_name());
        let names: Vec<_> = names.map(|name| name.into_string().unwrap()).collect();
        assert!(names.len() == 2 && names.iter().all(|name| name.starts_with("acme.example.test-")), "{names:?}");
    }

    #[tokio::test]
    async fn what_is_damaged_or_too_large_is_refused_by_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), "https://a.test/").unwrap();
        store.write("orders.json", b"{".to_vec()).await.unwrap();
        let error = store.read_json::<Vec<u8>>("orders.json").unwrap_err().to_string();
        assert!(error.contains("orders.json is damaged"), "{error}");
        let most = usize::try_from(FILE_BYTES_MAX).unwrap();
        store.write("orders.json", vec![b' '; most]).await.unwrap();
        assert_eq!(store.read("orders.json").unwrap().unwrap().len(), most);
        store.write("orders.json", vec![b' '; most + 1]).await.unwrap();
        assert!(store.read("orders.json").is_err());
    }

    #[tokio::test]
    async fn what_a_killed_writer_left_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), "https://a.test/").unwrap();
        store.write("certificate.pem", b"x".to_vec()).await.unwrap();
        files::write_draft(&store.path("certificate.pem"), 0o600, b"half").unwrap();
        store.tidy();
        let left: Vec<_> = fs::read_dir(&store.dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["certificate.pem"]);
    }
}
