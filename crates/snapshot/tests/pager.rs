//! The pager, as it is in service: the real program, a real userfaultfd, this process in the VMM's place.

mod support;

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use rustix::process::Signal;
use snapshot::pager::{GuestMemory, TouchedError, read_touched, send_with_descriptors as send, write_touched};
use support::{Files, PAGE, Pager, eventually, guest, in_time, present, recorded};

/// Numbers below `count` in an order without a pattern.
fn shuffled(count: u64, seed: u64) -> Vec<u64> {
    let mut numbers: Vec<u64> = (0..count).collect();
    numbers.sort_by_key(|number| (number + seed).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(17));
    numbers
}

fn read_page(memory: &GuestMemory, page: u64) -> [u8; PAGE as usize] {
    let mut bytes = [0; PAGE as usize];
    memory.read(page * PAGE, &mut bytes);
    bytes
}

fn check(memory: &Arc<GuestMemory>, pages: impl IntoIterator<Item = u64> + Send + 'static, with_layer: bool) {
    let memory = memory.clone();
    in_time(move || {
        for page in pages {
            assert!(read_page(&memory, page) == Files::expected(page, with_layer), "page {page}");
        }
    });
}

#[test]
fn every_page_is_right_from_many_threads() {
    let files = Files::new(4096);
    for with_layer in [false, true] {
        let Some(memory) = guest(files.bytes()).map(Arc::new) else { return };
        let mut pager = if with_layer { files.pager_with_layer() } else { files.pager() };
        let _connection = pager.serve(&memory);
        let readers: Vec<_> = (0..4)
            .map(|seed| {
                let memory = memory.clone();
                thread::spawn(move || check(&memory, shuffled(4096, seed), with_layer))
            })
            .collect();
        for reader in readers {
            reader.join().unwrap();
        }
        pager.signal(Signal::TERM);
        let (status, said) = pager.ended();
        assert!(status.success() && said.is_empty(), "{status}: {said}");
    }
}

#[test]
fn what_the_guest_writes_stays() {
    let files = Files::new(256);
    let Some(memory) = guest(files.bytes()).map(Arc::new) else { return };
    let pager = files.pager_with_layer();
    let _connection = pager.serve(&memory);
    let written = memory.clone();
    in_time(move || {
        for page in 0..256 {
            written.write(page * PAGE + 5, 0xA5);
        }
        for page in 0..256 {
            let mut expected = Files::expected(page, true);
            expected[5] = 0xA5;
            assert!(read_page(&written, page) == expected, "page {page}");
        }
    });
}

