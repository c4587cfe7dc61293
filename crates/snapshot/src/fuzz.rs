//! Files that are not what was written, and a VMM's handshake with anything in it.
//!
//! Edits alone would not get past the checksums, so a file can be given good ones afterwards.
//!
//! An ordinary run tries what it comes upon in a second a test. `cargo bolero test -p snapshot fuzz::<test>` looks for what
//! it has not seen yet, for as long as it is left.

mod layer;

use std::fs::File;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use allocation_counter::measure;
use bolero::TypeGenerator;
use rustix::fs::{MemfdFlags, memfd_create};
use serde_json::{Value, json};

use crate::format::PAGE;
use crate::pager::{MAX_REGIONS, parse_handshake, read_touched, write_touched};
use crate::{Manifest, ManifestError};

/// How much an edited sample grows at most: enough that a cost for each byte stands out from the fixed ones.
const BYTES_MAX: usize = 64 * 1024;
/// The memory the samples are about, in bytes.
const MEMORY: u64 = 64 * PAGE;

/// A change to a sample. Positions go around its end.
#[derive(Debug, TypeGenerator)]
enum Edit {
    Set {
        at: u16,
        byte: u8,
    },
    /// A whole number, where the formats have theirs.
    Number {
        at: u16,
        number: u64,
    },
    /// A number of pages in its place.
    Pages {
        at: u16,
        #[generator(0u8..65)]
        pages: u8,
        zero: bool,
    },
    Cut {
        at: u16,
        bytes: u16,
    },
    Put {
        at: u16,
        bytes: Vec<u8>,
    },
    Repeat {
        at: u16,
        bytes: u8,
        times: u8,
    },
}

impl Edit {
    fn apply(&self, sample: &mut Vec<u8>) {
        let place = |at: u16| usize::from(at) % (sample.len() + 1);
        let stretch = |at: u16, bytes: usize| place(at)..(place(at) + bytes).min(sample.len());
        let number = |at: &u16| (place(*at) & !7)..((place(*at) & !7) + 8).min(sample.len());
        let (replaced, by) = match self {
            Self::Set { at, byte } => (stretch(*at, 1), vec![*byte]),
            Self::Number { at, number: value } => (number(at), value.to_le_bytes().into()),
            Self::Pages { at, pages, zero } => {
                (number(at), (u64::from(*pages) * PAGE + u64::from(*zero)).to_le_bytes().into())
            }
            Self::Cut { at, bytes } => (stretch(*at, (*bytes).into()), vec![]),
            Self::Put { at, bytes } => (stretch(*at, 0), bytes.clone()),
            Self::Repeat { at, bytes, times } => {
                (stretch(*at, 0), sample[stretch(*at, (*bytes).into())].repeat((*times).into()))
            }
        };
        sample.splice(replaced, by);
    }
}

