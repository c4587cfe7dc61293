//! Crashes, and starts after them.

use api::{
    directory::Directory,
    host::Found,
    ids::{MicrovmId, VmId},
    images::ImageState,
    microvms::{MicrovmState as State, RunMicrovmRequest},
};

use crate::{
    microvms::admission::Request,
    recovery::REASON_LOST,
    testing::{Call, Fixture, create_request, policy, run_request, until},
};

async fn fixture() -> Fixture {
    let fixture = Fixture::new().await;
    fixture.ready_image("a").await;
    fixture
}

/// A microVM that was in this state when the daemon crashed, with the verb that follows held back.
async fn crashed_in(fixture: &mut Fixture, state: State) -> MicrovmId {
    let id = match state {
        State::Pending => {
            fixture.host.hold(Call::Run);
            fixture.pending(None).await
        }
        State::Suspended => fixture.suspended(None).await,
        _ => fixture.running(None).await,
    };
    match state {
        State::Suspending => {
            fixture.host.hold(Call::Suspend);
            fixture.suspend(&id).await.unwrap();
        }
        State::Terminating => {
            fixture.host.hold(Call::Terminate);
            fixture.terminate(&id).await.unwrap();
        }
        _ => {}
    }
    assert_eq!(fixture.state(&id).await, state);
    fixture.crash().await;
    for call in [Call::Run, Call::Suspend, Call::Terminate] {
        fixture.host.release(call);
    }
    id
}

#[tokio::test]
async fn every_state_with_everything_a_host_can_find() {
    let vm = VmId::random();
    let cases = [
        (State::Pending, [State::Running, State::Running, State::Running]),
        (State::Running, [State::Running, State::Running, State::Terminated]),
        (State::Suspending, [State::Suspended, State::Suspended, State::Terminated]),
        (State::Suspended, [State::Running, State::Suspended, State::Terminated]),
        (State::Terminating, [State::Terminated, State::Terminated, State::Terminated]),
    ];
    for (state, after) in cases {
        for (found, after) in [Found::Running(vm), Found::Suspended, Found::Nothing].into_iter().zip(after) {
            let mut fixture = fixture().await;
            let id = crashed_in(&mut fixture, state).await;
            fixture.host.set(&id, found);
            fixture.start().await;
            fixture.until_state(&id, after).await;
            let now = fixture.get(&id).await;
            let reason = now.state_reason.as_deref();
            match (state, after) {
                (State::Terminating, _) => assert_eq!(reason, Some("Success.")),
                (_, State::Terminated) => assert_eq!(reason, Some(REASON_LOST)),
                (_, _) => assert_eq!(reason, None),
            }
            assert_eq!(fixture.control().awake(&id).await.is_ok(), after == State::Running, "{state} {found:?}");
            assert!(after != State::Terminated || fixture.host.terminated(&id));
            assert_eq!(fixture.host.broken_rules(), Vec::<String>::new());
        }
    }
}

#[tokio::test]
async fn a_crash_costs_no_session() {
    let mut fixture = fixture().await;
    let id = fixture.running(None).await;
    let vm = fixture.control().awake(&id).await.unwrap();
    fixture.crash().await;
    fixture.start().await;
    assert_eq!(fixture.control().awake(&id).await, Ok(vm));
    fixture.host.crash(&id, "it ended later");
    fixture.until_state(&id, State::Terminated).await;
}

#[tokio::test]
async fn what_was_accepted_in_the_middle_of_a_launch_is_kept() {
    let mut fixture = fixture().await;
    fixture.host.hold(Call::Run);
    let id = fixture.pending(None).await;
    fixture.suspend(&id).await.unwrap();
    fixture.crash().await;
    fixture.host.release(Call::Run);
    fixture.start().await;
    fixture.until_state(&id, State::Suspended).await;
}

#[tokio::test]
async fn the_end_of_a_vm_that_is_being_replaced_is_no_news() {
    let mut fixture = fixture().await;
    let id = crashed_in(&mut fixture, State::Pending).await;
    let left = VmId::random();
    fixture.host.set(&id, Found::Running(left));
    fixture.host.hold(Call::Run);
    fixture.start().await;
    until("the launch has begun again", async || fixture.host.count(Call::Run) == 2).await;
    let handle = fixture.control().shared.registry.get(&id).unwrap();
    handle.ended(left, "it was in the way".into()).await;
    // The driver takes its mail in order: once it has answered, it has seen the report.
    fixture.resume(&id).await.unwrap();
    assert_eq!(fixture.state(&id).await, State::Pending);
    fixture.host.release(Call::Run);
    fixture.until_state(&id, State::Running).await;
}

#[tokio::test]
async fn time_limits_go_on_while_nobody_looks() {
    let mut fixture = fixture().await;
    let id = fixture.suspended(policy(60, 1, true)).await;
    fixture.crash().await;
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    fixture.host.hold(Call::Resume);
    fixture.start().await;
    fixture.until_state(&id, State::Terminated).await;
}

const DAY_MS: i64 = 86_400_000;

