//! The program out of a release archive.
//!
//! Nothing of the archive decides where anything is written: one entry is looked for by its exact name, and its bytes go
//! to a file that is open already. Everything else is skipped, whatever it is called.

use std::io::{self, Read, Write};

use anyhow::{Context, bail, ensure};
use flate2::read::GzDecoder;
use tar::{Archive, Entry, EntryType};

use super::{
    checksum::{self, Summed},
    release::Release,
};

/// The archive has about twenty files, and a header of their own for some.
const ENTRIES_MAX: usize = 1000;

/// All of the archive: debug information takes most of it, some 50 MB a program.
const UNPACKED_BYTES_MAX: u64 = 1 << 30;

/// The program has 3.5 MB (v1.16.1, x86_64).
const PROGRAM_BYTES_MAX: u64 = 64 << 20;

/// SHA256SUMS has 2 KB (v1.16.1).
const SUMS_BYTES_MAX: u64 = 64 << 10;

/// A reader that fails, rather than ends, where more comes than may come.
pub struct Bounded<R> {
    reader: R,
    left: u64,
    max: u64,
}

impl<R: Read> Bounded<R> {
    /// So many bytes.
    pub fn new(reader: R, max: u64) -> Self {
        Self { reader, left: max, max }
    }
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.reader.read(buffer)?;
        match self.left.checked_sub(count as u64) {
            Some(left) => self.left = left,
            None => return Err(io::Error::other(format!("there is more than the {} bytes it may have", self.max))),
        }
        Ok(count)
    }
}

/// Writes the program in this archive to `out`, and compares it with the archive's own checksums if it has any.
pub fn unpack(archive: impl Read, release: &Release, out: &mut dyn Write) -> anyhow::Result<()> {
    let mut archive = Archive::new(Bounded::new(GzDecoder::new(archive), UNPACKED_BYTES_MAX));
    let (mut program, mut sums) = (None, None);
    // Raw: long names and extended headers are entries like others, of no interest. Both wanted names fit into a
    // header, and so nothing is read into memory because an archive says so.
    for (index, entry) in archive.entries()?.raw(true).enumerate() {
        ensure!(index < ENTRIES_MAX, "it has more than {ENTRIES_MAX} entries");
        let mut entry = entry.context("it is damaged")?;
        let name = entry.path_bytes().into_owned();
        if name == release.program_entry().as_bytes() {
            ensure!(program.is_none(), "it has {} twice", release.program_entry());
            let mut summed = Summed::new(&mut *out);
            copy(&mut entry, PROGRAM_BYTES_MAX, &mut summed)
                .with_context(|| format!("entry {}", release.program_entry()))?;
            program = Some(summed.finish().1);
        } else if name == release.sums_entry().as_bytes() {
            ensure!(sums.is_none(), "it has {} twice", release.sums_entry());
            let mut text = Vec::new();
            copy(&mut entry, SUMS_BYTES_MAX, &mut text).with_context(|| format!("entry {}", release.sums_entry()))?;
            sums = Some(text);
        }
    }
    let program = program.with_context(|| format!("it has no {}", release.program_entry()))?;
    if let Some(text) = sums {
        let named = checksum::of_many(&text, &release.program_name())
            .with_context(|| format!("cannot use its {}", release.sums_entry()))?;
        ensure!(program == named, "the program's SHA-256 is {program}, and its own SHA256SUMS says {named}");
    }
    Ok(())
}

fn copy(entry: &mut Entry<'_, impl Read>, bytes_max: u64, out: &mut dyn Write) -> anyhow::Result<()> {
    match entry.header().entry_type() {
        EntryType::Regular => {}
        other => bail!("it is not a regular file but {other:?}"),
    }
    let bytes = entry.size();
    ensure!(bytes <= bytes_max, "it has {bytes} bytes, more than the {bytes_max} it may have");
    let copied = io::copy(entry, out).context("cannot copy it")?;
    ensure!(copied == bytes, "it ends after {copied} bytes of {bytes}");
    Ok(())
}