#[test]
fn regions_may_be_in_any_order() {
    let files = Files::new(256);
    let Some(memory) = guest(files.bytes()).map(Arc::new) else { return };
    let pager = files.pager();
    let connection = pager.connect();
    let (low, half) = (memory.address(), files.bytes() / 2);
    let region = |address, offset| {
        format!(r#"{{"base_host_virt_addr":{address},"size":{half},"offset":{offset},"page_size_kib":4096}}"#)
    };
    let message = format!("[{},{}]", region(low, half), region(low + half, 0));
    // In two parts: a socket may cut a message anywhere.
    let (first, second) = message.as_bytes().split_at(50);
    send(&connection, first, &[memory.userfaultfd()]).unwrap();
    thread::sleep(Duration::from_millis(20));
    send(&connection, second, &[]).unwrap();
    in_time(move || {
        for page in 0..256 {
            assert!(read_page(&memory, page) == Files::expected((page + 128) % 256, false), "page {page}");
        }
    });
}

#[test]
fn recorded_pages_come_without_being_asked_for() {
    let files = Files::new(4096);
    let Some(memory) = guest(files.bytes()).map(Arc::new) else { return };
    let touched = [7, 8, 9, 3000, 3001, 50, 1, 4095];
    let record = files.path("touched");
    let paths = [files.path("base"), files.path("layer"), record.clone()];
    let mut pager = Pager::start(&files, &["--base-fd", "--layer-fd", "--record-fd"], &paths);
    let _connection = pager.serve(&memory);
    check(&memory, touched, true);
    pager.signal(Signal::TERM);
    assert!(pager.ended().0.success());
    let pages = |first: u64, count: u64| first * PAGE..(first + count) * PAGE;
    let expected = [pages(7, 3), pages(3000, 2), pages(50, 1), pages(1, 1), pages(4095, 1)];
    assert_eq!(recorded(&record, files.bytes()), expected, "in order, and no neighbours");

    let memory = Arc::new(GuestMemory::new(files.bytes()).unwrap());
    let mut pager = Pager::start(&files, &["--base-fd", "--layer-fd", "--prefetch-fd"], &paths);
    let _connection = pager.serve(&memory);
    let all = memory.address()..memory.address() + files.bytes();
    eventually("not all recorded pages came", || present(all.clone()) == touched.len() as u64);
    pager.signal(Signal::KILL);
    let (status, _) = pager.ended();
    assert_eq!(status.signal(), Some(9), "a pager that was killed is seen to have been");
    // Nobody would serve them now.
    check(&memory, touched, true);
}

#[test]
fn a_damaged_list_costs_no_vm() {
    let files = Files::new(64);
    let Some(memory) = guest(files.bytes()).map(Arc::new) else { return };
    let list = files.path("touched");
    fs::write(&list, [b'x'; 100]).unwrap();
    let mut pager = Pager::start(&files, &["--base-fd", "--prefetch-fd"], &[files.path("base"), list]);
    let _connection = pager.serve(&memory);
    check(&memory, 0..64, false);
    pager.signal(Signal::TERM);
    let (status, said) = pager.ended();
    assert!(status.success());
    assert_eq!(said, "pilotlight-pager: the file is no list of touched pages\n");
}

#[test]
fn faults_and_prefetching_of_the_same_pages_get_along() {
    let files = Files::new(8192);
    let Some(memory) = guest(files.bytes()).map(Arc::new) else { return };
    let list = files.path("touched");
    let runs: Vec<_> = shuffled(8192, 1).into_iter().map(|page| page * PAGE..(page + 1) * PAGE).collect();
    write_touched(&File::create(&list).unwrap(), files.bytes(), &runs).unwrap();
    let paths = [files.path("base"), files.path("layer"), list];
    let pager = Pager::start(&files, &["--base-fd", "--layer-fd", "--prefetch-fd"], &paths);
    let _connection = pager.serve(&memory);
    let other = memory.clone();
    let reader = thread::spawn(move || check(&other, shuffled(8192, 2), true));
    check(&memory, 0..8192, true);
    reader.join().unwrap();
}

#[test]
fn removed_pages_are_zeroes_even_while_prefetching() {
    let files = Files::new(8192);
    for prefetched in [false, true] {
        let Some(memory) = guest(files.bytes()).map(Arc::new) else { return };
        let list = files.path("touched");
        let runs: Vec<_> = prefetched.then_some(0..files.bytes()).into_iter().collect();
        write_touched(&File::create(&list).unwrap(), files.bytes(), &runs).unwrap();
        let paths = [files.path("base"), files.path("layer"), list];
        let pager = Pager::start(&files, &["--base-fd", "--layer-fd", "--prefetch-fd"], &paths);
        let _connection = pager.serve(&memory);
        // Every second stretch of 16 pages; some touched before, some not, some being prefetched right now.
        let removed = |page: u64| page / 16 % 2 == 1;
        let guest = memory.clone();
        in_time(move || {
            for page in (0..8192).step_by(5) {
                read_page(&guest, page);
            }
        });
        let balloon = memory.clone();
        in_time(move || {
            for start in (0..8192).step_by(16).filter(|page| removed(*page)) {
                balloon.remove(start * PAGE..(start + 16) * PAGE).unwrap();
            }
        });
        let guest = memory.clone();
        in_time(move || {
            for page in shuffled(8192, 3) {
                let expected = if removed(page) { [0; PAGE as usize] } else { Files::expected(page, true) };
                assert!(read_page(&guest, page) == expected, "page {page}");
            }
        });
        // Once more, now that they are there, with somebody reading all the time.
        let guest = memory.clone();
        let reader = thread::spawn(move || check(&guest, (0..8192).filter(move |page| !removed(*page)), true));
        let balloon = memory.clone();
        in_time(move || {
            for start in (0..8192).step_by(16).filter(|page| removed(*page)) {
                balloon.write(start * PAGE, 1);
                balloon.remove(start * PAGE..(start + 16) * PAGE).unwrap();
                assert!(read_page(&balloon, start) == [0; PAGE as usize], "page {start}");
            }
        });
        reader.join().unwrap();
    }
}

#[test]
fn a_pager_with_nothing_to_do_sleeps_and_is_small() {
    let files = Files::new(1024);
    let Some(memory) = guest(files.bytes()).map(Arc::new) else { return };
    let pager = files.pager_with_layer();
    let connection = pager.serve(&memory);
    check(&memory, 0..1024, true);
    let idle = |what: &str| {
        let before = pager.busy();
        thread::sleep(Duration::from_millis(400));
        let used = pager.busy() - before;
        println!("a pager {what} for 400 ms: {used:?} of processor time");
        assert!(used < Duration::from_millis(40), "{what}: {used:?} in 400 ms");
    };
    idle("idle");
    println!("an idle pager: {}", pager.resident());
    // What the VMM sends later, and that it hangs up, is nothing to react to while its process lives. That the pager
    // has hung up, having its process to watch, is no fault of the VMM's either.
    let _ = send(&connection, &[b'x'; 4096], &[]);
    idle("talked to");
    drop(connection);
    idle("hung up on");
    let other = UnixStream::connect(&pager.socket);
    assert!(other.is_err(), "there is one VM for a pager");
    memory.remove(0..PAGE).unwrap();
    in_time(move || assert!(read_page(&memory, 0) == [0; PAGE as usize], "it serves all the same"));
}

/// Not a test: the VMM of the next one.
#[test]
fn plays_a_vmm() {
    let Some(socket) = std::env::var_os("PILOTLIGHT_TEST_PAGER") else { return };
    let memory = GuestMemory::new(std::env::var("PILOTLIGHT_TEST_BYTES").unwrap().parse().unwrap()).unwrap();
    let connection = UnixStream::connect(socket).unwrap();
    memory.hand_over(&connection).unwrap();
    memory.read(17 * PAGE, &mut [0]);
    println!("served");
    loop {
        thread::park();
    }
}

#[test]
fn the_end_of_the_vmm_is_the_end_of_its_pager() {
    let files = Files::new(256);
    if guest(PAGE).is_none() {
        return;
    }
    let record = files.path("touched");
    let mut pager = Pager::start(&files, &["--base-fd", "--record-fd"], &[files.path("base"), record.clone()]);
    let mut vmm = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "plays_a_vmm", "--nocapture"])
        .env("PILOTLIGHT_TEST_PAGER", &pager.socket)
        .env("PILOTLIGHT_TEST_BYTES", files.bytes().to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(vmm.stdout.take().unwrap()).lines();
    assert!(lines.map_while(Result::ok).any(|line| line.ends_with("served")), "the VMM got its page");
    let killed = Instant::now();
    vmm.kill().unwrap();
    let (status, said) = pager.ended();
    println!("a pager ends {:?} after its VMM", killed.elapsed());
    vmm.wait().unwrap();
    assert!(status.success() && said.is_empty(), "{status}: {said}");
    assert_eq!(recorded(&record, files.bytes()), std::slice::from_ref(&(17 * PAGE..18 * PAGE)));
}