async fn with_maximum(fixture: &Fixture, seconds: u32) -> MicrovmId {
    let request = RunMicrovmRequest { maximum_duration_in_seconds: Some(seconds), ..run_request(fixture.arn("a")) };
    fixture.run(request).await.unwrap().microvm_id
}

#[tokio::test]
async fn a_clock_set_forward_ends_nothing() {
    let mut fixture = fixture().await;
    let running = with_maximum(&fixture, 3600).await;
    fixture.until_state(&running, State::Running).await;
    let suspended = fixture.suspended(policy(60, 3600, true)).await;
    let started_at = fixture.get(&running).await.started_at;
    for id in [running, suspended] {
        fixture.set_clock(DAY_MS, &id).await;
        // The driver takes its mail in order: once it has answered, it has looked at the clock.
        let handle = fixture.control().shared.registry.get(&id).unwrap();
        handle.ask(if id == running { Request::Resume } else { Request::Suspend }).await.unwrap();
    }
    assert_eq!(fixture.state(&running).await, State::Running);
    assert_eq!(fixture.state(&suspended).await, State::Suspended);
    fixture.crash().await;
    fixture.start().await;
    assert_eq!(fixture.state(&running).await, State::Running, "nor does a restart under the wrong clock");
    assert_eq!(fixture.state(&suspended).await, State::Suspended);
    assert_eq!(fixture.get(&running).await.started_at, started_at, "callers are shown what they were");
}

#[tokio::test]
async fn a_clock_set_back_keeps_nothing() {
    let mut fixture = fixture().await;
    let id = with_maximum(&fixture, 2).await;
    let suspended = fixture.suspended(policy(60, 2, true)).await;
    fixture.set_clock(-DAY_MS, &id).await;
    fixture.crash().await;
    fixture.start().await;
    fixture.until_state(&id, State::Terminated).await;
    fixture.until_state(&suspended, State::Terminated).await;
}

#[tokio::test]
async fn across_a_reboot_the_wall_clock_counts_once() {
    let mut fixture = fixture().await;
    let id = fixture.suspended(policy(60, 3600, true)).await;
    let expired = with_maximum(&fixture, 1200).await;
    fixture.until_state(&expired, State::Running).await;
    fixture.suspend(&expired).await.unwrap();
    fixture.until_state(&expired, State::Suspended).await;
    fixture.crash().await;
    // Half an hour without power.
    (fixture.boot, fixture.set_forward_ms) = (uuid::Uuid::from_u128(2), 1_800_000);
    fixture.start().await;
    fixture.until_state(&expired, State::Terminated).await;
    // Then somebody sets the clock a day forward, and the daemon starts again: one half-hour has passed, no more.
    fixture.set_clock(DAY_MS, &id).await;
    fixture.crash().await;
    fixture.start().await;
    assert_eq!(fixture.state(&id).await, State::Suspended);
    fixture.crash().await;
    // A host without a clock of its own begins its boot in the past.
    (fixture.boot, fixture.set_forward_ms) = (uuid::Uuid::from_u128(3), -DAY_MS);
    fixture.start().await;
    assert_eq!(fixture.state(&id).await, State::Suspended);
}

#[tokio::test]
async fn a_drain_lets_transitions_finish_and_vms_run() {
    let mut fixture = fixture().await;
    let running = fixture.running(None).await;
    let leaving = fixture.running(None).await;
    fixture.suspend(&leaving).await.unwrap();
    let control = fixture.control().clone();
    fixture.drain().await;
    assert!(matches!(fixture.host.vm(&running), Found::Running(_)));
    assert_eq!(fixture.host.vm(&leaving), Found::Suspended);
    drop(control);
    fixture.start().await;
    assert_eq!(fixture.state(&running).await, State::Running);
    assert_eq!(fixture.state(&leaving).await, State::Suspended);
}

#[tokio::test]
async fn a_build_that_was_cut_off_has_failed_and_one_that_waited_goes_on() {
    let mut fixture = fixture().await;
    fixture.host.hold(Call::Build);
    fixture.create(create_request("b")).await.unwrap();
    until("b has begun", async || fixture.host.count(Call::Build) == 2).await;
    fixture.create(create_request("c")).await.unwrap();
    fixture.crash().await;
    fixture.host.release(Call::Build);
    fixture.start().await;
    let image = fixture.image("b").await.unwrap();
    assert_eq!(image.state, ImageState::CreateFailed);
    assert_eq!(image.latest_failed_image_version.map(|it| it.to_string()).as_deref(), Some("1.0"));
    fixture.until_image("c", ImageState::Created).await;
}

#[tokio::test]
async fn a_deletion_goes_on_after_a_crash() {
    let mut fixture = fixture().await;
    fixture.host.hold(Call::RemoveImage);
    fixture.delete_image("a").await.unwrap();
    fixture.crash().await;
    fixture.host.release(Call::RemoveImage);
    fixture.start().await;
    until("it is gone", async || fixture.image("a").await.is_err()).await;
}
