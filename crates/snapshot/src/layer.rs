//! Reading a layer: verified from the first byte to the last before a byte of it is used.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::format::{BUFFER, ENTRY, HEADER, Header, HeaderFault, Run, run_ok};

/// Zeroes handed out for runs that have no page data.
const ZEROES: &[u8] = &[0; 64 * 1024];

/// A layer whose header, table and length have been verified. Its page data is verified by [`Layer::verify`] and [`Layer::visit`].
#[derive(Debug)]
pub struct Layer {
    path: PathBuf,
    file: File,
    header: Header,
    table: Vec<Run>,
}

/// Opens a layer and verifies all of it but the page data.
pub fn open_layer(path: &Path) -> Result<Layer, ReadError> {
    let file = File::open(path).map_err(|source| ReadError::Read { path: path.to_owned(), source })?;
    layer_of(file, path)
}

/// Verifies all of an open layer but the page data; `path` is what errors call it.
pub(crate) fn layer_of(file: File, path: &Path) -> Result<Layer, ReadError> {
    let failed = |source| ReadError::Read { path: path.to_owned(), source };
    let damaged = |what: String| ReadError::Damaged { path: path.to_owned(), what };
    let found = file.metadata().map_err(failed)?.len();
    let mut bytes = [0; HEADER];
    match file.read_exact_at(&mut bytes, 0) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
            return Err(damaged(format!("{found} bytes are shorter than its header")));
        }
        Err(e) => return Err(failed(e)),
    }
    let header = Header::parse(&bytes).map_err(|fault| match fault {
        HeaderFault::Magic => ReadError::NotALayer { path: path.to_owned() },
        HeaderFault::Version(version) => ReadError::Version { path: path.to_owned(), version },
        HeaderFault::Checksum => damaged("its header does not have the checksum it says".into()),
        HeaderFault::PageSize(size) => damaged(format!("its pages have {size} bytes")),
        HeaderFault::MemorySize(size) => damaged(format!("a memory of {size} bytes cannot be")),
        HeaderFault::RunCount(runs) => damaged(format!("{runs} runs are too many")),
    })?;

    // The count is bounded by the header's check, and the file must be as long before room is made for it.
    let table_length = header.runs * ENTRY as u64;
    let Some(table_at) = found.checked_sub(table_length).filter(|&at| at >= HEADER as u64) else {
        return Err(damaged(format!("{found} bytes are shorter than its run table")));
    };
    let mut bytes = vec![0; table_length as usize];
    file.read_exact_at(&mut bytes, table_at).map_err(failed)?;
    if crc32c::crc32c(&bytes) != header.table_crc {
        return Err(damaged("its run table does not have the checksum it says".into()));
    }
    let (mut previous_end, mut data) = (0, 0);
    let mut table = Vec::with_capacity(bytes.len() / ENTRY);
    for (index, entry) in bytes.as_chunks::<ENTRY>().0.iter().enumerate() {
        let run = Run::parse(entry).filter(|run| run_ok(&run.range, previous_end, header.memory_bytes));
        let Some(run) = run else {
            return Err(damaged(format!(
                "run {index} is not of whole pages in order within its {} bytes of memory",
                header.memory_bytes
            )));
        };
        previous_end = run.range.end;
        if !run.zero {
            data += run.range.end - run.range.start;
        }
        table.push(run);
    }
    if HEADER as u64 + data != table_at {
        return Err(damaged(format!(
            "it has {found} bytes, not the {} its run table asks for",
            HEADER as u64 + data + table_length
        )));
    }
    Ok(Layer { path: path.to_owned(), file, header, table })
}

impl Layer {
    /// Size of the memory the layer is about.
    pub fn memory_bytes(&self) -> u64 {
        self.header.memory_bytes
    }

    /// The parts of memory the layer has, in order, neighbours joined.
    pub fn runs(&self) -> Vec<Range<u64>> {
        let mut runs: Vec<Range<u64>> = Vec::new();
        for Run { range, .. } in &self.table {
            match runs.last_mut() {
                Some(last) if last.end == range.start => last.end = range.end,
                _ => runs.push(range.clone()),
            }
        }
        runs
    }

