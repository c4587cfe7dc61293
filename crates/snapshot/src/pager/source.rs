//! The files a guest's memory comes from.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use super::pages::{Origin, PageMap};
use crate::format::{MAX_RUNS, PAGE, memory_size_ok};
use crate::layer::{ReadError, layer_of};
use crate::sys::Mapping;

/// The base, the layer above it, and which of them has which page.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) pages: PageMap,
    base: Mapping,
    layer: Option<Mapping>,
}

impl Source {
    /// Maps the files. The layer is read through and verified; a base is too large for that, and its holes are zeroes.
    pub(crate) fn open(memory_bytes: u64, base: &File, layer: Option<File>) -> Result<Self, SourceError> {
        if memory_bytes == 0 || !memory_size_ok(memory_bytes) {
            return Err(SourceError::MemorySize { memory_bytes });
        }
        let found = base.metadata().map_err(SourceError::Base)?.len();
        if found != memory_bytes {
            return Err(SourceError::BaseLength { expected: memory_bytes, found });
        }
        let data = data_of(base, memory_bytes).map_err(SourceError::Base)?;
        let base = Mapping::of(base, memory_bytes).map_err(SourceError::Base)?;
        let Some(layer) = layer else {
            return Ok(Self { pages: PageMap::new(memory_bytes, &data, std::iter::empty()), base, layer: None });
        };
        let layer = layer_of(layer, Path::new("on its descriptor"))?;
        if layer.memory_bytes() != memory_bytes {
            return Err(SourceError::LayerOfOther { expected: memory_bytes, found: layer.memory_bytes() });
        }
        layer.verify()?;
        let pages = PageMap::new(memory_bytes, &data, layer.pieces());
        let (file, bytes) = layer.data();
        let layer = (bytes > 0).then(|| Mapping::of(file, bytes)).transpose().map_err(SourceError::Layer)?;
        Ok(Self { pages, base, layer })
    }

    /// The mapping of an origin and where in it; `None` for zeroes.
    pub(crate) fn mapping(&self, origin: Origin) -> Option<(&Mapping, u64)> {
        match origin {
            Origin::Zero => None,
            Origin::Base(at) => Some((&self.base, at)),
            Origin::Layer(at) => self.layer.as_ref().map(|layer| (layer, at)),
        }
    }

    /// Waits until a part of the memory is in the page cache.
    pub(crate) fn warm(&self, offsets: Range<u64>) {
        let mut at = offsets.start;
        while at < offsets.end {
            let (origin, stretch) = self.pages.find(at);
            let end = stretch.end.min(offsets.end);
            if let Some((mapping, from)) = self.mapping(origin) {
                mapping.warm(from..from + (end - at));
            }
            at = end;
        }
    }
}

/// The parts of a file that are not holes, as whole pages. On a file system that does not tell there is one: all.
fn data_of(file: &File, bytes: u64) -> io::Result<Vec<Range<u64>>> {
    let mut parts: Vec<Range<u64>> = Vec::new();
    let mut at = 0;
    while at < bytes {
        let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(start) if start < bytes => start,
            // Nothing but a hole follows.
            Ok(_) | Err(Errno::NXIO) => break,
            Err(e) => return Err(e.into()),
        };
        // What is beyond the bound is called data: more is copied than had to be, and right all the same.
        let full = parts.len() as u64 >= MAX_RUNS;
        let end = if full { bytes } else { rustix::fs::seek(file, SeekFrom::Hole(start))?.min(bytes) };
        let (start, end) = (start / PAGE * PAGE, end.next_multiple_of(PAGE));
        match parts.last_mut() {
            Some(last) if last.end >= start => last.end = end,
            _ => parts.push(start..end),
        }
        at = end;
    }
    Ok(parts)
}

/// Why a memory cannot be served from these files.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The memory's size is no number of whole pages, zero or too large.
    #[error("{memory_bytes} bytes are no memory size")]
    MemorySize {
        /// The size in bytes.
        memory_bytes: u64,
    },
    /// The base cannot be used.
    #[error("cannot map the base")]
    Base(#[source] io::Error),
    /// The base is not as large as the memory.
    #[error("the base has {found} bytes, the memory {expected}")]
    BaseLength {
        /// The size of the memory in bytes.
        expected: u64,
        /// The size of the base in bytes.
        found: u64,
    },
    /// The layer is not what was written.
    #[error("the layer cannot be used")]
    LayerContent(#[from] ReadError),
    /// The layer cannot be mapped.
    #[error("cannot map the layer")]
    Layer(#[source] io::Error),
    /// The layer is of a memory of another size.
    #[error("the layer is of a memory of {found} bytes, not {expected}")]
    LayerOfOther {
        /// The size of the memory in bytes.
        expected: u64,
        /// The size the layer is about, in bytes.
        found: u64,
    },
}
