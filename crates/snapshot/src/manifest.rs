//! The document that makes files a snapshot.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Component, Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::durable::{Pending, WriteError};

const MAGIC: &str = "pilotlight-snapshot";
const VERSION: u32 = 1;
/// The largest document read.
const MAX_BYTES: u64 = 1 << 20;
/// The most files a snapshot has.
const MAX_FILES: usize = 1024;

/// What a snapshot consists of. Written last, with [`write_whole`]: a directory without one is not a snapshot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    magic: String,
    version: u32,
    /// What it is a snapshot of, e.g. `version` or `suspended`.
    pub kind: String,
    /// Its files.
    pub files: Vec<FileEntry>,
    /// What the machine was: memory, processors, CPU model, accelerator, QEMU's version, machine.
    pub vm: serde_json::Value,
    /// The crc32c of all this without it. Manifests of before it was kept have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    crc32c: Option<u32>,
}

/// A file of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Its name in the snapshot's directory.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// The crc32c of its content; `None` where the file has checksums of its own or is too large to be read
    /// through.
    pub crc32c: Option<u32>,
}

impl FileEntry {
    /// Measures a file, and reads it through if `with_checksum`.
    pub fn of(dir: &Path, name: &str, with_checksum: bool) -> Result<Self, ManifestError> {
        let path = dir.join(name);
        let read = |source| ManifestError::Read { path: path.clone(), source };
        let crc32c = with_checksum.then(|| checksum_file(&path)).transpose().map_err(read)?;
        Ok(Self { name: name.to_owned(), bytes: std::fs::metadata(&path).map_err(read)?.len(), crc32c })
    }
}

impl Manifest {
    /// A manifest of these files.
    pub fn new(kind: impl Into<String>, files: Vec<FileEntry>, vm: serde_json::Value) -> Self {
        let unsummed = Self { magic: MAGIC.to_owned(), version: VERSION, kind: kind.into(), files, vm, crc32c: None };
        Self { crc32c: Some(unsummed.sum()), ..unsummed }
    }

    /// The checksum of what it says, however it is spaced.
    fn sum(&self) -> u32 {
        let unsummed = Self { crc32c: None, ..self.clone() };
        crc32c::crc32c(&serde_json::to_vec(&unsummed).expect("a manifest is plain data with text keys"))
    }

    /// Writes the manifest; when this returns the snapshot exists.
    pub fn write(&self, path: &Path) -> Result<(), WriteError> {
        write_whole(path, self)
    }

    /// Reads a manifest and verifies that it is one; says nothing about its files.
    pub fn read(path: &Path) -> Result<Self, ManifestError> {
        /// Read before the rest, so that a later version is called that and not nonsense.
        #[derive(Deserialize)]
        struct Head {
            magic: String,
            version: u32,
        }
        let value: serde_json::Value = read_checked(path)?;
        let path = || path.to_owned();
        let parse = |source| ManifestError::Parse { path: path(), source };
        let head = Head::deserialize(&value).map_err(parse)?;
        if head.magic != MAGIC {
            return Err(ManifestError::Magic { path: path(), magic: head.magic });
        }
        if head.version != VERSION {
            return Err(ManifestError::Version { path: path(), version: head.version });
        }
        let manifest = Self::deserialize(value).map_err(parse)?;
        if manifest.crc32c.is_some_and(|crc32c| crc32c != manifest.sum()) {
            return Err(ManifestError::Sum { path: path() });
        }
        if manifest.files.len() > MAX_FILES {
            return Err(ManifestError::Files { path: path() });
        }
        match manifest.files.iter().find(|file| !is_plain(&file.name)) {
            Some(file) => Err(ManifestError::Name { path: path(), name: file.name.clone() }),
            None => Ok(manifest),
        }
    }

    /// Verifies that every file is there, with its length and, where there is one, its checksum.
    pub fn verify_files(&self, dir: &Path) -> Result<(), ManifestError> {
        for file in &self.files {
            let found = FileEntry::of(dir, &file.name, file.crc32c.is_some())?;
            if found != *file {
                return Err(ManifestError::Differs { path: dir.join(&file.name), expected: file.clone(), found });
            }
        }
        Ok(())
    }
}

/// Whether a name is one file in a directory and nothing else.
fn is_plain(name: &str) -> bool {
    let mut components = Path::new(name).components();
    matches!(components.next(), Some(Component::Normal(only)) if only == name) && components.next().is_none()
}

/// Writes a document as JSON: whole and durable under its name, or not at all.
pub fn write_whole<T: Serialize + ?Sized>(path: &Path, document: &T) -> Result<(), WriteError> {
    let mut text =
        serde_json::to_vec_pretty(document).map_err(|source| WriteError::Json { path: path.to_owned(), source })?;
    text.push(b'\n');
    let mut pending = Pending::create(path)?;
    pending.file.write_all(&text).map_err(|e| WriteError::at("write", path, e))?;
    pending.commit()
}

