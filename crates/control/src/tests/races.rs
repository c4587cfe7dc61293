//! Several askers at once.

use api::{
    directory::{Directory, Unavailable},
    host::{Found, HostError},
    ids::MicrovmId,
    microvms::MicrovmState as State,
};

use crate::{
    housekeeping,
    testing::{Call, Fixture, policy, unchanged, until},
};

async fn fixture() -> Fixture {
    let fixture = Fixture::new().await;
    fixture.ready_image("a").await;
    fixture
}

#[tokio::test]
async fn fifty_requests_one_resume() {
    let fixture = fixture().await;
    let id = fixture.suspended(policy(60, 600, true)).await;
    fixture.host.hold(Call::Resume);
    let waiters: Vec<_> = (0..50)
        .map(|_| {
            let control = fixture.control().clone();
            tokio::spawn(async move { control.awake(&id).await })
        })
        .collect();
    until("the resume has begun", async || fixture.host.count(Call::Resume) == 1).await;
    fixture.host.release(Call::Resume);
    let mut vms = vec![];
    for waiter in waiters {
        vms.push(waiter.await.unwrap().unwrap());
    }
    vms.dedup();
    assert_eq!((vms.len(), fixture.host.count(Call::Resume)), (1, 1));
}

#[tokio::test]
async fn fifty_requests_one_failure() {
    let fixture = fixture().await;
    let id = fixture.suspended(policy(60, 600, true)).await;
    fixture.host.hold(Call::Resume);
    fixture.host.fail(Call::Resume, unchanged());
    let waiters: Vec<_> = (0..50)
        .map(|_| {
            let control = fixture.control().clone();
            tokio::spawn(async move { control.awake(&id).await })
        })
        .collect();
    // All of them are in before it fails.
    let free = fixture.config.waiters_per_microvm_max - 50;
    let handle = fixture.control().shared.registry.get(&id).unwrap();
    until("all wait", async || handle.waiters.available_permits() == free && handle.status().borrow().resuming).await;
    fixture.host.release(Call::Resume);
    for waiter in waiters {
        assert!(matches!(waiter.await.unwrap(), Err(Unavailable::WakeFailed { .. }) | Ok(_)));
    }
    assert!(fixture.host.count(Call::Resume) <= 2, "no storm of resumes");
}

#[tokio::test]
async fn waiting_is_bounded() {
    let mut fixture = fixture().await;
    fixture.drain().await;
    fixture.config.waiters_per_microvm_max = 1;
    fixture.config.wake_time_max = std::time::Duration::from_millis(300);
    fixture.start().await;
    fixture.host.hold(Call::Run);
    let id = fixture.pending(None).await;
    let control = fixture.control().clone();
    let first = tokio::spawn(async move { control.awake(&id).await });
    let handle = fixture.control().shared.registry.get(&id).unwrap();
    until("one waits", async || handle.waiters.available_permits() == 0).await;
    assert_eq!(fixture.control().awake(&id).await, Err(Unavailable::Late), "there is room for one");
    assert_eq!(first.await.unwrap(), Err(Unavailable::Late), "and it does not wait for ever");
}

#[tokio::test]
async fn two_suspends_are_one() {
    let fixture = fixture().await;
    let id = fixture.running(None).await;
    let (one, two) = tokio::join!(fixture.suspend(&id), fixture.suspend(&id));
    assert_eq!((one, two), (Ok(()), Ok(())));
    fixture.until_state(&id, State::Suspended).await;
    assert_eq!(fixture.host.count(Call::Suspend), 1);
}

#[tokio::test]
async fn a_resume_in_the_middle_of_a_suspend_comes_after_it() {
    let fixture = fixture().await;
    let id = fixture.running(None).await;
    fixture.host.hold(Call::Suspend);
    fixture.suspend(&id).await.unwrap();
    fixture.resume(&id).await.unwrap();
    assert_eq!(fixture.state(&id).await, State::Suspending);
    fixture.host.release(Call::Suspend);
    fixture.until_state(&id, State::Running).await;
    assert_eq!((fixture.host.count(Call::Suspend), fixture.host.count(Call::Resume)), (1, 1));
}

