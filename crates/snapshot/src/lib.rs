//! The files a suspended microVM consists of.
//!
//! A snapshot is a directory: the VM's device state, its scratch disk, one [layer](write_layer) with the memory
//! pages that differ from its version's base, and a [`Manifest`] that names them with their sizes and checksums.
//! The manifest is written last; whoever renames the directory decides when the snapshot counts. Everything is written under a
//! temporary name, synced and renamed, so a file under its own name is whole, and every file is verified before
//! a byte of it is used.
//!
//! A suspended microVM comes back with its memory served on demand: [`pager`] is the program that does it.
#![deny(unsafe_code)]

mod copy;
mod delta;
mod durable;
mod format;
#[cfg(test)]
mod fuzz;
mod layer;
mod manifest;
mod merge;
pub mod pager;
mod sys;
mod write;

pub use copy::{CopyError, copy_sparse};
pub use delta::changed_since;
pub use durable::WriteError;
pub use layer::{Layer, ReadError, open_layer};
pub use manifest::{FileEntry, Manifest, ManifestError, checksum_file, read_checked, write_whole};
pub use merge::Merged;
pub use write::{LayerStats, write_layer};