/// Reads a JSON document of at most 1 MiB.
pub fn read_checked<T: DeserializeOwned>(path: &Path) -> Result<T, ManifestError> {
    let mut text = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut text));
    read.map_err(|source| ManifestError::Read { path: path.to_owned(), source })?;
    if text.len() as u64 > MAX_BYTES {
        return Err(ManifestError::TooLarge { path: path.to_owned() });
    }
    serde_json::from_slice(&text).map_err(|source| ManifestError::Parse { path: path.to_owned(), source })
}

/// The crc32c of a file's content.
pub fn checksum_file(path: &Path) -> io::Result<u32> {
    let mut file = File::open(path)?;
    let mut buffer = vec![0; 1 << 20];
    let mut crc = 0;
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(crc),
            Ok(length) => crc = crc32c::crc32c_append(crc, &buffer[..length]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// Why a document or a snapshot's files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// A file could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The document is too large to be one.
    #[error("{} has more than {MAX_BYTES} bytes", path.display())]
    TooLarge {
        /// The document.
        path: PathBuf,
    },
    /// The document is not what it should be.
    #[error("{} cannot be understood", path.display())]
    Parse {
        /// The document.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// The document is something else.
    #[error("{} is a {magic:?}, not a {MAGIC:?}", path.display())]
    Magic {
        /// The document.
        path: PathBuf,
        /// What it says it is.
        magic: String,
    },
    /// The document was written by another version of this program.
    #[error("{} has version {version}, which is not known", path.display())]
    Version {
        /// The document.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
    /// The document is not as it was written.
    #[error("{} is damaged: its checksum is that of something else", path.display())]
    Sum {
        /// The document.
        path: PathBuf,
    },
    /// The manifest has too many files.
    #[error("{} lists more than {MAX_FILES} files", path.display())]
    Files {
        /// The manifest.
        path: PathBuf,
    },
    /// A file's name leads elsewhere.
    #[error("{} lists {name:?}, which is not the name of a file beside it", path.display())]
    Name {
        /// The manifest.
        path: PathBuf,
        /// The name.
        name: String,
    },
    /// A file is not the one the manifest lists.
    #[error("{} is {found:?}, not {expected:?}", path.display())]
    Differs {
        /// The file.
        path: PathBuf,
        /// What is listed.
        expected: FileEntry,
        /// What is there.
        found: FileEntry,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_manifest_round_trips_and_its_files_are_verified() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("state"), b"123456789").unwrap();
        let files = vec![FileEntry::of(dir.path(), "state", true).unwrap()];
        // The check value of CRC-32C.
        assert_eq!(files[0].crc32c, Some(0xE306_9283));
        let manifest = Manifest::new("microvm", files, serde_json::json!({ "memory_mib": 512 }));
        let path = dir.path().join("manifest.json");
        manifest.write(&path).unwrap();
        let read = Manifest::read(&path).unwrap();
        assert_eq!(read, manifest);
        read.verify_files(dir.path()).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "no temporary is left");

        fs::write(dir.path().join("state"), b"123456780").unwrap();
        assert!(matches!(read.verify_files(dir.path()), Err(ManifestError::Differs { .. })));
        fs::remove_file(dir.path().join("state")).unwrap();
        assert!(matches!(read.verify_files(dir.path()), Err(ManifestError::Read { .. })));
    }

    #[test]
    fn what_is_no_manifest_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("manifest.json");
        let with = |name: &str| {
            let file = FileEntry { name: name.into(), bytes: 0, crc32c: None };
            Manifest::new("base", vec![file], serde_json::Value::Null)
        };
        for name in ["../state", "/etc/passwd", "a/b", "", ".", "..", "a/"] {
            with(name).write(&path).unwrap();
            assert!(matches!(Manifest::read(&path), Err(ManifestError::Name { .. })), "{name:?}");
        }
        Manifest { magic: "other".into(), ..with("a") }.write(&path).unwrap();
        assert!(matches!(Manifest::read(&path), Err(ManifestError::Magic { .. })));
        fs::write(&path, format!("{{\"magic\":\"{MAGIC}\",\"version\":9,\"new\":1}}")).unwrap();
        assert!(matches!(Manifest::read(&path), Err(ManifestError::Version { version: 9, .. })));
        fs::write(&path, vec![b' '; MAX_BYTES as usize + 1]).unwrap();
        assert!(matches!(Manifest::read(&path), Err(ManifestError::TooLarge { .. })));
        fs::write(&path, b"{\"magic\":").unwrap();
        assert!(matches!(Manifest::read(&path), Err(ManifestError::Parse { .. })));
    }
}
