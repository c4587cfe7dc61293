//! A file of lines that is put aside at a size: `audit.jsonl`, then `audit.jsonl.1`, and so on, the oldest removed.

use std::{
    ffi::OsString,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::PathBuf,
};

use super::Limits;

/// The file being written and those put aside.
pub struct RotatingFile {
    path: PathBuf,
    limits: Limits,
    open: Option<(File, u64)>,
}

impl RotatingFile {
    /// The file, opened when there is something to write.
    pub fn new(path: PathBuf, limits: Limits) -> Self {
        Self { path, limits, open: None }
    }

    fn aside(&self, number: u32) -> PathBuf {
        let mut name: OsString = self.path.clone().into_os_string();
        name.push(format!(".{number}"));
        name.into()
    }

    fn opened(&self) -> io::Result<(File, u64)> {
        if let Some(directory) = self.path.parent() {
            DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        }
        let mut file = OpenOptions::new().create(true).read(true).append(true).mode(0o600).open(&self.path)?;
        let mut bytes = file.metadata()?.len();
        // A crash may have cut the last line short; the next one begins on a line of its own.
        if bytes > 0 {
            let mut last = [0];
            file.seek(SeekFrom::End(-1))?;
            file.read_exact(&mut last)?;
            if last != *b"\n" {
                file.write_all(b"\n")?;
                bytes += 1;
            }
        }
        Ok((file, bytes))
    }

    /// Adds a line, with its end. After a failure the file is as it was, so that every line in it is whole.
    pub fn append(&mut self, line: &[u8]) -> io::Result<()> {
        let length = line.len() as u64;
        if let Some((_, bytes)) = &self.open
            && *bytes > 0
            && bytes + length > self.limits.file_bytes
        {
            self.open = None;
            self.put_aside()?;
        }
        let (mut file, bytes) = match self.open.take() {
            Some(open) => open,
            None => self.opened()?,
        };
        let result = file.write_all(line);
        match &result {
            Ok(()) => self.open = Some((file, bytes + length)),
            // Opened anew the next time, and a part of a line that could not be taken back is ended then.
            Err(_) => {
                let _ = file.set_len(bytes);
            }
        }
        result
    }

    /// Makes what was added last as lasting as the disk can.
    pub fn sync(&self) -> io::Result<()> {
        self.open.as_ref().map_or(Ok(()), |(file, _)| file.sync_data())
    }

    fn put_aside(&self) -> io::Result<()> {
        let absent_is_fine = |result: io::Result<()>| match result {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        };
        if self.limits.files_kept == 0 {
            return absent_is_fine(fs::remove_file(&self.path));
        }
        // The last one falls off the end by being renamed over.
        for number in (1..self.limits.files_kept).rev() {
            absent_is_fine(fs::rename(self.aside(number), self.aside(number + 1)))?;
        }
        absent_is_fine(fs::rename(&self.path, self.aside(1)))
    }
}
