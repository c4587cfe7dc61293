//! Layers that are not what was written.

use std::fs::File;
use std::path::Path;

use allocation_counter::measure;
use bolero::TypeGenerator;

use super::{Edits, MEMORY, filled, memory_file, pages_within, sum};
use crate::format::{ENTRY, HEADER, PAGE, Run};
use crate::layer::layer_of;
use crate::{ReadError, write_layer};

/// A layer with pages, pages of zeroes, and what is between them.
fn layer_sample() -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("layer");
    let runs = [0..2 * PAGE, 4 * PAGE..7 * PAGE, MEMORY - PAGE..MEMORY];
    let mut read = |at, pages: &mut [u8]| {
        for (index, page) in pages.chunks_mut(PAGE as usize).enumerate() {
            page.fill(((at / PAGE + index as u64) % 3) as u8);
        }
        Ok(())
    };
    write_layer(&path, MEMORY, &runs, &mut read).unwrap();
    std::fs::read(path).unwrap()
}

/// A layer that was written, or one whose runs could be in order, and what is done to it.
#[derive(Debug, TypeGenerator)]
struct LayerFile {
    runs: Option<[Pages; 4]>,
    header: Edits,
    data: Edits,
    table: Edits,
    /// Whether the checksums fit what came of it.
    sums: bool,
}

#[derive(Debug, TypeGenerator)]
struct Pages {
    #[generator(0u64..65)]
    start: u64,
    #[generator(0u64..8)]
    pages: u64,
    zero: bool,
}

impl LayerFile {
    fn of(&self, sample: &[u8]) -> Vec<u8> {
        let count = u64::from_le_bytes(sample[24..32].try_into().unwrap()) as usize;
        let (rest, table) = sample.split_at(sample.len() - count * ENTRY);
        let (mut header, mut data, mut table) = (rest[..HEADER].to_vec(), rest[HEADER..].to_vec(), table.to_vec());
        if let Some(runs) = &self.runs {
            let pages: u64 = runs.iter().filter(|run| !run.zero).map(|run| run.pages).sum();
            data = vec![1; (pages * PAGE) as usize];
            let entry =
                |run: &Pages| [run.start * PAGE, (run.pages * PAGE) | u64::from(run.zero)].map(u64::to_le_bytes);
            table = runs.iter().flat_map(entry).flatten().collect();
            header[24..32].copy_from_slice(&(runs.len() as u64).to_le_bytes());
        }
        let mut bytes = [self.header.of(&header), self.data.of(&data), self.table.of(&table)].concat();
        if self.sums && bytes.len() >= HEADER {
            let (length, runs) = (bytes.len(), u64::from_le_bytes(bytes[24..32].try_into().unwrap()) as usize);
            let table_at = length.saturating_sub(runs.saturating_mul(ENTRY)).max(HEADER);
            sum(&mut bytes, table_at..length, 32);
            sum(&mut bytes, HEADER..table_at, 36);
            sum(&mut bytes, 0..44, 44);
        }
        bytes
    }
}

#[test]
fn a_layer_may_be_anything() {
    let (sample, file) = (layer_sample(), memory_file());
    bolero::check!().with_type::<LayerFile>().for_each(|layer| {
        let bytes = layer.of(&sample);
        check_layer(filled(&file, &bytes), &bytes);
    });
}

fn check_layer(file: File, bytes: &[u8]) {
    let mut result = None;
    let used = measure(|| result = Some(layer_of(file, Path::new("layer")))).bytes_max as usize;
    // The table as it is and as it is read, and the words of an error.
    assert!(used <= 4 * bytes.len() + 4096, "{used} bytes of memory for a file of {}", bytes.len());
    let layer = match result.expect("it ran") {
        Ok(layer) => layer,
        Err(ReadError::NotALayer { .. } | ReadError::Version { .. } | ReadError::Damaged { .. }) => return,
        Err(error) => panic!("{error:?}"),
    };
    let mut at = HEADER as u64;
    let mut end = 0;
    let mut table = Vec::new();
    for (range, data) in layer.pieces() {
        assert!(end <= range.start && pages_within(&range, layer.memory_bytes()), "{range:?}");
        end = range.end;
        if let Some(data) = &data {
            assert_eq!(*data, at..at + (range.end - range.start));
            at = data.end;
        }
        table.extend(Run { zero: data.is_none(), range }.to_bytes());
    }
    assert_eq!(bytes[at as usize..], table, "the table is what its runs are written as");
    // A run of zeroes can be terabytes of memory in a file of nothing.
    let pages: u64 = layer.runs().iter().map(|run| (run.end - run.start) / PAGE).sum();
    if pages > 1024 {
        return;
    }
    let mut put = 0;
    let verified = layer.verify();
    let visited = layer.visit(&mut |offset, content| {
        assert!(layer.runs().iter().any(|run| run.start <= offset && offset + content.len() as u64 <= run.end));
        put += content.len() as u64;
        Ok(())
    });
    match (verified, visited) {
        (Ok(()), Ok(())) => assert_eq!(put, pages * PAGE),
        (Err(ReadError::Damaged { .. }), Err(ReadError::Damaged { .. })) => {}
        (verified, visited) => panic!("{verified:?}, {visited:?}"),
    }
}