#[tokio::test]
async fn a_suspend_in_the_middle_of_a_launch_comes_after_it() {
    let fixture = fixture().await;
    fixture.host.hold(Call::Run);
    let id = fixture.pending(None).await;
    fixture.suspend(&id).await.unwrap();
    assert_eq!(fixture.state(&id).await, State::Pending);
    fixture.host.release(Call::Run);
    fixture.until_state(&id, State::Suspended).await;
}

#[tokio::test]
async fn a_request_in_the_middle_of_a_suspend_waits_and_wakes() {
    let fixture = fixture().await;
    let id = fixture.running(policy(60, 600, true)).await;
    fixture.host.hold(Call::Suspend);
    fixture.suspend(&id).await.unwrap();
    let control = fixture.control().clone();
    let request = tokio::spawn(async move { control.awake(&id).await });
    fixture.host.release(Call::Suspend);
    request.await.unwrap().unwrap();
    assert_eq!(fixture.host.count(Call::Resume), 1);
}

#[tokio::test]
async fn terminate_wins_over_every_verb_in_progress() {
    let fixture = fixture().await;
    for verb in [Call::Run, Call::Suspend, Call::Resume] {
        for failure in [None, Some(unchanged()), Some(HostError::Lost { reason: "it broke".into() })] {
            let id = match verb {
                Call::Run => {
                    fixture.host.hold(verb);
                    fixture.pending(None).await
                }
                Call::Suspend => fixture.running(None).await,
                _ => fixture.suspended(None).await,
            };
            fixture.host.hold(verb);
            let before = fixture.host.count(verb);
            match verb {
                Call::Suspend => fixture.suspend(&id).await.unwrap(),
                Call::Resume => fixture.resume(&id).await.unwrap(),
                _ => {}
            }
            if verb != Call::Run {
                until("the verb has begun", async || fixture.host.count(verb) == before + 1).await;
            }
            fixture.terminate(&id).await.unwrap();
            assert_eq!(fixture.state(&id).await, State::Terminating, "it is so when the answer comes");
            assert!(fixture.resume(&id).await.is_err());
            if let Some(failure) = failure {
                fixture.host.fail(verb, failure);
            }
            fixture.host.release(verb);
            fixture.until_state(&id, State::Terminated).await;
            assert_eq!(fixture.get(&id).await.state_reason.as_deref(), Some("Success."));
            assert!(fixture.host.terminated(&id));
        }
    }
    assert_eq!(fixture.host.broken_rules(), Vec::<String>::new());
}

#[tokio::test]
async fn a_terminate_that_fails_is_tried_again() {
    let fixture = fixture().await;
    let id = fixture.running(None).await;
    fixture.host.fail(Call::Terminate, unchanged());
    fixture.host.fail(Call::Terminate, unchanged());
    fixture.terminate(&id).await.unwrap();
    fixture.until_state(&id, State::Terminated).await;
    assert_eq!(fixture.host.count(Call::Terminate), 3);
}

#[tokio::test]
async fn what_a_host_has_of_nobody_goes_and_nothing_else() {
    let fixture = fixture().await;
    let (running, suspended) = (fixture.running(None).await, fixture.suspended(None).await);
    let images = fixture.host.images();
    let nobodys = MicrovmId::random();
    fixture.host.set(&nobodys, Found::Suspended);
    // Launched while the comparison is under way: the host may list it, and its record is older than that.
    fixture.host.hold(Call::Holdings);
    let shared = fixture.control().shared.clone();
    let compared = tokio::spawn(async move { housekeeping::compare(&shared).await });
    tokio::task::yield_now().await;
    let later = fixture.running(None).await;
    fixture.host.hold(Call::Run);
    let launching = fixture.pending(None).await;
    fixture.host.release(Call::Holdings);
    compared.await.unwrap().unwrap();
    assert_eq!(fixture.host.vm(&nobodys), Found::Nothing);
    for id in [running, later] {
        assert!(matches!(fixture.host.vm(&id), Found::Running(_)), "{id}");
    }
    assert_eq!(fixture.host.vm(&suspended), Found::Suspended);
    assert_eq!(fixture.host.images(), images);
    fixture.host.release(Call::Run);
    fixture.until_state(&launching, State::Running).await;
}
