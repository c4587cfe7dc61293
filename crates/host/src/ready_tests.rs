use std::{
    io,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use api::{
    directory::AppStream,
    host::Egress,
    ids::{ImageId, ImageVersion},
};
use vmm::{ChangedPages, Standstill, StartError};

use super::*;
use crate::{
    files::WorkDir,
    network::NetworkError,
    platform::{Network, SharedVm, VmPlace},
};

/// Stands for a process that waits, or has ended.
struct Process(Arc<AtomicBool>);

#[async_trait::async_trait]
impl PreparedVm for Process {
    fn has_exited(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    async fn end(self: Box<Self>) {}

    async fn load(
        self: Box<Self>,
        _: VmPlace,
        _: &Path,
        _: Standstill,
        _: Option<ChangedPages>,
    ) -> Result<SharedVm, StartError> {
        unreachable!("nothing is loaded here")
    }
}

struct NoNetwork;

#[async_trait::async_trait]
impl Network for NoNetwork {
    fn name(&self) -> &str {
        "none"
    }

    async fn restrict(&self, _: Egress) -> Result<(), NetworkError> {
        unreachable!("nothing is launched here")
    }

    async fn connect(&self, _: u16, _: Duration) -> io::Result<Box<dyn AppStream>> {
        unreachable!("nothing is connected to here")
    }
}

fn version(number: u32) -> ImageRef {
    let image_id: ImageId = "00000000-0000-4000-8000-000000000007".parse().expect("an id");
    ImageRef { image_id, version: format!("{number}.0").parse::<ImageVersion>().expect("a version") }
}

fn launch_of(number: u32) -> Purpose {
    let size = Size::from_baseline_mib(512).expect("a size");
    Purpose { image: version(number), architecture: None, size, wakes: None }
}

fn wake_of(microvm: MicrovmId) -> Purpose {
    Purpose { wakes: Some(microvm), ..launch_of(1) }
}

fn unit() -> (Unit, Arc<AtomicBool>) {
    let exited = Arc::new(AtomicBool::new(false));
    let vm = Box::new(Process(Arc::clone(&exited)));
    let dir = WorkDir::at("/nonexistent/unit".into());
    (Unit { vm_id: VmId::random(), vm, network: Arc::new(NoNetwork), dir }, exited)
}

/// Takes one that is ready; whether there was one.
fn take(ready: &Ready, purpose: &Purpose) -> bool {
    matches!(ready.take(purpose), Taken::Now(_))
}

/// Does all there is to do; what was made, in its order, and how many were ended.
fn settle(ready: &Ready) -> (Vec<Purpose>, usize) {
    let (mut made, mut ended) = (Vec::new(), 0);
    loop {
        match ready.next() {
            Next::Make(purpose) => {
                ready.made(Some(unit().0));
                made.push(purpose);
            }
            Next::End(_) => ended += 1,
            Next::Wait | Next::Close => return (made, ended),
        }
    }
}

#[test]
fn what_was_launched_last_is_launched_next() {
    let ready = Ready::new(2, 0);
    assert!(!take(&ready, &launch_of(1)));
    assert_eq!(settle(&ready), (vec![launch_of(1)], 0));
    assert!(take(&ready, &launch_of(1)));
    assert_eq!(settle(&ready), (vec![launch_of(1); 2], 0), "as many as were launched, up to the limit");
    assert!(!take(&ready, &launch_of(2)));
    assert_eq!(settle(&ready), (vec![launch_of(2)], 1), "its place is another's");
    assert!(take(&ready, &launch_of(1)) && !take(&ready, &launch_of(1)), "dry");
}

#[test]
fn what_was_suspended_last_is_woken_next() {
    let ready = Ready::new(0, 2);
    let microvms: Vec<_> = (0..3).map(|_| MicrovmId::random()).collect();
    microvms.iter().for_each(|microvm| ready.want(wake_of(*microvm)));
    assert_eq!(settle(&ready), (vec![wake_of(microvms[2]), wake_of(microvms[1])], 0));
    assert!(!take(&ready, &wake_of(microvms[0])));
    assert!(take(&ready, &wake_of(microvms[2])));
    assert_eq!(settle(&ready), (vec![], 0), "it is awake");
    assert_eq!(ready.give_up(|purpose| purpose.is_of(&microvms[1])).len(), 1);
    assert_eq!(settle(&ready), (vec![], 0), "it is no more");
}

#[test]
fn one_that_is_being_prepared_is_waited_for() {
    let ready = Ready::new(0, 1);
    let purpose = wake_of(MicrovmId::random());
    ready.want(purpose.clone());
    assert!(matches!(ready.next(), Next::Make(_)));
    let Taken::Soon(mut waiter) = ready.take(&purpose) else { panic!("it is being prepared") };
    assert!(matches!(ready.take(&purpose), Taken::Nothing), "it is another's");
    ready.made(Some(unit().0));
    assert!(waiter.try_recv().is_ok());
    assert_eq!(settle(&ready), (vec![], 0), "it is awake");
}

#[test]
fn one_that_nobody_waits_for_any_more_is_not_kept() {
    let ready = Ready::new(0, 1);
    let purpose = wake_of(MicrovmId::random());
    ready.want(purpose.clone());
    assert!(matches!(ready.next(), Next::Make(_)));
    drop(ready.take(&purpose));
    ready.made(Some(unit().0));
    assert_eq!(settle(&ready), (vec![], 1));
    ready.want(purpose.clone());
    assert!(matches!(ready.next(), Next::Make(_)));
    let Taken::Soon(mut waiter) = ready.take(&purpose) else { panic!("it is being prepared") };
    ready.made(None);
    assert!(waiter.try_recv().is_err(), "it failed");
}

#[test]
fn one_that_ended_is_not_handed_out() {
    let ready = Ready::new(1, 0);
    ready.take(&launch_of(1));
    let (unit, exited) = unit();
    assert!(matches!(ready.next(), Next::Make(_)));
    ready.made(Some(unit));
    exited.store(true, Ordering::Relaxed);
    assert!(!take(&ready, &launch_of(1)));
    assert_eq!(settle(&ready), (vec![launch_of(1)], 1));
}

#[test]
fn one_that_cannot_be_prepared_is_tried_last() {
    let ready = Ready::new(1, 1);
    let wake = wake_of(MicrovmId::random());
    ready.want(wake.clone());
    ready.take(&launch_of(1));
    assert!(matches!(ready.next(), Next::Make(purpose) if purpose == launch_of(1)));
    ready.made(None);
    ready.locked().postpone(&launch_of(1));
    assert_eq!(settle(&ready), (vec![wake, launch_of(1)], 0));
}

#[test]
fn nothing_is_prepared_while_somebody_waits() {
    let ready = Ready::new(1, 0);
    ready.take(&launch_of(1));
    let at_work = (ready.work(), ready.work());
    assert!(matches!(ready.next(), Next::Wait));
    drop(at_work);
    assert!(matches!(ready.next(), Next::Make(_)));
}

#[test]
fn a_removed_version_and_a_close_leave_nothing() {
    let ready = Ready::new(2, 2);
    ready.take(&launch_of(1));
    ready.take(&launch_of(2));
    assert_eq!(settle(&ready).0.len(), 2);
    assert_eq!(ready.give_up(|purpose| purpose.is_from(&version(1))).len(), 1);
    assert_eq!(settle(&ready), (vec![], 0));
    ready.close();
    assert_eq!(settle(&ready), (vec![], 1));
    assert!(matches!(ready.next(), Next::Close));
}