    /// The file's descriptor, and the bytes of it that end with the last page.
    pub(crate) fn data(&self) -> (&File, u64) {
        (&self.file, self.pieces().filter_map(|(_, at)| at).map(|at| at.end).last().unwrap_or(0))
    }

    /// The runs of the table, in order, each with where in the file its pages are; nowhere if they are zeroes.
    pub(crate) fn pieces(&self) -> impl Iterator<Item = (Range<u64>, Option<Range<u64>>)> {
        let mut at = HEADER as u64;
        self.table.iter().map(move |run| {
            let data = (!run.zero).then(|| at..at + (run.range.end - run.range.start));
            at = data.as_ref().map_or(at, |data| data.end);
            (run.range.clone(), data)
        })
    }

    /// Verifies the page data.
    pub fn verify(&self) -> Result<(), ReadError> {
        self.each_data(|_, _| Ok(()))
    }

    /// Hands every page to `look`, as offset and content, at most 1 MiB at a time, and says afterwards whether all was as it
    /// should have been: what was done with them must be worth nothing if not. Whoever cannot undo it asks
    /// [`Layer::verify`] first.
    pub fn visit(&self, look: &mut dyn FnMut(u64, &[u8]) -> io::Result<()>) -> Result<(), ReadError> {
        let mut put = |offset, bytes: &[u8]| {
            look(offset, bytes).map_err(|source| ReadError::Apply { path: self.path.clone(), offset, source })
        };
        for run in self.table.iter().filter(|run| run.zero) {
            let mut at = run.range.start;
            while at < run.range.end {
                let length = (run.range.end - at).min(ZEROES.len() as u64);
                put(at, &ZEROES[..length as usize])?;
                at += length;
            }
        }
        self.each_data(put)
    }

    /// Hands on the page data, then says whether it was what it should have been.
    fn each_data(&self, mut put: impl FnMut(u64, &[u8]) -> Result<(), ReadError>) -> Result<(), ReadError> {
        let mut buffer = vec![0; BUFFER];
        // What of the buffer is read from the file and not handed on yet.
        let mut filled = 0..0;
        let mut data_left: u64 =
            self.table.iter().filter(|run| !run.zero).map(|run| run.range.end - run.range.start).sum();
        let mut file_at = HEADER as u64;
        let mut crc = 0;
        for run in self.table.iter().filter(|run| !run.zero) {
            let mut at = run.range.start;
            while at < run.range.end {
                if filled.is_empty() {
                    let length = data_left.min(BUFFER as u64) as usize;
                    self.file
                        .read_exact_at(&mut buffer[..length], file_at)
                        .map_err(|source| ReadError::Read { path: self.path.clone(), source })?;
                    crc = crc32c::crc32c_append(crc, &buffer[..length]);
                    file_at += length as u64;
                    data_left -= length as u64;
                    filled = 0..length;
                }
                let length = ((run.range.end - at) as usize).min(filled.len());
                put(at, &buffer[filled.start..filled.start + length])?;
                filled.start += length;
                at += length as u64;
            }
        }
        if crc != self.header.data_crc {
            return Err(ReadError::Damaged {
                path: self.path.clone(),
                what: "its page data does not have the checksum it says".to_owned(),
            });
        }
        Ok(())
    }
}

/// Why a layer was not read or applied.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file could not be read.
    #[error("cannot read the memory layer {}", path.display())]
    Read {
        /// The layer.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The file is something else.
    #[error("{} is no memory layer", path.display())]
    NotALayer {
        /// The file.
        path: PathBuf,
    },
    /// The file was written by another version of this program.
    #[error("the memory layer {} has version {version}, which is not known", path.display())]
    Version {
        /// The layer.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
    /// The file is not what was written.
    #[error("the memory layer {} is damaged: {what}", path.display())]
    Damaged {
        /// The layer.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// A page could not be put where it belongs, or compared with what is there.
    #[error("cannot apply the pages at {offset:#x} of the memory layer {}", path.display())]
    Apply {
        /// The layer.
        path: PathBuf,
        /// Where in memory.
        offset: u64,
        /// What the writer, or the reader, said.
        #[source]
        source: io::Error,
    },
}