#[test]
fn what_no_vmm_says_is_refused() {
    let files = Files::new(64);
    let Some(memory) = guest(files.bytes()) else { return };
    let uffd = memory.userfaultfd();
    let (address, bytes) = (memory.address(), files.bytes());
    let region = |address: u64, size: u64, offset: u64, page: u64| {
        format!(r#"{{"base_host_virt_addr":{address},"size":{size},"offset":{offset},"page_size":{page}}}"#)
    };
    let good = format!("[{}]", region(address, bytes, 0, 4096));
    let overlap = format!("[{},{}]", region(address, 8192, 0, 4096), region(address + 4096, 4096, 8192, 4096));
    let far = format!("[{}]", region(address, bytes, 4096, 4096));
    let huge = format!("[{}]", region(address, bytes, 0, 2 << 20));
    let long = " ".repeat(70_000);
    let elsewhere = File::open("/dev/null").unwrap();
    let elsewhere = std::os::fd::AsFd::as_fd(&elsewhere);
    for (message, descriptors, reason) in [
        (&*good, &[][..], "the VMM sent 0 descriptors"),
        (&good, &[uffd, uffd], "the VMM sent 2 descriptors"),
        (&good, &[uffd; 7], "descriptors, not one userfaultfd"),
        (&good, &[elsewhere], "no userfaultfd of this memory: Inappropriate ioctl"),
        (&overlap, &[uffd], "two memory regions overlap"),
        (&far, &[uffd], "memory region 0 is not of whole pages within"),
        (&huge, &[uffd], "memory region 0 has pages of 2097152 bytes; only pages of 4096 bytes are served"),
        ("GET / HTTP/1.1 ]", &[uffd], "no list of memory regions"),
        ("[{\"size\":", &[uffd], "no VMM has said what its memory is within 1s"),
        (&long, &[uffd], "more than 65536 bytes"),
    ] {
        let mut pager = files.pager();
        let connection = pager.connect();
        // The pager may hang up before it was told everything.
        let _ = send(&connection, message.as_bytes(), descriptors);
        let (status, said) = pager.ended();
        assert_eq!(status.code(), Some(1), "{reason}");
        assert!(said.contains(reason) && said.lines().count() == 1, "{said} is not {reason}");
    }
    let mut pager = files.pager();
    drop(pager.connect());
    let (status, said) = pager.ended();
    assert!(status.code() == Some(1) && said.contains("no list of memory regions"), "{said}");
    let mut pager = files.pager();
    let (status, said) = pager.ended();
    assert!(status.code() == Some(1) && said.contains("within 1s"), "nobody came: {said}");
    let mut pager = files.pager();
    thread::sleep(Duration::from_millis(200));
    pager.signal(Signal::TERM);
    assert!(pager.ended().0.success(), "ended while it waited");
}

#[test]
fn files_that_do_not_fit_are_refused() {
    let (files, other) = (Files::new(64), Files::new(32));
    let damaged = files.path("damaged");
    let mut bytes = fs::read(files.path("layer")).unwrap();
    bytes[5000] ^= 1;
    fs::write(&damaged, bytes).unwrap();
    let base = files.path("base");
    for (base, layer, reason) in [
        (&other.path("base"), files.path("layer"), "the base has 131072 bytes, the memory 262144"),
        (&base, damaged, "its page data does not have the checksum"),
        (&base, other.path("layer"), "the layer is of a memory of 131072 bytes, not 262144"),
        (&base, base.clone(), "is no memory layer"),
    ] {
        let mut pager = Pager::start(&files, &["--base-fd", "--layer-fd"], &[base.clone(), layer]);
        let (status, said) = pager.ended();
        assert!(status.code() == Some(1) && said.contains(reason), "{said} is not {reason}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn touched_pages_round_trip_and_damage_is_noticed(
        pages in prop::collection::vec((0u64..1000, 1u64..24), 0..200),
        place in any::<prop::sample::Index>(),
        bit in 0u8..8,
    ) {
        let runs: Vec<Range<u64>> = pages.iter().map(|(page, count)| page * PAGE..(page + count) * PAGE).collect();
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[9; 10_000], 0).unwrap();
        write_touched(&file, 1024 * PAGE, &runs).unwrap();
        prop_assert_eq!(read_touched(&file, 1024 * PAGE).unwrap(), runs);
        let other = read_touched(&file, 2048 * PAGE);
        let refused = matches!(other, Err(TouchedError::OtherMemory { .. }));
        prop_assert!(refused, "of another memory");
        let at = place.index(file.metadata().unwrap().len() as usize) as u64;
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 1 << bit], at).unwrap();
        prop_assert!(read_touched(&file, 1024 * PAGE).is_err());
        file.set_len(at).unwrap();
        prop_assert!(read_touched(&file, 1024 * PAGE).is_err());
    }
}

