//! The pages a new microVM is going to want, brought from the disk before it asks for one at a time.
//!
//! `/validate` runs on a first microVM of a version, and what that looked at, the others will. It matters when the version's
//! memory is not in the page cache: after a restart of the machine, or when nobody has launched it for long.

use std::{
    fs::File,
    io::{self, IoSliceMut},
    ops::Range,
};

use api::size::Size;
use rustix::io::{Errno, ReadWriteFlags};
use snapshot::pager::{read_touched, write_touched};

use crate::{files::VersionFiles, platform::Vm, verbs::blocking};

/// Parts of the memory that are nearer to one another are read as one.
const GAP_MAX: u64 = 64 * 1024;

/// Looks at so many pages to see whether the memory is in the page cache.
const SAMPLES: usize = 16;

/// Keeps what this VM has looked at for those that come after. A hint: without it they are only slower the first time.
pub async fn record(vm: &dyn Vm, version: &VersionFiles, size: Size) {
    let (to, memory_bytes) = (version.touched(), size.guest_memory_bytes());
    let touched = vm.touched().await;
    let written = async {
        let runs = near_ones_joined(&touched?);
        if runs.is_empty() {
            return Ok(());
        }
        blocking(move || {
            let fresh = to.with_extension("new");
            write_touched(&File::create(&fresh)?, memory_bytes, &runs).map_err(io::Error::other)?;
            std::fs::rename(fresh, to)
        })
        .await
    };
    if let Err(error) = written.await {
        tracing::warn!(%error, "what a new microVM looks at could not be kept");
    }
}

/// Has the kernel read what a new microVM will want, unless it is in the page cache; does not wait for it.
pub fn start(version: &VersionFiles, size: Size) {
    let (touched, memory, memory_bytes) = (version.touched(), version.memory(), size.guest_memory_bytes());
    tokio::task::spawn_blocking(move || {
        let Ok(touched) = File::open(touched) else { return };
        let read = read_touched(&touched, memory_bytes).map_err(io::Error::other);
        let read = read.and_then(|runs| fetch(&File::open(memory)?, &runs));
        match read {
            Ok(bytes @ 1..) => tracing::debug!(bytes, "reading ahead what a new microVM will want"),
            Ok(0) => {}
            Err(error) => tracing::warn!(%error, "what a new microVM will want is not read ahead"),
        }
    });
}

/// Asks for the parts of a file, unless they are there; how many bytes were asked for.
fn fetch(memory: &File, runs: &[Range<u64>]) -> io::Result<u64> {
    let every = runs.len().div_ceil(SAMPLES).max(1);
    let mut all_there = true;
    for run in runs.iter().step_by(every) {
        all_there = all_there && is_cached(memory, run.start)?;
    }
    if all_there {
        return Ok(0);
    }
    for run in runs {
        let length = std::num::NonZeroU64::new(run.end - run.start);
        rustix::fs::fadvise(memory, run.start, length, rustix::fs::Advice::WillNeed)?;
    }
    Ok(runs.iter().map(|run| run.end - run.start).sum())
}

fn is_cached(file: &File, offset: u64) -> io::Result<bool> {
    let mut byte = [0];
    match rustix::io::preadv2(file, &mut [IoSliceMut::new(&mut byte)], offset, ReadWriteFlags::NOWAIT) {
        Ok(_) => Ok(true),
        Err(Errno::AGAIN) => Ok(false),
        // Some file systems cannot say; asking them to read ahead costs little.
        Err(Errno::OPNOTSUPP) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn near_ones_joined(runs: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut joined: Vec<Range<u64>> = Vec::new();
    for run in runs {
        match joined.last_mut() {
            Some(last) if last.end + GAP_MAX >= run.start => last.end = run.end,
            _ => joined.push(run.clone()),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use std::{io::Write, thread, time::Duration};

    use super::*;

    const MIB: u64 = 1024 * 1024;

    #[test]
    fn near_ones_are_read_as_one() {
        let runs = [0..4096, 8192..12288, MIB..MIB + 4096];
        assert_eq!(near_ones_joined(&runs), [0..12288, MIB..MIB + 4096]);
    }

    #[test]
    fn what_is_wanted_is_brought_and_nothing_else() {
        // Not on a file system in memory: that has nothing to bring.
        let mut file = tempfile::tempfile_in("/var/tmp").unwrap();
        file.write_all(&vec![7; 32 * MIB as usize]).unwrap();
        file.sync_all().unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        let wanted = [0..MIB, 16 * MIB..17 * MIB];
        if is_cached(&file, 0).unwrap() {
            println!("skipped: this file system keeps its pages");
            return;
        }
        assert_eq!(fetch(&file, &wanted).unwrap(), 2 * MIB);
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        while !(is_cached(&file, MIB - 4096).unwrap() && is_cached(&file, 17 * MIB - 4096).unwrap()) {
            assert!(std::time::Instant::now() < deadline, "it is not brought");
            thread::sleep(Duration::from_millis(5));
        }
        // Of what is dropped from the cache, a page that the kernel was busy with stays.
        let others = [5, 9, 13, 21, 25, 29];
        let there = others.iter().filter(|mib| is_cached(&file, **mib * MIB).unwrap()).count();
        assert!(there <= 2, "nobody asked for these, of which {there} are there");
        assert_eq!(fetch(&file, &wanted).unwrap(), 0, "all of it is there");
    }
}
