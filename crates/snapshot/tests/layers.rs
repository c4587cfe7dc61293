//! Layers: any set of pages round-trips, any damage is noticed before anything is applied.

#![allow(clippy::single_range_in_vec_init, reason = "a list of one run is meant")]

use std::fs;
use std::io;
use std::ops::Range;
use std::path::Path;

use proptest::prelude::*;
use snapshot::{ReadError, WriteError, open_layer, write_layer};

const PAGE: usize = 4096;

/// A page's kind: not in the layer, zero, or filled with something made from the number.
fn memory(kinds: &[u8]) -> (Vec<u8>, Vec<Range<u64>>) {
    let mut memory = Vec::with_capacity(kinds.len() * PAGE);
    let mut runs: Vec<Range<u64>> = Vec::new();
    for (index, &kind) in kinds.iter().enumerate() {
        let fill = kind.saturating_sub(1);
        memory.extend((0..PAGE).map(|i| fill.wrapping_mul(i as u8 | 1)));
        if kind == 0 {
            continue;
        }
        let start = (index * PAGE) as u64;
        match runs.last_mut() {
            Some(last) if last.end == start => last.end += PAGE as u64,
            _ => runs.push(start..start + PAGE as u64),
        }
    }
    (memory, runs)
}

fn write(path: &Path, memory: &[u8], runs: &[Range<u64>]) -> snapshot::LayerStats {
    write_layer(path, memory.len() as u64, runs, &mut |offset, buffer| {
        let offset = offset as usize;
        buffer.copy_from_slice(&memory[offset..offset + buffer.len()]);
        Ok(())
    })
    .unwrap()
}

/// Applies a layer over memory of 0xEE once it is verified, counting the calls.
fn apply(path: &Path, bytes: usize) -> (Result<Vec<u8>, ReadError>, usize) {
    let mut memory = vec![0xEE; bytes];
    let mut calls = 0;
    let applied = open_layer(path).and_then(|layer| {
        if let Err(damaged) = layer.verify() {
            assert!(layer.visit(&mut |_, _| Ok(())).is_err(), "seen before, and not afterwards");
            return Err(damaged);
        }
        layer.visit(&mut |offset, content| {
            calls += 1;
            assert!(content.len() <= 1 << 20);
            memory[offset as usize..offset as usize + content.len()].copy_from_slice(content);
            Ok(())
        })
    });
    (applied.map(|()| memory), calls)
}

fn expected(memory: &[u8], runs: &[Range<u64>]) -> Vec<u8> {
    let mut expected = vec![0xEE; memory.len()];
    for run in runs {
        let run = run.start as usize..run.end as usize;
        expected[run.clone()].copy_from_slice(&memory[run]);
    }
    expected
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_set_of_pages_round_trips(kinds in prop::collection::vec(0u8..5, 0..700)) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("layer");
        let (memory, runs) = memory(&kinds);
        let stats = write(&path, &memory, &runs);
        prop_assert_eq!(stats.pages, kinds.iter().filter(|&&k| k > 0).count() as u64);
        prop_assert_eq!(stats.zero_pages, kinds.iter().filter(|&&k| k == 1).count() as u64);
        prop_assert_eq!(stats.file_bytes, fs::metadata(&path).unwrap().len());
        let layer = open_layer(&path).unwrap();
        prop_assert_eq!(layer.runs(), runs.clone());
        prop_assert_eq!(layer.memory_bytes(), memory.len() as u64);
        let (applied, _) = apply(&path, memory.len());
        prop_assert!(applied.unwrap() == expected(&memory, &runs));
    }

    #[test]
    fn any_flipped_bit_or_missing_or_added_byte_is_noticed(
        kinds in prop::collection::vec(0u8..4, 1..40),
        place in any::<prop::sample::Index>(),
        bit in 0u8..8,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("layer");
        let (memory, runs) = memory(&kinds);
        write(&path, &memory, &runs);
        let whole = fs::read(&path).unwrap();
        let at = place.index(whole.len());

        let mut flipped = whole.clone();
        flipped[at] ^= 1 << bit;
        let longer = [&whole[..], &[0; 16][..]].concat();
        for damaged in [&flipped[..], &whole[..at], &longer] {
            fs::write(&path, damaged).unwrap();
            let (applied, calls) = apply(&path, memory.len());
            prop_assert!(applied.is_err());
            prop_assert_eq!(calls, 0, "nothing of a damaged layer is applied");
        }
    }
}

