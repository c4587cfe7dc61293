use std::{fs::File, os::unix::fs::FileExt, path::PathBuf};

use super::{
    many,
    vm::{App, Devices, Memory, PAGE, Parts, PretendVm},
};

#[test]
fn hundreds_of_histories_keep_every_promise() {
    many::play_many(1..301, None, false).expect("no history comes to what must never be");
}

#[test]
fn nearly_every_history_follows_from_its_seed() {
    many::play_many(301..341, None, true).expect("nearly every history is the same again");
}

fn sparse() -> File {
    let file = tempfile::tempfile().expect("a file");
    file.set_len(1 << 30).expect("it is sparse");
    file
}

fn vm(memory: File, disk: File, restored: Option<Devices>) -> std::sync::Arc<PretendVm> {
    PretendVm::new(Parts {
        pid: 1,
        who: "it".to_owned(),
        dir: PathBuf::from("/nowhere"),
        network: "net".to_owned(),
        memory: Memory::of(memory, false),
        disk,
        heavy: true,
        restored,
    })
}

/// What a history looks for is found where it is.
#[test]
fn whatever_is_of_another_time_is_noticed() {
    let disk = sparse();
    let counted = vm(sparse(), disk.try_clone().expect("a handle"), None);
    for number in 1..=40 {
        assert_eq!(counted.count().expect("it counts"), number);
    }
    assert_eq!(counted.check(), Ok(40));

    // Memory that is one number behind its disk, devices that are, and a disk with a block of old.
    let restore = |number, lost: Option<u64>| {
        let again = vm(sparse(), disk.try_clone().expect("a handle"), Some(Devices { number, app: App::Runs }));
        for (at, page) in counted.memory().pages.iter().filter(|(at, _)| lost != Some(**at)) {
            again.memory().write(*at, page.clone()).expect("it is memory");
        }
        again
    };
    assert_eq!(restore(40, None).check_restored(), Ok(()));
    assert!(restore(39, None).check_restored().is_err());
    let page = *counted.memory().pages.keys().nth(5).expect("there are more");
    assert!(restore(40, Some(page)).check_restored().is_err());
    disk.write_all_at(&[0; PAGE], 17 * PAGE as u64).expect("it is written");
    assert!(restore(40, None).check_restored().is_err());
    let other = vm(sparse(), sparse(), None);
    assert_eq!(other.count().expect("it counts"), 1);
    assert!(restore(40, None).check().is_err() && other.check() == Ok(1));
}
