//! Copies of large, mostly empty files.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use crate::durable::{Pending, WriteError};

/// How much the kernel is asked to copy at once.
const PIECE: u64 = 64 << 20;

/// Copies a file so that holes stay holes, as a reflink where the file system can; replaces `to`. Returns the
/// bytes `to` has allocated (a reflink shares them). Durable when it returns.
pub fn copy_sparse(from: &Path, to: &Path) -> Result<u64, CopyError> {
    let read = |source| CopyError::Read { path: from.to_owned(), source };
    let source = File::open(from).map_err(read)?;
    let length = source.metadata().map_err(read)?.len();
    let pending = Pending::create(to)?;
    // Any refusal means "not here"; the copy below says what is really wrong, if anything is.
    if rustix::fs::ioctl_ficlone(&pending.file, &source).is_err() {
        let written = |e: Errno| WriteError::at("copy into", to, e.into());
        pending.file.set_len(length).map_err(|e| WriteError::at("set the length of", to, e))?;
        let mut at = 0;
        while at < length {
            let start = match rustix::fs::seek(&source, SeekFrom::Data(at)) {
                Ok(start) => start,
                // Nothing but a hole follows.
                Err(Errno::NXIO) => break,
                Err(e) => return Err(read(e.into())),
            };
            let end = rustix::fs::seek(&source, SeekFrom::Hole(start)).map_err(|e| read(e.into()))?.min(length);
            copy_range(&source, &pending.file, start..end).map_err(written)?;
            at = end;
        }
    }
    let allocated = |file: &File| Ok(file.metadata()?.blocks() * 512);
    let bytes = allocated(&pending.file).map_err(|e| WriteError::at("look at", to, e))?;
    pending.commit()?;
    Ok(bytes)
}

fn copy_range(from: &File, to: &File, range: std::ops::Range<u64>) -> Result<(), Errno> {
    let (mut from_at, mut to_at) = (range.start, range.start);
    while from_at < range.end {
        let piece = (range.end - from_at).min(PIECE) as usize;
        let copied = rustix::fs::copy_file_range(from, Some(&mut from_at), to, Some(&mut to_at), piece);
        match copied {
            // The file was made shorter meanwhile.
            Ok(0) => return Err(Errno::IO),
            Ok(_) | Err(Errno::INTR) => {}
            // Between different kinds of file systems, or on one that cannot.
            Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                return copy_by_hand(from, to, from_at..range.end);
            }
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

fn copy_by_hand(from: &File, to: &File, range: std::ops::Range<u64>) -> Result<(), Errno> {
    let mut buffer = vec![0; 1 << 20];
    let mut at = range.start;
    while at < range.end {
        let want = (range.end - at).min(buffer.len() as u64) as usize;
        let length = rustix::io::pread(from, &mut buffer[..want], at)?;
        if length == 0 {
            return Err(Errno::IO);
        }
        let mut written = 0;
        while written < length {
            written += rustix::io::pwrite(to, &buffer[written..length], at + written as u64)?;
        }
        at += length as u64;
    }
    Ok(())
}

/// Why a file was not copied. Nothing of the copy is left.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The original could not be read.
    #[error("cannot read {} to copy it", path.display())]
    Read {
        /// The original.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The copy could not be written.
    #[error("the copy failed")]
    Write(#[from] WriteError),
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::FileExt;

    #[test]
    fn holes_stay_holes_and_data_stays_data() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        let file = File::create(&from).unwrap();
        file.set_len(64 << 20).unwrap();
        file.write_all_at(b"begin", 0).unwrap();
        file.write_all_at(&[7; 100_000], 30 << 20).unwrap();
        let allocated = copy_sparse(&from, &to).unwrap();
        assert!(allocated < 4 << 20, "{allocated}");
        assert_eq!(fs::read(&from).unwrap(), fs::read(&to).unwrap());

        let empty = dir.path().join("empty");
        File::create(&empty).unwrap();
        assert_eq!(copy_sparse(&empty, &to).unwrap(), 0);
        assert_eq!(fs::metadata(&to).unwrap().len(), 0);
    }

    #[test]
    fn across_file_systems() {
        let (Ok(memory), disk) = (tempfile::tempdir_in("/dev/shm"), tempfile::tempdir().unwrap()) else {
            return;
        };
        let (from, to) = (memory.path().join("from"), disk.path().join("to"));
        let file = File::create(&from).unwrap();
        file.set_len(16 << 20).unwrap();
        file.write_all_at(&[9; 3_000_000], 5_000_000).unwrap();
        copy_sparse(&from, &to).unwrap();
        assert_eq!(fs::read(&from).unwrap(), fs::read(&to).unwrap());
    }

    #[test]
    fn a_failed_copy_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let to = dir.path().join("to");
        assert!(matches!(copy_sparse(&dir.path().join("nothing"), &to), Err(CopyError::Read { .. })));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