/// Few changes: what is edited much is soon refused for the first thing wrong with it.
#[derive(Debug, TypeGenerator)]
enum Edits {
    None,
    Some(#[generator(bolero::produce::<Vec<Edit>>().with().len(1usize..4))] Vec<Edit>),
}

impl Edits {
    fn of(&self, sample: &[u8]) -> Vec<u8> {
        let mut bytes = sample.to_vec();
        let Self::Some(edits) = self else { return bytes };
        for edit in edits {
            edit.apply(&mut bytes);
            bytes.truncate(BYTES_MAX);
        }
        bytes
    }
}

/// Puts the checksum of a part of a file where its header has it, if the file has both.
fn sum(bytes: &mut [u8], part: Range<usize>, at: usize) {
    if let Some(crc) = bytes.get(part).map(crc32c::crc32c) {
        bytes[at..at + 4].copy_from_slice(&crc.to_le_bytes());
    }
}

/// Whether these are whole pages of a memory, said without the code that is tried.
fn pages_within(run: &Range<u64>, memory_bytes: u64) -> bool {
    run.start < run.end && run.end <= memory_bytes && [run.start, run.end].iter().all(|at| at.is_multiple_of(PAGE))
}

/// The file, with that content and nothing else.
fn filled(file: &File, bytes: &[u8]) -> File {
    file.set_len(0).unwrap();
    file.write_all_at(bytes, 0).unwrap();
    file.try_clone().unwrap()
}

fn memory_file() -> File {
    memfd_create("fuzz", MemfdFlags::CLOEXEC).unwrap().into()
}

#[test]
fn a_list_of_touched_pages_may_be_anything() {
    let file = memory_file();
    let runs = [8 * PAGE..9 * PAGE, 0..4 * PAGE, MEMORY - PAGE..MEMORY];
    write_touched(&file, MEMORY, &runs).unwrap();
    let mut sample = vec![0; 40 + runs.len() * 16];
    file.read_exact_at(&mut sample, 0).unwrap();
    bolero::check!().with_type::<(bool, bool, Edits, Edits)>().for_each(|(sums, count, header, list)| {
        let list = list.of(&sample[40..]);
        let mut bytes = [header.of(&sample[..40]), list.clone()].concat();
        let length = bytes.len();
        if *count && length > 40 {
            bytes[24..32].copy_from_slice(&(list.len() as u64 / 16).to_le_bytes());
        }
        if *sums && length > 40 {
            sum(&mut bytes, 40..length, 32);
            sum(&mut bytes, 0..36, 36);
        }
        let file = filled(&file, &bytes);
        let mut result = None;
        let used = measure(|| result = Some(read_touched(&file, MEMORY))).bytes_max as usize;
        // The list as it is, and as it is read into a vector that grows.
        assert!(used <= 4 * length + 4096, "{used} bytes of memory for a file of {length}");
        let Ok(runs) = result.expect("it ran") else { return };
        assert!(runs.iter().all(|run| pages_within(run, MEMORY)), "{runs:?}");
        write_touched(&file, MEMORY, &runs).unwrap();
        let mut again = vec![0; file.metadata().unwrap().len() as usize];
        file.read_exact_at(&mut again, 0).unwrap();
        assert_eq!(again, bytes, "a list is written in one way only");
    });
}

/// A memory region in a handshake, in pages and as it could be, with perhaps one number that could not.
#[derive(Debug, TypeGenerator)]
struct Mapping {
    #[generator(0u64..32)]
    address: u64,
    #[generator(0u64..8)]
    size: u64,
    #[generator(0u64..64)]
    offset: u64,
    odd: Option<(u8, Number)>,
}

impl Mapping {
    fn json(&self) -> Value {
        let mut numbers = [self.address * PAGE, self.size * PAGE, self.offset * PAGE, PAGE, PAGE].map(Some);
        if let Some((which, number)) = &self.odd {
            numbers[usize::from(*which) % 5] = number.value();
        }
        let [address, size, offset, page_size, page_size_kib] = numbers;
        json!({ "base_host_virt_addr": address, "size": size, "offset": offset, "page_size": page_size,
                "page_size_kib": page_size_kib })
    }
}

#[derive(Debug, TypeGenerator)]
enum Number {
    None,
    Pages(u8),
    Any(u64),
    /// So many bytes before the last number there is.
    Last(u16),
}

impl Number {
    fn value(&self) -> Option<u64> {
        match self {
            Self::None => None,
            Self::Pages(pages) => Some(u64::from(*pages) * PAGE),
            Self::Any(number) => Some(*number),
            Self::Last(before) => Some(u64::MAX - u64::from(*before)),
        }
    }
}

/// A handshake.
#[derive(Debug, TypeGenerator)]
struct Handshake {
    #[generator(bolero::produce::<Vec<Mapping>>().with().len(0usize..5))]
    mappings: Vec<Mapping>,
    edits: Edits,
}

#[test]
fn a_handshake_may_be_anything() {
    bolero::check!().with_type::<Handshake>().for_each(|Handshake { mappings, edits }| {
        let mappings: Vec<_> = mappings.iter().map(Mapping::json).collect();
        let message = edits.of(json!(mappings).to_string().as_bytes());
        let mut result = None;
        let used = measure(|| result = Some(parse_handshake(&message, MEMORY))).bytes_max as usize;
        // 56 bytes for a mapping of 45, in a vector with room for twice as many and while its half is still there.
        assert!(used <= 8 * message.len() + 8192, "{used} bytes of memory for a message of {}", message.len());
        let Ok(regions) = result.expect("it ran") else { return };
        let list: Vec<_> = regions.iter().collect();
        assert!((1..=MAX_REGIONS).contains(&list.len()));
        assert!(list.is_sorted_by(|a, b| a.address + a.bytes <= b.address), "apart in the VMM, and in order");
        for region in &list {
            assert!(pages_within(&region.offsets(), MEMORY) && region.address.is_multiple_of(PAGE), "{region:?}");
            assert_eq!(regions.of_address(region.address + region.bytes - 1), Some(*region));
            assert_eq!(regions.of_offset(region.offset + region.bytes - 1), Some(*region), "apart in the file");
            assert_eq!(regions.of_offset(region.offset), Some(*region), "apart in the file");
        }
        let again: Vec<_> = list
            .iter()
            .map(|region| {
                json!({ "base_host_virt_addr": region.address, "size": region.bytes, "offset": region.offset,
                        "page_size": PAGE })
            })
            .collect();
        assert_eq!(parse_handshake(json!(again).to_string().as_bytes(), MEMORY).unwrap(), regions);
    });
}

#[test]
fn a_manifest_may_be_anything() {
    let sample = json!({
        "magic": "pilotlight-snapshot", "version": 1, "kind": "suspended", "vm": { "memory_mib": 512 },
        "files": [{ "name": "device.state", "bytes": 7, "crc32c": 5 }, { "name": "scratch.img", "bytes": 8, "crc32c": null }],
    });
    let sample = sample.to_string();
    let file = memory_file();
    let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    filled(&file, sample.as_bytes());
    Manifest::read(&path).expect("the sample is one");
    bolero::check!().with_type::<Edits>().for_each(|edits| {
        let bytes = edits.of(sample.as_bytes());
        filled(&file, &bytes);
        let mut result = None;
        let used = measure(|| result = Some(Manifest::read(&path))).bytes_max as usize;
        // An object of one member takes a whole node of a B-tree, of 11: a hundred times its `{"":0},`.
        assert!(used <= 160 * bytes.len() + 8192, "{used} bytes of memory for a file of {}", bytes.len());
        match result.expect("it ran") {
            Ok(manifest) => {
                let plain = |name: &str| !name.is_empty() && !name.contains('/') && name != "." && name != "..";
                assert!(manifest.files.iter().all(|file| plain(&file.name)), "{manifest:?}");
                filled(&file, &serde_json::to_vec(&manifest).unwrap());
                assert_eq!(Manifest::read(&path).unwrap(), manifest);
            }
            Err(ManifestError::Read { .. } | ManifestError::Differs { .. }) => panic!("the file can be read"),
            Err(_) => {}
        }
    });
}
