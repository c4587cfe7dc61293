//! What a VMM says about its memory, and what of that is believed.
//!
//! Firecracker connects, sends one JSON array with the userfaultfd attached, and says nothing more. By then a guest may
//! have taken the VMM over, so its word is bounded and checked as if the guest had written it.

use std::ops::Range;

use serde::Deserialize;

use crate::format::PAGE;

/// The longest message read, in bytes. Firecracker's have about 130 a region.
pub const MAX_MESSAGE: usize = 64 * 1024;
/// The most regions. Firecracker has two on x86-64 (below and above the PCI hole), and one more for hot-plugged memory.
pub const MAX_REGIONS: usize = 64;

/// A stretch of guest memory in the VMM's address space.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Region {
    /// Where it begins in the VMM's address space.
    pub address: u64,
    /// Its size in bytes.
    pub bytes: u64,
    /// Where it begins in the memory file, in bytes.
    pub offset: u64,
}

/// A guest's memory: regions that overlap neither in the VMM nor in the memory file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Regions(Vec<Region>);

impl Regions {
    /// The region of an address.
    pub(crate) fn of_address(&self, address: u64) -> Option<&Region> {
        let after = self.0.partition_point(|region| region.address <= address);
        let region = &self.0[after.checked_sub(1)?];
        (address - region.address < region.bytes).then_some(region)
    }

    /// The region of an offset in the memory file.
    pub(crate) fn of_offset(&self, offset: u64) -> Option<&Region> {
        // Few enough to look at each; prefetching asks once for a quarter of a megabyte.
        self.0.iter().find(|region| region.offsets().contains(&offset))
    }

    /// All of them, by address.
    pub fn iter(&self) -> impl Iterator<Item = &Region> {
        self.0.iter()
    }
}

impl Region {
    /// Its part of the memory file.
    pub(crate) fn offsets(&self) -> Range<u64> {
        self.offset..self.offset + self.bytes
    }

    /// Where in the VMM's address space a part of the memory file within it is.
    pub(crate) fn addresses(&self, offsets: &Range<u64>) -> Range<u64> {
        debug_assert!(self.offset <= offsets.start && offsets.end <= self.offset + self.bytes);
        let start = self.address + (offsets.start - self.offset);
        start..start + (offsets.end - offsets.start)
    }
}

/// A region as Firecracker writes it: `GuestRegionUffdMapping` in its `persist.rs`.
#[derive(Deserialize)]
struct Mapping {
    base_host_virt_addr: u64,
    size: u64,
    offset: u64,
    /// In bytes; since Firecracker 1.11.
    page_size: Option<u64>,
    /// In bytes as well, whatever its name says.
    page_size_kib: Option<u64>,
}

/// Reads the message of a VMM whose memory file has `memory_bytes` bytes.
pub fn parse_handshake(message: &[u8], memory_bytes: u64) -> Result<Regions, HandshakeError> {
    if message.len() > MAX_MESSAGE {
        return Err(HandshakeError::TooLong);
    }
    let mappings: Vec<Mapping> =
        serde_json::from_slice(message).map_err(|source| HandshakeError::Parse { bytes: message.len(), source })?;
    if mappings.is_empty() || mappings.len() > MAX_REGIONS {
        return Err(HandshakeError::Count { regions: mappings.len() });
    }
    let mut regions = Vec::with_capacity(mappings.len());
    for (index, mapping) in mappings.into_iter().enumerate() {
        regions.push(checked(index, &mapping, memory_bytes)?);
    }
    regions.sort_unstable_by_key(|region| region.offset);
    let apart = |end: u64, next: u64| if end <= next { Ok(()) } else { Err(HandshakeError::Overlap { at: next }) };
    for pair in regions.windows(2) {
        apart(pair[0].offsets().end, pair[1].offset)?;
    }
    regions.sort_unstable_by_key(|region| region.address);
    for pair in regions.windows(2) {
        apart(pair[0].address + pair[0].bytes, pair[1].address)?;
    }
    Ok(Regions(regions))
}

fn checked(index: usize, mapping: &Mapping, memory_bytes: u64) -> Result<Region, HandshakeError> {
    let sizes = [mapping.page_size, mapping.page_size_kib];
    if sizes == [None, None] {
        return Err(HandshakeError::NoPageSize { index });
    }
    if let Some(bytes) = sizes.into_iter().flatten().find(|&bytes| bytes != PAGE) {
        return Err(HandshakeError::PageSize { index, bytes });
    }
    let region = Region { address: mapping.base_host_virt_addr, bytes: mapping.size, offset: mapping.offset };
    let whole = [region.address, region.bytes, region.offset].iter().all(|number| number.is_multiple_of(PAGE));
    let within = region.offset.checked_add(region.bytes).is_some_and(|end| end <= memory_bytes);
    // Regions that are within the file and do not overlap there cannot add up to more than the file has.
    if !whole || region.bytes == 0 || !within || region.address.checked_add(region.bytes).is_none() {
        return Err(HandshakeError::Region { index, region, memory_bytes });
    }
    Ok(region)
}

