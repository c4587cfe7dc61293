//! Memory through several suspends and resumes, over real files.

use std::{fs::File, os::unix::fs::FileExt};

use super::*;

const PAGE: u64 = 4096;
const MEMORY: u64 = 8 * 1024 * 1024;

/// A guest's memory; of a page never written, nothing is known.
struct Guest {
    dir: tempfile::TempDir,
    pages: Vec<Option<u64>>,
}

fn page_of(seed: u64) -> Vec<u8> {
    // Zero pages are stored otherwise than others.
    (0..PAGE).map(|at| if seed == 0 { 0 } else { (seed.wrapping_mul(at | 1) >> 3) as u8 }).collect()
}

impl Guest {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("microvm")).unwrap();
        Self { dir, pages: vec![None; (MEMORY / PAGE) as usize] }
    }

    fn files(&self) -> MicrovmFiles {
        MicrovmFiles::at(self.dir.path().join("microvm"))
    }

    fn write(&mut self, pages: std::ops::Range<usize>, seed: u64) {
        for page in pages {
            self.pages[page] = Some(if seed == 0 { 0 } else { seed + page as u64 });
        }
    }

    /// What a VMM would say has changed: what was ever written.
    fn changes(&self) -> vmm::Changes {
        let file =
            File::options().read(true).write(true).create(true).truncate(true).open(self.dir.path().join("memory"));
        let file = file.unwrap();
        file.set_len(MEMORY).unwrap();
        for (index, seed) in self.pages.iter().enumerate() {
            if let Some(seed) = seed {
                file.write_all_at(&page_of(*seed), index as u64 * PAGE).unwrap();
            }
        }
        vmm::Changes::of_file(file, PAGE, None).unwrap()
    }

    /// As a suspend does; is there a delta?
    fn suspend(&self) -> bool {
        let (files, changes) = (self.files(), self.changes());
        let fresh = files.suspending();
        std::fs::create_dir(fresh.dir()).unwrap();
        std::fs::write(fresh.device_state(), "devices").unwrap();
        let plan = Plan::of(&files.ground(), &changes);
        plan.write(&files.ground(), &fresh, MEMORY, &changes).unwrap();
        manifest::write_suspended(&fresh, Stopped { at: SystemTime::now(), parked: false }).unwrap();
        std::fs::rename(fresh.dir(), files.suspended().dir()).unwrap();
        let _ = std::fs::remove_file(files.ground());
        matches!(plan, Plan::Delta(_))
    }

    /// As a resume does; what it loads must be what was written.
    async fn resume(&self) {
        let files = self.files();
        let memory = open(&files.suspended()).await.unwrap();
        let mut loaded = vec![0xEE; MEMORY as usize];
        memory
            .apply(&mut |offset, pages| {
                loaded[offset as usize..offset as usize + pages.len()].copy_from_slice(pages);
                Ok(())
            })
            .unwrap();
        for (index, (seed, page)) in self.pages.iter().zip(loaded.chunks(PAGE as usize)).enumerate() {
            let expected = seed.map_or(vec![0xEE; PAGE as usize], page_of);
            assert!(page == expected, "page {index} is not what it was");
        }
        std::fs::rename(files.suspended().dir(), files.resumed().dir()).unwrap();
        retire(&files).await.unwrap();
    }
}

#[tokio::test]
async fn a_session_pays_for_what_it_does_now() {
    let mut guest = Guest::new();
    guest.write(0..1024, 7);
    assert!(!guest.suspend(), "the first has nothing to compare with");
    guest.resume().await;
    for round in 0..4 {
        guest.write(round * 10..round * 10 + 4, 1000 * (round as u64 + 1));
        guest.write(1500 + round..1501 + round, 9);
        // Zeroes where there was something.
        guest.write(200..200 + round, 0);
        assert!(guest.suspend(), "round {round} changed little");
        let size = std::fs::metadata(guest.files().suspended().delta()).unwrap().len();
        assert!(size < 200_000, "round {round} wrote {size} bytes");
        guest.resume().await;
    }
    guest.write(0..900, 77);
    assert!(!guest.suspend(), "nearly all is new");
    guest.resume().await;
    assert!(guest.suspend(), "the new layer is a ground again");
    guest.resume().await;
}

#[tokio::test]
async fn without_its_ground_all_is_written() {
    let mut guest = Guest::new();
    guest.write(0..1024, 7);
    guest.suspend();
    guest.resume().await;
    std::fs::remove_file(guest.files().ground()).unwrap();
    assert!(!guest.suspend());
    guest.resume().await;
    // Damaged, it is as good as none.
    let ground = File::options().write(true).open(guest.files().ground()).unwrap();
    ground.write_all_at(b"?", 5000).unwrap();
    assert!(!guest.suspend());
    guest.resume().await;
}

#[tokio::test]
async fn a_delta_that_is_damaged_or_gone_is_refused() {
    let mut guest = Guest::new();
    guest.write(0..1024, 7);
    guest.suspend();
    guest.resume().await;
    guest.write(5..6, 99);
    assert!(guest.suspend());
    let suspended = guest.files().suspended();
    let whole = std::fs::read(suspended.delta()).unwrap();
    let mut damaged = whole.clone();
    damaged[1000] ^= 1;
    std::fs::write(suspended.delta(), &damaged).unwrap();
    let memory = open(&suspended).await.unwrap();
    assert!(memory.apply(&mut |_, _| Ok(())).is_err());
    std::fs::remove_file(suspended.delta()).unwrap();
    assert!(open(&suspended).await.is_err());
    std::fs::write(suspended.delta(), &whole).unwrap();
    guest.resume().await;
}