#[test]
fn touched_pages_outside_of_the_memory_are_not_written() {
    let file = tempfile::tempfile().unwrap();
    for run in [0..PAGE + 1, PAGE..PAGE, 1..PAGE, 3 * PAGE..5 * PAGE] {
        let written = write_touched(&file, 4 * PAGE, std::slice::from_ref(&run));
        assert!(matches!(written, Err(TouchedError::Run { index: 0, .. })), "{run:?}");
    }
}

/// Prints how fast pages come. Nothing is asserted: the machine may be busy.
#[test]
fn measures() {
    const BYTES: u64 = 512 << 20;
    let files = Files { pages: BYTES / PAGE, ..Files::new(0) };
    let base = File::create(files.path("base")).unwrap();
    for at in (0..BYTES).step_by(1 << 20) {
        base.write_all_at(&[0x5A; 1 << 20], at).unwrap();
    }
    let paths = [files.path("base"), files.path("touched")];
    let orders = [
        ("in order", (0..BYTES / PAGE).collect()),
        ("at random", shuffled(BYTES / PAGE, 4)),
        // No neighbour is ever wanted.
        ("far apart", shuffled(BYTES / PAGE / 16, 4).into_iter().map(|page| page * 16 + 7).collect::<Vec<_>>()),
    ];
    // Recording gives single pages: what a fault costs when no neighbour came before it.
    for (how, names) in [("alone", &["--base-fd", "--record-fd"][..]), ("with neighbours", &["--base-fd"])] {
        for (order, pages) in &orders {
            let Some(memory) = guest(BYTES) else { return };
            let pager = Pager::start(&files, names, &paths[..names.len()]);
            let _connection = pager.serve(&memory);
            memory.read(0, &mut [0]);
            let begin = Instant::now();
            for page in &pages[..TOUCHES as usize] {
                memory.read(page * PAGE, &mut [0]);
            }
            println!("a page of 4 KiB {order}, {how}: {:?}", begin.elapsed() / TOUCHES);
        }
    }
    for pages in [1, 4, 16, 32_768, 32_768] {
        let Some(memory) = guest(BYTES) else { return };
        // Every second run of this many pages.
        let run = pages * PAGE;
        let runs: Vec<_> = (0..BYTES / run / 2).map(|index| 2 * index * run..(2 * index + 1) * run).collect();
        write_touched(&File::create(&paths[1]).unwrap(), BYTES, &runs).unwrap();
        let pager = Pager::start(&files, &["--base-fd", "--prefetch-fd"], &paths);
        // By then it waits for its VMM.
        thread::sleep(Duration::from_millis(100));
        let last = memory.address() + runs.last().unwrap().end;
        let begin = Instant::now();
        let _connection = pager.serve(&memory);
        eventually("prefetching does not end", || present(last - PAGE..last) == 1);
        let speed = (BYTES / 2) as f64 / begin.elapsed().as_secs_f64() / 1e9;
        println!("prefetching 256 MiB in runs of {pages} pages: {speed:.2} GB/s; {}", pager.resident());
    }
}

/// Pages touched to measure what one costs.
const TOUCHES: u32 = 8192;
