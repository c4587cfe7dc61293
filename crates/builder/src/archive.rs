//! Unpacking a zip whose maker is not trusted.
//!
//! Nothing is believed: names are checked ([`Member`]), what comes out is counted rather than what headers promise, and
//! the kernel is told to refuse any path that leaves the tree or passes a link. Links are made last, so that nothing is
//! ever written below one.

use std::{
    collections::HashSet,
    fs::File,
    io::{self, BufReader, Read, Seek, SeekFrom, Write},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{CWD, Mode, OFlags, ResolveFlags},
    io::Errno,
};
use tokio_util::sync::CancellationToken;
use zip::{ZipArchive, result::ZipError};

use crate::member::{Member, MemberError};

/// What a code artifact may hold.
#[derive(Debug, Clone, Copy)]
pub struct ArchiveLimits {
    /// Most members.
    pub entries: u64,
    /// Most bytes in all its files together, unpacked.
    pub bytes: u64,
}

impl Default for ArchiveLimits {
    /// 100,000 members and the service's build disk of about 7 GiB.
    fn default() -> Self {
        Self { entries: 100_000, bytes: 7 << 30 }
    }
}

/// Why a code artifact was not unpacked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArchiveError {
    /// The archive could not be read from our disk.
    #[error("reading {}", path.display())]
    Read {
        /// The archive.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file could not be written to our disk.
    #[error("writing {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is not a zip archive, or a damaged one.
    #[error("it is not a readable zip archive")]
    Damaged(#[source] ZipError),
    /// The end of the archive is missing or ambiguous.
    #[error("it is not a zip archive: its end is missing")]
    NoEnd,
    /// It has too many members.
    #[error("it has {entries} entries; at most {max} are accepted")]
    TooMany {
        /// How many it says it has.
        entries: u64,
        /// The limit.
        max: u64,
    },
    /// Its files are too large.
    #[error("its files are larger than {max} bytes")]
    TooLarge {
        /// The limit.
        max: u64,
    },
    /// Two of its members have the same name.
    #[error("some of its entries have the same name")]
    Repeats,
    /// A member is refused.
    #[error("entry {name:?}")]
    Member {
        /// Its name, shortened.
        name: String,
        /// Why.
        #[source]
        source: MemberError,
    },
    /// A member cannot be unpacked.
    #[error("entry {name:?} cannot be unpacked")]
    Content {
        /// Its name, shortened.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// There is no regular file `Dockerfile` at its root.
    #[error("it has no Dockerfile at its root")]
    NoDockerfile,
    /// The build was cancelled meanwhile.
    #[error("the build was cancelled")]
    Cancelled,
}

impl ArchiveError {
    /// Is it this machine's fault, not the archive's?
    pub(crate) fn is_ours(&self) -> bool {
        matches!(self, Self::Read { .. } | Self::Write { .. } | Self::Cancelled)
    }
}

/// Longest target of a symbolic link.
const LINK_BYTES_MAX: u64 = 4095;

/// Longest part of a name that is repeated in an error.
const SHOWN_CHARS_MAX: usize = 200;

/// Unpacks `archive` into `into`, which is made, and sees that it holds a Dockerfile. It blocks.
pub fn unpack(
    archive: &Path,
    into: &Path,
    limits: ArchiveLimits,
    cancel: &CancellationToken,
) -> Result<(), ArchiveError> {
    let read = |source| ArchiveError::Read { path: archive.to_owned(), source };
    let mut file = File::open(archive).map_err(read)?;
    let entries = entries_said(&mut file).map_err(read)?.ok_or(ArchiveError::NoEnd)?;
    if entries > limits.entries {
        return Err(ArchiveError::TooMany { entries, max: limits.entries });
    }
    let mut zip = ZipArchive::new(BufReader::new(file)).map_err(ArchiveError::Damaged)?;
    // The reader keeps one of several members of the same name; which one is a guess that we do not make.
    if zip.len() as u64 != entries {
        return Err(ArchiveError::Repeats);
    }
    // An archive that says it is too large is taken at its word, before anything is written. What is counted below
    // holds against those that say less than they are.
    if zip.decompressed_size().is_some_and(|bytes| bytes > u128::from(limits.bytes)) {
        return Err(ArchiveError::TooLarge { max: limits.bytes });
    }

    let mut tree = Tree::make(into, limits.entries)?;
    let mut room = limits.bytes;
    let mut links = Vec::new();
    let mut buffer = vec![0; 256 * 1024];
    for index in 0..zip.len() {
        if cancel.is_cancelled() {
            return Err(ArchiveError::Cancelled);
        }
        let mut entry = zip.by_index(index).map_err(ArchiveError::Damaged)?;
        let shown: String = entry.name().chars().take(SHOWN_CHARS_MAX).collect();
        let refuse = |source| ArchiveError::Member { name: shown.clone(), source };
        let member = Member::parse(entry.name()).map_err(refuse)?;
        let mode = entry.unix_mode();
        let kind = mode.map_or(0, |mode| mode & 0o170_000);
        if entry.is_dir() || kind == 0o040_000 {
            tree.directory(&member, mode).map_err(|source| tree.failed(&member, &shown, source))?;
            continue;
        }
        match kind {
            0 | 0o100_000 => {
                let mut out = tree.file(&member, mode).map_err(|source| tree.failed(&member, &shown, source))?;
                loop {
                    let count = entry
                        .read(&mut buffer)
                        .map_err(|source| ArchiveError::Content { name: shown.clone(), source })?;
                    if count == 0 {
                        break;
                    }
                    room = room.checked_sub(count as u64).ok_or(ArchiveError::TooLarge { max: limits.bytes })?;
                    if cancel.is_cancelled() {
                        return Err(ArchiveError::Cancelled);
                    }
                    out.write_all(&buffer[..count])
                        .map_err(|source| ArchiveError::Write { path: into.join(member.path()), source })?;
                }
            }
            0o120_000 => {
                let mut target = Vec::new();
                (&mut entry)
                    .take(LINK_BYTES_MAX + 1)
                    .read_to_end(&mut target)
                    .map_err(|source| ArchiveError::Content { name: shown.clone(), source })?;
                let target = String::from_utf8_lossy(&target).into_owned();
                member.check_link(&target).map_err(refuse)?;
                links.push((member, target, shown));
            }
            _ => return Err(refuse(MemberError::Special)),
        }
    }
    for (member, target, shown) in links {
        tree.link(&member, &target).map_err(|source| tree.failed(&member, &shown, source))?;
    }
    let dockerfile = into.join("Dockerfile").symlink_metadata();
    if !dockerfile.is_ok_and(|dockerfile| dockerfile.is_file()) {
        return Err(ArchiveError::NoDockerfile);
    }
    Ok(())
}

/// How many members the end of the archive says there are, read before anything is allocated for them; `None` when the
/// file does not end as a zip does.
fn entries_said(file: &mut File) -> io::Result<Option<u64>> {
    const END: usize = 22;
    const COMMENT_MAX: usize = u16::MAX as usize;
    let length = file.seek(SeekFrom::End(0))?;
    let tail_start = length.saturating_sub((END + COMMENT_MAX) as u64);
    file.seek(SeekFrom::Start(tail_start))?;
    let mut tail = Vec::new();
    Read::take(&mut *file, (END + COMMENT_MAX) as u64).read_to_end(&mut tail)?;
    let u16_at = |bytes: &[u8], at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    let Some(end) = (0..=tail.len().saturating_sub(END)).rev().find(|&at| {
        tail.len() >= at + END
            && tail[at..].starts_with(b"PK\x05\x06")
            && at + END + usize::from(u16_at(&tail, at + 20)) == tail.len()
    }) else {
        return Ok(None);
    };
    let entries = u16_at(&tail, end + 10);
    // A ZIP64 locator is just before the end, and names the offset of the record with the real numbers.
    let Some(locator) = end.checked_sub(20).filter(|&at| tail[at..].starts_with(b"PK\x06\x07")) else {
        return Ok(Some(u64::from(entries)));
    };
    let mut offset = [0; 8];
    offset.copy_from_slice(&tail[locator + 8..locator + 16]);
    let offset = u64::from_le_bytes(offset);
    if offset > length {
        return Ok(None);
    }
    file.seek(SeekFrom::Start(offset))?;
    let mut record = [0; 56];
    if file.read_exact(&mut record).is_err() || !record.starts_with(b"PK\x06\x06") {
        return Ok(None);
    }
    let mut entries = [0; 8];
    entries.copy_from_slice(&record[32..40]);
    Ok(Some(u64::from_le_bytes(entries)))
}

/// The tree being written.
struct Tree {
    root: OwnedFd,
    path: PathBuf,
    /// Directories known to be there, so that each is made once.
    directories: HashSet<PathBuf>,
    /// Most of them: a member's name may bring many.
    directories_max: u64,
}

impl Tree {
    fn make(path: &Path, directories_max: u64) -> Result<Self, ArchiveError> {
        let failed = |source: Errno| ArchiveError::Write { path: path.to_owned(), source: source.into() };
        rustix::fs::mkdir(path, Mode::from_raw_mode(0o755)).map_err(failed)?;
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let root = rustix::fs::openat(CWD, path, flags, Mode::empty()).map_err(failed)?;
        Ok(Self { root, path: path.to_owned(), directories: HashSet::new(), directories_max })
    }

    /// Opens the directory that is to hold a path, making what is missing.
    fn parent(&mut self, path: &Path) -> rustix::io::Result<OwnedFd> {
        let parent = path.parent().unwrap_or(Path::new(""));
        if !parent.as_os_str().is_empty() && !self.directories.contains(parent) {
            self.make_directories(parent)?;
        }
        self.open(parent, OFlags::DIRECTORY, Mode::empty())
    }

    fn make_directories(&mut self, path: &Path) -> rustix::io::Result<()> {
        let mut missing: Vec<&Path> = path
            .ancestors()
            .take_while(|above| !above.as_os_str().is_empty() && !self.directories.contains(*above))
            .collect();
        while let Some(directory) = missing.pop() {
            if self.directories.len() as u64 >= self.directories_max {
                return Err(Errno::DQUOT);
            }
            let above = self.open(directory.parent().unwrap_or(Path::new("")), OFlags::DIRECTORY, Mode::empty())?;
            let name = directory.file_name().ok_or(Errno::INVAL)?;
            rustix::fs::mkdirat(&above, name, Mode::from_raw_mode(0o755))?;
            self.directories.insert(directory.to_owned());
        }
        Ok(())
    }

    fn open(&self, path: &Path, flags: OFlags, mode: Mode) -> rustix::io::Result<OwnedFd> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        rustix::fs::openat2(&self.root, path, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, mode, resolve)
    }

    fn directory(&mut self, member: &Member, mode: Option<u32>) -> rustix::io::Result<()> {
        if !self.directories.contains(member.path()) {
            self.make_directories(member.path())?;
        }
        // Ours to write in while unpacking, whatever the archive says.
        let mode = permissions(mode, 0o755) | 0o700;
        let directory = self.open(member.path(), OFlags::DIRECTORY, Mode::empty())?;
        rustix::fs::fchmod(&directory, Mode::from_raw_mode(mode))
    }

    fn file(&mut self, member: &Member, mode: Option<u32>) -> rustix::io::Result<File> {
        self.parent(member.path())?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        let file = self.open(member.path(), flags, Mode::from_raw_mode(0o600))?;
        // Separately, because the mode of `open` is masked.
        rustix::fs::fchmod(&file, Mode::from_raw_mode(permissions(mode, 0o644)))?;
        Ok(file.into())
    }

    fn link(&mut self, member: &Member, target: &str) -> rustix::io::Result<()> {
        let parent = self.parent(member.path())?;
        rustix::fs::symlinkat(target, &parent, member.path().file_name().ok_or(Errno::INVAL)?)
    }

    fn failed(&self, member: &Member, shown: &str, source: Errno) -> ArchiveError {
        match source {
            // A name that is taken, a file used as a directory, a directory below a link.
            Errno::EXIST | Errno::NOTDIR | Errno::ISDIR | Errno::LOOP => {
                ArchiveError::Member { name: shown.to_owned(), source: MemberError::Twice }
            }
            Errno::DQUOT => ArchiveError::TooMany { entries: self.directories_max + 1, max: self.directories_max },
            source => ArchiveError::Write { path: self.path.join(member.path()), source: source.into() },
        }
    }
}

/// The permission bits to give; set-user-id, set-group-id and sticky bits are dropped.
fn permissions(mode: Option<u32>, otherwise: u32) -> u32 {
    match mode.map(|mode| mode & 0o777) {
        None | Some(0) => otherwise,
        Some(mode) => mode,
    }
}

#[cfg(test)]
#[path = "archive_tests.rs"]
mod tests;