/// Why a VMM's message was refused.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The message does not end.
    #[error("the VMM's message has more than {MAX_MESSAGE} bytes")]
    TooLong,
    /// The message is not what Firecracker writes.
    #[error("the VMM's message of {bytes} bytes is no list of memory regions")]
    Parse {
        /// How long it is.
        bytes: usize,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// There are no regions, or too many.
    #[error("the VMM has {regions} memory regions; 1 to {MAX_REGIONS} can be")]
    Count {
        /// How many.
        regions: usize,
    },
    /// A region does not say its page size.
    #[error("memory region {index} has no page size")]
    NoPageSize {
        /// Which region.
        index: usize,
    },
    /// A region has huge pages, or what else is not served.
    #[error("memory region {index} has pages of {bytes} bytes; only pages of {PAGE} bytes are served")]
    PageSize {
        /// Which region.
        index: usize,
        /// Its page size in bytes.
        bytes: u64,
    },
    /// A region is not of whole pages, or reaches beyond the memory file or the end of all addresses.
    #[error("memory region {index} is not of whole pages within {memory_bytes} bytes: {region:x?}")]
    Region {
        /// Which region.
        index: usize,
        /// What it says.
        region: Region,
        /// The size of the memory in bytes.
        memory_bytes: u64,
    },
    /// Two regions overlap.
    #[error("two memory regions overlap at {at:#x}")]
    Overlap {
        /// The address, or offset in the memory file, where the second begins.
        at: u64,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// What Firecracker 1.12 and later send for a guest with 4 GiB: `serde_json::to_string` of its two mappings.
    const FIRECRACKER_1_12: &[u8] = br#"[{"base_host_virt_addr":140245018714112,"size":3221225472,"offset":0,"page_size":4096,"page_size_kib":4096},{"base_host_virt_addr":140243944972288,"size":1073741824,"offset":3221225472,"page_size":4096,"page_size_kib":4096}]"#;
    /// And 1.10 for one with 512 MiB.
    const FIRECRACKER_1_10: &[u8] =
        br#"[{"base_host_virt_addr":140094557110272,"size":536870912,"offset":0,"page_size_kib":4096}]"#;

    #[test]
    fn what_firecracker_sends_is_understood() {
        let regions = parse_handshake(FIRECRACKER_1_12, 4096 * MIB).unwrap();
        let addresses: Vec<_> = regions.iter().map(|region| region.address).collect();
        assert_eq!(addresses, [140_243_944_972_288, 140_245_018_714_112], "by address");
        let second = regions.of_address(140_243_944_972_288 + 5 * PAGE).unwrap();
        assert_eq!(second.offset, 3072 * MIB);
        assert_eq!(regions.of_offset(3072 * MIB), Some(second));
        assert_eq!(second.addresses(&(3072 * MIB + PAGE..3072 * MIB + 3 * PAGE)).start, second.address + PAGE);
        assert_eq!(regions.of_address(140_243_944_972_287), None);
        assert_eq!(regions.of_address(140_245_018_714_112 + 3072 * MIB), None);
        assert_eq!(regions.of_offset(4096 * MIB), None);

        let regions = parse_handshake(FIRECRACKER_1_10, 512 * MIB).unwrap();
        assert_eq!(regions.iter().count(), 1);
    }

    fn one(address: u64, size: u64, offset: u64) -> String {
        format!(r#"{{"base_host_virt_addr":{address},"size":{size},"offset":{offset},"page_size":4096}}"#)
    }

    fn refused(message: &str) -> HandshakeError {
        parse_handshake(message.as_bytes(), MIB).expect_err(message)
    }

    #[test]
    fn regions_that_cannot_be_are_refused() {
        let near_the_end = u64::MAX - 4095;
        for region in [
            one(4097, 4096, 0),
            one(4096, 4097, 0),
            one(4096, 4096, 1),
            one(4096, 0, 0),
            one(4096, 2 * MIB, 0),
            one(4096, MIB, 4096),
            one(4096, 4096, near_the_end),
            one(4096, near_the_end, 4096),
            one(near_the_end, 8192, 0),
        ] {
            assert!(matches!(refused(&format!("[{region}]")), HandshakeError::Region { .. }), "{region}");
        }
        for (first, second) in [
            (one(8192, 8192, 0), one(12288, 4096, 8192)),
            (one(8192, 8192, 0), one(4096, 8192, 8192)),
            (one(8192, 8192, 0), one(65536, 8192, 4096)),
            (one(8192, 8192, 0), one(8192, 8192, 0)),
        ] {
            assert!(matches!(refused(&format!("[{first},{second}]")), HandshakeError::Overlap { .. }), "{second}");
        }
    }

    #[test]
    fn other_page_sizes_are_refused_by_name() {
        let huge = one(0, 4096, 0).replace("4096}", "2097152}");
        let error = refused(&format!("[{huge}]"));
        assert!(matches!(error, HandshakeError::PageSize { index: 0, bytes: 2_097_152 }));
        assert!(error.to_string().contains("2097152 bytes"), "{error}");
        let contradiction = one(0, 4096, 0).replace('}', r#","page_size_kib":2097152}"#);
        assert!(matches!(refused(&format!("[{contradiction}]")), HandshakeError::PageSize { .. }));
        let none = r#"[{"base_host_virt_addr":4096,"size":4096,"offset":0}]"#;
        assert!(matches!(refused(none), HandshakeError::NoPageSize { index: 0 }));
    }

    #[test]
    fn garbage_is_refused() {
        let negative = one(0, 4096, 0).replace(":4096", ":-4096");
        let deep = "[".repeat(10_000);
        for garbage in ["", "[", "{}", "[1]", "[{}]", "null", &negative, &deep, "\u{0}"] {
            assert!(matches!(refused(garbage), HandshakeError::Parse { .. }), "{garbage}");
        }
        assert!(matches!(refused("[]"), HandshakeError::Count { regions: 0 }));
        let many: Vec<_> = (0..65).map(|page| one(page * 4096, 4096, page * 4096)).collect();
        assert!(matches!(refused(&format!("[{}]", many.join(","))), HandshakeError::Count { regions: 65 }));
        assert!(matches!(refused(&" ".repeat(MAX_MESSAGE + 1)), HandshakeError::TooLong));
    }
}