#[test]
fn every_single_byte_of_a_small_layer_matters() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("layer");
    let (memory, runs) = memory(&[2, 0, 1, 3]);
    write(&path, &memory, &runs);
    let whole = fs::read(&path).unwrap();
    for at in (0..whole.len()).filter(|at| *at < 64 || at % 61 == 0 || whole.len() - at < 64) {
        let mut flipped = whole.clone();
        flipped[at] ^= 0x10;
        fs::write(&path, &flipped).unwrap();
        assert!(apply(&path, memory.len()).0.is_err(), "byte {at}");
        fs::write(&path, &whole[..at]).unwrap();
        assert!(apply(&path, memory.len()).0.is_err(), "cut at {at}");
    }
}

#[test]
fn large_runs_are_handed_on_in_pieces() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("layer");
    let kinds: Vec<u8> = (0..1500).map(|i| if (600..700).contains(&i) { 1 } else { 3 }).collect();
    let (memory, runs) = memory(&kinds);
    let stats = write(&path, &memory, &runs);
    assert_eq!((stats.runs, stats.zero_pages), (3, 100));
    let (applied, _) = apply(&path, memory.len());
    assert!(applied.unwrap() == memory);
}

#[test]
fn runs_that_are_not_pages_in_order_are_refused_and_nothing_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("layer");
    let bad: [&[Range<u64>]; 6] =
        [&[0..100], &[1..4097], &[4096..4096], &[4096..8192, 0..4096], &[0..8192, 4096..12288], &[12288..20480]];
    for runs in bad {
        let result = write_layer(&path, 16384, runs, &mut |_, _| Ok(()));
        assert!(matches!(result, Err(WriteError::Runs { .. })), "{runs:?}");
    }
    let result = write_layer(&path, 16385, &[], &mut |_, _| Ok(()));
    assert!(matches!(result, Err(WriteError::MemorySize { .. })));
    let result = write_layer(&path, 16384, &[0..4096], &mut |_, _| Err(io::Error::other("gone")));
    assert!(matches!(result, Err(WriteError::Source { offset: 0, .. })));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

/// Runs itself again in a mount namespace of its own with a tiny file system, which goes with it.
#[test]
fn a_full_disk_is_called_that_and_nothing_is_left() {
    const INNER: &str = "SNAPSHOT_TEST_FULL_DISK";
    let Some(full) = std::env::var_os(INNER) else {
        let dir = tempfile::tempdir().unwrap();
        let script = "mount -t tmpfs -o size=64k none \"$1\" || exit 77; exec \"$2\" --exact \"$3\" --nocapture";
        let status = std::process::Command::new("unshare")
            .args(["--mount", "sh", "-c", script, "sh"])
            .arg(dir.path())
            .arg(std::env::current_exe().unwrap())
            .arg("a_full_disk_is_called_that_and_nothing_is_left")
            .env(INNER, dir.path())
            .status();
        match status.map(|status| status.code()) {
            Ok(Some(0)) => {}
            Ok(Some(1 | 77)) if !runs_as_root() => println!("skipped: may not mount"),
            other => panic!("the inner test: {other:?}"),
        }
        return;
    };
    let full = Path::new(&full);
    let result = write_layer(&full.join("layer"), 1 << 20, &[0..1 << 20], &mut |_, page| {
        page.fill(1);
        Ok(())
    });
    assert!(matches!(result, Err(WriteError::StorageFull { .. })), "{result:?}");
    let from = full.join("from");
    fs::write(&from, vec![1; 40_000]).unwrap();
    let result = snapshot::copy_sparse(&from, &full.join("to"));
    assert!(matches!(result, Err(snapshot::CopyError::Write(WriteError::StorageFull { .. }))), "{result:?}");
    assert_eq!(fs::read_dir(full).unwrap().count(), 1, "only the original is left");
}

fn runs_as_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0)
}

#[test]
fn what_is_no_layer_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("layer");
    assert!(matches!(open_layer(&path), Err(ReadError::Read { .. })));
    fs::write(&path, b"short").unwrap();
    assert!(matches!(open_layer(&path), Err(ReadError::Damaged { .. })));
    fs::write(&path, [b'x'; 100]).unwrap();
    assert!(matches!(open_layer(&path), Err(ReadError::NotALayer { .. })));
}
